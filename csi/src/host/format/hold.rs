//! Having a device to oneself from the look at it to the end of the act.
//!
//! Two things are held. flock(2) keeps other drivers off; mkfs inherits it, so it lasts as long as that runs, also when
//! this process is killed. O_EXCL, which a mount and every mkfs asks for, too, keeps all else off; it is given up only for
//! the moment in which mkfs takes it.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use provisioners::{Error, Result};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::super::mounts;

/// udev looks at a device when it changes, and holds it for some milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// A device that nobody else formats or mounts meanwhile.
#[derive(Debug)]
pub struct Hold {
    /// Open for reading and writing, exclusively.
    pub device: File,
    lock: File,
}

impl Hold {
    /// Takes a device. Somebody else has it: [`Error::Unavailable`], naming who.
    pub fn take(path: &Path, id: &str) -> Result<Self> {
        let begun = Instant::now();
        loop {
            let tried =
                Self::attempt(path).map_err(|e| Error::io(format!("opening {}", path.display()), e))?;
            if let Some(hold) = tried {
                return Ok(hold);
            }
            if begun.elapsed() > PATIENCE {
                return Err(busy(path, id));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn attempt(path: &Path) -> std::io::Result<Option<Self>> {
        let lock = File::open(path)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            other => other?,
        }
        Ok(exclusive(path)?.map(|device| Self { device, lock }))
    }

    /// Gives the device to a program: the lock, which becomes its standard input. The rest is let go.
    pub fn lend(self, path: &Path) -> File {
        drop(self.device);
        settle(path);
        self.lock
    }

    /// Lets the device go, so that it can be checked or mounted.
    pub fn release(self, path: &Path) {
        drop(self.device);
        settle(path);
    }
}

/// Waits until nothing of this process keeps a device any more: a child that another thread starts has a copy of every
/// descriptor until it becomes its program, and what wants the device to itself would find it busy.
fn settle(path: &Path) {
    let begun = Instant::now();
    while exclusive(path).is_ok_and(|open| open.is_none()) && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Opens a device for itself; `None`: somebody else has it so.
fn exclusive(path: &Path) -> std::io::Result<Option<File>> {
    let flag = OFlags::EXCL.bits().cast_signed();
    match File::options().read(true).write(true).custom_flags(flag).open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => Ok(None),
        other => other.map(Some),
    }
}

fn busy(path: &Path, id: &str) -> Error {
    let users = mounts::open_below(path, 3).join(", ");
    let users =
        if users.is_empty() { "another program or a mount in another name space".into() } else { users };
    Error::Unavailable(format!(
        "volume {id}: {} is in use by {users}; not touching it until that has ended; repeat the call",
        path.display()
    ))
}
