//! Snapshots: full copies beside the volumes, complete or absent.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use super::copy::{copy_sparse, create_image, open_source, reflink};
use super::copytree::copy_tree;
use super::draft::Draft;
use super::handle::{Handle, parse_handle};
use super::layout::{Root, SNAPSHOT_RECORD, failed, is_dir, sync};
use super::lease::{Lease, Sharing};
use super::params::VolumeType;
use super::record::{SnapshotRecord, encode, load};
use super::size::{MIB, Space};
use super::store::{Found, Store};
use super::walk::Moment;
use crate::{Ctx, Error, Parameters, Result, Snapshot, SnapshotId, SnapshotSpec, VolumeId, key_for};

/// Writes are stopped at most so long for a copy, however large it is.
const QUIESCE_MAX: Duration = Duration::from_mins(2);
/// The time to stop writes for, beside what the data takes.
const QUIESCE_BASE: Duration = Duration::from_secs(30);
/// How fast a slow disk copies, in bytes a second.
const SLOW: u64 = 64 * MIB;

/// A snapshot on disk.
#[derive(Debug)]
pub(super) struct FoundSnapshot<'a> {
    pub(super) root: &'a Root,
    pub(super) handle: Handle,
    pub(super) dir: PathBuf,
    pub(super) record: SnapshotRecord,
}

impl FoundSnapshot<'_> {
    pub(super) fn data(&self) -> PathBuf {
        self.dir.join(self.record.kind.data_name())
    }

    pub(super) fn show(&self) -> Snapshot {
        Snapshot {
            id: SnapshotId(self.handle.to_string()),
            source: VolumeId(self.record.source.clone()),
            size: self.record.size,
            created: self.record.created,
            ready: true,
            group: self.record.group.clone(),
        }
    }
}

impl Root {
    /// The snapshot with a key, whether or not its group is complete.
    pub(super) fn any_snapshot(&self, key: &str) -> Result<Option<FoundSnapshot<'_>>> {
        let dir = self.snapshot(key);
        let path = dir.join(SNAPSHOT_RECORD);
        let Some(record) = load::<SnapshotRecord>(&path)? else {
            return if is_dir(&dir)? {
                Err(Error::Corrupt {
                    what: path.display().to_string(),
                    problem: "the record is missing".into(),
                })
            } else {
                Ok(None)
            };
        };
        let handle = Handle { root: self.name.clone(), key: key.to_owned() };
        Ok(Some(FoundSnapshot { root: self, handle, dir, record }))
    }
}

impl Store {
    /// The handle of a snapshot: in the root of its source.
    pub(super) fn snapshot_handle(spec: &SnapshotSpec) -> Result<Handle> {
        Parameters::new("parameters", &spec.parameters, &[])?;
        let none = |_| Error::NotFound(format!("source_volume_id: there is no volume {}", spec.source));
        let source = parse_handle(&spec.source.0).map_err(none)?;
        Ok(Handle { root: source.root, key: key_for(&spec.name) })
    }

