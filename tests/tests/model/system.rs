//! The real driver and local backend, called without a socket.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use csi_driver::cli::Mode;
use csi_driver::config::Config;
use csi_driver::driver::{Driver, Service};
use csi_driver::flight::Flights;
use csi_driver::metrics::Metrics;
use csi_driver::registry;
use csi_proto::v1 as pb;
use e2e::drivers::local_config;
use e2e::requests::{self as ask, MIB};
use e2e::scratch::Scratch;
use pb::controller_server::Controller;
use provisioners::{Error, Observer};
use tokio::runtime::Runtime;
use tonic::{Code, Request, Status};

use crate::reference::{Call, Model, Source, Volume};

/// The driver on a scratch directory.
pub struct System {
    runtime: Runtime,
    scratch: Scratch,
    service: Service,
    /// Safe points until the next failure; negative: none.
    countdown: Arc<AtomicI32>,
    /// The handles of the volumes and snapshots that were made, by name.
    ids: Arc<Mutex<BTreeMap<String, String>>>,
}

impl System {
    pub fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (scratch, countdown) = (Scratch::new().unwrap(), Arc::new(AtomicI32::new(-1)));
        let service = service(&scratch, &countdown);
        Self { runtime, scratch, service, countdown, ids: Arc::default() }
    }

    /// Makes a call; `Err` has its code.
    pub fn call(&mut self, call: &Call) -> Result<(), Code> {
        if matches!(call, Call::Restart) {
            // A process that ended does no more work.
            self.runtime.block_on(self.service.flights.drain(Duration::from_secs(60)));
            self.service = service(&self.scratch, &self.countdown);
            return Ok(());
        }
        let (service, ids, call) = (self.service.clone(), self.ids.clone(), call.clone());
        // A call that meets the work of a caller that left is told so, and repeats, as a sidecar does.
        self.runtime.block_on(async {
            loop {
                match make(&service, &ids, &call).await {
                    Err(status) if status.code() == Code::Aborted => {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    other => return other.map_err(|status| status.code()),
                }
            }
        })
    }

    /// Makes a call whose work fails at its n-th safe point.
    pub fn failing_at(&mut self, n: u8, call: &Call) -> Result<(), Code> {
        self.countdown.store(n.into(), Ordering::SeqCst);
        let answer = self.call(call);
        self.countdown.store(-1, Ordering::SeqCst);
        answer
    }

    /// Makes a call whose caller goes away after some microseconds.
    pub fn caller_leaves(&mut self, after: u16, call: &Call) {
        let (service, ids, call) = (self.service.clone(), self.ids.clone(), call.clone());
        let limit = Duration::from_micros(after.into());
        self.runtime.block_on(async move {
            let _ = tokio::time::timeout(limit, make(&service, &ids, &call)).await;
        });
    }

    /// Writes the content of a new volume where its user would.
    pub fn write(&self, name: u8, volume: &Volume) {
        std::fs::write(self.content_path(&volume_name(name), volume.directory), volume.content.to_le_bytes())
            .unwrap();
        if !volume.directory {
            let file =
                std::fs::OpenOptions::new().write(true).open(self.content_path(&volume_name(name), false));
            file.unwrap().set_len(u64::try_from(volume.mib * MIB).unwrap()).unwrap();
        }
    }

    fn content_path(&self, name: &str, directory: bool) -> PathBuf {
        let volume = self.scratch.path().join("volumes").join(name);
        if directory { volume.join("data/content") } else { volume.join("disk.img") }
    }

    /// What the driver lists is what should be, with sizes, and the content is that of the source.
    pub fn compare(&self, model: &Model) {
        let (service, empty) = (&self.service, pb::ListVolumesRequest::default());
        let listed = self.runtime.block_on(service.list_volumes(Request::new(empty))).unwrap().into_inner();
        let listed: BTreeMap<_, _> = listed
            .entries
            .into_iter()
            .map(|e| (e.volume.unwrap_or_default(), e.status.unwrap_or_default()))
            .map(|(v, status)| (v.volume_id, (v.capacity_bytes, status.published_node_ids.len())))
            .collect();
        let expected: BTreeMap<_, _> = model
            .volumes
            .iter()
            .map(|(name, v)| (self.id(&volume_name(*name)), (v.mib * MIB, usize::from(v.attached))))
            .collect();
        assert_eq!(listed, expected, "volumes");
        for (name, volume) in &model.volumes {
            let data = std::fs::read(self.content_path(&volume_name(*name), volume.directory)).unwrap();
            assert_eq!(data[..8], volume.content.to_le_bytes(), "the content of {}", volume_name(*name));
            assert!(volume.directory || data.len() as u64 == u64::try_from(volume.mib * MIB).unwrap());
        }
        self.compare_snapshots(model);
    }

    fn compare_snapshots(&self, model: &Model) {
        let (service, empty) = (&self.service, pb::ListSnapshotsRequest::default());
        let listed = self.runtime.block_on(service.list_snapshots(Request::new(empty))).unwrap().into_inner();
        let listed: BTreeMap<_, _> = listed
            .entries
            .into_iter()
            .filter_map(|e| e.snapshot)
            .map(|s| (s.snapshot_id, (s.size_bytes, s.ready_to_use)))
            .collect();
        let expected: BTreeMap<_, _> =
            model.snapshots.iter().map(|(n, s)| (self.id(&snapshot_name(*n)), (s.mib * MIB, true))).collect();
        assert_eq!(listed, expected, "snapshots");
    }

    /// With no volume and no snapshot, only the backend's own empty directories are there.
    pub fn assert_no_files(&self) {
        let root = self.scratch.path().join("volumes");
        let files: Vec<_> = Scratch::tree(&root).into_iter().filter(|p| !root.join(p).is_dir()).collect();
        assert!(files.is_empty(), "left: {files:?}");
        let dirs: Vec<_> =
            std::fs::read_dir(&root).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
        assert!(dirs.iter().all(|name| name == ".volumectl"), "left: {dirs:?}");
    }

    fn id(&self, name: &str) -> String {
        self.ids.lock().unwrap().get(name).cloned().unwrap_or_else(|| format!("{name} was never made"))
    }
}

