//! What is being made, in `tmp`: complete or absent, and nobody else's.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;

use super::layout::{Root, failed, is_dir, remove_file, rename_new, sync, write_new};
use super::list::names;
use super::remove::remove_tree;
use crate::{Error, Result};

/// Something being made in `tmp`: removed when dropped, unless it was published.
///
/// Its name is random, and its directory is held open and locked (flock(2)): another process makes the same volume beside
/// it, and clears up only what nobody has locked.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) path: PathBuf,
    dir: File,
    published: bool,
}

impl Draft {
    /// Starts anew; what earlier tries left is thrown away.
    pub(super) fn start(root: &Root, kind: &str, key: &str) -> Result<Self> {
        let what = format!("{kind}-{key}");
        clear_earlier(root, &what)?;
        let path = root.own("tmp").join(format!("{what}.{}", uuid::Uuid::new_v4()));
        DirBuilder::new().mode(0o700).create(&path).map_err(|e| failed("creating", &path, e))?;
        let locked = lock(&path).map_err(|e| failed("locking", &path, e.into()))?;
        // Between the two steps a process that clears up may have had it.
        let dir = locked.filter(|dir| is_same(dir, &path)).ok_or_else(|| {
            Error::Unavailable(format!(
                "{} was cleared up by another process; repeat the call",
                path.display()
            ))
        })?;
        Ok(Self { path, dir, published: false })
    }

    /// Writes the record, makes all durable and moves it to `target`, which must not exist. `Ok(false)`: it does.
    /// The record's file goes first: its fsync commits the other new files of the directory in one go.
    pub(super) fn publish(mut self, record: &str, bytes: &[u8], data: &Path, target: &Path) -> Result<bool> {
        write_new(&self.path.join(record), bytes)?;
        sync(data)?;
        sync(&self.path)?;
        if !is_same(&self.dir, &self.path) {
            return Err(Error::Internal(format!("{} is not what was filled", self.path.display())));
        }
        self.published = rename_new(&self.path, target)?;
        if self.published && !is_same(&self.dir, target) {
            return Err(Error::Internal(format!("{} is not what was filled", target.display())));
        }
        Ok(self.published)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published
            && is_same(&self.dir, &self.path)
            && let Err(error) = remove_tree(&self.path)
        {
            tracing::warn!(%error, "a temporary directory is left; the next start removes it");
        }
    }
}

/// Opens and locks a directory; `None`: somebody else has it locked, or it is gone.
fn lock(path: &Path) -> rustix::io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match openat(CWD, path, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        other => File::from(other?),
    };
    match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Ok(None),
        other => other.map(|()| Some(dir)),
    }
}

fn is_same(dir: &File, path: &Path) -> bool {
    match (dir.metadata(), fs::symlink_metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Removes what is left of a draft, unless somebody works on it; whether it did. Drafts of before had fixed names and no
/// lock: who made one can only be told by being alone in the root.
pub(super) fn clear(root: &Root, name: &str, alone: bool) -> Result<bool> {
    let path = root.own("tmp").join(name);
    if !is_dir(&path)? {
        return if alone { remove_file(&path) } else { Ok(false) };
    }
    if !alone && !has_lock(name) {
        return Ok(false);
    }
    let Some(dir) = lock(&path).map_err(|e| failed("locking", &path, e.into()))? else { return Ok(false) };
    remove_tree(&path)?;
    drop(dir);
    Ok(true)
}

/// Whether something is named after `what`: by that alone, as before names were random, or with a random end.
pub(super) fn is_of(name: &str, what: &str) -> bool {
    name.strip_prefix(what).is_some_and(|rest| rest.is_empty() || is_random_end(rest))
}

/// Whether the end of a name is a point and a UUID.
fn is_random_end(end: &str) -> bool {
    end.strip_prefix('.').is_some_and(|end| uuid::Uuid::parse_str(end).is_ok())
}

/// Whether a draft is one that is locked while somebody works on it.
fn has_lock(name: &str) -> bool {
    name.rfind('.').is_some_and(|at| is_random_end(&name[at..]))
}

fn clear_earlier(root: &Root, what: &str) -> Result<()> {
    for name in names(&root.own("tmp"), |_| true)?.into_iter().filter(|name| is_of(name, what)) {
        if has_lock(&name) {
            clear(root, &name, false)?;
        } else {
            root.alone(|| clear(root, &name, true))?;
        }
    }
    Ok(())
}
