use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use provisioners::{Access, Ctx, Permit};

use super::super::grow::fs_size;
use super::super::probe::Known;
use super::super::runner::Tools;
use super::mkfs::written;
use super::*;

fn probe(device: &File, size: u64, backing: Option<&File>) -> Result<Content> {
    super::super::probe::probe(&Ctx::new(), device, size, &backing.map_or(Known::Nothing, Known::Holes))
}

/// The rule for a volume `v`.
fn plan(content: &Content, fs: &str, volume: &NodeVolume, read_only: bool) -> Result<Plan> {
    super::plan(content, volume, Asked { id: "v", fs, read_only })
}

pub(super) fn volume(formatted: Option<&str>) -> NodeVolume {
    NodeVolume {
        access: Access::LoopFile { path: "/x".into() },
        size: Some(1 << 20),
        fs_type: None,
        mkfs_options: Vec::new(),
        root_mode: None,
        formatted: formatted.map(Into::into),
        raw: false,
        vouched: None,
        permit: Permit { code: None, how: "say CODE".into() },
    }
}

fn fs(name: &'static str) -> Content {
    Content::Known { name, class: Class::FileSystem, inside: None }
}

#[test]
fn the_wanted_file_system_is_mounted() {
    assert_eq!(plan(&fs("xfs"), "xfs", &volume(Some("xfs")), false).unwrap(), Plan::Mount);
    let accepted = plan(&fs("xfs"), "xfs", &volume(None), false).unwrap();
    assert_eq!(accepted, Plan::Accept, "restored, or mkfs went on after its driver was killed");
}

#[test]
fn anything_else_is_refused_by_name() {
    let luks = Content::Known { name: "LUKS", class: Class::Container, inside: None };
    for (content, word) in [(fs("ext4"), "ext4"), (luks, "LUKS")] {
        let error = plan(&content, "xfs", &volume(None), false).unwrap_err();
        assert_eq!(error.label(), "refused");
        assert!(error.to_string().contains(word) && error.to_string().contains("not formatting"), "{error}");
    }
}

/// A permission fits what was seen and nothing else, and never a complete superblock or a raw block device.
#[test]
fn what_may_hold_data_is_refused_and_an_operator_can_give_up_exactly_that() {
    let unknown = |offset| Content::Unknown { offset, bytes: "de ad".into() };
    let said = |content: &Content, volume: &NodeVolume| {
        let error = plan(content, "xfs", volume, false).unwrap_err().to_string();
        error.rsplit_once("say ").map(|(_, code)| code.to_owned()).ok_or(error)
    };
    let error = plan(&unknown(4096), "xfs", &volume(None), false).unwrap_err().to_string();
    assert!(error.contains("byte 4096") && error.contains("de ad"), "{error}");
    let mut permitted = volume(None);
    permitted.permit.code = Some(said(&unknown(4096), &volume(None)).unwrap());
    assert_eq!(plan(&unknown(4096), "xfs", &permitted, false).unwrap(), Plan::Format { over: true });
    assert!(plan(&unknown(8192), "xfs", &permitted, false).is_err(), "it was said of something else");
    assert!(plan(&unknown(4096), "xfs", &permitted, true).is_err(), "read-only");
    for content in [Content::Unfinished { name: "xfs" }, Content::Remains { name: "ext4", offset: 1 }] {
        permitted.permit.code = Some(said(&content, &volume(None)).unwrap());
        assert_eq!(plan(&content, "xfs", &permitted, false).unwrap(), Plan::Format { over: true });
    }
    assert!(said(&fs("ext4"), &volume(None)).is_err(), "no code for a complete file system");
    let raw = NodeVolume { raw: true, ..volume(None) };
    let error = said(&Content::Blank, &raw).unwrap_err();
    assert!(error.contains("used as a raw block device before"), "{error}");
}

#[test]
fn blank_is_formatted_once() {
    let blank = |v: &NodeVolume, read_only| plan(&Content::Blank, "xfs", v, read_only);
    assert_eq!(blank(&volume(None), false).unwrap(), Plan::Format { over: false });
    assert!(blank(&volume(None), true).unwrap_err().to_string().contains("read-only"));
    let again = blank(&volume(Some("xfs")), false).unwrap_err().to_string();
    assert!(again.contains("formatted with xfs before") && again.contains("not formatting"), "{again}");
}

#[test]
fn a_stamp_is_ours_only_on_its_own_volume() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let (ours, theirs) = (Stamp::new("v", "xfs"), Stamp::new("w", "xfs"));
    ours.write(&file).unwrap();
    let found = probe(&file, 1 << 20, None).unwrap();
    assert_eq!(found, Content::Stamped(ours.clone()));
    assert_eq!(plan(&found, "xfs", &volume(None), false).unwrap(), Plan::Format { over: false });
    assert!(!theirs.clear(&file, 1 << 20).unwrap(), "another's is not taken away");
    theirs.write(&file).unwrap();
    let found = probe(&file, 1 << 20, None).unwrap();
    let error = plan(&found, "xfs", &volume(None), false).unwrap_err().to_string();
    assert!(error.contains("of which it is a copy"), "{error}");
    assert!(theirs.clear(&file, 1 << 20).unwrap());
    // One bit wrong, or anything beside it: it is no stamp, or not all there is.
    ours.write(&file).unwrap();
    file.write_all_at(b"x", 600).unwrap();
    assert!(matches!(probe(&file, 1 << 20, None).unwrap(), Content::Unknown { offset: 600, .. }));
    file.write_all_at(&[0], 600).unwrap();
    file.write_all_at(b"X", 40).unwrap();
    assert!(matches!(probe(&file, 1 << 20, None).unwrap(), Content::Unknown { offset: 0, .. }));
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
        let error = Mkfs(&tools).check(&wish).unwrap_err();
        assert_eq!(error.label(), "invalid", "{option}: {error}");
    }
}

/// The out-of-memory killer, or the end of the driver's container: the call can be repeated, nothing is wrong with it.
#[test]
fn a_mkfs_that_was_killed_is_unavailable() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("mkfs.ext4");
    std::fs::write(&program, "#!/bin/sh\nkill -9 $$\n").unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let tools = Tools::only("mkfs.ext4", &program);
    let wish = Wish { device: Path::new("/dev/null"), fs: "ext4", options: &[] };
    let lock = File::open("/dev/null").unwrap();
    let error = Mkfs(&tools).make(&Ctx::new(), &wish, lock, false).unwrap_err();
    assert!(matches!(&error, Error::Unavailable(text) if text.contains("by a signal")), "{error}");
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
    let wish = Wish { device: file.path(), fs, options: &options };
    let lock = File::open(file.path()).unwrap();
    let made = Mkfs(&tools).make(&Ctx::new(), &wish, lock, false);
    let made = made.and_then(|()| written(file.as_file(), size, &wish));
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
        assert_eq!(plan(&content, fs, &volume(Some(fs)), false).unwrap(), Plan::Mount);
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
        let plan = |v: &NodeVolume, fs| plan(&content, fs, v, false);
        assert_eq!(plan(&volume(Some(fs)), fs).unwrap(), Plan::Mount, "{fs} {offset}");
        // Whose volume it is must be known, and which file system: else it may be the other way round.
        for (formatted, wanted) in [(None, fs), (Some("ext3"), fs), (Some(fs), "ext3")] {
            let error = plan(&volume(formatted), wanted).unwrap_err().to_string();
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
    let error = plan(&content, "ext4", &volume(Some("ext4")), false).unwrap_err().to_string();
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
