//! Behaviour on real directories, with a fake node.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;

use super::{Local, LocalConfig, LocalHost, Quiesced};
use crate::NodeVolume;
use crate::{
    AccessMode, AccessType, Attachment, Capability, CapacityQuery, CapacityRange, CapacityReport, Ctx, Error,
    Expansion, GroupSnapshots, GroupSpec, Listing, Modify, NodeAccess, NodeId, Placement, Provisioner,
    PublishRequest, PvcMeta, Result, Secrets, Snapshot, SnapshotId, SnapshotSpec, Snapshots, Source,
    StringMap, Topology, TopologyRequest, Volume, VolumeId, VolumeSpec,
};

mod attach;
mod crash;
mod create;
mod delete;
mod filesystems;
mod groups;
mod grow;
mod handover;
mod listing;
mod node;
mod snapshots;
mod trees;
mod units;

pub(super) const MIB: u64 = 1 << 20;

type Hook = Box<dyn Fn() + Send>;

/// A node whose answers the test sets.
#[derive(Default)]
pub(super) struct FakeHost {
    users: Mutex<Vec<String>>,
    refuse_quiesce: AtomicBool,
    fail_resume: AtomicBool,
    written_while_copied: AtomicBool,
    while_quiet: Mutex<Option<Hook>>,
    calls: Mutex<Vec<String>>,
}

impl FakeHost {
    fn note(&self, call: &str, path: &Path) {
        self.calls.lock().unwrap().push(format!("{call} {}", path.display()));
    }

    fn count(&self, call: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|it| it.starts_with(call)).count()
    }
}

struct Quiet(bool);

impl Quiesced for Quiet {
    fn resume(self: Box<Self>) -> Result<()> {
        if self.0 {
            Err(Error::Deadline("writes went on before the copy was complete".into()))
        } else {
            Ok(())
        }
    }
}

impl LocalHost for FakeHost {
    fn quiesce(&self, data: &[PathBuf], limit: Duration) -> Result<Box<dyn Quiesced>> {
        assert!(limit >= Duration::from_secs(1));
        for path in data {
            self.note("quiesce", path);
        }
        if self.refuse_quiesce.load(Ordering::Relaxed) {
            return Err(Error::Refused("in use as a raw block device".into()));
        }
        if let Some(hook) = &*self.while_quiet.lock().unwrap() {
            hook();
        }
        Ok(Box::new(Quiet(self.fail_resume.load(Ordering::Relaxed))))
    }

    fn activity(&self, data: &Path) -> Result<String> {
        self.note("activity", data);
        if self.written_while_copied.load(Ordering::Relaxed) {
            use std::os::unix::fs::FileExt as _;
            // Longer than the tick that times are rounded to.
            std::thread::sleep(Duration::from_millis(20));
            std::fs::File::options().write(true).open(data).unwrap().write_all_at(b"now", 0).unwrap();
        }
        Ok("the same".into())
    }

    fn grown(&self, data: &Path) -> Result<()> {
        self.note("grown", data);
        Ok(())
    }

    fn release(&self, data: &Path) -> Result<Vec<String>> {
        self.note("release", data);
        Ok(self.users.lock().unwrap().clone())
    }
}

/// A backend over directories that go away with it.
pub(super) struct Bench {
    pub(super) local: Arc<Local>,
    pub(super) host: Arc<FakeHost>,
    pub(super) base: PathBuf,
    pub(super) config: LocalConfig,
    _dir: TempDir,
}

impl Bench {
    /// NodeAccess of a volume, by a call without context.
    pub(super) async fn access(&self, id: &VolumeId) -> Result<NodeVolume> {
        let (none, secrets) = (StringMap::new(), crate::Secrets::default());
        let wish = crate::NodeRequest { id, context: &none, publish_context: &none, secrets: &secrets };
        self.local.access(&wish).await
    }

    /// With one root, `default`.
    pub(super) fn new() -> Self {
        Self::with(&["default"], |_| {})
    }

