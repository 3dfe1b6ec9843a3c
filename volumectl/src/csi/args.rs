//! Arguments that several commands share, and what they become in CSI.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use csi_proto::v1 as pb;
use pb::volume_capability::access_mode::Mode;
use pb::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};

use crate::errors::Usage;
use crate::quantity;

/// `KEY=VALUE`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?}: write KEY=VALUE")),
    }
}

/// Pairs as a map; a key given twice is a mistake.
pub fn map(flag: &str, pairs: &[(String, String)]) -> Result<BTreeMap<String, String>> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        if map.insert(key.clone(), value.clone()).is_some() {
            return Err(Usage(format!("{flag} {key} is given twice")).into());
        }
    }
    Ok(map)
}

/// How a volume is used.
#[derive(Debug, Clone, Args)]
pub struct CapabilityArgs {
    /// Use it as a raw block device.
    #[arg(long, conflicts_with_all = ["fs", "mount_flags", "mount_group"])]
    pub block: bool,
    /// The file system: ext4, xfs, btrfs, or the driver's default.
    #[arg(long, default_value = "")]
    pub fs: String,
    /// By whom it is used.
    #[arg(long, value_enum, default_value_t = AccessModeArg::Rwo)]
    pub access_mode: AccessModeArg,
    /// A mount option; can be given several times.
    #[arg(long = "mount-flag", value_name = "OPTION")]
    pub mount_flags: Vec<String>,
    /// The numeric group that owns the files (CSI volume_mount_group).
    #[arg(long, default_value = "", value_name = "GID")]
    pub mount_group: String,
}

/// Access modes as Kubernetes abbreviates them, and those that only CSI has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AccessModeArg {
    /// ReadWriteOnce: SINGLE_NODE_WRITER
    Rwo,
    /// ReadWriteOncePod: SINGLE_NODE_SINGLE_WRITER
    Rwop,
    /// ReadOnlyMany: MULTI_NODE_READER_ONLY
    Rox,
    /// ReadWriteMany: MULTI_NODE_MULTI_WRITER
    Rwx,
    /// SINGLE_NODE_READER_ONLY
    SingleNodeReaderOnly,
    /// SINGLE_NODE_MULTI_WRITER
    SingleNodeMultiWriter,
    /// MULTI_NODE_SINGLE_WRITER
    MultiNodeSingleWriter,
}

impl AccessModeArg {
    /// The mode of CSI.
    pub fn mode(self) -> Mode {
        match self {
            Self::Rwo => Mode::SingleNodeWriter,
            Self::Rwop => Mode::SingleNodeSingleWriter,
            Self::Rox => Mode::MultiNodeReaderOnly,
            Self::Rwx => Mode::MultiNodeMultiWriter,
            Self::SingleNodeReaderOnly => Mode::SingleNodeReaderOnly,
            Self::SingleNodeMultiWriter => Mode::SingleNodeMultiWriter,
            Self::MultiNodeSingleWriter => Mode::MultiNodeSingleWriter,
        }
    }
}

impl CapabilityArgs {
    /// The capability of CSI.
    pub fn capability(&self) -> pb::VolumeCapability {
        let access_type = if self.block {
            AccessType::Block(BlockVolume {})
        } else {
            AccessType::Mount(MountVolume {
                fs_type: self.fs.clone(),
                mount_flags: self.mount_flags.clone(),
                volume_mount_group: self.mount_group.clone(),
            })
        };
        capability(access_type, self.access_mode.mode())
    }
}

/// A capability.
pub fn capability(access_type: AccessType, mode: Mode) -> pb::VolumeCapability {
    pb::VolumeCapability {
        access_type: Some(access_type),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

/// A size on the command line.
pub fn size(text: &str) -> Result<i64, String> {
    quantity::parse(text)
}

/// Seconds, also parts of one.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text).parse().ok().filter(|s: &f64| *s > 0.0 && *s < 1e7);
    number.map(Duration::from_secs_f64).ok_or_else(|| format!("{text:?}: write seconds, such as 60"))
}

/// A range of sizes; neither given: none.
pub fn range(required: Option<i64>, limit: Option<i64>) -> Option<pb::CapacityRange> {
    (required.is_some() || limit.is_some()).then(|| pb::CapacityRange {
        required_bytes: required.unwrap_or_default(),
        limit_bytes: limit.unwrap_or_default(),
    })
}

/// A snapshot or a volume as the source of a new one.
pub fn source(snapshot: Option<String>, volume: Option<String>) -> Option<pb::VolumeContentSource> {
    use pb::volume_content_source::{SnapshotSource, Type, VolumeSource};
    let of_snapshot = snapshot.map(|snapshot_id| Type::Snapshot(SnapshotSource { snapshot_id }));
    let source = of_snapshot.or(volume.map(|volume_id| Type::Volume(VolumeSource { volume_id })));
    source.map(|source| pb::VolumeContentSource { r#type: Some(source) })
}
