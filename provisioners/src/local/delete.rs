//! Deleting: moved to the trash in one step, then removed; what was interrupted goes on at the next call.

use std::fs;
use std::path::Path;

use super::draft::is_of;
use super::layout::{Root, VOLUME_RECORD, is_dir, rename_new, sync};
use super::lease::{Lease, Sharing};
use super::list::names;
use super::remove::remove_tree;
use super::store::{Found, Store};
use crate::{Ctx, Error, Result, SnapshotId, VolumeId};

impl Store {
    /// Deletes a volume. None such: `Ok`.
    pub(super) fn delete(&self, ctx: &Ctx, id: &VolumeId) -> Result<()> {
        let Some((root, handle)) = self.to_delete(&id.0)? else {
            return Ok(());
        };
        if !root.exists() {
            return Ok(());
        }
        let key = &handle.key;
        empty_trash(root, "volume", key)?;
        let Some(found) = root.find_volume(key)? else {
            check_recordless(root, key)?;
            return root.unlink(key);
        };
        // Nobody attaches or copies it between the look and the act.
        let _lease = Lease::take(ctx, &found.data(), Sharing::Alone)?;
        self.check_unused(ctx, &found)?;
        ctx.stage("deleting");
        discard(root, "volume", key, &found.dir, &root.path)?;
        root.unlink(key)?;
        empty_trash(root, "volume", key)?;
        tracing::info!(volume = %handle, "deleted");
        Ok(())
    }

    fn check_unused(&self, ctx: &Ctx, found: &Found<'_>) -> Result<()> {
        self.check_owner(&format!("volume {}", found.handle), &found.record.cluster)?;
        let nodes: Vec<_> = found.record.published.keys().map(String::as_str).collect();
        // Without attachment nobody could unpublish it any more; its users are asked for below.
        if self.config.attach && !nodes.is_empty() {
            return Err(Error::Refused(format!(
                "volume {} is published to {}; unpublish it there first",
                found.handle,
                nodes.join(", ")
            )));
        }
        ctx.stage("looking for users");
        let data = found.data();
        let users = self.host.release(&data)?;
        if users.is_empty() {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "volume {} is in use by {}; unmount it there first",
            found.handle,
            users.join(", ")
        )))
    }

    /// Deletes a snapshot. None such: `Ok`. A member of a group: [`Error::Invalid`].
    pub(super) fn delete_snapshot(&self, ctx: &Ctx, id: &SnapshotId) -> Result<()> {
        let Some((root, handle)) = self.to_delete(&id.0)? else {
            return Ok(());
        };
        if !root.exists() {
            return Ok(());
        }
        empty_trash(root, "snapshot", &handle.key)?;
        let Some(found) = self.find_snapshot(root, &handle.key)? else {
            return Ok(());
        };
        if let Some(group) = &found.record.group {
            return Err(Error::invalid(
                "snapshot_id",
                format!("{id} is a member of group {group}; delete the whole group"),
            ));
        }
        self.check_owner(&format!("snapshot {id}"), &found.record.cluster)?;
        let _lease = Lease::take(ctx, &found.data(), Sharing::Alone)?;
        ctx.stage("deleting");
        remove_snapshot(root, &handle.key, &found.dir)
    }
}

/// Removes a snapshot that was found.
pub(super) fn remove_snapshot(root: &Root, key: &str, dir: &Path) -> Result<()> {
    discard(root, "snapshot", key, dir, &root.own("snapshots"))?;
    empty_trash(root, "snapshot", key)
}

/// Moves a directory to the trash, durably, under a name that nobody else uses.
fn discard(root: &Root, kind: &str, key: &str, dir: &Path, parent: &Path) -> Result<()> {
    let trash = root.own("trash").join(format!("{kind}-{key}.{}", uuid::Uuid::new_v4()));
    if !rename_new(dir, &trash)? {
        return Err(Error::Internal(format!("{} exists; repeat the call", trash.display())));
    }
    sync(parent)
}

/// Removes what deletions of this key have left.
fn empty_trash(root: &Root, kind: &str, key: &str) -> Result<()> {
    let (trash, what) = (root.own("trash"), format!("{kind}-{key}"));
    names(&trash, |_| true)?
        .into_iter()
        .filter(|name| is_of(name, &what))
        .try_for_each(|name| remove_tree(&trash.join(name)))
}

/// Refuses to say that a volume is gone when its place is taken by something without a record.
fn check_recordless(root: &Root, key: &str) -> Result<()> {
    let dir = root.volume_dir(key)?;
    let recorded = fs::symlink_metadata(dir.join(VOLUME_RECORD)).is_ok();
    if recorded || !is_dir(&dir)? {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{} has no {VOLUME_RECORD}, so it is not deleted; remove it by hand if nobody needs it",
        dir.display()
    )))
}
