//! What NodeGetVolumeStats shows: room, inodes and health of a published volume.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use provisioners::{Condition, Error, Result};

use super::mountinfo::Mount;
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
    let meta = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NotFound(format!("volume_path: {} does not exist", path.display())));
        }
        Err(error) => return Err(Error::io(format!("volume_path: {}", path.display()), error)),
        Ok(meta) => meta,
    };
    if meta.file_type().is_block_device() {
        let bytes = Usage { total: loopdev::size(path)?, ..Usage::default() };
        return Ok(VolumeStats { bytes, inodes: None, condition: Condition::healthy(), block: true });
    }
    let mount = mounts::on(path)?.pop();
    let mount = mount
        .ok_or_else(|| Error::NotFound(format!("volume_path: nothing is mounted on {}", path.display())))?;
    let fs =
        rustix::fs::statvfs(path).map_err(|e| Error::io(format!("statistics of {}", path.display()), e))?;
    let bytes = Usage {
        total: fs.f_blocks * fs.f_frsize,
        used: fs.f_blocks.saturating_sub(fs.f_bfree) * fs.f_frsize,
        available: fs.f_bavail * fs.f_frsize,
    };
    let inodes =
        Usage { total: fs.f_files, used: fs.f_files.saturating_sub(fs.f_ffree), available: fs.f_favail };
    Ok(VolumeStats { bytes, inodes: Some(inodes), condition: condition(&mount), block: false })
}

/// A file system that the kernel has made read only, or a device whose file is gone.
fn condition(mount: &Mount<'_>) -> Condition {
    if mount.is_super_read_only() && !mount.has_option("ro") {
        let text = "the kernel has made the file system read only, usually after an I/O error; see the kernel's log, \
                    then unstage and stage the volume so that it is checked";
        return Condition::abnormal(text);
    }
    let gone = loopdev::all().unwrap_or_default().into_iter().find(|(device, file)| {
        device.as_os_str() == mount.source && file.to_string_lossy().ends_with(" (deleted)")
    });
    match gone {
        Some((device, file)) => Condition::abnormal(format!(
            "the backing file of {} was removed: {}; copy the data away before the volume is unmounted",
            device.display(),
            file.display()
        )),
        None => Condition::healthy(),
    }
}
