//! Disks that are plugged while the driver runs, as Nova has QEMU do it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::clients::repeated;
use e2e::contract::refused;
use e2e::control::Disk;
use e2e::drivers::InProcess;
use e2e::join_all;
use e2e::openstack::OpenStack;
use e2e::random::Random;
use e2e::requests::{self as ask, MIB};
use e2e::scratch::Scratch;
use tonic::{Code, Status};

use super::{sys, until};

const MIB_U: u64 = 1 << 20;
/// How long a stage is repeated until its disk has appeared.
const APPEARS: Duration = Duration::from_secs(150);

/// A node's driver; the controller's word on each disk comes from the test.
struct Node {
    clients: e2e::clients::Clients,
    scratch: Scratch,
    _driver: InProcess,
}

impl Node {
    async fn start(test: &str) -> Result<Option<Self>> {
        let Some(cloud) = OpenStack::shared(test)? else { return Ok(None) };
        let scratch = Scratch::new()?;
        let driver = InProcess::start(&cloud.config(test, &cloud.node()?, scratch.path(), "", "")).await?;
        Ok(Some(Self { clients: driver.clients().await?, scratch, _driver: driver }))
    }

    fn staging(&self, id: &str) -> Result<PathBuf> {
        let path = self.scratch.path().join("kubelet").join(id);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// NodeStageVolume of a volume that the controller has attached, of so many bytes.
    async fn stage(&self, id: &str, bytes: u64, fs: &str) -> Result<PathBuf, Status> {
        let staging = self.staging(id).map_err(|e| Status::internal(e.to_string()))?;
        let mut request = ask::stage(id, &staging, ask::mount(fs));
        request.publish_context.insert("bytes".into(), bytes.to_string());
        self.clients.node.clone().node_stage_volume(request).await?;
        Ok(staging)
    }

    /// The same, repeated: the emulator may take a minute to show a disk.
    async fn staged(&self, id: &str, bytes: u64, fs: &str) -> Result<PathBuf, Status> {
        repeated(APPEARS, async || self.stage(id, bytes, fs).await).await
    }

    async fn unstage(&self, id: &str) -> Result<()> {
        let request = ask::unstage(id, &self.staging(id)?);
        self.clients.node.clone().node_unstage_volume(request).await?;
        Ok(())
    }
}

/// A volume's id that no other test has.
fn uuid() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut random = Random::new(NEXT.fetch_add(1, Ordering::Relaxed));
    let (a, b) = (random.next(), random.next());
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xfff,
        b >> 48 & 0xfff,
        b & 0xffff_ffff_ffff
    )
}

/// The name of the disk that is mounted on a path.
fn disk_of(path: &Path) -> Result<String> {
    let table = std::fs::read_to_string("/proc/self/mounts")?;
    let line = table.lines().find(|line| line.contains(&format!(" {} ", path.display())));
    Ok(line.and_then(|line| line.split(' ').next()).context("not mounted")?.to_owned())
}

/// It appears after the call has begun, is found by its serial, formatted, grown while it is mounted, and detached.
async fn lives_its_whole_life(bus: &str, fs: &str) -> Result<()> {
    let Some(node) = Node::start(&format!("life-{bus}-{fs}")).await? else { return Ok(()) };
    let (id, size) = (uuid(), 320 * MIB_U);
    let later = {
        let (id, bus) = (id.clone(), bus.to_owned());
        tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(700));
            Disk::plug(&id, &id, &bus, size)
        })
    };
    let staging = node.staged(&id, size, fs).await?;
    let disk = later.await??;
    std::fs::write(staging.join("data"), "kept")?;
    disk.grow(2 * size)?;
    let request = ask::node_expand(&id, &staging, 640 * MIB);
    let grown = node.clients.node.clone().node_expand_volume(request).await?.into_inner().capacity_bytes;
    ensure!(grown >= 640 * MIB, "{grown}");
    let room = rustix::fs::statvfs(&staging)?;
    ensure!(room.f_blocks * room.f_frsize > size * 3 / 2, "the file system has not grown");
    node.unstage(&id).await?;
    disk.unplug()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_virtio_disk_lives_its_whole_life() -> Result<()> {
    lives_its_whole_life("virtio", "ext4").await?;
    lives_its_whole_life("virtio", "xfs").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scsi_disk_lives_its_whole_life() -> Result<()> {
    lives_its_whole_life("scsi", "ext4").await?;
    lives_its_whole_life("scsi", "xfs").await
}

/// Two disks change places: each volume is still found, and each has its own data.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_used_again_do_not_matter() -> Result<()> {
    let Some(node) = Node::start("names").await? else { return Ok(()) };
    let (ids, size) = ([uuid(), uuid()], 64 * MIB_U);
    // The disks' files outlive their plugs.
    let files = ids.clone().map(|id| e2e::control::server_dir().join(format!("kept-{id}")));
    let mut names = Vec::new();
    for order in [[0, 1], [1, 0]] {
        let mut disks = Vec::new();
        for index in order {
            std::fs::OpenOptions::new().create(true).append(true).open(&files[index])?.set_len(size)?;
            disks.push(Disk::with_file(&ids[index], "virtio", &files[index])?);
        }
        for id in &ids {
            let staging = node.staged(id, size, "ext4").await?;
            names.push(disk_of(&staging)?);
            let data = staging.join("data");
            if order[0] == 0 {
                std::fs::write(&data, id)?;
            }
            ensure!(std::fs::read_to_string(&data)? == *id, "the other volume's disk was taken");
        }
        for id in &ids {
            node.unstage(id).await?;
        }
        for disk in disks {
            disk.unplug()?;
        }
    }
    files.iter().try_for_each(std::fs::remove_file)?;
    Ok(())
}

