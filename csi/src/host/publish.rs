//! NodePublishVolume and NodeUnpublishVolume: bind mounts, of a staged file system or of a device's node.

use std::fs;
use std::path::{Path, PathBuf};

use provisioners::{Access, AccessMode, AccessType, Capability, Ctx, Error, Result};

use super::mountinfo::Mount;
use super::paths::{self, Kind};
use super::stage::{lease, same_file};
use super::{Host, device, digest, mounts, reserve};

/// What is to be published, and where.
pub struct PublishRequest<'a> {
    /// The volume's handle, for messages.
    pub id: &'a str,
    /// How to get at it.
    pub access: &'a Access,
    /// How it will be used.
    pub capability: &'a Capability,
    /// CSI `staging_target_path`.
    pub staging: &'a Path,
    /// CSI `target_path`.
    pub target: &'a Path,
    /// Whether nothing may be written through this target.
    pub read_only: bool,
}

impl Host {
    /// Makes a staged volume appear at the target.
    pub fn publish(&self, ctx: &Ctx, r: &PublishRequest<'_>) -> Result<()> {
        let target = self.paths.resolve("target_path", r.target)?;
        let staging = self.paths.resolve("staging_target_path", r.staging)?;
        ctx.stage("publishing");
        // A raw block device can be written to from now on, which no copy in another process may miss.
        let _lease = match &r.capability.access {
            AccessType::Block => lease(ctx, r.access)?,
            AccessType::Mount { .. } => None,
        };
        match &r.capability.access {
            AccessType::Mount { .. } => self.publish_mount(r, &staging, &target),
            AccessType::Block => self.publish_block(ctx, r, &target),
        }
    }

    fn publish_mount(&self, r: &PublishRequest<'_>, staging: &Path, target: &Path) -> Result<()> {
        let staged = mounts::on(staging)?.pop().ok_or_else(|| {
            let staging = staging.display();
            Error::Refused(format!("volume {} is not staged at {staging}; call NodeStageVolume first", r.id))
        })?;
        self.lives(r.id, device::shown_by(&staged).as_deref())?;
        if let Access::Directory { .. } = r.access {
            connected(r.id, staging)?;
        }
        let same = |m: &Mount<'_>| m.device == staged.device && m.dir() == staged.dir();
        if let Some(mount) = mounts::on(target)?.pop() {
            return self.accept(&mount, same(&mount), r, target);
        }
        let others = self.uses(&[staging, target], same)?.targets();
        let others: Vec<_> = others.filter(|t| !is_source(r.access, t)).collect();
        one_pod_only(r, &others)?;
        paths::make("target_path", target, Kind::Directory)?;
        self.bind(r.access, staging, target, r.read_only)
    }

    fn publish_block(&self, ctx: &Ctx, r: &PublishRequest<'_>, target: &Path) -> Result<()> {
        if let Access::Directory { .. } | Access::Nfs(_) = r.access {
            let problem = format!("volume {} is a directory and cannot be a block device", r.id);
            return Err(Error::invalid("volume_capability", problem));
        }
        let device = self.device_of(r.access)?.ok_or_else(|| {
            Error::Refused(format!(
                "volume {} is not attached to this node; call NodeStageVolume first",
                r.id
            ))
        })?;
        self.lives(r.id, Some(&device))?;
        let device_read_only = device::is_read_only(&device);
        if let Some(mount) = mounts::on(target)?.pop() {
            let same = mounts::bound_device(&mount).is_some_and(|d| d == device);
            return accept(same, device_read_only, r, target, &mount);
        }
        let bound = |m: &Mount<'_>| mounts::bound_device(m).is_some_and(|bound| bound == device);
        let others: Vec<_> = self.uses(&[target], bound)?.targets().collect();
        one_pod_only(r, &others)?;
        if device_read_only != r.read_only {
            self.set_read_only(ctx, r, &device, &others)?;
        }
        paths::make("target_path", target, Kind::File)?;
        self.bind(r.access, &device, target, r.read_only)
    }

    /// A device whose daemon has died gives I/O errors only. It cannot be attached anew from here: that needs the stage's
    /// secrets, and what is mounted of it to be unmounted. Kubelet unstages when the last pod that wants it is deleted.
    fn lives(&self, id: &str, device: Option<&Path>) -> Result<()> {
        match device.map_or(Ok(None), |device| self.rbd.problem(device))? {
            Some(problem) => Err(Error::Refused(format!("volume {id}: {problem}"))),
            None => Ok(()),
        }
    }

