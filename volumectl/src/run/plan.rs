//! What a claim becomes in CSI, as external-provisioner translates it.

use anyhow::{Context as _, Result, bail};
use csi_proto::v1 as pb;
use pb::volume_capability::access_mode::Mode;
use pb::volume_capability::{AccessType, BlockVolume, MountVolume};
use serde_json::Value;

use super::manifests::{Claim, Map, StorageClass};
use crate::csi::args;
use crate::quantity;

const SIDECAR: &str = "csi.storage.k8s.io/";
const FSTYPE: &str = "csi.storage.k8s.io/fstype";

/// The volume's name: `pvc-<uid>`.
pub fn volume_name(claim: &Claim) -> String {
    format!("pvc-{}", claim.metadata.uid())
}

/// The capability that a claim and its class ask for. `single_writer`: the driver knows
/// SINGLE_NODE_SINGLE_WRITER.
pub fn capability(claim: &Claim, class: &StorageClass, single_writer: bool) -> Result<pb::VolumeCapability> {
    let mode = mode(claim, single_writer)?;
    let access_type = match claim.spec.volume_mode.as_deref() {
        None | Some("Filesystem") => AccessType::Mount(MountVolume {
            fs_type: class.parameters.get(FSTYPE).cloned().unwrap_or_default(),
            mount_flags: class.mount_options.clone(),
            volume_mount_group: String::new(),
        }),
        Some("Block") => AccessType::Block(BlockVolume {}),
        Some(other) => {
            bail!("claim {}: volumeMode {other:?} is neither Filesystem nor Block", claim.metadata.path())
        }
    };
    Ok(args::capability(access_type, mode))
}

fn mode(claim: &Claim, single_writer: bool) -> Result<Mode> {
    let has = |mode: &str| claim.spec.access_modes.iter().any(|m| m == mode);
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
        bail!(
            "claim {}: spec.accessModes has no known mode: {:?}",
            claim.metadata.path(),
            claim.spec.access_modes
        )
    })
}

/// The sizes that a claim asks for.
pub fn range(claim: &Claim) -> Result<pb::CapacityRange> {
    let size = |which: &str, map: &std::collections::BTreeMap<String, Value>| -> Result<Option<i64>> {
        let Some(value) = map.get("storage") else { return Ok(None) };
        let text = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        let what = || format!("claim {}: resources.{which}.storage", claim.metadata.path());
        quantity::parse(&text).map_err(anyhow::Error::msg).with_context(what).map(Some)
    };
    let resources = &claim.spec.resources;
    let required = size("requests", &resources.requests)?;
    let required = required
        .with_context(|| format!("claim {}: resources.requests.storage is missing", claim.metadata.path()))?;
    Ok(pb::CapacityRange {
        required_bytes: required,
        limit_bytes: size("limits", &resources.limits)?.unwrap_or(0),
    })
}

/// Class parameters as the driver gets them: the sidecars' keys are taken out, the claim's metadata is put in (what
/// `--extra-create-metadata` does). A driver of this project is told the claim's labels and annotations, too.
pub fn parameters(claim: &Claim, class: &StorageClass) -> Map {
    let mut parameters: Map = class
        .parameters
        .iter()
        .filter(|(k, _)| !k.starts_with(SIDECAR))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let meta = &claim.metadata;
    let own =
        [("pvc/name", &meta.name), ("pvc/namespace", &meta.namespace), ("pv/name", &volume_name(claim))];
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
