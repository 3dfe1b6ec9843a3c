//! A temporary directory that unmounts and detaches whatever a test left in it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Pid;
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

    /// Loop devices over files in it, with the kernel's name of their backing files: that is a path in the mount name
    /// space of who attached it, so a file is also known by its inode.
    pub fn loops(&self) -> Vec<(PathBuf, String)> {
        let own = devices_below(&self.path);
        let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        devices
            .filter_map(|entry| {
                let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
                let device = Path::new("/dev").join(entry.file_name());
                let below = backing.trim_end().starts_with(&format!("{}/", self.path.display()));
                (below || own.iter().any(|(own, _)| *own == device))
                    .then(|| (device, backing.trim_end().to_owned()))
            })
            .collect()
    }

    /// The same, opened: the number of a device that is open goes to no other file, although the last unmount of what
    /// was mounted with `-o loop` detaches it.
    fn held(&self) -> Vec<(PathBuf, fs::File)> {
        let open =
            self.loops().into_iter().filter_map(|(device, _)| Some((fs::File::open(&device).ok()?, device)));
        let open: Vec<_> = open.collect();
        if open.is_empty() {
            return Vec::new();
        }
        let still = self.loops();
        let is_still = |device: &PathBuf| still.iter().any(|(own, _)| own == device);
        open.into_iter().filter(|(_, device)| is_still(device)).map(|(open, device)| (device, open)).collect()
    }

    /// Mount points in it, in the order they were mounted.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let target = |line: &str| line.split(' ').nth(4).map(|t| PathBuf::from(t.replace("\\040", " ")));
        table.lines().filter_map(target).filter(|t| t.starts_with(&self.path) && *t != self.path).collect()
    }

    /// A file system of its own, of so many bytes, for local volumes at [`crate::drivers::local_config`]'s root.
    pub fn own_root(&self, fs: &str, bytes: u64) -> anyhow::Result<()> {
        let (root, file) = (self.path.join("volumes"), self.path.join("root.img"));
        fs::create_dir(&root)?;
        fs::File::create(&file)?.set_len(bytes)?;
        let (root, file) = (root.display().to_string(), file.display().to_string());
        crate::run(&[&format!("mkfs.{fs}"), "-q", &file])?;
        crate::run(&["mount", "-o", "loop", &file, &root]).map(drop)
    }

    /// Helpers of mappings outlive their driver, and a failed test must leave none.
    fn end_helpers(&self) {
        for pid in daemons_below(&self.path) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
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

/// The processes of qemu-storage-daemon that work below a directory.
pub fn daemons_below(dir: &Path) -> Vec<Pid> {
    let own = format!("{}/", dir.display());
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_one = |entry: &fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.contains("qemu-storage-daemon") && line.contains(&own)
    };
    let pid = |entry: fs::DirEntry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?);
    processes.filter(is_one).filter_map(pid).collect()
}

/// Loop devices over files below a directory, with the file's device and inode numbers.
pub fn devices_below(dir: &Path) -> Vec<(PathBuf, (u64, u64))> {
    let columns = "NAME,BACK-MAJ:MIN,BACK-INO";
    let listed =
        Command::new("losetup").args(["--list", "--noheadings", "--raw", "--output", columns]).output();
    let Ok(listed) = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()) else {
        return Vec::new();
    };
    let files: Vec<_> = Scratch::tree(dir)
        .iter()
        .filter_map(|path| fs::symlink_metadata(dir.join(path)).ok())
        .filter(fs::Metadata::is_file)
        .map(|meta| (meta.dev(), meta.ino()))
        .collect();
    let device = |line: &str| {
        let [name, number, inode] = line.split_whitespace().collect::<Vec<_>>()[..] else { return None };
        let (major, minor) = number.split_once(':')?;
        let file = (rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?), inode.parse().ok()?);
        files.contains(&file).then(|| (name.into(), file))
    };
    listed.lines().filter_map(device).collect()
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::env::var_os("KEEP_SCRATCH").is_some() {
            let _ = self.dir.take().map(TempDir::keep);
            return;
        }
        // While the helpers live: a file of a dead one cannot be asked for its inode.
        let loops = self.held();
        self.end_helpers();
        // Of a scratch directory that is a mount itself (a container's) that one goes last.
        for mount in self.mounts().iter().rev().chain([&self.path]) {
            let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
        }
        for (device, _open) in loops {
            let _ = Command::new("losetup").arg("-d").arg(device).status();
        }
    }
}
