//! Directories of NFS shares: each share is mounted once for each set of options, and its directories are bound.
//!
//! Whatever can hang with a dead server - mounting, binding, statistics, unmounting - is done by a helper process that is
//! killed at a deadline. How often a mount is used is read from the mount table, so that it survives this process.

mod child;
mod helper;
mod last;
mod readback;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use provisioners::{Condition, Ctx, Error, NfsMount, Result};
use rustix::io::Errno;

use super::mountinfo::Mount;
use super::stats::{Usage, VolumeStats};
use super::{digest, mounts, options, paths};
pub use child::run as run_helper;
use child::{Numbers, Task, Trouble};
use helper::Helper;

/// How long statistics are good.
const FRESH: Duration = Duration::from_secs(20);
/// How many statistics are kept.
const KEPT: usize = 4096;
/// How many mounts may lie on each other on one path.
const LAYERS: usize = 32;
/// How long each rung of the unmount ladder may take.
const RUNG: Duration = Duration::from_secs(5);

/// The shares that are mounted on this node.
#[derive(Debug, Clone)]
pub struct Nfs {
    /// Where shares are mounted: `<kubelet directory>/plugins/volumectl.io/nfs`.
    home: PathBuf,
    /// A directory to lock for each of them, so that a share that hangs keeps no other waiting.
    locks: PathBuf,
    helper: Helper,
    /// Shares whose data the server is being given.
    syncs: last::Syncs,
    stats: Arc<Mutex<HashMap<PathBuf, (Instant, VolumeStats)>>>,
}

impl Nfs {
    /// `kubelet` without symbolic links; `program` runs as the helper, with the argument `node-helper`.
    pub fn new(kubelet: &Path, program: PathBuf) -> Self {
        let home = kubelet.join("plugins/volumectl.io/nfs");
        let locks = kubelet.join("plugins/volumectl.io/nfs-locks");
        Self { home, locks, helper: Helper::new(program), syncs: Arc::default(), stats: Arc::default() }
    }

    /// Starts helpers that do a controller's calls in a mounted share.
    pub fn sessions(&self) -> Arc<dyn provisioners::nfs::Mounted> {
        Arc::new(self.helper.clone())
    }

    /// Where a share is mounted for a set of options.
    fn base(&self, volume: &NfsMount, flags: &[String]) -> PathBuf {
        let all: BTreeSet<&str> = split(&volume.options).chain(split(flags)).collect();
        let all: Vec<&str> = [volume.server.as_str(), &volume.share].into_iter().chain(all).collect();
        let name = digest(all.join("\n"), 12);
        self.home.join(if volume.force { name + last::FORCE } else { name })
    }

