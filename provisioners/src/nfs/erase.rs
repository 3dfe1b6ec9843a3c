//! Removing a directory of the trash and all below it, in little memory whatever its size and depth.
//!
//! A directory within a directory is not entered but moved up, so that the depth needs no memory. What the server does not
//! let this client remove (root_squash, immutable files) is left, and keeps nothing else from being removed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::client::{Cursor, Entry, Fault, Fh, Kind, Listing, Node, Outcome, Status, found};
use super::nested::{is_root, refusal};
use super::share::{OWN, Share, draft_name};
use super::tree::{Problem, in_parallel, page};
use crate::{Ctx, Error, Result};

/// After how many rounds in which nothing could be removed it is given up until the next call.
const ROUNDS: u32 = 3;

/// A removal at work.
struct Erasure<'a> {
    ctx: &'a Ctx,
    share: &'a Share,
    /// The entry of the trash.
    top: Fh,
    keep: Keep,
    removed: AtomicU64,
    /// Directories that were moved up.
    moved: AtomicU64,
    /// The first that cannot be removed, and why.
    left: Mutex<Option<(String, Fault)>>,
}

/// Removes a directory of the trash and all below it, with some workers. Interrupted, it goes on at the next call.
/// `users`: it was a volume, in which another share's root may be; that ends the removal. Something that cannot be removed:
/// [`Error::Refused`] with its path, when all else is gone.
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
        return match share.remove(trash, name) {
            Err(fault) if is_denied(&fault) => Err(stays(share, name, "", &fault)),
            other => other.map_err(fail).map(|()| 1),
        };
    }
    let keep = Keep { fsid: top.attr.fsid, roots: users };
    keep.guard(share, &top).map_err(|problem| problem.told(share, "looking at the trash"))?;
    let it = Erasure {
        ctx,
        share,
        top: top.fh,
        keep,
        removed: AtomicU64::new(0),
        moved: AtomicU64::new(0),
        left: Mutex::default(),
    };
    it.run(trash, name, workers)
}

