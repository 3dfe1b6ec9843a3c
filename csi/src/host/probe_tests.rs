use std::io::{Seek as _, Write as _};
use std::process::Command;

use proptest::prelude::*;

use super::*;

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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_single_byte_anywhere_is_never_blank(offset in 0_u64..1 << 20, byte in 1_u8..) {
        prop_assert_ne!(look(&image(1 << 20, &[(offset, &[byte])])), Content::Blank);
    }
}
