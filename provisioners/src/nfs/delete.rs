//! DeleteVolume: one rename, after which the volume is gone; what it held is removed behind the answer.

use std::sync::Arc;

use super::change;
use super::client::{Fault, Fh, Kind, Node, Status, found};
use super::create::abandon;
use super::handle::Handle;
use super::identity::{Trashed, is_of, trash_name, trashed};
use super::params::{Mutable, OnDelete};
use super::place::path_name;
use super::record::VolumeRecord;
use super::removal;
use super::share::{OWN, Own, Share, Told, split};
use super::store::{Found, Index, Store, file_name, load};
use crate::{Ctx, Error, Result, VolumeId};

impl Store {
    /// Deletes a volume as its class says. One that does not exist is fine.
    pub(super) fn delete(&self, ctx: &Ctx, id: &VolumeId) -> Result<()> {
        let Some((share, handle)) = self.to_delete(&id.0)? else { return Ok(()) };
        let (own, record) = load::<VolumeRecord>(&share, Index::Volumes, &handle.key)?;
        let volume = match record {
            Some(record) => Found { share, own, handle, record },
            None => match self.half_made(&share, &own, &handle)? {
                Some(found) => found,
                None => return no_record(&share, &own, &handle),
            },
        };
        self.check_owner(&format!("volume {id}"), &volume.record.cluster)?;
        let policy = Mutable::parse(&volume.record.modified)?.on_delete.unwrap_or(volume.record.on_delete);
        ctx.stage("moving the directory away");
        let moved = match policy {
            OnDelete::Delete => self.trash(ctx, &volume),
            OnDelete::Archive => self.archive(ctx, &volume),
            OnDelete::Retain => Ok(()),
        };
        moved.map_err(by_another)?;
        ctx.check()?;
        Self::strike_off(&volume, policy == OnDelete::Retain)?;
        self.usages.forget(&id.0);
        tracing::info!(volume = %id, policy = policy.word(), "deleted");
        Ok(())
    }

    /// A volume that was begun and never completed: taken back, unless its directory is in its place already.
    fn half_made(&self, share: &Arc<Share>, own: &Own, handle: &Handle) -> Result<Option<Found>> {
        let (_, intent) = load::<VolumeRecord>(share, Index::Intents, &handle.key)?;
        let Some(intent) = intent else { return Ok(None) };
        self.check_owner(&format!("volume {handle}"), &intent.cluster)?;
        let found = Found { share: share.clone(), own: own.clone(), handle: handle.clone(), record: intent };
        if found.dir()?.is_some() {
            return self.finish(share, own, found.record, false).map(Some);
        }
        abandon(share, own, handle, &found.record)?;
        self.remove_trash(share);
        Ok(None)
    }

    /// Moves the directory to the trash, under a name that says which directory it must be. What turns out to be another
    /// one, put there a moment ago, goes back.
    fn trash(&self, ctx: &Ctx, volume: &Found) -> Result<()> {
        let Some(place) = parent(volume)? else { return self.settle_trash(ctx, volume) };
        self.check_apart(ctx, volume, &place.node)?;
        let (share, trash, dir) = (&volume.share, &volume.own.trash, &volume.record.dir);
        let doing = format!("moving {dir} to the trash");
        let name = trash_name(share, &volume.own, &volume.handle.key, &place.node).told(share, &doing)?;
        let moved = found(share.rename(&place.parent, place.name.as_bytes(), trash, name.as_bytes()));
        // Another driver was faster.
        if moved.told(share, &doing)?.is_none() {
            return self.settle_trash(ctx, volume);
        }
        if removal::settle(share, &volume.own, name.as_bytes())? {
            return self.clear(ctx, volume, name.as_bytes());
        }
        Err(Error::Unavailable(format!(
            "{dir} on {} was exchanged for another directory while the volume was deleted; that one is in its place again: repeat the call",
            share.place()
        )))
    }

    /// Removes what was moved to the trash: behind the answer, or, with `onDeleteFailure: fail`, before it.
    fn clear(&self, ctx: &Ctx, volume: &Found, name: &[u8]) -> Result<()> {
        if volume.fails() {
            return self.removals.finish(ctx, &volume.share, name, self.config.tree_workers);
        }
        self.removals.add(&volume.share, name, self.config.tree_workers);
        Ok(())
    }

    /// What a deletion that was interrupted has moved to the trash is removed now; what is not the volume's directory goes
    /// back.
    fn settle_trash(&self, ctx: &Ctx, volume: &Found) -> Result<()> {
        let share = &volume.share;
        let entries = share.entries(&volume.own.trash).told(share, "looking at the trash")?;
        let of_volume =
            |name: &[u8]| matches!(trashed(name), Trashed::Volume { key, .. } if key == volume.handle.key);
        let mut there = entries.iter().filter(|entry| of_volume(&entry.name)).peekable();
        if there.peek().is_none() {
            say_gone(volume);
        }
        for entry in there {
            if removal::settle(share, &volume.own, &entry.name)? {
                self.clear(ctx, volume, &entry.name)?;
            }
        }
        Ok(())
    }

