//! The real driver and backend, called without a socket.

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
use e2e::ceph::Ceph;
use e2e::drivers::local_config;
use e2e::nfs::Nfs;
use e2e::openstack::OpenStack;
use e2e::requests::{self as ask, MIB};
use e2e::scratch::Scratch;
use pb::controller_server::Controller;
use provisioners::{Error, Observer};
use tokio::runtime::Runtime;
use tonic::{Code, Request, Status};

use crate::reference::{Call, Model, Source, Volume};

/// Which backend is under test.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Files and directories.
    Local,
    /// Images of a cluster. Their content is not looked at: the crash test does that.
    Rbd(&'static Ceph),
    /// Directories of a server's share, by a version of the protocol. They cannot be attached.
    Nfs(&'static Nfs, &'static str),
    /// Volumes of Cinder. Their content is not looked at, and their handles are not decided by their names.
    Cinder(&'static OpenStack),
}

impl Kind {
    /// The bytes of what the model calls a MiB: Cinder's sizes are whole GiB.
    fn unit(self) -> i64 {
        if let Self::Cinder(_) = self { 1024 * MIB } else { MIB }
    }
}

/// The driver on a scratch directory.
pub struct System {
    kind: Kind,
    config: String,
    /// Of an rbd backend.
    namespace: String,
    /// Where volumes are on this machine.
    volumes: PathBuf,
    runtime: Runtime,
    _scratch: Scratch,
    service: Service,
    /// Safe points until the next failure; negative: none.
    countdown: Arc<AtomicI32>,
    /// The handles of the volumes and snapshots that were made, by name.
    ids: Arc<Mutex<BTreeMap<String, String>>>,
}

impl System {
    pub fn start(kind: Kind) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (scratch, countdown) = (Scratch::new().unwrap(), Arc::new(AtomicI32::new(-1)));
        let mut volumes = scratch.path().join("volumes");
        let (config, namespace) = match kind {
            Kind::Local => (local_config(scratch.path(), ""), String::new()),
            Kind::Cinder(cloud) => {
                static NEXT: AtomicI32 = AtomicI32::new(0);
                let owner = format!("model-{}", NEXT.fetch_add(1, Ordering::Relaxed));
                let node = cloud.node().unwrap();
                (cloud.config(&owner, &node, scratch.path(), "", ""), owner)
            }
            Kind::Nfs(server, version) => {
                let (share, dir) = server.share("model").unwrap();
                volumes = dir;
                let more = format!(", nfsVersion: \"{version}\"");
                (server.config(scratch.path(), &share, &more).unwrap(), String::new())
            }
            Kind::Rbd(ceph) => {
                let more = "    purgeWorkers: 8\n    softCloneDepth: 15\n    hardCloneDepth: 15\n";
                let config = ceph.config("model", scratch.path(), more).unwrap();
                (config.text, config.namespace)
            }
        };
        // The rbd backend wants a runtime for what it does behind its calls.
        let service = runtime.block_on(async { service(&config, &countdown) });
        Self {
            kind,
            config,
            namespace,
            volumes,
            runtime,
            _scratch: scratch,
            service,
            countdown,
            ids: Arc::default(),
        }
    }

    /// Makes a call; `Err` has its code.
    pub fn call(&mut self, call: &Call) -> Result<(), Code> {
        if matches!(call, Call::Restart) {
            // A process that ended does no more work.
            self.runtime.block_on(self.service.flights.drain(Duration::from_secs(60)));
            self.service = self.runtime.block_on(async { service(&self.config, &self.countdown) });
            return Ok(());
        }
        let (service, ids, call, kind) = (self.service.clone(), self.ids.clone(), call.clone(), self.kind);
        // A call that meets the work of a caller that left is told so, and repeats, as a sidecar does.
        self.runtime.block_on(async {
            loop {
                match make(kind, &service, &ids, &call).await {
                    Err(status) if status.code() == Code::Aborted => {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    other => {
                        return other.map_err(|status| {
                            if std::env::var_os("MODEL_VERBOSE").is_some() {
                                eprintln!("{call:?}: {status}");
                            }
                            status.code()
                        });
                    }
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
        let (service, ids, call, kind) = (self.service.clone(), self.ids.clone(), call.clone(), self.kind);
        let limit = Duration::from_micros(after.into());
        self.runtime.block_on(async move {
            let _ = tokio::time::timeout(limit, make(kind, &service, &ids, &call)).await;
        });
    }

    /// Writes the content of a new volume where its user would.
    pub fn write(&self, name: u8, volume: &Volume) {
        if let Kind::Rbd(_) | Kind::Cinder(_) = self.kind {
            return;
        }
        std::fs::write(self.content_path(&volume_name(name), volume.directory), volume.content.to_le_bytes())
            .unwrap();
        if !volume.directory && matches!(self.kind, Kind::Local) {
            let file =
                std::fs::OpenOptions::new().write(true).open(self.content_path(&volume_name(name), false));
            file.unwrap().set_len(u64::try_from(volume.mib * MIB).unwrap()).unwrap();
        }
    }

    fn content_path(&self, name: &str, directory: bool) -> PathBuf {
        let volume = self.volumes.join(name);
        if let Kind::Nfs(..) = self.kind {
            return volume.join("content");
        }
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
            .map(|(name, v)| {
                (self.id(&volume_name(*name)), (v.mib * self.kind.unit(), usize::from(v.attached)))
            })
            .collect();
        assert_eq!(listed, expected, "volumes");
        let files = !matches!(self.kind, Kind::Rbd(_) | Kind::Cinder(_));
        for (name, volume) in model.volumes.iter().filter(|_| files) {
            let data = std::fs::read(self.content_path(&volume_name(*name), volume.directory)).unwrap();
            assert_eq!(data[..8], volume.content.to_le_bytes(), "the content of {}", volume_name(*name));
            let file = !volume.directory && matches!(self.kind, Kind::Local);
            assert!(!file || data.len() as u64 == u64::try_from(volume.mib * MIB).unwrap());
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
        let expected: BTreeMap<_, _> = model
            .snapshots
            .iter()
            .map(|(n, s)| (self.id(&snapshot_name(*n)), (s.mib * self.kind.unit(), true)))
            .collect();
        assert_eq!(listed, expected, "snapshots");
    }

    /// With no volume and no snapshot, only the backend's own empty directories are there.
    pub fn assert_no_files(&self) {
        if let Kind::Rbd(ceph) = self.kind {
            return assert_no_images(ceph, &format!("rbd/{}", self.namespace));
        }
        if let Kind::Cinder(cloud) = self.kind {
            return self.runtime.block_on(assert_no_volumes(cloud, &self.namespace));
        }
        let root = self.volumes.clone();
        let files = || {
            let all = Scratch::tree(&root).into_iter();
            // What nodes read to see whether they read what is stored.
            all.filter(|p| !root.join(p).is_dir() && !p.ends_with(provisioners::nfs::READ_BACK))
                .collect::<Vec<_>>()
        };
        if let Kind::Nfs(..) = self.kind {
            // What was deleted is removed behind the answers, what was half made by the sweep.
            let dirs = || {
                ["tmp", "trash", "intents"].map(|dir| Scratch::tree(&root.join(".volumectl").join(dir)).len())
            };
            let begun = std::time::Instant::now();
            while (!files().is_empty() || dirs() != [0; 3]) && begun.elapsed() < Duration::from_secs(30) {
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(dirs(), [0; 3]);
        }
        assert!(files().is_empty(), "left: {:?}", files());
        let dirs: Vec<_> =
            std::fs::read_dir(&root).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
        assert!(dirs.iter().all(|name| name == ".volumectl"), "left: {dirs:?}");
    }

    fn id(&self, name: &str) -> String {
        self.ids.lock().unwrap().get(name).cloned().unwrap_or_else(|| format!("{name} was never made"))
    }
}

pub fn service(config: &str, countdown: &Arc<AtomicI32>) -> Service {
    let config = Config::parse(config).unwrap();
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

/// Neither volumes nor snapshots of an owner.
async fn assert_no_volumes(cloud: &OpenStack, owner: &str) {
    for what in ["volumes", "snapshots"] {
        let left = cloud.owned(what, owner).await.unwrap();
        assert!(left.is_empty(), "left: {left:?}");
    }
}

/// No image and nothing in the trash, once the purge is done.
fn assert_no_images(ceph: &Ceph, place: &str) {
    let mut left = String::new();
    for _ in 0..200 {
        left = ceph.run("rbd", &["ls", place]).unwrap() + &ceph.run("rbd", &["trash", "ls", place]).unwrap();
        if left.trim().is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("left in {place}: {left}");
}

fn volume_name(name: u8) -> String {
    format!("volume-{name}")
}

/// Where the kind of a volume or snapshot is kept: CSI does not tell it.
fn kind_of(name: &str) -> String {
    format!("the kind of {name}")
}

fn snapshot_name(name: u8) -> String {
    format!("snapshot-{name}")
}

type Ids = Mutex<BTreeMap<String, String>>;

fn known(ids: &Ids, name: &str) -> String {
    ids.lock().unwrap().get(name).cloned().unwrap_or_else(|| "never-made".into())
}

async fn make(kind: Kind, service: &Service, ids: &Ids, call: &Call) -> Result<(), Status> {
    match *call {
        Call::Attach { .. } | Call::Detach { .. } if matches!(kind, Kind::Nfs(..)) => Ok(()),
        Call::Create { name, mib, directory } => {
            let request = create_request(kind, &volume_name(name), mib * kind.unit(), directory);
            create(kind, service, ids, request, directory).await
        }
        Call::CreateFrom { name, source, more } => {
            let (request, directory) =
                create_from(kind, service, ids, &volume_name(name), source, more).await?;
            create(kind, service, ids, request, directory).await
        }
        Call::Delete { name } => {
            let request = ask::delete(&known(ids, &volume_name(name)));
            service.delete_volume(Request::new(request)).await.map(drop)
        }
        Call::Snapshot { name, of } => {
            let source = known(ids, &volume_name(of));
            // A source that is missing is told before a name that is taken.
            let get = pb::ControllerGetVolumeRequest { volume_id: source.clone() };
            service.controller_get_volume(Request::new(get)).await?;
            let request = ask::snapshot(&source, &snapshot_name(name));
            let made = service.create_snapshot(Request::new(request)).await?.into_inner();
            same(kind, ids, &snapshot_name(name), &made.snapshot.unwrap_or_default().snapshot_id);
            let of = known(ids, &kind_of(&volume_name(of)));
            ids.lock().unwrap().entry(kind_of(&snapshot_name(name))).or_insert(of);
            Ok(())
        }
        Call::DeleteSnapshot { name } => {
            let request = ask::delete_snapshot(&known(ids, &snapshot_name(name)));
            service.delete_snapshot(Request::new(request)).await?;
            ids.lock().unwrap().remove(&kind_of(&snapshot_name(name)));
            Ok(())
        }
        Call::Expand { name, mib } => {
            let request = ask::expand(&known(ids, &volume_name(name)), mib * kind.unit());
            service.controller_expand_volume(Request::new(request)).await.map(drop)
        }
        Call::Attach { name } => {
            let node = match kind {
                Kind::Cinder(cloud) => cloud.nodes().unwrap()[0].clone(),
                _ => "node-1".to_owned(),
            };
            let request = ask::attach(&known(ids, &volume_name(name)), &node, ask::block());
            service.controller_publish_volume(Request::new(request)).await.map(drop)
        }
        Call::Detach { name } => {
            let request = ask::detach(&known(ids, &volume_name(name)), "");
            service.controller_unpublish_volume(Request::new(request)).await.map(drop)
        }
        Call::Restart => Ok(()),
    }
}

async fn create(
    kind: Kind,
    service: &Service,
    ids: &Ids,
    request: pb::CreateVolumeRequest,
    directory: bool,
) -> Result<(), Status> {
    let name = request.name.clone();
    let made = service.create_volume(Request::new(request)).await?.into_inner().volume.unwrap_or_default();
    same(kind, ids, &name, &made.volume_id);
    ids.lock().unwrap().insert(kind_of(&name), directory.to_string());
    Ok(())
}

/// A request for a copy of a source with the kind and size that the source has now, and that kind.
async fn create_from(
    kind: Kind,
    service: &Service,
    ids: &Ids,
    name: &str,
    source: Source,
    more: i64,
) -> Result<(pb::CreateVolumeRequest, bool), Status> {
    let (size, of, from) = match source {
        Source::Volume(v) => {
            let volume_id = known(ids, &volume_name(v));
            let request = pb::ControllerGetVolumeRequest { volume_id: volume_id.clone() };
            let found = service.controller_get_volume(Request::new(request)).await?.into_inner();
            (found.volume.unwrap_or_default().capacity_bytes, volume_name(v), ask::from_volume(&volume_id))
        }
        Source::Snapshot(s) => {
            let snapshot_id = known(ids, &snapshot_name(s));
            let request = pb::GetSnapshotRequest { snapshot_id: snapshot_id.clone(), ..Default::default() };
            let found = service.get_snapshot(Request::new(request)).await?.into_inner().snapshot;
            (found.unwrap_or_default().size_bytes, snapshot_name(s), ask::from_snapshot(&snapshot_id))
        }
    };
    let directory = known(ids, &kind_of(&of)) == "true";
    let mut request = create_request(kind, name, size + more * kind.unit(), directory);
    request.volume_content_source = from;
    Ok((request, directory))
}

/// Handles are decided by the name alone, but for those that Cinder gives.
fn same(kind: Kind, ids: &Ids, name: &str, id: &str) {
    let before = ids.lock().unwrap().insert(name.to_owned(), id.to_owned());
    let given = matches!(kind, Kind::Cinder(_));
    assert!(given || before.is_none_or(|before| before == id), "{name} has another handle now: {id}");
}

/// A volume of one of two kinds, which are not the same volume: files and directories, or images with more and with
/// fewer features.
fn create_request(kind: Kind, name: &str, size: i64, directory: bool) -> pb::CreateVolumeRequest {
    let (capability, parameter) = match (kind, directory) {
        (Kind::Local, true) => (ask::mount(""), Some(("type", "directory"))),
        (Kind::Local, false) => (ask::block(), Some(("type", "file"))),
        (Kind::Rbd(_), true) => (ask::block(), Some(("imageFeatures", "layering,exclusive-lock"))),
        (Kind::Rbd(_) | Kind::Cinder(_), false) => (ask::block(), None),
        (Kind::Cinder(_), true) => (ask::block(), Some(("tags", "kind=other"))),
        (Kind::Nfs(..), true) => (ask::mount(""), Some(("mountPermissions", "0750"))),
        (Kind::Nfs(..), false) => (ask::mount(""), None),
    };
    let mut request = ask::create(name, size, capability);
    request.parameters = parameter.map(|(k, v)| (k.to_owned(), v.to_owned())).into_iter().collect();
    request
}
