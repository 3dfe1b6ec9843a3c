//! What is known of a block device: its size, where its file system is mounted, where its node is bound.

use std::path::{Path, PathBuf};

use provisioners::{Error, Result};

use super::mountinfo::Mount;
use super::{loopdev, mounts};

/// The device must have the volume's size: one of another size is another device.
pub fn check_size(id: &str, device: &Path, wanted: u64) -> Result<()> {
    let has = loopdev::size(device)?;
    if has == wanted {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "volume {id}: {} has {has} bytes, its record says {wanted}; not touching it. Was the file cut or replaced?",
        device.display()
    )))
}

/// Where the file system of a device is mounted. Btrfs has a device number of its own in mountinfo, so the source is
/// looked at, too.
pub fn mounts(device: &Path) -> Result<Vec<Mount<'static>>> {
    let number = mounts::device_number(device)?;
    mounts::select(|m| m.device == number || *m.source == *device)
}

/// Where the device's node is bind mounted: raw block volumes.
pub fn binds(device: &Path) -> Result<Vec<PathBuf>> {
    let bound = mounts::select(|m| mounts::bound_device(m).is_some_and(|d| d == device))?;
    Ok(bound.into_iter().map(|m| m.target.into_owned()).collect())
}

/// The loop device that a mount shows, whether of its file system or of its node.
pub fn loop_of(mount: &Mount<'_>) -> Option<PathBuf> {
    let source = mounts::bound_device(mount).unwrap_or_else(|| PathBuf::from(&*mount.source));
    let name = source.strip_prefix("/dev").ok()?.to_str()?;
    (name.starts_with("loop") && name[4..].parse::<u32>().is_ok()).then_some(source)
}
