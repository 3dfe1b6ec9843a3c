//! Removing a tree that users could write to: of any depth, following no link and entering no mount.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, RenameFlags, openat, renameat_with, unlinkat};
use rustix::io::Errno;

use crate::{Error, Result};

/// How many names are read at once, so that a directory of any size needs little memory.
const BATCH: usize = 4096;

/// Removes a directory and all below it; one that does not exist is fine. Stopped at any point, it goes on at the next
/// call.
///
/// A directory within a directory is not entered but moved up, so the depth needs neither stack nor descriptors, and no
/// path is followed that somebody could exchange meanwhile. Something mounted within cannot be moved:
/// [`Error::Refused`].
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    let top = match open_dir(CWD, path) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(failure(path, "opening", e)),
    };
    let mut counter = 0_u64;
    loop {
        let names = names(&top).map_err(|e| failure(path, "reading", e))?;
        if names.is_empty() {
            break;
        }
        for name in &names {
            remove_entry(&top, name, &mut counter).map_err(|e| failure(path, "removing", e))?;
        }
    }
    unlinkat(CWD, path, AtFlags::REMOVEDIR).map_err(|e| failure(path, "removing", e))
}

fn failure(path: &Path, doing: &str, error: Errno) -> Error {
    if matches!(error, Errno::BUSY | Errno::XDEV) {
        return Error::Refused(format!(
            "{}: something is mounted within it; unmount that (see findmnt) and repeat the call",
            path.display()
        ));
    }
    Error::io(format!("{doing} {} or what is in it", path.display()), error)
}

fn open_dir(at: impl std::os::fd::AsFd, path: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, path, flags, Mode::empty())
}

fn names(dir: &OwnedFd) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    let mut entries = Dir::read_from(dir)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
        if names.len() == BATCH {
            break;
        }
    }
    Ok(names)
}

/// Removes one entry of the top directory; what is in it goes, too, but for directories, which move to the top.
fn remove_entry(top: &OwnedFd, name: &CString, counter: &mut u64) -> rustix::io::Result<()> {
    if !is_left(top, name)? {
        return Ok(());
    }
    let dir = open_dir(top, name.as_c_str())?;
    loop {
        let names = names(&dir)?;
        if names.is_empty() {
            return unlinkat(top, name.as_c_str(), AtFlags::REMOVEDIR);
        }
        for child in &names {
            if is_left(&dir, child)? {
                move_up(&dir, child, top, counter)?;
            }
        }
    }
}

/// Removes a file, link or empty directory; whether it is still there: a directory with something in it.
fn is_left(dir: &OwnedFd, name: &CString) -> rustix::io::Result<bool> {
    match unlinkat(dir, name.as_c_str(), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(false),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    match unlinkat(dir, name.as_c_str(), AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(false),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(true),
        // It was a file after all, which may not be removed (immutable, say).
        Err(Errno::NOTDIR) => Err(Errno::PERM),
        Err(e) => Err(e),
    }
}

fn move_up(dir: &OwnedFd, name: &CString, top: &OwnedFd, counter: &mut u64) -> rustix::io::Result<()> {
    loop {
        *counter += 1;
        let free = format!("~{counter}");
        match renameat_with(dir, name.as_c_str(), top, free.as_str(), RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
}
