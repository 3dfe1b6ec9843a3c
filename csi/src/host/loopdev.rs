//! Loop devices: one for a backing file, found again by it, let go for certain.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use krataloopdev::{LoopControl, LoopDevice};
use provisioners::{Error, Result};
use rustix::fs::FlockOperation;

use super::mounts;

/// Another process may take the free device that the kernel named; so many times we ask for the next.
const TRIES: u32 = 32;
/// How long the kernel may take to let go of a device.
const LET_GO: Duration = Duration::from_secs(3);

/// Finding and attaching must be one step within this process; flock(2) on the file does the same between processes.
static ATTACH: Mutex<()> = Mutex::new(());

/// The loop device over a file, if there is one.
pub fn find(backing: &Path) -> Result<Option<PathBuf>> {
    let wanted = match fs::metadata(backing) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| Error::io(format!("looking at {}", backing.display()), e))?,
    };
    let same =
        |path: &Path| fs::metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (wanted.dev(), wanted.ino()));
    Ok(all()?.into_iter().find(|(_, file)| same(file)).map(|(device, _)| device))
}

/// Every attached loop device with the path of its backing file, as the kernel tells it (`… (deleted)` when it is
/// gone).
pub fn all() -> Result<Vec<(PathBuf, PathBuf)>> {
    use std::os::unix::ffi::OsStringExt as _;
    let entries = fs::read_dir("/sys/block").map_err(|e| Error::io("reading /sys/block", e))?;
    let attached = |entry: fs::DirEntry| {
        if !entry.file_name().as_encoded_bytes().starts_with(b"loop") {
            return None;
        }
        let mut file = fs::read(entry.path().join("loop/backing_file")).ok()?;
        file.truncate(file.trim_ascii_end().len());
        let file = PathBuf::from(std::ffi::OsString::from_vec(file));
        Some((Path::new("/dev").join(entry.file_name()), file))
    };
    Ok(entries.flatten().filter_map(attached).collect())
}

/// Attaches a file, or finds the device that it is attached to; a device that is smaller than the file is told of the
/// file's size. Direct I/O is used where the file system of the file can, so that data is not cached twice.
pub fn attach(backing: &Path, read_only: bool) -> Result<PathBuf> {
    let _one = lock();
    let doing = || format!("attaching {}", backing.display());
    // A descriptor of its own: the loop device keeps the one it is given open, and with it any lock.
    let one = File::open(backing).map_err(|e| Error::io(doing(), e))?;
    rustix::fs::flock(&one, FlockOperation::LockExclusive).map_err(|e| Error::io(doing(), e))?;
    if let Some(device) = find(backing)? {
        if size(&device)? != one.metadata().map_err(|e| Error::io(doing(), e))?.len() {
            grow(&device)?;
        }
        return Ok(device);
    }
    let control = LoopControl::open().map_err(|e| Error::io("opening /dev/loop-control", e))?;
    for _ in 0..TRIES {
        let device = control.next_free().map_err(|e| Error::io("asking for a free loop device", e))?;
        let file =
            File::options().read(true).write(!read_only).open(backing).map_err(|e| Error::io(doing(), e))?;
        match device.with().read_only(read_only).attach_fd(file) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {}
            Err(error) => return Err(Error::io(doing(), error)),
            Ok(()) => return attached(&device),
        }
    }
    Err(Error::Exhausted(format!("{}: no free loop device after {TRIES} tries", doing())))
}

fn attached(device: &LoopDevice) -> Result<PathBuf> {
    if let Err(error) = device.set_direct_io(true) {
        tracing::debug!(%error, "the backing file system has no direct I/O; the loop device is buffered");
    }
    device.path().ok_or_else(|| Error::Internal("the new loop device has no path".into()))
}

/// Tells a device that its file has another size.
pub fn grow(device: &Path) -> Result<()> {
    open(device)?.set_capacity().map_err(|e| Error::io(format!("growing {}", device.display()), e))
}

/// A block device's size in bytes.
pub fn size(device: &Path) -> Result<u64> {
    use std::io::Seek as _;
    let doing = || format!("reading the size of {}", device.display());
    let mut file = File::open(device).map_err(|e| Error::io(doing(), e))?;
    file.seek(io::SeekFrom::End(0)).map_err(|e| Error::io(doing(), e))
}

/// Detaches a device and waits until the kernel has let go: LOOP_CLR_FD only marks a device that somebody has open.
pub fn detach(device: &Path) -> Result<()> {
    let _one = lock();
    match open(device)?.detach() {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => return Ok(()),
        other => other.map_err(|e| Error::io(format!("detaching {}", device.display()), e))?,
    }
    let name = device.file_name().unwrap_or_default();
    let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
    let begun = Instant::now();
    while backing.exists() {
        if begun.elapsed() > LET_GO {
            let holders = mounts::open_below(device, 3).join(", ");
            return Err(Error::Refused(format!(
                "{} is still in use{}; it is detached when its last user closes it; repeat the call then",
                device.display(),
                if holders.is_empty() { String::new() } else { format!(" by {holders}") }
            )));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn open(device: &Path) -> Result<LoopDevice> {
    LoopDevice::open(device).map_err(|e| Error::io(format!("opening {}", device.display()), e))
}

fn lock() -> MutexGuard<'static, ()> {
    ATTACH.lock().unwrap_or_else(PoisonError::into_inner)
}
