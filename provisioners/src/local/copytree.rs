//! Copying a directory tree that users write to: everything that makes a file what it is, and a copy of one moment.
//!
//! No link is followed and no mount entered: every step is one openat2(2) below the directory before.
//! What changes during the copy is noticed by its change time, and the tree is copied anew.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chownat, linkat, mkdirat,
    mknodat, openat, readlinkat, symlinkat, syncfs, utimensat,
};
use rustix::io::Errno;

use super::copy::{copy_sparse, reflink};
use super::remove::remove_tree;
use super::walk::{
    MAX_DEPTH, Moment, Trouble, changed_since, fd_path, is_dot, now, open_below, open_node, open_top, problem,
};
use super::xattrs;
use crate::{Ctx, Error, Result};

/// How often a tree is copied before one that keeps changing is refused.
const ROUNDS: u32 = 3;

/// Copies the directory `source` to `target`, which is made, durable when this returns.
///
/// Kept: modes, owners, times of change, extended attributes and ACLs, links of both kinds, FIFOs, device nodes and
/// holes. Left out: sockets, which mean nothing without their process. Returns the moment the copy is of; what
/// changes in all of three rounds: [`Error::Refused`].
pub(super) fn copy_tree(ctx: &Ctx, source: &Path, target: &Path) -> Result<Moment> {
    copy_in_rounds(ctx, source, target, || {})
}

/// As [`copy_tree`]; `copied` runs after every copy, before it is looked at what changed meanwhile.
pub(super) fn copy_in_rounds(
    ctx: &Ctx,
    source: &Path,
    target: &Path,
    mut copied: impl FnMut(),
) -> Result<Moment> {
    let mut changed = None;
    for round in 1..=ROUNDS {
        remove_tree(target)?;
        let began = TreeCopy::run(ctx, source, target)?;
        copied();
        changed = changed_since(source, began)?;
        if changed.is_none() {
            return Ok(began);
        }
        tracing::debug!(source = %source.display(), round, "changed while it was copied");
    }
    Err(still_changing(source, &changed.unwrap_or_default()))
}

/// The refusal for a tree that is being written to.
pub(super) fn still_changing(source: &Path, changed: &Path) -> Error {
    Error::Refused(format!(
        "{}: {} changed while it was copied, each time; stop what writes there and repeat the call",
        source.display(),
        changed.display()
    ))
}

struct TreeCopy<'a> {
    ctx: &'a Ctx,
    /// Files with several names, by device and inode: where the first was copied to, below the target.
    linked: HashMap<(u64, u64), PathBuf>,
    target: File,
    files: u64,
}

/// One directory during the copy: where it is, both sides.
struct Level {
    from: File,
    to: File,
    /// Below the tree.
    path: PathBuf,
    depth: usize,
}

