//! What is not the driver's to remove stays, and what does not come from the service says nothing of what there is.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::proxy::Fault;
use e2e::requests as ask;
use provisioners::cinder::Service;
use serde_json::json;
use tonic::{Code, Request};

use crate::world::World;

/// A5: a volume that an operator or a failed backup left in `error` may hold data: CreateVolume of its name deletes
/// nothing, and says what to do; also in a driver that was started anew.
#[tokio::test(flavor = "multi_thread")]
async fn a5_a_volume_in_error_that_another_call_has_made_is_not_deleted() -> Result<()> {
    let Some(w) = World::new("a5-error").await? else { return Ok(()) };
    let id = w.make("v").await?;
    let (_scratch, driver, second) = w.second().await?;
    for status in ["error", "error_backing-up", "error_extending"] {
        w.set_status(&id, status).await?;
        let again = second.controller.clone().create_volume(World::request("v", &[])).await.map(drop);
        for refused in [
            w.make("v").await.map(drop).err().context("made anew")?,
            again.err().context("made anew")?.into(),
        ] {
            let text = format!("{refused:#}");
            ensure!(
                text.contains(&id) && text.contains(status) && text.contains("--state available"),
                "{text}"
            );
        }
        ensure!(w.own("volumes").await?.len() == 1 && w.show(&id).await?["status"] == status);
    }
    w.set_status(&id, "available").await?;
    ensure!(w.make("v").await? == id);
    driver.stop().await?;
    w.end().await
}

/// A5: the same of a snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a5_a_snapshot_in_error_that_another_call_has_taken_is_not_deleted() -> Result<()> {
    let Some(w) = World::new("a5-snapshot").await? else { return Ok(()) };
    let id = w.make("v").await?;
    let taken = w.snapshot(&id, "s").await?.snapshot_id;
    let set = async |status: &str| {
        let action = json!({"os-reset_status": {"status": status}});
        let admin = w.cloud.bare("admin");
        admin.ask(Service::Volume, &format!("snapshots/{taken}/action"), Some(action)).await.map(drop)
    };
    set("error").await?;
    let refused = w.snapshot(&id, "s").await.err().context("taken anew")?;
    ensure!(refused.code() == Code::FailedPrecondition && refused.message().contains(&taken), "{refused}");
    ensure!(w.own("snapshots").await?.len() == 1);
    set("available").await?;
    ensure!(w.snapshot(&id, "s").await?.snapshot_id == taken);
    w.end().await
}

/// A5: pages of a gateway, whatever their status, are no word on what exists: nothing is gone, and nothing is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a5_a_gateways_pages_do_not_say_what_exists() -> Result<()> {
    let Some(w) = World::new("a5-gateway").await? else { return Ok(()) };
    let (id, attached) = (w.make("v").await?, w.make("w").await?);
    w.attach(&attached).await?;
    for i in 0..2000 {
        let status = [404, 410, 409, 401, 200, 403, 302][i % 7];
        w.volumes.fault("*", "/", 1, Fault::Page(status));
        w.compute.fault("*", "/", 1, Fault::Page(status));
    }
    let mut controller = w.clients.controller.clone();
    let get = async {
        let request = pb::ControllerGetVolumeRequest { volume_id: id.clone() };
        controller.controller_get_volume(request).await.map(drop)
    };
    let mut lister = w.clients.controller.clone();
    let list = async { lister.list_volumes(pb::ListVolumesRequest::default()).await.map(drop) };
    let create = async { w.create(World::request("x", &[])).await.map(drop) };
    let (deleted, got, detached, listed, made) =
        tokio::join!(w.delete(&id), get, w.detach(&attached), list, create);
    for (what, answer) in
        [("delete", deleted), ("get", got), ("detach", detached), ("list", listed), ("create", made)]
    {
        let code = answer.err().map(|status| status.code());
        ensure!(code == Some(Code::Unavailable), "{what}: {code:?}");
    }
    w.volumes.clear();
    w.compute.clear();
    ensure!(w.show(&id).await?["status"] == "available" && w.show(&attached).await?["status"] == "in-use");
    ensure!(w.own("volumes").await?.len() == 2);
    // One in the middle of work is passed over.
    for part in ["/volumes/", "/os-volume_attachments"] {
        w.volumes.fault("*", part, 1, Fault::Page(404));
        w.compute.fault("*", part, 1, Fault::Page(404));
    }
    w.detach(&attached).await?;
    w.delete(&id).await?;
    w.end().await
}

