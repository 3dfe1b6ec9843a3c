//! Making a volume: empty, from a snapshot or from another volume.
//!
//! The intent is noted first, the image made second under a name of its own, then it gets the volume's name and its record:
//! an image with a record is complete, one without is removed by the next call if the intent is ours (a name with a UUID in
//! it, as Kubernetes gives, is as good) and it holds nothing, and left alone otherwise.

use std::time::Duration;

use jiff::Timestamp;

use super::ffi::Errno;
use super::handle::{Handle, parse_handle};
use super::making::{Draft, draft_name};
use super::plan::Plan;
use super::record::{
    FS, Found, FsState, Intent, MODIFIED, Modified, OURS, Requested, TORN, VOLUME, VolumeRecord, encode,
    read_note, seal,
};
use super::site::{INTENTS, Site, creation};
use super::store::Store;
use super::torn::{Holds, holds_nothing};
use crate::size::{decide, decide_for_source, file_system_minimum};
use crate::{Ctx, Error, Result, Source, Volume};

/// How often an image without a record is looked at again, and how long in between: another controller may have named it
/// just now, and its record follows.
const SETTLES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(50);

/// What a volume is filled from: a snapshot of an image.
struct Origin {
    site: Site,
    /// The image's name now.
    image: String,
    snapshot: String,
    /// Bytes.
    size: u64,
    /// Of the new image.
    depth: u32,
    fs: Option<String>,
    /// The snapshot was taken for this and is removed again: the key of its note.
    temporary: Option<String>,
    image_id: String,
}

/// What a clone has of its source.
#[derive(Default)]
struct Inherited {
    /// What is known of the file system, as it is to be noted.
    fs: Option<Vec<u8>>,
    /// The source's record.
    record: String,
    /// The keys of what we noted of the source.
    keys: Vec<String>,
}

fn vanished(plan: &Plan) -> Error {
    Error::Unavailable(format!("image {} was removed while it was made; repeat the call", plan.handle.spec()))
}

impl Store {
    /// Makes the planned volume, or finds the one made before.
    pub(super) fn create(&self, ctx: &Ctx, plan: &Plan) -> Result<Volume> {
        let site = self.site(&plan.handle.place, ctx.secrets())?;
        if let Some(volume) = self.find_made(&site, plan)? {
            return Ok(volume);
        }
        self.not_elsewhere(ctx, &site, plan)?;
        ctx.check()?;
        let origin = self.origin(ctx, &site, plan)?;
        let least = file_system_minimum((!plan.block).then(|| plan.fs_type.as_deref().unwrap_or("ext4")));
        let capacity = match &origin {
            None => decide(plan.spec.range, self.config.default_size, least)?,
            Some(origin) => decide_for_source(plan.spec.range, origin.size, least)?,
        };
        self.check_room(&site, plan)?;
        let data_pool = plan.params.options.data_pool.as_ref().unwrap_or(&site.place.pool);
        self.check_size(&site.session, data_pool, capacity)?;
        ctx.stage("creating");
        self.intend(&site, plan)?;
        ctx.check()?;
        let draft = self.make_image(&site, plan, origin.as_ref(), capacity)?;
        match ctx.check().and_then(|()| self.complete(ctx, &site, plan, &draft, origin.as_ref(), capacity)) {
            Ok(Some(volume)) => Ok(volume),
            Ok(None) => {
                self.drop_draft(&site, &draft);
                let image = plan.handle.spec();
                let meanwhile = || format!("image {image} appeared while it was made; repeat the call");
                self.find_made(&site, plan)?.ok_or_else(|| Error::Unavailable(meanwhile()))
            }
            Err(error) => {
                self.drop_draft(&site, &draft);
                Err(error)
            }
        }
    }

    fn intend(&self, site: &Site, plan: &Plan) -> Result<()> {
        let intent = Intent {
            id: plan.id.0.clone(),
            name: plan.spec.name.clone(),
            cluster: self.config.owner.clone(),
            since: Timestamp::now(),
        };
        site.note(INTENTS, &creation(&plan.handle.name), &intent)
    }

