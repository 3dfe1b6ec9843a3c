//! Locks, their owners alive, silent and dead, and taking images from them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::ceph::{Ceph, storage_daemon};
use e2e::contract::refused;
use e2e::kubernetes::Node;
use e2e::network::Network;
use e2e::requests as ask;
use e2e::scratch::daemons_below;
use serde_json::Value;
use tonic::Code;

use super::client::{Client, is_fenced, locks, writer_of};
use super::world::{SIZE, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_live_owner_is_refused_with_the_evidence() -> Result<()> {
    let Some(w) = World::new("live", "").await? else { return Ok(()) };
    let id = w.make("live").await?;
    let owner = Client::writer(&w, "live")?;
    let shown = locks(&w, "live")?;
    let lock = &shown["locks"][0];
    ensure!(lock["kind"] == "managed" && lock["alive"] == "yes" && shown["volume"] == id.as_str(), "{shown}");
    let spec = w.spec("live");
    let (code, _, error) = w.volumectl(&["lock", "recover", &spec, "--yes"])?;
    ensure!(code == 3 && error.contains("lives") && error.contains("watch"), "{code}: {error}");
    let (code, _, error) =
        w.volumectl(&["lock", "recover", &spec, "--yes", "--force", "--confirm", "other"])?;
    ensure!(code == 3 && error.contains("not confirmed"), "{code}: {error}");
    owner.write(b"still mine").context("the owner is not disturbed")?;
    let delete = w.clients.controller.clone().delete_volume(ask::delete(&id)).await;
    let address = lock["address"].as_str().context("no address")?;
    refused(delete, Code::FailedPrecondition, &[address, "volumectl lock ls"])?;
    drop(owner);
    w.delete(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_owner_is_recovered_and_the_fence_undone() -> Result<()> {
    let Some(w) = World::new("killed", "").await? else { return Ok(()) };
    let (id, spec) = (w.make("killed").await?, w.spec("killed"));
    let (owner, address) = writer_of(&w, "killed")?;
    owner.signal("KILL")?;
    // Until the watch has timed out, nobody can know that it is dead.
    let (code, _, error) = w.volumectl(&["lock", "recover", &spec, "--yes"])?;
    ensure!(code == 3, "{code}: {error}");
    w.until("the watch times out", || Ok(locks(&w, "killed")?["locks"][0]["alive"] == "no")).await?;
    let (code, plan, _) = w.volumectl(&["lock", "recover", &spec])?;
    ensure!(code == 0 && plan.contains("Nothing was done") && plan.contains(&address), "{code}: {plan}");
    ensure!(!is_fenced(&w, &address)?);
    let (code, out, error) = w.volumectl(&["lock", "recover", &spec, "--yes", "-o", "json"])?;
    ensure!(code == 0, "{code}: {error}");
    let report: Value = serde_json::from_str(&out)?;
    let steps = report["steps"].as_array().context("no steps")?;
    ensure!(steps.len() == 3 && steps.iter().all(|step| step["result"] == "done"), "{report}");
    ensure!(is_fenced(&w, &address)?);
    let free = locks(&w, "killed")?;
    ensure!(free["locks"].as_array().is_some_and(Vec::is_empty), "{free}");
    let journal = report["id"].as_str().context("no id")?;
    let (_, list, _) = w.volumectl(&["lock", "journal"])?;
    ensure!(list.contains(journal));
    let (code, _, error) = w.volumectl(&["lock", "undo", journal])?;
    ensure!(code == 0, "{code}: {error}");
    ensure!(!is_fenced(&w, &address)?, "{address} is still fenced");
    drop(owner);
    w.delete(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_owner_cannot_write_after_it_was_fenced() -> Result<()> {
    let Some(w) = World::new("silent", "").await? else { return Ok(()) };
    let id = w.make("silent").await?;
    let spec = w.spec("silent");
    let owner = Client::writer(&w, "silent")?;
    owner.signal("STOP")?;
    let (code, _, error) = w.volumectl(&["lock", "recover", &spec, "--yes"])?;
    ensure!(code == 3, "alive, as far as anybody knows: {code}: {error}");
    w.until("the watch times out", || Ok(locks(&w, "silent")?["locks"][0]["alive"] == "no")).await?;
    let (code, _, error) = w.volumectl(&["lock", "recover", &spec, "--yes"])?;
    ensure!(code == 0, "{code}: {error}");
    let second = w.scratch.path().join("second");
    std::fs::create_dir(&second)?;
    std::fs::rename(&owner.file, second.join("none")).ok();
    owner.signal("CONT")?;
    ensure!(owner.write(b"from beyond").is_err(), "a fenced client writes no more");
    drop(owner);
    w.delete(&id).await
}

/// A driver that was killed while it grew an image has its lock and a watch that is answered no more: here a client that
/// was stopped. The growth is finished at once, not when the watch has timed out.
#[tokio::test(flavor = "multi_thread")]
async fn a_growth_that_was_cut_short_is_finished_at_once() -> Result<()> {
    let Some(w) = World::new("short", "").await? else { return Ok(()) };
    let (id, spec) = (w.make("short").await?, w.spec("short"));
    let (owner, address) = writer_of(&w, "short")?;
    let note = |w: &World| w.rbd(&["image-meta", "list", &spec]);
    let text = format!(r#"{{"schema":1,"kind":"Growing","client":"{address}","beat":3}}"#);
    w.rbd(&["image-meta", "set", &spec, "volumectl.growing", &text])?;
    owner.signal("STOP")?;
    let request = ask::expand(&id, 2 * SIZE);
    let grown = w.clients.controller.clone().controller_expand_volume(request.clone()).await?.into_inner();
    ensure!(grown.capacity_bytes == 2 * SIZE && is_fenced(&w, &address)?, "{grown:?}");
    ensure!(!note(&w)?.contains("volumectl.growing"), "the note stays");
    w.clients.controller.clone().controller_expand_volume(request).await?;
    drop(owner);
    w.delete(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_blast_radius_is_shown() -> Result<()> {
    let Some(w) = World::new("radius", "").await? else { return Ok(()) };
    let id = w.make("radius").await?;
    let owner = Client::writer(&w, "radius")?;
    let (code, _, error) = w.volumectl(&["lock", "recover", &w.spec("radius"), "--dry-run", "--force"])?;
    ensure!(code == 0, "{error}");
    let args = ["lock", "recover", &w.spec("radius"), "--dry-run", "--force", "--host", "-o", "json"];
    let other = w.make("radius-other").await?;
    let neighbour = Client::writer(&w, "radius-other")?;
    let (_, out, _) = w.volumectl(&args)?;
    let plan: Value = serde_json::from_str(&out)?;
    ensure!(plan["fence"] == "127.0.0.1", "{plan}");
    let others = plan["others"].as_array().context("no others")?;
    ensure!(others.iter().any(|o| *o == w.spec("radius-other")), "{plan}");
    drop((owner, neighbour));
    w.delete(&id).await?;
    w.delete(&other).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_mappers_are_refused_at_the_node() -> Result<()> {
    let Some(w) = World::new("two", "").await? else { return Ok(()) };
    let id = w.make("two").await?;
    let first = Client::open(&w, "two")?;
    let staged = w.stage(&id).await.err().context("staged beside another client")?;
    ensure!(
        staged.code() == Code::FailedPrecondition && staged.message().contains("open elsewhere"),
        "{staged}"
    );
    drop(first);
    w.until("the first client's end is seen", || {
        Ok(!w.rbd(&["status", &w.spec("two")])?.contains("watcher="))
    })
    .await?;
    w.stage(&id).await?;
    let shown = locks(&w, "two")?;
    ensure!(shown["watchers"][0]["node"] == "node-1", "the node notes as which client it has it: {shown}");
    w.unstage(&id).await?;
    w.delete(&id).await
}

pub fn attach(id: &str, node: &str) -> pb::ControllerPublishVolumeRequest {
    ask::attach(id, node, ask::mount("ext4"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_moves_only_from_a_holder_that_is_dead() -> Result<()> {
    let Some(w) = World::new("moves", "").await? else { return Ok(()) };
    w.nodes.set("node-2", Some(Node::Ready));
    let mut request = ask::create("moves", SIZE, ask::mount("ext4"));
    request.parameters.insert("lockRecovery".into(), "auto".into());
    let auto = w.create(request).await?;
    let manual = w.make("moves-manual").await?;
    let mut c = w.clients.controller.clone();
    for id in [&auto, &manual] {
        c.controller_publish_volume(attach(id, "node-1")).await?;
        let other = c.controller_publish_volume(attach(id, "node-2")).await;
        refused(other, Code::FailedPrecondition, &["node-1", "Ready"])?;
    }
    // Silent is not dead, and whoever has it open is alive whatever Kubernetes says.
    w.nodes.set("node-1", Some(Node::Silent));
    refused(
        c.controller_publish_volume(attach(&auto, "node-2")).await,
        Code::FailedPrecondition,
        &["not ready"],
    )?;
    w.nodes.set("node-1", Some(Node::OutOfService));
    let holder = Client::writer(&w, "moves")?;
    let live = c.controller_publish_volume(attach(&auto, "node-2")).await;
    refused(live, Code::FailedPrecondition, &["live holder"])?;
    holder.signal("KILL")?;
    let address = locks(&w, "moves")?["locks"][0]["address"].as_str().context("no address")?.to_owned();
    w.until("the watch times out", || Ok(locks(&w, "moves")?["locks"][0]["alive"] == "no")).await?;
    c.controller_publish_volume(attach(&auto, "node-2")).await?;
    ensure!(is_fenced(&w, &address)?, "the dead holder was fenced");
    let manually = c.controller_publish_volume(attach(&manual, "node-2")).await;
    refused(manually, Code::FailedPrecondition, &["volumectl lock recover", "lockRecovery: auto"])?;
    // The class can be changed for a volume that exists.
    let modify = pb::ControllerModifyVolumeRequest {
        volume_id: manual.clone(),
        mutable_parameters: [("lockRecovery".to_owned(), "auto".to_owned())].into(),
        ..Default::default()
    };
    c.controller_modify_volume(modify).await?;
    c.controller_publish_volume(attach(&manual, "node-2")).await.context("after ControllerModifyVolume")?;
    drop(holder);
    for id in [&auto, &manual] {
        let all = pb::ControllerUnpublishVolumeRequest { volume_id: id.clone(), ..Default::default() };
        c.controller_unpublish_volume(all).await?;
        w.delete(id).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn advisory_locks_are_read_and_broken() -> Result<()> {
    let Some(w) = World::new("advisory", "").await? else { return Ok(()) };
    let mut request = ask::create("advisory", SIZE, ask::mount("ext4"));
    request.parameters.insert("imageFeatures".into(), "layering".into());
    let id = w.create(request).await?;
    w.rbd(&["lock", "add", &w.spec("advisory"), "kubelet_lock_magic_worker-7"])?;
    let shown = locks(&w, "advisory")?;
    let lock = &shown["locks"][0];
    ensure!(lock["kind"] == "exclusive" && lock["node"] == "worker-7" && lock["alive"] == "no", "{shown}");
    let (_, list, _) =
        w.volumectl(&["lock", "ls", "--node", "worker-7", "--pool", &format!("rbd/{}", w.namespace)])?;
    ensure!(list.contains("advisory") && list.contains("worker-7"), "{list}");
    let (code, _, error) = w.volumectl(&["lock", "recover", &w.spec("advisory"), "--yes"])?;
    ensure!(code == 0, "{error}");
    ensure!(locks(&w, "advisory")?["locks"].as_array().is_some_and(Vec::is_empty));
    w.delete(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_advisory_lock_makes_nothing_hang() -> Result<()> {
    let Some(w) = World::new("hang", "").await? else { return Ok(()) };
    let (id, spec) = (w.make("hang").await?, w.spec("hang"));
    w.rbd(&["lock", "add", &spec, "left-behind"])?;
    let delete = w.clients.controller.clone().delete_volume(ask::delete(&id)).await;
    refused(delete, Code::FailedPrecondition, &["left-behind", "volumectl lock recover"])?;
    // librbd refuses or waits for ever, which the command does not.
    let begun = std::time::Instant::now();
    let (code, _, error) = w.volumectl(&["volume", "resize", &spec, "--size", "1Gi", "--timeout", "4"])?;
    ensure!(matches!(code, 3 | 4) && error.contains("lock"), "{code}: {error}");
    ensure!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let (code, _, error) = w.volumectl(&["lock", "recover", &spec, "--yes"])?;
    ensure!(code == 0, "{code}: {error}");
    let (code, _, error) = w.volumectl(&["volume", "resize", &spec, "--size", "1Gi"])?;
    ensure!(code == 0, "{code}: {error}");
    w.delete(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mapping_survives_its_driver_and_is_found_again() -> Result<()> {
    let Some(w) = World::new("survives", "").await? else { return Ok(()) };
    let id = w.make("survives").await?;
    let staging = w.stage(&id).await?;
    std::fs::write(staging.join("data"), "kept")?;
    // A second driver on the same state directory is what a restart looks like to the first one's mappings.
    let dir = w.scratch.path();
    let text = w.ceph.config_in(dir, "rbd", &w.namespace, &w.namespace, "").replace("/sockets", "/sockets-2");
    let second = e2e::drivers::InProcess::start(&text).await?;
    let clients = second.clients().await?;
    let request = ask::stage(&id, &staging, ask::mount("ext4"));
    clients.node.clone().node_stage_volume(request).await?;
    ensure!(std::fs::read_to_string(staging.join("data"))? == "kept");
    clients.node.clone().node_unstage_volume(ask::unstage(&id, &staging)).await?;
    ensure!(daemons_below(dir).is_empty(), "no helper is left");
    w.delete(&id).await
}

/// Kubelet goes on to publish what it has staged, and unstages when the last pod is deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_staged_volume_whose_daemon_died_is_not_published() -> Result<()> {
    let Some(w) = World::new("unpublished", "").await? else { return Ok(()) };
    let id = w.make("unpublished").await?;
    let staging = w.stage(&id).await?;
    let target = staging.with_file_name("target");
    let publish = ask::publish(&id, &staging, &target, ask::mount("ext4"));
    let mut node = w.clients.node.clone();
    node.node_publish_volume(publish.clone()).await?;
    let daemon = daemons_below(w.scratch.path()).pop().context("no daemon")?;
    rustix::process::kill_process(daemon, rustix::process::Signal::KILL)?;
    w.until("the daemon is gone", || Ok(daemons_below(w.scratch.path()).is_empty())).await?;
    let words = ["qemu-storage-daemon has died", "delete the pods"];
    refused(node.node_publish_volume(publish.clone()).await, Code::FailedPrecondition, &words)?;
    let second = ask::publish(&id, &staging, &staging.with_file_name("second"), ask::mount("ext4"));
    refused(node.node_publish_volume(second).await, Code::FailedPrecondition, &words)?;
    ensure!(!staging.with_file_name("second").exists());
    // As the message says: then it is attached anew, once the cluster has noticed that the old client is gone.
    node.node_unpublish_volume(ask::unpublish(&id, &target)).await?;
    w.unstage(&id).await?;
    let mut tries = 0;
    while let Err(status) = w.stage(&id).await {
        ensure!(tries < 120 && status.message().contains("open elsewhere"), "{status}");
        tries += 1;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    node.node_publish_volume(publish).await?;
    std::fs::write(target.join("data"), "written")?;
    node.node_unpublish_volume(ask::unpublish(&id, &target)).await?;
    w.unstage(&id).await?;
    w.delete(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_cut_off_is_fenced_and_stays_so() -> Result<()> {
    if Ceph::shared("cut")?.is_none() || !e2e::has_program("cut", "ip") {
        return Ok(());
    }
    let network = match Network::new() {
        Ok(network) => network,
        Err(error) => {
            e2e::skip("cut", &format!("no network of its own: {error:#}"));
            return Ok(());
        }
    };
    let ceph = Ceph::start_at(1, &network.here)?;
    let scratch = e2e::scratch::Scratch::new()?;
    let volumectl = |args: &[&str]| -> Result<(i32, String)> {
        let (code, out, error) = ceph.volumectl(args)?;
        Ok((code, out + &error))
    };
    let (code, text) = volumectl(&["volume", "create", "rbd/cut", "--size", "64Mi"])?;
    ensure!(code == 0, "{text}");
    let inside = network.command(storage_daemon().unwrap_or_else(|| "qemu-storage-daemon".into()));
    let owner = Client::start(inside, &ceph, scratch.path(), "image=cut")?;
    owner.write(b"before the cut")?;
    network.cut()?;
    let (code, text) = volumectl(&["lock", "recover", "rbd/cut", "--yes"])?;
    ensure!(code == 3 && text.contains("lives"), "nobody can know yet: {code}: {text}");
    let mut tries = 0;
    while !volumectl(&["lock", "ls", "--image", "rbd/cut"])?.1.contains("watch is gone") {
        ensure!(tries < 60, "its watch does not time out");
        tries += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (code, text) = volumectl(&["lock", "recover", "rbd/cut", "--yes"])?;
    ensure!(code == 0, "{code}: {text}");
    network.mend()?;
    let late = owner.write(b"after the cut");
    ensure!(late.is_err(), "a fenced client writes no more, back on the network or not");
    drop(owner);
    let (code, text) = volumectl(&["volume", "rm", "rbd/cut", "--yes"])?;
    ensure!(code == 0, "{code}: {text}");
    Ok(())
}