/// B11: a volume of which the service says nothing but errors keeps no other waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn b11_one_volumes_error_keeps_no_other_waiting() -> Result<()> {
    let Some(w) = World::new("b11").await? else { return Ok(()) };
    let id = w.make("v").await?;
    w.attach(&id).await?;
    // Nova says that it does it, and does nothing: the call waits.
    w.compute.fault("DELETE", "/os-volume_attachments", 1, Fault::Answer(202, 0));
    let (mut controller, request) = (w.clients.controller.clone(), ask::detach(&id, &w.server));
    let waiting = tokio::spawn(async move {
        let mut request = Request::new(request);
        request.set_timeout(Duration::from_secs(50));
        controller.controller_unpublish_volume(request).await
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    w.volumes.fault("GET", &format!("/volumes/{id}"), 100_000, Fault::Answer(500, 0));
    tokio::time::sleep(Duration::from_secs(4)).await;
    for i in 0..3 {
        let begun = Instant::now();
        let mut request = Request::new(World::request(&format!("w-{i}"), &[]));
        request.set_timeout(Duration::from_secs(30));
        w.clients.controller.clone().create_volume(request).await?;
        println!("made beside it in {:?}", begun.elapsed());
    }
    ensure!(!waiting.is_finished(), "{:?}", waiting.await);
    w.volumes.clear();
    let body = World::request("w-0", &[]);
    w.create(body).await?;
    w.bare().delete(Service::Compute, &format!("servers/{}/os-volume_attachments/{id}", w.server)).await?;
    waiting.await??;
    w.end().await
}

/// A3: a note of how a volume is published that is damaged, or of a newer version, is named and never passed over; the
/// volume can be detached all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a3_a_note_of_a_publication_that_cannot_be_read_is_refused_by_name() -> Result<()> {
    const KEY: &str = "volumectl.published";
    let Some(w) = World::new("a3-published").await? else { return Ok(()) };
    let id = w.make("v").await?;
    let notes = [
        (r#"{"schema":2,"kind":"Published","where":"elsewhere"}"#, Code::FailedPrecondition),
        (r#"{"server":"#, Code::DataLoss),
    ];
    for (note, code) in notes {
        let body = json!({"metadata": {KEY: note}});
        w.bare().ask(Service::Volume, &format!("volumes/{id}/metadata"), Some(body)).await?;
        let refused = w.attach(&id).await.err().with_context(|| format!("attached with {note}"))?;
        ensure!(refused.code() == code && refused.message().contains(KEY), "{note}: {refused}");
        ensure!(w.show(&id).await?["status"] == "available");
    }
    let unset = format!("volumes/{id}/metadata/{KEY}");
    w.bare().delete(Service::Volume, &unset).await?;
    w.attach(&id).await?;
    let body = json!({"metadata": {KEY: "x"}});
    w.bare().ask(Service::Volume, &format!("volumes/{id}/metadata"), Some(body)).await?;
    let again = w.attach(&id).await.err().context("published again by a note that cannot be read")?;
    ensure!(again.message().contains(KEY), "{again}");
    w.detach(&id).await?;
    let shown = w.show(&id).await?;
    ensure!(shown["status"] == "available" && shown["metadata"][KEY] == "x", "{shown}");
    w.delete(&id).await?;
    w.end().await
}
