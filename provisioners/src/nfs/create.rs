//! CreateVolume.
//!
//! The directory is made in `tmp`, and filled if it has a source. Then the intent, which names the directory by its
//! number, is linked into `intents` (of two that try, one succeeds); the directory is renamed to its place, and the intent
//! to `volumes`, where it is the volume's record. Whoever finds an intent goes on with it.

use std::sync::Arc;

use jiff::Timestamp;

use super::client::{Fh, Outcome, Set, Who};
use super::draft::Draft;
use super::fill::Filling;
use super::handle::Handle;
use super::identity::Proof;
use super::params::Params;
use super::place::{check_free, in_place, path_name};
use super::plan::Plan;
use super::record::VolumeRecord;
use super::share::{Own, Share, Told};
use super::store::{Found, Index, Store, file_name, load};
use crate::record::{Requested, encode};
use crate::{Condition, Ctx, Error, Result, StringMap, Volume};

impl Store {
    /// Makes a volume, or finds the one made before.
    pub(super) fn create(&self, ctx: &Ctx, plan: &Plan) -> Result<Volume> {
        let share = self.share(&plan.handle.share)?;
        let (own, existing) = load::<VolumeRecord>(&share, Index::Volumes, &plan.handle.key)?;
        self.learn(&share);
        if let Some(record) = existing {
            let handle = self.given(&plan.handle, &record.id);
            return self.accept(plan, &Found { share, own, handle, record });
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
        let found = self.finish(&share, &own, record, fresh)?;
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
                let (_, made) = load::<VolumeRecord>(share, Index::Volumes, &plan.handle.key)?;
                made.map_or_else(
                    || self.begin(ctx, share, own, plan, capacity, source),
                    |made| Ok((made, false)),
                )
            }
        }
    }

    /// The intent of an earlier try, here or elsewhere.
    fn unfinished(&self, share: &Share, own: &Own, plan: &Plan) -> Result<Option<VolumeRecord>> {
        let (_, intent) = load::<VolumeRecord>(share, Index::Intents, &plan.handle.key)?;
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
        let draft = make_dir(share, own, &plan.handle.key, &plan.params)?;
        let begun = (|| {
            if let Some(source) = source {
                draft.keep_alive(share, self.config.beat());
                self.fill(ctx, source, share, &draft.node.fh, plan)?;
                draft.check(share, own)?;
            }
            ctx.check()?;
            let proof = Proof::of(share, own, &draft.node.fh).told(share, "looking at the directory")?;
            intend(share, own, plan, &self.record(plan, capacity, &draft, proof))
        })();
        let fresh = matches!(&begun, Ok(record) if record.draft == draft.name);
        if !fresh && let Err(fault) = share.discard(own, &own.tmp, draft.name.as_bytes()) {
            tracing::warn!(share = %share.place(), %fault, "a half made directory is left for the next sweep");
        }
        begun.map(|record| (record, fresh))
    }

    fn record(&self, plan: &Plan, capacity: u64, draft: &Draft, proof: Option<Proof>) -> VolumeRecord {
        let spec = &plan.spec;
        VolumeRecord {
            id: plan.id.0.clone(),
            name: spec.name.clone(),
            cluster: self.config.owner.clone(),
            dir: plan.dir.clone(),
            dir_id: draft.node.attr.id,
            proof,
            draft: draft.name.clone(),
            capacity,
            requested: Requested { required: spec.range.required, limit: spec.range.limit },
            on_delete: plan.params.on_delete,
            parameters: spec.parameters.clone(),
            mutable_parameters: spec.mutable_parameters.clone(),
            modified: StringMap::new(),
            source: spec.source.clone(),
            pvc: spec.pvc.clone(),
            created: Timestamp::now(),
            revision: None,
        }
    }
}

/// The mode of a directory for which none is asked: what csi-driver-nfs makes one with, the usual umask applied.
const UNASKED: u32 = 0o755;

/// A new directory in `tmp`, with its owner and mode.
fn make_dir(share: &Arc<Share>, own: &Own, key: &str, params: &Params) -> Result<Draft> {
    let set = Set {
        mode: Some(params.mode.unwrap_or(UNASKED)),
        owner: params.uid.map(Who::Id),
        group: params.gid.map(Who::Id),
        ..Set::default()
    };
    let draft = Draft::make(share, own, key, &set)?;
    // Some servers apply their own mask, or take no owner with the creation.
    let made = &draft.node.attr;
    let right = set.mode.is_none_or(|mode| mode == made.mode)
        && set.owner.as_ref().is_none_or(|owner| *owner == made.owner)
        && set.group.as_ref().is_none_or(|group| *group == made.group);
    if !right {
        share.ask(|s| s.set(&draft.node.fh, &set)).told(share, "making a directory")?;
    }
    Ok(draft)
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
    check_free(share, own, &plan.dir)?;
    let (content, name) = (encode(record)?, format!("{}.json", record.draft));
    let file = share.put(&own.tmp, name.as_bytes(), &content).told(share, "writing a record")?;
    let linked = link_intent(share, own, plan, &file.fh);
    share.remove(&own.tmp, name.as_bytes()).told(share, "removing a draft")?;
    if linked? {
        // Somebody who was faster has moved their intent on, so that this one found its name free.
        let (_, made) = load::<VolumeRecord>(share, Index::Volumes, &plan.handle.key)?;
        let Some(made) = made else { return Ok(record.clone()) };
        let taken_back = share.remove(&own.intents, &file_name(&plan.handle.key));
        taken_back.told(share, "taking an intent back")?;
        return Ok(made);
    }
    let (_, theirs) = load::<VolumeRecord>(share, Index::Intents, &plan.handle.key)?;
    theirs.ok_or_else(|| {
        Error::Unavailable(format!("volume {}: somebody else has just made it; repeat the call", plan.id))
    })
}