    /// A bind mount of a device's node does not keep writers off the device, so the device itself is made read only;
    /// all who use it share that.
    fn set_read_only(
        &self,
        ctx: &Ctx,
        r: &PublishRequest<'_>,
        device: &Path,
        others: &[PathBuf],
    ) -> Result<()> {
        let wanted = if r.read_only { "read-only" } else { "read-write" };
        if let Some(other) = others.first() {
            return Err(Error::Refused(format!(
                "volume {} is published at {} the other way; a raw block device cannot be {wanted} for one user only",
                r.id,
                other.display()
            )));
        }
        device::set_read_only(&self.tools, ctx, device, r.read_only)
    }

    /// Binds, and remembers on disk that a read-only bind is under way: the kernel makes it in two steps, and a crash
    /// between them must not leave a target that can be written.
    fn bind(&self, access: &Access, source: &Path, target: &Path, read_only: bool) -> Result<()> {
        let bind = |read_only| match access {
            Access::Nfs(_) => self.nfs.publish(source, target, read_only),
            _ => mounts::bind(source, target, read_only),
        };
        if !read_only {
            return bind(false);
        }
        let marker = self.begin_read_only(target)?;
        bind(true)?;
        fs::remove_file(&marker).map_err(|e| Error::io(format!("removing {}", marker.display()), e))
    }

    pub(super) fn begin_read_only(&self, target: &Path) -> Result<PathBuf> {
        let marker = self.marker(target);
        fs::create_dir_all(self.state.join("read-only"))
            .and_then(|()| fs::write(&marker, target.as_os_str().as_encoded_bytes()))
            .map_err(|e| Error::io(format!("writing {}", marker.display()), e))?;
        Ok(marker)
    }

    fn marker(&self, target: &Path) -> PathBuf {
        self.state.join("read-only").join(digest(target.as_os_str().as_encoded_bytes(), 16))
    }

    fn accept(&self, mount: &Mount<'_>, same: bool, r: &PublishRequest<'_>, target: &Path) -> Result<()> {
        let marker = self.marker(target);
        if same && r.read_only && marker.exists() {
            mounts::make_read_only(target)?;
            return fs::remove_file(&marker)
                .map_err(|e| Error::io(format!("removing {}", marker.display()), e));
        }
        accept(same, mount.is_read_only(), r, target, mount)
    }

    /// Takes a target down: unmounts it and removes what [`Host::publish`] made there.
    pub fn unpublish(&self, ctx: &Ctx, target: &Path) -> Result<()> {
        let _descriptors = reserve::spend();
        let target = self.paths.resolve("target_path", target)?;
        ctx.stage("unmounting");
        match mounts::on(&target)?.last() {
            Some(mount) if self.nfs.owns(mount)? => self.nfs.unmount(ctx, &target)?,
            _ => mounts::unmount_all(ctx, &target)?,
        }
        let _ = fs::remove_file(self.marker(&target));
        paths::remove_target(&target)
    }
}

/// A target that has a mount already: the same volume in the same way is success, all else ALREADY_EXISTS.
fn accept(
    same: bool,
    is_read_only: bool,
    r: &PublishRequest<'_>,
    target: &Path,
    mount: &Mount<'_>,
) -> Result<()> {
    let way = |read_only| if read_only { "read-only" } else { "read-write" };
    let target = target.display();
    if !same {
        let source = mount.source.to_string_lossy();
        return Err(Error::AlreadyExists(format!("{target} has something else mounted on it ({source})")));
    }
    if is_read_only == r.read_only {
        return Ok(());
    }
    let (is, wanted) = (way(is_read_only), way(r.read_only));
    Err(Error::AlreadyExists(format!(
        "{target}: volume {} is published {is} there and was asked {wanted}",
        r.id
    )))
}

/// SINGLE_NODE_SINGLE_WRITER: one target on the node.
fn one_pod_only(r: &PublishRequest<'_>, others: &[PathBuf]) -> Result<()> {
    match others.first() {
        Some(other) if r.capability.mode == AccessMode::SingleNodeSingleWriter => {
            Err(Error::Refused(format!(
                "volume {} is published at {}, and its access mode allows one pod only",
                r.id,
                other.display()
            )))
        }
        _ => Ok(()),
    }
}

/// Whether a mount point is the volume's own directory (a root that is a mount itself), not a publication.
fn is_source(access: &Access, target: &Path) -> bool {
    matches!(access, Access::Directory { path } if same_file(path, target) && target == path)
}

/// The file system that a staged directory is on answers: not so a FUSE mount whose daemon has died.
fn connected(id: &str, staging: &Path) -> Result<()> {
    let Err(error) = rustix::fs::statfs(staging) else { return Ok(()) };
    Err(Error::Refused(format!(
        "volume {id}: what is staged at {} cannot be used any more ({error}): the daemon or server behind its file system has \
         ended; mount the root of its backend again, and delete the pods that use the volume, so that it is staged anew",
        staging.display()
    )))
}
