//! The kernel's calls for loop devices (loop(4)) as safe functions: the only unsafe code of this crate. No library has
//! LOOP_GET_STATUS64, which alone tells what a device is over.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use rustix::io::Errno;
use rustix::ioctl::{Getter, IntegerSetter, Ioctl, IoctlOutput, NoArg, Opcode, Setter, ioctl};

const SET_FD: Opcode = 0x4C00;
const CLR_FD: Opcode = 0x4C01;
const SET_STATUS64: Opcode = 0x4C04;
const GET_STATUS64: Opcode = 0x4C05;
const SET_CAPACITY: Opcode = 0x4C07;
const SET_DIRECT_IO: Opcode = 0x4C08;
const CONFIGURE: Opcode = 0x4C0A;
const CTL_GET_FREE: Opcode = 0x4C82;

/// The kernel's `LO_FLAGS_*`.
const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
#[derive(Clone)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

// The sizes are the kernel's; another layout would be read and written past its end.
const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

/// What the kernel knows of an attached device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// `st_dev` of the backing file, as stat(2) gives it.
    pub device: u64,
    /// `st_ino` of the backing file.
    pub inode: u64,
    /// What was given when it was attached; losetup(8) gives the file's path.
    pub label: String,
}

/// What a device is over. Not attached: ENXIO. The kernel asks the file's file system, which may ask its server.
pub fn status(device: &File) -> io::Result<Status> {
    let info = info(device)?;
    let end = info.file_name.iter().position(|byte| *byte == 0).unwrap_or(info.file_name.len());
    let label = String::from_utf8_lossy(&info.file_name[..end]).into_owned();
    Ok(Status { device: info.device, inode: info.inode, label })
}

fn info(device: &File) -> io::Result<Info> {
    // SAFETY: the kernel fills exactly one `struct loop_info64`, whose layout `Info` has; all bit patterns are valid.
    Ok(unsafe { ioctl(device, Getter::<GET_STATUS64, Info>::new()) }?)
}

/// Attaches an open file with a label of up to 63 bytes, in one step where the kernel can (Linux 5.8). Direct I/O where
/// the file's file system can. A file that is open for reading only makes a device for reading only. Taken by another
/// meanwhile: EBUSY.
pub fn configure(device: &File, file: &File, read_only: bool, label: &str) -> io::Result<()> {
    let info = wanted(read_only, label);
    match configure_at_once(device, file, info.clone()) {
        Err(Errno::INVAL | Errno::NOTTY) => configure_in_steps(device, file, info),
        other => Ok(other?),
    }
}

fn wanted(read_only: bool, label: &str) -> Info {
    let mut file_name = [0; 64];
    let bytes = &label.as_bytes()[..label.len().min(63)];
    file_name[..bytes.len()].copy_from_slice(bytes);
    let flags = DIRECT_IO | if read_only { READ_ONLY } else { 0 };
    Info {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags,
        file_name,
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    }
}

fn configure_at_once(device: &File, file: &File, info: Info) -> Result<(), Errno> {
    let fd = u32::try_from(file.as_raw_fd()).map_err(|_| Errno::BADF)?;
    let config = Config { fd, block_size: 0, info, reserved: [0; 8] };
    // SAFETY: the kernel reads one `struct loop_config`, whose layout `Config` has; the descriptor in it is open.
    unsafe { ioctl(device, Setter::<CONFIGURE, Config>::new(config)) }
}

/// The same by the calls of all kernels. Who is killed in between leaves a device without a label; it is found by its file.
fn configure_in_steps(device: &File, file: &File, info: Info) -> io::Result<()> {
    let fd = usize::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: the argument is an open descriptor, which the kernel takes a reference of its own to.
    unsafe { ioctl(device, IntegerSetter::<SET_FD>::new_usize(fd)) }?;
    // SAFETY: the kernel reads one `struct loop_info64`, whose layout `Info` has.
    if let Err(errno) = unsafe { ioctl(device, Setter::<SET_STATUS64, Info>::new(info)) } {
        let _ = clear(device);
        return Err(errno.into());
    }
    // SAFETY: the argument is a number. Refused where the file's file system cannot.
    let _ = unsafe { ioctl(device, IntegerSetter::<SET_DIRECT_IO>::new_usize(1)) };
    Ok(())
}

/// What [`configure`] does on a kernel before 5.8.
#[cfg(test)]
pub fn configure_as_before(device: &File, file: &File, label: &str) -> io::Result<()> {
    configure_in_steps(device, file, wanted(false, label))
}

/// Detaches; a device that others have open is detached when the last of them closes it. Not attached: ENXIO.
pub fn clear(device: &File) -> io::Result<()> {
    // SAFETY: the call has no argument.
    Ok(unsafe { ioctl(device, NoArg::<CLR_FD>::new()) }?)
}

/// Has a device that was to be detached by its last user's closing it stay.
pub fn keep(device: &File) -> io::Result<()> {
    let mut info = info(device)?;
    info.flags &= !AUTOCLEAR;
    // SAFETY: the kernel reads one `struct loop_info64`, whose layout `Info` has.
    Ok(unsafe { ioctl(device, Setter::<SET_STATUS64, Info>::new(info)) }?)
}

/// Has a device take the size that its file has now.
pub fn set_capacity(device: &File) -> io::Result<()> {
    // SAFETY: the call has no argument.
    Ok(unsafe { ioctl(device, NoArg::<SET_CAPACITY>::new()) }?)
}

/// The number of a device that nobody uses now. `control` is /dev/loop-control.
pub fn free(control: impl AsFd) -> io::Result<u32> {
    let control: BorrowedFd<'_> = control.as_fd();
    // SAFETY: the call has no argument and changes no memory.
    let number = unsafe { ioctl(control, GetFree) }?;
    u32::try_from(number).map_err(io::Error::other)
}

struct GetFree;

// SAFETY: LOOP_CTL_GET_FREE takes no argument and gives its answer as the call's value.
unsafe impl Ioctl for GetFree {
    type Output = IoctlOutput;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> rustix::io::Result<IoctlOutput> {
        Ok(output)
    }
}
