//! NodeStageVolume and NodeUnstageVolume: each step first looks at what is already so.

use std::fs::File;
use std::path::{Path, PathBuf};

use provisioners::local::{Lease, Sharing};
use provisioners::{Access, AccessType, Capability, Ctx, Error, FsNote, NodeVolume, Result};

use super::attach::{AttachRequest, Attached};
use super::mountinfo::Mount;
use super::paths::{self, Kind};
use super::{FormatLog, Host, device, format, fsck, grow, loopdev, mounts, options, ownership};

/// What is to be staged, and where.
pub struct StageRequest<'a> {
    /// The volume's handle, for messages.
    pub id: &'a str,
    /// How to get at it.
    pub volume: &'a NodeVolume,
    /// How it will be used.
    pub capability: &'a Capability,
    /// CSI `staging_target_path`.
    pub staging: &'a Path,
}

/// A file system to be mounted: the wish without what is known from the capability's shape.
pub(super) struct Wish<'a> {
    pub(super) id: &'a str,
    pub(super) volume: &'a NodeVolume,
    /// Nobody else may have it open.
    alone: bool,
    pub(super) fs: &'a str,
    flags: &'a [String],
    read_only: bool,
    staging: PathBuf,
}

impl Host {
    /// Makes the volume ready on this node: its device attached, and its file system checked (or made, where there is
    /// provably nothing), grown to the device, and mounted on the staging path.
    pub fn stage(&self, ctx: &Ctx, r: &StageRequest<'_>, log: &dyn FormatLog) -> Result<()> {
        let staging = self.paths.resolve("staging_target_path", r.staging)?;
        let read_only = r.capability.mode.is_read_only();
        // Until it is mounted, no process copies, grows or deletes the data.
        let _lease = lease(ctx, &r.volume.access)?;
        match (&r.volume.access, &r.capability.access) {
            (Access::Directory { path }, AccessType::Mount { group, .. }) => {
                Self::stage_directory(path, &staging, read_only)?;
                give(ctx, &staging, *group, read_only)
            }
            (Access::Directory { .. } | Access::Nfs(_), AccessType::Block) => {
                let problem = format!("volume {} is a directory and cannot be a block device", r.id);
                Err(Error::invalid("volume_capability", problem))
            }
            (Access::Nfs(volume), AccessType::Mount { flags, group, .. }) => {
                self.nfs.stage(ctx, r.id, volume, flags, &staging, read_only)?;
                match group {
                    Some(gid) if !read_only => self.nfs.give(ctx, &staging, *gid),
                    _ => Ok(()),
                }
            }
            (_, AccessType::Block) => self.stage_block(ctx, r, &staging, log),
            (_, AccessType::Mount { fs_type, flags, group }) => {
                let fs = format::desired(fs_type, r.volume.fs_type.as_deref())?;
                options::parse(flags)?;
                let (id, volume, target) = (r.id, r.volume, staging.clone());
                let alone = !r.capability.mode.is_multi_node();
                let wish = Wish { id, volume, alone, fs, flags, read_only, staging: target };
                self.stage_file_system(ctx, &wish, log)?;
                give(ctx, &staging, *group, read_only)
            }
        }
    }

    fn stage_block(
        &self,
        ctx: &Ctx,
        r: &StageRequest<'_>,
        staging: &Path,
        log: &dyn FormatLog,
    ) -> Result<()> {
        let (id, access, read_only) = (r.id, &r.volume.access, r.capability.mode.is_read_only());
        let alone = !r.capability.mode.is_multi_node();
        let attached = self.attach(ctx, &AttachRequest { id, access, read_only, alone, log })?;
        let ready = self.ready(ctx, r.id, r.volume, &attached, log).and_then(|()| {
            // Before anybody can write to it; read-only, nobody can.
            let known = r.volume.raw || r.volume.formatted.is_some();
            if read_only || known { Ok(()) } else { log.note(&FsNote::Raw) }
        });
        ready
            .and_then(|()| self.note_block_staging(staging, &attached.device))
            .inspect_err(|_| self.detach_again(ctx, &attached))
    }

