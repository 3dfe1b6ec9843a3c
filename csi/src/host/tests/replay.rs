//! Copies of file systems that were in use, staged read-only.

use super::*;

const READERS: AccessMode = AccessMode::MultiNodeReaderOnly;

impl Bench {
    /// Another volume: this one's file as it is now, its file system mounted.
    fn copied_in_use(&self) -> Self {
        let copy = Bench::new(fs::metadata(self.backing()).unwrap().len()).unwrap();
        fs::copy(self.backing(), copy.backing()).unwrap();
        copy
    }

    fn is_read_only(&self) -> bool {
        device::is_read_only(&loopdev::find(self.backing()).unwrap().unwrap())
    }
}

/// Stages a file system, writes a file, and copies the disk while it is mounted.
fn in_use(fs_type: &str) -> Option<Bench> {
    let bench = Bench::new(if fs_type == "xfs" { 300 } else { 256 } * MIB)?;
    bench.stage(fs_type).unwrap();
    for name in ["before", "after"] {
        let file = File::create(bench.path("staging").join(name)).unwrap();
        file.write_all_at(name.as_bytes(), 0).unwrap();
        file.sync_all().unwrap();
    }
    let mut copy = bench.copied_in_use();
    copy.volume.formatted = Some(fs_type.into());
    // The kernel mounts no second btrfs of the same id.
    bench.unstage().unwrap();
    Some(copy)
}

fn has_both(copy: &Bench) {
    for name in ["before", "after"] {
        assert_eq!(fs::read(copy.path("staging").join(name)).unwrap(), name.as_bytes());
    }
    assert!(fs::write(copy.path("staging").join("new"), b"x").is_err(), "it is read-only");
}

#[test]
fn a_copy_of_a_file_system_in_use_is_staged_read_only() {
    for fs_type in ["ext4", "xfs", "btrfs"] {
        let Some(copy) = in_use(fs_type) else { return };
        let capability = mount_capability(fs_type, READERS);
        copy.stage_as(&capability).unwrap();
        has_both(&copy);
        assert!(copy.is_read_only(), "{fs_type}: the device takes writes");
        // The same call again, and once more from the start: nothing is left to be replayed.
        copy.stage_as(&capability).unwrap();
        copy.unstage().unwrap();
        let before = fs::read(copy.backing()).unwrap();
        copy.stage_as(&capability).unwrap();
        has_both(&copy);
        copy.unstage().unwrap();
        assert!(before == fs::read(copy.backing()).unwrap(), "{fs_type}: written to without need");
    }
}

/// Killed between the replay and the read-only attachment.
#[test]
fn a_device_that_an_interrupted_replay_left_writable_is_attached_anew() {
    let Some(copy) = in_use("ext4") else { return };
    copy.attach();
    assert!(!copy.is_read_only());
    copy.stage_as(&mount_capability("ext4", READERS)).unwrap();
    assert!(copy.is_read_only());
    has_both(&copy);
    copy.unstage().unwrap();
}

/// What a replay cannot mend is refused, and the device goes.
#[test]
fn a_journal_that_is_damaged_is_refused() {
    let Some(copy) = in_use("ext4") else { return };
    // The journal's superblock (JBD2_MAGIC_NUMBER, JBD2_SUPERBLOCK_V2).
    let magic = [0xC0, 0x3B, 0x39, 0x98, 0, 0, 0, 4];
    let disk = fs::read(copy.backing()).unwrap();
    let journal = disk.chunks(1024).position(|block| block.starts_with(&magic)).unwrap();
    let file = fs::OpenOptions::new().write(true).open(copy.backing()).unwrap();
    file.write_all_at(&[0xA5; 1024], journal as u64 * 1024).unwrap();
    let refused = copy.stage_as(&mount_capability("ext4", READERS)).unwrap_err();
    assert_eq!(refused.label(), "refused", "{refused}");
    assert_eq!(loopdev::find(copy.backing()).unwrap(), None);
}
