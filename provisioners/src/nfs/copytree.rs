//! Copying a tree that users may write to: everything that makes a file what it is, durable when it is done, and a copy
//! of one moment or none.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::client::{Attr, Fh, Kind, Node, Outcome, Session, Set, Special, Stamp, Status};
use super::draft::Beat;
use super::share::Share;
use super::tree::{Problem, Visit, in_parallel, walk};
use crate::{Ctx, Result};

/// Files larger than this are copied in parts, by several workers.
const PART: u64 = 16 << 20;
/// Files that are not larger are read and written by one call each.
const AT_ONCE: u64 = 64 << 10;
/// How often is said how far a copy is.
const SAY: Duration = Duration::from_secs(5);

/// A copy that is being made.
pub(super) struct Copy<'a> {
    pub(super) ctx: &'a Ctx,
    pub(super) share: &'a Share,
    pub(super) workers: usize,
    pub(super) bytes: &'a AtomicU64,
    pub(super) files: &'a AtomicU64,
}

/// What is finished when the last part of it is: a directory's or large file's times.
struct Last {
    left: AtomicUsize,
    fh: Fh,
    set: Set,
    /// The directory it is in.
    within: Option<Arc<Last>>,
}

/// What workers do.
enum Job {
    /// A file that is made and filled.
    Small { name: Vec<u8>, node: Box<Node>, to: Arc<Last> },
    /// A part of a file that was made.
    Part { from: Fh, to: Fh, at: u64, end: u64, sparse: bool, last: Arc<Last> },
}

