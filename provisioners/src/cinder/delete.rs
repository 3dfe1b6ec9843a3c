//! Deleting. A volume that still has snapshots cannot be deleted in Cinder: it is marked, and goes with the last of them.

use std::time::{Duration, Instant};

use super::answer::{CinderSnapshot, CinderVolume};
use super::record::MARKED;
use super::status::advice;
use super::store::{Found, Store, present};
use super::watch::For;
use crate::record::check_owner;
use crate::{Ctx, Error, Result, VolumeId};

/// How long a call waits for a status to pass that others have caused.
const PASSES: Duration = Duration::from_secs(120);

impl Store {
    /// Deletes a volume. None such: `Ok`.
    pub(super) async fn delete(&self, ctx: &Ctx, id: &VolumeId) -> Result<()> {
        let Some(found) = self.volume_if_any(id).await? else { return Ok(()) };
        self.check_deletable(&found)?;
        let Some(found) = present(settled(ctx, found).await)? else { return Ok(()) };
        // What was being attached is attached now.
        self.check_deletable(&found)?;
        ctx.check()?;
        self.remove(ctx, &found).await
    }

    fn check_deletable(&self, found: &Found) -> Result<()> {
        let id = &found.handle;
        match found.owner() {
            Some(owner) => check_owner(&format!("volume {id}"), owner, &self.config.owner)?,
            None => {
                return Err(Error::Refused(format!(
                    "volume {id} has no record of this driver, so it is not deleted; `openstack volume delete {}` removes it if nobody needs it",
                    id.id
                )));
            }
        }
        let servers: Vec<_> = found.volume.servers().collect();
        if !servers.is_empty() {
            return Err(Error::Refused(format!(
                "volume {id} is attached to server {}; unpublish it there first",
                servers.join(", ")
            )));
        }
        Ok(())
    }

    /// Deletes a volume in Cinder, or marks it while snapshots keep it.
    async fn remove(&self, ctx: &Ctx, found: &Found) -> Result<()> {
        let id = &found.handle;
        ctx.stage("asking Cinder to delete it");
        match found.cloud.ask_delete::<CinderVolume>(&id.id).await {
            Ok(true) => {}
            Ok(false) => wait_gone(ctx, found).await?,
            Err(fault) if fault.is(400) && self.is_kept_by_snapshots(found).await? => {
                ctx.check()?;
                let doing = format!("marking volume {id} as deleted");
                let mark = format!("{} {}", found.cloud.now(), id.id);
                found.set_metadata(MARKED, mark, &doing).await?;
                tracing::info!(volume = %id, "deleted; Cinder keeps it until its snapshots are deleted");
                return Ok(());
            }
            Err(fault) => return Err(fault.doing(&format!("deleting volume {id}"))),
        }
        tracing::info!(volume = %id, "deleted");
        Ok(())
    }

    /// Whether snapshots alone keep a volume from being deleted: nobody uses it.
    async fn is_kept_by_snapshots(&self, found: &Found) -> Result<bool> {
        let now = found.cloud.one::<CinderVolume>(&found.handle.id).await;
        let now = now.map_err(|fault| fault.doing(&format!("asking for volume {}", found.handle)))?;
        let unused = now.is_some_and(|volume| volume.status == "available" && volume.attachments.is_empty());
        Ok(unused && self.has_snapshots(found).await?)
    }

    async fn has_snapshots(&self, found: &Found) -> Result<bool> {
        let listed = found.cloud.list::<CinderSnapshot>(&format!("volume_id={}", found.handle.id)).await;
        let listed =
            listed.map_err(|fault| fault.doing(&format!("listing snapshots of volume {}", found.handle)))?;
        Ok(!listed.whole()?.is_empty())
    }

    /// Deletes a volume that waited for its last snapshot to go.
    pub(super) async fn release(&self, ctx: &Ctx, found: &Found) -> Result<()> {
        let ours = found.owner() == Some(&self.config.owner);
        if !ours
            || !found.volume.is_marked()
            || !found.volume.attachments.is_empty()
            || self.has_snapshots(found).await?
        {
            return Ok(());
        }
        self.remove(ctx, found).await
    }

    /// Deletes all volumes that waited for snapshots that are gone now.
    pub(super) async fn release_all(&self) {
        for cloud in &self.clouds {
            let listed = match cloud.all::<CinderVolume>().await {
                Ok(listed) => listed,
                Err(error) => {
                    tracing::warn!(cloud = %cloud.spec.name, %error, "looking for volumes that are to be deleted");
                    continue;
                }
            };
            for volume in listed.into_iter().filter(CinderVolume::is_marked) {
                let found = Found::new(cloud, volume);
                if let Err(error) = self.release(&Ctx::new(), &found).await {
                    tracing::warn!(volume = %found.handle, %error, "deleting a volume whose snapshots are gone");
                }
            }
        }
    }
}

/// Waits until a volume is in no transition: what another caller has begun is not an error.
pub(super) async fn settled(ctx: &Ctx, found: Found) -> Result<Found> {
    if !is_passing(&found.volume.status) {
        return Ok(found);
    }
    let hint = advice(&found.volume).unwrap_or_default();
    ctx.stage(format!("waiting for status {:?} to pass ({hint})", found.volume.status));
    let begun = Instant::now();
    let what = For { id: &found.handle.id, since: found.cloud.now(), all: false };
    let judge = |volume: Option<&CinderVolume>, _: &_| match volume {
        None => Some(Err(found.gone())),
        Some(volume) if !is_passing(&volume.status) => Some(Ok(volume.clone())),
        // Not for ever: another call may be what ends it.
        Some(volume) if begun.elapsed() > PASSES => Some(Err(Error::Unavailable(format!(
            "volume {} has had status {:?} for {} s; repeat the call; {}",
            found.handle,
            volume.status,
            PASSES.as_secs(),
            advice(volume).unwrap_or_default()
        )))),
        Some(_) => None,
    };
    let volume = found.cloud.until(ctx, &what, judge).await?;
    Ok(Found { volume, ..found })
}

/// Whether a status passes by itself.
fn is_passing(status: &str) -> bool {
    let passing = [
        "creating",
        "attaching",
        "detaching",
        "reserved",
        "extending",
        "retyping",
        "uploading",
        "backing-up",
        "restoring-backup",
        "downloading",
        "maintenance",
    ];
    passing.contains(&status)
}

/// Waits until a volume that is being deleted is gone.
pub(super) async fn wait_gone(ctx: &Ctx, found: &Found) -> Result<()> {
    ctx.stage("waiting for Cinder to delete it");
    let what = For { id: &found.handle.id, since: found.cloud.now(), all: false };
    let judge = |volume: Option<&CinderVolume>, _: &_| match volume {
        None => Some(Ok(None)),
        Some(volume) if volume.status.starts_with("error") => Some(Ok(Some(volume.clone()))),
        Some(_) => None,
    };
    match found.cloud.until(ctx, &what, judge).await? {
        None => Ok(()),
        Some(volume) => Err(Found { volume, ..found.clone() }.failed("deleting").await),
    }
}
