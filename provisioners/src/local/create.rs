//! Making a volume: empty, from a snapshot or from another volume. It is complete or absent.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{FallocateFlags, Gid, Mode, OFlags, Uid, fallocate, fchmod, fchown, openat};
use rustix::io::Errno;

use super::copy::create_image;
use super::copytree::copy_tree;
use super::draft::Draft;
use super::layout::{Root, VOLUME_RECORD, failed, sync};
use super::lease::{Lease, Sharing};
use super::params::{Mutable, VolumeType};
use super::plan::Plan;
use super::record::{FsState, Requested, VolumeRecord, encode};
use super::size::{Space, decide, decide_for_source, minimum};
use super::store::{Found, Store};
use crate::{Ctx, Error, Result, Source, Volume};

/// The mode of a directory volume for which none is asked.
const DIRECTORY_MODE: u32 = 0o770;

/// What a volume is filled from.
struct Origin {
    data: PathBuf,
    kind: VolumeType,
    size: u64,
    fs: FsState,
    /// It may be in use.
    live: bool,
}

impl Store {
    /// Makes the planned volume, or finds the one made before.
    pub(super) fn create(&self, ctx: &Ctx, plan: &Plan) -> Result<Volume> {
        let root = self.root(&plan.handle.root)?;
        root.ensure()?;
        if let Some(found) = self.made_before(root, plan)? {
            return self.confirm(plan, &found);
        }
        let origin = self.origin(plan).map_err(|error| self.elsewhere(plan, error))?;
        let capacity = self.capacity_for(plan, origin.as_ref())?;
        Space::of(&root.path, self.config.reserve)?.check(capacity, &root.path)?;
        self.make(ctx, root, plan, origin.as_ref(), capacity)
    }

    fn made_before<'a>(&'a self, root: &'a Root, plan: &Plan) -> Result<Option<Found<'a>>> {
        let key = &plan.handle.key;
        for root in self.roots.iter().filter(|root| root.exists()) {
            if let Some(found) = root.find_volume(key)? {
                return Ok(Some(found));
            }
        }
        let target = root.path.join(&plan.dir_name);
        let found = root.volume_at(key, target.clone())?;
        if found.is_some() {
            // A power loss took the link that was made with it.
            root.index(key, &plan.dir_name)?;
        } else if target.symlink_metadata().is_ok() {
            return Err(collision(&target));
        }
        Ok(found)
    }

    /// The answer for a volume made before. It may have been made by a call that was killed before all was durable.
    fn confirm(&self, plan: &Plan, found: &Found<'_>) -> Result<Volume> {
        let dir_name = found.dir.file_name().unwrap_or_default().to_string_lossy();
        let name = &plan.spec.name;
        if found.record.name != *name || found.record.cluster != self.config.cluster {
            return Err(Error::AlreadyExists(format!(
                "volume {} is that of name {:?} of cluster {:?}; use another name",
                found.handle, found.record.name, found.record.cluster
            )));
        }
        if found.root.name != plan.handle.root {
            let (has, asked) = (&found.root.name, &plan.handle.root);
            return Err(exists(plan, &format!("root (it has {has}; asked: {asked})")));
        }
        if let Some(what) = plan.differs(self, &found.record, &dir_name)? {
            return Err(exists(plan, &what));
        }
        settle(found.root, plan)?;
        Ok(self.show(found))
    }

    /// A source that is not here is on another node, where the caller chooses among nodes: Kubernetes' scheduler tries
    /// another one when there is no room, and gives up where there is no source.
    fn elsewhere(&self, plan: &Plan, error: Error) -> Error {
        let chosen = plan.spec.topology.as_ref();
        let chosen = chosen.is_some_and(|it| !it.requisite.is_empty() || !it.preferred.is_empty());
        match error {
            Error::NotFound(problem) if chosen => Error::Exhausted(format!(
                "volume_content_source: {problem} on this node ({:?}); copies of local volumes are made on the node of their \
                 source, which the nodeAffinity of the source's PersistentVolume names: have the pod scheduled there",
                self.topology()
            )),
            other => other,
        }
    }

