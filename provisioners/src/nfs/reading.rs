//! How the test of docs/migration.md reads classes and PersistentVolumes of NFS.

use super::attributes::mount;
use super::config::{NfsConfig, NfsShare};
use super::params::Params;
use super::snapshot::Class;
use crate::StringMap;
use crate::migration::{Parsed, fields};

fn config() -> NfsConfig {
    let share =
        NfsShare { name: "main".into(), server: "nas".into(), path: "/x".into(), ..NfsShare::default() };
    NfsConfig { shares: vec![share], any_share: true, ..NfsConfig::default() }
}

pub(crate) fn class(given: &StringMap) -> Parsed {
    Params::parse(&config(), given, &StringMap::new()).map(|params| (format!("{params:?}"), Vec::new()))
}

pub(crate) fn snapshot_class(given: &StringMap) -> Parsed {
    let mut class = Class::parse(&config(), given)?;
    let ignored = std::mem::take(&mut class.ignored);
    Ok((format!("{class:?}"), fields(&ignored)))
}

pub(crate) fn attributes(given: &StringMap) -> Parsed {
    mount(&config(), given).map(|(mount, ignored)| (format!("{mount:?}"), fields(&ignored)))
}

/// The names of its parameters of other drivers.
pub(crate) fn foreign() -> Vec<&'static str> {
    super::snapshot::FOREIGN.iter().chain(&super::attributes::FOREIGN).map(|it| it.name).collect()
}