impl Copy<'_> {
    /// Copies what is in `from` into the new directory `to`, and gives that the attributes of `from`.
    pub(super) fn run(&self, from: &Fh, to: &Fh) -> Result<()> {
        let done = Beat::default();
        std::thread::scope(|scope| {
            scope.spawn(|| self.say(&done));
            let copied = self.try_run(from, to);
            done.tell();
            copied.map_err(|problem| problem.told(self.share, "copying a directory"))
        })
    }

    /// Says every few seconds how far the copy is.
    fn say(&self, done: &Beat) {
        while !done.wait(SAY) {
            let (files, bytes) = (self.files.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
            self.ctx.stage(format!("copying: {files} files, {} MiB so far", bytes >> 20));
        }
    }

    fn try_run(&self, from: &Fh, to: &Fh) -> Result<(), Problem> {
        let top = self.share.attr(from)?;
        let last = Arc::new(Last::new(to.clone(), all_of(&top), None));
        self.xattrs(from, to)?;
        in_parallel(
            self.workers,
            |job| self.job(job),
            |queue| {
                let mut walker = Walker { copy: self, queue, links: HashMap::new() };
                walk(self.ctx, self.share, from, last, &mut walker)
            },
        )
    }

    fn job(&self, job: Job) -> Result<(), Problem> {
        self.ctx.check()?;
        match job {
            Job::Small { name, node, to } => {
                if !self.at_once(&to.fh, &name, &node)? {
                    let fresh = self.make(&to.fh, &name)?;
                    if node.attr.size > 0 && !self.clone_file(&node.fh, &fresh)? {
                        self.copy_range(&node.fh, &fresh, 0, node.attr.size, is_sparse(&node.attr))?;
                    }
                    self.xattrs(&node.fh, &fresh)?;
                    self.finish(&fresh, &all_of(&node.attr))?;
                }
                self.release(&to)
            }
            Job::Part { from, to, at, end, sparse, last } => {
                self.copy_range(&from, &to, at, end, sparse)?;
                self.release(&last)
            }
        }
    }

    /// Copies a file that fits into one call. `false`: it does not, or there is more to it, or a name that is taken.
    fn at_once(&self, dir: &Fh, name: &[u8], node: &Node) -> Result<bool, Problem> {
        let attr = &node.attr;
        if attr.size > AT_ONCE || is_sparse(attr) || attr.mode & 0o6000 != 0 {
            return Ok(false);
        }
        if self.share.ask(|s| s.xattrs(&node.fh))?.is_some_and(|names| !names.is_empty()) {
            return Ok(false);
        }
        let (content, _) =
            self.share.ask(|s| s.read(&node.fh, 0, u32::try_from(AT_ONCE).unwrap_or(u32::MAX)))?;
        if content.len() as u64 != attr.size {
            return Ok(false);
        }
        let (first, last) = (Set { mode: Some(0o600), ..Set::default() }, all_of(attr));
        match self.share.ask(|s| s.put(dir, name, &content, &first, Some(&last))) {
            Err(fault) if fault.is(Status::EXISTS) => return Ok(false),
            other => other?,
        };
        self.bytes.fetch_add(attr.size, Ordering::Relaxed);
        Ok(true)
    }

    /// Makes a file; one that an earlier try of the same call has made is taken.
    fn make(&self, dir: &Fh, name: &[u8]) -> Outcome<Fh> {
        let set = Set { mode: Some(0o600), ..Set::default() };
        match self.share.ask(|s| s.create(dir, name, &set)) {
            Err(fault) if fault.is(Status::EXISTS) => Ok(self.share.ask(|s| s.lookup(dir, name))?.fh),
            other => Ok(other?.fh),
        }
    }

    fn clone_file(&self, from: &Fh, to: &Fh) -> Outcome<bool> {
        self.share.ask(|s| s.clone_file(from, to))
    }

    /// Copies bytes, leaving out blocks of zeros of a file that has holes, and makes them durable.
    fn copy_range(&self, from: &Fh, to: &Fh, at: u64, end: u64, sparse: bool) -> Result<(), Problem> {
        loop {
            let before = self.copy_once(from, to, at, end, sparse)?;
            let Some(before) = before else { return Ok(()) };
            // A server that was started again meanwhile may have lost what was not committed.
            if self.share.ask(|s| s.commit(to))? == before {
                return Ok(());
            }
        }
    }

    /// One pass; the verifier that the writes have in common, `None` if nothing has to be committed.
    fn copy_once(
        &self,
        from: &Fh,
        to: &Fh,
        at: u64,
        end: u64,
        sparse: bool,
    ) -> Result<Option<[u8; 8]>, Problem> {
        let (mut at, mut verifier, mut pending) = (at, None, false);
        while at < end {
            self.ctx.check()?;
            let (data, is_end) = self.share.ask(|s| {
                let limits = s.limits();
                let count = u64::from(limits.read.min(limits.write)).min(end - at);
                s.read(from, at, u32::try_from(count).unwrap_or(u32::MAX))
            })?;
            if !(sparse && data.iter().all(|byte| *byte == 0)) {
                let written = self.write_all(to, at, &data)?;
                if let Some((durable, now)) = written {
                    pending |= !durable;
                    if verifier.replace(now).is_some_and(|before| before != now) {
                        return self.copy_once(from, to, at, end, sparse);
                    }
                }
            }
            at += data.len() as u64;
            self.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
            if is_end || data.is_empty() {
                break;
            }
        }
        Ok(verifier.filter(|_| pending))
    }

    /// Writes all of it; whether it is durable, and the verifier.
    fn write_all(&self, to: &Fh, at: u64, data: &[u8]) -> Outcome<Option<(bool, [u8; 8])>> {
        let (mut done, mut last) = (0, None);
        while done < data.len() {
            let written = self.share.ask(|s| s.write(to, at + done as u64, &data[done..]))?;
            done += (written.count as usize).max(1);
            last = Some((written.durable, written.verifier));
        }
        Ok(last)
    }

    fn xattrs(&self, from: &Fh, to: &Fh) -> Outcome<()> {
        let Some(names) = self.share.ask(|s| s.xattrs(from))? else { return Ok(()) };
        for name in names {
            let value = self.share.ask(|s| s.get_xattr(from, &name))?;
            self.share.ask(|s| s.set_xattr(to, &name, &value))?;
        }
        Ok(())
    }

    fn finish(&self, fh: &Fh, set: &Set) -> Outcome<()> {
        self.share.ask(|s| set_all(s, fh, set))
    }

    /// One part less is missing; what is complete gets its attributes, and so on upwards.
    fn release(&self, last: &Arc<Last>) -> Result<(), Problem> {
        let mut at = Some(last);
        while let Some(it) = at {
            if it.left.fetch_sub(1, Ordering::AcqRel) > 1 {
                return Ok(());
            }
            self.finish(&it.fh, &it.set)?;
            at = it.within.as_ref();
        }
        Ok(())
    }
}

/// chown clears set-id bits on some servers, so these come in a second call.
fn set_all(session: &mut dyn Session, fh: &Fh, set: &Set) -> Outcome<()> {
    session.set(fh, set)?;
    match set.mode {
        Some(mode) if mode & 0o6000 != 0 => {
            let times = Set { mode: Some(mode), atime: set.atime, mtime: set.mtime, ..Set::default() };
            session.set(fh, &times)
        }
        _ => Ok(()),
    }
}

impl Last {
    fn new(fh: Fh, set: Set, within: Option<Arc<Self>>) -> Self {
        if let Some(within) = &within {
            within.left.fetch_add(1, Ordering::AcqRel);
        }
        // One for the walk itself.
        Self { left: AtomicUsize::new(1), fh, set, within }
    }
}

/// The walk: makes directories and what has no content, and queues files.
struct Walker<'a, 'b> {
    copy: &'a Copy<'a>,
    queue: &'b mut dyn FnMut(Job) -> bool,
    /// First names of files that have several, by their number: the copy's handle, and how many names are to come.
    links: HashMap<u64, (Fh, u32)>,
}

impl Visit for Walker<'_, '_> {
    type Dir = Arc<Last>;

