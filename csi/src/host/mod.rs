//! All that touches a node's kernel: mounts, loop devices, file systems, statistics. Everything here blocks; it is
//! called from threads for that.

mod attach;
mod cinder;
mod device;
mod format;
mod freeze;
mod fsck;
mod grow;
mod local;
mod loopdev;
pub mod mountinfo;
mod mounts;
mod nfs;
mod ownership;
mod paths;
mod probe;
mod publish;
mod rbd;
mod runner;
mod signatures;
mod stage;
mod stats;

use std::path::{Path, PathBuf};
use std::time::Duration;

use provisioners::{Access, Ctx, Error, Result};

pub use nfs::run_helper;
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
    /// qemu-storage-daemon, where it is not among the node's programs.
    pub qemu_storage_daemon: Option<PathBuf>,
    /// What is run as the helper for NFS: `csi-driver`.
    pub helper: PathBuf,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            kubelet_dir: "/var/lib/kubelet".into(),
            command_timeout: Duration::from_secs(120),
            state_dir: "/var/lib/volumectl".into(),
            qemu_storage_daemon: None,
            helper: "/proc/self/exe".into(),
        }
    }
}

/// Notes in the volume's record who has it and what was done to it.
pub trait FormatLog: Sync {
    /// A format begins: what is on the device from now on is ours to format again.
    fn begin(&self, fs: &str) -> Result<()>;
    /// The file system is complete: it is never formatted again.
    fn done(&self, fs: &str) -> Result<()>;
    /// The volume is not attached here and is about to be; the kernel has these clients for other volumes.
    fn attaching(&self, clients: &[String]) -> Result<()>;
    /// The volume's device was attached by this call; its server sees it as the client of this address, if it is known.
    fn attached(&self, client: Option<&str>) -> Result<()>;
}

/// This node's kernel and programs. Clones share them.
#[derive(Debug, Clone)]
pub struct Host {
    tools: runner::Tools,
    paths: paths::Paths,
    rbd: rbd::Rbd,
    nfs: nfs::Nfs,
    state: PathBuf,
}

impl Host {
    /// Looks up the programs; starts none and changes nothing.
    pub fn new(options: HostOptions) -> Self {
        let paths = paths::Paths::new(&options.kubelet_dir);
        Self {
            tools: runner::Tools::find(options.command_timeout),
            nfs: nfs::Nfs::new(paths.real_kubelet(), options.helper),
            paths,
            rbd: rbd::Rbd::new(&options.state_dir, Path::new("/sys/bus/rbd"), options.qemu_storage_daemon),
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

    /// NodeExpandVolume: grows the device to the volume's `size` (`None`: as its server says), and the file system
    /// mounted at `path` (the staging path or a target). Returns the device's size in bytes; `None`: a directory.
    pub fn expand(&self, ctx: &Ctx, access: &Access, size: Option<u64>, path: &Path) -> Result<Option<u64>> {
        let path = self.paths.resolve("volume_path", path)?;
        if let Access::Directory { .. } | Access::Nfs(_) = access {
            return Ok(None);
        }
        let device = self.device_of(access)?.ok_or_else(|| {
            Error::NotFound(format!(
                "volume_path: the volume at {} is not attached to this node",
                path.display()
            ))
        })?;
        let has = self.resize_device(ctx, access, &device, size)?;
        let mount = mounts::on(&path)?.pop();
        let mount = mount.ok_or_else(|| {
            Error::NotFound(format!("volume_path: nothing is mounted on {}", path.display()))
        })?;
        if mounts::bound_device(&mount).is_none() {
            self.grow_mounted(ctx, &device, &path, &mount.fs_type)?;
        }
        Ok(Some(has))
    }

    /// Whether a volume that is got at by the network is on this node: [`Error::NotFound`] when not. Of the others the
    /// backend has seen that they are there. `path` is where it is said to be.
    pub fn require(&self, id: &str, access: &Access, path: &Path) -> Result<()> {
        match access {
            Access::Nfs(_) if mounts::on(path)?.is_empty() => Err(Error::NotFound(format!(
                "volume {id} is not on this node: nothing is mounted on {}",
                path.display()
            ))),
            Access::Rbd(_) | Access::Cinder(_) if self.device_of(access)?.is_none() => {
                Err(Error::NotFound(format!("volume {id} is not attached to this node")))
            }
            _ => Ok(()),
        }
    }

    /// The statistics of what is published at `path`.
    pub fn stats(&self, path: &Path) -> Result<VolumeStats> {
        let path = self.paths.resolve("volume_path", path)?;
        match mounts::on(&path)?.last() {
            Some(mount) if self.nfs.owns(mount)? => self.nfs.stats(&path),
            _ => stats::stats(&path),
        }
    }

    /// Starts helpers for a controller whose calls go through a mounted share.
    pub fn nfs_sessions(&self) -> std::sync::Arc<dyn provisioners::nfs::Mounted> {
        self.nfs.sessions()
    }

    /// Clears up after a predecessor that was killed: thaws what it left frozen, detaches loop devices whose backing
    /// file is gone. Returns what it did.
    pub fn recover(&self) -> Result<Vec<String>> {
        let mut done = freeze::recover(&self.tools, &self.state)?;
        done.extend(self.rbd.recover()?);
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
