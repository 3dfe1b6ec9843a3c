//! Loop devices: one for a backing file, found again by it, let go for certain.
//!
//! A device is known by its file's device and inode, as the kernel has them open. The path in sysfs is that of the mount
//! name space in which it was attached; once the driver's container was restarted, that is gone. It is used only to
//! leave out devices that cannot be meant, so that a file system that hangs elsewhere is not asked.

mod identity;
mod ioctl;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use provisioners::{Error, Result};
use rustix::io::Errno;

use super::users;
use identity::Answer;
pub use identity::{Loop, all};

/// Another process may take the free device that the kernel named; so many times we ask for the next.
const TRIES: u32 = 32;
/// How long the kernel may take to let go of a device.
const LET_GO: Duration = Duration::from_secs(3);
/// What the label of every device that a volumectl has attached begins with.
pub const OURS: &str = "volumectl:";

/// The loop device over a file, if there is one.
pub fn find(backing: &Path) -> Result<Option<PathBuf>> {
    let wanted = match fs::metadata(backing) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| Error::io(format!("looking at {}", backing.display()), e))?,
    };
    let wanted = (wanted.dev(), wanted.ino());
    let candidates = all()?.into_iter().filter(|it| it.may_be_over(backing));
    first(candidates, |status| (status.device, status.inode) == wanted, |it| it.is_named_like(backing))
}

/// The loop device over the one file of a file system: a FUSE export. The file system is not asked for it; `number` is its
/// device number in mountinfo.
pub fn find_on(number: (u32, u32), file: &Path) -> Result<Option<PathBuf>> {
    let wanted = rustix::fs::makedev(number.0, number.1);
    let candidates = all()?.into_iter().filter(|it| it.may_be_over(file));
    first(candidates, |status| status.device == wanted, |it| it.is_named_like(file))
}

/// The first device whose file is the wanted one. One that cannot tell what it is over, because its file's server does
/// not answer: an obstacle only if it may be the wanted one by all that is known.
fn first(
    candidates: impl Iterator<Item = Loop>,
    wanted: impl Fn(&ioctl::Status) -> bool,
    is_obstacle: impl Fn(&Loop) -> bool,
) -> Result<Option<PathBuf>> {
    let mut quiet = None;
    for candidate in candidates {
        match candidate.ask()? {
            Answer::Over(status) if wanted(&status) => return Ok(Some(candidate.device)),
            Answer::Over(_) | Answer::Detached => {}
            Answer::Silent if is_obstacle(&candidate) => quiet = Some(candidate),
            Answer::Silent => {
                tracing::warn!(device = %candidate.device.display(), file = %candidate.shown.display(), "the file system of this loop device's file does not answer; passed over");
            }
        }
    }
    quiet.as_ref().map_or(Ok(None), |it| Err(silent(it)))
}

/// The attached device of this name.
pub fn attached(device: &Path) -> Result<Option<Loop>> {
    Ok(all()?.into_iter().find(|it| it.device == device))
}

/// The label under which a device was attached; `None`: it is not attached.
pub fn label(device: &Path) -> Result<Option<String>> {
    let Some(it) = attached(device)? else { return Ok(None) };
    match it.ask()? {
        Answer::Over(status) => Ok(Some(status.label)),
        Answer::Detached => Ok(None),
        Answer::Silent => Err(silent(&it)),
    }
}

fn silent(it: &Loop) -> Error {
    Error::Unavailable(format!(
        "{} is over {}, whose file system does not answer, so it cannot be said which file that is; repeat the call",
        it.device.display(),
        it.shown.display()
    ))
}

/// Attached devices under this label whose files were removed, on one of these file systems (`st_dev`).
pub fn orphans(label: &str, file_systems: &[u64]) -> Result<Vec<Loop>> {
    let mut found = Vec::new();
    for it in all()?.into_iter().filter(Loop::is_deleted) {
        if let Answer::Over(status) = it.ask()?
            && status.label == label
            && file_systems.contains(&status.device)
        {
            found.push(it);
        }
    }
    Ok(found)
}

/// Attaches a file under a label, or finds the device that it is attached to, and says whether it is new; a device that
/// is smaller than the file is told of the file's size. Direct I/O is used where the file system of the file can, so
/// that data is not cached twice. The caller keeps others from attaching the same file meanwhile.
pub fn attach(backing: &Path, read_only: bool, label: &str) -> Result<(PathBuf, bool)> {
    let doing = || format!("attaching {}", backing.display());
    if let Some(device) = find(backing)? {
        if size(&device)? != fs::metadata(backing).map_err(|e| Error::io(doing(), e))?.len() {
            grow(&device)?;
        }
        return Ok((device, false));
    }
    let file = File::options().read(true).write(!read_only).open(backing);
    let file = file.map_err(|e| Error::io(doing(), e))?;
    let control = File::open("/dev/loop-control").map_err(|e| Error::io("opening /dev/loop-control", e))?;
    for _ in 0..TRIES {
        let number = ioctl::free(&control).map_err(|e| Error::io("asking for a free loop device", e))?;
        let device = PathBuf::from(format!("/dev/loop{number}"));
        match ioctl::configure(&open(&device)?, &file, read_only, label) {
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
            Err(error) => return Err(Error::io(doing(), error)),
            Ok(()) => return Ok((device, true)),
        }
    }
    Err(Error::Exhausted(format!("{}: no free loop device after {TRIES} tries", doing())))
}

/// Tells a device that its file has another size.
pub fn grow(device: &Path) -> Result<()> {
    ioctl::set_capacity(&open(device)?).map_err(|e| Error::io(format!("growing {}", device.display()), e))
}

/// A block device's size in bytes.
pub fn size(device: &Path) -> Result<u64> {
    use std::io::Seek as _;
    let doing = || format!("reading the size of {}", device.display());
    let mut file = File::open(device).map_err(|e| Error::io(doing(), e))?;
    file.seek(io::SeekFrom::End(0)).map_err(|e| Error::io(doing(), e))
}

/// Detaches a device and waits until the kernel has let go: LOOP_CLR_FD only marks a device that somebody has open. One
/// that is kept open stays as it is, and the refusal says who does that. `is_meant` looks whether the device still is what
/// the caller takes it for. It is asked while the device is open, when its number cannot go to another file; a device that
/// has become another's is left alone.
pub fn detach(device: &Path, is_meant: impl FnOnce() -> Result<bool>) -> Result<()> {
    let file = open(device)?;
    if !is_meant()? {
        tracing::info!(device = %device.display(), "the device is not, or no longer, what was to be detached; it is left alone");
        return Ok(());
    }
    let sequence = identity::sequence(device);
    match ioctl::clear(&file) {
        Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => return Ok(()),
        other => other.map_err(|e| Error::io(format!("detaching {}", device.display()), e))?,
    }
    drop(file);
    let begun = Instant::now();
    while attached(device)?.is_some_and(|now| now.sequence == sequence) {
        if begun.elapsed() > LET_GO {
            let who = users::of(device)?.join(", ");
            let _ = open(device).map(|file| ioctl::keep(&file));
            return Err(Error::Refused(format!(
                "{} is still in use{}; end that and repeat the call",
                device.display(),
                if who.is_empty() { String::new() } else { format!(" by {who}") }
            )));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn open(device: &Path) -> Result<File> {
    let file = File::options().read(true).write(true).open(device);
    file.map_err(|e| Error::io(format!("opening {}", device.display()), e))
}

#[cfg(test)]
mod tests;
