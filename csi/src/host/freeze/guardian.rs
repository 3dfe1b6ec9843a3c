//! The process that thaws when the driver is killed: `csi-driver node-helper thaw`. It runs outside the driver's
//! container where that can be, and has the same file systems open.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use provisioners::{Error, Result, reaper};
use rustix::fs::FlockOperation;

use super::super::outside::Outside;
use super::{Event, Held, ioctl};

/// How long it may take to start.
const STARTS: Duration = Duration::from_secs(20);
const READY: &str = "ready";

/// The guardian of one freeze. Dropped when all is thawed: ends it.
pub struct Guardian {
    child: Child,
    /// Its end is how the guardian knows that no thread of the driver is left, not even one in the middle of a freeze.
    pub(super) life: Option<ChildStdin>,
}

impl Guardian {
    /// Starts it and waits until it has everything open. `events` is told when it ends.
    pub fn start(
        helper: &Path,
        outside: &Outside,
        held: &[Held],
        marker: &File,
        events: Sender<Event>,
    ) -> Result<Self> {
        let mut command = outside.command(helper);
        command.args(["node-helper", "thaw"]).arg(std::process::id().to_string());
        command.arg(marker.as_raw_fd().to_string());
        command.args(held.iter().map(|it| it.dir.as_raw_fd().to_string()));
        let doing = "starting the helper that thaws if this driver is killed";
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = spawned.map_err(|e| Error::io(doing, e))?;
        let (life, stdout) = (child.stdin.take(), child.stdout.take());
        let (Some(life), Some(stdout)) = (life, stdout) else {
            return Err(Error::Internal(format!("{doing}: it has no pipes")));
        };
        let guardian = Self { child, life: Some(life) };
        let (tell, ready) = mpsc::channel();
        std::thread::spawn(move || {
            let (mut stdout, mut line) = (BufReader::new(stdout), String::new());
            let _ = stdout.read_line(&mut line);
            let _ = tell.send(line.trim() == READY);
            let _ = stdout.read_to_end(&mut Vec::new());
            let _ = events.send(Event::Alone);
        });
        match ready.recv_timeout(STARTS) {
            Ok(true) => Ok(guardian),
            _ => Err(Error::Unavailable(format!(
                "{doing}: {} is not ready; repeat the call",
                helper.display()
            ))),
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // It must not take the end of its pipe for the driver's: what is frozen next is not its to thaw.
        reaper::kill(&mut self.child);
        let _ = self.child.wait();
        drop(self.life.take());
    }
}

/// The guardian's side: the driver's process id, and its descriptors of the marker and of what is to be thawed.
pub fn run(driver: &str, descriptors: &[&str]) -> i32 {
    match guard(driver, descriptors) {
        Ok(()) => 0,
        Err(error) => {
            println!("{error}");
            1
        }
    }
}

fn guard(driver: &str, descriptors: &[&str]) -> io::Result<()> {
    let open = |number: &&str| File::open(format!("/proc/{driver}/fd/{number}"));
    let files = descriptors.iter().map(open).collect::<io::Result<Vec<_>>>()?;
    let Some((marker, dirs)) = files.split_first() else { return Ok(()) };
    rustix::fs::flock(marker, FlockOperation::LockShared)?;
    println!("{READY}");
    io::stdin().read_to_end(&mut Vec::new())?;
    for dir in dirs {
        // Not frozen is good, too.
        let _ = ioctl::thaw(dir);
    }
    Ok(())
}
