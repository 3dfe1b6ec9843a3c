//! What every backend's records have in common: JSON with a schema and a kind.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{AccessMode, Error, FsNote, Result, SnapshotId, Source, VolumeSpec};

/// The version that this program writes, and the newest that it reads.
pub(crate) const SCHEMA: u32 = 1;

/// What is stored in an envelope of its own.
pub trait Stored: Serialize + DeserializeOwned {
    /// What `kind` says in the envelope.
    const KIND: &'static str;
}

/// A kind of record.
pub(crate) trait Record: Stored {
    /// The handle in the record.
    fn id(&self) -> &str;
}

/// Makes a struct with an `id` a kind of record.
macro_rules! kind {
    ($type:ty, $kind:literal) => {
        impl $crate::record::Stored for $type {
            const KIND: &'static str = $kind;
        }

        impl $crate::record::Record for $type {
            fn id(&self) -> &str {
                &self.id
            }
        }
    };
}
pub(crate) use kind;

/// CSI `CapacityRange` as it was asked for; bytes, 0: not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Requested {
    pub(crate) required: u64,
    pub(crate) limit: u64,
}

/// What [`FsState::formatted`] says of a volume that was used as a raw block device: versions that do not know this word
/// take it for a file system, and do not format over it either.
const RAW: &str = "raw";

/// What is known of the file system on a volume. It can only refuse a format.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FsState {
    /// An older version had begun a format with this. It took that for a permission, so it is never written any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) formatting: Option<String>,
    /// A format with this was completed, or [`RAW`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    formatted: Option<String>,
}

impl FsState {
    /// The file system that was completed.
    pub(crate) fn file_system(&self) -> Option<&str> {
        self.formatted.as_deref().filter(|has| *has != RAW)
    }

    /// Whether it was used as a raw block device and had no file system of ours.
    pub(crate) fn is_raw(&self) -> bool {
        self.formatted.as_deref() == Some(RAW)
    }

    /// What a copy of the volume begins with.
    pub(crate) fn inherited(&self) -> Self {
        Self { formatting: None, formatted: self.formatted.clone() }
    }

    /// Takes a note. One that contradicts what is known already: [`Error::Refused`].
    pub(crate) fn take(&mut self, id: &str, note: &FsNote) -> Result<()> {
        self.formatting = None;
        match note {
            FsNote::Raw => drop(self.formatted.get_or_insert_with(|| RAW.to_owned())),
            FsNote::Made(fs) => self.formatted = Some(fs.clone()),
            FsNote::Making { permit, .. } => {
                if let Some(has) = self.formatted.as_deref().filter(|has| permit.is_none() || *has == RAW) {
                    return Err(Error::Refused(format!(
                        "volume {id} was used meanwhile ({has}) and is not formatted; repeat the call"
                    )));
                }
            }
        }
        Ok(())
    }
}

impl Stored for FsState {
    const KIND: &'static str = "FileSystem";
}

/// How a volume is published to one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Publication {
    pub(crate) read_only: bool,
    pub(crate) mode: AccessMode,
    pub(crate) block: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a, T> {
    schema: u32,
    kind: &'static str,
    #[serde(flatten)]
    record: &'a T,
}

#[derive(Deserialize)]
struct Head {
    schema: u32,
    kind: String,
}

/// A record's bytes. No byte can be cut off without notice: the last is the closing brace.
pub(crate) fn encode<T: Record>(record: &T) -> Result<Vec<u8>> {
    let envelope = Envelope { schema: SCHEMA, kind: T::KIND, record };
    serde_json::to_vec_pretty(&envelope)
        .map_err(|e| Error::Internal(format!("encoding {}: {e}", record.id())))
}

