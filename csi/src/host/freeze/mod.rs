//! Stopping writes to mounted file systems for the time of a copy (FIFREEZE of ioctl_fs(2)).
//!
//! Three can thaw, each by a descriptor that was opened before the freeze: this process, on every outcome; a helper
//! process, when this one is killed; and the next start, by a marker, when both are. When the helper is killed, this
//! process thaws at once and the copy is thrown away, so there are always two who can.

mod guardian;
mod ioctl;
mod marker;

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use provisioners::local::Quiesced;
use provisioners::{Error, Result};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::mountinfo::Mount;
use super::outside::Outside;
use guardian::Guardian;
use marker::Marker;

pub use guardian::run as run_guardian;
pub use marker::recover;

/// How long a file system usually may take to write out what it has and stand still.
pub const FREEZES: Duration = Duration::from_secs(20);
/// How long one is waited for that is frozen already: the helper of a driver that was just killed is about to thaw it.
const BUSY: Duration = Duration::from_secs(5);
/// How long a thaw may take before the call is answered without it.
const THAWS: Duration = Duration::from_secs(20);

/// Who freezes: what is started for it, and where markers are.
pub struct Freezer<'a> {
    /// `csi-driver`.
    pub helper: &'a Path,
    /// Where the helper runs.
    pub outside: &'a Outside,
    /// The state directory.
    pub state: &'a Path,
    /// How long a file system may take to write out what it has and stand still.
    pub patience: Duration,
}

/// A file system that is to stand still, held open.
pub struct Held {
    path: PathBuf,
    device: (u32, u32),
    dir: File,
}

/// What happens while file systems stand still.
pub enum Event {
    /// One of them does now, or cannot.
    Froze(Result<()>),
    /// The helper is gone.
    Alone,
    /// The copy is done.
    Release,
}

/// File systems that stand still until this is dropped or [`Quiesced::resume`]d.
pub struct Frozen {
    events: Sender<Event>,
    outcome: Option<Receiver<Result<()>>>,
}

impl Freezer<'_> {
    /// Freezes the file systems of these mounts for at most `limit`. All or none. One that does not stand still in
    /// time: [`Error::Deadline`]; it is thawed when it does.
    pub fn freeze(&self, mounts: &[Mount<'static>], limit: Duration) -> Result<Frozen> {
        let held = mounts.iter().map(hold).collect::<Result<Vec<_>>>()?;
        let marker = Marker::write(self.state, &held)?;
        let (events, happens) = mpsc::channel();
        let guardian = Guardian::start(self.helper, self.outside, &held, marker.file(), events.clone())?;
        let keepers = Arc::new(Keepers { _guardian: guardian, _marker: marker });
        let (started, frozen) = mpsc::channel();
        let (ended, outcome) = mpsc::channel();
        let freezing = Freezing { held: held.into_iter().map(Arc::new).collect(), keepers, done: Vec::new() };
        let (to_it, freeze_limit) = (events.clone(), Instant::now() + self.patience);
        std::thread::spawn(move || {
            let _ = ended.send(freezing.run(&to_it, &happens, freeze_limit, limit, &started));
        });
        // Without a word the thread has ended with what it says.
        match frozen.recv() {
            Ok(()) => Ok(Frozen { events, outcome: Some(outcome) }),
            Err(_) => Err(outcome.recv().unwrap_or(Ok(())).err().unwrap_or_else(vanished)),
        }
    }
}

fn vanished() -> Error {
    Error::Internal("the thread that freezes file systems has ended".into())
}

/// Opens a mount, and makes sure that it is the one that was found.
fn hold(mount: &Mount<'static>) -> Result<Held> {
    let doing = || format!("opening {}", mount.target.display());
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let mut options = File::options();
    options.read(true).custom_flags(flags.bits().cast_signed());
    let dir = options.open(&mount.target).map_err(|e| Error::io(doing(), e))?;
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", dir.as_raw_fd()))
        .map_err(|e| Error::io(doing(), e))?;
    let id = about.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
    if id != Some(mount.id) {
        return Err(Error::Unavailable(format!(
            "{}: what is mounted there has changed just now; repeat the call",
            mount.target.display()
        )));
    }
    Ok(Held { path: mount.target.clone().into_owned(), device: mount.device, dir })
}

/// What stays until the last file system is thawed: the helper is ended, and the marker removed, when this is dropped.
struct Keepers {
    _guardian: Guardian,
    _marker: Marker,
}

/// The freeze of one file system, which nothing can interrupt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Wanted,
    Frozen,
    Abandoned,
}

