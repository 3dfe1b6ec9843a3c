//! All that touches a node's kernel: mounts, loop devices, file systems, statistics. Everything here blocks; it is
//! called from threads for that.

mod device;
mod format;
mod freeze;
mod fsck;
mod grow;
mod local;
mod loopdev;
pub mod mountinfo;
mod mounts;
mod ownership;
mod paths;
mod probe;
mod publish;
mod runner;
mod signatures;
mod stage;
mod stats;

use std::path::{Path, PathBuf};
use std::time::Duration;

use provisioners::{Access, Ctx, Error, NodeVolume, Result};

pub use publish::PublishRequest;
pub use stage::StageRequest;
pub use stats::{Usage, VolumeStats};

/// How a node is used.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// Kubelet's directory as requests name it.
    pub kubelet_dir: PathBuf,
    /// The longest that an external program may run.
    pub command_timeout: Duration,
    /// Where markers are kept that must survive this process, such as what is frozen.
    pub state_dir: PathBuf,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            kubelet_dir: "/var/lib/kubelet".into(),
            command_timeout: Duration::from_secs(120),
            state_dir: "/var/lib/volumectl".into(),
        }
    }
}

/// Notes in the volume's record that a format begins and that it was completed.
pub trait FormatLog: Sync {
    /// A format begins: what is on the device from now on is ours to format again.
    fn begin(&self, fs: &str) -> Result<()>;
    /// The file system is complete: it is never formatted again.
    fn done(&self, fs: &str) -> Result<()>;
}

/// This node's kernel and programs. Clones share them.
#[derive(Debug, Clone)]
pub struct Host {
    tools: runner::Tools,
    paths: paths::Paths,
    state: PathBuf,
}

impl Host {
    /// Looks up the programs; starts none and changes nothing.
    pub fn new(options: HostOptions) -> Self {
        Self {
            tools: runner::Tools::find(options.command_timeout),
            paths: paths::Paths::new(&options.kubelet_dir),
            state: options.state_dir,
        }
    }

    /// What the node role cannot do without.
    pub fn check(&self) -> Result<()> {
        let control = Path::new("/dev/loop-control");
        if !control.exists() {
            return Err(Error::Refused(format!(
                "{} is not there; load the kernel module loop",
                control.display()
            )));
        }
        ["mkfs.ext4", "e2fsck", "resize2fs", "blockdev", "fsfreeze", "sh"]
            .into_iter()
            .try_for_each(|program| self.tools.path(program).map(drop))
    }

    /// NodeExpandVolume: grows the device, and the file system mounted at `path` (the staging path or a target).
    /// Returns the device's size in bytes.
    pub fn expand(&self, ctx: &Ctx, volume: &NodeVolume, path: &Path) -> Result<u64> {
        let path = self.paths.resolve("volume_path", path)?;
        let Access::LoopFile { path: backing } = &volume.access else {
            return Ok(volume.size);
        };
        let device = loopdev::find(backing)?.ok_or_else(|| {
            Error::NotFound(format!(
                "volume_path: the volume at {} is not attached to this node",
                path.display()
            ))
        })?;
        if loopdev::size(&device)? != volume.size {
            ctx.stage("growing the device");
            loopdev::grow(&device)?;
        }
        let mount = mounts::on(&path)?.pop();
        let mount = mount.ok_or_else(|| {
            Error::NotFound(format!("volume_path: nothing is mounted on {}", path.display()))
        })?;
        if mounts::bound_device(&mount).is_none() {
            self.grow_mounted(ctx, &device, &path, &mount.fs_type)?;
        }
        loopdev::size(&device)
    }

    /// The statistics of what is published at `path`.
    pub fn stats(&self, path: &Path) -> Result<VolumeStats> {
        stats::stats(&self.paths.resolve("volume_path", path)?)
    }

    /// Clears up after a predecessor that was killed: thaws what it left frozen, detaches loop devices whose backing
    /// file is gone. Returns what it did.
    pub fn recover(&self) -> Result<Vec<String>> {
        let mut done = freeze::recover(&self.tools, &self.state)?;
        for (device, file) in loopdev::all()? {
            let orphan = file.to_string_lossy().ends_with("/disk.img (deleted)");
            let unused =
                || Ok::<_, Error>(device::mounts(&device)?.is_empty() && device::binds(&device)?.is_empty());
            if orphan && unused()? && mounts::open_below(&device, 1).is_empty() {
                loopdev::detach(&device)?;
                done.push(format!("detached {}: its file {} is gone", device.display(), file.display()));
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests;
