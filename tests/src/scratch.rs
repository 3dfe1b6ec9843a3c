//! A temporary directory that unmounts and detaches whatever a test left in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// The directory; on drop helpers that work in it are killed, everything mounted below it is unmounted, every loop device over a file in it is detached,
/// and it is removed. `KEEP_SCRATCH=1` leaves it.
#[derive(Debug)]
pub struct Scratch {
    dir: Option<TempDir>,
    path: PathBuf,
}

impl Scratch {
    /// A new one. Its path has no symbolic link in it.
    pub fn new() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("volumectl-test-").tempdir()?;
        let path = dir.path().canonicalize()?;
        Ok(Self { dir: Some(dir), path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Loop devices over files in it, with their backing files.
    pub fn loops(&self) -> Vec<(PathBuf, String)> {
        let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        devices
            .filter_map(|entry| {
                let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
                let below = backing.trim_end().starts_with(&format!("{}/", self.path.display()));
                below.then(|| (Path::new("/dev").join(entry.file_name()), backing.trim_end().to_owned()))
            })
            .collect()
    }

    /// Mount points in it, in the order they were mounted.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let target = |line: &str| line.split(' ').nth(4).map(|t| PathBuf::from(t.replace("\\040", " ")));
        table.lines().filter_map(target).filter(|t| t.starts_with(&self.path) && *t != self.path).collect()
    }

    /// Helpers of mappings outlive their driver, and a failed test must leave none.
    fn end_helpers(&self) {
        let own = format!("{}/", self.path.display());
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let (true, true, Some(pid)) = (line.contains("qemu-storage-daemon"), line.contains(&own), pid)
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    /// Files and directories below a directory of it, relative and sorted.
    pub fn tree(dir: &Path) -> Vec<PathBuf> {
        let (mut found, mut left) = (Vec::new(), vec![dir.to_path_buf()]);
        while let Some(next) = left.pop() {
            for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
                found.push(entry.path().strip_prefix(dir).map(Path::to_path_buf).unwrap_or_default());
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    left.push(entry.path());
                }
            }
        }
        found.sort();
        found
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::env::var_os("KEEP_SCRATCH").is_some() {
            let _ = self.dir.take().map(TempDir::keep);
            return;
        }
        self.end_helpers();
        for mount in self.mounts().iter().rev() {
            let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
        }
        for (device, _) in self.loops() {
            let _ = Command::new("losetup").arg("-d").arg(device).status();
        }
    }
}
