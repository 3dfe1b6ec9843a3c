//! What Cinder and Nova answer, as far as it is used. Unknown fields are passed over; a name can be `null`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::DateTime;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::record::MARKED;
use crate::size::GIB;

/// A thing of Cinder that has a status and is waited for.
pub(super) trait Thing: DeserializeOwned + Clone + Send + Sync + 'static {
    /// Its path below the endpoint, which is also the key of a list of it.
    const MANY: &'static str;
    /// The key of one of it.
    const ONE: &'static str;
    /// Its UUID.
    fn id(&self) -> &str;
    /// Its metadata.
    fn metadata(&self) -> &BTreeMap<String, String>;
    /// When it was made, as Cinder writes it.
    fn created(&self) -> &str;
    /// Its status.
    fn status(&self) -> &str;
}

macro_rules! thing {
    ($type:ty, $many:literal, $one:literal) => {
        impl Thing for $type {
            const MANY: &'static str = $many;
            const ONE: &'static str = $one;
            fn id(&self) -> &str {
                &self.id
            }
            fn metadata(&self) -> &BTreeMap<String, String> {
                &self.metadata
            }
            fn created(&self) -> &str {
                &self.created_at
            }
            fn status(&self) -> &str {
                &self.status
            }
        }
    };
}

/// A volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct CinderVolume {
    pub(super) id: String,
    pub(super) name: Option<String>,
    pub(super) status: String,
    /// GiB.
    pub(super) size: u64,
    pub(super) availability_zone: Option<String>,
    pub(super) created_at: String,
    pub(super) updated_at: Option<String>,
    pub(super) volume_type: Option<String>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) multiattach: bool,
    pub(super) attachments: Vec<Attached>,
    pub(super) migration_status: Option<String>,
    /// The service that has it, from microversion [`super::session::SHOWS_SERVICE`] on.
    pub(super) service_uuid: Option<String>,
}
thing!(CinderVolume, "volumes", "volume");

/// To which server a volume is attached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Attached {
    pub(super) server_id: String,
    pub(super) attachment_id: String,
    /// The device's name as Nova guesses it; guests name it as they like.
    pub(super) device: Option<String>,
}

impl CinderVolume {
    /// Bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.size.saturating_mul(GIB)
    }

    /// Whether DeleteVolume was answered for it, and only its snapshots keep it.
    pub(super) fn is_marked(&self) -> bool {
        self.metadata.get(MARKED).is_some_and(|mark| self.is_own_mark(mark))
    }

    /// A backup keeps its volume's metadata and gives it to what is restored from it: such a copy of a mark, which is
    /// older than the volume or has another's id, says nothing.
    fn is_own_mark(&self, mark: &str) -> bool {
        match mark.split_once(' ') {
            Some((_, of)) => of == self.id,
            None => {
                let (made, since) = (time(&self.created_at), mark.parse::<Timestamp>());
                since.is_ok_and(|since| made.is_none_or(|made| made <= since))
            }
        }
    }

    /// Whether it is attached to a server.
    pub(super) fn is_on(&self, server: &str) -> bool {
        self.attachments.iter().any(|attached| attached.server_id == server)
    }

    /// The servers that it is attached to.
    pub(super) fn servers(&self) -> impl Iterator<Item = &str> {
        self.attachments.iter().map(|attached| attached.server_id.as_str())
    }
}

/// A snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct CinderSnapshot {
    pub(super) id: String,
    pub(super) status: String,
    pub(super) volume_id: String,
    /// GiB.
    pub(super) size: u64,
    pub(super) created_at: String,
    pub(super) metadata: BTreeMap<String, String>,
}
thing!(CinderSnapshot, "snapshots", "snapshot");

/// A backup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct CinderBackup {
    pub(super) id: String,
    pub(super) status: String,
    pub(super) volume_id: String,
    /// GiB.
    pub(super) size: u64,
    pub(super) created_at: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) fail_reason: Option<String>,
}
thing!(CinderBackup, "backups", "backup");

/// `null` stands for nothing.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(d).map(Option::unwrap_or_default)
}

/// A server of Nova.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Server {
    pub(super) status: String,
}

/// Cinder's times have no zone and are in UTC.
pub(super) fn time(text: &str) -> Option<Timestamp> {
    let civil: DateTime = text.trim_end_matches('Z').parse().ok()?;
    civil.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_be_null_and_fields_can_be_missing() {
        let volume: CinderVolume =
            serde_json::from_str(r#"{"id": "x", "name": null, "status": "available", "size": 2, "new": {}}"#)
                .unwrap();
        assert_eq!((volume.name.as_deref(), volume.bytes()), (None, 2 << 30));
        let backup: CinderBackup = serde_json::from_str(r#"{"id": "x", "metadata": null}"#).unwrap();
        assert!(backup.metadata.is_empty());
    }

    #[test]
    fn a5_a_mark_that_a_backup_brought_is_none() {
        let volume = |mark: &str| CinderVolume {
            id: "a".into(),
            created_at: "2026-11-21T13:52:35.000000".into(),
            metadata: [(MARKED.to_owned(), mark.to_owned())].into(),
            ..CinderVolume::default()
        };
        assert!(volume("2026-11-21T13:52:36Z a").is_marked());
        assert!(volume("2026-11-21T13:52:36Z").is_marked(), "one of an older driver");
        for other in ["2026-11-21T13:52:36Z b", "2026-11-21T13:52:34Z", "", "x"] {
            assert!(!volume(other).is_marked(), "{other:?}");
        }
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(time("2026-11-21T13:52:35.490548").unwrap().to_string(), "2026-11-21T13:52:35.490548Z");
        assert_eq!(time("2026-11-21T13:52:35Z").unwrap().to_string(), "2026-11-21T13:52:35Z");
        assert!(time("yesterday").is_none());
    }
}
