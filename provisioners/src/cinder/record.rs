//! The record in a volume's or snapshot's metadata, whose values have at most 255 characters: a longer record goes on
//! in further values.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::record::{Publication, Record, Requested, Stored, decode, encode, kind, timestamp};
use crate::{Error, PvcMeta, Result, Source, StringMap};

/// Keys of ours begin so.
pub(super) const OURS: &str = "volumectl.";
/// Whose it is: the driver's `clusterId`.
pub(super) const CLUSTER: &str = "volumectl.cluster";
/// The CSI name.
pub(super) const NAME: &str = "volumectl.name";
/// The record, and what its further parts begin with.
pub(super) const RECORD: &str = "volumectl.record";
/// Since when it is deleted; its snapshots keep it.
pub(super) const MARKED: &str = "volumectl.deleted";
/// Which attempt of a call has made it: a nonce.
pub(super) const ATTEMPT: &str = "volumectl.attempt";
/// How it is published, where that is not as it was made for.
pub(super) const PUBLISHED: &str = "volumectl.published";
/// Since when it is made, blank: Cinder's `updated_at` then. An attachment changes that.
pub(super) const NEW: &str = "volumectl.new";
/// This and a word (`notes.rs`): the first attachment, each controller's try under a name of its own.
pub(super) const ATTACHED: &str = "volumectl.attached.";
/// It, or what it is a copy of, was published as a raw block device.
pub(super) const RAW: &str = "volumectl.raw";
/// An operator's permission of a format; good for one publication.
pub(super) const PERMIT: &str = "volumectl.allow-format";
/// Of a snapshot: its volume's handle.
pub(super) const SOURCE: &str = "volumectl.source";
/// The longest value (Cinder's database).
pub(super) const VALUE_MAX: usize = 255;

/// A volume's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VolumeRecord {
    /// The CSI name: the id is Cinder's to give.
    pub(super) id: String,
    pub(super) pvc: PvcMeta,
    /// As it was asked for.
    pub(super) requested: Requested,
    /// StorageClass parameters as given.
    pub(super) parameters: StringMap,
    #[serde(default, skip_serializing_if = "StringMap::is_empty")]
    pub(super) mutable: StringMap,
    pub(super) source: Option<Source>,
    /// The file system it was made for: the capability's or the parameter's.
    pub(super) fs_type: Option<String>,
    /// How it was made to be used.
    pub(super) usual: Publication,
    #[serde(with = "timestamp")]
    pub(super) created: Timestamp,
}

kind!(VolumeRecord, "Volume");

/// How a volume is published to a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Published {
    pub(super) server: String,
    pub(super) how: Publication,
}

impl Stored for Published {
    const KIND: &'static str = "Published";
}

/// A record as metadata: JSON in ASCII, cut into values.
pub(super) fn to_metadata<T: Record>(record: &T) -> Result<BTreeMap<String, String>> {
    let pretty = encode(record)?;
    let value: serde_json::Value = serde_json::from_slice(&pretty)
        .map_err(|e| Error::Internal(format!("encoding {}: {e}", record.id())))?;
    let text = ascii(&value.to_string());
    let parts = text.as_bytes().chunks(VALUE_MAX).enumerate();
    Ok(parts.map(|(i, part)| (part_key(i), String::from_utf8_lossy(part).into_owned())).collect())
}

/// The record in metadata. `None`: there is none; damaged: [`Error::Corrupt`].
pub(super) fn from_metadata<T: Record>(what: &str, metadata: &BTreeMap<String, String>) -> Result<Option<T>> {
    let parts: Vec<&str> = (0..).map_while(|i| metadata.get(&part_key(i)).map(String::as_str)).collect();
    if parts.is_empty() {
        return Ok(None);
    }
    decode(&format!("the record in metadata {RECORD} of {what}"), parts.concat().as_bytes()).map(Some)
}

fn part_key(i: usize) -> String {
    if i == 0 { RECORD.to_owned() } else { format!("{RECORD}.{i}") }
}

/// JSON whose other characters are escaped: not every database behind Cinder takes all of them.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    let mut units = [0; 2];
    for c in json.chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            c.encode_utf16(&mut units).iter().for_each(|unit| text.push_str(&format!("\\u{unit:04x}")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::AccessMode;

    fn record(name: &str, value: &str) -> VolumeRecord {
        VolumeRecord {
            id: name.into(),
            pvc: PvcMeta { labels: StringMap::from([("app".into(), value.into())]), ..PvcMeta::default() },
            requested: Requested { required: 1, limit: 0 },
            parameters: StringMap::from([("type".into(), value.into())]),
            mutable: StringMap::new(),
            source: None,
            fs_type: Some("ext4".into()),
            usual: Publication { read_only: false, mode: AccessMode::SingleNodeWriter, block: false },
            created: Timestamp::UNIX_EPOCH,
        }
    }

    proptest! {
        #[test]
        fn any_record_is_cut_and_read_back(name in "\\PC{1,128}", value in "\\PC{0,600}") {
            let record = record(&name, &value);
            let metadata = to_metadata(&record).unwrap();
            prop_assert!(metadata.values().all(|value| value.len() <= VALUE_MAX && value.is_ascii()));
            prop_assert_eq!(from_metadata::<VolumeRecord>("x", &metadata).unwrap(), Some(record));
        }
    }

    #[test]
    fn a_part_that_is_missing_is_noticed() {
        let mut metadata = to_metadata(&record("a", &"x".repeat(600))).unwrap();
        assert!(metadata.len() > 3);
        let last = metadata.keys().next_back().unwrap().clone();
        metadata.remove(&last);
        assert_eq!(from_metadata::<VolumeRecord>("x", &metadata).unwrap_err().label(), "corrupt");
        assert_eq!(from_metadata::<VolumeRecord>("x", &BTreeMap::new()).unwrap(), None);
    }
}
