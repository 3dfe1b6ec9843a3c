//! What is known of a block device: its size, where its file system is mounted, where its node is bound.

use std::path::{Path, PathBuf};

use provisioners::{Error, Result};

use super::mountinfo::Mount;
use super::{loopdev, mounts};

/// The device must have the volume's size, if that is known: one of another size is another device.
pub fn check_size(id: &str, device: &Path, wanted: Option<u64>) -> Result<()> {
    let Some(wanted) = wanted else { return Ok(()) };
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

/// The loop or rbd device that a mount shows, whether of its file system or of its node.
pub fn shown_by(mount: &Mount<'_>) -> Option<PathBuf> {
    let source = mounts::bound_device(mount).unwrap_or_else(|| PathBuf::from(&*mount.source));
    (is_loop(&source) || is_numbered(&source, "rbd")).then_some(source)
}

/// Whether a path is a loop device's.
pub fn is_loop(path: &Path) -> bool {
    is_numbered(path, "loop")
}

fn is_numbered(path: &Path, kind: &str) -> bool {
    let name = path.strip_prefix("/dev").ok().and_then(Path::to_str);
    name.and_then(|name| name.strip_prefix(kind)).is_some_and(|rest| rest.parse::<u32>().is_ok())
}
