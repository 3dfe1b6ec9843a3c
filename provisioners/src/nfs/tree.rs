//! Working through a directory tree of any size and depth in little memory: comparing times, copying it; removing it is
//! in [`super::erase`].
//!
//! Files are reached by their handles, so that nobody can lead us elsewhere by exchanging a directory for a link.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use super::client::{Cursor, Entry, Fault, Fh, Node, Outcome};
use super::share::Share;
use crate::{Ctx, Error, Result};

/// Calls that wait for a worker.
pub(super) const QUEUE: usize = 64;
/// After how many entries a stage is said again.
const SAY: u64 = 256;

/// A page of a directory.
pub(super) fn page(share: &Share, dir: &Fh, from: Cursor) -> Outcome<super::client::Listing> {
    share.ask(|s| s.list(dir, from))
}

/// Why working through a tree ended.
#[derive(Debug)]
pub(super) enum Problem {
    Fault(Fault),
    Error(Error),
    /// There is no use in more.
    Stopped,
}

impl Problem {
    pub(super) fn told(self, share: &Share, doing: &str) -> Error {
        match self {
            Self::Fault(fault) => share.fail(doing)(fault),
            Self::Error(error) => error,
            Self::Stopped => Error::Internal(format!("{doing} on {} was stopped", share.place())),
        }
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Has workers do what `produce` queues; the first problem ends all. Queuing says whether there is any use in more.
pub(super) fn in_parallel<T: Send>(
    workers: usize,
    work: impl Fn(T) -> Result<(), Problem> + Sync,
    produce: impl FnOnce(&mut dyn FnMut(T) -> bool) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let (send, receive): (SyncSender<T>, Receiver<T>) = sync_channel(QUEUE);
    let receive = Mutex::new(receive);
    let (failed, stop) = (Mutex::new(None), AtomicBool::new(false));
    let produced = std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = receive.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(item) = next else { return };
                    // After a problem the queue is only emptied, so that nobody waits for room in it.
                    if stop.load(Ordering::Relaxed) {
                        continue;
                    }
                    if let Err(problem) = work(item) {
                        stop.store(true, Ordering::Relaxed);
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(problem);
                    }
                }
            });
        }
        let send = send;
        produce(&mut |item| !stop.load(Ordering::Relaxed) && send.send(item).is_ok())
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(problem) => Err(problem),
        None => produced,
    }
}

/// One directory that is being walked.
struct Frame {
    dir: Fh,
    entries: std::vec::IntoIter<Entry>,
    next: Option<Cursor>,
}

impl Frame {
    fn open(share: &Share, dir: Fh) -> Outcome<Self> {
        let listing = page(share, &dir, Cursor::default())?;
        Ok(Self { dir, entries: listing.entries.into_iter(), next: listing.next })
    }

    fn next(&mut self, share: &Share) -> Outcome<Option<Entry>> {
        loop {
            if let Some(entry) = self.entries.next() {
                return Ok(Some(entry));
            }
            let Some(cursor) = self.next else { return Ok(None) };
            let listing = page(share, &self.dir, cursor)?;
            self.entries = listing.entries.into_iter();
            self.next = listing.next;
        }
    }
}

/// What a walk says of each entry: its directory's context, the entry with its attributes. For a directory, what its own
/// content's context is.
pub(super) trait Visit {
    type Dir;
    fn entry(&mut self, within: &Self::Dir, name: &[u8], node: &Node) -> Result<Option<Self::Dir>, Problem>;
    /// All of a directory was seen.
    fn leave(&mut self, dir: Self::Dir) -> Result<(), Problem> {
        let _ = dir;
        Ok(())
    }
}

/// Walks a tree, each directory before its content.
pub(super) fn walk<V: Visit>(
    ctx: &Ctx,
    share: &Share,
    top: &Fh,
    begin: V::Dir,
    visit: &mut V,
) -> Result<(), Problem> {
    let mut stack = vec![(Frame::open(share, top.clone())?, begin)];
    let mut seen = 0_u64;
    while let Some((frame, within)) = stack.last_mut() {
        let Some(entry) = frame.next(share)? else {
            if let Some((_, dir)) = stack.pop() {
                visit.leave(dir)?;
            }
            continue;
        };
        seen += 1;
        if seen.is_multiple_of(SAY) {
            ctx.check()?;
        }
        let node = match entry.node {
            Some(node) => node,
            None => match share.look(&frame.dir, &entry.name)? {
                Some(node) => node,
                None => continue,
            },
        };
        if let Some(inner) = visit.entry(within, &entry.name, &node)? {
            stack.push((Frame::open(share, node.fh)?, inner));
        }
    }
    Ok(())
}
