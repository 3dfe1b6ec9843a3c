use std::os::unix::fs::FileExt as _;

use provisioners::Access;

use super::super::grow::fs_size;
use super::*;

fn volume(formatted: Option<&str>, formatting: bool) -> NodeVolume {
    NodeVolume {
        access: Access::LoopFile { path: "/x".into() },
        size: Some(1 << 20),
        fs_type: None,
        mkfs_options: Vec::new(),
        root_mode: None,
        formatted: formatted.map(Into::into),
        formatting,
    }
}

fn fs(name: &'static str) -> Content {
    Content::Known { name, class: Class::FileSystem, inside: None }
}

#[test]
fn the_wanted_file_system_is_mounted() {
    let plan = |v: &NodeVolume| plan(&fs("xfs"), "xfs", v, false, "v").unwrap();
    assert_eq!(plan(&volume(Some("xfs"), false)), Plan::Mount);
    assert_eq!(plan(&volume(None, false)), Plan::Accept, "restored, or the note was lost");
    assert_eq!(plan(&volume(None, true)), Plan::Format { force: true }, "mkfs was interrupted");
}

#[test]
fn anything_else_is_refused_by_name() {
    let luks = Content::Known { name: "LUKS", class: Class::Container, inside: None };
    for (content, word) in [(fs("ext4"), "ext4"), (luks, "LUKS")] {
        for formatting in [false, true] {
            let error = plan(&content, "xfs", &volume(None, formatting), false, "v").unwrap_err();
            assert_eq!(error.label(), "refused");
            assert!(
                error.to_string().contains(word) && error.to_string().contains("not formatting"),
                "{error}"
            );
        }
    }
}

#[test]
fn unknown_data_is_refused_unless_it_is_our_own_unfinished_format() {
    let unknown = Content::Unknown { offset: 4096, bytes: "de ad".into() };
    let error = plan(&unknown, "xfs", &volume(None, false), false, "v").unwrap_err().to_string();
    assert!(error.contains("byte 4096") && error.contains("de ad"), "{error}");
    assert_eq!(plan(&unknown, "xfs", &volume(None, true), false, "v").unwrap(), Plan::Format { force: true });
    assert!(plan(&unknown, "xfs", &volume(Some("xfs"), true), false, "v").is_err(), "it was completed once");
}

#[test]
fn a_read_only_stage_does_not_finish_a_format() {
    let unknown = Content::Unknown { offset: 4096, bytes: "de ad".into() };
    for content in [fs("xfs"), unknown, Content::Blank] {
        let error = plan(&content, "xfs", &volume(None, true), true, "v").unwrap_err();
        assert_eq!(error.label(), "refused", "{content:?}");
    }
}

#[test]
fn blank_is_formatted_once() {
    let plan = |v: &NodeVolume, read_only| plan(&Content::Blank, "xfs", v, read_only, "v");
    assert_eq!(plan(&volume(None, false), false).unwrap(), Plan::Format { force: false });
    assert!(plan(&volume(None, false), true).unwrap_err().to_string().contains("read-only"));
    let again = plan(&volume(Some("xfs"), false), false).unwrap_err().to_string();
    assert!(
        again.contains("formatted with xfs before") && again.contains("not formatting it again"),
        "{again}"
    );
}

#[test]
fn only_offered_file_systems_are_taken() {
    assert_eq!(desired("", None).unwrap(), "ext4");
    assert_eq!(desired("", Some("btrfs")).unwrap(), "btrfs");
    assert_eq!(desired("xfs", Some("btrfs")).unwrap(), "xfs");
    assert!(desired("ntfs", None).unwrap_err().to_string().contains("ext4, xfs, btrfs"));
}

#[test]
fn options_that_name_a_path_are_refused() {
    let tools = Tools::find(std::time::Duration::from_secs(1));
    for (fs, option) in [
        ("ext4", "/dev/sda"),
        ("btrfs", "dev/sda"),
        ("btrfs", "../dev/sda"),
        ("xfs", "logdev=/dev/sda,size=64m"),
        ("xfs", "-llogdev=/dev/sda"),
        ("ext4", "device=/dev/sda"),
        ("ext4", "a\0b"),
    ] {
        let options = [option.to_owned()];
        let wish = Wish { device: Path::new("/nonexistent"), fs, options: &options };
        let error = mkfs(&tools, &Ctx::new(), &wish, false).unwrap_err();
        assert_eq!(error.label(), "invalid", "{option}: {error}");
    }
}

