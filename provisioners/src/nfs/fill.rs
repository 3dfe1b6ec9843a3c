//! Filling a new directory from a snapshot or another volume.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::changed::changed_since;
use super::client::{Fh, Set, Who};
use super::copytree::Copy;
use super::plan::Plan;
use super::share::{Share, Told};
use super::store::Store;
use crate::{Ctx, Error, Result, Source, VolumeId};

/// How often a tree is copied before one that keeps changing is refused.
const ROUNDS: u32 = 3;

/// What a new directory is filled from.
pub(super) struct Filling {
    pub(super) dir: Fh,
    pub(super) size: u64,
    pub(super) what: String,
    /// It can change while it is copied.
    pub(super) moving: bool,
}

impl Store {
    /// What the volume is filled from. None such: [`Error::NotFound`].
    pub(super) fn source(&self, plan: &Plan) -> Result<Option<Filling>> {
        let (dir, size, share, what) = match &plan.spec.source {
            None => return Ok(None),
            Some(Source::Snapshot(id)) => {
                let (share, dir, record) = self.snapshot_data(id)?;
                (dir, record.size, share, format!("snapshot {id}"))
            }
            Some(Source::Volume(id)) => {
                let found = self.volume(&VolumeId(id.0.clone()))?;
                let dir = found.dir()?.ok_or_else(|| {
                    Error::Refused(format!(
                        "volume {id}: its directory {} is missing; it cannot be cloned",
                        found.record.dir
                    ))
                })?;
                (dir, found.record.capacity, found.share.clone(), format!("volume {id}"))
            }
        };
        if share.id != plan.handle.share {
            return Err(Error::invalid(
                "volume_content_source",
                format!(
                    "{what} is on {}, and the volume is wanted elsewhere; use the same share",
                    share.place()
                ),
            ));
        }
        let moving = matches!(plan.spec.source, Some(Source::Volume(_)));
        Ok(Some(Filling { dir, size, what, moving }))
    }

    pub(super) fn fill(
        &self,
        ctx: &Ctx,
        from: &Filling,
        share: &Arc<Share>,
        to: &Fh,
        plan: &Plan,
    ) -> Result<()> {
        self.copy_tree(ctx, share, from, to, to, plan.params.accept_changes)?;
        // The directory is the source's in all but what the class says.
        let set = Set {
            mode: plan.spec.parameters.contains_key("mountPermissions").then_some(plan.params.mode).flatten(),
            owner: plan.params.uid.map(Who::Id),
            group: plan.params.gid.map(Who::Id),
            ..Set::default()
        };
        if set.mode.is_some() || set.owner.is_some() || set.group.is_some() {
            share.ask(|s| s.set(to, &set)).told(share, "setting a directory's attributes")?;
        }
        Ok(())
    }

    /// Copies a tree of one moment: what changes meanwhile is copied anew, and refused if it goes on changing. How many
    /// bytes. `heart` is the draft in `tmp` that the copy is in.
    pub(super) fn copy_tree(
        &self,
        ctx: &Ctx,
        share: &Arc<Share>,
        from: &Filling,
        to: &Fh,
        heart: &Fh,
        accept: bool,
    ) -> Result<u64> {
        let mut changed = String::new();
        for round in 0..ROUNDS {
            if round > 0 {
                self.empty(ctx, share, to)?;
            }
            // A change in the same tick of the server's clock is seen, too.
            let begun = share.touch(heart).told(share, "reading the server's time")?;
            let (bytes, files) = (AtomicU64::new(0), AtomicU64::new(0));
            let copy = Copy { ctx, share, workers: self.config.tree_workers, bytes: &bytes, files: &files };
            let copied = copy.run(&from.dir, to);
            let changes =
                if from.moving && !accept { changed_since(ctx, share, &from.dir, begun)? } else { None };
            match (changes, copied) {
                (Some(what), _) => changed = what,
                (None, copied) => return copied.map(|()| bytes.into_inner()),
            }
        }
        Err(Error::Refused(format!(
            "{} was written to while it was copied, {ROUNDS} times (the last: {changed}); stop its writers, or set ifChanging: accept",
            from.what
        )))
    }

    /// Removes what a round has copied.
    fn empty(&self, ctx: &Ctx, share: &Arc<Share>, dir: &Fh) -> Result<()> {
        let own = share.own().told(share, "finding the driver's directories")?;
        let entries = share.entries(dir).told(share, "reading a copy")?;
        for entry in entries {
            ctx.check()?;
            share.discard(&own, dir, &entry.name).told(share, "removing a copy")?;
        }
        self.remove_trash(share);
        Ok(())
    }
}
