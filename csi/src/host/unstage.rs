//! NodeUnstageVolume: what is to be unmounted and detached, and what keeps it.

use std::path::{Path, PathBuf};

use provisioners::{Access, Ctx, Error, Result};

use super::orphans::containers_with;
use super::uses::Uses;
use super::{Host, device, mounts, reserve, users};

impl Host {
    /// Takes down what [`Host::stage`] made: unmounts, and detaches the device when nothing else uses it. `access` is
    /// how the backend says to get at the volume; without it the mount tells the device.
    pub fn unstage(&self, ctx: &Ctx, access: Option<&Access>, staging: &Path) -> Result<()> {
        let _descriptors = reserve::spend();
        let staging = self.paths.resolve("staging_target_path", staging)?;
        if let Some(Access::Nfs(_)) = access {
            return self.nfs.unstage(ctx, &staging);
        }
        let devices = self.devices_at(access, &staging)?;
        let mut others = Uses::default();
        for device in &devices {
            let uses = self.uses_of(device, &[&staging])?;
            refuse_published(device, &uses.published)?;
            if !uses.orphaned.is_empty() {
                refuse_containers(device, &uses.orphaned)?;
            }
            others.shadows.extend(uses.shadows);
            others.orphaned.extend(uses.orphaned);
        }
        for target in &others.orphaned {
            tracing::warn!(target = %target.display(), "kubelet has forgotten that a volume is published here; it is unpublished");
            self.unpublish(ctx, target)?;
        }
        ctx.stage("unmounting");
        mounts::unmount_all(ctx, &staging)?;
        // Where mounts do not spread, the same place can still show it by another path.
        others.shadows.iter().try_for_each(|path| mounts::unmount_all(ctx, path))?;
        let notes = self.forget_staging(&staging);
        if let Some(Access::Cinder(_)) = access {
            // The controller detaches it.
            return if others.orphaned.is_empty() { Ok(()) } else { refuse_users(&devices) };
        }
        self.detach_unstaged(ctx, access, &devices, notes)
    }

    /// Detaches what is staged at no other path; `notes`: whether those of block volumes can be believed.
    fn detach_unstaged(
        &self,
        ctx: &Ctx,
        access: Option<&Access>,
        devices: &[PathBuf],
        notes: bool,
    ) -> Result<()> {
        for device in devices {
            // Staged at another path, too: the last unstage detaches it.
            if self.uses_of(device, &[])?.staged.is_empty() && !(notes && self.is_block_staged(device)?) {
                self.detach(ctx, device)?;
            }
        }
        // An unstage that was interrupted has left no device, but perhaps what was behind it.
        match access {
            Some(Access::Rbd(image)) if self.device_of(&Access::Rbd(image.clone()))?.is_none() => {
                self.rbd.release(ctx, image)
            }
            _ => Ok(()),
        }
    }

    /// The devices that a volume has, and those that show at its staging path.
    fn devices_at(&self, access: Option<&Access>, staging: &Path) -> Result<Vec<PathBuf>> {
        let mut devices: Vec<PathBuf> =
            mounts::on(staging)?.into_iter().filter_map(|m| device::shown_by(&m)).collect();
        if let Some(access) = access {
            devices.extend(self.device_of(access)?);
        }
        devices.sort();
        devices.dedup();
        Ok(devices)
    }
}

/// A pod whose directory kubelet has lost may live on.
fn refuse_containers(device: &Path, orphaned: &[PathBuf]) -> Result<()> {
    let containers = containers_with(device)?;
    if containers.is_empty() {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{} is still {}; kubelet has forgotten that it is published at {}: end that process and repeat the call",
        device.display(),
        containers.join(", "),
        quoted(orphaned)
    )))
}

fn refuse_published(device: &Path, published: &[PathBuf]) -> Result<()> {
    if published.is_empty() {
        return Ok(());
    }
    let targets: Vec<_> = published.iter().map(|target| target.display().to_string()).collect();
    Err(Error::Refused(format!(
        "{} is still published at {}; unpublish it first (NodeUnpublishVolume). If nobody does that any more, because its pod is gone and no container uses it, run on the node: umount {}",
        device.display(),
        targets.join(", "),
        quoted(published)
    )))
}

/// What the controller detaches next must have no user left.
fn refuse_users(devices: &[PathBuf]) -> Result<()> {
    for device in devices {
        if let Some(user) = users::of(device)?.first() {
            return Err(Error::Refused(format!(
                "{} is still in use: {user}; end that and repeat the call",
                device.display()
            )));
        }
    }
    Ok(())
}

/// Paths as a shell takes them.
fn quoted(paths: &[PathBuf]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-~+=:@,".contains(c);
    let quote = |path: &PathBuf| match path.to_string_lossy() {
        path if path.chars().all(plain) => path.into_owned(),
        path => format!("'{}'", path.replace('\'', r"'\''")),
    };
    paths.iter().map(quote).collect::<Vec<_>>().join(" ")
}
