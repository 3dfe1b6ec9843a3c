//! Who uses a block device: in every mount name space that /proc shows, and whatever the kernel itself keeps it for.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use provisioners::{Error, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, open, statx};
use rustix::io::Errno;

use super::mountinfo::{self, Mount};
use super::{device, mounts};

/// How many processes are named.
const MOST: usize = 3;

/// Everybody who uses a device, in words; empty: nobody. What cannot be looked at is an error, never "nobody".
pub fn of(device: &Path) -> Result<Vec<String>> {
    let number = mounts::device_number(device)?;
    let mut users = mounted(device, number)?;
    users.extend(holders(device)?);
    users.extend(openers(number)?);
    if users.is_empty() && is_claimed(device)? {
        users.push("the kernel, for a mount, swap or another device that cannot be seen from here".into());
    }
    Ok(users)
}

/// Whether something of the kernel's has the device: a file system mounted in any name space, swap, dm, md. An exclusive
/// open (open(2), O_EXCL without O_CREAT) is refused then.
fn is_claimed(device: &Path) -> Result<bool> {
    match open(device, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => Ok(false),
        Err(Errno::BUSY) => Ok(true),
        Err(error) => Err(Error::io(format!("opening {}", device.display()), error)),
    }
}

/// Where it is mounted or its node bound: here, else in the other name spaces.
fn mounted(device: &Path, number: (u32, u32)) -> Result<Vec<String>> {
    let uses = |m: &Mount<'_>| device::is_of(m, device, number);
    let found = words(&mounts::select(uses)?, "");
    if found.is_empty() { mounted_elsewhere(uses) } else { Ok(found) }
}

/// The mounts that `uses` chooses in the mount name spaces of other processes.
pub fn mounted_elsewhere(uses: impl Fn(&Mount<'_>) -> bool) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::from([fs::read_link("/proc/self/ns/mnt").unwrap_or_default()]);
    for process in processes()? {
        // Another user's process, or one that has ended.
        let Ok(space) = fs::read_link(process.join("ns/mnt")) else { continue };
        if !seen.insert(space) {
            continue;
        }
        let Some(table) = gone(fs::read(process.join("mountinfo")), &process)? else { continue };
        let of = format!(" in the mount name space of {}", named(&process));
        found.extend(words(&mountinfo::select(&table, &uses)?, &of));
    }
    Ok(found)
}

fn words(mounts: &[Mount<'_>], wherein: &str) -> Vec<String> {
    let word = |m: &Mount<'_>| if mounts::bound_device(m).is_some() { "published at" } else { "mounted on" };
    mounts.iter().map(|m| format!("{} {}{wherein}", word(m), m.target.display())).collect()
}

/// Devices made of this one, and swap on it.
fn holders(device: &Path) -> Result<Vec<String>> {
    let path = Path::new("/sys/block").join(device.file_name().unwrap_or_default()).join("holders");
    let entries = match fs::read_dir(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Error::io(format!("reading {}", path.display()), e))?,
    };
    let mut found: Vec<_> =
        entries.flatten().map(|entry| format!("held by {}", entry.file_name().to_string_lossy())).collect();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().any(|line| line.split(' ').next() == device.to_str()) {
        found.push("used as swap".into());
    }
    Ok(found)
}

/// Processes that have a block device open, under whatever name. No server of another open file is asked.
fn openers(number: (u32, u32)) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for process in processes()? {
        let Some(files) = gone(fs::read_dir(process.join("fd")), &process)? else { continue };
        if files.flatten().any(|file| is_device(&file.path(), number)) {
            found.push(format!("open by {}", named(&process)));
        }
        if found.len() == MOST {
            break;
        }
    }
    Ok(found)
}

fn is_device(file: &Path, number: (u32, u32)) -> bool {
    statx(CWD, file, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.stx_mode.into()) == FileType::BlockDevice
            && (stat.stx_rdev_major, stat.stx_rdev_minor) == number
    })
}

fn processes() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir("/proc").map_err(|e| Error::io("reading /proc", e))?;
    let is_process =
        |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
    Ok(entries.flatten().filter(is_process).map(|entry| entry.path()).collect())
}

/// What a process shows; `None` when it has ended or may not be looked at.
fn gone<T>(read: io::Result<T>, process: &Path) -> Result<Option<T>> {
    let hidden =
        [Errno::NOENT, Errno::SRCH, Errno::ACCESS, Errno::PERM, Errno::INVAL].map(Errno::raw_os_error);
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error().is_some_and(|errno| hidden.contains(&errno)) => Ok(None),
        Err(error) => Err(Error::io(format!("reading {}", process.display()), error)),
    }
}

/// `pid 12 (postgres)`.
fn named(process: &Path) -> String {
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    let pid = process.file_name().unwrap_or_default().to_string_lossy();
    format!("pid {pid} ({})", name.trim())
}
