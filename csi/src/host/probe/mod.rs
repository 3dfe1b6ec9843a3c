//! What is on a device: read by ourselves, because a program's "nothing found" and its "could not read" look alike.

mod backups;
mod scan;

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use provisioners::{Ctx, Error, Result};

pub use self::scan::each_chunk;
use super::format::{STAMP_BYTES, Stamp};
use super::grow;
use super::signatures::{self, Class, SIGNATURES, ZFS_RING};

/// Head and tail that are always read, in bytes.
const ENDS: u64 = 4 << 20;
/// Before this byte ext4 and xfs keep only their own tables.
const FILES: u64 = 8 << 10;
/// Before this byte btrfs keeps only its superblock.
const BTRFS_FILES: u64 = 1 << 20;
/// Where ext2, ext3 and ext4 have their superblock.
const EXT_SUPERBLOCK: std::ops::Range<u64> = 1024..2048;
/// `sb_inprogress` of xfs: mkfs has not ended.
const XFS_IN_PROGRESS: usize = 126;
/// Where btrfs has its magic.
const BTRFS_MAGIC: u64 = 0x1_0040;

/// What is known of where a device can hold data at all.
#[derive(Debug)]
pub enum Known<'a> {
    /// The sparse file behind it: its holes hold nothing.
    Holes(&'a File),
    /// Its server has stored only these ranges (from, to), in bytes.
    Stored(Vec<(u64, u64)>),
    /// Its backend vouches that it was made blank and never attached before.
    Vouched,
    /// Nothing: all of it is read.
    Nothing,
}

/// What a device holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Provably nothing: what was read is zero, and the rest is a hole.
    Blank,
    /// The stamp that we write before a format, and else provably nothing.
    Stamped(Stamp),
    /// A signature that we know.
    Known {
        /// What it belongs to, such as `xfs`.
        name: &'static str,
        /// Which kind of thing that is.
        class: Class,
        /// The file system whose superblock is there, too, when the signature stands where that keeps its files: the
        /// one may be what the other holds, such as an image of a LUKS device in a file.
        inside: Option<&'static str>,
    },
    /// A file system of which mkfs itself says that it is not complete.
    Unfinished {
        /// Its name.
        name: &'static str,
    },
    /// A copy of a superblock whose original is gone.
    Remains {
        /// The file system's name.
        name: &'static str,
        /// Where the copy is.
        offset: u64,
    },
    /// Bytes that are not zero and that we do not know.
    Unknown {
        /// The offset of the first of them.
        offset: u64,
        /// Some of them, in hexadecimal.
        bytes: String,
    },
}

impl Content {
    /// A text for a message.
    pub fn describe(&self) -> String {
        match self {
            Self::Blank => "nothing".into(),
            Self::Stamped(stamp) => format!("nothing but the stamp of a {} format that was begun", stamp.fs),
            Self::Unfinished { name } => format!("a {name} file system whose making was interrupted"),
            Self::Remains { name, offset } => {
                format!("what is left of a file system ({name}): a copy of its superblock at byte {offset}")
            }
            Self::Known { name, class: Class::FileSystem, .. } => format!("a file system ({name})"),
            Self::Known { name, .. } => (*name).into(),
            Self::Unknown { offset, bytes } => format!("unknown data at byte {offset} ({bytes})"),
        }
    }
}

/// Looks at a device of `size` bytes, with what is known of where it can hold data. What cannot be read is
/// [`Error::Refused`]: it is never taken for blank. Reading all of a large device takes its time: the operation's
/// deadline ends it.
pub fn probe(ctx: &Ctx, device: &File, size: u64, known: &Known<'_>) -> Result<Content> {
    if let Some(found) = signature(device, size)? {
        return Ok(found);
    }
    let stamp = Stamp::read(device, size)?;
    let skip = if stamp.is_some() { STAMP_BYTES } else { 0 };
    for range in ranges(device, size, known)? {
        if let Some(offset) = scan::first_nonzero(ctx, device, range, skip)? {
            return unknown(device, size, offset);
        }
    }
    if let Some((name, offset)) = backups::find(device, size)? {
        return Ok(Content::Remains { name, offset });
    }
    Ok(stamp.map_or(Content::Blank, Content::Stamped))
}