    pub(super) fn with(roots: &[&str], change: impl FnOnce(&mut LocalConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().to_owned();
        let paths = roots.iter().map(|name| ((*name).to_owned(), base.join(name))).collect();
        let mut config = LocalConfig::new(paths, NodeId::from("worker-1"));
        config.attach = true;
        change(&mut config);
        let host = Arc::new(FakeHost::default());
        Self {
            local: Arc::new(Local::new(config.clone(), host.clone()).unwrap()),
            host,
            base,
            config,
            _dir: dir,
        }
    }

    /// The roots as they are after their first volume.
    pub(super) fn make_roots(&self) {
        self.local.store.roots.iter().for_each(|root| root.ensure().unwrap());
    }

    /// The same directories after a restart.
    pub(super) fn restart(&mut self, change: impl FnOnce(&mut LocalConfig)) {
        change(&mut self.config);
        self.local = Arc::new(Local::new(self.config.clone(), self.host.clone()).unwrap());
    }

    pub(super) fn root(&self) -> PathBuf {
        self.base.join("default")
    }

    pub(super) fn own(&self, path: &str) -> PathBuf {
        self.root().join(".volumectl").join(path)
    }

    pub(super) async fn create(&self, spec: VolumeSpec) -> Result<Volume> {
        self.local.prepare(spec)?.run(&Ctx::new()).await
    }

    pub(super) async fn make(&self, name: &str) -> Volume {
        self.create(spec(name)).await.unwrap()
    }

    pub(super) async fn delete(&self, id: &VolumeId) -> Result<()> {
        self.local.delete(&Ctx::new(), id).await
    }

    pub(super) async fn snapshot(&self, name: &str, source: &VolumeId) -> Result<Snapshot> {
        self.local.snapshot(&Ctx::new(), snapshot_spec(name, source)).await
    }

    /// Nothing half made and nothing half deleted is left.
    pub(super) fn assert_tidy(&self) {
        for dir in ["tmp", "trash"] {
            let left = names(&self.own(dir));
            assert!(left.is_empty(), "{dir}: {left:?}");
        }
    }
}

pub(super) fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub(super) fn map(pairs: &[(&str, &str)]) -> StringMap {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

pub(super) fn mounted(fs_type: &str) -> Capability {
    Capability {
        access: AccessType::Mount { fs_type: fs_type.into(), flags: Vec::new(), group: None },
        mode: AccessMode::SingleNodeWriter,
    }
}

pub(super) fn raw() -> Capability {
    Capability { access: AccessType::Block, mode: AccessMode::SingleNodeWriter }
}

/// 16 MiB, mounted.
pub(super) fn spec(name: &str) -> VolumeSpec {
    VolumeSpec {
        name: name.into(),
        range: at_least(16 * MIB),
        capabilities: vec![mounted("")],
        parameters: StringMap::new(),
        mutable_parameters: StringMap::new(),
        source: None,
        topology: None,
        pvc: PvcMeta::default(),
        secrets: Secrets::default(),
    }
}

pub(super) fn spec_with(name: &str, parameters: &[(&str, &str)]) -> VolumeSpec {
    VolumeSpec { parameters: map(parameters), ..spec(name) }
}

/// [`spec`] with a change.
pub(super) fn but(name: &str, change: &dyn Fn(&mut VolumeSpec)) -> VolumeSpec {
    let mut spec = spec(name);
    change(&mut spec);
    spec
}

pub(super) fn spec_from(name: &str, source: Source) -> VolumeSpec {
    VolumeSpec { source: Some(source), range: CapacityRange::default(), ..spec(name) }
}

pub(super) fn at_least(required: u64) -> CapacityRange {
    CapacityRange { required, limit: 0 }
}

pub(super) fn snapshot_spec(name: &str, source: &VolumeId) -> SnapshotSpec {
    SnapshotSpec {
        name: name.into(),
        source: source.clone(),
        parameters: StringMap::new(),
        secrets: Secrets::default(),
    }
}

pub(super) fn group_spec(name: &str, sources: &[&VolumeId]) -> GroupSpec {
    GroupSpec {
        name: name.into(),
        sources: sources.iter().map(|id| (*id).clone()).collect(),
        parameters: StringMap::new(),
        secrets: Secrets::default(),
    }
}

/// The error of a call that must fail, checked for its label and a part of its text.
#[track_caller]
pub(super) fn refused<T: std::fmt::Debug>(result: Result<T>, label: &str, part: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.label(), label, "{error}");
    assert!(error.to_string().contains(part), "{error}");
}