fn service(scratch: &Scratch, countdown: &Arc<AtomicI32>) -> Service {
    let config = Config::parse(&local_config(scratch.path(), "")).unwrap();
    let service = registry::drivers(&config, Mode::All, &Metrics::new()).unwrap().remove(0);
    let countdown = countdown.clone();
    let observer: Observer = Arc::new(move |stage| match countdown.fetch_sub(1, Ordering::SeqCst) {
        0 => Err(Error::Unavailable(format!("injected at stage {stage}"))),
        n if n < 0 => {
            countdown.store(-1, Ordering::SeqCst);
            Ok(())
        }
        _ => Ok(()),
    });
    let driver = Arc::into_inner(service.0).unwrap();
    Service(Arc::new(Driver { flights: Flights::observed(8, Duration::from_secs(60), observer), ..driver }))
}

fn volume_name(name: u8) -> String {
    format!("volume-{name}")
}

/// Where the kind of a snapshot is kept: CSI does not tell it.
fn kind_of(snapshot: u8) -> String {
    format!("the kind of snapshot-{snapshot}")
}

fn snapshot_name(name: u8) -> String {
    format!("snapshot-{name}")
}

type Ids = Mutex<BTreeMap<String, String>>;

fn known(ids: &Ids, name: &str) -> String {
    ids.lock().unwrap().get(name).cloned().unwrap_or_else(|| "default:never-made".into())
}