/// The ranges that must be read.
pub fn ranges(device: &File, size: u64, known: &Known<'_>) -> Result<Vec<(u64, u64)>> {
    Ok(match known {
        Known::Holes(file) => {
            scan::settle(device, file, size)?;
            scan::data_extents(file, size)?
        }
        Known::Stored(ranges) => {
            scan::flush(device)?;
            ranges.iter().map(|(from, to)| ((*from).min(size), (*to).min(size))).collect()
        }
        Known::Vouched if size > 2 * ENDS => vec![(0, ENDS), (size - ENDS, size)],
        Known::Vouched | Known::Nothing => vec![(0, size)],
    })
}

/// Unknown bytes; a copy of a superblock elsewhere says more.
fn unknown(device: &File, size: u64, offset: u64) -> Result<Content> {
    if let Some((name, offset)) = backups::find(device, size)? {
        return Ok(Content::Remains { name, offset });
    }
    let mut bytes = vec![0; usize::try_from((size - offset).min(16)).unwrap_or(16)];
    read(device, offset, &mut bytes)?;
    let bytes = bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
    Ok(Content::Unknown { offset, bytes })
}

/// What a device begins or ends with, if that is known; a few reads.
pub fn signature(device: &File, size: u64) -> Result<Option<Content>> {
    let mut head = vec![0; usize::try_from(size.min(2048)).unwrap_or(2048)];
    read(device, 0, &mut head)?;
    let ext = head.get(1024..).and_then(signatures::ext);
    for s in SIGNATURES {
        let Some(offset) = s.at.offset(size) else { continue };
        // What others have in these bytes, ext4 has its counts of inodes and blocks in.
        let counts = ext.is_some() && s.class == Class::FileSystem && EXT_SUPERBLOCK.contains(&offset);
        if counts || offset + s.magic.len() as u64 > size {
            continue;
        }
        let mut bytes = vec![0; s.magic.len()];
        read(device, offset, &mut bytes)?;
        if bytes == s.magic && s.name == "xfs" && head.get(XFS_IN_PROGRESS) == Some(&1) {
            return Ok(Some(Content::Unfinished { name: "xfs" }));
        }
        if bytes == s.magic {
            let inside = around(device, &head, ext, size, offset)?;
            return Ok(Some(Content::Known { name: s.name, class: s.class, inside }));
        }
    }
    if let Some(name) = ext {
        return Ok(Some(Content::Known { name, class: Class::FileSystem, inside: None }));
    }
    if size >= ZFS_RING.end {
        let mut ring = vec![0; usize::try_from(ZFS_RING.end - ZFS_RING.start).unwrap_or_default()];
        read(device, ZFS_RING.start, &mut ring)?;
        if signatures::is_zfs_ring(&ring) {
            return Ok(Some(Content::Known { name: "ZFS", class: Class::Container, inside: None }));
        }
    }
    // mkfs.btrfs writes its own magic when all else is written.
    if starts(device, size, BTRFS_MAGIC, b"!BHRfS_M")? {
        return Ok(Some(Content::Unfinished { name: "btrfs" }));
    }
    if signatures::is_mbr(&head) {
        let (name, class) = ("MBR partition table", Class::PartitionTable);
        return Ok(Some(Content::Known { name, class, inside: None }));
    }
    Ok(None)
}

/// The file system of ours that a device begins with, if `offset` is among what that holds, by the size in its
/// superblock: RAID and GPT stand after the end of what they hold.
fn around(
    device: &File,
    head: &[u8],
    ext: Option<&'static str>,
    size: u64,
    offset: u64,
) -> Result<Option<&'static str>> {
    let (fs, files) = if head.starts_with(b"XFSB") {
        ("xfs", FILES)
    } else if let Some(ext) = ext {
        (ext, FILES)
    } else if starts(device, size, BTRFS_MAGIC, b"_BHRfS_M")? {
        ("btrfs", BTRFS_FILES)
    } else {
        return Ok(None);
    };
    // A superblock that cannot be right holds nothing.
    let end = if offset < files { None } else { grow::fs_size(device, fs)? };
    Ok(end.is_some_and(|end| offset < end && end <= size).then_some(fs))
}

fn starts(device: &File, size: u64, offset: u64, magic: &[u8]) -> Result<bool> {
    let mut bytes = vec![0; magic.len()];
    if offset + magic.len() as u64 > size {
        return Ok(false);
    }
    read(device, offset, &mut bytes)?;
    Ok(bytes == magic)
}

/// Reads bytes of a device; what cannot be read is [`Error::Refused`].
pub fn read(device: &File, offset: u64, buffer: &mut [u8]) -> Result<()> {
    device.read_exact_at(buffer, offset).map_err(|error| {
        Error::Refused(format!(
            "the device could not be read at byte {offset}: {error}; not formatting what may hold data"
        ))
    })
}

#[cfg(test)]
mod tests;
