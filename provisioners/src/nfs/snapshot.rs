//! Snapshots: copies in the driver's own directory, where no pod gets at them; complete or absent.

use std::sync::Arc;

use jiff::Timestamp;

use super::client::{Fh, Set, Special, Status, found};
use super::config::{NfsConfig, check_path, check_server};
use super::draft::Draft;
use super::fill::Filling;
use super::handle::{Handle, ShareId};
use super::list::is_of_record;
use super::record::SnapshotRecord;
use super::share::{Own, Share, Told, draft_name};
use super::store::Store;
use crate::parameters::{Foreign, Ignored, docs, foreign};
use crate::record::{decode, encode};
use crate::{
    Ctx, Error, Page, ParameterDoc, Parameters, Result, Snapshot, SnapshotId, SnapshotSpec, StringMap,
    VolumeId, key_for,
};

/// A snapshot's record, beside its data.
const RECORD: &[u8] = b"snapshot.json";
const DATA: &[u8] = b"data";

/// Parameters of a VolumeSnapshotClass.
static DOCS: [ParameterDoc; 3] = docs! {
    "ifChanging", "See the StorageClass's.", "refuse", false;
    "server", "The server of the source volume, with `share`; another share is refused.", "the volume's", false;
    "share", "The exported path of the source volume.", "the volume's", false;
};

/// Those of csi-driver-nfs that have no effect.
pub(super) static FOREIGN: [Foreign; 1] = foreign! {
    "mountOptions", [""], Ignored, "the controller mounts nothing to take a snapshot";
};

impl SnapshotRecord {
    fn show(&self) -> Snapshot {
        Snapshot {
            id: SnapshotId(self.id.clone()),
            source: VolumeId(self.source.clone()),
            size: self.size,
            created: self.created,
            ready: true,
            group: None,
        }
    }
}

/// A VolumeSnapshotClass's parameters, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Class {
    /// Files may be of different moments.
    accept: bool,
    /// The share that it names.
    share: Option<ShareId>,
    pub(super) ignored: Vec<Ignored>,
}

impl Class {
    pub(super) fn parse(config: &NfsConfig, given: &StringMap) -> Result<Self> {
        let reader = Parameters::with_foreign("parameters", given, &DOCS, &FOREIGN)?;
        let share = match (reader.get("server"), reader.get("share")) {
            (Some(server), Some(path)) => {
                check_server(server).map_err(|problem| Error::invalid(reader.field_of("server"), problem))?;
                check_path(path).map_err(|problem| Error::invalid(reader.field_of("share"), problem))?;
                Some(config.share_at(server, path))
            }
            (None, None) => None,
            (Some(_), None) => {
                return Err(Error::invalid(reader.field_of("share"), "must be given beside server"));
            }
            (None, Some(_)) => {
                return Err(Error::invalid(reader.field_of("server"), "must be given beside share"));
            }
        };
        let accept = reader.one_of("ifChanging", &["refuse", "accept"])? == Some("accept");
        Ok(Self { accept, share, ignored: reader.ignored() })
    }