    /// The volume that was made before by this name, checked against what is asked. What an earlier call left half made
    /// is removed.
    fn find_made(&self, site: &Site, plan: &Plan) -> Result<Option<Volume>> {
        let Some(id) = site.image_id(&plan.handle.name)? else { return Ok(None) };
        let Some(found) = self.made_before(site, plan, &id)? else { return Ok(None) };
        let volume = self.confirm(plan, &found)?;
        if plan.params.flatten && plan.spec.source.is_some() {
            // The call that made it may have ended before it asked for that.
            self.flatten(site, &found)?;
        }
        Ok(Some(volume))
    }

    /// A volume of this name that is complete. What an earlier call left half made is removed.
    fn made_before(&self, site: &Site, plan: &Plan, id: &str) -> Result<Option<Found>> {
        let name = &plan.handle.name;
        let mut header = site.header(id)?;
        for left in (0..=SETTLES).rev() {
            let Some(known) = &header else { break };
            if let Some(found) = Found::read(&plan.handle, known.clone())? {
                return Ok(Some(found));
            }
            if known.meta.contains_key(TORN) || left == 0 {
                break;
            }
            std::thread::sleep(PAUSE);
            header = site.header(id)?;
        }
        let intended = |it: Intent| it.name == plan.spec.name && it.cluster == self.config.owner;
        let ours = plan.unique || site.intent(name)?.is_some_and(intended);
        if !ours {
            return Err(collision(&plan.handle, "it has no record of this driver"));
        }
        if header.as_ref().is_some_and(|header| !header.meta.contains_key(TORN)) {
            match holds_nothing(site, id) {
                Holds::Nothing => {}
                Holds::Something(why) => return Err(collision(&plan.handle, &why)),
                Holds::Open(client) => {
                    return Err(Error::Unavailable(format!(
                        "image {} is half made and still open by {client}, which is gone in half a minute if it is a driver that was killed; repeat the call",
                        plan.handle.spec()
                    )));
                }
            }
        }
        self.remove_half_made(site, name, id, header.as_ref())?;
        Ok(None)
    }

    fn confirm(&self, plan: &Plan, found: &Found) -> Result<Volume> {
        let record = &found.record;
        if record.name != plan.spec.name || record.cluster != self.config.owner {
            let of = format!("it is the volume of name {:?} of cluster {:?}", record.name, record.cluster);
            return Err(collision(&plan.handle, &of));
        }
        if found.is_deleted() {
            return Err(Error::Unavailable(format!(
                "volume {} of the same name is being deleted; repeat the call",
                plan.handle
            )));
        }
        match plan.differs(&self.config, found)? {
            Some(what) => Err(exists(plan, &what)),
            None => Ok(self.show(found)),
        }
    }

    /// The name is the volume's in every configured pool: one that was made elsewhere with other parameters is found.
    fn not_elsewhere(&self, ctx: &Ctx, site: &Site, plan: &Plan) -> Result<()> {
        if plan.params.template.is_some() {
            return Ok(());
        }
        for place in self.other_places(&plan.handle.place) {
            let other = self.site(&place, ctx.secrets())?;
            let Some(id) = other.image_id(&plan.handle.name)? else { continue };
            let handle = other.handle(&plan.handle.name);
            let found = other.header(&id)?.map(|header| Found::read(&handle, header)).transpose()?.flatten();
            if found.is_some_and(|f| f.record.name == plan.spec.name && f.record.cluster == self.config.owner)
            {
                let (has, asked) = (place.path(), site.place.path());
                return Err(exists(plan, &format!("pool (it has {has}; asked: {asked})")));
            }
        }
        Ok(())
    }

    fn origin(&self, ctx: &Ctx, site: &Site, plan: &Plan) -> Result<Option<Origin>> {
        let Some(source) = &plan.spec.source else { return Ok(None) };
        let handle = match source {
            Source::Volume(id) => parse_handle(&id.0)
                .map_err(|_| Error::NotFound(format!("volume_content_source: there is no volume {id}"))),
            Source::Snapshot(id) => parse_handle(&id.0)
                .map_err(|_| Error::NotFound(format!("volume_content_source: there is no snapshot {id}"))),
        }?;
        if handle.place.cluster != site.place.cluster {
            return Err(Error::invalid(
                "volume_content_source",
                format!(
                    "{handle} is in another cluster than {}; data cannot be cloned across",
                    site.place.cluster
                ),
            ));
        }
        let origin = match source {
            Source::Volume(_) => self.origin_volume(ctx, plan, &handle)?,
            Source::Snapshot(_) => self.origin_snapshot(ctx, &handle)?,
        };
        if let (Some(asked), Some(has), false) = (&plan.fs_type, &origin.fs, plan.block)
            && asked != has
        {
            let problem = format!("{asked:?}, but the source holds {has}; ask for {has}");
            return Err(Error::invalid("fsType", problem));
        }
        Ok(Some(origin))
    }

