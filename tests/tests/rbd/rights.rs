//! Users who may not do or see everything, and rights that change while the driver runs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use csi_proto::v1 as pb;
use e2e::contract::refused;
use e2e::drivers::InProcess;
use tonic::Code;

use super::faults::{by_secrets, request};
use super::world::World;

/// How long new rights may take to count.
const PATIENCE: Duration = Duration::from_secs(90);

/// Gives a user these rights at the storage daemons; its key.
fn user(w: &World, name: &str, osd: &str) -> Result<String> {
    let name = format!("client.{name}");
    let caps = ["mon", "profile rbd", "mgr", "profile rbd", "osd", osd];
    w.ceph.run("ceph", &["auth", "get-or-create", &name])?;
    w.ceph.run("ceph", &[&["auth", "caps", &name][..], &caps].concat())?;
    Ok(w.ceph.run("ceph", &["auth", "get-key", &name])?.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_change_count_without_a_restart() -> Result<()> {
    let Some(w) = World::new("changed-rights", "").await? else { return Ok(()) };
    let driver = by_secrets(&w).await?;
    let mut c = driver.clients().await?.controller;
    let key = user(&w, "csi-changed", "allow r")?;
    let made = c.create_volume(request("changed", "csi-changed", &key)).await;
    refused(made, Code::PermissionDenied, &["client.csi-changed", "profile rbd"])?;
    user(&w, "csi-changed", "profile rbd")?;
    let begun = Instant::now();
    loop {
        match c.create_volume(request("changed", "csi-changed", &key)).await {
            Ok(_) => return driver.stop().await,
            Err(status) => ensure!(status.code() == Code::PermissionDenied, "{status}"),
        }
        ensure!(begun.elapsed() < PATIENCE, "the new rights do not count");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Lists as a user with these rights, without a word on pools in the configuration.
async fn listed(w: &World, name: &str, osd: &str) -> Result<Result<Vec<String>, tonic::Status>> {
    let dir = w.scratch.path().join(name);
    std::fs::create_dir_all(&dir)?;
    let key = dir.join("key");
    std::fs::write(&key, user(w, name, osd)?)?;
    let text = w.ceph.config_in(&dir, "rbd", &w.namespace, &w.namespace, "");
    let (conf, pools) = (format!("cephConf: {}", w.ceph.conf().display()), ", pools: [rbd]");
    ensure!(text.contains(&conf) && text.contains(pools), "{text}");
    let user = format!("monitors: ['{}'], user: {name}, keyFile: {}", w.ceph.monitors()?, key.display());
    let driver = InProcess::start(&text.replace(&conf, &user).replace(pools, "")).await?;
    let mut c = driver.clients().await?.controller;
    let volumes = c.list_volumes(pb::ListVolumesRequest::default()).await;
    driver.stop().await?;
    let ids = |list: pb::ListVolumesResponse| {
        list.entries.into_iter().filter_map(|it| it.volume).map(|it| it.volume_id).collect()
    };
    Ok(volumes.map(|list| ids(list.into_inner())))
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_have_what_the_user_may_see() -> Result<()> {
    let Some(w) = World::new("seen", "").await? else { return Ok(()) };
    let id = w.make("seen").await?;
    let other = w.ceph.pool("seen")?;
    let of_namespace = format!("profile rbd pool=rbd namespace={}", w.namespace);
    for (name, osd) in
        [("csi-all", "profile rbd"), ("csi-pool", "profile rbd pool=rbd"), ("csi-namespace", &of_namespace)]
    {
        let volumes = listed(&w, name, osd).await??;
        ensure!(volumes.contains(&id), "{name}: {volumes:?}");
    }
    let elsewhere = listed(&w, "csi-other", &format!("profile rbd pool={other}")).await??;
    ensure!(elsewhere.is_empty(), "{elsewhere:?}");
    let nothing = listed(&w, "csi-none", "profile rbd pool=nonexistent").await?;
    w.ceph.remove_pool(&other)?;
    refused(nothing.map(tonic::Response::new), Code::PermissionDenied, &["client.csi-none"])
}
