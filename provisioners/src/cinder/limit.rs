//! How many volumes a node can take: what its disks' bus can have, less the disks that are not volumes of pods.

use std::fs;
use std::path::Path;

use super::handle::is_uuid;

/// Disks of a guest on virtio-blk or NVMe, where each takes a slot of the PCI bus.
const BY_SLOT: u32 = 26;
/// Disks of a guest on virtio-scsi.
const BY_SCSI: u32 = 256;
/// Devices that are no disks of the server.
const NO_DISKS: [&str; 9] = ["loop", "ram", "zram", "dm-", "md", "nbd", "rbd", "sr", "fd"];

/// CSI `max_volumes_per_node`: `max` disks, else by the bus of those there are. `mounted` are the names of disks whose file
/// systems are mounted outside kubelet's directory.
pub(super) fn volume_limit(root: &Path, max: Option<u32>, foreign: impl Fn(&str) -> bool) -> u32 {
    let disks: Vec<String> = fs::read_dir(root.join("sys/block"))
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    let disks: Vec<_> =
        disks.into_iter().filter(|name| !NO_DISKS.iter().any(|prefix| name.starts_with(prefix))).collect();
    let scsi = disks.iter().any(|name| name.starts_with("sd"));
    let most = most(max, scsi);
    let others =
        disks.iter().filter(|name| foreign(name) || !is_volume(&root.join("sys/block").join(name))).count();
    // 0 would mean "no limit".
    most.saturating_sub(u32::try_from(others).unwrap_or(u32::MAX)).max(1)
}

/// The disks that a server can have: as configured, else by its bus.
pub(super) fn most(configured: Option<u32>, scsi: bool) -> u32 {
    configured.unwrap_or(if scsi { BY_SCSI } else { BY_SLOT })
}

/// Whether a disk's serial is (the beginning of) a volume's id.
fn is_volume(block: &Path) -> bool {
    let Some(serial) = super::disks::serial(block) else { return false };
    let pattern = "00000000-0000-0000-0000-000000000000";
    let filled = format!("{serial}{}", pattern.get(serial.len()..).unwrap_or_default());
    serial.len() >= 20 && is_uuid(&filled)
}

/// The disks (`vda`) whose partitions or file systems are mounted outside a directory.
pub(super) fn mounted_outside(root: &Path, kubelet: &Path) -> Vec<String> {
    let text = fs::read_to_string(root.join("proc/self/mounts")).unwrap_or_default();
    let outside = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (source, target) = (words.next()?, words.next()?);
        let name = source.strip_prefix("/dev/")?;
        (!Path::new(target).starts_with(kubelet)).then(|| name.to_owned())
    });
    let mut names: Vec<String> = outside.collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(disks: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, serial) in disks {
            let dir = root.path().join("sys/block").join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("serial"), serial).unwrap();
        }
        root
    }

    #[test]
    fn o6_foreign_disks_are_taken_off() {
        let id = "7a1d4b0e-3a6c-4b7e-9";
        let root =
            node(&[("vda", ""), ("vdb", id), ("vdc", "7a1d4b0e-3a6c-4b7e-8"), ("loop0", ""), ("sr0", "")]);
        // The root disk, and a volume that the server itself has mounted.
        assert_eq!(volume_limit(root.path(), None, |name| name == "vdc"), 26 - 2);
        assert_eq!(volume_limit(root.path(), Some(10), |_| false), 10 - 1);
        assert_eq!(volume_limit(root.path(), Some(1), |_| false), 1);
        assert_eq!(volume_limit(node(&[("sda", "")]).path(), None, |_| false), 255);
    }

    #[test]
    fn mounts_below_kubelet_are_the_pods() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        let text = "/dev/vda1 / ext4 rw 0 0\n/dev/vdb /var/lib/kubelet/x ext4 rw 0 0\n/dev/vdc /data xfs rw 0 0\nproc /proc proc rw 0 0\n";
        fs::write(root.path().join("proc/self/mounts"), text).unwrap();
        assert_eq!(mounted_outside(root.path(), Path::new("/var/lib/kubelet")), ["vda1", "vdc"]);
    }
}
