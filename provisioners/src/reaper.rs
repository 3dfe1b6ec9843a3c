//! Killed children that do not go: one whose system call hangs (a frozen file system, a device or server that does not
//! answer) takes no signal. It is left to a thread that waits for its end, named, and counted: of each program only so
//! many.

use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::{Error, Result};

/// How long a killed child may take to go before it is said to be left behind.
const DYING: Duration = Duration::from_secs(1);
/// How often those that were left behind are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// So many of one program may be left behind before it is not started again.
pub const MOST: usize = 16;

struct Left {
    program: String,
    child: Child,
    since: Instant,
}

/// Those that were left behind, and whether somebody looks after them.
static LEFT: Mutex<(Vec<Left>, bool)> = Mutex::new((Vec::new(), false));

fn lock() -> MutexGuard<'static, (Vec<Left>, bool)> {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a program may be started: [`Error::Unavailable`] when too many of it were killed and did not go. What hangs by
/// one thing is counted apart from what hangs by another if its name says by which.
pub fn admit(program: &str) -> Result<()> {
    let left = lock();
    let of_it: Vec<_> = left.0.iter().filter(|left| left.program == program).collect();
    let Some(oldest) = of_it.iter().max_by_key(|left| left.since.elapsed()).filter(|_| of_it.len() >= MOST)
    else {
        return Ok(());
    };
    Err(Error::Unavailable(format!(
        "{program}: {} of it were killed and are still in the kernel, the oldest (process {}) for {} s; see what they \
         wait for (/proc/{}/stack) and the kernel's log",
        of_it.len(),
        oldest.child.id(),
        oldest.since.elapsed().as_secs(),
        oldest.child.id()
    )))
}

/// Kills a child with all its children. One that does not go in a second is left behind; its process id then.
pub fn bury(mut child: Child, program: &str) -> Option<u32> {
    kill(&mut child);
    let begun = Instant::now();
    while begun.elapsed() < DYING {
        if !matches!(child.try_wait(), Ok(None)) {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = child.id();
    tracing::warn!(program, pid, "it was killed and is still in the kernel; it is waited for elsewhere");
    keep(child, program, begun);
    Some(pid)
}

/// The same without any wait: for who cannot, such as a destructor.
pub fn leave(mut child: Child, program: &str) {
    // One that was waited for has given its number back.
    if !matches!(child.try_wait(), Ok(None)) {
        return;
    }
    kill(&mut child);
    if matches!(child.try_wait(), Ok(None)) {
        keep(child, program, Instant::now());
    }
}

/// Kills a child with all its children, and waits for nothing.
pub fn kill(child: &mut Child) {
    if let Err(error) = kill_process_group(Pid::from_child(child), Signal::KILL) {
        tracing::debug!(%error, "it leads no process group");
    }
    let _ = child.kill();
}

fn keep(child: Child, program: &str, since: Instant) {
    let mut left = lock();
    left.0.push(Left { program: program.to_owned(), child, since });
    if !left.1 {
        left.1 = std::thread::Builder::new().name("reaper".into()).spawn(reap).is_ok();
    }
}

/// How many of a program were left behind and have not gone yet.
pub fn left(program: &str) -> usize {
    lock().0.iter().filter(|left| left.program == program).count()
}

fn reap() {
    loop {
        std::thread::sleep(LOOK);
        let mut left = lock();
        left.0.retain_mut(|left| {
            let there = matches!(left.child.try_wait(), Ok(None));
            let seconds = left.since.elapsed().as_secs();
            if !there && left.since.elapsed() >= DYING {
                tracing::info!(program = %left.program, pid = left.child.id(), seconds, "the killed process has gone");
            }
            there
        });
        if left.0.is_empty() {
            left.1 = false;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").process_group(0).spawn().unwrap()
    }

    #[test]
    fn who_is_left_is_killed_reaped_and_counted_by_its_name() {
        let begun = Instant::now();
        // As if none of them went.
        let children: Vec<_> = (0..MOST).map(|_| sleeper()).collect();
        let pids: Vec<_> = children.iter().map(Pid::from_child).collect();
        children.into_iter().for_each(|child| keep(child, "a test's", begun));
        let error = admit("a test's").unwrap_err();
        assert!(error.label() == "unavailable" && error.to_string().contains("16 of it"), "{error}");
        admit("another test's").unwrap();
        leave(sleeper(), "a test's");
        assert!(left("a test's") >= MOST);
        for pid in pids {
            kill_process_group(pid, Signal::KILL).unwrap();
        }
        while left("a test's") > 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "they were not reaped");
            std::thread::sleep(Duration::from_millis(10));
        }
        admit("a test's").unwrap();
    }
}
