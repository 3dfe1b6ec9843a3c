//! Answers that are lost, late, refused or cut; services that are restarted; servers that vanish. Whatever happens, a
//! repeated call ends with one volume, and no call makes two.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::openstack::OpenStack;
use e2e::proxy::Fault;
use provisioners::cinder::Service;
use serde_json::json;
use tonic::{Code, Status};

use crate::world::World;

/// Makes a call again while its error is one that a sidecar repeats on.
async fn repeated<T, F: Future<Output = Result<T, Status>>>(
    mut call: impl FnMut() -> F,
) -> Result<T, Status> {
    let begun = Instant::now();
    loop {
        match call().await {
            Err(status)
                if [Code::Unavailable, Code::Aborted, Code::DeadlineExceeded].contains(&status.code())
                    && begun.elapsed() < Duration::from_secs(90) =>
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            other => return other,
        }
    }
}

/// The faults that every kind of request meets.
fn all() -> [Fault; 10] {
    [
        Fault::DropAnswer,
        Fault::Truncate,
        Fault::Cut,
        Fault::Answer(500, 0),
        Fault::Answer(503, 0),
        Fault::Answer(503, 1),
        Fault::Answer(429, 1),
        Fault::Answer(413, 1),
        Fault::Answer(401, 0),
        Fault::Delay(Duration::from_millis(700)),
    ]
}

/// O2, D1: CreateVolume's own request meets every fault, and every other request does; there is always one volume.
#[tokio::test(flavor = "multi_thread")]
async fn o2_a_create_that_meets_a_fault_makes_one_volume() -> Result<()> {
    let Some(w) = World::new("create-faults").await? else { return Ok(()) };
    for (i, fault) in all().into_iter().enumerate() {
        let name = format!("fault-{i}");
        w.volumes.forget();
        w.volumes.fault("POST", "/volumes", 1, fault.clone());
        let id =
            repeated(|| w.create(World::request(&name, &[]))).await.with_context(|| format!("{fault:?}"))?;
        ensure!(w.volumes.clear() == 0, "{fault:?} was not met");
        let own = w.own("volumes").await?;
        ensure!(own.len() == 1 && own[0]["id"] == id.volume_id.as_str(), "{fault:?}: {own:?}");
        w.volumes.fault("*", "/volumes", 1, fault.clone());
        let again =
            repeated(|| w.create(World::request(&name, &[]))).await.with_context(|| format!("{fault:?}"))?;
        ensure!(again.volume_id == id.volume_id);
        w.volumes.clear();
        repeated(|| w.delete(&id.volume_id)).await?;
    }
    w.end().await
}

/// Every other operation meets every fault at its own request.
#[tokio::test(flavor = "multi_thread")]
async fn every_operation_survives_every_fault() -> Result<()> {
    let Some(w) = World::new("operation-faults").await? else { return Ok(()) };
    let id = w.make("v").await?;
    let mut gib = 1;
    for fault in all() {
        let text = format!("{fault:?}");
        w.compute.fault("POST", "/os-volume_attachments", 1, fault.clone());
        repeated(|| w.attach(&id)).await.with_context(|| format!("attach: {text}"))?;
        ensure!(w.compute.clear() == 0 && w.show(&id).await?["status"] == "in-use");
        gib += 1;
        w.volumes.fault("POST", "/action", 1, fault.clone());
        repeated(|| w.expand(&id, gib)).await.with_context(|| format!("expand: {text}"))?;
        ensure!(w.volumes.clear() == 0 && w.show(&id).await?["size"] == gib);
        w.volumes.fault("POST", "/snapshots", 1, fault.clone());
        let taken = repeated(|| w.snapshot(&id, "s")).await.with_context(|| format!("snapshot: {text}"))?;
        ensure!(w.volumes.clear() == 0 && w.own("snapshots").await?.len() == 1);
        w.volumes.fault("DELETE", "/snapshots/", 1, fault.clone());
        repeated(|| w.delete_snapshot(&taken.snapshot_id))
            .await
            .with_context(|| format!("delete snapshot: {text}"))?;
        ensure!(w.volumes.clear() == 0 && w.own("snapshots").await?.is_empty());
        w.compute.fault("DELETE", "/os-volume_attachments", 1, fault.clone());
        repeated(|| w.detach(&id)).await.with_context(|| format!("detach: {text}"))?;
        ensure!(w.compute.clear() == 0 && w.show(&id).await?["status"] == "available");
    }
    for fault in all() {
        let other = w.make("d").await?;
        w.volumes.fault("DELETE", "/volumes/", 1, fault.clone());
        repeated(|| w.delete(&other)).await.with_context(|| format!("delete: {fault:?}"))?;
        ensure!(w.volumes.clear() == 0 && w.own("volumes").await?.len() == 1);
    }
    w.end().await
}

