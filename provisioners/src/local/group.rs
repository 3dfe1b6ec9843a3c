//! Groups of snapshots: all copied while all is quiet, and valid together by one rename of the group's record.
//!
//! `groups/<key>.pending` says which snapshots belong to a group that is being made or deleted; `groups/<key>.json`
//! makes them valid. Whatever is pending when nobody works on it is removed.

use std::collections::BTreeSet;
use std::fs::{self, File};

use jiff::Timestamp;

use super::copy::{create_image, open_source};
use super::copytree::{copy_tree, still_changing};
use super::delete::remove_snapshot;
use super::handle::{Handle, parse_handle};
use super::layout::{Draft, Root, failed, remove_file, replace, sync};
use super::params::VolumeType;
use super::record::{GroupRecord, SnapshotRecord, encode, load};
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
        let mut members = self.start_members(spec, &handle)?;
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
            self.finish_pending(root, &handle.key)?;
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

    fn start_members(&self, spec: &GroupSpec, group: &Handle) -> Result<Vec<Member<'_>>> {
        spec.sources
            .iter()
            .map(|id| {
                let source = self.volume(id)?;
                source.whole()?;
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
                Ok(Member { source, draft, handle, record, copy })
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
            Copied::File(file) => self.copy_quiet(ctx, &open_source(&from)?, file, &to, true),
            Copied::Directory(moment) => {
                *moment = Some(copy_tree(ctx, &from, &to)?);
                Ok(())
            }
        }
    }

    /// Removes the members of a group that was not completed, or whose deletion began. Whether there was one.
    pub(super) fn finish_pending(&self, root: &Root, key: &str) -> Result<bool> {
        let pending = root.group(key, false);
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
            fs::rename(&complete, root.group(&handle.key, false))
                .map_err(|e| failed("renaming", &complete, e))?;
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
    let pending = root.group(&handle.key, false);
    replace(&pending, &encode(record)?)?;
    for member in members {
        publish_snapshot(member.draft, &member.source, &member.record, &member.handle)?;
        sync(&member.source.root.own("snapshots"))?;
    }
    let complete = root.group(&handle.key, true);
    fs::rename(&pending, &complete).map_err(|e| failed("renaming", &pending, e))?;
    sync(&root.own("groups"))
}
