//! What this process asked Cinder to make and has answered nobody for. Such a thing, and no other, may be taken away
//! again: what another call has made was perhaps handed out, whatever status it has now.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::answer::{CinderVolume, Thing};
use super::cloud::Cloud;
use super::record::{ATTEMPT, PUBLISHED};
use super::store::{Found, Store, owner};
use crate::{Ctx, Error, Result};

/// How long a call that failed is remembered: its repetition comes within minutes.
const REMEMBERED: Duration = Duration::from_secs(900);

/// The attempts of this process: a nonce in the metadata of what each has made.
#[derive(Default)]
pub(super) struct Attempts(Mutex<HashMap<String, Instant>>);

impl Attempts {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The nonce of a new attempt.
    pub(super) fn begin(&self) -> String {
        let nonce = uuid::Uuid::new_v4().simple().to_string();
        let mut all = self.lock();
        all.retain(|_, begun| begun.elapsed() < REMEMBERED);
        all.insert(nonce.clone(), Instant::now());
        nonce
    }

    /// The thing is about to be handed out: it is nobody's to take away any more.
    pub(super) fn answered<T: Thing>(&self, thing: &T) {
        if let Some(nonce) = thing.metadata().get(ATTEMPT) {
            self.lock().remove(nonce);
        }
    }

    /// Whether an attempt of this process has made it and nobody was answered for it.
    pub(super) fn made<T: Thing>(&self, thing: &T) -> bool {
        let nonce = thing.metadata().get(ATTEMPT);
        nonce.is_some_and(|it| self.lock().get(it).is_some_and(|begun| begun.elapsed() < REMEMBERED))
    }
}

impl Store {
    /// Deletes a volume that an attempt of this process has made, and that nobody can have used.
    pub(super) async fn remove_own(&self, ctx: &Ctx, cloud: &std::sync::Arc<Cloud>, id: &str) -> Result<()> {
        let doing = format!("removing volume {id}");
        let looked = cloud.one::<CinderVolume>(id).await.map_err(|fault| fault.doing(&doing))?;
        let Some(volume) = looked else { return Ok(()) };
        let untouched = volume.attachments.is_empty() && !volume.metadata.contains_key(PUBLISHED);
        if !self.attempts.made(&volume) || owner(&volume) != Some(&self.config.owner) || !untouched {
            return Err(Error::Refused(format!(
                "{doing}: it is in use, or this call has not made it; nothing was changed"
            )));
        }
        if cloud.ask_delete::<CinderVolume>(id).await.map_err(|fault| fault.doing(&doing))? {
            return Ok(());
        }
        super::delete::wait_gone(ctx, &Found::new(cloud, volume)).await
    }
}

/// What to say of something that failed in a call before, or later: it may hold data.
pub(super) fn left_in_error<T: Thing>(thing: &T, name: &str) -> Error {
    let (kind, id, status) = (T::ONE, thing.id(), thing.status());
    let command = if kind == "volume" { String::new() } else { format!(" {kind}") };
    Error::Refused(format!(
        "{kind} {id}, which has the name {name:?}, has status {status:?}, and it is not this call that has made it: it may \
         hold data, so nothing was changed. If it is good, `openstack volume{command} set --state available {id}` says so; \
         if nobody needs it, `openstack volume{command} delete {id}` removes it and the call makes a new one"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a5_only_what_was_made_and_not_answered_for_is_ours() {
        let (attempts, other) = (Attempts::default(), Attempts::default());
        let made_by = |nonce: String| CinderVolume {
            metadata: [(ATTEMPT.to_owned(), nonce)].into(),
            ..CinderVolume::default()
        };
        let (a, b) = (made_by(attempts.begin()), made_by(attempts.begin()));
        assert!(attempts.made(&a) && attempts.made(&b) && !other.made(&a));
        attempts.answered(&a);
        assert!(!attempts.made(&a) && attempts.made(&b));
        assert!(!attempts.made(&CinderVolume::default()), "a volume of an older driver");
    }
}
