//! Walking directory trees that users write to. A name may be exchanged between any two calls, so nothing here is done to
//! a path: each step is one openat2(2) below a descriptor, no symbolic link is followed and no mount entered, and what is
//! changed is the inode that was opened and looked at.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// A path to openat2(2) has fewer bytes than this (PATH_MAX), so a deeper one is opened in parts.
const PART: usize = 2048;

/// Opens the directory at the top of a tree; its path is the caller's to vouch for.
pub fn open_top(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty()).map(File::from)?)
}

/// Opens a directory's child to look at it only, whatever it is: no FIFO and no device is touched. `None`: it is gone.
pub fn open_node(dir: &File, name: &CStr) -> io::Result<Option<File>> {
    open_child(dir, name, OFlags::PATH)
}

/// Opens a directory in a directory; `None`: it is gone, or no directory any more.
pub fn open_below(dir: &File, name: &CStr) -> io::Result<Option<File>> {
    open_child(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens the directory at a path below `top`, of any length; `None`: it is gone, or no directory any more.
pub fn open_deep(top: &File, path: &Path) -> io::Result<Option<File>> {
    let mut at = top.try_clone()?;
    let mut part = Vec::new();
    let mut names = path.components().map(|name| name.as_os_str().as_bytes()).peekable();
    while let Some(name) = names.next() {
        part.extend_from_slice(name);
        if names.peek().is_some_and(|next| part.len() + next.len() < PART) {
            part.push(b'/');
            continue;
        }
        match open_child(&at, OsStr::from_bytes(&part), OFlags::RDONLY | OFlags::DIRECTORY)? {
            Some(dir) => at = dir,
            None => return Ok(None),
        }
        part.clear();
    }
    Ok(Some(at))
}

fn open_child(dir: impl AsFd, name: impl rustix::path::Arg, flags: OFlags) -> io::Result<Option<File>> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat2(dir, name, flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(File::from(fd))),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The name of an open file itself, also of a symbolic link (proc(5)): good while the file is open.
pub fn fd_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Whether a directory's entry is the directory itself or the one above.
pub fn is_dot(name: &CStr) -> bool {
    name == c"." || name == c".."
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
