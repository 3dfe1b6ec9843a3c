//! The driver's process, a base volume that stays mounted, a snapshot that is kept, and what must hold after a round.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::ceph::Ceph;
use e2e::clients::Clients;
use e2e::drivers::{Process, local_config};
use e2e::nfs::Nfs;
use e2e::random::Random;
use e2e::requests::{self as ask, MIB};
use e2e::scratch::Scratch;

use crate::foreign;
use crate::operations::{self, Answer, Operation, SIZE};

/// The base volume's size in bytes.
pub const BASE_SIZE: i64 = 32 * MIB;

/// Which backend is under test.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Files and directories.
    Local,
    /// Images of a cluster.
    Rbd(&'static Ceph),
    /// Directories of a server's share, by a version of the protocol.
    Nfs(&'static Nfs, &'static str),
}

/// How a driver's life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// SIGKILL.
    Killed,
    /// SIGTERM, and another starts before it has ended.
    Replaced,
}

/// What a round is about.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The name that is asked for.
    pub name: String,
    /// The handle, when it exists already.
    pub id: String,
    pub staging: PathBuf,
    pub target: PathBuf,
    /// The file system that is asked for.
    pub fs: &'static str,
    /// What every handle begins with: handles are decided by names.
    home: String,
}

impl Subject {
    /// The handle of the volume that stays mounted.
    pub fn base(&self) -> String {
        format!("{}base", self.home)
    }

    /// The handle of the snapshot that is kept.
    pub fn kept(&self) -> String {
        format!("{}kept", self.home)
    }
}

pub struct World {
    kind: Kind,
    end: End,
    home: String,
    /// Where volumes are on this machine.
    volumes: PathBuf,
    driver: Process,
    scratch: Scratch,
    config: String,
    data: Vec<u8>,
    typical: BTreeMap<Operation, Duration>,
}

impl World {
    pub async fn new(kind: Kind, end: End) -> Result<Self> {
        let scratch = Scratch::new()?;
        let mut volumes = scratch.path().join("volumes");
        let (config, home) = match kind {
            Kind::Nfs(server, version) => {
                let (share, dir) = server.share("crash")?;
                let more = format!(", nfsVersion: \"{version}\", localPath: {}", dir.display());
                volumes = dir;
                (server.config(scratch.path(), &share, &more)?, "main:".to_owned())
            }
            Kind::Local => (local_config(scratch.path(), ""), "default:".to_owned()),
            Kind::Rbd(ceph) => {
                let config = ceph.config("crash", scratch.path(), "")?;
                foreign::plant_image(ceph, &format!("rbd/{}", config.namespace))?;
                (config.text, format!("ceph:rbd/{}/", config.namespace))
            }
        };
        if !matches!(kind, Kind::Rbd(_)) {
            foreign::plant(&volumes)?;
        }
        let driver = Process::start(scratch.path(), &config)?;
        // Two MiB that no run of zeros or pattern could be taken for.
        let mut random = Random::new(7);
        let data = (0..2 * MIB / 8).flat_map(|_| random.next().to_le_bytes()).collect();
        let mut world =
            Self { kind, end, home, volumes, driver, scratch, config, data, typical: BTreeMap::new() };
        let mut clients = world.clients().await?;
        let subject = world.base();
        let base = ask::create("base", BASE_SIZE, ask::mount(subject.fs));
        let made = clients.controller.create_volume(base).await?.into_inner().volume.unwrap_or_default();
        ensure!(made.volume_id == subject.id, "{made:?}");
        fs::create_dir_all(&subject.staging)?;
        operations::call(world.clients().await?, Operation::Stage, subject.clone()).await?;
        operations::call(world.clients().await?, Operation::Publish, subject).await?;
        fs::write(world.base_file(), &world.data)?;
        fs::File::open(world.base_file())?.sync_all()?;
        let kept =
            clients.controller.create_snapshot(ask::snapshot(&world.base().id, "kept")).await?.into_inner();
        ensure!(kept.snapshot.unwrap_or_default().snapshot_id == world.base().kept());
        Ok(world)
    }

