//! What is frozen, in a file of the state directory, for the case that nobody survives who could thaw it.
//!
//! The file is locked by everybody who will thaw: who can lock it alone knows that they are all gone.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use provisioners::{Error, Result};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::super::{boot, mounts};
use super::{Held, ioctl};

const SCHEMA: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    schema: u32,
    /// The kernel's boot id: what was frozen before the machine started is not frozen any more.
    boot: String,
    targets: Vec<Target>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Target {
    /// Where it was mounted, for messages: another container may have it elsewhere.
    path: PathBuf,
    /// Major and minor number of the file system's device.
    device: (u32, u32),
}

/// A marker of this process. Dropped when all is thawed: removes the file.
pub struct Marker {
    pub(super) path: PathBuf,
    file: File,
}

impl Marker {
    /// Writes a marker, locked.
    pub fn write(state: &Path, held: &[Held]) -> Result<Self> {
        let dir = directory(state);
        let path = dir.join(uuid::Uuid::new_v4().to_string());
        let doing = |e| Error::io(format!("writing {}", path.display()), e);
        let targets = held.iter().map(|it| Target { path: it.path.clone(), device: it.device }).collect();
        let content = Content { schema: SCHEMA, boot: boot()?, targets };
        let bytes = serde_json::to_vec(&content).map_err(|e| Error::Internal(e.to_string()))?;
        fs::create_dir_all(&dir).map_err(doing)?;
        // A name that the next start does not take for a marker, until it is whole.
        let draft = path.with_extension("new");
        let mut file = File::options().read(true).write(true).create_new(true).open(&draft).map_err(doing)?;
        rustix::fs::flock(&file, FlockOperation::LockShared).map_err(|e| doing(e.into()))?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(doing)?;
        fs::rename(&draft, &path).map_err(doing)?;
        Ok(Self { path, file })
    }

    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(marker = %self.path.display(), %error, "a marker of what was frozen stays");
        }
    }
}

fn directory(state: &Path) -> PathBuf {
    state.join("frozen")
}

/// Thaws what dead predecessors left frozen; returns what was thawed. What a living one has frozen is its own: a thread
/// waits until it has ended, and thaws what it then leaves. One marker that cannot be read or thawed keeps no other from
/// it, and stays.
pub fn recover(state: &Path) -> Result<Vec<String>> {
    let dir = directory(state);
    let entries = match fs::read_dir(&dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Error::io(format!("reading {}", dir.display()), e))?,
    };
    let mut done = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io(format!("reading {}", dir.display()), e))?.path();
        match recover_one(&path, FlockOperation::NonBlockingLockExclusive) {
            Ok(thawed) => done.extend(thawed),
            Err(error) => tracing::error!(marker = %path.display(), %error, "{STAYS}"),
        }
    }
    Ok(done)
}

const STAYS: &str =
    "what a killed driver left frozen was not thawed: thaw it with `fsfreeze -u`, and remove the marker";

fn recover_one(path: &Path, how: FlockOperation) -> Result<Vec<String>> {
    let doing = || format!("reading {}", path.display());
    let mut file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Error::io(doing(), e))?,
    };
    match rustix::fs::flock(&file, how) {
        Err(Errno::WOULDBLOCK) => {
            wait_for_owner(path.to_owned());
            return Ok(Vec::new());
        }
        other => other.map_err(|e| Error::io(doing(), e))?,
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| Error::io(doing(), e))?;
    let thawed = if path.extension().is_some() {
        // Its writer died before it froze anything.
        Vec::new()
    } else {
        thaw_all(path, &bytes)?
    };
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", path.display()), e))
        }
        _ => Ok(thawed),
    }
}

fn wait_for_owner(path: PathBuf) {
    std::thread::spawn(move || match recover_one(&path, FlockOperation::LockExclusive) {
        Ok(thawed) if thawed.is_empty() => {}
        Ok(thawed) => tracing::warn!(?thawed, "thawed what a driver left that was killed meanwhile"),
        Err(error) => tracing::error!(marker = %path.display(), %error, "{STAYS}"),
    });
}

fn thaw_all(path: &Path, bytes: &[u8]) -> Result<Vec<String>> {
    let corrupt = |problem: String| Error::Corrupt { what: path.display().to_string(), problem };
    if bytes.first() != Some(&b'{') {
        return thaw_paths(bytes);
    }
    let content: Content = serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))?;
    if content.schema > SCHEMA {
        return Err(corrupt(format!("its schema {} is of a newer driver", content.schema)));
    }
    if content.boot != boot()? {
        return Ok(Vec::new());
    }
    let mut done = Vec::new();
    for target in content.targets {
        let mounts = mounts::select(|m| m.device == target.device)?;
        if let Some(mount) = mounts.first() {
            done.extend(thaw(&mount.target)?);
        } else if exists(target.device) {
            return Err(Error::Refused(format!(
                "{} (device {}:{}) is not mounted in this mount name space",
                target.path.display(),
                target.device.0,
                target.device.1
            )));
        }
    }
    Ok(done)
}

/// A device without a mount that we see may be mounted where we do not see it, as long as the kernel has it. A loop
/// device (its major number is 7) is always there, with or without a file.
fn exists((major, minor): (u32, u32)) -> bool {
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    if major == 7 { device.join("loop").exists() } else { device.exists() }
}

/// Markers of earlier drivers are lines of mount points.
fn thaw_paths(bytes: &[u8]) -> Result<Vec<String>> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut done = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let target = Path::new(std::ffi::OsStr::from_bytes(line));
        if !mounts::on(target)?.is_empty() {
            done.extend(thaw(target)?);
        }
    }
    Ok(done)
}

fn thaw(target: &Path) -> Result<Option<String>> {
    let doing = || format!("thawing {}", target.display());
    let dir = File::open(target).map_err(|e| Error::io(doing(), e))?;
    match ioctl::thaw(&dir) {
        Ok(()) => Ok(Some(format!("thawed {}", target.display()))),
        // Not frozen.
        Err(Errno::INVAL) => Ok(None),
        Err(errno) => Err(Error::io(doing(), errno)),
    }
}
