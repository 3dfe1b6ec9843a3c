//! Deleting: the image goes to the trash, marked; its space is freed behind. One that still has snapshots is set aside
//! until the last of them is deleted.

use jiff::Timestamp;

use super::clones::CLONE_SNAPSHOT;
use super::config::Purge;
use super::ffi::{Errno, Image, Watcher};
use super::handle::{Handle, parse_handle};
use super::locks::node_of;
use super::record::{DELETED, Deletion, Found, OURS, VOLUME, VolumeRecord, decode, deletion, seal};
use super::session::is_ours;
use super::site::{Header, Site};
use super::store::Store;
use super::torn::{Holds, holds_nothing};
use crate::{Ctx, Error, Result, VolumeId};

/// What the name of an image begins with that is deleted and has snapshots still.
pub(super) const SET_ASIDE: &str = "volumectl.deleted.";

impl Store {
    /// Deletes a volume. None such: `Ok`.
    pub(super) fn delete(&self, ctx: &Ctx, id: &VolumeId) -> Result<()> {
        let Ok(handle) = parse_handle(&id.0) else { return Ok(()) };
        self.sessions.cluster(&handle.place.cluster).map_err(|e| Error::Refused(e.to_string()))?;
        let site = self.site(&handle.place, ctx.secrets())?;
        let Some(image) = site.image_id(&handle.name)? else { return Ok(()) };
        let Some(header) = site.header(&image)? else {
            return self.remove_half_made(&site, &handle.name, &image, None);
        };
        let Some(found) = Found::read(&handle, header.clone())? else {
            return self.delete_recordless(&site, &handle, &header);
        };
        found.check()?;
        self.check_unused(&found)?;
        ctx.stage("looking for users");
        check_unwatched(&site, &found)?;
        Self::clear_lock(&site, &found, &[], false)?;
        ctx.check()?;
        ctx.stage("marking as deleted");
        if !found.is_deleted() {
            let mark = seal(&Deletion { since: Timestamp::now() })?;
            if !site.update_in_turn(&found, &[(DELETED, &mark)], &[])? {
                return Err(Error::Unavailable(format!(
                    "volume {id} was published or claimed at this moment; repeat the call"
                )));
            }
        }
        ctx.check()?;
        ctx.stage("moving to the trash");
        let unmark = |error: Error| {
            if let Err(other) = site.update(&image, &[], &[DELETED]) {
                tracing::warn!(volume = %handle, %other, "the mark of a deletion that was refused stays");
            }
            error
        };
        if found.header.has_snapshots && Self::set_aside(&site, &found).map_err(unmark)? {
            tracing::info!(volume = %handle, "deleted; its image stays until its snapshots are deleted");
            return Ok(());
        }
        self.discard(&site, &found.header, &handle.name).map_err(unmark)?;
        tracing::info!(volume = %handle, "deleted");
        Ok(())
    }

    fn check_unused(&self, found: &Found) -> Result<()> {
        let handle = &found.handle;
        crate::record::check_owner(&format!("volume {handle}"), &found.record.cluster, &self.config.owner)?;
        let nodes = found.nodes();
        if self.config.attach && !nodes.is_empty() {
            return Err(Error::Refused(format!(
                "volume {handle} is published to {}; unpublish it there first",
                nodes.join(", ")
            )));
        }
        Ok(())
    }

    /// An image without a record is not deleted, unless it is what our own interrupted creation left.
    fn delete_recordless(&self, site: &Site, handle: &Handle, header: &Header) -> Result<()> {
        // Another's, which a hand-made PersistentVolume names: it was used, and what we noted is there without a record.
        let used = !header.meta.contains_key(VOLUME) && header.meta.keys().any(|key| key.starts_with(OURS));
        let torn = header.is_torn_of(handle, &self.config.owner)?;
        let intended = |it: super::record::Intent| it.cluster == self.config.owner;
        let ours = super::plan::is_unique(&handle.name) || site.intent(&handle.name)?.is_some_and(intended);
        if torn || (ours && !used && matches!(holds_nothing(site, &header.image), Holds::Nothing)) {
            return self.remove_half_made(site, &handle.name, &header.image, Some(header));
        }
        Err(Error::Refused(format!(
            "image {} has no record of this driver, so it is not deleted; `rbd rm {}` removes it if nobody needs it",
            handle.spec(),
            handle.spec()
        )))
    }

    /// Renames an image that has snapshots of users, so that its name is free; whether it has any.
    fn set_aside(site: &Site, found: &Found) -> Result<bool> {
        let id = &found.header.image;
        let Some(image) = site.look(id)? else { return Ok(false) };
        let kept = Self::kept_snapshots(site, id, &image)?;
        if kept.is_empty() {
            return Ok(false);
        }
        drop(image);
        let name = &found.handle.name;
        match site.pool.rename(name, &format!("{SET_ASIDE}{id}")) {
            Ok(()) => Ok(true),
            Err(e) => Err(site.fail(&format!("renaming image {}", found.handle.spec()), e)),
        }
    }

