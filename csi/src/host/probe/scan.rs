//! Reading what may hold data: by holes, by what a server has stored, or all of it.

use std::fs::File;

use provisioners::{Ctx, Error, Result};
use rustix::fs::{Advice, SeekFrom};
use rustix::io::Errno;

use super::read;

const CHUNK: usize = 1 << 20;
/// So often is said how far the reading is.
const REPORT: u64 = 1 << 30;

/// Makes a backing file's holes mean something: what was written to the device and is only in its page cache has no
/// extent in the file yet, and where the file ends before the device nothing is known.
pub fn settle(device: &File, file: &File, size: u64) -> Result<()> {
    let refused = |what: String| Error::Refused(format!("{what}; not formatting what may hold data"));
    flush(device)?;
    let has =
        file.metadata().map_err(|e| refused(format!("the backing file could not be looked at: {e}")))?.len();
    if has < size {
        return Err(refused(format!("the backing file has {has} bytes, its device {size}")));
    }
    Ok(())
}

/// Has what is only in the device's page cache written.
pub fn flush(device: &File) -> Result<()> {
    device.sync_all().map_err(|e| {
        Error::Refused(format!("the device could not be flushed: {e}; not formatting what may hold data"))
    })
}

/// Where a sparse file has data (lseek(2), SEEK_DATA). A file system that cannot tell says that all of it is data.
pub fn data_extents(file: &File, size: u64) -> Result<Vec<(u64, u64)>> {
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

/// Calls `each` with the offset and bytes of every part of a range, until it says `false`; whether it never did. What
/// is read is not kept in memory.
pub fn each_chunk(
    ctx: &Ctx,
    device: &File,
    (from, to): (u64, u64),
    mut each: impl FnMut(u64, &[u8]) -> Result<bool>,
) -> Result<bool> {
    let (mut at, mut said) = (from, from);
    let mut buffer = vec![0; usize::try_from(to - from).unwrap_or(CHUNK).min(CHUNK)];
    while at < to {
        ctx.check()?;
        if at - said >= REPORT {
            said = at;
            ctx.stage(format!("looking whether it is empty: {} of {} GiB read", at >> 30, to >> 30));
        }
        let length = usize::try_from(to - at).unwrap_or(CHUNK).min(CHUNK);
        read(device, at, &mut buffer[..length])?;
        let _ = rustix::fs::fadvise(device, at, std::num::NonZeroU64::new(length as u64), Advice::DontNeed);
        if !each(at, &buffer[..length])? {
            return Ok(false);
        }
        at += length as u64;
    }
    Ok(true)
}

/// The first byte of a range that is not zero; `skip`: so many bytes at the device's start are not looked at.
pub fn first_nonzero(ctx: &Ctx, device: &File, range: (u64, u64), skip: u64) -> Result<Option<u64>> {
    let mut found = None;
    let zeros = vec![0; CHUNK];
    each_chunk(ctx, device, (range.0.max(skip), range.1.max(skip)), |at, bytes| {
        // Equal to zeros is by far the faster question.
        if *bytes == zeros[..bytes.len()] {
            return Ok(true);
        }
        found = bytes.iter().position(|b| *b != 0).map(|i| at + i as u64);
        Ok(found.is_none())
    })?;
    Ok(found)
}
