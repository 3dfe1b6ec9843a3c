//! Removing what is in the trash, behind the answers: some threads for each share, each with one directory at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::client::Entry;
use super::delete::put_back;
use super::erase;
use super::handle::ShareId;
use super::identity::{Trashed, digest, trashed};
use super::record::VolumeRecord;
use super::share::{OWN, Own, Share, Told};
use super::store::{Index, load};
use crate::{Ctx, Error, Result};

/// How many directories of one share are removed at once.
const THREADS: usize = 4;
/// How many of all shares.
const THREADS_MAX: usize = 32;
/// How long a thread waits for work before it ends.
const IDLE: Duration = Duration::from_secs(20);

/// What is to be removed.
#[derive(Clone, Default)]
pub(super) struct Removals {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// There is something to do.
    changed: Condvar,
    /// Something was done, or could not be.
    done: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Arc<Share>, Vec<u8>, usize)>,
    /// Waiting or being removed.
    known: BTreeSet<(ShareId, Vec<u8>)>,
    /// What could not be removed when it was tried last, and why; kept while it is tried again.
    failed: BTreeMap<(ShareId, Vec<u8>), Error>,
    /// How many directories of a share are being removed.
    running: BTreeMap<ShareId, usize>,
    threads: usize,
    idle: usize,
}

impl Queue {
    /// The first one whose share has a thread to spare.
    fn take(&mut self) -> Option<(Arc<Share>, Vec<u8>, usize)> {
        let busy = |id: &ShareId| self.running.get(id).copied().unwrap_or(0) >= THREADS;
        let at = self.waiting.iter().position(|(share, ..)| !busy(&share.id))?;
        let next = self.waiting.remove(at)?;
        *self.running.entry(next.0.id.clone()).or_default() += 1;
        Some(next)
    }

    /// Keeps how it went; whether a problem is a new one.
    fn done(&mut self, share: &Share, name: Vec<u8>, problem: Option<&Error>) -> bool {
        let key = (share.id.clone(), name);
        self.known.remove(&key);
        let before = match problem {
            Some(error) => self.failed.insert(key, error.clone()),
            None => self.failed.remove(&key),
        };
        if let Some(running) = self.running.get_mut(&share.id) {
            *running -= 1;
        }
        let text = |error: &Error| error.to_string();
        problem.map(text) != before.as_ref().map(text)
    }
}

impl Removals {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many directories wait, are being removed, or could not be and will be tried again.
    pub(super) fn pending(&self) -> usize {
        let queue = self.queue();
        let more = queue.failed.keys().filter(|key| !queue.known.contains(*key)).count();
        queue.known.len() + more
    }

    /// What the server did not let be removed, with the first path that stays; by volume, where one is known.
    pub(super) fn stuck(&self) -> Vec<(ShareId, Option<String>, String)> {
        let queue = self.queue();
        let stuck = queue.failed.iter().filter(|(_, error)| matches!(error, Error::Refused(_)));
        let show = |((share, name), error): (&(ShareId, Vec<u8>), &Error)| {
            let key = match trashed(name) {
                Trashed::Volume { key, .. } => Some(key.to_owned()),
                Trashed::Own => None,
            };
            (share.clone(), key, error.to_string())
        };
        stuck.map(show).collect()
    }

    /// Forgets what could not be removed and is in a share's trash no more: somebody else has removed it.
    pub(super) fn forget_others(&self, share: &ShareId, there: &[Entry]) {
        let names: BTreeSet<_> = there.iter().map(|entry| entry.name.as_slice()).collect();
        self.queue().failed.retain(|(of, name), _| of != share || names.contains(name.as_slice()));
    }

    /// Has an entry removed and waits for it; the error that the removal ended with.
    pub(super) fn finish(&self, ctx: &Ctx, share: &Arc<Share>, name: &[u8], workers: usize) -> Result<()> {
        ctx.stage("removing what was in the directory");
        self.add(share, name, workers);
        let key = (share.id.clone(), name.to_vec());
        let mut queue = self.queue();
        while queue.known.contains(&key) {
            let waited = self.shared.done.wait_timeout(queue, Duration::from_millis(200));
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            ctx.check()?;
        }
        queue.failed.get(&key).cloned().map_or(Ok(()), Err)
    }

