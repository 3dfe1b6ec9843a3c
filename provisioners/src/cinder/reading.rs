//! How the test of docs/migration.md reads classes and PersistentVolumes of Cinder.

use super::handle::parse_handle;
use super::node::Attributes;
use super::params::{Params, SnapshotParams};
use crate::migration::{Parsed, fields};
use crate::{PvcMeta, StringMap};

pub(crate) fn class(given: &StringMap) -> Parsed {
    let params = Params::parse(given, &StringMap::new(), &PvcMeta::default())?;
    Ok((format!("{params:?}"), Vec::new()))
}

pub(crate) fn snapshot_class(given: &StringMap) -> Parsed {
    SnapshotParams::parse(given).map(|params| (format!("{params:?}"), Vec::new()))
}

pub(crate) fn attributes(handle: &str, given: &StringMap) -> Parsed {
    let handle = parse_handle(handle)?;
    let mut attributes = Attributes::parse(given)?;
    let ignored = std::mem::take(&mut attributes.ignored);
    Ok((format!("{handle:?} {attributes:?}"), fields(&ignored)))
}
