use std::io::{Seek as _, Write as _};
use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;

use super::super::loopdev;
use super::*;

fn probe(device: &File, size: u64, backing: Option<&File>) -> Result<Content> {
    super::probe(&Ctx::new(), device, size, &backing.map_or(Known::Nothing, Known::Holes))
}

/// A loop device over a sparse file; detached on drop.
struct Loop {
    device: PathBuf,
    backing: tempfile::NamedTempFile,
}

impl Loop {
    /// `None`, and why, when this process is not root.
    fn new(size: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skip: loop devices need root");
            return None;
        }
        let backing = tempfile::NamedTempFile::new().unwrap();
        backing.as_file().set_len(size).unwrap();
        Some(Self { device: loopdev::attach(backing.path(), false, loopdev::OURS).unwrap().0, backing })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = loopdev::detach(&self.device, || Ok(true));
    }
}

/// A sparse file with some bytes written at offsets.
fn image(size: u64, writes: &[(u64, &[u8])]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    for (offset, bytes) in writes {
        file.write_all_at(bytes, *offset).unwrap();
    }
    file
}

fn look(file: &File) -> Content {
    let size = file.metadata().unwrap().len();
    let with_holes = probe(file, size, Some(file)).unwrap();
    assert_eq!(with_holes, probe(file, size, None).unwrap(), "with and without knowing the holes");
    with_holes
}

#[test]
fn every_signature_of_the_table_is_found() {
    for s in SIGNATURES {
        let size = 8 << 20;
        let file = image(size, &[(s.at.offset(size).unwrap(), s.magic)]);
        let Content::Known { class, .. } = look(&file) else { panic!("{} was not found", s.name) };
        assert_eq!(class, s.class, "{}", s.name);
    }
}

#[test]
fn real_file_systems_are_told_by_name() {
    for (program, fs, size) in [
        ("mkfs.ext4", "ext4", 16 << 20),
        ("mkfs.ext3", "ext3", 16 << 20),
        ("mkfs.ext2", "ext2", 16 << 20),
        ("mkfs.xfs", "xfs", 310 << 20),
        ("mkfs.btrfs", "btrfs", 128 << 20),
        ("mkswap", "swap space", 1 << 20),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        match Command::new(program).arg("-q").arg(file.path()).output() {
            Ok(made) if made.status.success() || program == "mkswap" => {}
            other => {
                eprintln!("skip: {program}: {other:?}");
                continue;
            }
        }
        if program == "mkswap" {
            Command::new(program).arg(file.path()).output().unwrap();
        }
        let Content::Known { name, .. } = look(file.as_file()) else { panic!("{fs} was not found") };
        assert_eq!(name, fs);
    }
}

#[test]
fn an_mbr_needs_a_plausible_partition() {
    let mut sector = [0; 512];
    sector[510..].copy_from_slice(b"\x55\xaa");
    assert!(matches!(look(&image(1 << 20, &[(0, &sector)])), Content::Unknown { offset: 510, .. }));
    sector[446 + 4] = 0x83;
    sector[446 + 12] = 1;
    assert!(matches!(
        look(&image(1 << 20, &[(0, &sector)])),
        Content::Known { class: Class::PartitionTable, .. }
    ));
}

#[test]
fn a_zfs_label_is_told_by_any_slot_of_its_ring() {
    for magic in [b"\x0c\xb1\xba\0\0\0\0\0", b"\0\0\0\0\0\xba\xb1\x0c"] {
        for slot in [1, 8, 77, 127] {
            let found = look(&image(1 << 20, &[(ZFS_RING.start + slot * 1024, magic)]));
            assert_eq!(found.describe(), "ZFS", "slot {slot}");
        }
        let beyond = look(&image(1 << 20, &[(ZFS_RING.end, magic)]));
        assert!(matches!(beyond, Content::Unknown { .. }), "{beyond:?}");
    }
}

#[test]
fn blank_devices_of_odd_sizes() {
    for size in [0, 512, 1024, 4096 + 512, 300 << 20] {
        assert_eq!(look(&image(size, &[])), Content::Blank, "{size} bytes");
    }
    assert_eq!(look(&image(1 << 20, &[(0, &vec![0; 1 << 20])])), Content::Blank, "written zeros");
}

#[test]
fn one_sector_that_is_not_zero_in_the_middle_of_a_large_sparse_device() {
    let size = 2 << 30;
    let file = image(size, &[(size / 2 + 512, &[7; 512])]);
    let found = probe(&file, size, Some(&file)).unwrap();
    assert!(matches!(found, Content::Unknown { offset, .. } if offset == size / 2 + 512), "{found:?}");
    assert!(found.describe().contains("07 07 07"));
}

