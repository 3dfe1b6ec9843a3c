//! What NodeGetVolumeStats shows: room, inodes and health of a published volume.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use provisioners::{Condition, Error, Result};
use rustix::io::Errno;

use super::condition::{SHUT_DOWN, condition};
use super::{loopdev, mounts};

/// Numbers of one kind: bytes or inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// All there are.
    pub total: u64,
    /// Taken.
    pub used: u64,
    /// What an unprivileged user can still take.
    pub available: u64,
}

/// A volume's statistics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeStats {
    /// Bytes; of a raw block device only the total is known.
    pub bytes: Usage,
    /// Inodes of a file system.
    pub inodes: Option<Usage>,
    /// Its health.
    pub condition: Condition,
    /// Whether it is a raw block device.
    pub block: bool,
}

/// The statistics of what is published at a path. Nothing there, or nothing published: [`Error::NotFound`].
pub fn stats(path: &Path) -> Result<VolumeStats> {
    // An xfs that was shut down does not even tell what its root is.
    let (is_block, shut) = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NotFound(format!("volume_path: {} does not exist", path.display())));
        }
        Err(error) if is_shut_down(&error) => (false, true),
        Err(error) => return Err(Error::io(format!("volume_path: {}", path.display()), error)),
        Ok(meta) => (meta.file_type().is_block_device(), false),
    };
    if is_block {
        let bytes = Usage { total: loopdev::size(path)?, ..Usage::default() };
        return Ok(VolumeStats { bytes, inodes: None, condition: Condition::healthy(), block: true });
    }
    let mount = mounts::on(path)?.pop();
    let mount = mount
        .ok_or_else(|| Error::NotFound(format!("volume_path: nothing is mounted on {}", path.display())))?;
    let own = !mount.fs_type.starts_with("nfs");
    let fs = match rustix::fs::statvfs(path) {
        Err(errno) if own && is_shut_down(&errno.into()) => {
            let (bytes, condition) = (Usage::default(), Condition::abnormal(SHUT_DOWN));
            return Ok(VolumeStats { bytes, inodes: None, condition, block: false });
        }
        other => other.map_err(|e| Error::io(format!("statistics of {}", path.display()), e))?,
    };
    let bytes = Usage {
        total: fs.f_blocks * fs.f_frsize,
        used: fs.f_blocks.saturating_sub(fs.f_bfree) * fs.f_frsize,
        available: fs.f_bavail * fs.f_frsize,
    };
    let inodes =
        Usage { total: fs.f_files, used: fs.f_files.saturating_sub(fs.f_ffree), available: fs.f_favail };
    let condition = if own && shut { Condition::abnormal(SHUT_DOWN) } else { condition(&mount) };
    Ok(VolumeStats { bytes, inodes: Some(inodes), condition, block: false })
}

fn is_shut_down(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::UCLEAN))
}