    /// The snapshots that keep an image; those left by interrupted clones are removed.
    fn kept_snapshots(site: &Site, id: &str, image: &Image) -> Result<Vec<String>> {
        let snapshots = image.snapshots().map_err(|e| site.fail("listing snapshots", e))?;
        let names = snapshots.into_iter().map(|snapshot| snapshot.name);
        let (stale, kept): (Vec<_>, Vec<_>) = names.partition(|name| name.starts_with(CLONE_SNAPSHOT));
        if !stale.is_empty() {
            let image = site.open(id)?;
            for name in stale {
                image.remove_snapshot(&name).map_err(|e| site.fail("removing a clone's snapshot", e))?;
            }
        }
        Ok(kept)
    }

    /// Moves an image to the trash and has it purged.
    pub(super) fn discard(&self, site: &Site, header: &Header, name: &str) -> Result<()> {
        let plain = !header.has_snapshots && site.is_plain(&header.image)?;
        if !plain && let Some(group) = site.group_of(&header.image)? {
            let image = site.handle(name).spec();
            return Err(Error::Refused(format!(
                "image {image} is a member of the group {group}; take it out first: `rbd group image rm {group} {image}`"
            )));
        }
        // librbd goes by the name, which is another image's if somebody else has deleted this one already.
        let moved = if plain {
            site.trash_plain(name, &header.image)
        } else if site.image_id(name)?.as_deref() == Some(header.image.as_str()) {
            site.pool.trash(name)
        } else {
            Ok(())
        };
        match moved {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::BUSY) => return Err(Self::explain_busy(site, header, name)),
            Err(e) => return Err(site.fail(&format!("moving image {name} to the trash"), e)),
        }
        self.tasks.purge(site, &header.image, header.size);
        if self.config.purge == Purge::Inline
            && !self.tasks.wait_purged(&header.image, self.config.call_timeout)
        {
            tracing::info!(image = name, "in the trash; its space is freed when its clones are gone");
        }
        Ok(())
    }

    fn explain_busy(site: &Site, header: &Header, name: &str) -> Error {
        let watchers = site.look(&header.image).ok().flatten().and_then(|image| image.watchers().ok());
        match (Found::read(&site.handle(name), header.clone()), watchers) {
            (Ok(Some(found)), Some(watchers)) => in_use(&found, &watchers),
            _ => {
                Error::Refused(format!("image {} is in use; see `rbd status {0}`", site.handle(name).spec()))
            }
        }
    }

    /// Moves an image that was set aside to the trash if no snapshot needs it any more; whether it did.
    pub(super) fn release(&self, site: &Site, id: &str, name: &str) -> Result<bool> {
        let Some(header) = site.header(id)? else { return Ok(false) };
        if !name.starts_with(SET_ASIDE) || !marked_by(&site.handle(name), &header, &self.config.owner)? {
            return Ok(false);
        }
        let Some(image) = site.look(id)? else { return Ok(false) };
        if !Self::kept_snapshots(site, id, &image)?.is_empty() {
            return Ok(false);
        }
        drop(image);
        self.discard(site, &header, name)?;
        Ok(true)
    }
}

/// librbd moves an image to the trash also while others have it open or locked.
fn check_unwatched(site: &Site, found: &Found) -> Result<()> {
    let Some(image) = site.look(&found.header.image)? else { return Ok(()) };
    let failed = |errno| site.fail("listing watchers", errno);
    let mut watchers = image.watchers().map_err(failed)?;
    // A handle of our own, of a call or of the work behind the answers, is no user.
    watchers.retain(|watcher| !is_ours(&watcher.address));
    if !watchers.is_empty() {
        return Err(in_use(found, &watchers));
    }
    // librbd would wait for the holder of an advisory lock for ever, whether that lives or not.
    let advisory = image.lockers().map_err(failed)?.into_iter().find(|locker| !locker.is_managed());
    match advisory {
        None => Ok(()),
        Some(locker) => Err(Error::Refused(format!(
            "volume {} has the advisory lock {:?} of {} ({}); if that is gone: `volumectl lock recover {}`",
            found.handle,
            locker.cookie,
            locker.client,
            locker.address,
            found.handle.spec()
        ))),
    }
}

/// Whether an image is one that we have marked as deleted. What of it cannot be read is an error: it is not touched.
pub(super) fn marked_by(handle: &Handle, header: &Header, owner: &str) -> Result<bool> {
    if header.is_torn_of(handle, owner)? {
        return Ok(true);
    }
    let Some(text) = header.meta.get(VOLUME) else { return Ok(false) };
    let record: VolumeRecord =
        decode(&format!("the record in image-meta {VOLUME} of {}", handle.spec()), text.as_bytes())?;
    Ok(record.cluster == owner && deletion(handle, header)?.is_some())
}

/// "Still in use", with who: client address, node, and the command that helps.
pub(super) fn in_use(found: &Found, watchers: &[Watcher]) -> Error {
    let clients = super::locks::known(found.clients()).unwrap_or_default();
    let who = watchers.iter().map(|watcher| match node_of(&clients, &watcher.address) {
        Some((node, _)) => format!("client {} on node {node}", watcher.address),
        None => format!("client {}", watcher.address),
    });
    let who: Vec<_> = who.collect();
    let nodes = found.nodes();
    let attached =
        if nodes.is_empty() { String::new() } else { format!(" (published to {})", nodes.join(", ")) };
    Error::Refused(format!(
        "volume {} is in use by {}{attached}; unmap it there, or see `volumectl lock ls --image {}`",
        found.handle,
        who.join(", "),
        found.handle.spec()
    ))
}
