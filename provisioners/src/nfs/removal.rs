//! Removing what is in the trash, behind the answers: some threads, each with one directory at a time.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::handle::ShareId;
use super::share::Share;
use super::tree;
use crate::Ctx;

/// How many directories are removed at once.
const THREADS: usize = 4;
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
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Arc<Share>, Vec<u8>, usize)>,
    /// Waiting or being removed.
    known: BTreeSet<(ShareId, Vec<u8>)>,
    threads: usize,
    idle: usize,
}

impl Removals {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many directories wait or are being removed.
    pub(super) fn pending(&self) -> usize {
        self.queue().known.len()
    }

    /// Queues an entry of a share's trash, unless it is queued already.
    pub(super) fn add(&self, share: &Arc<Share>, name: &[u8], workers: usize) {
        let mut queue = self.queue();
        if !queue.known.insert((share.id.clone(), name.to_vec())) {
            return;
        }
        queue.waiting.push_back((share.clone(), name.to_vec(), workers));
        if queue.idle == 0 && queue.threads < THREADS {
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
            let removed = share
                .own()
                .map_err(|fault| share.fail("finding the trash")(fault))
                .and_then(|own| tree::remove(&Ctx::new(), &share, &own.trash, &name, workers));
            match removed {
                Ok(entries) => {
                    tracing::debug!(share = %share.place(), name = shown, entries, "removed from the trash");
                }
                Err(error) => {
                    tracing::warn!(share = %share.place(), name = shown, %error, "the next sweep goes on with it");
                }
            }
            self.queue().known.remove(&(share.id.clone(), name));
        }
    }

    /// The next one; `None`: there was nothing to do for a while, and the thread ends.
    fn next(&self) -> Option<(Arc<Share>, Vec<u8>, usize)> {
        let mut queue = self.queue();
        queue.idle += 1;
        let waited = self.shared.changed.wait_timeout_while(queue, IDLE, |queue| queue.waiting.is_empty());
        queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        queue.idle -= 1;
        let next = queue.waiting.pop_front();
        if next.is_none() {
            queue.threads -= 1;
        }
        next
    }
}
