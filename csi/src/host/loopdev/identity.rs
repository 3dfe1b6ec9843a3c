//! What a loop device is over, asked once and never longer than a moment: the kernel asks the file's file system, whose
//! server may stand still.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use provisioners::{Error, Result};
use rustix::io::Errno;

use super::ioctl::{self, Status};

/// How long a device may take to tell what it is over.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the kernel adds to the path of a file that was removed.
const DELETED: &[u8] = b" (deleted)";

/// An attached loop device, as sysfs shows it: without asking anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loop {
    /// Its node in /dev.
    pub device: PathBuf,
    /// The path of its file, in whatever mount name space it is; `… (deleted)` when it was removed. For messages.
    pub shown: PathBuf,
    /// The kernel's number of this attachment, which no other has until the machine starts again; `None` on kernels
    /// before 5.15.
    pub sequence: Option<u64>,
}

/// What a device says of its file.
pub enum Answer {
    /// The file's identity.
    Over(Status),
    /// It was detached meanwhile.
    Detached,
    /// The file's file system does not answer, in time or at all: a server that hangs, a FUSE daemon that has died.
    Silent,
}

/// What is asked at the moment, and what is known.
enum Known {
    Asking,
    Status(Status),
    Silent,
    Failed(String),
}

/// What each attachment is over does not change, so it is asked once in the life of this process.
static KNOWN: Mutex<BTreeMap<(PathBuf, u64), Known>> = Mutex::new(BTreeMap::new());
static ANSWERED: Condvar = Condvar::new();

/// Every attached loop device.
pub fn all() -> Result<Vec<Loop>> {
    let entries = fs::read_dir("/sys/block").map_err(|e| Error::io("reading /sys/block", e))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("reading /sys/block", e))?;
        if !entry.file_name().as_bytes().starts_with(b"loop") {
            continue;
        }
        let device = Path::new("/dev").join(entry.file_name());
        let path = entry.path().join("loop/backing_file");
        match fs::read(&path) {
            Ok(mut file) => {
                file.truncate(file.trim_ascii_end().len());
                let (shown, sequence) = (OsString::from_vec(file).into(), sequence(&device));
                found.push(Loop { device, shown, sequence });
            }
            // Not attached, or no more.
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(Error::io(format!("reading {}", path.display()), error)),
        }
    }
    Ok(found)
}

fn is_absent(error: &std::io::Error) -> bool {
    let gone = [Errno::NOENT, Errno::NOTDIR, Errno::NXIO, Errno::NODEV].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|errno| gone.contains(&errno))
}

/// The kernel's number of what a device is now.
pub fn sequence(device: &Path) -> Option<u64> {
    let path = Path::new("/sys/block").join(device.file_name()?).join("diskseq");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl Loop {
    /// Whether its file was removed.
    pub fn is_deleted(&self) -> bool {
        self.shown.as_os_str().as_bytes().ends_with(DELETED)
    }

    /// The path of its file, also of one that was removed.
    pub fn path(&self) -> &Path {
        let shown = self.shown.as_os_str().as_bytes();
        Path::new(OsStr::from_bytes(shown.strip_suffix(DELETED).unwrap_or(shown)))
    }

    /// Whether it can be over this file, or one renamed from it: in every name space a file's own name is the same.
    pub fn may_be_over(&self, file: &Path) -> bool {
        self.is_named_as_root() || self.path().file_name() == file.file_name()
    }

    /// Whether the file and the directory it is in have the names of this one.
    pub fn is_named_like(&self, file: &Path) -> bool {
        let directory =
            |path: &Path| path.parent().and_then(|parent| parent.file_name().map(OsStr::to_owned));
        !self.is_named_as_root() && self.may_be_over(file) && directory(self.path()) == directory(file)
    }

    /// Whether its file shows as the root of a file system.
    pub fn is_named_as_root(&self) -> bool {
        self.path().file_name().is_none()
    }

    /// What it is over.
    pub fn ask(&self) -> Result<Answer> {
        let key = (self.device.clone(), self.sequence.unwrap_or(0));
        let mut known = lock();
        match known.get(&key) {
            Some(Known::Status(status)) if self.sequence.is_some() => {
                return Ok(Answer::Over(status.clone()));
            }
            Some(Known::Asking) => {}
            _ => {
                // Of earlier attachments nobody asks any more.
                known.retain(|(device, _), known| *device != key.0 || matches!(known, Known::Asking));
                known.insert(key.clone(), Known::Asking);
                let asked = key.clone();
                let asking = std::thread::Builder::new().name("loop".into()).spawn(move || ask(&asked));
                if let Err(error) = asking {
                    known.remove(&key);
                    return Err(Error::io("starting a thread to look at a loop device", error));
                }
            }
        }
        wait(known, &key)
    }
}

/// Waits for the answer to what is asked.
fn wait(mut known: MutexGuard<'_, BTreeMap<(PathBuf, u64), Known>>, key: &(PathBuf, u64)) -> Result<Answer> {
    let begun = Instant::now();
    loop {
        match known.get(key) {
            None => return Ok(Answer::Detached),
            Some(Known::Status(status)) => return Ok(Answer::Over(status.clone())),
            Some(Known::Silent) => return Ok(Answer::Silent),
            Some(Known::Failed(problem)) => return Err(Error::Unavailable(problem.clone())),
            Some(Known::Asking) => {}
        }
        let left = PATIENCE.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Ok(Answer::Silent);
        }
        known = ANSWERED.wait_timeout(known, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Asks the kernel; a file system that never answers keeps this one thread.
fn ask(key: &(PathBuf, u64)) {
    let asked = File::open(&key.0).map(|device| ioctl::status(&device));
    let mut known = lock();
    let failed = |error: std::io::Error| {
        Known::Failed(format!("opening {}: {error}; is /dev the node's?", key.0.display()))
    };
    match asked {
        Ok(Ok(status)) => drop(known.insert(key.clone(), Known::Status(status))),
        Ok(Err(error)) if is_absent(&error) => drop(known.remove(key)),
        Ok(Err(_)) => drop(known.insert(key.clone(), Known::Silent)),
        Err(error) => drop(known.insert(key.clone(), failed(error))),
    }
    ANSWERED.notify_all();
}

fn lock() -> MutexGuard<'static, BTreeMap<(PathBuf, u64), Known>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}