/// Half a minute of refusals is waited out where the server asks for it, and no longer than the budget.
#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_obeyed() -> Result<()> {
    let Some(w) = World::new("retry-after").await? else { return Ok(()) };
    w.volumes.forget();
    w.volumes.fault("POST", "/volumes", 1, Fault::Answer(429, 3));
    let begun = Instant::now();
    w.make("v").await?;
    ensure!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    // Notes about the volume are no creations.
    ensure!(w.volumes.count("POST", "/volumes") - w.volumes.count("POST", "/metadata") == 2);
    w.end().await
}

/// A token that is refused in the middle of work is renewed once; the work goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_is_renewed() -> Result<()> {
    let Some(w) = World::new("token").await? else { return Ok(()) };
    let id = w.make("v").await?;
    for part in ["/volumes/", "/detail", "/os-volume_attachments"] {
        w.volumes.fault("*", part, 1, Fault::Answer(401, 0));
        w.compute.fault("*", part, 1, Fault::Answer(401, 0));
    }
    w.attach(&id).await?;
    w.detach(&id).await?;
    w.volumes.clear();
    w.compute.clear();
    // Refused for good is told as that, and is not repeated for ever.
    w.volumes.fault("*", "/", 1000, Fault::Answer(401, 0));
    let error = w.attach(&id).await.err().context("refused")?;
    ensure!(error.code() == Code::PermissionDenied, "{error}");
    w.end().await
}

/// The quota is met in the middle of twenty creations: those that fit are made, the others say so with numbers.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_quota_is_met_in_the_middle() -> Result<()> {
    let Some((_turn, cloud)) = OpenStack::harmed("quota").await? else { return Ok(()) };
    let w = World::on(cloud, "quota", "").await?;
    let used = w.bare().ask(Service::Volume, "limits", None).await?["limits"]["absolute"]["totalVolumesUsed"]
        .as_i64()
        .context("used")?;
    cloud.set_quota(used + 12).await?;
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..20 {
        let mut controller = w.clients.controller.clone();
        calls.spawn(async move { controller.create_volume(World::request(&format!("q-{i}"), &[])).await });
    }
    let (mut made, mut refused) = (0, Vec::new());
    while let Some(call) = calls.join_next().await {
        match call? {
            Ok(_) => made += 1,
            Err(status) => refused.push(status),
        }
    }
    ensure!(made == 12, "{made} were made");
    for status in &refused {
        ensure!(
            status.code() == Code::ResourceExhausted && status.message().contains(&(used + 12).to_string()),
            "{status}"
        );
    }
    cloud.set_quota(5000).await?;
    w.end().await
}

/// Nova's own limit, `max_disk_devices_to_attach`: it answers with 403, which is no matter of rights.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn novas_own_limit_of_disks_is_exhausted() -> Result<()> {
    let Some((_turn, cloud)) = OpenStack::harmed("nova-limit").await? else { return Ok(()) };
    let w = World::on(cloud, "nova-limit", "").await?;
    let server = cloud.server("few-disks").await?;
    let (first, second) = (w.make("first").await?, w.make("second").await?);
    cloud.configure("nova", "[compute]\nmax_disk_devices_to_attach = 2\n")?;
    repeated(|| w.attach_to(&first, &server)).await?;
    let error = repeated(|| w.attach_to(&second, &server)).await.err().context("a third disk")?;
    cloud.configure("nova", "[compute]\nmax_disk_devices_to_attach = -1\n")?;
    ensure!(
        error.code() == Code::ResourceExhausted
            && error.message().contains("maximum allowed number of disk devices (2)"),
        "{error}"
    );
    let request = e2e::requests::detach(&first, &server);
    w.clients.controller.clone().controller_unpublish_volume(request).await?;
    w.bare().delete(Service::Compute, &format!("servers/{server}")).await?;
    w.end().await
}

