//! DeleteVolume: one rename, after which the volume is gone; what it held is removed behind the answer.

use std::sync::Arc;

use super::client::{Fault, Outcome, Status, found};
use super::create::abandon;
use super::handle::Handle;
use super::params::{Mutable, OnDelete};
use super::place::{finish, path_name};
use super::record::VolumeRecord;
use super::share::{Own, Share, Told, draft_name, split};
use super::store::{Found, Store, file_name, load};
use crate::{Ctx, Error, Result, VolumeId};

impl Store {
    /// Deletes a volume as its class says. One that does not exist is fine.
    pub(super) fn delete(&self, ctx: &Ctx, id: &VolumeId) -> Result<()> {
        let Some((share, handle)) = self.to_delete(&id.0)? else { return Ok(()) };
        let (own, record) = load::<VolumeRecord>(&share, |own| own.volumes.clone(), &handle.key)?;
        let volume = match record {
            Some(record) => Found { share, own, handle, record },
            None => match self.half_made(&share, &own, &handle)? {
                Some(found) => found,
                None => return Ok(()),
            },
        };
        self.check_owner(&format!("volume {id}"), &volume.record.cluster)?;
        let policy = Mutable::parse(&volume.record.modified)?.on_delete.unwrap_or(volume.record.on_delete);
        ctx.stage("moving the directory away");
        match policy {
            OnDelete::Delete => self.trash(&volume)?,
            OnDelete::Archive => Self::archive(&volume)?,
            OnDelete::Retain => {}
        }
        ctx.check()?;
        Self::strike_off(&volume, policy == OnDelete::Retain)?;
        self.usages.forget(&id.0);
        tracing::info!(volume = %id, policy = policy.word(), "deleted");
        Ok(())
    }

    /// A volume that was begun and never completed: taken back, unless its directory is in its place already.
    fn half_made(&self, share: &Arc<Share>, own: &Own, handle: &Handle) -> Result<Option<Found>> {
        let (_, intent) = load::<VolumeRecord>(share, |own| own.intents.clone(), &handle.key)?;
        let Some(intent) = intent else { return Ok(None) };
        self.check_owner(&format!("volume {handle}"), &intent.cluster)?;
        let found = Found { share: share.clone(), own: own.clone(), handle: handle.clone(), record: intent };
        if found.dir()?.is_some() {
            return finish(share, own, found.record, false).map(Some);
        }
        abandon(share, own, handle, &found.record)?;
        self.remove_trash(share);
        Ok(None)
    }

    fn trash(&self, volume: &Found) -> Result<()> {
        let Some(parent) = parent(volume)? else { return Ok(()) };
        let (share, name) = (&volume.share, draft_name());
        let moved = found(share.rename(&parent.0, parent.1.as_bytes(), &volume.own.trash, name.as_bytes()));
        if moved.told(share, &format!("moving {} to the trash", volume.record.dir))?.is_some() {
            self.removals.add(share, name.as_bytes(), self.config.tree_workers);
        }
        Ok(())
    }

    fn archive(volume: &Found) -> Result<()> {
        let Some((dir, name)) = parent(volume)? else { return Ok(()) };
        let (share, created) = (&volume.share, volume.record.created);
        let free =
            |candidate: &str| -> Outcome<bool> { Ok(share.look(&dir, candidate.as_bytes())?.is_none()) };
        let work = || {
            let plain = format!("archived-{name}");
            let dated = created.strftime("%Y%m%dT%H%M%SZ").to_string();
            let numbered = (2..1000).map(|n| format!("{plain}-{dated}-{n}"));
            for candidate in [plain.clone(), format!("{plain}-{dated}")].into_iter().chain(numbered) {
                // A rename would replace an empty directory.
                if candidate.len() <= 255 && free(&candidate)? {
                    match found(share.rename(&dir, name.as_bytes(), &dir, candidate.as_bytes())) {
                        Err(fault) if fault.is(Status::EXISTS) || fault.is(Status::NOT_EMPTY) => {}
                        other => {
                            tracing::info!(volume = %volume.handle, archive = candidate, "archived");
                            return other.map(drop);
                        }
                    }
                }
            }
            Err(Fault::Status(Status::NAME_TOO_LONG))
        };
        work().told(share, &format!("archiving {}", volume.record.dir))
    }

    /// Removes the record, or keeps it aside with its directory.
    fn strike_off(volume: &Found, keep: bool) -> Result<()> {
        let (share, own, record) = (&volume.share, &volume.own, &volume.record);
        let name = file_name(&volume.handle.key);
        let work = || {
            if record.dir != volume.handle.key {
                share.remove(&own.paths, &path_name(&record.dir))?;
            }
            if keep {
                let kept = format!("{}.{}.json", volume.handle.key, record.dir_id);
                return found(share.rename(&own.volumes, &name, &own.retained, kept.as_bytes())).map(drop);
            }
            share.remove(&own.volumes, &name)
        };
        work().told(share, &format!("removing the record of volume {}", volume.handle))
    }

    /// Queues what is in a share's trash.
    pub(super) fn remove_trash(&self, share: &Arc<Share>) {
        let listed = share.with_own(|own| share.entries(&own.trash));
        match listed {
            Ok(entries) => {
                entries
                    .iter()
                    .for_each(|entry| self.removals.add(share, &entry.name, self.config.tree_workers));
            }
            Err(fault) => tracing::warn!(share = %share.place(), %fault, "looking at the trash"),
        }
    }
}

/// The directory that a volume's directory is in, and its name there; `None`: it is not there, or not the one that was
/// made for the volume, which is left alone then.
fn parent(volume: &Found) -> Result<Option<(super::client::Fh, &str)>> {
    if volume.dir()?.is_none() {
        tracing::warn!(volume = %volume.handle, dir = volume.record.dir, "its directory is gone or was replaced; nothing is removed");
        return Ok(None);
    }
    let (above, name) = split(&volume.record.dir);
    let Some(above) = above else { return Ok(Some((volume.own.root.clone(), name))) };
    let walked = volume.share.walk(&volume.own.root, above).told(&volume.share, "looking for a directory")?;
    let node =
        walked.ok_or_else(|| Error::Unavailable(format!("{above} was moved meanwhile; repeat the call")))?;
    Ok(Some((node.fh, name)))
}
