//! What interrupted creations have left is removed, and nothing else: not what is completed or made anew in that moment.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::clients::Clients;
use e2e::requests as ask;
use tonic::Code;

use super::safety::second;
use super::world::{SIZE, World};

/// Makes a volume as a sidecar does, again and again; what was answered is there at once by its name, whatever another
/// controller is at.
async fn made(w: &World, clients: &Clients, request: pb::CreateVolumeRequest) -> Result<String> {
    let name = request.name.clone();
    let begun = Instant::now();
    let id = loop {
        match clients.controller.clone().create_volume(request.clone()).await {
            Ok(made) => break made.into_inner().volume.context("no volume")?.volume_id,
            Err(status) => {
                let again = matches!(status.code(), Code::Unavailable | Code::Aborted);
                ensure!(again && begun.elapsed() < Duration::from_secs(60), "{name}: {status}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    w.rbd(&["image-meta", "get", &w.spec(&name), "volumectl.volume"])
        .with_context(|| format!("{id} was answered"))?;
    Ok(id)
}

/// Several controllers make one volume at once, as when one replaces the other. The volume that any of them has answered is
/// there afterwards, and what the others began is not.
#[tokio::test(flavor = "multi_thread")]
async fn of_several_controllers_that_make_one_volume_none_loses_it() -> Result<()> {
    let Some(w) = World::new("both", "").await? else { return Ok(()) };
    let (_successor, successor) = second(&w, "node-2", "").await?;
    let (_third, third) = second(&w, "node-3", "").await?;
    let source = w.make("source").await?;
    let snapshot = w.snapshot(&source, "source").await?.snapshot_id;
    for round in 0..20 {
        let mut request = ask::create(&format!("copy-{round}"), SIZE, ask::mount("ext4"));
        // From a snapshot and empty, in turn.
        request.volume_content_source = if round % 2 == 0 { ask::from_snapshot(&snapshot) } else { None };
        let (a, b, c) = tokio::join!(
            made(&w, &w.clients, request.clone()),
            made(&w, &successor, request.clone()),
            made(&w, &third, request.clone()),
        );
        let (a, b, c) = (a?, b?, c?);
        ensure!(a == b && b == c);
        let (images, _) = w.images()?;
        ensure!(images.iter().all(|name| *name == "source" || *name == request.name), "{images:?}");
        w.delete(&a).await?;
    }
    w.clients.controller.clone().delete_snapshot(ask::delete_snapshot(&snapshot)).await?;
    w.delete(&source).await
}

/// What killed controllers leave under the names of drafts: it is removed when nobody works on it any more, and keeps no
/// volume from its name.
#[tokio::test(flavor = "multi_thread")]
async fn drafts_that_were_left_go_and_others_stay() -> Result<()> {
    let Some(w) = World::new("drafts", "").await? else { return Ok(()) };
    let now = jiff::Timestamp::now().as_second();
    let draft = |ago: i64, of: &str| format!("volumectl.making.{}.0a1b2c3d.{of}", now - ago);
    let (old, young, full) = (draft(200, "old"), draft(0, "young"), draft(200, "full"));
    for name in ["old-draft", &young, "full-draft"] {
        w.rbd(&["create", "--size", "16M", &w.spec(name)])?;
    }
    w.rbd(&["bench", "--io-type", "write", "--io-size", "4K", "--io-total", "4K", &w.spec("full-draft")])?;
    // Killed after it was named, before the directory knew.
    let info: serde_json::Value =
        serde_json::from_str(&w.rbd(&["info", "--format", "json", &w.spec("old-draft")])?)?;
    let id = info["id"].as_str().context("no id")?;
    let named = w.scratch.path().join("id");
    std::fs::write(&named, [&u32::try_from(id.len())?.to_le_bytes()[..], id.as_bytes()].concat())?;
    let rados = |args: &[&str]| w.ceph.run("rados", &[&["-p", "rbd", "-N", &w.namespace], args].concat());
    rados(&["put", "rbd_id.old", &named.display().to_string()])?;
    // From here on a sweep may see them.
    w.rbd(&["rename", &w.spec("full-draft"), &w.spec(&full)])?;
    w.rbd(&["rename", &w.spec("old-draft"), &w.spec(&old)])?;
    let listed = || Ok::<_, anyhow::Error>(w.images()?.0);
    // A controller that starts looks at once.
    let (_driver, _) = second(&w, "node-2", "").await?;
    w.until("the old draft goes", || Ok(!listed()?.contains(&old))).await?;
    ensure!(!rados(&["ls"])?.lines().any(|name| name == "rbd_id.old"), "its name is free");
    let left = listed()?;
    ensure!(left.contains(&young) && left.contains(&full), "{left:?}");
    let volumes =
        w.clients.controller.clone().list_volumes(pb::ListVolumesRequest::default()).await?.into_inner();
    ensure!(volumes.entries.is_empty(), "drafts are no volumes: {volumes:?}");
    Ok(())
}

/// An image that was cut short with its header, and one without: the name is free for the volume, and nothing is left.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_short_makes_room() -> Result<()> {
    let Some(w) = World::new("short", "").await? else { return Ok(()) };
    for (name, header) in [
        ("pvc-0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", true),
        ("pvc-1a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", false),
    ] {
        let spec = w.spec(name);
        w.rbd(&["create", "--size", "16M", &spec])?;
        let image_id = || -> Result<String> {
            let info: serde_json::Value =
                serde_json::from_str(&w.rbd(&["info", "--format", "json", &spec])?)?;
            Ok(info["id"].as_str().context("no id")?.to_owned())
        };
        let id = image_id()?;
        if !header {
            w.ceph.run("rados", &["-p", "rbd", "-N", &w.namespace, "rm", &format!("rbd_header.{id}")])?;
        }
        let volume = w.create(ask::create(name, SIZE, ask::mount("ext4"))).await?;
        let now = image_id()?;
        ensure!(now != id, "it is another image: {now}");
        w.delete(&volume).await?;
        let mut tries = 0;
        while w.ceph.run("rados", &["-p", "rbd", "-N", &w.namespace, "ls"])?.contains(&id) {
            ensure!(tries < 100, "something of image id {id} is left");
            tries += 1;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    let list =
        w.clients.controller.clone().list_volumes(pb::ListVolumesRequest::default()).await?.into_inner();
    ensure!(list.entries.is_empty(), "{list:?}");
    Ok(())
}