/// Makes a file system in a sparse file of `size` bytes, if its mkfs is installed.
fn make(fs: &str, size: u64, options: &[&str]) -> Option<(tempfile::NamedTempFile, Result<()>)> {
    let tools = Tools::find(std::time::Duration::from_secs(60));
    let program = SUPPORTED.iter().zip(["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"]).find(|(s, _)| **s == fs)?.1;
    if let Err(missing) = tools.path(program) {
        eprintln!("skip: {missing}");
        return None;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    let options: Vec<_> = options.iter().map(|&o| o.to_owned()).collect();
    let made = mkfs(&tools, &Ctx::new(), &Wish { device: file.path(), fs, options: &options }, false);
    Some((file, made))
}

#[test]
fn each_file_system_is_made_with_its_options_and_tells_its_size() {
    for (fs, size, options) in [
        ("ext4", 64 << 20, &["-b", "1024", "-L", "data"][..]),
        ("ext4", 64 << 20, &["-b", "4096", "-O", "^64bit"]),
        ("ext4", 64 << 20, &["-O", "^has_journal"]),
        ("xfs", 310 << 20, &["-m", "reflink=0"]),
        ("xfs", 310 << 20, &["-b", "size=1024"]),
        ("btrfs", 128 << 20, &["-m", "single"]),
    ] {
        let Some((file, made)) = make(fs, size, options) else { continue };
        made.unwrap();
        assert_eq!(fs_size(file.as_file(), fs).unwrap(), Some(size), "{fs} {options:?}");
        let content = probe(file.as_file(), size, Some(file.as_file())).unwrap();
        assert_eq!(plan(&content, fs, &volume(Some(fs), false), false, "v").unwrap(), Plan::Mount);
    }
}

#[test]
fn a_signature_in_a_file_of_a_volume_that_was_formatted_is_its_data() {
    for (fs, offset) in [
        ("xfs", 0x4_0000),
        ("ext4", 0x10_0000),
        ("xfs", (310 << 20) - 0x2000),
        ("btrfs", (310 << 20) - 0x2000),
    ] {
        let magic: &[u8] = if offset > 0x10_0000 { b"\xfc\x4e\x2b\xa9" } else { b"SKUL\xba\xbe" };
        let Some((file, made)) = make(fs, 310 << 20, &[]) else { continue };
        made.unwrap();
        file.as_file().write_all_at(magic, offset).unwrap();
        let content = probe(file.as_file(), 310 << 20, Some(file.as_file())).unwrap();
        let plan = |v: &NodeVolume, fs| plan(&content, fs, v, false, "v");
        assert_eq!(plan(&volume(Some(fs), false), fs).unwrap(), Plan::Mount, "{fs} {offset}");
        // Whose volume it is must be known, and which file system: else it may be the other way round.
        for (formatted, formatting, wanted) in
            [(None, false, fs), (None, true, fs), (Some("ext3"), false, fs), (Some(fs), false, "ext3")]
        {
            let error = plan(&volume(formatted, formatting), wanted).unwrap_err().to_string();
            assert!(error.contains("not formatting"), "{error}");
        }
    }
}

#[test]
fn counts_in_an_ext4_superblock_are_no_signature() {
    // 11,080 inodes have hfs+'s two bytes; 875,827,200 blocks (3.3 TiB) nilfs2's. The tables for so many would take
    // minutes to make, so that count is written.
    for (inodes, blocks) in [("11080", None), ("2048", Some(0x3434_0000_u32))] {
        let Some((file, made)) = make("ext4", 40 << 20, &["-N", inodes, "-b", "1024"]) else { continue };
        made.unwrap();
        if let Some(blocks) = blocks {
            file.as_file().write_all_at(&blocks.to_le_bytes(), 0x404).unwrap();
        }
        let mut start = [0; 8];
        file.as_file().read_exact_at(&mut start, 0x400).unwrap();
        assert!(start.starts_with(b"H+") || start.ends_with(&[0x34, 0x34]), "{start:x?} is no such count");
        let content = probe(file.as_file(), 40 << 20, Some(file.as_file())).unwrap();
        assert_eq!(content.describe(), "a file system (ext4)", "{start:x?}");
    }
}

#[test]
fn a_raid_member_is_not_mounted_though_its_file_system_shows() {
    let Some((file, made)) = make("ext4", 64 << 20, &[]) else { return };
    made.unwrap();
    // The device is larger than what it holds: RAID keeps its superblock after the end.
    let size = 65 << 20;
    file.as_file().set_len(size).unwrap();
    file.as_file().write_all_at(b"\xfc\x4e\x2b\xa9", size - 0x2000).unwrap();
    let content = probe(file.as_file(), size, Some(file.as_file())).unwrap();
    let error = plan(&content, "ext4", &volume(Some("ext4"), false), false, "v").unwrap_err().to_string();
    assert!(error.contains("Linux RAID (1.0)"), "{error}");
}

#[test]
fn a_size_beyond_32_bits_of_blocks_is_read_whole() {
    let size = 17 << 40;
    let file = tempfile::tempfile().unwrap();
    let mut superblock = [0; 1024];
    superblock[0x38..0x3a].copy_from_slice(b"\x53\xef");
    superblock[0x18] = 2;
    superblock[0x60] = 0x80;
    superblock[0x04..0x08]
        .copy_from_slice(&u32::try_from((size >> 12) & 0xffff_ffff_u64).unwrap().to_le_bytes());
    superblock[0x150..0x154].copy_from_slice(&u32::try_from(size >> 44).unwrap().to_le_bytes());
    file.write_all_at(&superblock, 1024).unwrap();
    assert_eq!(fs_size(&file, "ext4").unwrap(), Some(size));
    assert_eq!(fs_size(&file, "vfat").unwrap(), None);
}

#[test]
fn a_mkfs_that_makes_nothing_or_another_kind_is_an_error() {
    for (fs, options, word) in [
        ("ext4", &["-n"][..], "holds nothing"),
        ("ext4", &["-t", "ext3"], "ext3"),
        ("xfs", &["-N"], "holds nothing"),
    ] {
        let Some((_file, made)) = make(fs, 310 << 20, options) else { continue };
        let error = made.unwrap_err();
        assert_eq!(error.label(), "invalid", "{error}");
        assert!(error.to_string().contains(word) && error.to_string().contains("mkfsOptions"), "{error}");
    }
}

#[test]
fn a_failed_mkfs_tells_what_it_wrote() {
    let Some((_file, made)) = make("xfs", 310 << 20, &["--no-such-option"]) else { return };
    let error = made.unwrap_err().to_string();
    assert!(error.contains("mkfs.xfs failed with exit code"), "{error}");
    assert!(error.contains("mkfs.xfs: unrecognized option '--no-such-option'"), "{error}");
}
