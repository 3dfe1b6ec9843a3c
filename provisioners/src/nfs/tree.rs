//! Working through a directory tree of any size and depth in little memory: removing it, comparing times, copying it.
//!
//! Files are reached by their handles, so that nobody can lead us elsewhere by exchanging a directory for a link.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use super::client::{Cursor, Entry, Fault, Fh, Kind, Node, Outcome, Status, found};
use super::nested::{is_root, refusal};
use super::share::{Share, draft_name};
use crate::{Ctx, Error, Result};

/// Calls that wait for a worker.
pub(super) const QUEUE: usize = 64;
/// After how many entries a stage is said again.
const SAY: u64 = 256;

/// A page of a directory.
pub(super) fn page(share: &Share, dir: &Fh, from: Cursor) -> Outcome<super::client::Listing> {
    share.ask(|s| s.list(dir, from))
}

/// Removes a directory of the trash and all below it, with some workers. Interrupted, it goes on at the next call.
///
/// A directory within a directory is not entered but moved up, so that the depth needs no memory. `users`: it was a volume,
/// in which another share's root may be; that ends the removal.
pub(super) fn remove(
    ctx: &Ctx,
    share: &Share,
    trash: &Fh,
    name: &[u8],
    users: bool,
    workers: usize,
) -> Result<u64> {
    let fail = |fault| share.fail("removing a deleted directory")(fault);
    let Some(top) = share.look(trash, name).map_err(fail)? else { return Ok(0) };
    if top.attr.kind != Kind::Directory {
        share.remove(trash, name).map_err(fail)?;
        return Ok(1);
    }
    let keep = Keep { fsid: top.attr.fsid, roots: users };
    keep.guard(share, &top).map_err(|problem| problem.told(share, "looking at the trash"))?;
    let removed = AtomicU64::new(0);
    loop {
        let before = removed.load(Ordering::Relaxed);
        match remove_content(ctx, share, &top.fh, keep, workers, &removed) {
            Err(Problem::Fault(fault)) if fault.is(Status::STALE) || fault.is(Status::NO_ENTRY) => {}
            Err(problem) => return Err(problem.told(share, "removing a deleted directory")),
            Ok(()) => {}
        }
        match found(share.ask(|s| s.remove_dir(trash, name))) {
            Ok(_) => return Ok(removed.into_inner() + 1),
            // Something was added, or moved up, while it was listed.
            Err(fault) if fault.is(Status::NOT_EMPTY) || fault.is(Status::EXISTS) => {
                if removed.load(Ordering::Relaxed) == before {
                    return Err(fail(fault));
                }
            }
            Err(fault) => return Err(fail(fault)),
        }
    }
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

fn remove_content(
    ctx: &Ctx,
    share: &Share,
    top: &Fh,
    keep: Keep,
    workers: usize,
    removed: &AtomicU64,
) -> Result<(), Problem> {
    let mut from = Some(Cursor::default());
    // A small directory is not worth the threads.
    let mut first = Some(page(share, top, Cursor::default())?);
    if first.as_ref().is_some_and(|page| page.next.is_none() && page.entries.len() < 16) {
        let entries = first.take().map(|page| page.entries).unwrap_or_default();
        for entry in entries {
            ctx.check()?;
            remove_entry(share, top, keep, &entry, removed)?;
        }
        return Ok(());
    }
    in_parallel(
        workers,
        |entry: Entry| remove_entry(share, top, keep, &entry, removed),
        |queue| {
            while let Some(cursor) = from {
                ctx.check()?;
                let page = match first.take() {
                    Some(page) => page,
                    None => match page(share, top, cursor) {
                        // The directory changes under the listing; the next round begins anew.
                        Err(fault) if fault.is(Status::BAD_COOKIE) => break,
                        other => other?,
                    },
                };
                from = page.next;
                for entry in page.entries {
                    if !queue(entry) {
                        return Ok(());
                    }
                }
                ctx.stage(format!("removing: {} entries so far", removed.load(Ordering::Relaxed)));
            }
            Ok(())
        },
    )
}

/// Removes one entry of the top directory; what is in it goes, too, but for directories, which move to the top.
fn remove_entry(
    share: &Share,
    top: &Fh,
    keep: Keep,
    entry: &Entry,
    removed: &AtomicU64,
) -> Result<(), Problem> {
    let name = entry.name.as_slice();
    let kind = match &entry.node {
        Some(node) => node.attr.kind,
        None => match share.look(top, name)? {
            Some(node) => node.attr.kind,
            None => return Ok(()),
        },
    };
    if kind != Kind::Directory {
        share.remove(top, name)?;
        removed.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    while !remove_empty(share, top, name)? {
        let Some(dir) = share.look(top, name)? else { return Ok(()) };
        keep.guard(share, &dir)?;
        let mut from = Some(Cursor::default());
        while let Some(cursor) = from {
            let listing = match page(share, &dir.fh, cursor) {
                Err(fault) if fault.is(Status::BAD_COOKIE) => break,
                other => other?,
            };
            from = listing.next;
            for child in listing.entries {
                remove_child(share, &dir.fh, keep, &child, top, removed)?;
            }
        }
    }
    removed.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

fn remove_child(
    share: &Share,
    dir: &Fh,
    keep: Keep,
    child: &Entry,
    top: &Fh,
    removed: &AtomicU64,
) -> Result<(), Problem> {
    let name = child.name.as_slice();
    let node = match &child.node {
        Some(node) => Some(node.clone()),
        None => share.look(dir, name)?,
    };
    let Some(node) = node.filter(|node| node.attr.kind == Kind::Directory) else {
        share.remove(dir, name)?;
        removed.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    };
    if remove_empty(share, dir, name)? {
        removed.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    keep.guard(share, &node)?;
    found(share.rename(dir, name, top, draft_name().as_bytes()))?;
    Ok(())
}

/// What is not removed with a tree.
#[derive(Debug, Clone, Copy)]
struct Keep {
    /// All that is not of this file system.
    fsid: (u64, u64),
    /// Roots of shares.
    roots: bool,
}

impl Keep {
    /// Refuses to remove what is in a directory that is kept.
    fn guard(self, share: &Share, dir: &Node) -> Result<(), Problem> {
        if dir.attr.fsid != self.fsid {
            let what = "a directory in the trash is a mount of another file system; unmount it on the server";
            return Err(Error::Refused(format!("{what} of {}", share.place())).into());
        }
        if self.roots && is_root(share, &dir.fh)? {
            return Err(refusal(share, "a directory in the trash", "is another share's root").into());
        }
        Ok(())
    }
}

/// Removes a directory if it is empty, or gone already.
fn remove_empty(share: &Share, dir: &Fh, name: &[u8]) -> Outcome<bool> {
    match found(share.ask(|s| s.remove_dir(dir, name))) {
        Ok(_) => Ok(true),
        Err(fault) if fault.is(Status::NOT_EMPTY) || fault.is(Status::EXISTS) => Ok(false),
        Err(fault) => Err(fault),
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
