//! The records: a volume's in its image's metadata, a snapshot's and a group's in a map of their pool.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::handle::Handle;
use super::site::Header;
pub(super) use crate::record::{FsState, Publication, Record, Requested, decode, encode};
use crate::record::{kind, timestamp};
use crate::{PvcMeta, Result, Source, StringMap};

/// The key of the volume's record in its image's metadata.
pub(super) const VOLUME: &str = "volumectl.volume";
/// The key of [`FsState`].
pub(super) const FS: &str = "volumectl.fs";
/// The key that says since when the volume is deleted: its image waits for the purge.
pub(super) const DELETED: &str = "volumectl.deleted";
/// Keys of publications: this and the node.
pub(super) const PUBLISHED: &str = "volumectl.published/";
/// Keys of clients: this and the node.
pub(super) const CLIENT: &str = "volumectl.client/";
/// The address of the client that is growing the image; it stays when that is killed.
pub(super) const GROWING: &str = "volumectl.growing";
/// What all of our keys begin with.
pub(super) const OURS: &str = "volumectl.";

/// A volume's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VolumeRecord {
    pub(super) id: String,
    /// The CSI name.
    pub(super) name: String,
    pub(super) cluster: String,
    pub(super) pvc: PvcMeta,
    /// As it was asked for.
    pub(super) requested: Requested,
    /// StorageClass parameters as given.
    pub(super) parameters: StringMap,
    pub(super) source: Option<Source>,
    /// Whether it was made as a raw block device.
    pub(super) block: bool,
    /// The file system it was made for: the capability's or the parameter's.
    pub(super) fs_type: Option<String>,
    #[serde(with = "timestamp")]
    pub(super) created: Timestamp,
    /// How many images it is above one without a parent, when it was made.
    pub(super) depth: u32,
}

/// What a node notes when it has an image mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClientNote {
    /// The client's address with its nonce.
    pub(super) address: String,
    #[serde(with = "timestamp")]
    pub(super) since: Timestamp,
}

/// A publication with its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Published {
    #[serde(flatten)]
    pub(super) how: Publication,
    #[serde(with = "timestamp")]
    pub(super) since: Timestamp,
}

/// A snapshot's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SnapshotRecord {
    pub(super) id: String,
    /// The CSI name; of a group's member the group's name and the volume.
    pub(super) name: String,
    pub(super) cluster: String,
    /// The volume's handle.
    pub(super) source: String,
    /// The id of the volume's image, which stays when that is renamed.
    pub(super) image: String,
    /// The image's snapshot.
    pub(super) snapshot: String,
    /// Bytes; 0 until it is complete.
    pub(super) size: u64,
    #[serde(with = "timestamp")]
    pub(super) created: Timestamp,
    /// The group's handle.
    pub(super) group: Option<String>,
    /// Whether the snapshot was taken; else it is only meant to be.
    pub(super) complete: bool,
}

/// A group's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
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
    /// Whether all members were taken; else it is being made or deleted.
    pub(super) complete: bool,
}

/// That a creation has begun: the image did not exist then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Intent {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) cluster: String,
    #[serde(with = "timestamp")]
    pub(super) since: Timestamp,
}

kind!(VolumeRecord, "Volume");
kind!(SnapshotRecord, "Snapshot");
kind!(GroupRecord, "GroupSnapshot");
kind!(Intent, "Intent");

/// A volume that was found, with its image.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) handle: Handle,
    pub(super) header: Header,
    pub(super) record: VolumeRecord,
}

impl Found {
    /// Reads a volume's record from its image. `None`: the image has none of its own (a clone begins with a copy of its
    /// parent's metadata).
    pub(super) fn read(handle: &Handle, header: Header) -> Result<Option<Self>> {
        let Some(text) = header.meta.get(VOLUME) else { return Ok(None) };
        let what = format!("the record in image-meta {VOLUME} of {}", handle.spec());
        let record: VolumeRecord = decode(&what, text.as_bytes())?;
        if record.id != handle.to_string() {
            return Ok(None);
        }
        Ok(Some(Self { handle: handle.clone(), header, record }))
    }

    /// What is known of its file system.
    pub(super) fn fs(&self) -> FsState {
        self.header.meta.get(FS).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    /// Whether DeleteVolume was answered for it.
    pub(super) fn is_deleted(&self) -> bool {
        self.header.meta.contains_key(DELETED)
    }

    /// How it is published, by node.
    pub(super) fn published(&self) -> BTreeMap<String, Published> {
        self.noted(PUBLISHED)
    }

    /// Who has it mapped by its own word, by node.
    pub(super) fn clients(&self) -> BTreeMap<String, ClientNote> {
        self.noted(CLIENT)
    }

    fn noted<T: serde::de::DeserializeOwned>(&self, prefix: &str) -> BTreeMap<String, T> {
        let own = self.header.meta.iter().filter_map(|(key, value)| Some((key.strip_prefix(prefix)?, value)));
        own.filter_map(|(node, text)| Some((node.to_owned(), serde_json::from_str(text).ok()?))).collect()
    }
}