    /// Queues an entry of a share's trash, unless it is queued already.
    pub(super) fn add(&self, share: &Arc<Share>, name: &[u8], workers: usize) {
        let mut queue = self.queue();
        if !queue.known.insert((share.id.clone(), name.to_vec())) {
            return;
        }
        queue.waiting.push_back((share.clone(), name.to_vec(), workers));
        if queue.idle == 0 && queue.threads < THREADS_MAX {
            let it = self.clone();
            let started = std::thread::Builder::new().name("nfs-removal".into()).spawn(move || it.work());
            match started {
                Ok(_) => queue.threads += 1,
                Err(error) => tracing::warn!(%error, "no thread for removals; the next sweep tries again"),
            }
        }
        self.shared.changed.notify_one();
    }

    fn work(&self) {
        while let Some((share, name, workers)) = self.next() {
            let shown = String::from_utf8_lossy(&name).into_owned();
            // Of a dead share the next sweep finds what is left to do; nobody waits for it here.
            let alive = share.is_down().map_or(Ok(()), Err);
            let own = alive.and_then(|()| share.own().told(&share, "finding the trash"));
            let removed = own.and_then(|own| remove(&share, &own, &name, workers));
            let new = self.queue().done(&share, name, removed.as_ref().err());
            match removed {
                Ok(entries) => {
                    tracing::debug!(share = %share.place(), name = shown, entries, "removed from the trash");
                }
                Err(error) if new => {
                    tracing::warn!(share = %share.place(), name = shown, %error, "every sweep tries it again");
                }
                Err(error) => {
                    tracing::debug!(share = %share.place(), name = shown, %error, "still not removed");
                }
            }
            self.shared.changed.notify_one();
            self.shared.done.notify_all();
        }
    }

    /// The next one; `None`: there was nothing to do for a while, and the thread ends.
    fn next(&self) -> Option<(Arc<Share>, Vec<u8>, usize)> {
        let mut queue = self.queue();
        queue.idle += 1;
        let mut next = None;
        let waited = self.shared.changed.wait_timeout_while(queue, IDLE, |queue| {
            next = queue.take();
            next.is_none()
        });
        queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        queue.idle -= 1;
        if next.is_none() {
            queue.threads -= 1;
        }
        next
    }
}

/// Removes an entry of the trash, if it is what its name says.
fn remove(share: &Share, own: &Own, name: &[u8], workers: usize) -> Result<u64> {
    let users = matches!(trashed(name), Trashed::Volume { .. });
    if !settle(share, own, name)? {
        return Ok(0);
    }
    erase::remove(&Ctx::new(), share, &own.trash, name, users, workers)
}

/// Whether an entry of the trash may be removed. Another directory than its name says, moved there by a deletion before it
/// could see that, goes back to its place; what is not known to belong anywhere stays: [`Error::Refused`].
pub(super) fn settle(share: &Share, own: &Own, name: &[u8]) -> Result<bool> {
    let Trashed::Volume { digest: wanted, key } = trashed(name) else { return Ok(true) };
    let doing = "looking at the trash";
    let Some(node) = share.look(&own.trash, name).told(share, doing)? else { return Ok(true) };
    if digest(share, own, &node).told(share, doing)? == wanted {
        return Ok(true);
    }
    let (_, record) = load::<VolumeRecord>(share, Index::Volumes, key)?;
    let record = record.ok_or_else(|| {
        Error::Refused(format!(
            "{} is not the directory of volume {key} that was to be removed, or the server has changed its file handles; see what it is in {}/{OWN}/trash, and move it away",
            String::from_utf8_lossy(name),
            share.place()
        ))
    })?;
    put_back(share, own, name, &record.dir)?;
    tracing::warn!(share = %share.place(), dir = record.dir, "a directory that is not the volume's is in its place again");
    Ok(false)
}