    /// Has a device that was attached now noted, and of the right size.
    pub(super) fn ready(
        &self,
        ctx: &Ctx,
        id: &str,
        volume: &NodeVolume,
        attached: &Attached,
        log: &dyn FormatLog,
    ) -> Result<()> {
        if attached.fresh {
            log.attached(attached.client.as_deref())?;
        } else if let Access::Rbd(_) = &volume.access {
            // Grown at the cluster since it was attached.
            self.resize_device(ctx, &volume.access, &attached.device, volume.size)?;
        }
        device::check_size(id, &attached.device, volume.size)
    }

    fn stage_directory(source: &Path, staging: &Path, read_only: bool) -> Result<()> {
        if !source.is_dir() {
            return Err(Error::NotFound(format!("{} is not there any more", source.display())));
        }
        paths::make("staging_target_path", staging, Kind::Directory)?;
        if let Some(mount) = mounts::on(staging)?.last() {
            let same = same_file(source, staging);
            return accept(mount, same, read_only, staging);
        }
        mounts::bind(source, staging, read_only)
    }

    fn stage_file_system(&self, ctx: &Ctx, wish: &Wish<'_>, log: &dyn FormatLog) -> Result<()> {
        paths::make("staging_target_path", &wish.staging, Kind::Directory)?;
        let Some(device) = self.stage_attached(ctx, wish, log)? else { return Ok(()) };
        self.replay(ctx, wish, &device, log)?;
        match self.stage_attached(ctx, wish, log)? {
            None => Ok(()),
            Some(device) => {
                self.detach(ctx, &device)?;
                Err(Error::Unavailable(format!(
                    "volume {}: its journal was replayed, and has to be again; repeat the call",
                    wish.id
                )))
            }
        }
    }

    /// Attaches and mounts. Some device: it stays attached, and is not mounted, for its journal has to be replayed first.
    fn stage_attached(&self, ctx: &Ctx, wish: &Wish<'_>, log: &dyn FormatLog) -> Result<Option<PathBuf>> {
        let (id, access, read_only) = (wish.id, &wish.volume.access, wish.read_only);
        let attached = self.attach(ctx, &AttachRequest { id, access, read_only, alone: wish.alone, log })?;
        if let Some(mount) = mounts::on(&wish.staging)?.last() {
            let same = device::shows(mount, &attached.device)?;
            return accept(mount, same, read_only, &wish.staging).map(|()| None);
        }
        let mounted = self
            .ready(ctx, id, wish.volume, &attached, log)
            .and_then(|()| self.mount_checked(ctx, wish, &attached.device, log))
            .inspect_err(|_| self.detach_again(ctx, &attached))?;
        Ok((!mounted).then_some(attached.device))
    }

    /// Whether it is mounted; `false`: its journal has to be replayed first, and the device is read-only.
    fn mount_checked(&self, ctx: &Ctx, wish: &Wish<'_>, device: &Path, log: &dyn FormatLog) -> Result<bool> {
        let mut fresh = false;
        // A file system that is mounted elsewhere on this node is in order; checking it now would harm it.
        if device::mounts(device)?.is_empty() {
            fresh = self.prepare(ctx, wish, device, log)?;
        }
        ctx.stage("mounting");
        self.note_staging(&wish.staging)?;
        let mut flags = wish.flags.to_vec();
        if wish.fs == "xfs" && !flags.iter().any(|f| f == "nouuid") {
            // A clone has the UUID of its source, and both may be mounted here.
            flags.push("nouuid".into());
        }
        if !mounts::mount_device(device, &wish.staging, wish.fs, &flags, wish.read_only)? {
            return Ok(false);
        }
        let done = self.after_mount(ctx, wish, device, fresh).inspect_err(|_| {
            let _ = mounts::unmount_all(ctx, &wish.staging);
        });
        done.map(|()| true)
    }

