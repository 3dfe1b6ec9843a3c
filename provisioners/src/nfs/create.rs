//! CreateVolume.
//!
//! The directory is made in `tmp`, and filled if it has a source. Then the intent, which names the directory by its
//! number, is linked into `intents` (of two that try, one succeeds); the directory is renamed to its place, and the intent
//! to `volumes`, where it is the volume's record. Whoever finds an intent goes on with it.

use std::sync::Arc;

use jiff::Timestamp;

use super::client::{Fh, Outcome, Set, Special, Who};
use super::fill::Filling;
use super::handle::Handle;
use super::params::Params;
use super::place::{check_free, finish, in_place, path_name};
use super::plan::Plan;
use super::record::VolumeRecord;
use super::share::{Own, Share, Told, draft_name};
use super::store::{Found, Store, file_name, load};
use crate::record::{Requested, encode};
use crate::{Condition, Ctx, Error, Result, StringMap, Volume};

impl Store {
    /// Makes a volume, or finds the one made before.
    pub(super) fn create(&self, ctx: &Ctx, plan: &Plan) -> Result<Volume> {
        let share = self.share(&plan.handle.share)?;
        let (own, existing) = load::<VolumeRecord>(&share, |own| own.volumes.clone(), &plan.handle.key)?;
        if let Some(record) = existing {
            return self.accept(plan, &Found { share, own, handle: plan.handle.clone(), record });
        }
        let source = self.source(plan)?;
        let capacity = plan.size(&self.config, source.as_ref().map(|source| source.size))?;
        // An empty directory costs less than the look at whether an earlier try has one; a copy costs more.
        let earlier = if source.is_some() { self.unfinished(&share, &own, plan)? } else { None };
        let (record, fresh) = match earlier {
            Some(record) => (record, false),
            None => self.begun(ctx, &share, &own, plan, capacity, source.as_ref())?,
        };
        ctx.check()?;
        let found = finish(&share, &own, record, fresh)?;
        tracing::info!(volume = %plan.id, capacity, dir = %found.record.dir, "created");
        self.accept(plan, &found)
    }

    /// A volume that exists is the answer if it is what was asked for.
    fn accept(&self, plan: &Plan, found: &Found) -> Result<Volume> {
        if found.record.cluster != self.config.owner {
            return Err(Error::AlreadyExists(format!(
                "volume {} exists and belongs to cluster {:?}, not to {:?}",
                plan.id, found.record.cluster, self.config.owner
            )));
        }
        if let Some(what) = plan.differs(&self.config, &found.record)? {
            return Err(Error::AlreadyExists(format!("volume {} exists and differs: {what}", plan.id)));
        }
        Ok(Self::show(found, Condition::healthy()))
    }

    /// A volume that is begun, by this call or before, and whether by this call.
    fn begun(
        &self,
        ctx: &Ctx,
        share: &Arc<Share>,
        own: &Own,
        plan: &Plan,
        capacity: u64,
        source: Option<&Filling>,
    ) -> Result<(VolumeRecord, bool)> {
        let (record, fresh) = self.begin(ctx, share, own, plan, capacity, source)?;
        if fresh {
            return Ok((record, true));
        }
        match self.unfinished(share, own, plan)? {
            Some(theirs) => Ok((theirs, false)),
            // It is complete meanwhile, or was of other wishes and taken back.
            None => {
                let (_, made) = load::<VolumeRecord>(share, |own| own.volumes.clone(), &plan.handle.key)?;
                made.map_or_else(
                    || self.begin(ctx, share, own, plan, capacity, source),
                    |made| Ok((made, false)),
                )
            }
        }
    }

    /// The intent of an earlier try, here or elsewhere.
    fn unfinished(&self, share: &Share, own: &Own, plan: &Plan) -> Result<Option<VolumeRecord>> {
        let (_, intent) = load::<VolumeRecord>(share, |own| own.intents.clone(), &plan.handle.key)?;
        let Some(intent) = intent else { return Ok(None) };
        self.check_owner(&format!("volume {}", plan.id), &intent.cluster)?;
        if plan.differs(&self.config, &intent)?.is_none() {
            return Ok(Some(intent));
        }
        // Nobody was told of it, so it is taken back; but where it got to its place, it exists.
        if in_place(share, own, &intent)? {
            return Ok(Some(intent));
        }
        abandon(share, own, &plan.handle, &intent)?;
        Ok(None)
    }

    /// Makes the directory and the intent. Somebody else's intent, made meanwhile, is the answer then.
    fn begin(
        &self,
        ctx: &Ctx,
        share: &Arc<Share>,
        own: &Own,
        plan: &Plan,
        capacity: u64,
        source: Option<&Filling>,
    ) -> Result<(VolumeRecord, bool)> {
        ctx.stage("making the directory");
        let draft = draft_name();
        let top = make_dir(share, own, &draft, &plan.params)?;
        let begun = (|| {
            if let Some(source) = source {
                self.fill(ctx, source, share, &top.0, plan)?;
            }
            ctx.check()?;
            let record = self.record(plan, capacity, &draft, top.1);
            intend(share, own, plan, &record)
        })();
        let fresh = matches!(&begun, Ok(record) if record.draft == draft);
        if !fresh && let Err(fault) = share.discard(own, &own.tmp, draft.as_bytes()) {
            tracing::warn!(share = %share.place(), %fault, "a half made directory is left for the next sweep");
        }
        begun.map(|record| (record, fresh))
    }

