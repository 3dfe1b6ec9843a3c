//! Where things are below a root, and the few durable steps that all changes are made of.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

use super::record::is_absent;
use crate::naming::is_safe_component;
use crate::parts::Asked;
use crate::{Error, Result};

/// The backend's own directory below a root.
pub(super) const OWN: &str = ".volumectl";
/// A volume's record.
pub(super) const VOLUME_RECORD: &str = "volume.json";
/// A snapshot's record.
pub(super) const SNAPSHOT_RECORD: &str = "snapshot.json";
/// Our directories, the last made last: where it is, all are.
const OWN_DIRS: [&str; 5] = ["index", "tmp", "trash", "snapshots", "groups"];
/// A process that was killed while it started a helper: until that helper's execve(2), it has its locks, too.
const LEFT_OPEN: Duration = Duration::from_millis(500);

/// One configured root.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// Our directory `tmp`, locked (flock(2), shared) while this process may have unfinished work in it.
    lock: OnceLock<File>,
    /// Whether it can be used, when it was asked that.
    pub(super) asked: Asked,
}

impl Root {
    pub(super) fn new(name: &str, path: &Path) -> Self {
        Self { name: name.to_owned(), path: path.to_owned(), lock: OnceLock::new(), asked: Asked::default() }
    }

    /// One of our own directories.
    pub(super) fn own(&self, dir: &str) -> PathBuf {
        self.path.join(OWN).join(dir)
    }

    /// Where a snapshot is.
    pub(super) fn snapshot(&self, key: &str) -> PathBuf {
        self.own("snapshots").join(key)
    }

    /// A group's record; before the group is complete and after its deletion began it has another name.
    pub(super) fn group(&self, key: &str, complete: bool) -> PathBuf {
        let end = if complete { "json" } else { "pending" };
        self.own("groups").join(format!("{key}.{end}"))
    }

    /// Whether anything was ever made here.
    pub(super) fn exists(&self) -> bool {
        self.own("groups").is_dir()
    }

    /// Makes the root and our directories where they are missing.
    pub(super) fn ensure(&self) -> Result<()> {
        if !self.exists() {
            fs::create_dir_all(&self.path).map_err(|e| failed("creating root", &self.path, e))?;
            make_dir(&self.path.join(OWN))?;
            for dir in OWN_DIRS {
                make_dir(&self.own(dir))?;
            }
            sync(&self.path.join(OWN))?;
            sync(&self.path)?;
            self.path.parent().map_or(Ok(()), sync)?;
        }
        self.hold()
    }

    /// The directory whose file system the root is in, or will be in when it is made.
    pub(super) fn look(&self) -> Result<&Path> {
        if self.exists() {
            return self.hold().map(|()| &*self.path);
        }
        for path in self.path.ancestors() {
            match fs::metadata(path) {
                Ok(meta) if meta.is_dir() => return Ok(path),
                Ok(_) => return Err(failed("creating root", path, io::ErrorKind::NotADirectory.into())),
                Err(e) if is_absent(&e) => {}
                Err(e) => return Err(failed("looking at", path, e)),
            }
        }
        Err(failed("looking at", &self.path, io::ErrorKind::NotFound.into()))
    }

    fn hold(&self) -> Result<()> {
        if self.lock.get().is_none() {
            let path = self.own("tmp");
            let file = File::open(&path).map_err(|e| failed("opening", &path, e))?;
            flock(&file, FlockOperation::LockShared).map_err(|e| failed("locking", &path, e.into()))?;
            // Another thread may have been faster; its lock is as good.
            let _ = self.lock.set(file);
        }
        Ok(())
    }

