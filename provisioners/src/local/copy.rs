//! Copying one file: by sharing its blocks where the file system can, else its data without its holes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

use super::layout::failed;
use super::size::MIB;
use crate::{Ctx, Error, Result};

/// How many bytes are copied between two looks at the context.
const CHUNK: u64 = 8 * MIB;

/// Opens an image to copy it; never a link.
pub(super) fn open_source(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    options.read(true).custom_flags(nofollow).open(path).map_err(|e| failed("opening", path, e))
}

/// Makes an image file that must not exist.
pub(super) fn create_image(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path).map_err(|e| failed("creating", path, e))
}

/// Makes `to` share all blocks of `from` (FICLONE, ioctl_ficlone(2)). `Ok(false)`: the file system cannot.
pub(super) fn reflink(from: &File, to: &File) -> io::Result<bool> {
    match ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS | Errno::PERM) => {
            Ok(false)
        }
        Err(e) => Err(e.into()),
    }
}

/// Copies the data of `from` over the empty file `to` and makes that as long; holes stay holes.
/// Calls [`Ctx::check`] every 8 MiB. Without `share` the copy gets blocks of its own: copy_file_range(2) may share them.
pub(super) fn copy_sparse(ctx: &Ctx, from: &File, to: &File, what: &Path, share: bool) -> Result<()> {
    let length = from.metadata().map_err(|e| failed("looking at", what, e))?.len();
    to.set_len(length).map_err(|e| failed("sizing the copy of", what, e))?;
    let mut at = 0;
    while let Some((start, end)) =
        next_data(from, at, length).map_err(|e| failed("looking for data in", what, e))?
    {
        let mut done = start;
        while done < end {
            ctx.check()?;
            done +=
                copy_some(from, to, done, (end - done).min(CHUNK), share).map_err(|e| copying(what, e))?;
            if length > CHUNK {
                ctx.stage(format!("copying {} of {} MiB", done / MIB, length.div_ceil(MIB)));
            }
        }
        at = end;
    }
    Ok(())
}

fn copying(what: &Path, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return Error::Refused(format!(
            "{} became shorter while it was copied; repeat the call",
            what.display()
        ));
    }
    failed("copying", what, error)
}

/// The next run of data at or after `at`; `None`: only a hole is left.
fn next_data(from: &File, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= length {
        return Ok(None);
    }
    let start = match seek(from, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let end = seek(from, SeekFrom::Hole(start))?;
    Ok((start < length).then_some((start, end.min(length))))
}

fn copy_some(from: &File, to: &File, at: u64, length: u64, share: bool) -> io::Result<u64> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let copied = match share.then(|| in_kernel(from, to, at, length)) {
        None | Some(Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS)) => {
            through_memory(from, to, at, length)?
        }
        Some(copied) => copied?,
    };
    match copied {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        copied => Ok(copied as u64),
    }
}

fn in_kernel(from: &File, to: &File, at: u64, length: usize) -> rustix::io::Result<usize> {
    let (mut off_in, mut off_out) = (at, at);
    copy_file_range(from, Some(&mut off_in), to, Some(&mut off_out), length)
}

fn through_memory(from: &File, to: &File, at: u64, length: usize) -> io::Result<usize> {
    let mut buffer = vec![0; length.min(1 << 20)];
    let read = from.read_at(&mut buffer, at)?;
    to.write_all_at(&buffer[..read], at)?;
    Ok(read)
}
