//! The records of the NFS backend: JSON files in the share's hidden directory.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::identity::Proof;
use super::params::OnDelete;
use crate::record::{Requested, kind, timestamp};
use crate::{PvcMeta, Source, StringMap};

/// A volume's record: `volumes/<key>.json`; while the volume is made, `intents/<key>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VolumeRecord {
    pub(super) id: String,
    /// The CSI name.
    pub(super) name: String,
    /// Whose it is.
    pub(super) cluster: String,
    /// The directory below the share.
    pub(super) dir: String,
    /// The directory's number in its file system (fileid), by which it is known also when somebody moved another there.
    pub(super) dir_id: u64,
    /// What it is known by beside that; records of older versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) proof: Option<Proof>,
    /// Its name in `tmp` before it was moved to its place.
    pub(super) draft: String,
    /// Bytes: not enforced by NFS.
    pub(super) capacity: u64,
    pub(super) requested: Requested,
    pub(super) on_delete: OnDelete,
    pub(super) parameters: StringMap,
    #[serde(default, skip_serializing_if = "StringMap::is_empty")]
    pub(super) mutable_parameters: StringMap,
    /// What ControllerModifyVolume has set.
    #[serde(default, skip_serializing_if = "StringMap::is_empty")]
    pub(super) modified: StringMap,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<Source>,
    #[serde(default)]
    pub(super) pvc: PvcMeta,
    #[serde(with = "timestamp")]
    pub(super) created: Timestamp,
    /// Different each time that the record is changed, so that no two of its states are the same bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) revision: Option<String>,
}

/// A snapshot's record: `snapshots/<key>/snapshot.json`, beside `data`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SnapshotRecord {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) cluster: String,
    /// The volume's handle.
    pub(super) source: String,
    /// The volume's size, in bytes.
    pub(super) size: u64,
    /// Bytes that were copied.
    pub(super) content: u64,
    #[serde(with = "timestamp")]
    pub(super) created: Timestamp,
}

kind!(VolumeRecord, "Volume");
kind!(SnapshotRecord, "Snapshot");