    /// The mounts of shares.
    fn bases(&self) -> Result<Vec<Mount<'static>>> {
        mounts::select(|m| m.target.parent() == Some(&self.home))
    }

    /// Whether a mount shows a share or a directory of one that is mounted here.
    pub fn owns(&self, mount: &Mount<'_>) -> Result<bool> {
        if mount.fs_type.starts_with("nfs") {
            return Ok(true);
        }
        // Where no share was ever mounted, the table need not be read again.
        Ok(self.home.is_dir() && self.bases()?.iter().any(|base| is_of(mount, base)))
    }

    /// Makes a volume's directory appear at the staging path.
    pub fn stage(
        &self,
        ctx: &Ctx,
        id: &str,
        volume: &NfsMount,
        flags: &[String],
        staging: &Path,
        read_only: bool,
    ) -> Result<()> {
        paths::make("staging_target_path", staging, paths::Kind::Directory)?;
        options::parse(flags)?;
        one_version(flags)?;
        let base = self.base(volume, flags);
        make_dir(&self.home)?;
        let _one = self.lock(ctx, &base)?;
        // Whoever had the lock may have taken the directory away with the share's last volume.
        make_dir(&base)?;
        ctx.stage("mounting the share");
        let mounted = self.mount_base(volume, flags, &base)?;
        if let Some(mount) = mounts::on(staging)?.pop() {
            let same = mount.device == mounted.device && mount.dir() == join(mounted.dir(), &volume.dir);
            if self.is_alive(staging)? {
                return super::stage::accept(&mount, same, read_only, staging);
            }
            // A stale handle: what was mounted is not there any more.
            tracing::warn!(volume = id, staging = %staging.display(), "a stale mount is replaced");
            self.unmount(ctx, staging)?;
        }
        ctx.stage("binding the directory");
        let bound = self.bind(&base, &volume.dir, staging, read_only);
        if bound.is_err() {
            let _ = self.release(ctx, &base);
        }
        bound.map_err(|error| match error {
            Error::NotFound(_) => Error::NotFound(format!(
                "volume {id}: {}:{} has no directory {}",
                volume.server, volume.share, volume.dir
            )),
            other => other,
        })
    }

    /// The share's mount, made when it is missing, and made anew when it is stale.
    fn mount_base(&self, volume: &NfsMount, flags: &[String], base: &Path) -> Result<Mount<'static>> {
        if let Some(mount) = mounts::on(base)?.pop() {
            if self.is_alive(base)? {
                return Ok(mount);
            }
            // The server has said that it does not know the share any more, so there is nothing to wait for.
            tracing::warn!(share = %volume.share, server = %volume.server, "a stale mount of the share is replaced");
            self.helper.ladder(base)?;
        }
        let (server, share) = (volume.server.clone(), volume.share.clone());
        // Who gives up what was written must not share the kernel's file system with who does not (nfs(5)).
        let alone = volume.force.then(|| "nosharecache".to_owned());
        let options = joined(&volume.options, flags).into_iter().chain(alone).collect();
        let target = base.to_owned();
        let mounted = match &volume.local {
            Some(source) => self.helper.run(&Task::Bind {
                base: source.clone(),
                dir: String::new(),
                target,
                read_only: false,
            }),
            None => self.helper.run(&Task::Mount { server, share, target, options }),
        };
        let mounted = mounted.map_err(|trouble| not_mounted(volume, trouble))?;
        if let Some(note) = mounted.note {
            tracing::warn!(share = %volume.share, server = %volume.server, "an older version is used: {note}");
        }
        let mount = mounts::on(base)?.pop();
        mount.ok_or_else(|| {
            Error::Internal(format!("{} is not mounted after the kernel said so", base.display()))
        })
    }

    /// Whether what is mounted on a path is not stale. A server that does not answer: an error.
    fn is_alive(&self, path: &Path) -> Result<bool> {
        match self.helper.run(&Task::Look { path: path.to_owned() }) {
            Ok(_) => Ok(true),
            Err(Trouble::Errno(errno)) if is_stale(errno) => Ok(false),
            Err(trouble) => Err(trouble.told(&format!("looking at {}", path.display()))),
        }
    }

    fn bind(&self, base: &Path, dir: &str, target: &Path, read_only: bool) -> Result<()> {
        let task =
            Task::Bind { base: base.to_owned(), dir: dir.to_owned(), target: target.to_owned(), read_only };
        let bound = self.helper.run(&task).map(drop);
        bound.map_err(|trouble| {
            trouble.told(&format!("binding {} on {}", base.join(dir).display(), target.display()))
        })
    }

    /// Makes a staged directory appear at a target.
    pub fn publish(&self, staging: &Path, target: &Path, read_only: bool) -> Result<()> {
        self.bind(staging, "", target, read_only)
    }

    /// Gives the files of a staged volume to a group.
    pub fn give(&self, ctx: &Ctx, staging: &Path, gid: u32) -> Result<()> {
        ctx.stage(format!("giving the files to group {gid}"));
        let task = Task::Give { path: staging.to_owned(), gid };
        let given = self.helper.run_for(&task, Duration::from_secs(600)).map(drop);
        given.map_err(|trouble| trouble.told(&format!("giving {} to group {gid}", staging.display())))
    }

    /// Unmounts everything on a path - binds of a share that stays mounted -: plainly, else lazily.
    pub fn unmount(&self, ctx: &Ctx, path: &Path) -> Result<()> {
        ctx.stage("unmounting");
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
        for _ in 0..LAYERS {
            if mounts::on(path)?.is_empty() {
                return Ok(());
            }
            ctx.check()?;
            self.helper.ladder(path)?;
        }
        Err(mounts::busy(path))
    }

    /// The statistics of a published volume.
    pub fn stats(&self, path: &Path) -> Result<VolumeStats> {
        let known = self.stats.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        if let Some((_, stats)) = known.filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(stats);
        }
        let stats = match self.helper.run(&Task::Look { path: path.to_owned() }) {
            Ok(numbers) => shown(&numbers),
            Err(Trouble::Errno(errno)) if is_stale(errno) => abnormal(
                "stale file handle: the server has removed the directory or exports it anew; it is mounted anew when the pod is started again",
            ),
            Err(Trouble::Slow(limit)) => abnormal(&format!(
                "the NFS server has not answered for {} s; see whether it runs and can be reached",
                limit.as_secs()
            )),
            Err(trouble) => return Err(trouble.told(&format!("statistics of {}", path.display()))),
        };
        let mut kept = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(path.to_owned(), (Instant::now(), stats.clone()));
        Ok(stats)
    }
}

