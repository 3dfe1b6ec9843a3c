//! What interrupted creations have left is removed, and nothing else: not what is completed or made anew in that moment.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::requests as ask;
use tonic::Code;

use super::safety::second;
use super::world::{SIZE, World};

/// Two controllers make one volume from a snapshot at once, as when one replaces the other. The volume that either has
/// answered is there afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_controllers_that_make_one_volume_none_loses_it() -> Result<()> {
    let Some(w) = World::new("both", "").await? else { return Ok(()) };
    let (_driver, other) = second(&w, "node-2", "").await?;
    let source = w.make("source").await?;
    let snapshot = w.snapshot(&source, "source").await?.snapshot_id;
    for round in 0..25 {
        let name = format!("copy-{round}");
        let mut request = ask::create(&name, SIZE, ask::mount("ext4"));
        request.volume_content_source = ask::from_snapshot(&snapshot);
        let make = async |clients: &e2e::clients::Clients| -> Result<String> {
            for _ in 0..50 {
                match clients.controller.clone().create_volume(request.clone()).await {
                    Ok(made) => return Ok(made.into_inner().volume.context("no volume")?.volume_id),
                    Err(status) => {
                        ensure!(
                            matches!(status.code(), Code::Unavailable | Code::Aborted),
                            "{name}: {status}"
                        );
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
            anyhow::bail!("{name} was not made in fifty tries")
        };
        let both = async |clients: &e2e::clients::Clients| -> Result<String> {
            let id = make(clients).await?;
            // What was answered is there at once, whatever the other one is at.
            w.rbd(&["image-meta", "get", &w.spec(&name), "volumectl.volume"])
                .with_context(|| format!("round {round}: {id} was answered"))?;
            Ok(id)
        };
        let (a, b) = tokio::join!(both(&w.clients), both(&other));
        ensure!(a? == b?);
        w.delete(&format!("ceph:{}", w.spec(&name))).await?;
    }
    w.clients.controller.clone().delete_snapshot(ask::delete_snapshot(&snapshot)).await?;
    w.delete(&source).await
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