struct Freezing {
    held: Vec<Arc<Held>>,
    keepers: Arc<Keepers>,
    done: Vec<Arc<Held>>,
}

impl Freezing {
    /// The whole of it, on a thread of its own. `started` is told when all stand still.
    fn run(
        mut self,
        to_us: &Sender<Event>,
        happens: &Receiver<Event>,
        freeze_limit: Instant,
        limit: Duration,
        started: &Sender<()>,
    ) -> Result<()> {
        let frozen = self.held.clone().into_iter().try_for_each(|it| {
            self.freeze(&it, to_us, happens, freeze_limit)?;
            self.done.push(it);
            Ok(())
        });
        let kept = frozen.and_then(|()| {
            let _ = started.send(());
            match happens.recv_timeout(limit) {
                Ok(Event::Release) => Ok(()),
                Ok(_) => Err(alone()),
                Err(_) => {
                    Err(Error::Deadline("the copy took longer than a file system may stand still".into()))
                }
            }
        });
        let thawed = self.done.iter().rev().map(|it| thaw(it)).fold(Ok(()), Result::and);
        kept.and(thawed)
    }

    fn freeze(
        &self,
        it: &Arc<Held>,
        to_us: &Sender<Event>,
        happens: &Receiver<Event>,
        limit: Instant,
    ) -> Result<()> {
        let phase = Arc::new(Mutex::new(Phase::Wanted));
        let (own, held, keepers, tell) = (phase.clone(), it.clone(), self.keepers.clone(), to_us.clone());
        std::thread::spawn(move || {
            let frozen = freeze_one(&held, limit);
            let mut phase = own.lock().unwrap_or_else(PoisonError::into_inner);
            if *phase == Phase::Abandoned && frozen.is_ok() {
                let _ = thaw(&held);
            } else if frozen.is_ok() {
                *phase = Phase::Frozen;
            }
            drop(phase);
            let _ = tell.send(Event::Froze(frozen));
            drop(keepers);
        });
        let problem = match happens.recv_timeout(limit.saturating_duration_since(Instant::now())) {
            Ok(Event::Froze(frozen)) => return frozen,
            Ok(_) => alone(),
            Err(_) => Error::Deadline(format!(
                "{} does not stand still: its device is slow or does not answer; repeat the call",
                it.path.display()
            )),
        };
        let mut phase = phase.lock().unwrap_or_else(PoisonError::into_inner);
        if *phase == Phase::Frozen {
            let _ = thaw(it);
        }
        *phase = Phase::Abandoned;
        Err(problem)
    }
}

fn alone() -> Error {
    Error::Unavailable(
        "the helper that would thaw the file system if this driver were killed has ended; the copy was given up, repeat \
         the call"
            .into(),
    )
}

fn freeze_one(it: &Held, limit: Instant) -> Result<()> {
    let busy = limit.min(Instant::now() + BUSY);
    loop {
        match ioctl::freeze(&it.dir) {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY) if Instant::now() < busy => std::thread::sleep(Duration::from_millis(50)),
            Err(errno) => {
                return Err(Error::Refused(format!(
                    "{} cannot be frozen for a consistent copy: {errno}",
                    it.path.display()
                )));
            }
        }
    }
}

/// Not frozen any more: somebody else has thawed it, and what was copied meanwhile is of no one moment.
fn thaw(it: &Held) -> Result<()> {
    let path = it.path.display();
    ioctl::thaw(&it.dir).map_err(|errno| {
        tracing::warn!(%path, %errno, "thawing");
        match errno {
            Errno::INVAL => Error::Unavailable(format!(
                "{path} was thawed by somebody else during the copy; repeat the call"
            )),
            _ => Error::Internal(format!("{path} could not be thawed ({errno}): run `fsfreeze -u {path}`")),
        }
    })
}

impl Frozen {
    fn thaw(&mut self) -> Result<()> {
        let Some(outcome) = self.outcome.take() else { return Ok(()) };
        let _ = self.events.send(Event::Release);
        outcome.recv_timeout(THAWS).unwrap_or_else(|_| {
            Err(Error::Unavailable("a file system does not thaw; it is gone on with, repeat the call".into()))
        })
    }
}

impl Quiesced for Frozen {
    fn resume(mut self: Box<Self>) -> Result<()> {
        self.thaw()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = self.thaw() {
            tracing::error!(%error, "thawing after a copy that failed");
        }
    }
}

/// Nothing was mounted, so nothing had to stand still.
pub struct Still;

impl Quiesced for Still {
    fn resume(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
