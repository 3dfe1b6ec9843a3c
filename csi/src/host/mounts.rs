//! mount(2) and umount2(2), always compared with what mountinfo then says.

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use provisioners::{Ctx, Error, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::mountinfo::{self, Mount};
use super::options;

/// How often an unmount that is busy is tried again, and how long in between.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(60);
/// How long a mount is tried again whose device somebody has.
const BUSY: Duration = Duration::from_secs(2);

/// The mount table of this process.
fn table() -> Result<Vec<u8>> {
    fs::read("/proc/self/mountinfo").map_err(|e| Error::io("reading /proc/self/mountinfo", e))
}

/// The mounts that `wanted` chooses.
pub fn select(wanted: impl Fn(&Mount<'_>) -> bool) -> Result<Vec<Mount<'static>>> {
    mountinfo::select(&table()?, wanted)
}

/// What is mounted on a path, the last one (which is what is seen) last.
pub fn on(path: &Path) -> Result<Vec<Mount<'static>>> {
    select(|m| m.target == path)
}

/// Mounts a file system from a device. `false`: it cannot be read before its journal is replayed, and the device takes no
/// writes.
pub fn mount_device(
    device: &Path,
    target: &Path,
    fs_type: &str,
    options: &[String],
    read_only: bool,
) -> Result<bool> {
    let (mut flags, data) = options::parse(options)?;
    flags.set(MountFlags::RDONLY, read_only || flags.contains(MountFlags::RDONLY));
    let text = CString::new(data.join(",")).map_err(|_| Error::invalid("mount_flags", "have a NUL byte"))?;
    let begun = Instant::now();
    let mounted = loop {
        match rustix::mount::mount(device, target, fs_type, flags, text.as_c_str()) {
            // A program that is being started has our exclusive look at the device open until its execve(2).
            Err(Errno::BUSY) if begun.elapsed() < BUSY => std::thread::sleep(Duration::from_millis(20)),
            other => break other,
        }
    };
    // The options are not in the text: the specification says that they may hold secrets.
    let Err(errno) = mounted else { return Ok(true) };
    let doing = format!("mounting {} ({fs_type}) on {}", device.display(), target.display());
    match errno {
        Errno::ROFS if flags.contains(MountFlags::RDONLY) => Ok(false),
        // What btrfs says of a log on a device that takes no writes.
        Errno::IO if fs_type == "btrfs" && has_btrfs_log(device) => Ok(false),
        Errno::INVAL => Err(Error::Refused(match options::refused(fs_type, &data) {
            Some(option) => format!("{doing}: {option}"),
            None => format!(
                "{doing}: {errno}: the file system or a mount option is not valid; the kernel's log (`dmesg`) says which"
            ),
        })),
        Errno::BUSY => Err(Error::Refused(format!("{doing}: {errno}: it is mounted elsewhere or in use"))),
        Errno::UCLEAN | Errno::ILSEQ => Err(Error::Refused(format!(
            "{doing}: {errno}: the file system is damaged; check it with its own fsck"
        ))),
        _ => Err(Error::io(doing, errno)),
    }
}

/// Whether a btrfs that is not mounted has a log to be replayed: the field `log_root` of its superblock.
fn has_btrfs_log(device: &Path) -> bool {
    use std::os::unix::fs::FileExt as _;
    let mut log = [0; 8];
    fs::File::open(device).and_then(|file| file.read_exact_at(&mut log, 0x1_0060)).is_ok() && log != [0; 8]
}

/// Binds `source` on `target`, read only if wished. Already so: nothing is done.
pub fn bind(source: &Path, target: &Path, read_only: bool) -> Result<()> {
    let doing = || format!("binding {} on {}", source.display(), target.display());
    rustix::mount::mount_bind(source, target).map_err(|e| Error::io(doing(), e))?;
    if read_only && let Err(error) = make_read_only(target) {
        let _ = unmount_all(&Ctx::new(), target);
        return Err(error);
    }
    Ok(())
}

/// Makes the mount on `target` read only and keeps its other options. Other mount name spaces, such as the machine's
/// below this container's, have had the mount already and are not told of a change: they get a second one over it, which
/// is read only from its beginning.
pub fn make_read_only(target: &Path) -> Result<()> {
    let now = on(target)?;
    let now = now.last().ok_or_else(|| Error::Internal(format!("{} is not mounted", target.display())))?;
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    for (option, flag) in options::FLAGS {
        flags.set(flag, flags.contains(flag) || now.has_option(option));
    }
    rustix::mount::mount_remount(target, flags, "")
        .map_err(|e| Error::io(format!("making {} read only", target.display()), e))?;
    if now.propagation.shared.is_some() {
        rustix::mount::mount_bind(target, target)
            .map_err(|e| Error::io(format!("making {} read only elsewhere", target.display()), e))?;
    }
    match on(target)?.last() {
        Some(mount) if mount.is_read_only() => Ok(()),
        _ => Err(Error::Internal(format!("{} is not read only after the kernel said so", target.display()))),
    }
}

/// Unmounts everything on a path. Nothing mounted there is fine. Busy: a few tries, then [`Error::Refused`] that names
/// processes with open files below it.
pub fn unmount_all(ctx: &Ctx, path: &Path) -> Result<()> {
    for left in (0..TRIES * 4).rev() {
        if on(path)?.is_empty() {
            return Ok(());
        }
        match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(Errno::BUSY) if left > TRIES * 3 => {
                ctx.check()?;
                std::thread::sleep(PAUSE);
            }
            Err(Errno::BUSY) => return Err(busy(path)),
            Err(errno) => return Err(Error::io(format!("unmounting {}", path.display()), errno)),
        }
    }
    Err(busy(path))
}

/// What an unmount is refused with: who works there.
pub fn busy(path: &Path) -> Error {
    let holders = open_below(path, 3);
    let who = if holders.is_empty() { "a process or another mount".to_owned() } else { holders.join(", ") };
    Error::Refused(format!("{} is busy: used by {who}; stop it and repeat the call", path.display()))
}

/// Up to `most` processes that have something open below a path or a device open, as `pid 12 (postgres)`.
pub fn open_below(path: &Path, most: usize) -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let uses = |dir: &Path| {
        let links = ["cwd", "root"].map(|name| dir.join(name)).into_iter();
        let files = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten().map(|e| e.path());
        links.chain(files).any(|link| fs::read_link(link).is_ok_and(|to| to.starts_with(path)))
    };
    processes
        .filter(|entry| entry.file_name().as_bytes().iter().all(u8::is_ascii_digit) && uses(&entry.path()))
        .take(most)
        .map(|entry| {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            format!("pid {} ({})", entry.file_name().to_string_lossy(), name.trim())
        })
        .collect()
}

/// Major and minor number of a device node.
pub fn device_number(device: &Path) -> Result<(u32, u32)> {
    let stat =
        rustix::fs::stat(device).map_err(|e| Error::io(format!("looking at {}", device.display()), e))?;
    Ok((rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)))
}

/// The device node that a bind mount of a node shows (a raw block volume), from the mount's root within devtmpfs.
pub fn bound_device(mount: &Mount<'_>) -> Option<PathBuf> {
    let name: &OsStr = mount.root.file_name()?;
    (mount.fs_type == "devtmpfs" && mount.root != Path::new("/")).then(|| Path::new("/dev").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_by_its_open_files() {
        let dir = tempfile::tempdir().unwrap();
        let _open = fs::File::create(dir.path().join("open")).unwrap();
        let holders = open_below(&dir.path().canonicalize().unwrap(), 3);
        assert!(
            holders.iter().any(|h| h.starts_with(&format!("pid {} (", std::process::id()))),
            "{holders:?}"
        );
    }
}
