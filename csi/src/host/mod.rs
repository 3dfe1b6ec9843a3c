//! All that touches a node's kernel: mounts, loop devices, file systems, statistics. Everything here blocks; it is
//! called from threads for that.

mod attach;
mod attachment;
mod cinder;
mod condition;
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
mod options;
mod orphans;
mod outside;
mod ownership;
mod paths;
mod probe;
mod publish;
mod rbd;
mod ready;
mod recover;
mod replay;
mod reserve;
mod runner;
mod signatures;
mod stage;
mod staged;
mod stats;
mod unstage;
mod users;
mod uses;
mod whose;

use std::path::{Path, PathBuf};
use std::time::Duration;

use provisioners::{Access, Condition, Ctx, Error, FsNote, Result};

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
    /// Where the local backend's volumes are.
    pub volume_roots: Vec<PathBuf>,
    /// qemu-storage-daemon, where it is not among the node's programs.
    pub qemu_storage_daemon: Option<PathBuf>,
    /// What is run for what can hang and what must outlive this process: `csi-driver`.
    pub helper: PathBuf,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            kubelet_dir: "/var/lib/kubelet".into(),
            command_timeout: Duration::from_secs(120),
            state_dir: "/var/lib/volumectl".into(),
            volume_roots: Vec::new(),
            qemu_storage_daemon: None,
            helper: "/proc/self/exe".into(),
        }
    }
}

/// Runs as a helper if the arguments (without the program) say so; the exit code then.
pub fn run_helper(arguments: &[String]) -> Option<i32> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match &words[..] {
        ["node-helper", "thaw", driver, descriptors @ ..] => Some(freeze::run_guardian(driver, descriptors)),
        _ => nfs::run_helper(arguments),
    }
}

/// The kernel's boot id: what it counts and holds is so only until the machine starts again.
fn boot() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(format!("reading {path}"), e))?;
    Ok(text.trim().to_owned())
}

/// The first bytes of a text's SHA-256 in hexadecimal: a name of fixed length for a text of any.
fn digest(text: impl AsRef<[u8]>, bytes: usize) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(text).iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}

/// Notes in the volume's record who has it and what was done to it, and asks its server.
pub trait FormatLog: Sync {
    /// Writes down what is done with the volume's file system.
    fn note(&self, note: &FsNote) -> Result<()>;
    /// The ranges (from, to, in bytes) that the volume's server has stored anything in; `None`: it cannot tell.
    fn stored(&self) -> Result<Option<Vec<(u64, u64)>>>;
    /// The volume is not attached here and is about to be, for nobody else beside if `alone`; the kernel has these clients
    /// for other volumes.
    fn attaching(&self, clients: &[String], alone: bool) -> Result<()>;
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
    volume_roots: Vec<PathBuf>,
    helper: PathBuf,
    outside: outside::Outside,
}

impl Host {
    /// Looks up the programs; starts none and changes nothing.
    pub fn new(options: HostOptions) -> Self {
        reserve::keep();
        let paths = paths::Paths::new(&options.kubelet_dir);
        let tools = runner::Tools::find(options.command_timeout);
        let outside = outside::Outside::find(&tools);
        Self {
            tools,
            nfs: nfs::Nfs::new(paths.real_kubelet(), options.helper.clone()),
            helper: options.helper,
            paths,
            rbd: rbd::Rbd::new(
                &options.state_dir,
                Path::new("/sys/bus/rbd"),
                options.qemu_storage_daemon,
                outside.clone(),
            ),
            outside,
            state: options.state_dir,
            volume_roots: options.volume_roots,
        }
    }

    /// Whether the data path of volumes with `mounter: fuse` goes on when this driver's container is stopped; else why
    /// not.
    pub fn outlives(&self) -> std::result::Result<(), String> {
        self.outside.check()
    }

    /// NodeExpandVolume: grows the device to the volume's `size` (`None`: as its server says), and the file system
    /// mounted at `path` (the staging path or a target of volume `id`). Returns the device's size in bytes; `None`: a
    /// directory. Not this volume's path: [`Error::NotFound`].
    pub fn expand(
        &self,
        ctx: &Ctx,
        id: &str,
        access: &Access,
        size: Option<u64>,
        path: &Path,
    ) -> Result<Option<u64>> {
        let path = self.found_at(id, access, path)?;
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

    /// The statistics of a volume that is staged or published at `path`. Not this volume's path: [`Error::NotFound`].
    pub fn stats(&self, id: &str, access: &Access, path: &Path) -> Result<VolumeStats> {
        let path = self.found_at(id, access, path)?;
        match mounts::on(&path)?.last() {
            Some(mount) if self.nfs.owns(mount)? => self.nfs.stats(&path),
            mount => {
                let mut stats = stats::stats(&path)?;
                let device = mount.and_then(device::shown_by);
                if let Some(problem) = device.map_or(Ok(None), |device| self.rbd.problem(&device))? {
                    stats.condition = Condition::abnormal(problem);
                }
                Ok(stats)
            }
        }
    }

    /// Starts helpers for a controller whose calls go through a mounted share.
    pub fn nfs_sessions(&self) -> std::sync::Arc<dyn provisioners::nfs::Mounted> {
        self.nfs.sessions()
    }
}

#[cfg(test)]
mod tests;
