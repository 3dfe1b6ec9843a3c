//! Groups of snapshots: all taken while all images are locked, so that nobody writes between the first and the last.
//!
//! This is what librbd does for its own groups, too. Their snapshots are not used, for before Ceph 19 nothing can be
//! cloned from them.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::ffi::{Errno, Image};
use super::foreign::{GROUP_CLASS, check_source};
use super::handle::{Handle, parse_handle};
use super::list::show_snapshot;
use super::params::{EXCLUSIVE_LOCK, GROUP_DOCS};
use super::record::{Found, GroupRecord, SnapshotRecord};
use super::site::{GROUPS, SNAPSHOTS, Site};
use super::snapshot::take;
use super::store::Store;
use crate::parameters::others;
use crate::record::check_members;
use crate::{Ctx, Error, GroupSnapshot, GroupSpec, Parameters, Result, Secrets, SnapshotId, key_for};

/// A member being made.
struct Member {
    site: Site,
    found: Found,
    handle: Handle,
    image: Image,
    locked: bool,
}

impl Drop for Member {
    fn drop(&mut self) {
        if self.locked
            && let Err(errno) = self.image.unlock()
        {
            tracing::warn!(volume = %self.found.handle, %errno, "the lock is given back when the image is closed");
        }
    }
}

impl Store {
    /// The handle of a group: in the place of its first source.
    pub(super) fn group_handle(spec: &GroupSpec) -> Result<Handle> {
        let reader = Parameters::with_foreign("parameters", &spec.parameters, &GROUP_DOCS, &GROUP_CLASS)?;
        let first = spec.sources.first();
        let first =
            first.ok_or_else(|| Error::invalid("source_volume_ids", "is empty; name at least one volume"))?;
        let source = parse_handle(&first.0)
            .map_err(|_| Error::NotFound(format!("source_volume_ids: there is no volume {first}")))?;
        check_source(&reader, &source)?;
        Handle::new(source.place, key_for(&spec.name))
    }

    /// Takes the snapshots of a group, or finds those taken before.
    pub(super) fn snapshot_group(&self, ctx: &Ctx, spec: &GroupSpec) -> Result<GroupSnapshot> {
        self.told.tell("rbd", &others("parameters", &spec.parameters, &GROUP_CLASS));
        let handle = Self::group_handle(spec)?;
        let site = self.site(&handle.place, ctx.secrets())?;
        if let Some(record) = site.entry::<GroupRecord>(GROUPS, &handle.name)? {
            if record.complete {
                return self.confirm_group(ctx, spec, &record);
            }
            self.remove_members(ctx, &record)?;
        }
        let mut members = self.start_members(ctx, spec)?;
        let mut record = GroupRecord {
            id: handle.to_string(),
            name: spec.name.clone(),
            cluster: self.config.owner.clone(),
            members: members.iter().map(|member| member.handle.to_string()).collect(),
            sources: spec.sources.iter().map(|id| id.0.clone()).collect(),
            created: Timestamp::now(),
            complete: false,
        };
        site.note(GROUPS, &handle.name, &record)?;
        ctx.check()?;
        let taken = self.take_members(ctx, spec, &handle, &mut members);
        drop(members);
        if let Err(error) = taken {
            self.remove_members(ctx, &record)?;
            site.forget(GROUPS, &[&handle.name])?;
            return Err(error);
        }
        record.complete = true;
        record.created = taken?;
        site.note(GROUPS, &handle.name, &record)?;
        tracing::info!(group = %handle, members = record.members.len(), "taken");
        self.show_group(ctx.secrets(), &record)
    }

    fn confirm_group(&self, ctx: &Ctx, spec: &GroupSpec, record: &GroupRecord) -> Result<GroupSnapshot> {
        let asked: BTreeSet<&str> = spec.sources.iter().map(|id| id.0.as_str()).collect();
        let has: BTreeSet<&str> = record.sources.iter().map(String::as_str).collect();
        if asked != has || record.name != spec.name || record.cluster != self.config.owner {
            return Err(Error::AlreadyExists(format!(
                "a group named {:?} exists as {} of {} (cluster {:?}); use another name",
                record.name,
                record.id,
                record.sources.join(", "),
                record.cluster
            )));
        }
        self.show_group(ctx.secrets(), record)
    }

    fn start_members(&self, ctx: &Ctx, spec: &GroupSpec) -> Result<Vec<Member>> {
        spec.sources
            .iter()
            .map(|id| {
                let (site, found) = self.volume(id, ctx.secrets())?;
                // No CSI name holds a control character, so no other snapshot has this name.
                let key = key_for(&format!("{}\u{1}{id}", spec.name));
                let handle = Handle::new(found.handle.place.clone(), key)?;
                let image = site.open(&found.header.image)?;
                Ok(Member { site, found, handle, image, locked: false })
            })
            .collect()
    }