    /// Has the file system made where there is provably nothing, or checks it. Whether it was made now.
    fn prepare(&self, ctx: &Ctx, wish: &Wish<'_>, device: &Path, log: &dyn FormatLog) -> Result<bool> {
        ctx.stage("probing");
        // A loop device's own file tells where it holds nothing.
        let backing = match &wish.volume.access {
            Access::LoopFile { path } => {
                Some(File::open(path).map_err(|e| Error::io(format!("opening {}", path.display()), e))?)
            }
            _ => None,
        };
        let asked = format::Asked { id: wish.id, fs: wish.fs, read_only: wish.read_only };
        let job = format::Job { asked, volume: wish.volume, device, backing: backing.as_ref() };
        let ready = format::prepare(ctx, &job, &format::Mkfs(&self.tools), log)?;
        if ready == format::Ready::Found && !wish.read_only {
            ctx.stage("checking the file system");
            fsck::before_mount(&self.tools, ctx, device, wish.fs, wish.id)?;
            grow::offline(&self.tools, ctx, device, wish.fs, loopdev::size(device)?)?;
        }
        Ok(ready == format::Ready::Made)
    }

    fn after_mount(&self, ctx: &Ctx, wish: &Wish<'_>, device: &Path, fresh: bool) -> Result<()> {
        let mounted = mounts::on(&wish.staging)?;
        let shown = mounted.last().map_or(Ok(false), |mount| device::shows(mount, device))?;
        if !shown {
            let shown = mounted.last().map(|m| m.source.to_string_lossy().into_owned());
            return Err(Error::Refused(format!(
                "volume {}: {} was mounted, but the kernel shows {shown:?} (a file system with the same id?)",
                wish.id,
                device.display()
            )));
        }
        if let (true, Some(mode)) = (fresh, wish.volume.root_mode) {
            provisioners::tree::open_top(&wish.staging)
                .and_then(|root| Ok(rustix::fs::fchmod(&root, rustix::fs::Mode::from_raw_mode(mode))?))
                .map_err(|e| Error::io(format!("setting the mode of {}", wish.staging.display()), e))?;
        }
        if !wish.read_only && !fresh {
            self.grow_mounted(ctx, device, &wish.staging, wish.fs)?;
        }
        Ok(())
    }

    /// Grows a mounted file system that is smaller than its device.
    pub(super) fn grow_mounted(&self, ctx: &Ctx, device: &Path, mount: &Path, fs: &str) -> Result<()> {
        let open = File::open(device).map_err(|e| Error::io(format!("opening {}", device.display()), e))?;
        let has = grow::fs_size(&open, fs)?;
        if has.is_none_or(|has| has + grow::SLACK <= loopdev::size(device).unwrap_or(0)) {
            ctx.stage("growing the file system");
            grow::online(&self.tools, ctx, device, mount, fs)?;
        }
        Ok(())
    }
}

fn give(ctx: &Ctx, staging: &Path, group: Option<u32>, read_only: bool) -> Result<()> {
    match group {
        Some(gid) if !read_only => ownership::give_to_group(ctx, staging, gid),
        _ => Ok(()),
    }
}

/// A staging path that has a mount already: the right one is success, another is ALREADY_EXISTS.
pub(super) fn accept(mount: &Mount<'_>, same: bool, read_only: bool, staging: &Path) -> Result<()> {
    let wanted = if read_only { "read-only" } else { "read-write" };
    if !same {
        let source = mount.source.to_string_lossy();
        return Err(Error::AlreadyExists(format!("{} has {source} mounted on it", staging.display())));
    }
    if mount.is_read_only() == read_only {
        return Ok(());
    }
    let is = if mount.is_read_only() { "read-only" } else { "read-write" };
    Err(Error::AlreadyExists(format!(
        "{} is staged {is} and was asked {wanted}; unstage it first",
        staging.display()
    )))
}

/// The right to work on a volume whose data is on this node.
pub(super) fn lease(ctx: &Ctx, access: &Access) -> Result<Option<Lease>> {
    match access {
        Access::LoopFile { path } | Access::Directory { path } => {
            ctx.stage("waiting for other processes");
            Lease::take(ctx, path, Sharing::Alone).map(Some)
        }
        Access::Rbd(_) | Access::Nfs(_) | Access::Cinder(_) => Ok(None),
    }
}

pub(super) fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (std::fs::metadata(a), std::fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}
