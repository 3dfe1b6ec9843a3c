//! Looking at a directory tree that users write to: no link is followed and no mount entered.

use std::ffi::{CStr, OsStr};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Dir;
use rustix::io::Errno;

pub(super) use crate::tree::{fd_path, is_dot, open_below, open_node};
use crate::{Error, Result};

/// The deepest tree that is looked at: each level holds descriptors.
pub(super) const MAX_DEPTH: usize = 200;
/// Longer than the tick that change times are rounded to.
const TICK: Duration = Duration::from_millis(12);

/// A moment on a file system's own clock: (seconds, nanoseconds).
pub(super) type Moment = (i64, i64);

/// The path below `source` of something that changed after a moment, if anything did.
pub(super) fn changed_since(source: &Path, moment: Moment) -> Result<Option<PathBuf>> {
    let top = open_top(source)?;
    search(&top, &PathBuf::new(), moment, 0)
}

fn search(dir: &File, path: &Path, moment: Moment, depth: usize) -> Result<Option<PathBuf>> {
    let meta = dir.metadata().map_err(|e| problem("looking at", path, e))?;
    if changed(&meta, moment) || depth > MAX_DEPTH {
        return Ok(Some(Path::new(".").join(path)));
    }
    let mut entries = Dir::read_from(dir).map_err(|e| problem("reading", path, e))?;
    while let Some(entry) = entries.read() {
        let entry = entry.map_err(|e| problem("reading", path, e))?;
        let name = entry.file_name();
        if is_dot(name) {
            continue;
        }
        let below = path.join(OsStr::from_bytes(name.to_bytes()));
        let found = search_entry(dir, name, below, moment, depth)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// As [`search`], for one entry of a directory; one that is gone has changed.
fn search_entry(
    dir: &File,
    name: &CStr,
    path: PathBuf,
    moment: Moment,
    depth: usize,
) -> Result<Option<PathBuf>> {
    let Some(node) = open_node(dir, name).map_err(|e| problem("opening", &path, e))? else {
        return Ok(Some(path));
    };
    let meta = node.metadata().map_err(|e| problem("looking at", &path, e))?;
    if !meta.is_dir() {
        return Ok(changed(&meta, moment).then_some(path));
    }
    match open_below(dir, name).map_err(|e| problem("opening", &path, e))? {
        Some(child) => search(&child, &path, moment, depth + 1),
        None => Ok(Some(path)),
    }
}

fn changed(meta: &Metadata, moment: Moment) -> bool {
    (meta.ctime(), meta.ctime_nsec()) > moment
}

/// The time of the file system that `dir` was just made in; returns when its clock has gone on.
pub(super) fn now(dir: &File, path: &Path) -> Result<Moment> {
    let meta = dir.metadata().map_err(|e| problem("looking at", path, e))?;
    std::thread::sleep(TICK);
    Ok((meta.ctime(), meta.ctime_nsec()))
}

pub(super) fn open_top(path: &Path) -> Result<File> {
    crate::tree::open_top(path).map_err(|e| problem("opening", path, e))
}

pub(super) fn problem(doing: &str, path: &Path, error: impl Into<io::Error>) -> Error {
    let error = error.into();
    let path = Path::new(".").join(path);
    if error.kind() == io::ErrorKind::CrossesDevices {
        return Error::Refused(format!(
            "{}: something is mounted there, and what is mounted is not copied; unmount it and repeat the call",
            path.display()
        ));
    }
    Error::io(format!("{doing} {}", path.display()), error)
}

/// What went wrong with one file: the system's answer, or an error that says all already.
pub(super) enum Trouble {
    System(io::Error),
    Said(Error),
}

impl Trouble {
    pub(super) fn at(self, path: &Path) -> Error {
        match self {
            Self::System(error) => problem("copying", path, error),
            Self::Said(error) => error,
        }
    }
}

impl From<Errno> for Trouble {
    fn from(error: Errno) -> Self {
        Self::System(error.into())
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Said(error)
    }
}