/// Reads a record's bytes; `what` names it in errors. Damaged: [`Error::Corrupt`]; written by a newer version:
/// [`Error::Refused`].
pub(crate) fn decode<T: Stored>(what: &str, bytes: &[u8]) -> Result<T> {
    let corrupt = |problem: String| Error::Corrupt { what: what.to_owned(), problem };
    let head: Head = serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))?;
    if head.schema > SCHEMA {
        return Err(Error::Refused(format!(
            "{what} has schema {}, written by a newer version; this one reads up to {SCHEMA}: use the newer version",
            head.schema
        )));
    }
    if head.schema == 0 || head.kind != T::KIND {
        return Err(corrupt(format!("schema {} and kind {:?}, not {:?}", head.schema, head.kind, T::KIND)));
    }
    serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))
}

/// The bytes of a value that is stored by itself, beside a record: a note.
pub fn seal<T: Stored>(note: &T) -> Result<Vec<u8>> {
    let envelope = Envelope { schema: SCHEMA, kind: T::KIND, record: note };
    serde_json::to_vec(&envelope).map_err(|e| Error::Internal(format!("encoding a note {}: {e}", T::KIND)))
}

/// Reads a note; `what` names it in errors. Damaged: [`Error::Corrupt`]; written by a newer version: [`Error::Refused`].
/// Notes of before had no envelope: such a one is read if it has our fields and no others.
pub fn unseal<T: Stored>(what: &str, bytes: &[u8]) -> Result<T> {
    let corrupt = |problem: String| Error::Corrupt { what: what.to_owned(), problem };
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))?;
    let fields = value.as_object().ok_or_else(|| corrupt("it is no JSON object".into()))?;
    if fields.contains_key("schema") || fields.contains_key("kind") {
        return decode(what, bytes);
    }
    let note: T = serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))?;
    let known = serde_json::to_value(&note).map_err(|e| corrupt(e.to_string()))?;
    match fields.keys().find(|field| known.get(field.as_str()).is_none()) {
        Some(unknown) => {
            Err(corrupt(format!("it has no schema, and {unknown:?} is no field of a {}", T::KIND)))
        }
        None => Ok(note),
    }
}

pub(crate) mod timestamp {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(time)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Adds in what a volume that exists differs from a request: its size and what it was filled from.
pub(crate) fn compare_wish(found: &mut Vec<String>, spec: &VolumeSpec, has: u64, source: Option<&Source>) {
    if !spec.range.admits(has) {
        let (required, limit) = (spec.range.required, spec.range.limit);
        found.push(format!("size (it has {has} bytes; asked: {required} to {limit}, 0: any)"));
    }
    if spec.source.as_ref() != source {
        found.push(format!("source (it has {source:?}; asked: {:?})", spec.source));
    }
}

/// Adds in what it differs as a disk: whether it is a raw one, and its file system.
pub(crate) fn compare_disk(
    found: &mut Vec<String>,
    asked: (bool, &Option<String>),
    has: (bool, &Option<String>),
) {
    if asked.0 != has.0 {
        found.push("access type (block or mount)".into());
    }
    if asked.1 != has.1 {
        found.push(format!("fsType (it has {:?}; asked: {:?})", has.1, asked.1));
    }
}

/// Refuses to delete what another cluster owns.
pub(crate) fn check_owner(what: &str, has: &str, owner: &str) -> Result<()> {
    if has == owner {
        return Ok(());
    }
    Err(Error::Refused(format!("{what} belongs to cluster {has:?}, not to {owner:?}; delete it there")))
}

/// The members that a request names must be the group's; none named is not checked (CSI DeleteVolumeGroupSnapshot).
pub(crate) fn check_members(group: &str, members: &[String], asked: &[SnapshotId]) -> Result<()> {
    let asked: BTreeSet<&str> = asked.iter().map(|id| id.0.as_str()).collect();
    let has: BTreeSet<&str> = members.iter().map(String::as_str).collect();
    if asked.is_empty() || asked == has {
        return Ok(());
    }
    Err(Error::invalid("snapshot_ids", format!("are not those of group {group}: {}", members.join(", "))))
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