    fn origin_volume(&self, ctx: &Ctx, plan: &Plan, handle: &Handle) -> Result<Origin> {
        let site = self.site(&handle.place, ctx.secrets())?;
        let found = Self::volume_at(&site, handle)?;
        let depth = self.depth_above(ctx, &site, &found)?;
        // A size that cannot be is refused before anything is done to the source.
        decide_for_source(plan.spec.range, found.header.size, (0, "a clone"))?;
        ctx.stage("taking a snapshot of the source");
        // Each call takes one of its own, so that none is used that was taken at another time for another clone.
        let (snapshot, note) = self.note_clone(&site, &found, &plan.handle.name)?;
        let taken = site.open(&found.header.image)?.snapshot(&snapshot);
        taken.map_err(|e| site.fail(&format!("taking a snapshot of {}", handle.spec()), e))?;
        Ok(Origin {
            image: handle.name.clone(),
            image_id: found.header.image.clone(),
            snapshot,
            size: found.header.size,
            depth,
            fs: found.fs()?.file_system().map(str::to_owned),
            temporary: Some(note),
            site,
        })
    }

    fn origin_snapshot(&self, ctx: &Ctx, handle: &Handle) -> Result<Origin> {
        let site = self.site(&handle.place, ctx.secrets())?;
        let record = Self::snapshot_at(&site, handle)?;
        let gone = || Error::NotFound(format!("snapshot {handle}: its image is gone"));
        let image = site.image_name(&record.image)?.ok_or_else(gone)?;
        let header = site.header(&record.image)?.ok_or_else(gone)?;
        let source = parse_handle(&record.source)?;
        let found = Found::read(&source, header)?.ok_or_else(gone)?;
        Ok(Origin {
            depth: self.depth_above(ctx, &site, &found)?,
            image,
            image_id: record.image,
            snapshot: record.snapshot,
            size: record.size,
            fs: found.fs()?.file_system().map(str::to_owned),
            temporary: None,
            site,
        })
    }

    /// Makes the image, under a name of its own.
    fn make_image(&self, site: &Site, plan: &Plan, origin: Option<&Origin>, capacity: u64) -> Result<Draft> {
        let (name, options) = (draft_name(&plan.handle.name), &plan.params.options);
        let made = match origin {
            None => site.pool.create(&name, capacity, options),
            Some(origin) => {
                origin.site.pool.clone_to((&origin.image, &origin.snapshot), &site.pool, &name, options)
            }
        };
        match made {
            Ok(()) => {}
            Err(Errno::TIMEDOUT) => return Err(self.why_slow(site, &plan.handle)),
            // An image whose flattening ends while it is cloned loses the parent that librbd is about to open.
            Err(Errno::BADF | Errno::STALE) => return Err(vanished(plan)),
            Err(Errno::NOENT) => return Err(Self::why_missing(site, plan, origin.is_some())),
            Err(other) => return Err(site.fail(&format!("creating image {}", plan.handle.spec()), other)),
        }
        let id = site.image_id(&name)?.ok_or_else(|| vanished(plan))?;
        Ok(Draft { name, of: plan.handle.name.clone(), id })
    }

