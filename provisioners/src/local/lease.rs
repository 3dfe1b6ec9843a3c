//! One operation at a time on a volume's data, across processes: an old driver that drains works beside its successor.
//!
//! The lock is flock(2) on the data's own inode, so it ends with the process and needs no space: of an image the file's, of
//! a directory, whose inode its users can lock, that of the volume's directory around it.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::layout::failed;
use super::record::is_absent;
use crate::{Ctx, Error, Result};

/// How long another process is waited for: a child that is being started has our locks until its execve(2).
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Whether others may do the same at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Others may copy, too.
    Copy,
    /// Nobody else works on the data: it is attached, grown or deleted.
    Alone,
}

/// The right to work on a volume's data, until it is dropped.
#[derive(Debug)]
pub struct Lease {
    _file: File,
}

impl Lease {
    /// Takes the lease on a volume's or snapshot's data. Another process has it: [`Error::Unavailable`] after a moment.
    /// The data is gone: [`Error::NotFound`].
    pub fn take(ctx: &Ctx, data: &Path, sharing: Sharing) -> Result<Self> {
        let path = inode_of(data)?;
        let doing = |e| {
            if is_absent(&e) {
                Error::NotFound(format!("{} is not there any more", path.display()))
            } else {
                failed("opening", &path, e)
            }
        };
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(&path).map_err(doing)?;
        lock(ctx, &file, &path, sharing)?;
        let (has, now) = (file.metadata().map_err(doing)?, fs::symlink_metadata(&path).map_err(doing)?);
        if (has.dev(), has.ino()) != (now.dev(), now.ino()) {
            return Err(Error::Unavailable(format!(
                "{} was replaced by another process; repeat the call",
                path.display()
            )));
        }
        Ok(Self { _file: file })
    }
}

fn inode_of(data: &Path) -> Result<PathBuf> {
    match fs::symlink_metadata(data) {
        Ok(meta) if meta.is_file() => Ok(data.to_owned()),
        Err(e) if !is_absent(&e) => Err(failed("looking at", data, e)),
        // A directory, or data that somebody has taken away.
        _ => data
            .parent()
            .map(Path::to_path_buf)
            .ok_or_else(|| Error::Internal(format!("{} has no parent", data.display()))),
    }
}

/// Locks an open file or directory, which other processes keep for a moment only.
pub(super) fn lock(ctx: &Ctx, file: &File, path: &Path, sharing: Sharing) -> Result<()> {
    let operation = match sharing {
        Sharing::Copy => FlockOperation::NonBlockingLockShared,
        Sharing::Alone => FlockOperation::NonBlockingLockExclusive,
    };
    let begun = Instant::now();
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) if begun.elapsed() < PATIENCE => {}
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                return Err(Error::Unavailable(format!(
                    "{} is being copied, attached, grown or deleted by another process (`lslocks` names it); repeat the call",
                    path.display()
                )));
            }
            Err(e) => return Err(failed("locking", path, e.into())),
        }
        ctx.check()?;
        std::thread::sleep(PAUSE);
    }
}
