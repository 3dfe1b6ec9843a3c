//! CreateVolume.
//!
//! The directory is made in `tmp`, and filled if it has a source. Then the intent, which names the directory by its
//! number, is linked into `intents` (of two that try, one succeeds); the directory is renamed to its place, and the intent
//! to `volumes`, where it is the volume's record. Whoever finds an intent goes on with it.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::client::{Fault, Fh, Outcome, Set, Special, Status, Who, found};
use super::copytree::{Copy, changed_since};
use super::handle::Handle;
use super::params::Params;
use super::plan::Plan;
use super::record::VolumeRecord;
use super::share::{Own, Share, Told, draft_name, split};
use super::store::{Found, Store, file_name, load};
use crate::record::{Requested, encode};
use crate::{Condition, Ctx, Error, Result, Source, Volume, VolumeId};

/// How often a tree is copied before one that keeps changing is refused.
const ROUNDS: u32 = 3;

impl Store {
    /// Makes a volume, or finds the one made before.
    pub(super) fn create(&self, ctx: &Ctx, plan: &Plan) -> Result<Volume> {
        let share = self.share(&plan.handle.share)?;
        let (own, existing) = load::<VolumeRecord>(&share, |own| own.volumes.clone(), &plan.handle.key)?;
        if let Some(record) = existing {
            return self.accept(plan, Found { share, own, handle: plan.handle.clone(), record });
        }
        let source = self.source(plan)?;
        let capacity = plan.size(&self.config, source.as_ref().map(|source| source.size))?;
        let record = match self.unfinished(&share, &own, plan)? {
            Some(record) => record,
            None => self.begin(ctx, &share, &own, plan, capacity, source.as_ref())?,
        };
        ctx.check()?;
        let found = self.finish(&share, &own, record)?;
        tracing::info!(volume = %plan.id, capacity, dir = %found.record.dir, "created");
        self.accept(plan, found)
    }

    /// A volume that exists is the answer if it is what was asked for.
    fn accept(&self, plan: &Plan, found: Found) -> Result<Volume> {
        if let Some(what) = plan.differs(&self.config, &found.record)? {
            return Err(Error::AlreadyExists(format!("volume {} exists and differs: {what}", plan.id)));
        }
        self.show(&found, Condition::healthy())
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
        if self.in_place(share, own, &intent)? {
            return Ok(Some(intent));
        }
        self.abandon(share, own, &plan.handle, &intent)?;
        Ok(None)
    }

    fn in_place(&self, share: &Share, own: &Own, record: &VolumeRecord) -> Result<bool> {
        let walked = share.walk(&own.root, &record.dir);
        match walked {
            Err(fault) if fault.is(Status::NOT_DIRECTORY) => Ok(false),
            other => Ok(other
                .told(share, "looking for a directory")?
                .is_some_and(|node| node.attr.id == record.dir_id)),
        }
    }

    /// Takes back a volume that was begun and is not in its place.
    pub(super) fn abandon(
        &self,
        share: &Share,
        own: &Own,
        handle: &Handle,
        intent: &VolumeRecord,
    ) -> Result<()> {
        let undo = || {
            share.discard(own, &own.tmp, intent.draft.as_bytes())?;
            if intent.dir != handle.key {
                share.remove(&own.paths, &path_name(&intent.dir))?;
            }
            share.remove(&own.intents, &file_name(&handle.key))
        };
        undo().told(share, &format!("taking back the incomplete volume {handle}"))
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
    ) -> Result<VolumeRecord> {
        ctx.stage("making the directory");
        let draft = draft_name();
        let top = self.make_dir(share, own, &draft, &plan.params)?;
        let begun = (|| {
            if let Some(source) = source {
                self.fill(ctx, source, share, &top.0, plan)?;
            }
            ctx.check()?;
            let record = self.record(plan, capacity, &draft, top.1);
            self.intend(share, own, plan, &record)
        })();
        if !matches!(&begun, Ok(record) if record.draft == draft)
            && let Err(fault) = share.discard(own, &own.tmp, draft.as_bytes())
        {
            tracing::warn!(share = %share.place(), %fault, "a half made directory is left for the next sweep");
        }
        begun
    }

