//! What is being made: a directory in `tmp` under a name that nobody else uses, marked as alive for as long as it is worked
//! on - also while a record is written, and however slowly -, so that no sweep takes it for abandoned.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::client::{Fh, Node, Set, Special, Stamp};
use super::pool::lock;
use super::share::{Own, Share, Told, draft_name};
use crate::{Error, Result};

/// A draft that is being worked on. Dropped, it is only what lies there.
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) node: Node,
    identity: Vec<u8>,
    beat: Arc<Beat>,
}

/// Tells a thread that its work is over.
#[derive(Default)]
pub(super) struct Beat {
    over: Mutex<bool>,
    changed: Condvar,
}

/// The name of a draft for a volume or snapshot.
pub(super) fn name_for(key: &str) -> String {
    format!("{}-{key}", draft_name())
}

/// Whether a draft is for a key. Of names that older versions gave this cannot be said: they may be.
pub(super) fn is_of(draft: &[u8], key: &str) -> bool {
    let end = draft.iter().position(|byte| *byte == b'-');
    end.is_none_or(|at| draft[at + 1..].strip_suffix(b".json").unwrap_or(&draft[at + 1..]) == key.as_bytes())
}

impl Draft {
    /// Makes a directory in `tmp`.
    pub(super) fn make(share: &Arc<Share>, own: &Own, key: &str, set: &Set) -> Result<Self> {
        let name = name_for(key);
        let made = share.make(&own.tmp, name.as_bytes(), &Special::Directory, set);
        let node = made.told(share, "making a directory")?;
        let identity = share.identity(&node.fh).told(share, "making a directory")?;
        Ok(Self { name, node, identity, beat: Arc::default() })
    }

    /// What has its name is what was filled: [`Error::Unavailable`] if somebody has taken it away.
    pub(super) fn check(&self, share: &Share, own: &Own) -> Result<()> {
        let there = share.look(&own.tmp, self.name.as_bytes()).told(share, "looking at what was made")?;
        if let Some(there) = there
            && share.identity(&there.fh).told(share, "looking at what was made")? == self.identity
        {
            return Ok(());
        }
        Err(Error::Unavailable(format!(
            "what was being made on {} was taken away: another driver took it for abandoned; repeat the call",
            share.place()
        )))
    }

    /// From now on it is marked as alive, until it is dropped. What takes less than a moment does without.
    pub(super) fn keep_alive(&self, share: &Arc<Share>, every: Duration) {
        let (share, beat, fh) = (share.clone(), self.beat.clone(), self.node.fh.clone());
        let work = move || {
            while !beat.wait(every) {
                if let Err(fault) = touch(&share, &fh) {
                    tracing::warn!(share = %share.place(), %fault, "marking what is being made as alive");
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("nfs-alive".into()).spawn(work) {
            tracing::warn!(%error, "no thread to mark what is being made as alive");
        }
    }
}

/// Changes the change time, and nothing else that anybody reads.
fn touch(share: &Share, fh: &Fh) -> super::client::Outcome<()> {
    share.ask(|s| s.set(fh, &Set { atime: Some(Stamp::Now), ..Set::default() }))
}

impl Drop for Draft {
    fn drop(&mut self) {
        self.beat.tell();
    }
}

impl Beat {
    pub(super) fn tell(&self) {
        *lock(&self.over) = true;
        self.changed.notify_all();
    }

    /// Whether it is over; waits for that.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let over = lock(&self.over);
        let waited = self.changed.wait_timeout_while(over, limit, |over| !*over);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drafts_name_says_for_whom_it_is() {
        let name = name_for("pvc-1");
        assert!(is_of(name.as_bytes(), "pvc-1") && is_of(format!("{name}.json").as_bytes(), "pvc-1"));
        assert!(!is_of(name.as_bytes(), "pvc") && !is_of(name.as_bytes(), "1"));
        assert!(is_of(b"0123456789abcdef01234567", "pvc-1"));
    }
}
