//! What must hold when all pods have ended and all servers are well.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use csi_proto::v1 as pb;
use e2e::clients::Clients;
use e2e::control;
use e2e::scratch::Scratch;

use crate::foreign;
use crate::world::{BACKENDS, OWNER, World};

/// How long the background's work may take.
const SETTLES: Duration = Duration::from_secs(240);

/// Waits until nothing is left; at the end of the time what is left is the error. A call that fails is made again.
async fn until_empty(what: &str, left: impl AsyncFn() -> Result<Vec<String>>) -> Result<()> {
    let begun = Instant::now();
    loop {
        let all = left().await.unwrap_or_else(|error| vec![format!("{error:#}")]);
        if all.is_empty() {
            return Ok(());
        }
        ensure!(begun.elapsed() < SETTLES, "{what} left: {all:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// No volume, mapping, mount, loop device, lock, blocklist entry, disk or process is left.
pub async fn nothing_is_left(world: &World) -> Result<()> {
    for backend in BACKENDS {
        until_empty(&format!("{backend}: volumes"), async || listed(world, backend).await).await?;
    }
    on_the_node(world)?;
    notes_of_cinder(world).await?;
    until_empty("images", async || images(world)).await?;
    until_empty("directories", async || directories(world)).await?;
    until_empty("local files", async || Ok(local_files(world))).await?;
    let cinder = async || {
        let volumes = world.cloud.owned("volumes", OWNER).await?;
        let snapshots = world.cloud.owned("snapshots", OWNER).await?;
        Ok(volumes.into_iter().chain(snapshots).map(|it| it.to_string()).collect())
    };
    until_empty("Cinder's volumes", cinder).await?;
    until_empty("fences", async || fences(world)).await?;
    world.foreign.is_untouched(&world.ceph)?;
    ensure!(world.terminate()? == [Some(0); 2], "SIGTERM: {}", world.log_tail());
    let processes = processes();
    ensure!(processes.is_empty(), "processes left: {processes:?}");
    Ok(())
}

async fn listed(world: &World, backend: &str) -> Result<Vec<String>> {
    let mut controller = Clients::ready(&world.socket(backend)).await?.controller;
    let volumes = controller.list_volumes(pb::ListVolumesRequest::default()).await?.into_inner().entries;
    let snapshots =
        controller.list_snapshots(pb::ListSnapshotsRequest::default()).await?.into_inner().entries;
    let volumes = volumes.into_iter().filter_map(|entry| Some(entry.volume?.volume_id));
    Ok(volumes.chain(snapshots.into_iter().filter_map(|entry| Some(entry.snapshot?.snapshot_id))).collect())
}

/// Mounts, loop devices, mappings, disks, and what the driver writes down of them.
fn on_the_node(world: &World) -> Result<()> {
    let root = world.scratch.path().join("volumes");
    let mounts: Vec<_> = world.scratch.mounts().into_iter().filter(|mount| *mount != root).collect();
    ensure!(mounts.is_empty(), "mounts left: {mounts:?}");
    let ours = |file: &str| !file.ends_with("/root.img") && !file.contains("/foreign/");
    let loops: Vec<_> = world.scratch.loops().into_iter().filter(|(_, file)| ours(file)).collect();
    ensure!(loops.is_empty(), "loop devices left: {loops:?}");
    let names = |dir: &str| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let mapped = names("/sys/bus/rbd/devices");
    ensure!(mapped.is_empty(), "mapped images left: {mapped:?}");
    // The guest's own disk, and the one that Nova has booted its server from.
    let disks: Vec<_> = names("/sys/block").into_iter().filter(|name| name.starts_with("vd")).collect();
    ensure!(disks.len() == 2, "disks left: {disks:?}");
    for dir in ["rbd", "frozen"] {
        let left = Scratch::tree(&world.scratch.path().join("state").join(dir));
        ensure!(left.is_empty(), "the state directory's {dir} has {left:?}");
    }
    Ok(())
}

/// What a node notes of Cinder's volumes goes when their disks have gone, an hour later, which is made to be now. What stays
/// is until when the words are used that went with it.
async fn notes_of_cinder(world: &World) -> Result<()> {
    let dir = world.scratch.path().join("state/cinder");
    let notes = || Scratch::tree(&dir).into_iter().filter(|path| !path.ends_with("forgotten.json"));
    for note in notes() {
        let file = fs::File::options().write(true).open(dir.join(note))?;
        file.set_modified(SystemTime::now() - Duration::from_secs(7200))?;
    }
    let mut node = Clients::ready(&world.socket("cinder")).await?.node;
    node.node_get_info(pb::NodeGetInfoRequest {}).await?;
    let left: Vec<_> = notes().collect();
    ensure!(left.is_empty(), "notes of Cinder's volumes left: {left:?}");
    Ok(())
}

/// Images, and what is in the trash; with them go their locks and watchers.
fn images(world: &World) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for namespace in world.ceph.run("rbd", &["namespace", "ls", "rbd", "--format", "json"]).map(|text| {
        let all: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let names = all.as_array().cloned().unwrap_or_default();
        names.iter().filter_map(|it| it["name"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    })? {
        let place = format!("rbd/{namespace}");
        let text =
            world.ceph.run("rbd", &["ls", &place])? + &world.ceph.run("rbd", &["trash", "ls", &place])?;
        left.extend(text.lines().filter(|name| *name != foreign::IMAGE).map(str::to_owned));
    }
    Ok(left)
}

fn directories(world: &World) -> Result<Vec<String>> {
    let share = world.share.display().to_string();
    let found = control::run(&["find", &share, "-mindepth", "1", "-not", "-type", "d"], &[])?;
    let mine = ["-not", "-name", ".volumectl", "-not", "-name", foreign::DIRECTORY];
    let dirs =
        control::run(&[&["find", &share, "-mindepth", "1", "-maxdepth", "1"][..], &mine].concat(), &[])?;
    ensure!(found.code == 0 && dirs.code == 0, "{}{}", found.err, dirs.err);
    let theirs = format!("{share}/{}/", foreign::DIRECTORY);
    let kept = |line: &&str| !line.ends_with(provisioners::nfs::READ_BACK) && !line.starts_with(&theirs);
    Ok(found.out.lines().chain(dirs.out.lines()).filter(kept).map(str::to_owned).collect())
}

fn local_files(world: &World) -> Vec<String> {
    let root = world.scratch.path().join("volumes");
    let ours = |path: &PathBuf| root.join(path).is_file() && !path.starts_with(foreign::DIRECTORY);
    let files = Scratch::tree(&root).into_iter().filter(ours);
    files.map(|path| path.display().to_string()).collect()
}

/// Clients that are fenced. Ceph itself does that to one whose lock is taken from it, such as that of a driver that was
/// killed at its work; here for half a minute (`World::start`).
fn fences(world: &World) -> Result<Vec<String>> {
    let all = world.ceph.ask(&["osd", "blocklist", "ls"])?;
    Ok(all.as_array().into_iter().flatten().map(ToString::to_string).collect())
}

/// Drivers and helpers.
fn processes() -> Vec<String> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = all.filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains("csi-driver") || line.contains("qemu-storage-daemon")).collect()
}
