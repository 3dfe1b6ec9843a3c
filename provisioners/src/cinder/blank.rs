//! Whether a volume is certainly blank: made so by Cinder, and attached for the first time.
//!
//! Cinder's metadata knows no compare-and-set, so two controllers write under different keys, and neither vouches where
//! it sees the other's. An attachment by somebody else shows in the volume's `updated_at`.

use std::time::{Duration, Instant};

use jiff::civil::DateTime;

use super::answer::CinderVolume;
use super::cloud::Service;
use super::notes::new_word;
use super::record::{ATTACHED, NEW, PERMIT, RAW};
use super::session::SHOWS_SERVICE;
use super::store::Found;
use crate::record::Publication;
use crate::{Error, Result, StringMap};

/// Where Cinder's database keeps whole seconds, a change in the same second would not show.
const SECOND: Duration = Duration::from_secs(1);
/// How often a volume that Cinder has not written for the last time is looked at, and for how long.
const LOOKS: Duration = Duration::from_millis(100);
const SETTLES: Duration = Duration::from_secs(5);

/// What a publication's first try has noted.
pub(super) struct First {
    key: String,
}

impl Found {
    /// Notes that the volume, just made without a source, is blank: before CreateVolume is answered, so that nobody has
    /// been told of it yet. Without the note its first stage reads all of it, so a failure is no error.
    pub(super) async fn note_new(&self) {
        if let Err(error) = self.try_note_new().await {
            tracing::warn!(volume = %self.handle, %error, "its first stage will read all of it");
        }
    }

    async fn try_note_new(&self) -> Result<()> {
        let updated = self.at_rest().await?;
        if updated.parse::<DateTime>().is_ok_and(|time| time.subsec_nanosecond() == 0) {
            tokio::time::sleep(SECOND).await;
        }
        let doing = format!("noting that volume {} is new", self.handle);
        self.set_metadata(NEW, updated, &doing).await
    }

    /// The `updated_at` of the last write that belongs to its making. Cinder writes a volume once more after it has
    /// called it `available`, and then shows its service (`VolumeManager.create_volume`: `shared_targets` and
    /// `service_uuid`, after the flow); one that does not tell is looked at a second later.
    async fn at_rest(&self) -> Result<String> {
        let tells = self.cloud.connected().await?.minor(Service::Volume) >= SHOWS_SERVICE;
        let asking = || format!("looking whether volume {} is at rest", self.handle);
        let begun = Instant::now();
        let mut seen = self.volume.clone();
        let mut looked = false;
        loop {
            if !is_free(&seen) {
                return Err(Error::Refused(format!("somebody uses volume {} already", self.handle)));
            }
            let rests = if tells { seen.service_uuid.is_some() } else { looked };
            if let Some(updated) = seen.updated_at.filter(|_| rests) {
                return Ok(updated);
            }
            if begun.elapsed() > SETTLES {
                return Err(Error::Unavailable(format!("{}: not in {} s", asking(), SETTLES.as_secs())));
            }
            tokio::time::sleep(if tells { LOOKS } else { SECOND }).await;
            let again = self.cloud.one(&self.handle.id).await.map_err(|fault| fault.doing(&asking()))?;
            seen = again.ok_or_else(|| self.gone())?;
            looked = true;
        }
    }

    /// Before a volume is attached: notes raw use for good, or that this is the first attachment, if it is.
    pub(super) async fn note_use(&self, server: &str, how: &Publication) -> Result<Option<First>> {
        let doing = format!("noting the use of volume {}", self.handle);
        if how.block {
            // Whenever a node would note it: nodes know the mode, not whether the pod may write.
            if !how.mode.is_read_only() && !self.volume.metadata.contains_key(RAW) {
                self.set_metadata(RAW, "true".into(), &doing).await?;
            }
            return Ok(None);
        }
        if !self.is_untouched() || self.attachments_noted().next().is_some() {
            return Ok(None);
        }
        let key = format!("{ATTACHED}{}", new_word(self.cloud.now()));
        self.set_metadata(&key, server.to_owned(), &doing).await?;
        Ok(Some(First { key }))
    }

    /// It was made blank, and nothing has happened to it since.
    fn is_untouched(&self) -> bool {
        let volume = &self.volume;
        let made = self.try_record().is_ok_and(|record| record.is_some_and(|record| record.source.is_none()));
        let same = volume.updated_at.is_some() && volume.metadata.get(NEW) == volume.updated_at.as_ref();
        let raw = volume.metadata.contains_key(RAW);
        made && same && !raw && is_free(volume)
    }

    fn attachments_noted(&self) -> impl Iterator<Item = (&String, &String)> {
        self.volume.metadata.iter().filter(|(key, _)| key.starts_with(ATTACHED))
    }

    /// Binds the note of a first attachment to the attachment that Cinder shows now, if no other controller noted one.
    pub(super) async fn confirm_first(&mut self, server: &str, first: &First) -> Result<()> {
        if self.attachments_noted().any(|(key, _)| *key != first.key) {
            return Ok(());
        }
        let Some(attached) = self.volume.attachments.iter().find(|attached| attached.server_id == server)
        else {
            return Ok(());
        };
        let value = format!("{server} {}", attached.attachment_id);
        let doing = format!("noting the first attachment of volume {}", self.handle);
        self.set_metadata(&first.key, value.clone(), &doing).await?;
        self.volume.metadata.insert(first.key.clone(), value);
        Ok(())
    }

    /// What a node is told of the content: the word that it is blank, of the first attachment only; that it is a raw one.
    pub(super) fn content_context(&self, server: &str, context: &mut StringMap) {
        let attached = self.volume.attachments.iter().find(|attached| attached.server_id == server);
        let mut noted = self.attachments_noted();
        if self.volume.metadata.contains_key(RAW) {
            context.insert("raw".into(), "true".into());
        } else if let (Some(attached), Some((key, value)), None) = (attached, noted.next(), noted.next())
            && *value == format!("{server} {}", attached.attachment_id)
        {
            context.insert("blank".into(), key[ATTACHED.len()..].to_owned());
        }
    }

    /// An operator's permission, which is taken off the volume before it is handed out.
    pub(super) async fn take_permit(&self) -> Result<Option<String>> {
        let Some(code) = self.volume.metadata.get(PERMIT).cloned() else { return Ok(None) };
        self.remove_metadata(PERMIT, &format!("using up {PERMIT} of volume {}", self.handle)).await?;
        Ok(Some(code))
    }
}

/// Whether no server has it or is about to have it.
fn is_free(volume: &CinderVolume) -> bool {
    volume.attachments.is_empty() && volume.status == "available"
}

/// What a copy of a volume or snapshot is told of its source.
pub(super) fn inherited(metadata: &std::collections::BTreeMap<String, String>) -> bool {
    metadata.contains_key(RAW)
}

/// The error of a permission that a node has used already.
pub(super) fn used(id: &str) -> Error {
    Error::Refused(format!("volume {id}: what allowed its format was used already; repeat the call"))
}
