//! FIFREEZE and FITHAW (linux/fs.h) as safe functions; no library has them. fsfreeze(8) would be one more process that
//! can be killed, or that cannot be started, between a freeze and its thaw.

#![allow(unsafe_code)]

use std::fs::File;

use rustix::io;
use rustix::ioctl::{NoArg, Opcode, ioctl, opcode};

const FREEZE: Opcode = opcode::read_write::<i32>(b'X', 119);
const THAW: Opcode = opcode::read_write::<i32>(b'X', 120);

/// Writes out and stops the file system that `dir` is on. EBUSY: it is frozen already. EOPNOTSUPP: it cannot be.
/// Ends when everything is written, and no signal ends it before.
pub fn freeze(dir: &File) -> io::Result<()> {
    // SAFETY: the kernel does not read the argument.
    unsafe { ioctl(dir, NoArg::<FREEZE>::new()) }
}

/// Lets writes to the file system that `dir` is on go on. EINVAL: it was not frozen.
pub fn thaw(dir: &File) -> io::Result<()> {
    // SAFETY: the kernel does not read the argument.
    unsafe { ioctl(dir, NoArg::<THAW>::new()) }
}
