//! What belongs to others and stands where the driver's own things stand.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use e2e::ceph::Ceph;
use e2e::control;

/// An image without a record of ours.
pub const IMAGE: &str = "foreign";
/// A directory that no volume is in.
pub const DIRECTORY: &str = "foreign";
const TEXT: &str = "not yours";

/// An image with a lock, directories with a file, and a loop device over a file that is deleted.
pub struct Foreign {
    image: String,
    lock: String,
    share: PathBuf,
    root: PathBuf,
    device: String,
}

impl Foreign {
    /// Puts them there; `place` is a pool with its namespace, and `dir` has the local root `volumes`.
    pub fn plant(ceph: &Ceph, place: &str, share: &Path, dir: &Path) -> Result<Self> {
        let image = format!("{place}/{IMAGE}");
        ceph.run("rbd", &["create", "--size", "8", &image])?;
        ceph.run("rbd", &["lock", "add", &image, "theirs"])?;
        let lock = ceph.run("rbd", &["lock", "ls", &image])?;
        let (share, root) = (share.join(DIRECTORY), dir.join("volumes").join(DIRECTORY));
        let script = format!("mkdir -p {0} && printf '{TEXT}' > {0}/file", share.display());
        ensure!(control::run(&["sh", "-c", &script], &[])?.code == 0, "{script}");
        fs::create_dir(&root)?;
        fs::write(root.join("file"), TEXT)?;
        Ok(Self { image, lock, share, root, device: loop_device(dir)? })
    }

    /// All is as it was.
    pub fn is_untouched(&self, ceph: &Ceph) -> Result<()> {
        let lock = ceph.run("rbd", &["lock", "ls", &self.image])?;
        ensure!(lock == self.lock, "the lock of a foreign image: {lock}, was {}", self.lock);
        let file = self.share.join("file").display().to_string();
        ensure!(control::run(&["cat", &file], &[])?.out == TEXT, "{file} has changed");
        ensure!(fs::read_to_string(self.root.join("file"))? == TEXT, "a file in the local root has changed");
        let backing = Path::new("/sys/block").join(&self.device).join("loop/backing_file");
        let backing = fs::read_to_string(backing).context("the foreign loop device is gone")?;
        ensure!(backing.contains("/foreign/disk.img"), "the foreign loop device shows {backing}");
        let detached = Command::new("losetup").args(["-d", &format!("/dev/{}", self.device)]).status()?;
        ensure!(detached.success(), "losetup -d: {detached}");
        Ok(())
    }
}

/// One over a file whose name a local volume could have, which is deleted as one that was lost would be.
fn loop_device(dir: &Path) -> Result<String> {
    let dir = dir.join("foreign");
    fs::create_dir(&dir)?;
    let file = dir.join("disk.img");
    fs::File::create(&file)?.set_len(8 << 20)?;
    let output = Command::new("losetup").args(["-f", "--show"]).arg(&file).output()?;
    ensure!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
    fs::remove_file(&file)?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().trim_start_matches("/dev/").to_owned())
}