#[test]
fn what_cannot_be_read_is_refused_and_not_blank() {
    let mut file = image(1 << 20, &[]);
    file.seek(std::io::SeekFrom::Start(0)).unwrap();
    // The device says two MiB, but there is one: reads past it fail as they do on a broken disk.
    let error = probe(&file, 2 << 20, None).unwrap_err();
    assert_eq!(error.label(), "refused");
    assert!(
        error.to_string().contains("could not be read at byte")
            && error.to_string().contains("not formatting")
    );
    file.flush().unwrap();
}

#[test]
fn what_a_device_has_not_written_to_its_file_yet_is_not_blank() {
    let size = 1 << 30;
    let Some(bench) = Loop::new(size) else { return };
    let writer = File::options().write(true).open(&bench.device).unwrap();
    // In the page cache of the device alone: its file still has a hole there.
    writer.write_all_at(&[9; 512], size / 2).unwrap();
    let found = probe(&File::open(&bench.device).unwrap(), size, Some(bench.backing.as_file())).unwrap();
    assert!(matches!(found, Content::Unknown { offset, .. } if offset == size / 2), "{found:?}");
    drop(writer);
}

#[test]
fn a_device_longer_than_its_file_is_refused() {
    let Some(bench) = Loop::new(64 << 20) else { return };
    // Signatures at the end are read first, so the refusal may be for those; neither way is it blank.
    bench.backing.as_file().set_len(1 << 20).unwrap();
    let device = File::open(&bench.device).unwrap();
    let error = probe(&device, 64 << 20, Some(bench.backing.as_file())).unwrap_err();
    assert_eq!(error.label(), "refused", "{error}");
    let error = scan::settle(&device, bench.backing.as_file(), 64 << 20).unwrap_err().to_string();
    assert!(error.contains("has 1048576 bytes, its device 67108864"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_single_byte_anywhere_is_never_blank(offset in 0_u64..1 << 20, byte in 1_u8..) {
        prop_assert_ne!(look(&image(1 << 20, &[(offset, &[byte])])), Content::Blank);
    }
}

/// A copy of a superblock is found where the original and all around it are gone.
#[test]
fn copies_of_superblocks_are_found_where_the_first_is_gone() {
    for (program, options, fs, size) in [
        ("mkfs.ext4", &["-b", "1024"][..], "ext4", 64 << 20),
        ("mkfs.ext4", &["-b", "2048"], "ext4", 300 << 20),
        ("mkfs.ext4", &["-b", "4096"], "ext4", 1 << 30),
        ("mkfs.ext2", &["-b", "4096"], "ext4", 1 << 30),
        ("mkfs.xfs", &[], "xfs", 310 << 20),
        ("mkfs.xfs", &["-d", "agcount=7"], "xfs", 3 << 30),
        ("mkfs.btrfs", &[], "btrfs", 300 << 20),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        match Command::new(program).args(options).arg("-q").arg(file.path()).output() {
            Ok(made) if made.status.success() => {}
            other => {
                eprintln!("skip: {program}: {other:?}");
                continue;
            }
        }
        // The ends go, as `wipefs` and a careless `dd` leave it.
        for at in [0, size - (4 << 20)] {
            file.as_file().write_all_at(&vec![0; 4 << 20], at).unwrap();
        }
        for known in [Known::Vouched, Known::Nothing, Known::Holes(file.as_file())] {
            let found = super::probe(&Ctx::new(), file.as_file(), size, &known).unwrap();
            assert!(
                matches!(found, Content::Remains { name, .. } if name == fs),
                "{program} {options:?} {known:?}: {found:?}"
            );
        }
    }
}

#[test]
fn a_file_system_that_its_mkfs_has_not_completed_is_no_file_system() {
    let torn = image(1 << 20, &[(0, b"XFSB"), (126, &[1])]);
    assert_eq!(look(&torn), Content::Unfinished { name: "xfs" });
    let torn = image(1 << 20, &[(0x1_0040, b"!BHRfS_M")]);
    assert_eq!(look(&torn), Content::Unfinished { name: "btrfs" });
}

/// What a server has not stored is not read, and what it has stored is read whole.
#[test]
fn only_what_is_stored_is_read_and_all_of_that() {
    let size = 1 << 30;
    let file = image(size, &[(8 << 20, &[7])]);
    let probe = |ranges: &[(u64, u64)]| {
        super::probe(&Ctx::new(), &file, size, &Known::Stored(ranges.to_vec())).unwrap()
    };
    assert_eq!(probe(&[]), Content::Blank);
    let found = probe(&[(0, 4 << 20), (8 << 20, 12 << 20)]);
    assert!(matches!(found, Content::Unknown { offset, .. } if offset == 8 << 20), "{found:?}");
}
