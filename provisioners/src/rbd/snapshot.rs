//! Snapshots: one of the image's, found by its record in the pool's map.

use jiff::Timestamp;

use super::ffi::{Errno, Image};
use super::foreign::check_source;
use super::handle::{Handle, parse_handle};
use super::list::show_snapshot;
use super::params::SNAPSHOT_DOCS;
use super::record::{Found, SnapshotRecord};
use super::site::{SNAPSHOTS, Site};
use super::store::Store;
use crate::{Ctx, Error, Parameters, Result, Snapshot, SnapshotId, SnapshotSpec, key_for};

impl Store {
    /// The handle of a snapshot: in the place of its source.
    pub(super) fn snapshot_handle(spec: &SnapshotSpec) -> Result<Handle> {
        let source = parse_handle(&spec.source.0)
            .map_err(|_| Error::NotFound(format!("source_volume_id: there is no volume {}", spec.source)))?;
        let reader = Parameters::new("parameters", &spec.parameters, &SNAPSHOT_DOCS)?;
        check_source(&reader, &source)?;
        let prefix =
            reader.read("snapshotNamePrefix", |v| super::handle::check_part(v).map(|()| v.to_owned()))?;
        let name = format!("{}{}", prefix.unwrap_or_default(), key_for(&spec.name));
        Handle::new(source.place, name)
    }

    /// Takes a snapshot, or finds the one taken before.
    pub(super) fn snapshot(&self, ctx: &Ctx, spec: &SnapshotSpec) -> Result<Snapshot> {
        let handle = Self::snapshot_handle(spec)?;
        let before = self.taken_before(ctx, &handle)?;
        if let Some(record) = &before {
            if record.source != spec.source.0
                || record.cluster != self.config.owner
                || record.name != spec.name
            {
                return Err(Error::AlreadyExists(format!(
                    "a snapshot named {:?} exists, of volume {} (cluster {:?}); use another name",
                    record.name, record.source, record.cluster
                )));
            }
            if record.complete {
                return Ok(show_snapshot(record));
            }
        }
        let (site, found) = self.volume(&spec.source, ctx.secrets())?;
        let image = site.open(&found.header.image)?;
        if before.is_none() {
            refuse_foreign(&site, &image, &handle)?;
        }
        let record = self.snapshot_record(&handle, &spec.name, &found, None);
        site.note(SNAPSHOTS, &handle.name, &record)?;
        ctx.check()?;
        ctx.stage("taking the snapshot");
        let record = take(&site, &image, record)?;
        ctx.check()?;
        site.note(SNAPSHOTS, &handle.name, &record)?;
        tracing::info!(snapshot = %handle, volume = %spec.source, "taken");
        Ok(show_snapshot(&record))
    }