    /// Locks all, takes all, gives the locks back; the moment is one at which all were locked.
    fn take_members(
        &self,
        ctx: &Ctx,
        spec: &GroupSpec,
        group: &Handle,
        members: &mut [Member],
    ) -> Result<Timestamp> {
        ctx.stage("stopping writes");
        for member in members.iter_mut() {
            stop_writes(member)?;
        }
        ctx.stage("taking the snapshots");
        let moment = Timestamp::now();
        for member in members.iter() {
            let name = format!("{}\u{1}{}", spec.name, member.found.handle);
            let record = self.snapshot_record(&member.handle, &name, &member.found, Some(group.to_string()));
            member.site.note(SNAPSHOTS, &member.handle.name, &record)?;
            ctx.check()?;
            let record = take(&member.site, &member.image, record)?;
            member.site.note(SNAPSHOTS, &member.handle.name, &record)?;
        }
        for member in members.iter() {
            let kept = !member.locked || member.image.is_locked_by_us().unwrap_or(false);
            if !kept {
                return Err(Error::Unavailable(format!(
                    "the lock of {} was lost while the group was taken; repeat the call",
                    member.found.handle
                )));
            }
        }
        Ok(moment)
    }

    /// Removes the members of a group that was not completed, or whose deletion began.
    fn remove_members(&self, ctx: &Ctx, group: &GroupRecord) -> Result<()> {
        for member in &group.members {
            let handle = parse_handle(member)?;
            let site = self.site(&handle.place, ctx.secrets())?;
            if let Some(record) = site.entry::<SnapshotRecord>(SNAPSHOTS, &handle.name)?
                && record.group.as_ref() == Some(&group.id)
            {
                self.remove_snapshot(ctx, &site, &handle.name, &record)?;
            }
        }
        Ok(())
    }

    /// Deletes a group and its members. None such: `Ok`.
    pub(super) fn delete_group(&self, ctx: &Ctx, id: &str, members: &[SnapshotId]) -> Result<()> {
        let Ok(handle) = parse_handle(id) else { return Ok(()) };
        let site = self.site(&handle.place, ctx.secrets())?;
        let Some(mut record) = site.entry::<GroupRecord>(GROUPS, &handle.name)? else { return Ok(()) };
        check_members(&record.id, &record.members, members)?;
        if record.cluster != self.config.owner {
            return Err(Error::Refused(format!(
                "group {id} belongs to cluster {:?}; delete it there",
                record.cluster
            )));
        }
        ctx.stage("deleting");
        record.complete = false;
        site.note(GROUPS, &handle.name, &record)?;
        self.remove_members(ctx, &record)?;
        site.forget(GROUPS, &[&handle.name])?;
        tracing::info!(group = %handle, "deleted");
        Ok(())
    }

    /// One group. None such: [`Error::NotFound`].
    pub(super) fn get_group(&self, ctx: &Ctx, id: &str, members: &[SnapshotId]) -> Result<GroupSnapshot> {
        let none = || Error::NotFound(format!("group {id}: there is no such group of snapshots"));
        let handle = parse_handle(id).map_err(|_| none())?;
        let site = self.site(&handle.place, ctx.secrets())?;
        let record: GroupRecord = site.entry(GROUPS, &handle.name)?.ok_or_else(none)?;
        if !record.complete {
            return Err(none());
        }
        check_members(&record.id, &record.members, members)?;
        self.show_group(ctx.secrets(), &record)
    }

    fn show_group(&self, secrets: &Secrets, group: &GroupRecord) -> Result<GroupSnapshot> {
        let member = |id: &String| {
            let handle = parse_handle(id)?;
            let site = self.site(&handle.place, secrets)?;
            let record = Self::snapshot_at(&site, &handle).map_err(|_| Error::Corrupt {
                what: format!("group {}", group.id),
                problem: format!("its snapshot {id} is missing"),
            })?;
            Ok(show_snapshot(&record))
        };
        Ok(GroupSnapshot {
            id: group.id.clone(),
            snapshots: group.members.iter().map(member).collect::<Result<_>>()?,
            created: group.created,
            ready: true,
        })
    }
}

/// Takes the image's lock: its writers wait until it is given back. An image without that feature must not be in use.
fn stop_writes(member: &mut Member) -> Result<()> {
    let (site, image, handle) = (&member.site, &member.image, &member.found.handle);
    let failed = |errno| site.fail(&format!("locking {}", handle.spec()), errno);
    if image.features().map_err(failed)? & EXCLUSIVE_LOCK == 0 {
        let own = site.session.connection.address().map_err(failed)?;
        let others = image.watchers().map_err(failed)?;
        return match others.iter().find(|watcher| watcher.address != own) {
            None => Ok(()),
            Some(watcher) => Err(Error::Refused(format!(
                "volume {handle} has not the feature exclusive-lock and is open by {}, so its writes cannot be stopped; unpublish it, or `rbd feature enable {} exclusive-lock`",
                watcher.address,
                handle.spec()
            ))),
        };
    }
    match image.lock() {
        Ok(()) => {
            member.locked = true;
            Ok(())
        }
        Err(Errno::BUSY | Errno::ROFS) => Err(Error::Refused(format!(
            "volume {handle}: the holder of its lock does not give it away; see `volumectl lock ls --image {}`",
            handle.spec()
        ))),
        Err(errno) => Err(failed(errno)),
    }
}