/// The services are killed and started again: calls that meet it are repeated, and nothing is doubled.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn services_are_restarted_under_load() -> Result<()> {
    let Some((_turn, cloud)) = OpenStack::harmed("restart").await? else { return Ok(()) };
    let w = World::on(cloud, "restart", "").await?;
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..6 {
        let controller = w.clients.controller.clone();
        calls.spawn(async move {
            let create = || {
                let mut controller = controller.clone();
                async move { controller.create_volume(World::request(&format!("r-{i}"), &[])).await }
            };
            repeated(create).await
        });
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    tokio::task::spawn_blocking(move || -> Result<()> {
        for service in ["cinder", "keystone", "nova"] {
            cloud.tell(&format!("signal {service} KILL"))?;
            cloud.tell(&format!("start {service}"))?;
        }
        Ok(())
    })
    .await??;
    // What Cinder was making when it was killed, it does not make any more: its own start gives it the status error.
    let begun = Instant::now();
    while !calls.is_empty() {
        match tokio::time::timeout(Duration::from_secs(5), calls.join_next()).await {
            Ok(Some(call)) => drop(call?),
            Ok(None) => break,
            Err(_) => {
                for volume in w.own("volumes").await? {
                    if volume["status"] == "creating" {
                        w.set_status(volume["id"].as_str().unwrap_or_default(), "error").await?;
                    }
                }
            }
        }
        ensure!(begun.elapsed() < Duration::from_secs(120));
    }
    for i in 0..6 {
        repeated(|| w.create(World::request(&format!("r-{i}"), &[]))).await?;
    }
    let own = w.own("volumes").await?;
    ensure!(own.len() == 6, "{own:?}");
    w.end().await
}

/// The server is deleted while a volume is being attached to it, and while one is attached.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_is_deleted_while_attaching() -> Result<()> {
    let Some(w) = World::new("gone").await? else { return Ok(()) };
    let server = w.cloud.server("short-lived").await?;
    let id = w.make("v").await?;
    let (clients, of, to) = (w.clients.clone(), id.clone(), server.clone());
    let attaching = tokio::spawn(async move {
        let request = e2e::requests::attach(&of, &to, e2e::requests::mount("xfs"));
        let attach = || {
            let (mut controller, request) = (clients.controller.clone(), request.clone());
            async move { controller.controller_publish_volume(request).await }
        };
        repeated(attach).await
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    w.bare().delete(Service::Compute, &format!("servers/{server}")).await?;
    // Quick enough it was attached, and went with the server; else the server is not there.
    if let Err(status) = attaching.await? {
        ensure!(status.code() == Code::NotFound && status.message().contains(&server), "{status}");
    }
    let begun = Instant::now();
    while w.bare().ask(Service::Compute, &format!("servers/{server}"), None).await.is_ok() {
        ensure!(begun.elapsed() < Duration::from_secs(30), "the server stays");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let error = repeated(|| w.attach_to(&id, &server)).await.err().context("attached to nothing")?;
    ensure!(error.code() == Code::NotFound, "{error}");
    let request = e2e::requests::detach(&id, &server);
    w.clients.controller.clone().controller_unpublish_volume(request).await?;
    w.attach(&id).await?;
    w.end().await
}

/// A volume that Nova does not let go of is detached by force if its server is shut off, and only then. The test's user is
/// no administrator, so Cinder refuses, which is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn force_is_for_servers_that_are_shut_off() -> Result<()> {
    let Some(w) = World::with("force", "    forceDetach: true\n").await? else { return Ok(()) };
    let stopped = w.cloud.server("stopped").await?;
    let (a, b) = (w.make("a").await?, w.make("b").await?);
    w.attach_to(&a, &stopped).await?;
    w.attach(&b).await?;
    let path = format!("servers/{stopped}");
    w.bare().ask(Service::Compute, &format!("{path}/action"), Some(json!({"os-stop": null}))).await?;
    e2e::openstack::wait_for(&w.bare(), Service::Compute, &path, "server", "SHUTOFF").await?;
    // Nova says that it does it, and does nothing.
    w.compute.fault("DELETE", "/os-volume_attachments", 2, Fault::Answer(202, 0));
    let detach = |volume: &str, node: &str| {
        let request = e2e::requests::detach(volume, node);
        let mut controller = w.clients.controller.clone();
        async move { controller.controller_unpublish_volume(request).await }
    };
    let (off, on) = tokio::join!(detach(&a, &stopped), detach(&b, &w.server));
    let off = off.err().context("it was let go")?;
    ensure!(off.code() == Code::PermissionDenied && off.message().contains("by force"), "{off}");
    let on = on.err().context("it was let go")?;
    ensure!(on.code() == Code::Unavailable && on.message().contains("ACTIVE"), "{on}");
    detach(&a, &stopped).await?;
    detach(&b, &w.server).await?;
    w.bare().delete(Service::Compute, &path).await?;
    w.end().await
}
