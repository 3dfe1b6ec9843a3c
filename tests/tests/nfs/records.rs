//! Records that are changed: by two drivers at once, of volumes of before, of volumes that are deleted meanwhile.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::nfs::Nfs;
use e2e::requests::{self as ask, MIB};
use e2e::scratch::Scratch;
use serde_json::Value;
use tonic::Code;

use crate::safety::{on_disk, replace};
use crate::world::{SIZE, World};

async fn modify(w: &World, id: &str, policy: &str) -> Result<(), tonic::Status> {
    let request = pb::ControllerModifyVolumeRequest {
        volume_id: id.into(),
        mutable_parameters: [("onDelete".to_owned(), policy.to_owned())].into(),
        ..Default::default()
    };
    w.clients.controller.clone().controller_modify_volume(request).await.map(drop)
}

async fn grow(w: &World, id: &str, bytes: i64) -> Result<i64, tonic::Status> {
    let answer = w.clients.controller.clone().controller_expand_volume(ask::expand(id, bytes)).await?;
    Ok(answer.into_inner().capacity_bytes)
}

fn record(w: &World, name: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(w.own("volumes").join(format!("{name}.json")))?)?)
}

/// Two drivers on one share, each by its own way.
async fn two(server: &Nfs, ways: (&str, &str)) -> Result<(World, World)> {
    let (share, dir) = server.share("two-drivers")?;
    let one = World::at(server, share.clone(), dir.clone(), ways.0).await?;
    Ok((one, World::at(server, share, dir, ways.1).await?))
}

/// Of two drivers that grow and modify one volume at the same moment neither loses what the other has answered, by whatever
/// version they get at the share.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_drivers_that_change_one_volume_lose_nothing() -> Result<()> {
    let Some(server) = Nfs::shared("two-drivers")? else { return Ok(()) };
    let by = |version: &str| format!(", nfsVersion: \"{version}\"");
    let mount = ", client: mount".to_owned();
    for ways in [(by("3"), by("4.1")), (by("4.2"), by("4.2")), (mount.clone(), mount)] {
        let (one, two) = two(server, (&ways.0, &ways.1)).await?;
        let id = one.make("v").await?;
        for round in 1..=30 {
            let (size, policy) = (SIZE + 2 * round * MIB, if round % 2 == 0 { "delete" } else { "retain" });
            let (grown, modified) = tokio::join!(grow(&one, &id, size), modify(&two, &id, policy));
            ensure!(grown? == size);
            modified?;
            let now = record(&one, "v")?;
            ensure!(now["capacity"].as_i64() == Some(size), "{ways:?}, round {round}: {now}");
            ensure!(now["modified"]["onDelete"] == policy, "{ways:?}, round {round}: {now}");
            // The larger of two sizes stays.
            let (a, b) = tokio::join!(grow(&one, &id, size), grow(&two, &id, size + MIB));
            let (a, b) = (a?, b?);
            ensure!(a >= size && b == size + MIB, "{ways:?}, round {round}: {a} and {b} of {size}");
            ensure!(record(&one, "v")?["capacity"].as_i64() == Some(size + MIB), "{ways:?}, {round}");
        }
        modify(&two, &id, "delete").await?;
        one.delete(&id).await?;
        one.until_clean().await?;
        ensure!(one.ids().await?.is_empty() && one.names()?.is_empty());
    }
    Ok(())
}

/// A record does not come back that one driver deletes while the other changes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_volume_that_grows_while_another_driver_deletes_it_stays_deleted() -> Result<()> {
    let Some(server) = Nfs::shared("grow-deleted")? else { return Ok(()) };
    let (one, two) = two(server, (", nfsVersion: \"3\"", ", nfsVersion: \"4.2\"")).await?;
    for round in 0..40 {
        let id = one.make(&format!("v{round}")).await?;
        let (grown, deleted) = tokio::join!(grow(&one, &id, 2 * SIZE), two.delete(&id));
        deleted?;
        let good = |error: &tonic::Status| [Code::NotFound, Code::Unavailable].contains(&error.code());
        ensure!(grown.as_ref().err().is_none_or(good), "{grown:?}");
        ensure!(one.ids().await?.is_empty(), "round {round}: {:?}, {grown:?}", one.ids().await?);
    }
    one.until_clean().await
}

/// The record of a volume that was made before handles were kept gets one as soon as it is written again, and a stranger's
/// directory that then comes to have the volume's number is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_before_is_known_by_its_handle_when_its_record_is_written() -> Result<()> {
    let scratch = Scratch::new()?;
    let Some(server) = on_disk("before", &scratch)? else { return Ok(()) };
    let mut same = false;
    for (version, by_growth) in [(", nfsVersion: \"3\"", true), (", nfsVersion: \"4.1\"", false)] {
        let mut w = World::on(&server, "before", version).await?;
        let id = w.make("v").await?;
        w.stop().await?;
        let mut old = record(&w, "v")?;
        let proof = old.as_object_mut().and_then(|fields| fields.remove("proof")).context("no proof")?;
        fs::write(w.own("volumes/v.json"), serde_json::to_vec_pretty(&old)?)?;
        World::settle().await;
        w.restart().await?;
        if by_growth {
            grow(&w, &id, 2 * SIZE).await?;
        } else {
            modify(&w, &id, "archive").await?;
        }
        World::settle().await;
        ensure!(record(&w, "v")?["proof"] == proof, "{}", record(&w, "v")?);
        same |= replace(&w.dir.join("v"))?;
        World::settle().await;
        w.delete(&id).await?;
        w.until_clean().await?;
        ensure!(fs::read_to_string(w.dir.join("v/precious"))? == "a stranger's");
    }
    if !same {
        e2e::skip("before", "this file system gave no number twice");
    }
    Ok(())
}
