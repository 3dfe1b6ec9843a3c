//! Groups of snapshots: all copied while all is quiet, and valid together by one rename of the group's record.
//!
//! `groups/<key>.pending` says which snapshots belong to a group that is being made or deleted; `groups/<key>.json`
//! makes them valid. Whatever is pending when nobody works on it is removed.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::Path;

use jiff::Timestamp;

use super::copy::{create_image, open_source};
use super::copytree::{copy_tree, still_changing};
use super::delete::remove_snapshot;
use super::draft::Draft;
use super::handle::{Handle, parse_handle};
use super::layout::{Root, failed, remove_file, rename_new, sync, write_new};
use super::lease::{Lease, Sharing};
use super::params::VolumeType;
use super::record::{GroupRecord, SnapshotRecord, encode, is_absent, load};
use super::snapshot::{FoundSnapshot, publish_snapshot, quiesce_limit};
use super::store::{Found, Store};
use super::walk::{Moment, changed_since};
use crate::record::check_members;
use crate::{Ctx, Error, GroupSnapshot, GroupSpec, Parameters, Result, SnapshotId, key_for};

/// A member being made.
struct Member<'a> {
    source: Found<'a>,
    draft: Draft,
    handle: Handle,
    record: SnapshotRecord,
    /// The copied file, or the moment that a copied directory is of.
    copy: Copied,
    /// Held until the copy is complete.
    _lease: Lease,
}

enum Copied {
    File(File),
    Directory(Option<Moment>),
}

impl Store {
    /// The handle of a group: in the root of its first source.
    pub(super) fn group_handle(spec: &GroupSpec) -> Result<Handle> {
        Parameters::new("parameters", &spec.parameters, &[])?;
        let first = spec.sources.first();
        let first =
            first.ok_or_else(|| Error::invalid("source_volume_ids", "is empty; name at least one volume"))?;
        let source = parse_handle(&first.0)
            .map_err(|_| Error::NotFound(format!("source_volume_ids: there is no volume {first}")))?;
        Ok(Handle { root: source.root, key: key_for(&spec.name) })
    }

    /// Whether a group's record is there.
    pub(super) fn group_is_complete(&self, id: &str) -> bool {
        let root = parse_handle(id).ok().and_then(|handle| Some((self.root(&handle.root).ok()?, handle.key)));
        root.is_some_and(|(root, key)| root.group(&key, true).exists())
    }

    /// Takes the snapshots of a group, or finds those taken before.
    pub(super) fn snapshot_group(&self, ctx: &Ctx, spec: &GroupSpec) -> Result<GroupSnapshot> {
        let handle = Self::group_handle(spec)?;
        for root in self.roots.iter().filter(|root| root.exists()) {
            if let Some(record) = load::<GroupRecord>(&root.group(&handle.key, true))? {
                return self.confirm_group(spec, root, &record);
            }
            self.finish_pending(root, &handle.key)?;
        }
        let mut members = self.start_members(ctx, spec, &handle)?;
        let created = self.copy_members(ctx, &mut members)?;
        let record = GroupRecord {
            id: handle.to_string(),
            name: spec.name.clone(),
            cluster: self.config.cluster.clone(),
            members: members.iter().map(|member| member.handle.to_string()).collect(),
            sources: spec.sources.iter().map(|id| id.0.clone()).collect(),
            created,
        };
        let root = self.root(&handle.root)?;
        ctx.check()?;
        if let Err(error) = publish_members(root, &handle, &record, members) {
            if !matches!(error, Error::Unavailable(_)) {
                self.finish_pending(root, &handle.key)?;
            }
            return Err(error);
        }
        tracing::info!(group = %handle, members = record.members.len(), "taken");
        self.show_group(&record)
    }

