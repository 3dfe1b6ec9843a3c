//! The last unmount of a share. What pods have written and the server does not have yet goes with it, so it waits: as long
//! as the call may, and the call can be repeated. Only an administrator gives such data up: by the class's
//! `unmountPolicy: force`, or by a file beside the mount on the node.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use provisioners::{Ctx, Error, Result};
use rustix::io::Errno;

use super::super::mountinfo::Mount;
use super::super::{mounts, paths};
use super::child::{How, Task, Trouble};
use super::helper::Running;
use super::{Nfs, RUNG, is_of, make_dir};

/// How the names of mounts end whose class gives data up.
pub(super) const FORCE: &str = "-force";
/// How the name of the file ends by which an administrator gives up the data of another mount.
const WORD: &str = ".give-up";
/// How long one call waits for the server to take what was written.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long where nobody has asked for it.
const GLANCE: Duration = Duration::from_millis(200);
/// How long a call waits for another one on the same share.
const TURN: Duration = Duration::from_secs(45);

/// Processes that wait for a server, by the share's mount. One that hangs in the kernel cannot be ended, so it is waited for
/// again by the next call instead of starting another.
pub(super) type Syncs = Arc<Mutex<HashMap<PathBuf, Running>>>;

impl Nfs {
    /// Locks one share's mount against all calls and processes.
    pub(super) fn lock(&self, ctx: &Ctx, base: &Path) -> Result<fs::File> {
        let own = self.locks.join(base.file_name().unwrap_or_default());
        // Without room for another directory all shares share one lock.
        let dir = if make_dir(&own).is_ok() { own } else { self.home.clone() };
        let begun = Instant::now();
        loop {
            if let Some(file) = paths::try_lock(&dir)? {
                return Ok(file);
            }
            ctx.check()?;
            if begun.elapsed() >= TURN {
                return Err(Error::Unavailable(format!(
                    "locking {}: another call on the same share has not ended for {} s; repeat the call",
                    dir.display(),
                    TURN.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Takes down a staging path, and the share's mount when nothing else uses it. Its last user waits before that until
    /// the server has all data; the path stays as it is until then.
    pub fn unstage(&self, ctx: &Ctx, staging: &Path) -> Result<()> {
        let staged = mounts::on(staging)?.pop();
        let bases = self.bases()?;
        let (mine, others): (Vec<_>, Vec<_>) =
            bases.into_iter().partition(|base| staged.as_ref().is_some_and(|staged| is_of(staged, base)));
        if let Some(base) = mine.first()
            && is_last(base, Some(staging))?
        {
            self.settle(ctx, base, PATIENCE)?;
        }
        self.unmount(ctx, staging)?;
        for base in &mine {
            let _one = self.lock(ctx, &base.target)?;
            self.release(ctx, &base.target)?;
        }
        for base in others.iter().filter(|base| is_last(base, None).unwrap_or(false)) {
            self.tidy(ctx, base);
        }
        Ok(())
    }

    /// Unmounts a share's mount if no directory is bound of it; its lock is held.
    pub(super) fn release(&self, ctx: &Ctx, target: &Path) -> Result<()> {
        let Some(base) = mounts::on(target)?.pop() else { return Ok(()) };
        let home = target.parent();
        let used = mounts::select(|m| is_of(m, &base) && m.target.parent() != home)?;
        if !used.is_empty() {
            return Ok(());
        }
        let given_up = if is_last(&base, None)? { self.settle(ctx, &base, RUNG)? } else { false };
        let hows = if given_up { &[How::Force, How::Lazy][..] } else { &[How::Plain] };
        for how in hows {
            match self.helper.run(&Task::Unmount { path: target.to_owned(), how: *how }) {
                Ok(_) => break,
                // A process of our own may be looking at it. It goes with the next volume, and nothing is lost.
                Err(trouble) => {
                    tracing::warn!(share = %base.source.to_string_lossy(), %trouble, "the share stays mounted for now");
                }
            }
        }
        if mounts::on(target)?.is_empty() {
            let _ = fs::remove_dir(target);
            let _ = fs::remove_file(word(target));
        }
        Ok(())
    }

    /// Unmounts what a call that was interrupted has left of another share, if there is nothing to wait for.
    fn tidy(&self, ctx: &Ctx, base: &Mount<'_>) {
        let tidied = self.flush(base, GLANCE).and_then(|()| {
            let _one = self.lock(ctx, &base.target)?;
            self.release(ctx, &base.target)
        });
        if let Err(error) = tidied {
            tracing::debug!(%error, "a share that nobody uses stays mounted");
        }
    }

    /// Waits until the server has all that was written to a share; whether an administrator gives up what it has not.
    fn settle(&self, ctx: &Ctx, base: &Mount<'_>, patience: Duration) -> Result<bool> {
        ctx.stage("waiting for the NFS server to take what was written");
        let target = base.target.as_ref();
        let given_up =
            || word(target).exists() || target.as_os_str().as_encoded_bytes().ends_with(FORCE.as_bytes());
        let begun = Instant::now();
        loop {
            // In steps, for the word may come while it is waited for.
            let step = RUNG.min(patience.saturating_sub(begun.elapsed()));
            let Err(error) = self.flush(base, step) else { return Ok(false) };
            if given_up() {
                tracing::error!(
                    share = %base.source.to_string_lossy(),
                    mount = %target.display(),
                    bytes = ?unwritten(target),
                    "data that pods have written to volumes of this share and that its server has not taken is given up, as the administrator has said"
                );
                return Ok(true);
            }
            ctx.check()?;
            if begun.elapsed() >= patience {
                return Err(error);
            }
        }
    }

    /// Has the server take what was written to a share; it has not by then: [`Error::Unavailable`].
    fn flush(&self, base: &Mount<'_>, limit: Duration) -> Result<()> {
        let (target, begun) = (base.target.as_ref(), Instant::now());
        let kept = |syncs: &Syncs| syncs.lock().unwrap_or_else(PoisonError::into_inner).remove(target);
        loop {
            let before = kept(&self.syncs);
            let fresh = before.is_none();
            let task = Task::Sync { path: target.to_owned() };
            let running = before.map_or_else(|| self.helper.start_task(&task), Ok);
            let mut running = running.map_err(|trouble| trouble.told("waiting for the NFS server"))?;
            match running.wait(limit.saturating_sub(begun.elapsed())) {
                None => {
                    let mut syncs = self.syncs.lock().unwrap_or_else(PoisonError::into_inner);
                    syncs.insert(target.to_owned(), running);
                    return Err(waits(base));
                }
                // It began before the last was written, perhaps.
                Some(_) if !fresh => {}
                Some(Ok(_)) => return Ok(()),
                // The server has refused data, and pods were told so: there is nothing more to wait for.
                Some(Err(Trouble::Errno(errno))) => {
                    tracing::warn!(share = %base.source.to_string_lossy(), error = %Errno::from_raw_os_error(errno), "the server has refused to take what was written");
                    return Ok(());
                }
                Some(Err(trouble)) => return Err(trouble.told("waiting for the NFS server")),
            }
        }
    }
}

/// Whether with this mount of a share, and the path, the kernel gives up the share's file system.
fn is_last(base: &Mount<'_>, beside: Option<&Path>) -> Result<bool> {
    let home = base.target.parent();
    let others = mounts::select(|m| {
        m.device == base.device && m.target.parent() != home && Some(m.target.as_ref()) != beside
    })?;
    Ok(others.is_empty())
}

/// The file by which an administrator gives up a share's data.
fn word(target: &Path) -> PathBuf {
    let mut name = OsString::from(target);
    name.push(WORD);
    name.into()
}

fn waits(base: &Mount<'_>) -> Error {
    let target = base.target.as_ref();
    let bytes = unwritten(target).map_or_else(String::new, |bytes| format!(" about {bytes} bytes of"));
    Error::Unavailable(format!(
        "the NFS server of {} has not taken{bytes} what pods have written to volumes of this share, and nothing else uses it; see whether it runs and can be reached, and repeat the call. If the server never comes back, give the data up: touch {} on this node",
        base.source.to_string_lossy(),
        word(target).display()
    ))
}

/// How many bytes were written to a mount and not sent to the server, as the kernel counts them (`bytes:` of
/// /proc/self/mountstats); what was written twice before it was sent is counted twice.
fn unwritten(target: &Path) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/mountstats").ok()?;
    count_unwritten(&text, &target.display().to_string())
}

fn count_unwritten(text: &str, target: &str) -> Option<u64> {
    let begin = format!(" mounted on {target} with ");
    let mut lines = text.lines().skip_while(|line| !(line.starts_with("device ") && line.contains(&begin)));
    lines.next()?;
    let bytes = lines
        .take_while(|line| !line.starts_with("device "))
        .find_map(|line| line.trim().strip_prefix("bytes:"))?;
    let numbers: Vec<u64> = bytes.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // Read and written by pods, the same directly, read from and written to the server.
    let [_, written, _, directly, _, sent, ..] = numbers[..] else { return None };
    Some((written + directly).saturating_sub(sent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_has_not_taken_is_counted() {
        let text = "device none mounted on /proc with fstype proc\n\
                    device nas:/srv mounted on /k/nfs/ab with fstype nfs4 statvers=1.1\n\topts:\trw\n\
                    \tbytes:\t10 9000 0 100 10 4000 1 2\n\
                    device nas:/srv mounted on /k/pod with fstype nfs4 statvers=1.1\n\tbytes:\t0 1 0 0 0 0 0 0\n";
        assert_eq!(count_unwritten(text, "/k/nfs/ab"), Some(5100));
        assert_eq!(count_unwritten(text, "/k/pod"), Some(1));
        assert_eq!(count_unwritten(text, "/elsewhere"), None);
    }
}