    fn entry(&mut self, within: &Arc<Last>, name: &[u8], node: &Node) -> Result<Option<Arc<Last>>, Problem> {
        let share = self.copy.share;
        self.copy.files.fetch_add(1, Ordering::Relaxed);
        if node.attr.links > 1 && node.attr.kind != Kind::Directory && self.link(within, name, node)? {
            return Ok(None);
        }
        let special = match node.attr.kind {
            Kind::File => {
                self.file(within, name, node)?;
                return Ok(None);
            }
            Kind::Directory => Special::Directory,
            Kind::Link => {
                let target = share.ask(|s| s.readlink(&node.fh))?;
                Special::Link(target.into())
            }
            Kind::Fifo => Special::Fifo,
            Kind::Socket => Special::Socket,
            Kind::Block => Special::Block(node.attr.device.0, node.attr.device.1),
            Kind::Char => Special::Char(node.attr.device.0, node.attr.device.1),
        };
        let fh = self.make(within, name, &special)?;
        if node.attr.kind == Kind::Directory {
            self.copy.xattrs(&node.fh, &fh)?;
            return Ok(Some(Arc::new(Last::new(fh, all_of(&node.attr), Some(within.clone())))));
        }
        let mut set = all_of(&node.attr);
        if node.attr.kind == Kind::Link {
            // A link's mode cannot be changed.
            set.mode = None;
        }
        self.copy.finish(&fh, &set)?;
        self.remember(node, &fh);
        Ok(None)
    }

    fn leave(&mut self, dir: Arc<Last>) -> Result<(), Problem> {
        self.copy.release(&dir)
    }
}

impl Walker<'_, '_> {
    fn make(&self, within: &Arc<Last>, name: &[u8], what: &Special<'_>) -> Outcome<Fh> {
        let set = match what {
            Special::Link(_) => Set::default(),
            _ => Set { mode: Some(0o700), ..Set::default() },
        };
        Ok(self.copy.share.make(&within.fh, name, what, &set)?.fh)
    }

    /// A further name of a file that was copied before. `false`: this is its first.
    fn link(&mut self, within: &Arc<Last>, name: &[u8], node: &Node) -> Result<bool, Problem> {
        let Some((fh, left)) = self.links.get_mut(&node.attr.id) else { return Ok(false) };
        let fh = fh.clone();
        *left -= 1;
        if *left == 0 {
            self.links.remove(&node.attr.id);
        }
        self.copy.share.link(&fh, &within.fh, name)?;
        Ok(true)
    }

    fn remember(&mut self, node: &Node, fh: &Fh) {
        if node.attr.links > 1 {
            self.links.insert(node.attr.id, (fh.clone(), node.attr.links - 1));
        }
    }

    fn file(&mut self, within: &Arc<Last>, name: &[u8], node: &Node) -> Result<(), Problem> {
        if node.attr.size <= PART && node.attr.links == 1 {
            within.left.fetch_add(1, Ordering::AcqRel);
            let job = Job::Small { name: name.to_vec(), node: Box::new(node.clone()), to: within.clone() };
            return self.queue(job);
        }
        // Its handle is needed now: for the parts, or for the further names.
        let fh = self.copy.make(&within.fh, name)?;
        self.copy.xattrs(&node.fh, &fh)?;
        self.remember(node, &fh);
        let last = Arc::new(Last::new(fh.clone(), all_of(&node.attr), Some(within.clone())));
        if !self.copy.clone_file(&node.fh, &fh)? {
            // The length first, for a hole at the end.
            let set = Set { size: Some(node.attr.size), ..Set::default() };
            self.copy.share.ask(|s| s.set(&fh, &set))?;
            let mut at = 0;
            while at < node.attr.size {
                let end = (at + PART).min(node.attr.size);
                last.left.fetch_add(1, Ordering::AcqRel);
                let (from, to) = (node.fh.clone(), fh.clone());
                self.queue(Job::Part {
                    from,
                    to,
                    at,
                    end,
                    sparse: is_sparse(&node.attr),
                    last: last.clone(),
                })?;
                at = end;
            }
        }
        self.copy.release(&last)
    }

    fn queue(&mut self, job: Job) -> Result<(), Problem> {
        if (self.queue)(job) { Ok(()) } else { Err(Problem::Stopped) }
    }
}

/// All that is set on the copy of a file, at the end.
fn all_of(attr: &Attr) -> Set {
    Set {
        mode: Some(attr.mode),
        owner: Some(attr.owner.clone()),
        group: Some(attr.group.clone()),
        size: (attr.kind == Kind::File).then_some(attr.size),
        atime: Some(Stamp::At(attr.atime)),
        mtime: Some(Stamp::At(attr.mtime)),
    }
}

fn is_sparse(attr: &Attr) -> bool {
    attr.used < attr.size
}