/// A disk that is smaller than its volume is not touched; neither is one with another serial, nor one of two.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_disk_is_refused() -> Result<()> {
    let Some(node) = Node::start("wrong").await? else { return Ok(()) };
    let (small, other, twice) = (uuid(), uuid(), uuid());
    let _small = Disk::plug(&small, &small, "virtio", 64 * MIB_U)?;
    let _other = Disk::plug(&other, &uuid(), "virtio", 64 * MIB_U)?;
    let _both = [
        Disk::plug(&format!("{twice}-a"), &twice, "virtio", 64 * MIB_U)?,
        Disk::plug(&format!("{twice}-b"), &twice, "scsi", 64 * MIB_U)?,
    ];
    // The kernel has seen them all.
    let seen = |id: &str| provisioners::cinder::disks::with_serial(Path::new("/sys"), id).len();
    until("the disks appear", || Ok(seen(&small) == 1 && seen(&twice) == 2)).await?;
    let answers = tokio::join!(
        node.stage(&small, 128 * MIB_U, "ext4"),
        node.stage(&other, 64 * MIB_U, "ext4"),
        node.stage(&twice, 64 * MIB_U, "ext4"),
    );
    let refused = |answer: Result<PathBuf, Status>, code, words: &[&str]| {
        refused(answer.map(tonic::Response::new), code, words)
    };
    refused(answers.0, Code::Unavailable, &["not touching it"])?;
    refused(answers.1, Code::Unavailable, &["no disk with its serial"])?;
    refused(answers.2, Code::FailedPrecondition, &["have its serial"])?;
    ensure!(node.scratch.mounts().is_empty());
    Ok(())
}

/// Twenty disks that appear at once, on both buses, each to its own volume.
#[tokio::test(flavor = "multi_thread")]
async fn twenty_disks_at_once() -> Result<()> {
    let Some(node) = Node::start("twenty").await? else { return Ok(()) };
    let (ids, size): (Vec<_>, _) = ((0..20).map(|_| uuid()).collect(), 32 * MIB_U);
    let plugging = {
        let ids = ids.clone();
        tokio::task::spawn_blocking(move || {
            let bus = |i: usize| if i.is_multiple_of(2) { "virtio" } else { "scsi" };
            let plug = |(i, id): (usize, &String)| Disk::plug(id, id, bus(i), size);
            ids.iter().enumerate().map(plug).collect::<Result<Vec<_>>>()
        })
    };
    let staged = join_all(ids.iter().map(|id| node.staged(id, size, "ext4")).collect()).await;
    let disks = plugging.await??;
    for (id, staging) in ids.iter().zip(staged) {
        let device = disk_of(&staging.with_context(|| format!("staging {id}"))?)?;
        let block = PathBuf::from("/sys/block").join(device.trim_start_matches("/dev/"));
        let serial = sys(&block.join("serial"));
        let page = std::fs::read(block.join("device/vpd_pg80")).unwrap_or_default();
        let page = String::from_utf8_lossy(page.get(4..).unwrap_or_default()).into_owned();
        ensure!(serial == id[..20] || page.starts_with(id.as_str()), "{device} has {serial}{page}, not {id}");
    }
    for id in &ids {
        node.unstage(id).await?;
    }
    disks.into_iter().try_for_each(Disk::unplug)
}