    /// Renames the directory to a name that is free.
    fn archive(&self, ctx: &Ctx, volume: &Found) -> Result<()> {
        let Some(place) = parent(volume)? else {
            say_gone(volume);
            return Ok(());
        };
        self.check_apart(ctx, volume, &place.node)?;
        let (share, created, name) = (&volume.share, volume.record.created, place.name);
        let doing = format!("archiving {}", volume.record.dir);
        let plain = format!("archived-{name}");
        let dated = created.strftime("%Y%m%dT%H%M%SZ").to_string();
        let numbered = (2..1000).map(|n| format!("{plain}-{dated}-{n}"));
        for candidate in [plain.clone(), format!("{plain}-{dated}")].into_iter().chain(numbered) {
            // A rename would replace an empty directory.
            let dir = &place.parent;
            if candidate.len() > 255 || share.look(dir, candidate.as_bytes()).told(share, &doing)?.is_some() {
                continue;
            }
            match found(share.rename(dir, name.as_bytes(), dir, candidate.as_bytes())) {
                Err(fault) if fault.is(Status::EXISTS) || fault.is(Status::NOT_EMPTY) => continue,
                other => other.told(share, &doing)?,
            };
            tracing::info!(volume = %volume.handle, archive = candidate, "archived");
            return undo_if_other(volume, &place, &candidate);
        }
        Err(share.fail(&doing)(Fault::Status(Status::NAME_TOO_LONG)))
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
        let work = || {
            work()?;
            change::end(share, own, &volume.handle.key, record)
        };
        work().told(share, &format!("removing the record of volume {}", volume.handle))
    }

    /// Queues what is in a share's trash.
    pub(super) fn remove_trash(&self, share: &Arc<Share>) {
        let listed = share.with_own(|own| share.entries(&own.trash));
        match listed {
            Ok(entries) => {
                self.removals.forget_others(&share.id, &entries);
                entries
                    .iter()
                    .for_each(|entry| self.removals.add(share, &entry.name, self.config.tree_workers));
            }
            Err(fault) => tracing::warn!(share = %share.place(), %fault, "looking at the trash"),
        }
    }
}

/// An earlier call may have been killed when it had removed the record, while somebody changed it.
fn no_record(share: &Share, own: &Own, handle: &Handle) -> Result<()> {
    change::stop(share, own, &handle.key).told(share, &format!("deleting volume {handle}"))?;
    match load::<VolumeRecord>(share, Index::Volumes, &handle.key)? {
        (_, None) => Ok(()),
        (_, Some(_)) => Err(Error::Unavailable(format!(
            "volume {handle} was made or changed by somebody else meanwhile; repeat the call"
        ))),
    }
}

/// Where a volume's directory is.
struct Place<'a> {
    /// The directory that it is in.
    parent: Fh,
    name: &'a str,
    node: Node,
}

/// Where a volume's directory is; `None`: it is not there, or not the one that was made for the volume, which is left
/// alone then.
fn parent(volume: &Found) -> Result<Option<Place<'_>>> {
    let (share, path) = (&volume.share, &volume.record.dir);
    let (above, name) = split(path);
    let doing = format!("looking for directory {path}");
    let parent = match above {
        None => Some(volume.own.root.clone()),
        Some(above) => match share.walk(&volume.own.root, above) {
            Err(fault) if fault.is(Status::NOT_DIRECTORY) => None,
            other => other.told(share, &doing)?.map(|node| node.fh),
        },
    };
    if let Some(parent) = parent
        && let Some(node) = share.look(&parent, name.as_bytes()).told(share, &doing)?
        && node.attr.kind == Kind::Directory
        && is_of(share, &volume.own, &volume.record, &node)?
    {
        return Ok(Some(Place { parent, name, node }));
    }
    Ok(None)
}

/// What is gone between two looks at it was moved or removed by another driver.
fn by_another(error: Error) -> Error {
    match error {
        Error::NotFound(text) => {
            Error::Unavailable(format!("{text}; another driver works on it at this moment, repeat the call"))
        }
        other => other,
    }
}

fn say_gone(volume: &Found) {
    let dir = &volume.record.dir;
    tracing::warn!(volume = %volume.handle, dir, "its directory is gone or was replaced; nothing is removed");
}

/// What was archived, and was put in the volume's place a moment ago, gets its name back.
fn undo_if_other(volume: &Found, place: &Place<'_>, archive: &str) -> Result<()> {
    let (share, dir, doing) = (&volume.share, &place.parent, "looking at the archive");
    let Some(node) = share.look(dir, archive.as_bytes()).told(share, doing)? else { return Ok(()) };
    if is_of(share, &volume.own, &volume.record, &node)? {
        return Ok(());
    }
    if share.look(dir, place.name.as_bytes()).told(share, doing)?.is_none() {
        share.rename(dir, archive.as_bytes(), dir, place.name.as_bytes()).told(share, doing)?;
    }
    Err(Error::Unavailable(format!(
        "{} on {} was exchanged for another directory while the volume was archived; repeat the call",
        volume.record.dir,
        share.place()
    )))
}

/// Moves something from the trash back to where it was, if nothing is there now.
pub(super) fn put_back(share: &Share, own: &Own, name: &[u8], dir: &str) -> Result<()> {
    let (above, last) = split(dir);
    let work = || {
        let parent = match above {
            None => Some(own.root.clone()),
            Some(above) => share.walk(&own.root, above)?.map(|node| node.fh),
        };
        let Some(parent) = parent else { return Err(Fault::Status(Status::NO_ENTRY)) };
        if share.look(&parent, last.as_bytes())?.is_some() {
            return Err(Fault::Status(Status::EXISTS));
        }
        share.rename(&own.trash, name, &parent, last.as_bytes())
    };
    work().told(
        share,
        &format!("putting {dir} back, which is kept as {OWN}/trash/{}", String::from_utf8_lossy(name)),
    )
}