    fn origin(&self, plan: &Plan) -> Result<Option<Origin>> {
        let origin = match &plan.spec.source {
            None => return Ok(None),
            Some(Source::Volume(id)) => {
                let found = self.volume(id)?;
                found.whole()?;
                Origin {
                    data: found.data(),
                    kind: found.record.kind,
                    size: found.record.capacity,
                    fs: found.record.fs.inherited(),
                    live: true,
                }
            }
            Some(Source::Snapshot(id)) => {
                let found = self.find_snapshot_by_id(id)?;
                Origin {
                    data: found.data(),
                    kind: found.record.kind,
                    size: found.record.size,
                    fs: found.record.fs.inherited(),
                    live: false,
                }
            }
        };
        check_origin(plan, &origin)?;
        Ok(Some(origin))
    }

    fn capacity_for(&self, plan: &Plan, origin: Option<&Origin>) -> Result<u64> {
        let least = minimum(plan.params.kind, plan.block, plan.fs_type.as_deref());
        match origin {
            None => decide(plan.spec.range, self.config.default_size, least),
            Some(origin) => decide_for_source(plan.spec.range, origin.size, least),
        }
    }

    fn make(
        &self,
        ctx: &Ctx,
        root: &Root,
        plan: &Plan,
        origin: Option<&Origin>,
        capacity: u64,
    ) -> Result<Volume> {
        ctx.stage("creating");
        let key = &plan.handle.key;
        let record = self.record_for(plan, origin, capacity);
        let draft = Draft::start(root, "volume", key)?;
        let data = draft.path.join(record.kind.data_name());
        match record.kind {
            VolumeType::File => self.fill_file(ctx, plan, origin, &data, capacity)?,
            VolumeType::Directory => fill_directory(ctx, plan, origin, &data)?,
        }
        ctx.check()?;
        let target = root.path.join(&plan.dir_name);
        root.index(key, &plan.dir_name)?;
        if !draft.publish(VOLUME_RECORD, &encode(&record)?, &data, &target)? {
            // Another process has made the same volume meanwhile, or it is somebody else's directory.
            if let Some(found) = root.find_volume(key)? {
                return self.confirm(plan, &found);
            }
            root.unlink(key)?;
            return Err(collision(&target));
        }
        settle(root, plan)?;
        tracing::info!(volume = %plan.handle, dir = %target.display(), capacity, "created");
        Ok(self.show(&Found { root, handle: plan.handle.clone(), dir: target, record }))
    }

    fn record_for(&self, plan: &Plan, origin: Option<&Origin>, capacity: u64) -> VolumeRecord {
        let spec = &plan.spec;
        VolumeRecord {
            id: plan.handle.to_string(),
            name: spec.name.clone(),
            cluster: self.config.cluster.clone(),
            pvc: spec.pvc.clone(),
            kind: plan.params.kind,
            capacity,
            requested: Requested { required: spec.range.required, limit: spec.range.limit },
            parameters: spec.parameters.clone(),
            mutable_parameters: spec.mutable_parameters.clone(),
            modified: crate::StringMap::new(),
            source: spec.source.clone(),
            block: plan.block,
            fs_type: plan.fs_type.clone(),
            created: Timestamp::now(),
            fs: origin.map(|origin| origin.fs.clone()).unwrap_or_default(),
            published: std::collections::BTreeMap::new(),
        }
    }

