//! Volumes of Cinder that Nova has attached: the disk is found by its serial, waited for, and never named by its letter.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use provisioners::cinder::disks;
use provisioners::{CinderDisk, Ctx, Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;

use super::loopdev;

/// How long a disk may take to appear, or to show its new size, after Nova has said that it is done.
const APPEARS: Duration = Duration::from_secs(30);
/// Between two looks: a serial can be readable later than the disk's node is made.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// The disk of a volume, if it is on this node. Two disks with its serial: [`Error::Refused`].
pub fn find(disk: &CinderDisk) -> Result<Option<PathBuf>> {
    if let Some(root) = &disk.root {
        return Ok(disks::linked(root, &disk.id));
    }
    let mut names = disks::with_serial(Path::new("/sys"), &disk.id);
    if names.len() > 1 {
        return Err(Error::Refused(format!(
            "volume {}: the disks {} have its serial; detach the wrong one",
            disk.id,
            names.join(", ")
        )));
    }
    Ok(names.pop().map(|name| Path::new("/dev").join(name)))
}

/// The disk of a volume, waited for, and of the size that the controller has seen.
pub fn wait(ctx: &Ctx, disk: &CinderDisk) -> Result<PathBuf> {
    ctx.stage("waiting for the disk");
    let begun = Instant::now();
    let watch = watch(disk.root.as_deref().unwrap_or(Path::new("/dev")));
    let device = loop {
        if let Some(device) = find(disk)? {
            break device;
        }
        if disk.at_least.is_none() {
            // Nobody says that it was attached here.
            return Err(Error::NotFound(format!(
                "volume {} is not attached to this node; publish it first",
                disk.id
            )));
        }
        if begun.elapsed() > APPEARS {
            return Err(Error::Unavailable(format!(
                "volume {}: no disk with its serial appeared in {} s; disks here: {}; is it attached to this server (`openstack volume show {0}`)?",
                disk.id,
                APPEARS.as_secs(),
                seen()
            )));
        }
        ctx.check()?;
        pause(watch.as_ref());
    };
    match disk.at_least {
        Some(bytes) => grown(ctx, &device, bytes).map(|_| device),
        None => Ok(device),
    }
}

/// Waits until a disk has at least a size; a SCSI disk is made to look again. The size then. Still smaller when the time
/// is over: [`Error::Unavailable`].
pub fn grown(ctx: &Ctx, device: &Path, bytes: u64) -> Result<u64> {
    let begun = Instant::now();
    let mut asked = false;
    loop {
        let has = size(device)?;
        if has >= bytes {
            return Ok(has);
        }
        ctx.stage("waiting for the disk to grow");
        if !asked {
            rescan(device);
            asked = true;
        }
        if begun.elapsed() > APPEARS {
            return Err(Error::Unavailable(format!(
                "{} has {has} bytes, the volume {bytes}: Nova has not told this server of its growth (or it is another volume's disk); not touching it, repeat the call",
                device.display()
            )));
        }
        ctx.check()?;
        pause(None);
    }
}

/// A disk's size; 0 of one whose node is there and cannot be opened yet.
fn size(device: &Path) -> Result<u64> {
    let not_yet = [Errno::NXIO, Errno::NODEV, Errno::NOENT].map(Errno::raw_os_error);
    match loopdev::size(device) {
        Err(Error::Io { source, .. }) if source.raw_os_error().is_some_and(|e| not_yet.contains(&e)) => Ok(0),
        other => other,
    }
}

/// Has the kernel ask a SCSI disk for its size again; the others tell by themselves.
fn rescan(device: &Path) {
    let Some(name) = device.file_name() else { return };
    let path = Path::new("/sys/block").join(name).join("device/rescan");
    if path.exists()
        && let Err(error) = fs::write(&path, "1")
    {
        tracing::warn!(path = %path.display(), %error, "asking a disk for its size");
    }
}

/// A watch on a directory in which devices appear; `None` where that cannot be had: looking alone is slower.
fn watch(dir: &Path) -> Option<std::os::fd::OwnedFd> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let fd = inotify::init(flags).ok()?;
    inotify::add_watch(&fd, dir, inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO).ok()?;
    Some(fd)
}

fn pause(watch: Option<&std::os::fd::OwnedFd>) {
    let Some(fd) = watch else { return std::thread::sleep(Duration::from_millis(200)) };
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let _ = poll(&mut fds, Some(&LOOK));
    let mut events = [0; 4096];
    if rustix::io::read(fd, &mut events).is_ok() {
        // The node is there; its serial may need a moment.
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The disks of this node with their serials, for messages.
fn seen() -> String {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| {
        let serial = disks::serial(&entry.path())?;
        Some(format!("{} ({serial})", entry.file_name().to_string_lossy()))
    });
    let mut named: Vec<_> = named.collect();
    named.sort();
    if named.is_empty() { "none with a serial".into() } else { named.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "7a1d4b0e-3a6c-4b7e-9d6f-0123456789ab";

    fn disk(root: &Path, at_least: Option<u64>) -> CinderDisk {
        CinderDisk { id: ID.into(), root: Some(root.to_owned()), at_least }
    }

    #[test]
    fn a_disk_that_appears_later_is_found_at_once() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("disk");
        fs::write(&file, [0; 4096]).unwrap();
        let (link, target) = (root.path().join(format!("virtio-{}", &ID[..20])), file.clone());
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            std::os::unix::fs::symlink(target, link).unwrap();
        });
        let found = wait(&Ctx::new(), &disk(root.path(), Some(4096))).unwrap();
        other.join().unwrap();
        assert_eq!(found, fs::canonicalize(&file).unwrap());
    }

    #[test]
    fn waiting_ends_with_the_operation() {
        let root = tempfile::tempdir().unwrap();
        let ctx = Ctx::with_limit(Duration::from_millis(1));
        assert_eq!(wait(&ctx, &disk(root.path(), Some(1))).unwrap_err().label(), "deadline");
        assert_eq!(wait(&ctx, &disk(root.path(), None)).unwrap_err().label(), "not_found");
        let file = root.path().join(format!("virtio-{}", &ID[..20]));
        fs::write(&file, [0; 4096]).unwrap();
        assert_eq!(wait(&ctx, &disk(root.path(), Some(8192))).unwrap_err().label(), "deadline");
    }
}
