//! The records: a volume's in its image's metadata, a snapshot's and a group's in a map of their pool.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::handle::Handle;
use super::site::Header;
pub(super) use crate::record::{
    FsState, Publication, Record, Requested, Stored, decode, encode, seal, unseal,
};
use crate::record::{kind, timestamp};
use crate::{Error, PvcMeta, Result, Source, StringMap};

/// The key of the volume's record in its image's metadata.
pub(super) const VOLUME: &str = "volumectl.volume";
/// The key of [`FsState`].
pub(super) const FS: &str = "volumectl.fs";
/// The key by which an operator allows a format, once.
pub(super) const PERMIT: &str = "volumectl.allow-format";
/// The key that says since when the volume is deleted: its image waits for the purge.
pub(super) const DELETED: &str = "volumectl.deleted";
/// The key that says that an interrupted creation has left the image, and that it is being removed.
pub(super) const TORN: &str = "volumectl.torn";
/// The key of the mutable parameters, as given at creation and later.
pub(super) const MODIFIED: &str = "volumectl.modified";
/// Keys of publications: this and the node.
pub(super) const PUBLISHED: &str = "volumectl.published/";
/// Keys of clients: this and the node.
pub(super) const CLIENT: &str = "volumectl.client/";
/// The key of [`Growing`]; it stays when its driver is killed.
pub(super) const GROWING: &str = "volumectl.growing";
/// The key of [`Claim`].
pub(super) const CLAIM: &str = "volumectl.claim";
/// The key that every change of publications and claims changes, so that one that was decided on an older state fails.
pub(super) const TURN: &str = "volumectl.turn";
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

/// Who is growing the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Growing {
    /// The address of the connection that does nothing else.
    pub(super) client: String,
    /// Changes while its driver lives.
    pub(super) beat: u64,
}

/// The node that alone may map the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Claim {
    pub(super) node: String,
    /// The client that has it mapped; none before that is known.
    pub(super) client: Option<String>,
    #[serde(with = "timestamp")]
    pub(super) since: Timestamp,
}

/// What ControllerModifyVolume and CreateVolume's mutable parameters have set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Modified {
    pub(super) parameters: StringMap,
}

/// That a volume was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Deletion {
    #[serde(with = "timestamp")]
    pub(super) since: Timestamp,
}

/// That what an interrupted creation has left is being removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Torn {
    /// Whose creation it was.
    pub(super) cluster: String,
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

/// That a snapshot was taken for a clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CloneNote {
    /// The source's handle.
    pub(super) id: String,
    /// The id of its image.
    pub(super) image: String,
    pub(super) snapshot: String,
    pub(super) cluster: String,
    #[serde(with = "timestamp")]
    pub(super) since: Timestamp,
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

macro_rules! note {
    ($type:ty, $kind:literal) => {
        impl Stored for $type {
            const KIND: &'static str = $kind;
        }
    };
}

note!(ClientNote, "Client");
note!(Growing, "Growing");
note!(Claim, "Claim");
note!(Modified, "Modified");
note!(Deletion, "Deletion");
note!(Torn, "Torn");
note!(Published, "Publication");
kind!(VolumeRecord, "Volume");
kind!(SnapshotRecord, "Snapshot");
kind!(GroupRecord, "GroupSnapshot");
kind!(Intent, "Intent");
kind!(CloneNote, "Clone");

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

    /// What is known of its file system. Unreadable: [`Error::Corrupt`], for it could only refuse.
    pub(super) fn fs(&self) -> Result<FsState> {
        Ok(self.note(FS)?.unwrap_or_default())
    }

    /// The mutable parameters that it was given.
    pub(super) fn modified(&self) -> Result<StringMap> {
        Ok(self.note::<Modified>(MODIFIED)?.map(|it| it.parameters).unwrap_or_default())
    }

    /// Its parameters as they are now.
    pub(super) fn parameters(&self) -> Result<StringMap> {
        let mut parameters = self.record.parameters.clone();
        parameters.extend(self.modified()?);
        Ok(parameters)
    }

    /// Whether DeleteVolume was answered for it. A mark that cannot be read is one, too.
    pub(super) fn is_deleted(&self) -> bool {
        self.header.meta.contains_key(DELETED)
    }

    /// The nodes that it is published to, by the keys alone.
    pub(super) fn nodes(&self) -> Vec<String> {
        self.header.meta.keys().filter_map(|key| key.strip_prefix(PUBLISHED)).map(str::to_owned).collect()
    }

    /// How it is published, by node.
    pub(super) fn published(&self) -> Result<BTreeMap<String, Published>> {
        self.noted(PUBLISHED)
    }

    /// Who has it mapped by its own word, by node.
    pub(super) fn clients(&self) -> Result<BTreeMap<String, ClientNote>> {
        self.noted(CLIENT)
    }

    /// Who grows it. Before there were envelopes this was the bare address of a client.
    pub(super) fn growing(&self) -> Result<Option<Growing>> {
        match self.header.meta.get(GROWING) {
            Some(text) if is_address(text) => Ok(Some(Growing { client: text.clone(), beat: 0 })),
            _ => self.note(GROWING),
        }
    }

    /// The node that alone may map it.
    pub(super) fn claim(&self) -> Result<Option<Claim>> {
        self.note(CLAIM)
    }

    /// The value of [`TURN`]; empty: none.
    pub(super) fn turn(&self) -> &str {
        self.header.meta.get(TURN).map_or("", String::as_str)
    }

    /// Reads all that is stored of it. Damaged or written by a newer version: an error that names the key.
    pub(super) fn check(&self) -> Result<()> {
        self.published()?;
        self.clients()?;
        self.fs()?;
        self.growing()?;
        self.claim()?;
        self.modified()?;
        deletion(&self.handle, &self.header).map(drop)
    }

    fn note<T: Stored>(&self, key: &str) -> Result<Option<T>> {
        self.header.meta.get(key).map(|text| read_note(&self.handle, key, text)).transpose()
    }

    fn noted<T: Stored>(&self, prefix: &str) -> Result<BTreeMap<String, T>> {
        let own =
            self.header.meta.iter().filter_map(|(key, value)| Some((key, key.strip_prefix(prefix)?, value)));
        own.map(|(key, node, text)| Ok((node.to_owned(), read_note(&self.handle, key, text)?))).collect()
    }
}

/// The mark of a deletion. Before there were envelopes this was a bare time.
pub(super) fn deletion(handle: &Handle, header: &Header) -> Result<Option<Deletion>> {
    let Some(text) = header.meta.get(DELETED) else { return Ok(None) };
    match text.parse() {
        Ok(since) => Ok(Some(Deletion { since })),
        Err(_) => read_note(handle, DELETED, text).map(Some),
    }
}

/// Reads one key of an image's metadata; what is wrong with it says how it is looked at and removed.
pub(super) fn read_note<T: Stored>(handle: &Handle, key: &str, text: &str) -> Result<T> {
    let spec = handle.spec();
    unseal(&format!("image-meta {key} of {spec}"), text.as_bytes()).map_err(|error| match error {
        Error::Corrupt { what, problem } => Error::Corrupt {
            what,
            problem: format!(
                "{problem}; use the version that wrote it, or see `rbd image-meta get {spec} {key}`, and if nobody needs it `rbd image-meta remove {spec} {key}`"
            ),
        },
        other => other,
    })
}

/// Such as `10.0.0.1:0/123`.
fn is_address(text: &str) -> bool {
    let nonce = text.rsplit_once('/').map(|(_, nonce)| nonce);
    nonce.is_some_and(|nonce| nonce.parse::<u32>().is_ok()) && !text.contains(['{', '"', ' '])
}