    fn confirm_group(&self, spec: &GroupSpec, root: &Root, record: &GroupRecord) -> Result<GroupSnapshot> {
        let asked: BTreeSet<&str> = spec.sources.iter().map(|id| id.0.as_str()).collect();
        let has: BTreeSet<&str> = record.sources.iter().map(String::as_str).collect();
        if asked != has || record.name != spec.name || record.cluster != self.config.cluster {
            return Err(Error::AlreadyExists(format!(
                "a group named {:?} exists as {} of {} (cluster {:?}); use another name",
                record.name,
                record.id,
                record.sources.join(", "),
                record.cluster
            )));
        }
        sync(&root.own("groups"))?;
        self.show_group(record)
    }

    fn start_members(&self, ctx: &Ctx, spec: &GroupSpec, group: &Handle) -> Result<Vec<Member<'_>>> {
        spec.sources
            .iter()
            .map(|id| {
                let source = self.volume(id)?;
                source.whole()?;
                let lease = Lease::take(ctx, &source.data(), Sharing::Copy)?;
                // No CSI name holds a control character, so no other snapshot has this name.
                let name = format!("{}\u{1}{}", spec.name, source.handle);
                let handle = Handle { root: source.root.name.clone(), key: key_for(&name) };
                let draft = Draft::start(source.root, "snapshot", &handle.key)?;
                let copy = match source.record.kind {
                    VolumeType::File => Copied::File(create_image(&draft.path.join("disk.img"))?),
                    VolumeType::Directory => Copied::Directory(None),
                };
                let now = Timestamp::now();
                let record = self.snapshot_record(&handle, &name, &source, now, Some(group.to_string()));
                Ok(Member { source, draft, handle, record, copy, _lease: lease })
            })
            .collect()
    }

    /// Copies all while all is quiet; the moment is one at which no member's data differed from its copy.
    fn copy_members(&self, ctx: &Ctx, members: &mut [Member<'_>]) -> Result<Timestamp> {
        let is_file = |member: &&Member<'_>| member.record.kind == VolumeType::File;
        let files: Vec<_> = members.iter().filter(is_file).map(|member| member.source.data()).collect();
        ctx.stage("stopping writes");
        let quiet =
            if files.is_empty() { None } else { Some(self.host.quiesce(&files, quiesce_limit(&files))?) };
        for member in members.iter_mut() {
            self.copy_member(ctx, member)?;
        }
        for member in members.iter() {
            if let Copied::Directory(Some(moment)) = member.copy {
                let data = member.source.data();
                if let Some(changed) = changed_since(&data, moment)? {
                    return Err(still_changing(&data, &changed));
                }
            }
        }
        let created = Timestamp::now();
        if let Some(quiet) = quiet {
            quiet.resume()?;
        }
        for member in members {
            member.record.created = created;
        }
        Ok(created)
    }

    fn copy_member(&self, ctx: &Ctx, member: &mut Member<'_>) -> Result<()> {
        let from = member.source.data();
        let to = member.draft.path.join(member.record.kind.data_name());
        match &mut member.copy {
            Copied::File(file) => self.copy_unchanged(ctx, (&from, &open_source(&from)?), file, &to, true),
            Copied::Directory(moment) => {
                *moment = Some(copy_tree(ctx, &from, &to)?);
                Ok(())
            }
        }
    }

    /// Removes the members of a group that was not completed, or whose deletion began. Whether there was one. Another
    /// process is making it: [`Error::Unavailable`].
    pub(super) fn finish_pending(&self, root: &Root, key: &str) -> Result<bool> {
        let pending = root.group(key, false);
        let Some(_lock) = lock_pending(&pending)? else { return Ok(false) };
        let Some(record) = load::<GroupRecord>(&pending)? else {
            return Ok(false);
        };
        for member in &record.members {
            let Ok(handle) = parse_handle(member) else {
                continue;
            };
            let root = self.root(&handle.root)?;
            if let Some(found) = root.any_snapshot(&handle.key)?
                && found.record.group.as_ref() == Some(&record.id)
            {
                remove_snapshot(root, &handle.key, &found.dir)?;
            }
        }
        remove_file(&pending)?;
        Ok(true)
    }

    /// Deletes a group and its members. None such: `Ok`.
    pub(super) fn delete_group(&self, ctx: &Ctx, id: &str, members: &[SnapshotId]) -> Result<()> {
        let Some((root, handle)) = self.to_delete(id)? else {
            return Ok(());
        };
        let complete = root.group(&handle.key, true);
        if let Some(record) = load::<GroupRecord>(&complete)? {
            check_members(&record.id, &record.members, members)?;
            self.check_owner(&format!("group {id}"), &record.cluster)?;
            ctx.stage("deleting");
            if !rename_new(&complete, &root.group(&handle.key, false))? {
                return Err(in_work(&complete));
            }
            sync(&root.own("groups"))?;
            tracing::info!(group = %handle, "deleted");
        }
        self.finish_pending(root, &handle.key)?;
        Ok(())
    }

    /// One group. None such: [`Error::NotFound`].
    pub(super) fn get_group(&self, id: &str, members: &[SnapshotId]) -> Result<GroupSnapshot> {
        let none = || Error::NotFound(format!("group {id}: there is no such group of snapshots"));
        let handle = parse_handle(id).map_err(|_| none())?;
        let root = self.root(&handle.root).map_err(|_| none())?;
        let record = load::<GroupRecord>(&root.group(&handle.key, true))?.ok_or_else(none)?;
        check_members(&record.id, &record.members, members)?;
        self.show_group(&record)
    }

    fn show_group(&self, record: &GroupRecord) -> Result<GroupSnapshot> {
        let snapshots = record.members.iter().map(|member| {
            let found = self.find_snapshot_by_id(&SnapshotId(member.clone()));
            found.map(|found: FoundSnapshot<'_>| found.show()).map_err(|error| match error {
                Error::NotFound(_) => Error::Corrupt {
                    what: format!("group {}", record.id),
                    problem: format!("its snapshot {member} is missing"),
                },
                other => other,
            })
        });
        Ok(GroupSnapshot {
            id: record.id.clone(),
            snapshots: snapshots.collect::<Result<_>>()?,
            created: record.created,
            ready: true,
        })
    }
}