    /// Runs `work` if no other process is using the root; `None` if one is, and goes on to.
    pub(super) fn alone<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        self.hold()?;
        let Some(file) = self.lock.get() else {
            return Ok(None);
        };
        let begun = Instant::now();
        while flock(file, FlockOperation::NonBlockingLockExclusive).is_err() {
            self.share(file)?;
            if begun.elapsed() > LEFT_OPEN {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let result = work();
        self.share(file)?;
        result.map(Some)
    }

    /// A failed conversion may have dropped the lock (flock(2)), so it is taken again.
    fn share(&self, file: &File) -> Result<()> {
        flock(file, FlockOperation::LockShared).map_err(|e| failed("locking", &self.path, e.into()))
    }

    /// The directory where the volume with this key is, or would be.
    pub(super) fn volume_dir(&self, key: &str) -> Result<PathBuf> {
        let link = self.own("index").join(key);
        let damaged =
            |problem: &str| Error::Corrupt { what: link.display().to_string(), problem: problem.to_owned() };
        match fs::read_link(&link) {
            Ok(name) => match name.to_str().filter(|name| is_safe_component(name)) {
                Some(name) => Ok(self.path.join(name)),
                None => Err(damaged("does not point to a directory of this root")),
            },
            Err(e) if is_absent(&e) => Ok(self.path.join(key)),
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Err(damaged("is no symbolic link")),
            Err(e) => Err(failed("reading", &link, e)),
        }
    }

    /// Makes the index right for a volume in this directory: a link, or none where the directory is named like the
    /// key. A link that an earlier try left is replaced; that there is none any more is durable at once.
    pub(super) fn index(&self, key: &str, dir_name: &str) -> Result<()> {
        let index = self.own("index");
        let link = index.join(key);
        if dir_name == key {
            return if remove_file(&link)? { sync(&index) } else { Ok(()) };
        }
        if fs::read_link(&link).is_ok_and(|has| has == Path::new(dir_name)) {
            return Ok(());
        }
        // In one step: another process may be looking for the volume.
        let temporary = index.join(format!(".{}.tmp", uuid::Uuid::new_v4()));
        std::os::unix::fs::symlink(dir_name, &temporary).map_err(|e| failed("linking", &link, e))?;
        fs::rename(&temporary, &link).map_err(|e| failed("linking", &link, e))
    }

    /// Removes a volume's link, if there is one.
    pub(super) fn unlink(&self, key: &str) -> Result<()> {
        remove_file(&self.own("index").join(key)).map(drop)
    }
}

/// [`Error::io`] with what was done and to which path.
pub(super) fn failed(doing: &str, path: &Path, error: io::Error) -> Error {
    Error::io(format!("{doing} {}", path.display()), error)
}

fn make_dir(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && is_dir(path)? => Ok(()),
        other => other.map_err(|e| failed("creating", path, e)),
    }
}

/// Whether a path is a directory and no symbolic link to one.
pub(super) fn is_dir(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(meta.is_dir()),
        Err(e) if is_absent(&e) => Ok(false),
        Err(e) => Err(failed("looking at", path, e)),
    }
}

/// Makes a file or directory durable.
pub(super) fn sync(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|e| failed("opening", path, e))?;
    file.sync_all().map_err(|e| failed("syncing", path, e))
}

pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(|e| failed("creating", path, e))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(|e| failed("writing", path, e))
}

/// Replaces a file's content: afterwards, also after a power loss, it has the old bytes or the new ones.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::Internal(format!("{} has no parent", path.display())));
    };
    let temporary = dir.join(format!(".{}.tmp", name.display()));
    let written = write_new(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path).map_err(|e| failed("renaming", &temporary, e)));
    if let Err(error) = written {
        let _ = remove_file(&temporary);
        return match error {
            // No space, or no quota.
            Error::Exhausted(_) => replace_in_place(path, bytes, error),
            other => Err(other),
        };
    }
    sync(dir)
}

/// What becomes shorter, because something is let go of, needs no space: it is written over the old bytes at once, with
/// white space to their end. A volume on a full disk could not be given up otherwise.
fn replace_in_place(path: &Path, bytes: &[u8], full: Error) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    let Ok(file) = OpenOptions::new().write(true).open(path) else { return Err(full) };
    let length = file.metadata().map_err(|e| failed("looking at", path, e))?.len();
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if bytes.len() > length {
        return Err(full);
    }
    let mut padded = bytes.to_vec();
    padded.resize(length, b' ');
    file.write_all_at(&padded, 0).and_then(|()| file.sync_all()).map_err(|e| failed("writing", path, e))
}

/// Renames, but never over anything. `Ok(false)`: the target exists.
pub(super) fn rename_new(from: &Path, to: &Path) -> Result<bool> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::EXIST) => Ok(false),
        Err(e) => Err(failed("renaming to", to, e.into())),
    }
}

/// Removes a file or link; whether there was one.
pub(super) fn remove_file(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if is_absent(&e) => Ok(false),
        Err(e) => Err(failed("removing", path, e)),
    }
}