    /// A new directory in `tmp`: its handle and number.
    fn make_dir(&self, share: &Share, own: &Own, draft: &str, params: &Params) -> Result<(Fh, u64)> {
        let set = Set {
            mode: Some(params.mode.unwrap_or(0o777)),
            owner: params.uid.map(Who::Id),
            group: params.gid.map(Who::Id),
            ..Set::default()
        };
        let make = || {
            let made = match share.ask(|s| s.make(&own.tmp, draft.as_bytes(), &Special::Directory, &set)) {
                Err(fault) if fault.is(Status::EXISTS) => {
                    share.ask(|s| s.lookup(&own.tmp, draft.as_bytes()))?
                }
                other => other?,
            };
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
            modified: Default::default(),
            source: spec.source.clone(),
            pvc: spec.pvc.clone(),
            created: Timestamp::now(),
        }
    }

    /// Publishes the intent, and takes the directory's name. What is taken already: refused.
    fn intend(&self, share: &Share, own: &Own, plan: &Plan, record: &VolumeRecord) -> Result<VolumeRecord> {
        if let Err(error) = self.check_free(share, own, plan) {
            // It may be the same volume's, made by somebody else a moment ago.
            let (_, made) = load::<VolumeRecord>(share, |own| own.volumes.clone(), &plan.handle.key)?;
            return made.ok_or(error);
        }
        let (content, name) = (encode(record)?, format!("{}.json", record.draft));
        let file = share.put(&own.tmp, name.as_bytes(), &content).told(share, "writing a record")?;
        let linked = self.link_intent(share, own, plan, &file.fh);
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

    fn link_intent(&self, share: &Share, own: &Own, plan: &Plan, file: &Fh) -> Result<bool> {
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
            return Err(self.taken(share, own, plan));
        }
        Ok(true)
    }