    /// The snapshot with a key; a member of a group that is not complete does not exist yet, or no more.
    pub(super) fn find_snapshot<'a>(&self, root: &'a Root, key: &str) -> Result<Option<FoundSnapshot<'a>>> {
        let found = root.any_snapshot(key)?;
        Ok(found.filter(|found| found.record.group.as_deref().is_none_or(|id| self.group_is_complete(id))))
    }

    /// A snapshot by its handle. None such: [`Error::NotFound`].
    pub(super) fn find_snapshot_by_id(&self, id: &SnapshotId) -> Result<FoundSnapshot<'_>> {
        let none = || Error::NotFound(format!("snapshot {id}: there is no such snapshot"));
        let handle = parse_handle(&id.0).map_err(|_| none())?;
        let root = self.root(&handle.root).map_err(|_| none())?;
        self.find_snapshot(root, &handle.key)?.ok_or_else(none)
    }

    /// Takes a snapshot, or finds the one taken before.
    pub(super) fn snapshot(&self, ctx: &Ctx, spec: &SnapshotSpec) -> Result<Snapshot> {
        let handle = Self::snapshot_handle(spec)?;
        for root in self.roots.iter().filter(|root| root.exists()) {
            if let Some(found) = self.find_snapshot(root, &handle.key)? {
                return self.confirm_snapshot(spec, &found);
            }
        }
        let source = self.volume(&spec.source)?;
        let draft = Draft::start(source.root, "snapshot", &handle.key)?;
        ctx.stage("copying");
        let data = draft.path.join(source.record.kind.data_name());
        let created = self.take(ctx, &source, &data)?;
        let record = self.snapshot_record(&handle, &spec.name, &source, created, None);
        if let Err(error) = publish_snapshot(draft, &source, &record, &handle) {
            // Another process may have taken the same snapshot meanwhile.
            return match self.find_snapshot(source.root, &handle.key)? {
                Some(found) => self.confirm_snapshot(spec, &found),
                None => Err(error),
            };
        }
        sync(&source.root.own("snapshots"))?;
        tracing::info!(snapshot = %handle, volume = %source.handle, "taken");
        Ok(self.find_snapshot_by_id(&SnapshotId(handle.to_string()))?.show())
    }

    fn confirm_snapshot(&self, spec: &SnapshotSpec, found: &FoundSnapshot<'_>) -> Result<Snapshot> {
        let record = &found.record;
        if record.source != spec.source.0 || record.name != spec.name || record.cluster != self.config.cluster
        {
            return Err(Error::AlreadyExists(format!(
                "a snapshot named {:?} exists as {} of volume {} of cluster {:?}, not of {}; use another name",
                record.name, found.handle, record.source, record.cluster, spec.source
            )));
        }
        sync(&found.root.own("snapshots"))?;
        Ok(found.show())
    }

    pub(super) fn snapshot_record(
        &self,
        handle: &Handle,
        name: &str,
        source: &Found<'_>,
        created: Timestamp,
        group: Option<String>,
    ) -> SnapshotRecord {
        SnapshotRecord {
            id: handle.to_string(),
            name: name.to_owned(),
            cluster: self.config.cluster.clone(),
            source: source.handle.to_string(),
            kind: source.record.kind,
            size: source.record.capacity,
            fs: source.record.fs.inherited(),
            created,
            group,
        }
    }

    /// Copies a volume's data as it is at one moment, which is returned.
    fn take(&self, ctx: &Ctx, source: &Found<'_>, data: &Path) -> Result<Timestamp> {
        source.whole()?;
        match source.record.kind {
            VolumeType::Directory => {
                let _lease = Lease::take(ctx, &source.data(), Sharing::Copy)?;
                timestamp(copy_tree(ctx, &source.data(), data)?)
            }
            VolumeType::File => {
                let to = create_image(data)?;
                self.copy_image(ctx, &source.data(), &to, data, true, true)
            }
        }
    }

    /// Copies an image, at one moment: what is mounted from it is quiet meanwhile. One in use as a raw block device
    /// cannot be kept quiet, but sharing its blocks is one step. Returns the moment.
    pub(super) fn copy_image(
        &self,
        ctx: &Ctx,
        from: &Path,
        to: &File,
        to_path: &Path,
        live: bool,
        share: bool,
    ) -> Result<Timestamp> {
        // Held until the copy is complete, so that no process attaches, grows or deletes it meanwhile.
        let _lease = Lease::take(ctx, from, Sharing::Copy)?;
        let source = open_source(from)?;
        if !live {
            self.copy_quiet(ctx, &source, to, to_path, share)?;
            return Ok(Timestamp::now());
        }
        ctx.stage("stopping writes");
        match self.host.quiesce(&[from.to_owned()], quiesce_limit(&[from.to_owned()])) {
            Ok(quiet) => {
                let moment = Timestamp::now();
                self.copy_unchanged(ctx, (from, &source), to, to_path, share)?;
                quiet.resume()?;
                Ok(moment)
            }
            Err(refusal @ Error::Refused(_)) => {
                let moment = Timestamp::now();
                let shared =
                    share && reflink(&source, to).map_err(|e| failed("sharing the blocks of", from, e))?;
                if shared { Ok(moment) } else { Err(refusal) }
            }
            Err(other) => Err(other),
        }
    }

    /// Copies an image that should stand still. What was attached, detached, grown or written to meanwhile, by whomever, is
    /// of no moment at all: [`Error::Unavailable`], and the copy is thrown away.
    pub(super) fn copy_unchanged(
        &self,
        ctx: &Ctx,
        (path, from): (&Path, &File),
        to: &File,
        to_path: &Path,
        share: bool,
    ) -> Result<()> {
        let look = || -> Result<_> {
            let meta = from.metadata().map_err(|e| failed("looking at", path, e))?;
            let changed = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
            Ok((meta.len(), changed, self.host.activity(path)?))
        };
        let before = look()?;
        self.copy_quiet(ctx, from, to, to_path, share)?;
        let after = look()?;
        if before == after {
            return Ok(());
        }
        Err(Error::Unavailable(format!(
            "{} was used while it was copied ({} before, {} after), so the copy is thrown away; repeat the call",
            path.display(),
            before.2,
            after.2
        )))
    }

    /// Copies an image that does not change.
    pub(super) fn copy_quiet(
        &self,
        ctx: &Ctx,
        from: &File,
        to: &File,
        to_path: &Path,
        share: bool,
    ) -> Result<()> {
        ctx.stage("copying");
        if share && reflink(from, to).map_err(|e| failed("sharing blocks with", to_path, e))? {
            return Ok(());
        }
        let allocated =
            from.metadata().map_err(|e| failed("looking at the source of", to_path, e))?.blocks() * 512;
        Space::of(to_path, self.config.reserve)?.check(allocated, to_path)?;
        copy_sparse(ctx, from, to, to_path, share)
    }
}

/// Publishes a snapshot that was built.
pub(super) fn publish_snapshot(
    draft: Draft,
    source: &Found<'_>,
    record: &SnapshotRecord,
    handle: &Handle,
) -> Result<()> {
    let data = draft.path.join(record.kind.data_name());
    let target = source.root.snapshot(&handle.key);
    if draft.publish(SNAPSHOT_RECORD, &encode(record)?, &data, &target)? {
        return Ok(());
    }
    Err(Error::AlreadyExists(format!("{} exists and is not this snapshot", target.display())))
}

/// How long to stop writes for copies of these files: until a slow disk has surely copied them.
pub(super) fn quiesce_limit(files: &[PathBuf]) -> Duration {
    let allocated: u64 =
        files.iter().filter_map(|path| path.metadata().ok()).map(|meta| meta.blocks() * 512).sum();
    (QUIESCE_BASE + Duration::from_secs(allocated / SLOW)).min(QUIESCE_MAX)
}

pub(super) fn timestamp(moment: Moment) -> Result<Timestamp> {
    let nanoseconds = i32::try_from(moment.1).unwrap_or(0);
    Timestamp::new(moment.0, nanoseconds)
        .map_err(|e| Error::Internal(format!("the file system's clock: {e}")))
}
