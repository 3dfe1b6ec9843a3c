//! What is on a device: read by ourselves, because a program's "nothing found" and its "could not read" look alike.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use provisioners::{Error, Result};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::grow;
use super::signatures::{self, Class, SIGNATURES, ZFS_RING};

/// Head and tail that are always read, in bytes.
const ENDS: u64 = 4 << 20;
/// A device up to this size is read whole when nothing tells where its holes are.
const WHOLE: u64 = 256 << 20;
/// Before this byte ext4 and xfs keep only their own tables.
const FILES: u64 = 8 << 10;
/// Before this byte btrfs keeps only its superblock.
const BTRFS_FILES: u64 = 1 << 20;
/// Where ext2, ext3 and ext4 have their superblock.
const EXT_SUPERBLOCK: std::ops::Range<u64> = 1024..2048;
const CHUNK: usize = 256 << 10;

/// What a device holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Provably nothing: what was read is zero, and the rest is a hole.
    Blank,
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
            Self::Known { name, class: Class::FileSystem, .. } => format!("a file system ({name})"),
            Self::Known { name, .. } => (*name).into(),
            Self::Unknown { offset, bytes } => format!("unknown data at byte {offset} ({bytes})"),
        }
    }
}

/// Looks at a device of `size` bytes. `backing` is the sparse file behind a loop device: its holes need no reading,
/// and all the rest of it is read. Without it head, tail and the places of all signatures are read, and all of a
/// small device. What cannot be read is [`Error::Refused`]: it is never taken for blank.
pub fn probe(device: &File, size: u64, backing: Option<&File>) -> Result<Content> {
    if let Some(known) = signature(device, size)? {
        return Ok(known);
    }
    let data = match backing {
        Some(file) => {
            settle(device, file, size)?;
            data_extents(file, size)?
        }
        None if size <= WHOLE => vec![(0, size)],
        None => vec![(0, ENDS), (size - ENDS, size)],
    };
    for (from, to) in data {
        if let Some(offset) = first_nonzero(device, from, to)? {
            let mut bytes = vec![0; usize::try_from((size - offset).min(16)).unwrap_or(16)];
            read(device, offset, &mut bytes)?;
            let bytes = bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
            return Ok(Content::Unknown { offset, bytes });
        }
    }
    Ok(Content::Blank)
}

fn signature(device: &File, size: u64) -> Result<Option<Content>> {
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
    } else if size >= BTRFS_FILES {
        let mut magic = [0; 8];
        read(device, 0x1_0040, &mut magic)?;
        if &magic != b"_BHRfS_M" {
            return Ok(None);
        }
        ("btrfs", BTRFS_FILES)
    } else {
        return Ok(None);
    };
    // A superblock that cannot be right holds nothing.
    let end = if offset < files { None } else { grow::fs_size(device, fs)? };
    Ok(end.is_some_and(|end| offset < end && end <= size).then_some(fs))
}

/// Makes a backing file's holes mean something: what was written to the device and is only in its page cache has no
/// extent in the file yet, and where the file ends before the device nothing is known.
fn settle(device: &File, file: &File, size: u64) -> Result<()> {
    let refused = |what: String| Error::Refused(format!("{what}; not formatting what may hold data"));
    device
        .sync_all()
        .map_err(|e| refused(format!("the device could not be flushed to its backing file: {e}")))?;
    let has =
        file.metadata().map_err(|e| refused(format!("the backing file could not be looked at: {e}")))?.len();
    if has < size {
        return Err(refused(format!("the backing file has {has} bytes, its device {size}")));
    }
    Ok(())
}

/// Where a sparse file has data (lseek(2), SEEK_DATA). A file system that cannot tell says that all of it is data.
fn data_extents(file: &File, size: u64) -> Result<Vec<(u64, u64)>> {
    let (mut extents, mut at) = (Vec::new(), 0);
    let failed = |e: Errno| {
        Error::Refused(format!("the holes of the backing file could not be found: {e}; not formatting"))
    };
    while at < size {
        let from = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(vec![(0, size)]),
            other => other.map_err(failed)?,
        };
        if from >= size {
            break;
        }
        let to = rustix::fs::seek(file, SeekFrom::Hole(from)).map_err(failed)?.min(size);
        extents.push((from, to));
        at = to;
    }
    Ok(extents)
}

fn first_nonzero(device: &File, from: u64, to: u64) -> Result<Option<u64>> {
    let (mut at, mut buffer) = (from, vec![0; CHUNK]);
    while at < to {
        let length = usize::try_from(to - at).unwrap_or(CHUNK).min(CHUNK);
        read(device, at, &mut buffer[..length])?;
        if let Some(i) = buffer[..length].iter().position(|b| *b != 0) {
            return Ok(Some(at + i as u64));
        }
        at += length as u64;
    }
    Ok(None)
}

fn read(device: &File, offset: u64, buffer: &mut [u8]) -> Result<()> {
    device.read_exact_at(buffer, offset).map_err(|error| {
        Error::Refused(format!(
            "the device could not be read at byte {offset}: {error}; not formatting what may hold data"
        ))
    })
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