    /// Gives the image its size, its name and its record. `None`: there is another one of the name.
    fn complete(
        &self,
        ctx: &Ctx,
        site: &Site,
        plan: &Plan,
        draft: &Draft,
        origin: Option<&Origin>,
        capacity: u64,
    ) -> Result<Option<Volume>> {
        let id = &draft.id;
        let depth = origin.map_or(0, |origin| origin.depth);
        let inherited = match origin {
            None => Inherited::default(),
            Some(origin) => Self::inherit(site, plan, id, origin, capacity)?,
        };
        ctx.check()?;
        if !site.publish_draft(draft)? {
            return Ok(None);
        }
        let record = self.record_for(plan, depth);
        let completed = std::thread::scope(|scope| {
            scope.spawn(|| site.forget_draft_name(draft));
            Self::write_record(site, plan, id, &record, &inherited)
        })?;
        if !completed {
            // Another controller has taken it for what an interrupted creation left.
            return Err(vanished(plan));
        }
        self.tasks.intent_done(site, &plan.handle.name);
        if depth > self.config.soft_depth || (plan.params.flatten && depth > 0) {
            self.tasks.flatten(site, id, &plan.handle.name)?;
        }
        tracing::info!(volume = %plan.handle, capacity, depth, "created");
        ctx.stage("created");
        let header = super::site::Header {
            image: id.clone(),
            size: capacity,
            has_snapshots: false,
            meta: std::collections::BTreeMap::new(),
        };
        Ok(Some(self.show(&Found { handle: plan.handle.clone(), header, record })))
    }

    /// Grows a clone to its size, and reads what it has taken over from its source.
    fn inherit(site: &Site, plan: &Plan, id: &str, origin: &Origin, capacity: u64) -> Result<Inherited> {
        if capacity > origin.size {
            let grown = site.open(id)?.grow(capacity);
            grown.map_err(|e| site.fail(&format!("growing image {}", plan.handle.spec()), e))?;
        }
        let header = site.header(id)?.ok_or_else(|| vanished(plan))?;
        // The file system came along; all else that we noted is about the parent.
        let fs = header
            .meta
            .get(FS)
            .map(|text| seal(&read_note::<FsState>(&plan.handle, FS, text)?.inherited()))
            .transpose()?;
        let record = header.meta.get(VOLUME).cloned().unwrap_or_default();
        let keys = header.meta.into_keys().filter(|key| key.starts_with(OURS)).collect();
        Self::remove_temporary(origin)?;
        Ok(Inherited { fs, record, keys })
    }

    /// Whether the record was written; `false`: the image was marked to be removed, or is complete.
    fn write_record(
        site: &Site,
        plan: &Plan,
        id: &str,
        record: &VolumeRecord,
        inherited: &Inherited,
    ) -> Result<bool> {
        let bytes = encode(record)?;
        let mut set = vec![(VOLUME, bytes.as_slice())];
        set.extend(inherited.fs.as_ref().map(|fs| (FS, fs.as_slice())));
        let modified = seal(&Modified { parameters: plan.spec.mutable_parameters.clone() })?;
        if !plan.spec.mutable_parameters.is_empty() {
            set.push((MODIFIED, &modified));
        }
        let remove: Vec<_> = inherited.keys.iter().map(String::as_str).collect();
        match site.update_if(id, &[(TORN, ""), (VOLUME, &inherited.record)], &set, &remove) {
            Err(Error::NotFound(_)) => Err(vanished(plan)),
            other => other,
        }
    }

    fn remove_temporary(origin: &Origin) -> Result<()> {
        match &origin.temporary {
            None => Ok(()),
            Some(note) => super::clones::remove(&origin.site, &origin.image_id, &origin.snapshot, note),
        }
    }

    fn record_for(&self, plan: &Plan, depth: u32) -> VolumeRecord {
        let spec = &plan.spec;
        VolumeRecord {
            id: plan.id.0.clone(),
            name: spec.name.clone(),
            cluster: self.config.owner.clone(),
            pvc: spec.pvc.clone(),
            requested: Requested { required: spec.range.required, limit: spec.range.limit },
            parameters: spec.parameters.clone(),
            source: spec.source.clone(),
            block: plan.block,
            fs_type: plan.fs_type.clone(),
            created: Timestamp::now(),
            depth,
        }
    }
}

fn exists(plan: &Plan, what: &str) -> Error {
    Error::AlreadyExists(format!(
        "a volume named {:?} exists and differs in: {what}; use another name or the same parameters",
        plan.spec.name
    ))
}

fn collision(handle: &Handle, why: &str) -> Error {
    Error::AlreadyExists(format!(
        "collision: image {} exists and is not this volume ({why}); nothing was changed; remove it or change nameTemplate",
        handle.spec()
    ))
}
