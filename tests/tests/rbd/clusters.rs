//! Several clusters, of which one is dead.

use std::fs;

use anyhow::{Result, ensure};
use csi_proto::v1 as pb;
use e2e::clients::Clients;
use e2e::drivers::InProcess;
use tonic::Code;

use super::world::World;

/// What the others have is shown; when nobody answers, that is the answer, and never an empty list.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_goes_without_a_cluster_that_is_dead() -> Result<()> {
    let Some(w) = World::new("without", "").await? else { return Ok(()) };
    let id = w.make("here").await?;
    let snapshot = w.snapshot(&id, "here").await?.snapshot_id;
    let dir = w.scratch.path().join("beside");
    fs::create_dir(&dir)?;
    let dead = dir.join("dead.conf");
    fs::write(&dead, "[global]\nmon_host = 127.0.0.1:1\n")?;
    let of_dead = format!("{{clusterID: a-dead, cephConf: {}, pools: [rbd]}}", dead.display());
    let text = w.ceph.config_in(&dir, "rbd", &w.namespace, &w.namespace, "");
    // A call's time is shared: one that is short still has some for the clusters that answer.
    let beside = text.replace("clusters: [", &format!("callTimeoutSeconds: 6\n    clusters: [{of_dead}, "));
    let driver = InProcess::start(&beside).await?;
    let mut c = driver.clients().await?.controller;
    let volumes = c.list_volumes(pb::ListVolumesRequest::default()).await?.into_inner();
    let ids: Vec<_> =
        volumes.entries.iter().filter_map(|e| Some(e.volume.as_ref()?.volume_id.as_str())).collect();
    ensure!(ids == [id.as_str()], "volumes: {ids:?}");
    let snapshots = c.list_snapshots(pb::ListSnapshotsRequest::default()).await?.into_inner();
    let ids: Vec<_> =
        snapshots.entries.iter().filter_map(|e| Some(e.snapshot.as_ref()?.snapshot_id.as_str())).collect();
    ensure!(ids == [snapshot.as_str()], "snapshots: {ids:?}");
    let told = driver.metric("volumectl_csi_rbd_clusters_in_trouble")?;
    ensure!(told.len() == 1 && told[0].ends_with(" 1.0"), "the gauge says so: {told:?}");
    drop(driver);

    let from = text.find("clusters: [").unwrap_or_default();
    let to = text[from..].find('\n').map_or(text.len(), |end| from + end);
    let alone = format!("{}clusters: [{of_dead}]{}", &text[..from], &text[to..]);
    let driver = InProcess::start(&alone).await?;
    let mut c = Clients::lazy(&driver.socket)?.controller;
    for answer in [
        c.list_volumes(pb::ListVolumesRequest::default()).await.map(drop),
        c.list_snapshots(pb::ListSnapshotsRequest::default()).await.map(drop),
    ] {
        let status = answer.err();
        ensure!(status.as_ref().is_some_and(|s| s.code() == Code::Unavailable), "nobody answers: {status:?}");
    }
    Ok(())
}