    fn fill_file(
        &self,
        ctx: &Ctx,
        plan: &Plan,
        origin: Option<&Origin>,
        data: &Path,
        capacity: u64,
    ) -> Result<()> {
        let thick = plan.params.thick;
        let file = create_image(data)?;
        if let Some(origin) = origin {
            // Shared blocks would need new ones at the first write, so a thick copy shares none.
            self.copy_image(ctx, &origin.data, &file, data, origin.live, !thick)?;
            let length = file.metadata().map_err(|e| failed("looking at", data, e))?.len();
            if length < origin.size {
                return Err(Error::Corrupt {
                    what: origin.data.display().to_string(),
                    problem: format!("it has {length} bytes, {} are recorded", origin.size),
                });
            }
        }
        file.set_len(capacity).map_err(|e| failed("setting the length of", data, e))?;
        if thick {
            allocate(&file, data, 0, capacity)?;
        }
        Ok(())
    }
}

/// Allocates the blocks of a part of a file (fallocate(2)); the file grows to include it.
pub(super) fn allocate(file: &std::fs::File, path: &Path, offset: u64, length: u64) -> Result<()> {
    match fallocate(file, FallocateFlags::empty(), offset, length) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(Error::Unsupported(format!(
            "thick: the file system of {} cannot allocate blocks ahead; leave thick out or use another root",
            path.display()
        ))),
        other => other.map_err(|e| failed("allocating the blocks of", path, e.into())),
    }
}

fn fill_directory(ctx: &Ctx, plan: &Plan, origin: Option<&Origin>, data: &Path) -> Result<()> {
    let mut dress = Mutable { mode: plan.params.mode, uid: plan.params.uid, gid: plan.params.gid };
    if let Some(origin) = origin {
        let _lease = Lease::take(ctx, &origin.data, Sharing::Copy)?;
        copy_tree(ctx, &origin.data, data)?;
    } else {
        std::fs::create_dir(data).map_err(|e| failed("creating", data, e))?;
        dress.mode = dress.mode.or(Some(DIRECTORY_MODE));
    }
    set_attributes(data, dress)
}

/// Gives a directory its owner and mode; what is `None` stays. A change of owner can clear mode bits, so it is first.
pub(super) fn set_attributes(path: &Path, wish: Mutable) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir =
        openat(rustix::fs::CWD, path, flags, Mode::empty()).map_err(|e| failed("opening", path, e.into()))?;
    if wish.uid.is_some() || wish.gid.is_some() {
        fchown(&dir, wish.uid.map(Uid::from_raw), wish.gid.map(Gid::from_raw))
            .map_err(|e| failed("changing the owner of", path, e.into()))?;
    }
    if let Some(mode) = wish.mode {
        fchmod(&dir, Mode::from_raw_mode(mode))
            .map_err(|e| failed("changing the mode of", path, e.into()))?;
    }
    Ok(())
}

/// Makes the volume's names durable: its directory's and, if it has one, its link's.
fn settle(root: &Root, plan: &Plan) -> Result<()> {
    sync(&root.path)?;
    if plan.dir_name != plan.handle.key {
        sync(&root.own("index"))?;
    }
    Ok(())
}

fn check_origin(plan: &Plan, origin: &Origin) -> Result<()> {
    if origin.kind != plan.params.kind {
        let problem = format!(
            "{:?}, but the source is of type {:?}; use a StorageClass of the same type",
            plan.params.kind.word(),
            origin.kind.word()
        );
        return Err(Error::invalid("parameters[\"type\"]", problem));
    }
    match (plan.fs_type.as_deref(), origin.fs.file_system()) {
        (Some(asked), Some(has)) if asked != has && !plan.block => {
            Err(Error::invalid("fsType", format!("{asked:?}, but the source holds {has}; ask for {has}")))
        }
        _ => Ok(()),
    }
}

fn exists(plan: &Plan, what: &str) -> Error {
    Error::AlreadyExists(format!(
        "a volume named {:?} exists and differs in: {what}; use another name or the same parameters",
        plan.spec.name
    ))
}

fn collision(target: &Path) -> Error {
    Error::AlreadyExists(format!(
        "collision: {} exists and is not this volume; nothing was changed; remove it or change nameTemplate",
        target.display()
    ))
}
