//! What is known of a block device: its size, where its file system is mounted, where its node is bound.

use std::path::{Path, PathBuf};

use provisioners::{Ctx, Error, Result};

use super::mountinfo::Mount;
use super::runner::Tools;
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

/// Whether a mount is of a device: of its file system, or of its node (a raw block volume).
pub fn is_of(mount: &Mount<'_>, device: &Path, number: (u32, u32)) -> bool {
    is_mounted_from(mount, device, number) || mounts::bound_device(mount).is_some_and(|bound| bound == device)
}

/// Btrfs has a device number of its own in mountinfo, so of it the source is looked at.
fn is_mounted_from(mount: &Mount<'_>, device: &Path, number: (u32, u32)) -> bool {
    mount.device == number || (mount.fs_type == "btrfs" && *mount.source == *device)
}

/// Where the file system of a device is mounted.
pub fn mounts(device: &Path) -> Result<Vec<Mount<'static>>> {
    let number = mounts::device_number(device)?;
    mounts::select(|m| is_mounted_from(m, device, number))
}

/// Where the device's node is bind mounted: raw block volumes.
pub fn binds(device: &Path) -> Result<Vec<PathBuf>> {
    let bound = mounts::select(|m| mounts::bound_device(m).is_some_and(|d| d == device))?;
    Ok(bound.into_iter().map(|m| m.target.into_owned()).collect())
}

/// Whether a mount is of this device's file system, as it is now: a device's name can be another's later.
pub fn shows(mount: &Mount<'_>, device: &Path) -> Result<bool> {
    Ok(is_mounted_from(mount, device, mounts::device_number(device)?))
}

/// The loop or rbd device that a mount shows, whether of its whole file system or of its node. A directory of a file
/// system that happens to be on such a device is not the device's.
pub fn shown_by(mount: &Mount<'_>) -> Option<PathBuf> {
    let whole = || (mount.root == Path::new("/")).then(|| PathBuf::from(&*mount.source));
    let source = mounts::bound_device(mount).or_else(whole)?;
    (is_loop(&source) || is_numbered(&source, "rbd")).then_some(source)
}

/// How often, and how many sectors, a device was written to and discarded (Documentation/block/stat.rst).
pub fn written(device: &Path) -> Result<[u64; 4]> {
    let path = Path::new("/sys/block").join(device.file_name().unwrap_or_default()).join("stat");
    let text =
        std::fs::read_to_string(&path).map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
    let fields: Vec<u64> = text.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    Ok([4, 6, 11, 13].map(|field| fields.get(field).copied().unwrap_or(0)))
}

/// Whether the kernel refuses writes to a device (BLKROGET).
pub fn is_read_only(device: &Path) -> bool {
    let name = device.file_name().unwrap_or_default();
    let flag = std::fs::read_to_string(Path::new("/sys/block").join(name).join("ro")).unwrap_or_default();
    flag.trim() == "1"
}

/// Has the kernel refuse or allow writes (BLKROSET).
pub fn set_read_only(tools: &Tools, ctx: &Ctx, device: &Path, read_only: bool) -> Result<()> {
    let flag = if read_only { "--setro" } else { "--setrw" };
    tools.must(ctx, "blockdev", &[flag.as_ref(), device.as_os_str()]).map(drop)
}

/// Whether a path is a loop device's.
pub fn is_loop(path: &Path) -> bool {
    is_numbered(path, "loop")
}

fn is_numbered(path: &Path, kind: &str) -> bool {
    let name = path.strip_prefix("/dev").ok().and_then(Path::to_str);
    name.and_then(|name| name.strip_prefix(kind)).is_some_and(|rest| rest.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_shown_by_its_file_system_and_its_node_only() {
        let shown = |line: &str| {
            let mounts = super::super::mountinfo::parse(line.as_bytes()).unwrap();
            shown_by(&mounts[0])
        };
        assert_eq!(shown("1 2 7:3 / /a rw - ext4 /dev/loop3 rw"), Some("/dev/loop3".into()));
        assert_eq!(shown("1 2 0:6 /rbd1 /a rw - devtmpfs dev rw"), Some("/dev/rbd1".into()));
        assert_eq!(shown("1 2 7:3 /volumes/v /a rw - ext4 /dev/loop3 rw"), None, "a directory volume");
        assert_eq!(shown("1 2 8:1 / /a rw - ext4 /dev/sda1 rw"), None);
    }
}
