//! One run or undo at a time on a mount directory: a lock that the kernel takes back when its process ends, however
//! that ends.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

const PAUSE: Duration = Duration::from_millis(100);

/// The lock; dropping it gives it back.
#[derive(Debug)]
pub struct Lock {
    // Holds the lock while it is open.
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock of a directory, which is made if it is not there. Who comes second waits, and gives up after
    /// `limit`: nothing was changed then.
    pub async fn take(dir: &Path, limit: Duration) -> Result<Self> {
        let (path, begun) = (dir.join(super::state::DIR).join("lock"), Instant::now());
        let mut told = false;
        loop {
            if let Some(lock) = Self::attempt(&path)? {
                return Ok(lock);
            }
            let holder = fs::read_to_string(&path).unwrap_or_default();
            let whose = format!("process {} works in {}", holder.trim(), dir.display());
            if begun.elapsed() >= limit {
                let text = format!("{whose} and has not ended in {} s; nothing was changed", limit.as_secs());
                return Err(provisioners::Error::Deadline(text).into());
            }
            if !std::mem::replace(&mut told, true) {
                anstream::eprintln!("wait {whose}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn attempt(path: &Path) -> Result<Option<Self>> {
        let doing = || format!("locking {}", path.display());
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        let opened = fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
        let mut file = match opened {
            // Who ends takes the directory away.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(doing)?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            other => other.with_context(doing)?,
        }
        // The one before may have removed the file that was opened.
        let same = fs::metadata(path).is_ok_and(|it| file.metadata().is_ok_and(|own| own.ino() == it.ino()));
        if !same {
            return Ok(None);
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).with_context(doing)?;
        Ok(Some(Self { _file: file, path: path.to_owned() }))
    }

    /// Gives it back, and removes its file and the directories above it that are empty.
    pub fn end(self) {
        let Some(dir) = self.path.parent() else { return };
        let alone = fs::read_dir(dir).is_ok_and(|entries| entries.flatten().count() == 1);
        if alone {
            let _ = fs::remove_file(&self.path);
            let _ = fs::remove_dir(dir);
            let _ = dir.parent().map(fs::remove_dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_comes_second_waits_or_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path(), Duration::ZERO).await.unwrap();
        let refused = Lock::take(dir.path(), Duration::ZERO).await.unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        let waiting = Lock::take(dir.path(), Duration::from_secs(60));
        let ends = async {
            tokio::time::sleep(PAUSE * 2).await;
            first.end();
        };
        let (second, ()) = tokio::join!(waiting, ends);
        let second = second.unwrap();
        assert!(second.path.exists(), "the first has not removed what the second holds");
        second.end();
        assert!(!dir.path().exists());
    }

    #[tokio::test]
    async fn what_a_process_has_left_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        drop(Lock::take(dir.path(), Duration::ZERO).await.unwrap());
        let path = dir.path().join(super::super::state::DIR).join("lock");
        assert!(path.exists(), "as after SIGKILL");
        Lock::take(dir.path(), Duration::ZERO).await.unwrap().end();
    }
}