fn make_dir(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(path);
    made.map_err(|e| Error::io(format!("making {}", path.display()), e))
}

/// The version of NFS that an option asks for.
fn version(option: &str) -> Option<&str> {
    option.strip_prefix("vers=").or_else(|| option.strip_prefix("nfsvers="))
}

/// Refuses options that ask for two versions of NFS.
fn one_version(options: &[String]) -> Result<()> {
    let mut asked = split(options).filter_map(|option| Some((option, version(option)?)));
    let Some((first, wanted)) = asked.next() else { return Ok(()) };
    match asked.find(|(_, other)| *other != wanted) {
        Some((other, _)) => {
            let problem = format!("{first:?} and {other:?} contradict each other; remove one of them");
            Err(Error::invalid("mount_flags", problem))
        }
        None => Ok(()),
    }
}

/// The options of the share and the class, then those of the call, whose version counts.
fn joined(volume: &[String], flags: &[String]) -> Vec<String> {
    let chosen = split(flags).any(|option| version(option).is_some());
    let before = split(volume).filter(|option| !chosen || version(option).is_none());
    before.chain(split(flags)).map(str::to_owned).collect()
}

fn split(options: &[String]) -> impl Iterator<Item = &str> {
    options.iter().flat_map(|some| some.split(',')).filter(|option| !option.is_empty())
}

/// Whether a mount shows what a share's mount shows, or a part of it.
fn is_of(mount: &Mount<'_>, base: &Mount<'_>) -> bool {
    mount.device == base.device && mount.dir().starts_with(base.dir())
}

fn join(root: &Path, dir: &str) -> PathBuf {
    if dir.is_empty() { root.to_owned() } else { root.join(dir) }
}

/// Why a share could not be mounted. One that its server does not have is no volume that is not there.
fn not_mounted(volume: &NfsMount, trouble: Trouble) -> Error {
    let doing = format!("mounting {}:{}", volume.server, volume.share);
    match trouble {
        Trouble::Errno(errno) if volume.local.is_none() && errno == Errno::NOENT.raw_os_error() => {
            Error::Unavailable(format!(
                "{doing}: the server says that it exports no such path, as one does for some moments when it comes back; see its exports, and repeat the call"
            ))
        }
        other => other.told(&doing),
    }
}

fn is_stale(errno: i32) -> bool {
    errno == rustix::io::Errno::STALE.raw_os_error()
}

fn shown(numbers: &Numbers) -> VolumeStats {
    let usage =
        |total: u64, free: u64, available: u64| Usage { total, used: total.saturating_sub(free), available };
    VolumeStats {
        bytes: usage(numbers.total, numbers.free, numbers.available),
        inodes: Some(usage(numbers.files, numbers.files_free, numbers.files_free)),
        condition: Condition::healthy(),
        block: false,
    }
}

fn abnormal(text: &str) -> VolumeStats {
    VolumeStats { bytes: Usage::default(), inodes: None, condition: Condition::abnormal(text), block: false }
}

#[cfg(test)]
mod tests;