impl Erasure<'_> {
    fn run(&self, trash: &Fh, name: &[u8], workers: usize) -> Result<u64> {
        let doing = "removing a deleted directory";
        let mut idle = 0;
        loop {
            let before = self.progress();
            match self.content(workers) {
                Err(Problem::Fault(fault)) if fault.is_gone() => {}
                Err(problem) => return Err(problem.told(self.share, doing)),
                Ok(()) => {}
            }
            match remove_empty(self.share, trash, name) {
                Ok(true) => return Ok(self.removed.load(Ordering::Relaxed) + 1),
                // Something was added, or moved up, while it was listed, or stays.
                Ok(false) => idle = if self.progress() == before { idle + 1 } else { 0 },
                Err(fault) if is_denied(&fault) => return Err(self.stays(name, Some(fault))),
                Err(fault) => return Err(self.share.fail(doing)(fault)),
            }
            if idle > 0 && self.is_left() || idle >= ROUNDS {
                return Err(self.stays(name, None));
            }
        }
    }

    fn progress(&self) -> u64 {
        self.removed.load(Ordering::Relaxed) + self.moved.load(Ordering::Relaxed)
    }

    /// Notes what cannot be removed; the first counts.
    fn leave(&self, path: &[&[u8]], fault: Fault) {
        let path = String::from_utf8_lossy(&path.join(&b'/')).into_owned();
        self.left.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((path, fault));
    }

    fn is_left(&self) -> bool {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The error for what is left.
    fn stays(&self, name: &[u8], top: Option<Fault>) -> Error {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner).take();
        match left.or_else(|| top.map(|fault| (String::new(), fault))) {
            Some((path, fault)) => stays(self.share, name, &path, &fault),
            None => Error::Unavailable(format!(
                "something is still written into a deleted directory on {}, or another driver removes it at this moment; repeat the call",
                self.share.place()
            )),
        }
    }

    /// One round over what is in the top directory.
    fn content(&self, workers: usize) -> Result<(), Problem> {
        let mut from = Some(Cursor::default());
        let mut first = self.list(&self.top, Cursor::default(), &[])?;
        // A small directory is not worth the threads.
        if first.as_ref().is_none_or(|page| page.next.is_none() && page.entries.len() < 16) {
            for entry in first.take().map(|page| page.entries).unwrap_or_default() {
                self.ctx.check()?;
                self.entry(&entry)?;
            }
            return Ok(());
        }
        let work = |entry: Entry| self.entry(&entry);
        in_parallel(workers, work, |queue| {
            while let Some(cursor) = from {
                self.ctx.check()?;
                let page = match first.take() {
                    Some(page) => Some(page),
                    None => self.list(&self.top, cursor, &[])?,
                };
                // The directory changes under the listing; the next round begins anew.
                let Some(page) = page else { break };
                from = page.next;
                for entry in page.entries {
                    if !queue(entry) {
                        return Ok(());
                    }
                }
                let removed = self.removed.load(Ordering::Relaxed);
                self.ctx.stage(format!("removing: {removed} entries so far"));
            }
            Ok(())
        })
    }

    /// Whether a directory may be emptied; one that must not be looked into is left.
    fn is_open(&self, dir: &Node, path: &[&[u8]]) -> Result<bool, Problem> {
        match self.keep.guard(self.share, dir) {
            Err(Problem::Fault(fault)) if is_denied(&fault) => {
                self.leave(path, fault);
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }

    /// A page of a directory; `None`: it cannot be read on. One that must not be read is left.
    fn list(&self, dir: &Fh, from: Cursor, path: &[&[u8]]) -> Outcome<Option<Listing>> {
        match page(self.share, dir, from) {
            Err(fault) if fault.is(Status::BAD_COOKIE) => Ok(None),
            Err(fault) if is_denied(&fault) => {
                self.leave(path, fault);
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// Removes a file; `false`: it must not be removed, and is left.
    fn file(&self, dir: &Fh, path: &[&[u8]]) -> Outcome<bool> {
        match self.share.remove(dir, path.last().copied().unwrap_or_default()) {
            Ok(()) => {
                self.removed.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Err(fault) if is_denied(&fault) => {
                self.leave(path, fault);
                Ok(false)
            }
            Err(fault) => Err(fault),
        }
    }

    /// Removes one entry of the top directory; what is in it goes, too, but for directories, which move to the top.
    fn entry(&self, entry: &Entry) -> Result<(), Problem> {
        let name = entry.name.as_slice();
        let kind = match &entry.node {
            Some(node) => node.attr.kind,
            None => match self.share.look(&self.top, name)? {
                Some(node) => node.attr.kind,
                None => return Ok(()),
            },
        };
        if kind != Kind::Directory {
            self.file(&self.top, &[name])?;
            return Ok(());
        }
        let mut denied = false;
        loop {
            match remove_empty(self.share, &self.top, name) {
                Ok(true) => break,
                Ok(false) => {}
                // Perhaps only as long as there is something in it.
                Err(fault) if is_denied(&fault) => {
                    if std::mem::replace(&mut denied, true) {
                        self.leave(&[name], fault);
                        return Ok(());
                    }
                }
                Err(fault) => return Err(fault.into()),
            }
            let Some(dir) = self.share.look(&self.top, name)? else { return Ok(()) };
            if !self.is_open(&dir, &[name])? || !self.children(&dir.fh, name)? {
                return Ok(());
            }
        }
        self.removed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Removes or moves up all in a directory; `false`: something is left.
    fn children(&self, dir: &Fh, name: &[u8]) -> Result<bool, Problem> {
        let (mut from, mut empty) = (Some(Cursor::default()), true);
        while let Some(cursor) = from {
            let Some(listing) = self.list(dir, cursor, &[name])? else { return Ok(empty && !self.is_left()) };
            from = listing.next;
            for child in listing.entries {
                empty &= self.child(dir, name, &child)?;
            }
        }
        Ok(empty)
    }

    fn child(&self, dir: &Fh, above: &[u8], child: &Entry) -> Result<bool, Problem> {
        let name = child.name.as_slice();
        let node = match &child.node {
            Some(node) => Some(node.clone()),
            None => self.share.look(dir, name)?,
        };
        let Some(node) = node.filter(|node| node.attr.kind == Kind::Directory) else {
            return Ok(self.file(dir, &[above, name])?);
        };
        match remove_empty(self.share, dir, name) {
            Ok(true) => {
                self.removed.fetch_add(1, Ordering::Relaxed);
                return Ok(true);
            }
            Err(fault) if !is_denied(&fault) => return Err(fault.into()),
            _ if !self.is_open(&node, &[above, name])? => return Ok(false),
            _ => {}
        }
        match found(self.share.rename(dir, name, &self.top, draft_name().as_bytes())) {
            Ok(_) => {
                self.moved.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Err(fault) if is_denied(&fault) => {
                self.leave(&[above, name], fault);
                Ok(false)
            }
            Err(fault) => Err(fault.into()),
        }
    }
}

/// Whether the server does not let this client's user do it, now or later.
fn is_denied(fault: &Fault) -> bool {
    fault.is(Status::PERM) || fault.is(Status::ACCESS)
}

/// The error for something that stays in the trash.
fn stays(share: &Share, name: &[u8], path: &str, fault: &Fault) -> Error {
    let trash = String::from_utf8_lossy(name);
    let place = if path.is_empty() { trash.into_owned() } else { format!("{trash}/{path}") };
    let what = if path.is_empty() {
        "the deleted directory itself".to_owned()
    } else {
        format!("{path:?} of a deleted directory")
    };
    Error::Refused(format!(
        "{what} on {} cannot be removed: {fault}; it is {OWN}/trash/{place} there. Remove it on the server (lsattr shows immutable files), or let this client's user remove it: export with no_root_squash, or set the share's uid and gid",
        share.place()
    ))
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