    fn taken(&self, share: &Share, own: &Own, plan: &Plan) -> Error {
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

    /// Refuses a directory that exists, or is within a volume.
    fn check_free(&self, share: &Share, own: &Own, plan: &Plan) -> Result<()> {
        let told = |fault: Fault| share.fail(&format!("looking for directory {}", plan.dir))(fault);
        let mut ancestor = split(&plan.dir).0;
        while let Some(dir) = ancestor {
            let within = |dir: &Fh, name: &[u8]| Ok::<_, Fault>(share.look(dir, name)?.is_some());
            let flat = !dir.contains('/') && crate::naming::is_safe_component(dir);
            if within(&own.paths, &path_name(dir)).map_err(told)?
                || flat
                    && (within(&own.volumes, &file_name(dir)).map_err(told)?
                        || within(&own.intents, &file_name(dir)).map_err(told)?)
            {
                return Err(Error::AlreadyExists(format!(
                    "parameters[\"subDir\"]: {} on {} would be within the volume whose directory is {dir}",
                    plan.dir,
                    share.place()
                )));
            }
            ancestor = split(dir).0;
        }
        match share.walk(&own.root, &plan.dir) {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(self.occupied(share, plan)),
            Err(fault) if fault.is(Status::NOT_DIRECTORY) => Err(self.occupied(share, plan)),
            Err(fault) => Err(told(fault)),
        }
    }

    fn occupied(&self, share: &Share, plan: &Plan) -> Error {
        Error::AlreadyExists(format!(
            "parameters[\"subDir\"]: {} on {} exists and is no directory of this driver; move it away, or choose another name",
            plan.dir,
            share.place()
        ))
    }

    /// Goes on with an intent: the directory to its place, the record to `volumes`.
    pub(super) fn finish(&self, share: &Arc<Share>, own: &Own, record: VolumeRecord) -> Result<Found> {
        let handle = Handle::parse(&record.id).ok_or_else(|| Error::Corrupt {
            what: format!("the intent of {}", record.name),
            problem: "its id is no handle".into(),
        })?;
        if !self.in_place(share, own, &record)? {
            self.place(share, own, &record)?;
        }
        let name = file_name(&handle.key);
        let moved = found(share.rename(&own.intents, &name, &own.volumes, &name));
        if moved.told(share, "writing a record")?.is_none() {
            // Somebody else has finished it, or deleted it already.
            let (_, there) = load::<VolumeRecord>(share, |own| own.volumes.clone(), &handle.key)?;
            if there.is_none() {
                return Err(Error::Unavailable(format!(
                    "volume {handle} was deleted meanwhile; repeat the call"
                )));
            }
        }
        Ok(Found { share: share.clone(), own: own.clone(), handle, record })
    }

    fn place(&self, share: &Share, own: &Own, record: &VolumeRecord) -> Result<()> {
        let (parent, name) = split(&record.dir);
        let work = || {
            let parent = match parent {
                Some(path) => self.make_parents(share, &own.root, path)?,
                None => own.root.clone(),
            };
            // A rename would replace an empty directory.
            if let Some(node) = share.look(&parent, name.as_bytes())?
                && node.attr.id != record.dir_id
            {
                return Err(Fault::Status(Status::EXISTS));
            }
            found(share.rename(&own.tmp, record.draft.as_bytes(), &parent, name.as_bytes())).map(drop)
        };
        match work() {
            Err(fault) if fault.is(Status::EXISTS) || fault.is(Status::NOT_DIRECTORY) => {
                Err(Error::AlreadyExists(format!(
                    "parameters[\"subDir\"]: {} on {} was made by somebody else meanwhile; move it away and repeat the call",
                    record.dir,
                    share.place()
                )))
            }
            other => other.told(share, &format!("moving the new directory to {}", record.dir)),
        }?;
        if self.in_place(share, own, record)? {
            return Ok(());
        }
        let handle = Handle::parse(&record.id);
        if let Some(handle) = handle {
            self.abandon(share, own, &handle, record)?;
        }
        Err(Error::Unavailable(format!(
            "the directory of volume {} was lost before it got to its place; repeat the call",
            record.id
        )))
    }

    /// The directories that a template's path has before its last part; none of them is a volume.
    fn make_parents(&self, share: &Share, root: &Fh, path: &str) -> Outcome<Fh> {
        let mut at = root.clone();
        for part in path.split('/') {
            at = match share.look(&at, part.as_bytes())? {
                Some(node) if node.attr.kind == super::client::Kind::Directory => node.fh,
                Some(_) => return Err(Fault::Status(Status::NOT_DIRECTORY)),
                None => {
                    let set = Set { mode: Some(0o755), ..Set::default() };
                    match share.ask(|s| s.make(&at, part.as_bytes(), &Special::Directory, &set)) {
                        Err(fault) if fault.is(Status::EXISTS) => {
                            share.ask(|s| s.lookup(&at, part.as_bytes()))?.fh
                        }
                        other => other?.fh,
                    }
                }
            };
        }
        Ok(at)
    }

    /// What the volume is filled from. None such: [`Error::NotFound`].
    fn source(&self, plan: &Plan) -> Result<Option<Filling>> {
        let (dir, size, share, what) = match plan.source() {
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
        let moving = matches!(plan.source(), Some(Source::Volume(_)));
        Ok(Some(Filling { dir, size, what, moving }))
    }

    fn fill(&self, ctx: &Ctx, from: &Filling, share: &Arc<Share>, to: &Fh, plan: &Plan) -> Result<()> {
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
            let copy =
                Copy { ctx, share, workers: self.config.tree_workers, heart, bytes: &bytes, files: &files };
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

/// What a new directory is filled from.
pub(super) struct Filling {
    pub(super) dir: Fh,
    pub(super) size: u64,
    pub(super) what: String,
    /// It can change while it is copied.
    pub(super) moving: bool,
}

/// The name under which a directory is noted.
pub(super) fn path_name(dir: &str) -> Vec<u8> {
    let digest = Sha256::digest(dir.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}.json").into_bytes()
}