    fn record(&self, plan: &Plan, capacity: u64, draft: &str, dir_id: u64) -> VolumeRecord {
        let spec = &plan.spec;
        VolumeRecord {
            id: plan.id.0.clone(),
            name: spec.name.clone(),
            cluster: self.config.owner.clone(),
            dir: plan.dir.clone(),
            dir_id,
            draft: draft.to_owned(),
            capacity,
            requested: Requested { required: spec.range.required, limit: spec.range.limit },
            on_delete: plan.params.on_delete,
            parameters: spec.parameters.clone(),
            mutable_parameters: spec.mutable_parameters.clone(),
            modified: StringMap::new(),
            source: spec.source.clone(),
            pvc: spec.pvc.clone(),
            created: Timestamp::now(),
        }
    }
}

/// A new directory in `tmp`: its handle and number.
fn make_dir(share: &Share, own: &Own, draft: &str, params: &Params) -> Result<(Fh, u64)> {
    let set = Set {
        mode: Some(params.mode.unwrap_or(0o777)),
        owner: params.uid.map(Who::Id),
        group: params.gid.map(Who::Id),
        ..Set::default()
    };
    let make = || {
        let made = share.make(&own.tmp, draft.as_bytes(), &Special::Directory, &set)?;
        // Some servers apply their own mask, or take no owner with the creation.
        let right = set.mode.is_none_or(|mode| mode == made.attr.mode)
            && set.owner.as_ref().is_none_or(|owner| *owner == made.attr.owner)
            && set.group.as_ref().is_none_or(|group| *group == made.attr.group);
        if !right {
            share.ask(|s| s.set(&made.fh, &set))?;
        }
        Ok((made.fh, made.attr.id))
    };
    make().told(share, "making a directory")
}

fn taken(share: &Share, own: &Own, plan: &Plan) -> Error {
    let whose = share.get(&own.paths, &path_name(&plan.dir)).ok().flatten();
    let record =
        whose.and_then(|(_, content)| crate::record::decode::<VolumeRecord>("the record", &content).ok());
    let whose = record.map_or("another volume".into(), |record| format!("volume {}", record.id));
    Error::AlreadyExists(format!(
        "parameters[\"subDir\"]: directory {} on {} is that of {whose}; use a template that differs for each volume",
        plan.dir,
        share.place()
    ))
}

/// Takes back a volume that was begun and is not in its place.
pub(super) fn abandon(share: &Share, own: &Own, handle: &Handle, intent: &VolumeRecord) -> Result<()> {
    let undo = || {
        share.discard(own, &own.tmp, intent.draft.as_bytes())?;
        if intent.dir != handle.key {
            share.remove(&own.paths, &path_name(&intent.dir))?;
        }
        share.remove(&own.intents, &file_name(&handle.key))
    };
    undo().told(share, &format!("taking back the incomplete volume {handle}"))
}

fn link_intent(share: &Share, own: &Own, plan: &Plan, file: &Fh) -> Result<bool> {
    let name = file_name(&plan.handle.key);
    let mine = |fh: &Fh, dir: &Fh, name: &[u8]| -> Outcome<bool> {
        if share.link(fh, dir, name)? {
            return Ok(true);
        }
        // A repeat after a lost answer finds its own link.
        let (ours, theirs) = (share.attr(fh)?, share.look(dir, name)?);
        Ok(theirs.is_some_and(|node| node.attr.id == ours.id))
    };
    if !mine(file, &own.intents, &name).told(share, "noting an intent")? {
        return Ok(false);
    }
    if plan.dir != plan.handle.key
        && !mine(file, &own.paths, &path_name(&plan.dir)).told(share, "noting a directory")?
    {
        share.remove(&own.intents, &name).told(share, "taking an intent back")?;
        return Err(taken(share, own, plan));
    }
    Ok(true)
}

/// Publishes the intent, and takes the directory's name. What is taken already: refused.
fn intend(share: &Share, own: &Own, plan: &Plan, record: &VolumeRecord) -> Result<VolumeRecord> {
    check_free(share, own, plan)?;
    let (content, name) = (encode(record)?, format!("{}.json", record.draft));
    let file = share.put(&own.tmp, name.as_bytes(), &content).told(share, "writing a record")?;
    let linked = link_intent(share, own, plan, &file.fh);
    share.remove(&own.tmp, name.as_bytes()).told(share, "removing a draft")?;
    if linked? {
        // Somebody who was faster has moved their intent on, so that this one found its name free.
        let (_, made) = load::<VolumeRecord>(share, |own| own.volumes.clone(), &plan.handle.key)?;
        let Some(made) = made else { return Ok(record.clone()) };
        let taken_back = share.remove(&own.intents, &file_name(&plan.handle.key));
        taken_back.told(share, "taking an intent back")?;
        return Ok(made);
    }
    let (_, theirs) = load::<VolumeRecord>(share, |own| own.intents.clone(), &plan.handle.key)?;
    theirs.ok_or_else(|| {
        Error::Unavailable(format!("volume {}: somebody else has just made it; repeat the call", plan.id))
    })
}