    pub fn pid(&self) -> u32 {
        self.driver.pid()
    }

    pub async fn clients(&mut self) -> Result<Clients> {
        self.driver.clients().await
    }

    /// Makes a call and repeats it as a sidecar does.
    pub async fn repeat(&mut self, operation: Operation, subject: Subject) -> Result<Answer> {
        let (begun, mut shaken) = (Instant::now(), false);
        loop {
            match operations::call(self.clients().await?, operation, subject.clone()).await {
                Err(status) if may_repeat(&status) && begun.elapsed() < Duration::from_secs(100) => {
                    if is_open_elsewhere(&status) && !shaken && begun.elapsed() > Duration::from_secs(45) {
                        shaken = true;
                        self.forget_ghosts(&status)?;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                other => return other.with_context(|| format!("{operation:?}")),
            }
        }
    }

    /// A client that was killed in the moment in which its watch is registered is listed as a watcher for ever: the OSD has
    /// written it down, but starts no timer for a session that is gone (Ceph, `PrimaryLogPG::do_osd_op_effects`). An OSD that
    /// starts reads what is written, and starts the timer.
    fn forget_ghosts(&self, status: &tonic::Status) -> Result<()> {
        let Kind::Rbd(ceph) = self.kind else { return Ok(()) };
        println!("crash test: a watcher outlives its time, the OSDs start anew: {}", status.message());
        ceph.restart_osds(3)
    }

    /// How long an operation takes when nothing interrupts it, as far as it was seen.
    pub fn typical(&self, operation: Operation) -> Duration {
        let guess = match operation {
            Operation::Stage => Duration::from_millis(60),
            Operation::Snapshot | Operation::Duplicate | Operation::Restore => Duration::from_millis(40),
            Operation::Unpublish | Operation::Unstage => Duration::from_millis(10),
            _ => Duration::from_millis(4),
        };
        self.typical.get(&operation).copied().unwrap_or(guess)
    }

    /// A kill that came too late makes the next ones come earlier, one that met the call a little later, so that all
    /// points of the call are met.
    pub fn learn(&mut self, operation: Operation, hit: bool) {
        let known = self.typical(operation);
        let next = if hit { known * 11 / 10 } else { known * 8 / 10 };
        self.typical.insert(operation, next.max(Duration::from_micros(400)));
    }

    pub fn is_killed(&self) -> bool {
        self.end == End::Killed
    }

    pub fn end_and_start(&mut self) -> Result<()> {
        if self.end == End::Replaced {
            return self.driver.hand_over(self.scratch.path(), &self.config);
        }
        self.driver.kill()?;
        self.driver = Process::start(self.scratch.path(), &self.config)?;
        Ok(())
    }

    fn subject(&self, name: &str, id: &str) -> Subject {
        let dir = self.scratch.path().join("kubelet").join(name);
        Subject {
            name: name.into(),
            id: id.into(),
            staging: dir.join("globalmount"),
            target: dir.join("mount"),
            fs: if let Kind::Nfs(..) = self.kind { "" } else { "ext4" },
            home: self.home.clone(),
        }
    }

    fn base(&self) -> Subject {
        self.subject("base", &format!("{}base", self.home))
    }

    fn base_file(&self) -> PathBuf {
        self.base().target.join("data")
    }

    /// What an operation begins with.
    pub async fn prepare(&mut self, operation: Operation, round: u64) -> Result<Subject> {
        let name = format!("round-{round}");
        let mut subject = self.subject(&name, "");
        fs::create_dir_all(&subject.staging)?;
        let mut clients = self.clients().await?;
        if operation.needs_volume() {
            let request = operations::create_request(operation, &subject);
            subject.id = clients
                .controller
                .create_volume(request)
                .await?
                .into_inner()
                .volume
                .unwrap_or_default()
                .volume_id;
        }
        let before: &[Operation] = match operation {
            Operation::Detach => &[Operation::Attach],
            Operation::Publish | Operation::PublishReadOnly | Operation::Unstage => &[Operation::Stage],
            Operation::Unpublish => &[Operation::Stage, Operation::Publish],
            _ => &[],
        };
        for step in before {
            self.repeat(*step, subject.clone()).await?;
        }
        if operation == Operation::DeleteSnapshot {
            subject.id = self.repeat(Operation::Snapshot, subject.clone()).await?.id;
        }
        Ok(subject)
    }

    /// What must hold once the call was repeated.
    pub async fn check(&mut self, operation: Operation, s: &Subject, answer: &Answer) -> Result<()> {
        let (volumes, snapshots) = self.listed().await?;
        let (mut expected, mut kept) = (BTreeMap::from([(s.base(), BASE_SIZE)]), vec![s.kept()]);
        match operation {
            Operation::Delete | Operation::DeleteDirectory | Operation::DeleteSnapshot => {}
            Operation::Snapshot => kept.push(answer.id.clone()),
            Operation::Duplicate | Operation::Restore => drop(expected.insert(answer.id.clone(), BASE_SIZE)),
            Operation::Expand => drop(expected.insert(answer.id.clone(), 2 * SIZE)),
            _ => drop(expected.insert(answer.id.clone(), SIZE)),
        }
        ensure!(volumes == expected, "listed {volumes:?}, expected {expected:?}");
        ensure!(snapshots == kept, "listed {snapshots:?}, expected {kept:?}");
        let mounted = |path: &PathBuf| self.scratch.mounts().iter().filter(|m| *m == path).count();
        match operation {
            Operation::Stage => ensure!(mounted(&s.staging) == 1, "not staged once"),
            Operation::Publish => ensure!(mounted(&s.target) == 1, "not published once"),
            Operation::PublishReadOnly => {
                // A second mount over it where mounts spread.
                ensure!((1..=2).contains(&mounted(&s.target)), "not published once");
                ensure!(
                    fs::write(s.target.join("x"), "x").is_err(),
                    "a read-only publication can be written to"
                );
            }
            Operation::Unpublish => ensure!(mounted(&s.target) == 0 && !s.target.exists(), "still published"),
            Operation::Unstage => ensure!(mounted(&s.staging) == 0, "still staged"),
            _ => {}
        }
        self.check_copy(operation, s, answer).await
    }

    /// A clone and a restore, mounted, have the base's data.
    async fn check_copy(&mut self, operation: Operation, s: &Subject, answer: &Answer) -> Result<()> {
        if !matches!(operation, Operation::Duplicate | Operation::Restore) {
            return Ok(());
        }
        let s = Subject { id: answer.id.clone(), ..s.clone() };
        for step in [Operation::Stage, Operation::Publish] {
            self.repeat(step, s.clone()).await?;
        }
        ensure!(fs::read(s.target.join("data"))? == self.data, "the copy's data differs");
        for step in [Operation::Unpublish, Operation::Unstage] {
            self.repeat(step, s.clone()).await?;
        }
        Ok(())
    }

    /// Takes back what the round made.
    pub async fn clear(&mut self, operation: Operation, s: &Subject, answer: &Answer) -> Result<()> {
        let s = Subject { id: answer.id.clone(), ..s.clone() };
        let steps: &[Operation] = match operation {
            Operation::Snapshot => &[Operation::DeleteSnapshot],
            Operation::DeleteSnapshot => &[],
            Operation::Attach => &[Operation::Detach, Operation::Delete],
            _ if operation.creates() || operation.needs_volume() => {
                &[Operation::Unpublish, Operation::Unstage, Operation::Delete]
            }
            _ => &[],
        };
        for step in steps {
            self.repeat(*step, s.clone()).await?;
        }
        let _ = fs::remove_dir(&s.staging);
        let _ = fs::remove_dir(s.staging.parent().context("no parent")?);
        Ok(())
    }

    /// What must hold between rounds: only the base and the kept snapshot, and nothing of them has changed.
    pub async fn check_rest(&mut self) -> Result<()> {
        let (volumes, snapshots) = self.listed().await?;
        ensure!(volumes.len() == 1 && snapshots == [self.base().kept()], "{volumes:?}, {snapshots:?}");
        let loops = usize::from(!matches!(self.kind, Kind::Nfs(..)));
        ensure!(self.scratch.loops().len() == loops, "loop devices: {:?}", self.scratch.loops());
        match self.kind {
            Kind::Nfs(..) => self.check_directories()?,
            Kind::Local => self.check_files()?,
            Kind::Rbd(ceph) => self.check_images(ceph)?,
        }
        ensure!(fs::read(self.base_file())? == self.data, "the base volume's data has changed");
        self.still_writable().await
    }

    /// The mapped image is a mount, too.
    fn check_images(&self, ceph: &Ceph) -> Result<()> {
        ensure!(self.scratch.mounts().len() == 3, "mounts: {:?}", self.scratch.mounts());
        let place = self.home.trim_start_matches("ceph:").trim_end_matches('/');
        let images = ceph.run("rbd", &["ls", place])?;
        // A creation that was cut short leaves its draft to a sweep.
        let rest = images.lines().filter(|name| !name.starts_with("volumectl.making."));
        ensure!(rest.eq(["base", foreign::NAME]), "images: {images}");
        let snapshots = ceph.run("rbd", &["snap", "ls", "--format", "json", &format!("{place}/base")])?;
        let snapshots: serde_json::Value = serde_json::from_str(&snapshots)?;
        // A clone that was cut short leaves its snapshot to a sweep.
        let names = snapshots.as_array().into_iter().flatten().filter_map(|s| s["name"].as_str());
        let names: Vec<_> = names.filter(|name| !name.starts_with("volumectl.clone.")).collect();
        ensure!(names == ["kept"], "snapshots of base: {names:?}");
        Ok(())
    }

    /// The share's own mount is one, too.
    fn check_directories(&self) -> Result<()> {
        ensure!(self.scratch.mounts().len() == 3, "mounts: {:?}", self.scratch.mounts());
        let mut names: Vec<_> = fs::read_dir(&self.volumes)?.flatten().map(|e| e.file_name()).collect();
        names.sort();
        ensure!(names == [".volumectl", "base", foreign::NAME], "{names:?}");
        foreign::check(&self.volumes)?;
        let intents = Scratch::tree(&self.volumes.join(".volumectl/intents"));
        ensure!(intents.is_empty(), "intents: {intents:?}");
        Ok(())
    }

    fn check_files(&self) -> Result<()> {
        ensure!(self.scratch.mounts().len() == 2, "mounts: {:?}", self.scratch.mounts());
        let root = self.scratch.path().join("volumes");
        for dir in ["tmp", "trash"] {
            let left = Scratch::tree(&root.join(".volumectl").join(dir));
            ensure!(left.is_empty(), "{dir} has {left:?}");
        }
        let mut names: Vec<_> = fs::read_dir(&root)?.flatten().map(|e| e.file_name()).collect();
        names.sort();
        ensure!(names == [".volumectl", "base", foreign::NAME], "{names:?}");
        foreign::check(&root)?;
        let frozen = Scratch::tree(&self.scratch.path().join("state/frozen"));
        ensure!(frozen.is_empty(), "markers of frozen file systems: {frozen:?}");
        Ok(())
    }

    /// The base volume takes a write: no freeze was left. On a thread, so that a frozen one cannot hang the test.
    async fn still_writable(&self) -> Result<()> {
        let (path, begun) = (self.base_file().with_file_name("written"), Instant::now());
        let write = tokio::task::spawn_blocking(move || {
            fs::write(&path, "now").and_then(|()| fs::remove_file(&path))
        });
        let done = tokio::time::timeout(Duration::from_secs(15), write).await;
        done.with_context(|| format!("the base volume is frozen after {} s", begun.elapsed().as_secs()))???;
        Ok(())
    }

    async fn listed(&mut self) -> Result<(BTreeMap<String, i64>, Vec<String>)> {
        let mut controller = self.clients().await?.controller;
        let volumes = controller.list_volumes(pb::ListVolumesRequest::default()).await?.into_inner().entries;
        let snapshots =
            controller.list_snapshots(pb::ListSnapshotsRequest::default()).await?.into_inner().entries;
        let volume = |v: pb::Volume| (v.volume_id, v.capacity_bytes);
        Ok((
            volumes.into_iter().filter_map(|e| e.volume).map(volume).collect(),
            snapshots.into_iter().filter_map(|e| e.snapshot).map(|s| s.snapshot_id).collect(),
        ))
    }

    /// Everything is taken back, and nothing is left.
    pub async fn end(mut self) -> Result<()> {
        let base = self.base();
        for step in [Operation::Unpublish, Operation::Unstage, Operation::Delete] {
            self.repeat(step, base.clone()).await?;
        }
        let kept = Subject { id: base.kept(), ..base };
        self.repeat(Operation::DeleteSnapshot, kept).await?;
        let (volumes, snapshots) = self.listed().await?;
        ensure!(volumes.is_empty() && snapshots.is_empty(), "{volumes:?}, {snapshots:?}");
        ensure!(self.scratch.loops().is_empty() && self.scratch.mounts().is_empty());
        if let Kind::Rbd(ceph) = self.kind {
            self.wait_for_purge(ceph).await?;
        }
        let root = self.volumes.clone();
        if let Kind::Nfs(..) = self.kind {
            self.wait_for_sweep().await?;
        }
        let ours = |p: &PathBuf| root.join(p).is_file() && !p.starts_with(foreign::NAME);
        let files: Vec<_> = Scratch::tree(&root).into_iter().filter(ours).collect();
        ensure!(files.is_empty(), "files left: {files:?}");
        ensure!(self.driver.terminate()? == Some(0), "SIGTERM: {}", self.driver.log_tail());
        Ok(())
    }

    /// What killed drivers left half made is found by a sweep, some seconds later.
    async fn wait_for_sweep(&self) -> Result<()> {
        let left =
            || ["tmp", "trash"].map(|dir| Scratch::tree(&self.volumes.join(".volumectl").join(dir))).concat();
        for _ in 0..300 {
            if left().is_empty() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("left: {:?}", left())
    }

    /// What killed drivers left in the trash is found by the next sweep, a minute later at most; drafts of images must have
    /// rested for a minute and a half.
    async fn wait_for_purge(&self, ceph: &Ceph) -> Result<()> {
        let place = self.home.trim_start_matches("ceph:").trim_end_matches('/');
        let mut left = String::new();
        for second in 0..240 {
            if second == 170 {
                // See `forget_ghosts`: what has a watcher is not purged.
                println!("crash test: not purged yet, the OSDs start anew: {left}");
                ceph.restart_osds(3)?;
            }
            left = ceph.run("rbd", &["ls", place])? + &ceph.run("rbd", &["trash", "ls", place])?;
            if left.trim() == foreign::NAME {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        anyhow::bail!("images left: {left}")
    }
}

/// What a sidecar repeats. A client that was killed is a user of its images until the cluster has noticed.
fn may_repeat(status: &tonic::Status) -> bool {
    use tonic::Code::{Aborted, DeadlineExceeded, FailedPrecondition, Unavailable};
    matches!(status.code(), Aborted | Unavailable | DeadlineExceeded)
        || status.code() == FailedPrecondition && is_open_elsewhere(status)
}

fn is_open_elsewhere(status: &tonic::Status) -> bool {
    ["in use by client", "open elsewhere", "still open by"]
        .iter()
        .any(|words| status.message().contains(words))
}
