//! Volumes for readers on several nodes (ReadOnlyMany), made from a snapshot of a volume in use.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use csi_proto::v1 as pb;
use e2e::clients::{Clients, repeated};
use e2e::requests::{self as ask, MIB};
use pb::volume_capability::access_mode::Mode;

use super::safety::second;
use super::world::World;

/// What kubelet would wait.
const PATIENCE: Duration = Duration::from_secs(120);

fn directory(w: &World, name: &str) -> Result<PathBuf> {
    let path = w.scratch.path().join(name);
    std::fs::create_dir_all(&path)?;
    Ok(path)
}

/// A volume that is a copy of one in use, with a file in it.
async fn copy_of_one_in_use(w: &World, fs: &str, staging: &Path) -> Result<[String; 2]> {
    let source = w.create(ask::create(&format!("source-{fs}"), 300 * MIB, ask::mount(fs))).await?;
    w.clients.node.clone().node_stage_volume(ask::stage(&source, staging, ask::mount(fs))).await?;
    let file = staging.join("file");
    std::fs::write(&file, b"written in use")?;
    std::fs::File::open(&file)?.sync_all()?;
    let snapshot = w.snapshot(&source, &format!("snapshot-{fs}")).await?.snapshot_id;
    let readers = ask::with_mode(&ask::mount(fs), Mode::MultiNodeReaderOnly);
    let mut request = ask::create(&format!("copy-{fs}"), 300 * MIB, readers);
    request.volume_content_source = ask::from_snapshot(&snapshot);
    let copy = w.create(request).await?;
    w.clients.controller.clone().delete_snapshot(ask::delete_snapshot(&snapshot)).await?;
    Ok([source, copy])
}

/// Stages a volume as kubelet does: again until it is there.
async fn staged(clients: &Clients, id: &str, staging: &Path, fs: &str) -> Result<()> {
    let readers = ask::with_mode(&ask::mount(fs), Mode::MultiNodeReaderOnly);
    let request = ask::stage(id, staging, readers);
    let mut node = clients.node.clone();
    repeated(PATIENCE, async || node.node_stage_volume(request.clone()).await).await?;
    ensure!(std::fs::read(staging.join("file"))? == b"written in use");
    ensure!(std::fs::write(staging.join("new"), b"x").is_err(), "it is read-only");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_volume_in_use_is_read_on_two_nodes() -> Result<()> {
    let Some(w) = World::new("readers", "    attach: false\n").await? else { return Ok(()) };
    let (_driver, other) = second(&w, "node-2", "    attach: false\n").await?;
    for fs in ["ext4", "xfs"] {
        let at_source = directory(&w, &format!("kubelet/{fs}/source"))?;
        let here = directory(&w, &format!("kubelet/{fs}/copy"))?;
        let there = directory(&w, &format!("node-2/kubelet/{fs}/copy"))?;
        let [source, copy] = copy_of_one_in_use(&w, fs, &at_source).await?;
        // Both find a journal that has to be replayed; one does it, and both read.
        let (a, b) = tokio::join!(staged(&w.clients, &copy, &here, fs), staged(&other, &copy, &there, fs));
        a?;
        b?;
        w.clients.node.clone().node_unstage_volume(ask::unstage(&copy, &here)).await?;
        staged(&w.clients, &copy, &here, fs).await?;
        w.clients.node.clone().node_unstage_volume(ask::unstage(&copy, &here)).await?;
        other.node.clone().node_unstage_volume(ask::unstage(&copy, &there)).await?;
        w.clients.node.clone().node_unstage_volume(ask::unstage(&source, &at_source)).await?;
        w.delete(&copy).await?;
        w.delete(&source).await?;
    }
    Ok(())
}