fn publish_members(
    root: &Root,
    handle: &Handle,
    record: &GroupRecord,
    members: Vec<Member<'_>>,
) -> Result<()> {
    // Locked before it can be found, until the group is complete: what is pending and not locked is nobody's.
    let pending = root.group(&handle.key, false);
    let draft = root.own("tmp").join(format!("group-{}.{}", handle.key, uuid::Uuid::new_v4()));
    write_new(&draft, &encode(record)?)?;
    let Some(_lock) = lock_pending(&draft)? else { return Err(in_work(&pending)) };
    if !rename_new(&draft, &pending)? {
        remove_file(&draft)?;
        return Err(in_work(&pending));
    }
    sync(&root.own("groups"))?;
    for member in members {
        publish_snapshot(member.draft, &member.source, &member.record, &member.handle)?;
        sync(&member.source.root.own("snapshots"))?;
    }
    let complete = root.group(&handle.key, true);
    fs::rename(&pending, &complete).map_err(|e| failed("renaming", &pending, e))?;
    sync(&root.own("groups"))
}

/// Locks the record of a group that is being made or deleted; none there: `None`.
fn lock_pending(path: &Path) -> Result<Option<File>> {
    let file = match File::open(path) {
        Err(e) if is_absent(&e) => return Ok(None),
        other => other.map_err(|e| failed("opening", path, e))?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(in_work(path)),
        Err(TryLockError::Error(e)) => Err(failed("locking", path, e)),
    }
}

fn in_work(path: &Path) -> Error {
    Error::Unavailable(format!("{}: another process works on this group; repeat the call", path.display()))
}