impl TreeCopy<'_> {
    fn run(ctx: &Ctx, source: &Path, target: &Path) -> Result<Moment> {
        let from = open_top(source)?;
        mkdirat(CWD, target, Mode::RWXU).map_err(|e| problem("creating", target, e))?;
        let to = open_top(target)?;
        let began = now(&to, target)?;
        let mut it = TreeCopy { ctx, linked: HashMap::new(), target: open_top(target)?, files: 0 };
        let top = Level { from, to, path: PathBuf::new(), depth: 0 };
        it.directory(&top)?;
        syncfs(&it.target).map_err(|e| problem("syncing", target, e))?;
        Ok(began)
    }

    fn directory(&mut self, level: &Level) -> Result<()> {
        if level.depth > MAX_DEPTH {
            return Err(Error::Refused(format!(
                "{}: more than {MAX_DEPTH} directories deep, which is not copied; flatten the tree",
                level.path.display()
            )));
        }
        let meta = level.from.metadata().map_err(|e| problem("looking at", &level.path, e))?;
        let mut entries = Dir::read_from(&level.from).map_err(|e| problem("reading", &level.path, e))?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(|e| problem("reading", &level.path, e))?;
            if !is_dot(entry.file_name()) {
                self.entry(level, entry.file_name())?;
            }
        }
        let to = fd_path(&level.to);
        dress(&fd_path(&level.from), &to, &meta, true).map_err(|e| e.at(&level.path))
    }

    fn entry(&mut self, level: &Level, name: &CStr) -> Result<()> {
        self.ctx.check()?;
        let path = level.path.join(OsStr::from_bytes(name.to_bytes()));
        let Some(node) = open_node(&level.from, name).map_err(|e| problem("opening", &path, e))? else {
            return Ok(());
        };
        let meta = node.metadata().map_err(|e| problem("looking at", &path, e))?;
        if meta.is_dir() {
            return self.enter(level, name, path);
        }
        self.files += 1;
        if self.files.is_multiple_of(1000) {
            self.ctx.stage(format!("copying: {} files done", self.files));
        }
        if meta.nlink() > 1 && self.link(level, name, &meta, &path)? {
            return Ok(());
        }
        if self.leaf(level, name, &node, &meta, &path).map_err(|e| e.at(&path))? {
            let to = open_node(&level.to, name).map_err(|e| problem("opening the copy of", &path, e))?;
            let to = to.ok_or_else(|| Error::Internal(format!("the copy of {} vanished", path.display())))?;
            dress(&fd_path(&node), &fd_path(&to), &meta, !meta.is_symlink()).map_err(|e| e.at(&path))?;
        }
        Ok(())
    }

    fn enter(&mut self, level: &Level, name: &CStr, path: PathBuf) -> Result<()> {
        let Some(from) = open_below(&level.from, name).map_err(|e| problem("opening", &path, e))? else {
            return Ok(());
        };
        mkdirat(&level.to, name, Mode::RWXU).map_err(|e| problem("creating the copy of", &path, e))?;
        let to = open_below(&level.to, name).map_err(|e| problem("opening the copy of", &path, e))?;
        let Some(to) = to else {
            return Err(Error::Internal(format!("the copy of {} vanished", path.display())));
        };
        self.directory(&Level { from, to, path, depth: level.depth + 1 })
    }

    /// Makes another name of a file that was copied already. `Ok(false)`: it was not.
    fn link(&mut self, level: &Level, name: &CStr, meta: &Metadata, path: &Path) -> Result<bool> {
        let key = (meta.dev(), meta.ino());
        let Some(first) = self.linked.get(&key) else {
            self.linked.insert(key, path.to_owned());
            return Ok(false);
        };
        match linkat(&self.target, first, &level.to, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            // The first name was a socket, which is not copied.
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(problem("linking", path, e)),
        }
    }

    /// Copies what is no directory, without its attributes. `Ok(false)`: it is left out.
    fn leaf(
        &self,
        level: &Level,
        name: &CStr,
        node: &File,
        meta: &Metadata,
        path: &Path,
    ) -> Result<bool, Trouble> {
        let kind = meta.file_type();
        if kind.is_file() {
            return self.file(level, name, node, path);
        }
        if kind.is_symlink() {
            let target = readlinkat(node, c"", Vec::new())?;
            symlinkat(&target, &level.to, name)?;
            return Ok(true);
        }
        let (kind, device) = match kind {
            _ if kind.is_fifo() => (FileType::Fifo, 0),
            _ if kind.is_char_device() => (FileType::CharacterDevice, meta.rdev()),
            _ if kind.is_block_device() => (FileType::BlockDevice, meta.rdev()),
            _ => return Ok(false),
        };
        mknodat(&level.to, name, kind, Mode::RUSR | Mode::WUSR, device)?;
        Ok(true)
    }

    /// Copies a file's content: that of the inode which was looked at, whatever has its name now.
    fn file(&self, level: &Level, name: &CStr, node: &File, path: &Path) -> Result<bool, Trouble> {
        let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
        let from = File::from(openat(CWD, fd_path(node), flags, Mode::empty())?);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = File::from(openat(&level.to, name, flags, Mode::RUSR | Mode::WUSR)?);
        if from.metadata()?.len() > 0 && !reflink(&from, &to)? {
            match copy_sparse(self.ctx, &from, &to, path, true) {
                // Cut short meanwhile: the next round sees it.
                Err(Error::Refused(_)) => {}
                other => other?,
            }
        }
        Ok(true)
    }
}

/// Gives a copy the owner, attributes, mode and times of its original; paths are of `/proc/self/fd`. `mode`: not for
/// symbolic links, which have none. The order matters: a change of owner clears set-id bits and capabilities.
fn dress(from: &str, to: &str, meta: &Metadata, mode: bool) -> Result<(), Trouble> {
    let (uid, gid) = (Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid()));
    chownat(CWD, to, Some(uid), Some(gid), AtFlags::empty())?;
    xattrs::copy(from, to)?;
    if mode {
        rustix::fs::chmod(to, Mode::from_raw_mode(meta.mode() & 0o7777))?;
    }
    let times = Timestamps {
        last_access: timespec(meta.atime(), meta.atime_nsec()),
        last_modification: timespec(meta.mtime(), meta.mtime_nsec()),
    };
    utimensat(CWD, to, &times, AtFlags::empty())?;
    Ok(())
}

fn timespec(tv_sec: i64, nsec: i64) -> Timespec {
    Timespec { tv_sec, tv_nsec: nsec }
}