    /// A snapshot of this name in any configured pool of the cluster: names are unique.
    fn taken_before(&self, ctx: &Ctx, handle: &Handle) -> Result<Option<SnapshotRecord>> {
        let mut places = vec![handle.place.clone()];
        places.extend(self.other_places(&handle.place));
        for place in places {
            let found = self.site(&place, ctx.secrets())?.entry(SNAPSHOTS, &handle.name)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The record of a snapshot that is meant to be taken.
    pub(super) fn snapshot_record(
        &self,
        handle: &Handle,
        name: &str,
        source: &Found,
        group: Option<String>,
    ) -> SnapshotRecord {
        SnapshotRecord {
            id: handle.to_string(),
            name: name.to_owned(),
            cluster: self.config.owner.clone(),
            source: source.handle.to_string(),
            image: source.header.image.clone(),
            snapshot: handle.name.clone(),
            size: 0,
            created: Timestamp::now(),
            group,
            complete: false,
        }
    }

    /// A snapshot's record. None such: [`Error::NotFound`].
    pub(super) fn snapshot_at(site: &Site, handle: &Handle) -> Result<SnapshotRecord> {
        let record: Option<SnapshotRecord> = site.entry(SNAPSHOTS, &handle.name)?;
        record
            .filter(|record| record.complete)
            .ok_or_else(|| Error::NotFound(format!("there is no snapshot {handle}")))
    }

    /// One snapshot. None such: [`Error::NotFound`].
    pub(super) fn get_snapshot(&self, ctx: &Ctx, id: &SnapshotId) -> Result<Snapshot> {
        let none = || Error::NotFound(format!("there is no snapshot {id}"));
        let handle = parse_handle(&id.0).map_err(|_| none())?;
        let site = self.site(&handle.place, ctx.secrets())?;
        let record = Self::snapshot_at(&site, &handle)?;
        if site.header(&record.image)?.is_none() {
            return Err(Error::NotFound(format!("snapshot {id}: its image is gone")));
        }
        Ok(show_snapshot(&record))
    }

    /// Deletes a snapshot. None such: `Ok`.
    pub(super) fn delete_snapshot(&self, ctx: &Ctx, id: &SnapshotId) -> Result<()> {
        let Ok(handle) = parse_handle(&id.0) else { return Ok(()) };
        let site = self.site(&handle.place, ctx.secrets())?;
        let Some(record) = site.entry::<SnapshotRecord>(SNAPSHOTS, &handle.name)? else { return Ok(()) };
        if let Some(group) = &record.group {
            let problem = format!("{id} is a member of group {group}; delete the whole group");
            return Err(Error::invalid("snapshot_id", problem));
        }
        if record.cluster != self.config.owner {
            return Err(Error::Refused(format!(
                "snapshot {id} belongs to cluster {:?}; delete it there",
                record.cluster
            )));
        }
        ctx.stage("deleting");
        self.remove_snapshot(ctx, &site, &handle.name, &record)?;
        tracing::info!(snapshot = %id, "deleted");
        Ok(())
    }

    /// Removes a snapshot of an image, then its record; an image that waited for that goes, too.
    pub(super) fn remove_snapshot(
        &self,
        ctx: &Ctx,
        site: &Site,
        key: &str,
        record: &SnapshotRecord,
    ) -> Result<()> {
        if site.header(&record.image)?.is_some() {
            match site.open(&record.image)?.remove_snapshot(&record.snapshot) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(site.fail(&format!("removing snapshot {}", record.id), e)),
            }
            ctx.check()?;
            if let Some(name) = site.image_name(&record.image)? {
                self.release(site, &record.image, &name)?;
            }
        }
        site.forget(SNAPSHOTS, &[key])
    }
}

/// A snapshot of this name that no record of ours means is somebody else's.
pub(super) fn refuse_foreign(site: &Site, image: &Image, handle: &Handle) -> Result<()> {
    let all = image.snapshots().map_err(|e| site.fail("listing snapshots", e))?;
    if all.iter().all(|snapshot| snapshot.name != handle.name) {
        return Ok(());
    }
    Err(Error::AlreadyExists(format!(
        "collision: the image has a snapshot {:?} that is not this driver's; nothing was changed; remove it or use another name",
        handle.name
    )))
}

/// Takes the snapshot that a record means, or finds it, and completes the record with its true size and time.
pub(super) fn take(site: &Site, image: &Image, mut record: SnapshotRecord) -> Result<SnapshotRecord> {
    let failed = |errno| site.fail(&format!("taking snapshot {}", record.id), errno);
    match image.snapshot(&record.snapshot) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let all = image.snapshots().map_err(failed)?;
    let taken = all.into_iter().find(|snapshot| snapshot.name == record.snapshot);
    let taken = taken.ok_or_else(|| failed(Errno::NOENT))?;
    let (seconds, nanoseconds) = image.snapshot_time(taken.id).map_err(failed)?;
    let nanoseconds = i32::try_from(nanoseconds).unwrap_or(0);
    record.created = Timestamp::new(seconds, nanoseconds)
        .map_err(|e| Error::Internal(format!("the time of snapshot {}: {e}", record.id)))?;
    record.size = taken.size;
    record.complete = true;
    Ok(record)
}
