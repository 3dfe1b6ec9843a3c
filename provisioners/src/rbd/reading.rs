//! How the test of docs/migration.md reads classes and PersistentVolumes of Ceph.

use super::config::{Mounter, RbdCluster, RbdConfig};
use super::foreign::{GROUP_CLASS, no_volume};
use super::handle::{Handle, Place, parse_handle};
use super::params::Params;
use super::store::Store;
use super::theirs::usage;
use crate::migration::{Parsed, fields};
use crate::parameters::others;
use crate::{GroupSpec, Result, Secrets, SnapshotSpec, StringMap, VolumeId};

const CLUSTER: &str = "b9127830-b0cc-4e34-aa47-9d1a2e9949a8";

fn config() -> RbdConfig {
    let cluster = |id: &str| RbdCluster { id: id.into(), ..RbdCluster::default() };
    // Another mounter than those of the classes, so that theirs are seen to have an effect.
    RbdConfig {
        clusters: vec![cluster(CLUSTER), cluster("other")],
        mounter: Mounter::Fuse,
        ..RbdConfig::default()
    }
}

fn shown(mut params: Params) -> (String, Vec<String>) {
    let ignored = std::mem::take(&mut params.ignored);
    (format!("{params:?}"), fields(&ignored))
}

pub(crate) fn class(given: &StringMap) -> Parsed {
    Params::parse(&config(), given).map(shown)
}

/// The in-tree plugin knew one cluster by its monitors.
pub(crate) fn class_of_one_cluster(given: &StringMap) -> Parsed {
    let config = RbdConfig { clusters: config().clusters[..1].to_vec(), ..config() };
    Params::parse(&config, given).map(shown)
}

pub(crate) fn snapshot_class(given: &StringMap) -> Parsed {
    let spec = SnapshotSpec {
        name: "snap".into(),
        source: VolumeId(format!("{CLUSTER}:replicated/pvc-1")),
        parameters: given.clone(),
        secrets: Secrets::default(),
    };
    Store::snapshot_handle(&spec).map(|handle| (handle.to_string(), Vec::new()))
}

pub(crate) fn group_class(given: &StringMap) -> Parsed {
    let spec = GroupSpec {
        name: "group".into(),
        sources: vec![VolumeId(format!("{CLUSTER}:replicated/pvc-1"))],
        parameters: given.clone(),
        secrets: Secrets::default(),
    };
    let ignored = fields(&others("parameters", given, &GROUP_CLASS));
    Store::group_handle(&spec).map(|handle| (handle.to_string(), ignored))
}

/// A handle as a node call would read it.
pub(crate) fn handle(text: &str) -> Result<String> {
    let id = VolumeId(text.to_owned());
    parse_handle(text).map(|handle| handle.to_string()).map_err(|_| no_volume(&id))
}

/// The handle that docs/migration.md says to write.
pub(crate) fn written_anew(volume_handle: &str, attributes: &StringMap) -> String {
    let get = |key: &str| attributes.get(key).cloned().unwrap_or_default();
    let name = attributes.get("imageName").map_or(volume_handle, String::as_str);
    let place = Place { cluster: get("clusterID"), pool: get("pool"), namespace: get("radosNamespace") };
    Handle { place, name: name.to_owned() }.to_string()
}

pub(crate) fn attributes(volume_handle: &str, attributes: &StringMap) -> Parsed {
    usage(Mounter::Fuse, &parse_handle(volume_handle)?, attributes).map(shown)
}

/// The names of its parameters of other drivers.
pub(crate) fn foreign() -> Vec<&'static str> {
    let all = super::foreign::CLASS.iter().chain(&GROUP_CLASS).chain(&super::foreign::ATTRIBUTES);
    all.map(|it| it.name).filter(|name| *name != "lockRecovery").collect()
}