    /// Snapshots are on their volume's share.
    fn check_share(&self, share: &ShareId) -> Result<()> {
        match &self.share {
            Some(asked) if asked != share => Err(Error::invalid(
                "parameters[\"share\"]",
                format!(
                    "{asked}, but the volume is on {share}, and its snapshots with it; leave server and share out"
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// The handle of a snapshot: its volume's share, its own name.
pub(super) fn handle(spec: &SnapshotSpec) -> Result<Handle> {
    let source = Handle::parse(&spec.source.0).ok_or_else(|| {
        Error::NotFound(format!(
            "source_volume_id: {} is no handle of this backend, so there is no such volume",
            spec.source
        ))
    })?;
    Handle::new(source.share, key_for(&spec.name))
}

impl Store {
    /// Takes a snapshot, or finds the one taken before.
    pub(super) fn snapshot(&self, ctx: &Ctx, spec: &SnapshotSpec) -> Result<Snapshot> {
        let class = Class::parse(&self.config, &spec.parameters)?;
        self.told.tell("nfs", &class.ignored);
        let handle = handle(spec)?;
        let share = self.share(&handle.share)?;
        class.check_share(&share.id)?;
        if let Some((_, _, record)) = find_snapshot(&share, &handle)? {
            return self.same(&record, spec);
        }
        let volume = self.volume(&spec.source)?;
        let dir = volume.dir()?.ok_or_else(|| {
            Error::Refused(format!("volume {}: its directory {} is missing", spec.source, volume.record.dir))
        })?;
        let what = format!("volume {}", spec.source);
        let from = Filling { dir, size: volume.record.capacity, what, moving: true };
        let record = self.take(ctx, &share, &volume.own, &handle, spec, &from, class.accept)?;
        tracing::info!(snapshot = %handle, volume = %spec.source, bytes = record.content, "taken");
        self.same(&record, spec)
    }

    #[allow(clippy::too_many_arguments, reason = "what is copied, to where, and under which name")]
    fn take(
        &self,
        ctx: &Ctx,
        share: &Arc<Share>,
        own: &Own,
        handle: &Handle,
        spec: &SnapshotSpec,
        from: &Filling,
        accept: bool,
    ) -> Result<SnapshotRecord> {
        let set = Set { mode: Some(0o700), ..Set::default() };
        let draft = Draft::make(share, own, &handle.key, &set)?;
        let (name, top) = (draft.name.as_bytes(), &draft.node.fh);
        draft.keep_alive(share, self.config.beat());
        let taken = (|| {
            let data = share.make(top, DATA, &Special::Directory, &set).told(share, "making a directory")?;
            let created = Timestamp::now();
            let content = self.copy_tree(ctx, share, from, &data.fh, top, accept)?;
            let record = SnapshotRecord {
                id: handle.to_string(),
                name: spec.name.clone(),
                cluster: self.config.owner.clone(),
                source: spec.source.0.clone(),
                size: from.size,
                content,
                created,
            };
            ctx.check()?;
            share.put(top, RECORD, &encode(&record)?).told(share, "writing a record")?;
            draft.check(share, own)?;
            let moved = share.rename(&own.tmp, name, &own.snapshots, handle.key.as_bytes());
            match moved {
                Ok(()) => {}
                // Another has just taken it, or it is this one, its answer lost: what is there counts.
                Err(fault)
                    if [Status::EXISTS, Status::NOT_EMPTY, Status::NO_ENTRY].iter().any(|s| fault.is(*s)) => {
                }
                Err(fault) => return Err(share.fail("publishing a snapshot")(fault)),
            }
            let there = find_snapshot(share, handle)?;
            there.map(|(_, _, record)| record).ok_or_else(|| {
                Error::Unavailable(format!(
                    "snapshot {handle} was deleted while it was taken; repeat the call"
                ))
            })
        })();
        // After success nothing has that name any more.
        if let Err(fault) = share.discard(own, &own.tmp, name) {
            tracing::warn!(share = %share.place(), %fault, "a half made snapshot is left for the next sweep");
        }
        if taken.is_err() {
            self.remove_trash(share);
        }
        taken
    }

    /// A snapshot that exists is the answer if it is of the same volume.
    fn same(&self, record: &SnapshotRecord, spec: &SnapshotSpec) -> Result<Snapshot> {
        if self.is_one(&record.source, &spec.source.0) {
            return Ok(record.show());
        }
        Err(Error::AlreadyExists(format!(
            "snapshot {} exists and is of volume {}, not of {}",
            record.id, record.source, spec.source
        )))
    }

    /// What a snapshot has, for restoring it. None such: [`Error::NotFound`].
    pub(super) fn snapshot_data(&self, id: &SnapshotId) -> Result<(Arc<Share>, Fh, SnapshotRecord)> {
        let none = || Error::NotFound(format!("snapshot {id}: there is none such"));
        let handle = Handle::parse(&id.0).ok_or_else(none)?;
        let share = self.share(&handle.share).map_err(|e| Error::NotFound(format!("snapshot {id}: {e}")))?;
        let (_, dir, record) = find_snapshot(&share, &handle)?.ok_or_else(none)?;
        let data = share.look(&dir, DATA).told(&share, "looking for a snapshot's data")?;
        let data =
            data.ok_or_else(|| Error::Refused(format!("snapshot {id}: its data is missing; delete it")))?;
        Ok((share, data.fh, record))
    }

    pub(super) fn get_snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        Ok(self.snapshot_data(id)?.2.show())
    }

    /// Deletes a snapshot. None such is fine.
    pub(super) fn delete_snapshot(&self, id: &SnapshotId) -> Result<()> {
        let Some((share, handle)) = self.to_delete(&id.0)? else { return Ok(()) };
        let Some((own, _, record)) = find_snapshot(&share, &handle)? else { return Ok(()) };
        self.check_owner(&format!("snapshot {id}"), &record.cluster)?;
        let name = draft_name();
        let moved = found(share.rename(&own.snapshots, handle.key.as_bytes(), &own.trash, name.as_bytes()));
        moved.told(&share, "moving a snapshot to the trash")?;
        self.removals.add(&share, name.as_bytes(), self.config.tree_workers);
        tracing::info!(snapshot = %id, "deleted");
        Ok(())
    }

    /// Snapshots after `after`, in the order of their handles.
    pub(super) fn list_snapshots(
        &self,
        source: Option<&VolumeId>,
        after: Option<&str>,
        max: usize,
    ) -> Result<Page<Snapshot>> {
        self.pages(
            after,
            max,
            |own| own.snapshots.clone(),
            |name| String::from_utf8(name.to_vec()).ok(),
            |share, handle| {
                let found = match find_snapshot(share, handle) {
                    // CSI has no word for what is wrong with a snapshot; asking for it by its id says it.
                    Err(error) if is_of_record(&error) => {
                        tracing::warn!(snapshot = %handle, %error, "left out of the list");
                        return Ok(None);
                    }
                    other => other?,
                };
                let found = found.filter(|(_, _, record)| {
                    source.is_none_or(|source| self.is_one(&source.0, &record.source))
                });
                Ok(found.map(|(_, _, record)| record.show()))
            },
        )
    }
}

/// A snapshot's directory and record.
fn find_snapshot(share: &Share, handle: &Handle) -> Result<Option<(Own, Fh, SnapshotRecord)>> {
    let got = share.with_own(|own| {
        let Some(dir) = share.look(&own.snapshots, handle.key.as_bytes())? else { return Ok(None) };
        Ok(share.get(&dir.fh, RECORD)?.map(|(_, content)| (own.clone(), dir.fh, content)))
    });
    let Some((own, dir, content)) = got.told(share, "reading a record")? else { return Ok(None) };
    let what = format!("{}/{}/snapshots/{}", share.place(), super::share::OWN, handle.key);
    Ok(Some((own, dir, decode(&what, &content)?)))
}
