//! A thousand devices that hold something: none is formatted.

use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;

use super::super::signatures::SIGNATURES;
use super::bench::{BLOCK, End, Notes, Player, Writes, put, record, recorded, sparse};
use super::tests::volume;
use super::*;

const SIZE: u64 = 320 << 20;

/// A small generator (xorshift): the devices are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % n as u64).unwrap()
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| u8::try_from(self.below(255) + 1).unwrap()).collect()
    }
}

/// What real programs write, by name; those that are not installed are left out.
fn originals() -> Vec<(String, Writes)> {
    let programs: [(&str, &[&str]); 13] = [
        ("mkfs.ext4", &["-qF"]),
        ("mkfs.ext4", &["-qF", "-b", "1024"]),
        ("mkfs.ext3", &["-qF"]),
        ("mkfs.ext2", &["-qF"]),
        ("mkfs.xfs", &["-q"]),
        ("mkfs.btrfs", &["-q"]),
        ("mkfs.vfat", &[]),
        ("mkfs.ntfs", &["-FqQ"]),
        ("mkfs.exfat", &[]),
        ("mkfs.f2fs", &["-q"]),
        ("mkswap", &[]),
        (
            "cryptsetup",
            &[
                "luksFormat",
                "-q",
                "--type",
                "luks2",
                "--pbkdf-force-iterations",
                "4",
                "--pbkdf-memory",
                "32",
                "--key-file",
                "/etc/hostname",
            ],
        ),
        ("mke2fs", &["-qF", "-O", "journal_dev"]),
    ];
    let mut all = Vec::new();
    for (program, options) in programs {
        match record(program, options, SIZE) {
            Some(writes) => all.push((format!("{program} {}", options.join(" ")), writes)),
            None => eprintln!("skip: {program} is not installed"),
        }
    }
    // ZFS, LVM, RAID, partition tables and all others by what they are told by.
    all.extend(
        SIGNATURES.iter().filter_map(|s| {
            Some((format!("{} by hand", s.name), vec![(s.at.offset(SIZE)?, s.magic.to_vec())]))
        }),
    );
    let mut mbr = vec![0; 512];
    (mbr[450], mbr[458], mbr[510], mbr[511]) = (0x83, 1, 0x55, 0xaa);
    all.push(("MBR by hand".into(), vec![(0, mbr)]));
    all
}

/// What is left of something after an accident.
fn damaged(writes: &Writes, random: &mut Random) -> Writes {
    let all = writes.len();
    match random.below(7) {
        // As it is.
        0 => writes.clone(),
        // A mkfs that was torn at some write: in order, from behind, or with writes reordered on their way.
        1 => writes[..=random.below(all)].to_vec(),
        2 => writes[random.below(all)..].to_vec(),
        3 => {
            let mut kept: Writes = writes.iter().filter(|_| random.below(2) == 0).cloned().collect();
            if kept.is_empty() {
                kept.push(writes[random.below(all)].clone());
            }
            kept
        }
        // The head, or head and tail, were cleared.
        4 => writes.iter().filter(|(at, _)| *at >= 64 << 10).cloned().collect(),
        5 => writes.iter().filter(|(at, _)| *at >= 4 << 20 && *at < SIZE - (4 << 20)).cloned().collect(),
        // A torn sector in the midst.
        _ => {
            let mut kept = writes.clone();
            let length = kept[0].1.len();
            kept[0].1.truncate(512.min(length));
            kept
        }
    }
}

/// Whether the device held anything, and what became of it.
fn stage(
    writes: &Writes,
    fs: &str,
    made: &Writes,
    holes: bool,
    formatted: Option<&str>,
) -> (bool, Result<Ready>) {
    let file = sparse(SIZE);
    put(file.as_file(), writes);
    let before = recorded(file.as_file(), SIZE);
    let content = !before.is_empty();
    let volume = volume(formatted);
    let job = Job {
        asked: Asked { id: "v", fs, read_only: false },
        volume: &volume,
        device: file.path(),
        backing: holes.then_some(file.as_file()),
    };
    let maker = Player { writes: made, end: End::Done, may: &|| !content, called: Mutex::default() };
    let ready = prepare(&provisioners::Ctx::new(), &job, &maker, &Notes::default());
    assert!(!content || before == recorded(file.as_file(), SIZE), "the content was changed");
    assert_eq!(*maker.called.lock().unwrap(), matches!(ready, Ok(Ready::Made)));
    (content, ready)
}

#[test]
fn a_thousand_devices_with_content_are_not_formatted() {
    let originals = originals();
    let of = |program: &str| originals.iter().find(|(name, _)| name.starts_with(program)).map(|(_, w)| w);
    let (Some(ext4), Some(xfs)) = (of("mkfs.ext4"), of("mkfs.xfs").or(of("mkfs.ext4"))) else { return };
    let mut random = Random(0x5eed_cafe);
    let (mut devices, mut refused, mut found) = (0, 0, 0);
    while devices < 1000 {
        let (name, writes) = &originals[random.below(originals.len())];
        let mut writes = damaged(writes, &mut random);
        if random.below(3) == 0 {
            // Raw data somewhere, as a database without a file system has it.
            let at = random.below(usize::try_from(SIZE).unwrap() - BLOCK) as u64;
            let length = 1 + random.below(BLOCK);
            writes.push((at, random.bytes(length)));
        }
        let (fs, made) = if random.below(2) == 0 { ("ext4", ext4) } else { ("xfs", xfs) };
        // Without holes all is read, which takes its time.
        let holes = random.below(40) != 0;
        let formatted = [None, None, Some("ext4"), Some("xfs")][random.below(4)];
        let (content, ready) = stage(&writes, fs, made, holes, formatted);
        if !content {
            continue;
        }
        devices += 1;
        match ready {
            Ok(Ready::Made) => panic!("{name}: formatted"),
            Ok(Ready::Found) => found += 1,
            Err(error) => {
                assert_eq!(error.label(), "refused", "{name}: {error}");
                assert!(error.to_string().contains("not formatting"), "{name}: {error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 500 && found > 0, "{refused} refused, {found} accepted");
}

/// Every write at which the making of a file system can be torn: with all before it, with it alone, and with all after it.
#[test]
fn a_mkfs_torn_at_any_write_is_not_begun_again_over_what_it_wrote() {
    for (program, options, fs) in
        [("mkfs.ext4", &["-qF"][..], "ext4"), ("mkfs.xfs", &["-q"], "xfs"), ("mkfs.btrfs", &["-q"], "btrfs")]
    {
        let Some(writes) = record(program, options, SIZE) else { continue };
        for n in 0..writes.len() {
            for torn in [&writes[..=n], &writes[n..=n], &writes[n..]] {
                match stage(&torn.to_vec(), fs, &writes, true, None) {
                    (_, Ok(Ready::Made)) => {
                        panic!("{program}: formatted over {n} of {} writes", writes.len())
                    }
                    (_, Ok(Ready::Found) | Err(_)) => {}
                }
            }
        }
    }
}

#[test]
fn a_blank_device_is_formatted() {
    let Some(ext4) = record("mkfs.ext4", &["-qF"], SIZE) else { return };
    for holes in [false, true] {
        assert_eq!(stage(&Writes::new(), "ext4", &ext4, holes, None).1.unwrap(), Ready::Made);
    }
    // Where it was formatted once it is not blank by itself.
    assert!(stage(&Writes::new(), "ext4", &ext4, true, Some("ext4")).1.is_err());
    let file = sparse(SIZE);
    file.as_file().write_all_at(&[0; BLOCK], 0).unwrap();
    assert!(recorded(file.as_file(), SIZE).is_empty());
}
