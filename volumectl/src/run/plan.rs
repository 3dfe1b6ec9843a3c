//! What a claim becomes in CSI, as external-provisioner translates it.

use anyhow::{Context as _, Result, bail, ensure};
use csi_proto::v1 as pb;
use pb::volume_capability::access_mode::Mode;
use pb::volume_capability::{AccessType, BlockVolume, MountVolume};
use serde_json::Value;

use super::lookups::SIDECAR;
use super::manifests::Bundle;
use super::objects::{Claim, CsiSource, Map, Meta, PersistentVolume, Resources, Storage, StorageClass};
use crate::csi::args;
use crate::quantity;

const FSTYPE: &str = "csi.storage.k8s.io/fstype";
const MODES: [&str; 4] = ["ReadWriteOnce", "ReadWriteOncePod", "ReadOnlyMany", "ReadWriteMany"];

/// Where the files are run.
#[derive(Debug, Clone, Default)]
pub struct Site {
    /// The driver's name.
    pub driver: String,
    /// The node's topology, and its name as `kubernetes.io/hostname`.
    pub labels: Map,
    /// The driver knows SINGLE_NODE_SINGLE_WRITER.
    pub single_writer: bool,
}

/// Where a claim's volume comes from.
#[derive(Debug, Clone, Copy)]
pub enum Origin<'a> {
    /// It is made as a class says.
    Class(&'a StorageClass),
    /// It is there, as a PersistentVolume of the file.
    Volume(&'a PersistentVolume, &'a CsiSource),
}

impl Origin<'_> {
    /// The secrets of a step for a claim.
    pub fn secrets(&self, bundle: &Bundle, step: &str, claim: &Meta) -> Result<Map> {
        let source = match self {
            Self::Class(class) => return bundle.secrets(step, &class.parameters, claim),
            Self::Volume(_, source) => source,
        };
        let reference = match step {
            "controller-publish" => &source.controller_publish_secret_ref,
            "node-stage" => &source.node_stage_secret_ref,
            "node-publish" => &source.node_publish_secret_ref,
            "controller-expand" => &source.controller_expand_secret_ref,
            "node-expand" => &source.node_expand_secret_ref,
            _ => &None,
        };
        reference.as_ref().map_or_else(|| Ok(Map::new()), |reference| bundle.secret_of(step, reference))
    }

    /// Whether it is only read.
    pub fn read_only(&self) -> bool {
        matches!(self, Self::Volume(_, source) if source.read_only)
    }

    /// How a claim of it is used.
    pub fn capability(&self, claim: &Claim, single_writer: bool) -> Result<pb::VolumeCapability> {
        let (modes, fs_type, mount_flags) = match self {
            Self::Class(class) => {
                (&claim.spec.access_modes, fs_type(&class.parameters)?, &class.mount_options)
            }
            Self::Volume(volume, source) => {
                (&volume.spec.access_modes, source.fs_type.clone(), &volume.spec.mount_options)
            }
        };
        let access_type = match claim.volume_mode() {
            "Filesystem" => AccessType::Mount(MountVolume {
                fs_type,
                mount_flags: mount_flags.clone(),
                volume_mount_group: String::new(),
            }),
            "Block" => AccessType::Block(BlockVolume {}),
            other => bail!("spec.volumeMode \"{other}\" is neither Filesystem nor Block"),
        };
        Ok(args::capability(access_type, mode(modes, single_writer)?))
    }
}

/// A claim, and all that is known of what it becomes.
#[derive(Debug, Clone)]
pub struct Plan<'a> {
    /// The claim.
    pub claim: &'a Claim,
    /// Where its volume comes from.
    pub origin: Origin<'a>,
    /// Its class's name; "" is none.
    pub class: String,
    /// How it is used.
    pub capability: pb::VolumeCapability,
    /// How large it is.
    pub range: pb::CapacityRange,
}

impl Plan<'_> {
    /// The secrets of a step.
    pub fn secrets(&self, bundle: &Bundle, step: &str) -> Result<Map> {
        self.origin.secrets(bundle, step, &self.claim.metadata)
    }
}