async fn make(service: &Service, ids: &Ids, call: &Call) -> Result<(), Status> {
    match *call {
        Call::Create { name, mib, directory } => {
            let mut request = ask::create(&volume_name(name), mib * MIB, capability(directory));
            request.parameters = kind(directory);
            create(service, ids, request).await
        }
        Call::CreateFrom { name, source, more } => {
            let request = create_from(service, ids, &volume_name(name), source, more).await?;
            create(service, ids, request).await
        }
        Call::Delete { name } => {
            let request = ask::delete(&known(ids, &volume_name(name)));
            service.delete_volume(Request::new(request)).await.map(drop)
        }
        Call::Snapshot { name, of } => {
            let source = known(ids, &volume_name(of));
            let get = pb::ControllerGetVolumeRequest { volume_id: source.clone() };
            let volume = service
                .controller_get_volume(Request::new(get))
                .await?
                .into_inner()
                .volume
                .unwrap_or_default();
            let request = ask::snapshot(&source, &snapshot_name(name));
            let made = service
                .create_snapshot(Request::new(request))
                .await?
                .into_inner()
                .snapshot
                .unwrap_or_default();
            same(ids, &snapshot_name(name), &made.snapshot_id);
            let kind = volume.volume_context.get("type").cloned().unwrap_or_default();
            ids.lock().unwrap().entry(kind_of(name)).or_insert(kind);
            Ok(())
        }
        Call::DeleteSnapshot { name } => {
            let request = ask::delete_snapshot(&known(ids, &snapshot_name(name)));
            service.delete_snapshot(Request::new(request)).await?;
            ids.lock().unwrap().remove(&kind_of(name));
            Ok(())
        }
        Call::Expand { name, mib } => {
            let request = ask::expand(&known(ids, &volume_name(name)), mib * MIB);
            service.controller_expand_volume(Request::new(request)).await.map(drop)
        }
        Call::Attach { name } => {
            let request = ask::attach(&known(ids, &volume_name(name)), "node-1", capability(false));
            service.controller_publish_volume(Request::new(request)).await.map(drop)
        }
        Call::Detach { name } => {
            let volume_id = known(ids, &volume_name(name));
            let request = pb::ControllerUnpublishVolumeRequest { volume_id, ..Default::default() };
            service.controller_unpublish_volume(Request::new(request)).await.map(drop)
        }
        Call::Restart => Ok(()),
    }
}

async fn create(service: &Service, ids: &Ids, request: pb::CreateVolumeRequest) -> Result<(), Status> {
    let name = request.name.clone();
    let made = service.create_volume(Request::new(request)).await?.into_inner().volume.unwrap_or_default();
    same(ids, &name, &made.volume_id);
    Ok(())
}

/// A request for a copy of a source with the kind and size that the source has now.
async fn create_from(
    service: &Service,
    ids: &Ids,
    name: &str,
    source: Source,
    more: i64,
) -> Result<pb::CreateVolumeRequest, Status> {
    let (size, directory, of) = match source {
        Source::Volume(v) => {
            let volume_id = known(ids, &volume_name(v));
            let request = pb::ControllerGetVolumeRequest { volume_id: volume_id.clone() };
            let found = service.controller_get_volume(Request::new(request)).await?.into_inner();
            let volume = found.volume.unwrap_or_default();
            let directory = volume.volume_context.get("type").is_some_and(|t| t == "directory");
            (volume.capacity_bytes, directory, ask::from_volume(&volume_id))
        }
        Source::Snapshot(s) => {
            let snapshot_id = known(ids, &snapshot_name(s));
            let request = pb::GetSnapshotRequest { snapshot_id: snapshot_id.clone(), ..Default::default() };
            let found =
                service.get_snapshot(Request::new(request)).await?.into_inner().snapshot.unwrap_or_default();
            let directory = known(ids, &kind_of(s)) == "directory";
            (found.size_bytes, directory, ask::from_snapshot(&snapshot_id))
        }
    };
    let mut request = ask::create(name, size + more * MIB, capability(directory));
    request.parameters = kind(directory);
    request.volume_content_source = of;
    Ok(request)
}

/// Handles are decided by the name alone.
fn same(ids: &Ids, name: &str, id: &str) {
    let before = ids.lock().unwrap().insert(name.to_owned(), id.to_owned());
    assert!(before.is_none_or(|before| before == id), "{name} has another handle now: {id}");
}

fn kind(directory: bool) -> BTreeMap<String, String> {
    [("type".to_owned(), if directory { "directory" } else { "file" }.to_owned())].into()
}

fn capability(directory: bool) -> pb::VolumeCapability {
    if directory { ask::mount("") } else { ask::block() }
}
