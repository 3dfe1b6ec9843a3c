//! The records kept beside volumes, snapshots and groups, as JSON.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::params::VolumeType;
pub(super) use crate::record::{FsState, Publication, Record, Requested, decode, encode};
use crate::record::{kind, timestamp};
use crate::{Error, PvcMeta, Result, Source, StringMap};

/// A record larger than this is not ours: 1 MiB.
const MAX_BYTES: u64 = 1 << 20;

/// A volume's record: `volume.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VolumeRecord {
    pub(super) id: String,
    /// The CSI name.
    pub(super) name: String,
    pub(super) cluster: String,
    pub(super) pvc: PvcMeta,
    #[serde(rename = "type")]
    pub(super) kind: VolumeType,
    /// Bytes.
    pub(super) capacity: u64,
    /// As it was asked for.
    pub(super) requested: Requested,
    /// StorageClass parameters as given.
    pub(super) parameters: StringMap,
    /// VolumeAttributesClass parameters as given at creation.
    pub(super) mutable_parameters: StringMap,
    /// What ControllerModifyVolume set later.
    #[serde(default)]
    pub(super) modified: StringMap,
    pub(super) source: Option<Source>,
    /// Whether it was made as a raw block device.
    pub(super) block: bool,
    /// The file system it was made for: the capability's or the parameter's.
    pub(super) fs_type: Option<String>,
    #[serde(with = "timestamp")]
    pub(super) created: Timestamp,
    #[serde(default)]
    pub(super) fs: FsState,
    /// By node.
    #[serde(default)]
    pub(super) published: BTreeMap<String, Publication>,
}

/// A snapshot's record: `snapshot.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SnapshotRecord {
    pub(super) id: String,
    /// The CSI name; of a group's member the group's name and the volume.
    pub(super) name: String,
    pub(super) cluster: String,
    /// The volume's handle.
    pub(super) source: String,
    #[serde(rename = "type")]
    pub(super) kind: VolumeType,
    /// Bytes.
    pub(super) size: u64,
    pub(super) fs: FsState,
    #[serde(with = "timestamp")]
    pub(super) created: Timestamp,
    /// The group's handle.
    pub(super) group: Option<String>,
}

/// A group's record: `groups/<key>.json`; its existence makes the members valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GroupRecord {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) cluster: String,
    /// Snapshot handles, in the order of their sources.
    pub(super) members: Vec<String>,
    /// Volume handles.
    pub(super) sources: Vec<String>,
    #[serde(with = "timestamp")]
    pub(super) created: Timestamp,
}

kind!(VolumeRecord, "Volume");
kind!(SnapshotRecord, "Snapshot");
kind!(GroupRecord, "GroupSnapshot");

/// Checks the bytes of a volume's record (`volume.json`) and returns the handle in it. Damaged: [`Error::Corrupt`].
pub fn check_volume_record(bytes: &[u8]) -> Result<String> {
    decode::<VolumeRecord>("the record", bytes).map(|record| record.id)
}

/// Reads a record's file; `None` when there is none.
pub(super) fn load<T: Record>(path: &Path) -> Result<Option<T>> {
    let what = path.display().to_string();
    let size = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() => meta.len(),
        Ok(_) => return Err(damaged(what, "not a regular file")),
        Err(e) if is_absent(&e) => return Ok(None),
        Err(e) => return Err(Error::io(format!("looking at {what}"), e)),
    };
    if size > MAX_BYTES {
        return Err(damaged(what, "larger than any record"));
    }
    match fs::read(path) {
        Ok(bytes) => decode(&what, &bytes).map(Some),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(Error::io(format!("reading {what}"), e)),
    }
}

fn damaged(what: String, problem: &str) -> Error {
    Error::Corrupt { what, problem: problem.into() }
}

/// Whether an error says that a path does not exist.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