/// The volume's name: `pvc-<uid>`.
pub fn volume_name(claim: &Meta) -> String {
    format!("pvc-{}", claim.uid())
}

/// The file system that class parameters ask for, also by the old key.
fn fs_type(parameters: &Map) -> Result<String> {
    let named = |(key, _): &(&String, &String)| *key == FSTYPE || key.eq_ignore_ascii_case("fstype");
    let mut found = parameters.iter().filter(named);
    let fs_type = found.next().map(|(_, value)| value.clone()).unwrap_or_default();
    ensure!(found.next().is_none(), "its class gives the file system twice: keep {FSTYPE}");
    Ok(fs_type)
}

/// The access mode, as the sidecars choose it where there are several.
fn mode(modes: &[String], single_writer: bool) -> Result<Mode> {
    if let Some(unknown) = modes.iter().find(|mode| !MODES.contains(&mode.as_str())) {
        bail!("spec.accessModes has \"{unknown}\"; known: {}", MODES.join(", "));
    }
    let has = |mode: &str| modes.iter().any(|m| m == mode);
    ensure!(
        !has("ReadWriteOncePod") || modes.len() == 1,
        "spec.accessModes: ReadWriteOncePod goes with no other mode"
    );
    Ok(if has("ReadWriteMany") {
        Mode::MultiNodeMultiWriter
    } else if has("ReadWriteOncePod") {
        if single_writer { Mode::SingleNodeSingleWriter } else { Mode::SingleNodeWriter }
    } else if has("ReadWriteOnce") {
        // With the finer modes known, "once" means one node and any number of its pods.
        if single_writer { Mode::SingleNodeMultiWriter } else { Mode::SingleNodeWriter }
    } else if has("ReadOnlyMany") {
        Mode::MultiNodeReaderOnly
    } else {
        bail!("spec.accessModes is empty; known: {}", MODES.join(", "))
    })
}

/// A quantity of storage in bytes, if there is one.
pub fn bytes(storage: &Storage) -> Result<Option<i64>, String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
    storage.storage.as_ref().map(|value| quantity::parse(&text(value))).transpose()
}

/// The sizes that a claim asks for.
pub fn range(resources: &Resources) -> Result<pb::CapacityRange> {
    let size = |which: &str, storage: &Storage| {
        let what = || format!("spec.resources.{which}.storage");
        bytes(storage).map_err(anyhow::Error::msg).with_context(what)
    };
    let required = size("requests", &resources.requests)?;
    Ok(pb::CapacityRange {
        required_bytes: required.context("spec.resources.requests.storage is missing")?,
        limit_bytes: size("limits", &resources.limits)?.unwrap_or(0),
    })
}

/// Class parameters as the driver gets them: the sidecars' keys are taken out, the claim's metadata is put in (what
/// `--extra-create-metadata` does). A driver of this project is told the claim's labels and annotations, too.
pub fn parameters(meta: &Meta, class: &StorageClass) -> Map {
    let mut parameters: Map = class
        .parameters
        .iter()
        .filter(|(k, _)| !k.starts_with(SIDECAR))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let own = [("pvc/name", &meta.name), ("pvc/namespace", &meta.namespace), ("pv/name", &volume_name(meta))];
    parameters.extend(own.map(|(key, value)| (format!("{SIDECAR}{key}"), value.clone())));
    if class.provisioner.ends_with(".csi.volumectl.io") {
        let all = [("labels", &meta.labels), ("annotations", &meta.annotations)];
        for (kind, map) in all {
            let entry = |(k, v): (&String, &String)| (format!("csi.volumectl.io/pvc/{kind}/{k}"), v.clone());
            parameters.extend(map.iter().map(entry));
        }
    }
    parameters
}

/// The file system or `block`, for a table.
pub fn used_as(capability: &pb::VolumeCapability) -> String {
    match &capability.access_type {
        Some(AccessType::Mount(mount)) if mount.fs_type.is_empty() => "default".into(),
        Some(AccessType::Mount(mount)) => mount.fs_type.clone(),
        _ => "block".into(),
    }
}
