//! Nothing is destroyed or fenced by a stale note, by a shared object, or by a look that came before the act.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::ceph::Ceph;
use e2e::clients::Clients;
use e2e::contract::refused;
use e2e::drivers::InProcess;
use e2e::kubernetes::Node;
use e2e::requests as ask;
use serde_json::Value;
use tonic::Code;

use super::client::{Client, is_fenced, locks, writer_of};
use super::fencing::attach;
use super::world::{SIZE, World};

fn detach(id: &str, node: &str) -> pb::ControllerUnpublishVolumeRequest {
    pb::ControllerUnpublishVolumeRequest { volume_id: id.into(), node_id: node.into(), ..Default::default() }
}

/// A second driver beside a test's own, as another node has it.
pub async fn second(w: &World, node: &str, more: &str) -> Result<(InProcess, Clients)> {
    let dir = w.scratch.path().join(node);
    std::fs::create_dir_all(&dir)?;
    let text = w.ceph.config_in(&dir, "rbd", &w.namespace, &w.namespace, more);
    let driver = InProcess::start(&text.replace("nodeId: node-1", &format!("nodeId: {node}"))).await?;
    let clients = driver.clients().await?;
    Ok((driver, clients))
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_state_that_is_damaged_foreign_or_newer_is_refused_by_name() -> Result<()> {
    let Some(w) = World::new("stored", "").await? else { return Ok(()) };
    let (id, spec) = (w.make("stored").await?, w.spec("stored"));
    let mut c = w.clients.controller.clone();
    let newer = r#"{"schema":2,"kind":"Publication","nodes":["x"]}"#;
    let cases = [
        ("volumectl.published/x", r#"{"v":2}"#, Code::DataLoss),
        ("volumectl.published/x", newer, Code::FailedPrecondition),
        ("volumectl.client/x", "junk", Code::DataLoss),
        ("volumectl.fs", r#"{"v":2}"#, Code::DataLoss),
        ("volumectl.growing", r#"{"schema":9,"kind":"Growing"}"#, Code::FailedPrecondition),
        ("volumectl.claim", "x", Code::DataLoss),
        ("volumectl.deleted", "some day", Code::DataLoss),
    ];
    for (key, value, code) in cases {
        w.rbd(&["image-meta", "set", &spec, key, value])?;
        let what: &[&str] = &[key, &spec];
        refused(c.controller_publish_volume(attach(&id, "node-2")).await, code, what)?;
        refused(c.delete_volume(ask::delete(&id)).await, code, what)?;
        refused(c.controller_expand_volume(ask::expand(&id, 2 * SIZE)).await, code, what)?;
        refused(c.create_snapshot(ask::snapshot(&id, "none")).await, code, what)?;
        let staged = w.stage(&id).await.err().context("staged")?;
        ensure!(staged.code() == code || staged.message().contains("deleted"), "{key}: {staged}");
        w.rbd(&["image-meta", "remove", &spec, key])?;
    }
    // Values of before have no envelope, and are read.
    let before =
        r#"{"readOnly":false,"mode":"singleNodeWriter","block":false,"since":"2024-01-01T00:00:00Z"}"#;
    w.rbd(&["image-meta", "set", &spec, "volumectl.published/old", before])?;
    refused(c.delete_volume(ask::delete(&id)).await, Code::FailedPrecondition, &["published to old"])?;
    c.controller_unpublish_volume(detach(&id, "old")).await?;
    w.delete(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_drivers_that_expand_one_volume_fence_nobody() -> Result<()> {
    // Tests on the shared cluster fence clients of their own.
    let Some(w) = World::alone("both").await? else { return Ok(()) };
    let (id, spec) = (w.make("both").await?, w.spec("both"));
    let before = w.ceph.ask(&["osd", "blocklist", "ls"])?;
    for round in 1..=6 {
        let size = SIZE + round * 4 * ask::MIB;
        let mut c = w.clients.controller.clone();
        let ours = async { c.controller_expand_volume(ask::expand(&id, size)).await };
        let bytes = size.to_string();
        let args = ["volume", "resize", &spec, "--size", &bytes];
        let other = async { tokio::task::block_in_place(|| w.volumectl(&args)) };
        let (ours, other) = tokio::join!(ours, other);
        let other = other?;
        ensure!(ours.is_ok() || ours.as_ref().is_err_and(|e| e.code() == Code::Unavailable), "{ours:?}");
        ensure!(other.0 == 0 || other.2.contains("being grown"), "{other:?}");
        ensure!(ours.is_ok() || other.0 == 0, "one of the two does it: {ours:?} {other:?}");
        w.clients.controller.clone().controller_expand_volume(ask::expand(&id, size)).await?;
    }
    ensure!(w.ceph.ask(&["osd", "blocklist", "ls"])? == before, "somebody was fenced");
    w.delete(&id).await
}

/// A note without a beat, of a version before, whose client lives.
#[tokio::test(flavor = "multi_thread")]
async fn a_growth_by_a_client_that_lives_is_waited_for() -> Result<()> {
    let Some(w) = World::new("waits", "").await? else { return Ok(()) };
    let (id, spec) = (w.make("waits").await?, w.spec("waits"));
    let (owner, address) = writer_of(&w, "waits")?;
    w.rbd(&["image-meta", "set", &spec, "volumectl.growing", &address])?;
    let mut c = w.clients.controller.clone();
    let grown = c.controller_expand_volume(ask::expand(&id, 2 * SIZE)).await;
    refused(grown, Code::Unavailable, &["being grown by", &address])?;
    ensure!(!is_fenced(&w, &address)?);
    owner.write(b"still mine")?;
    drop(owner);
    c.controller_expand_volume(ask::expand(&id, 2 * SIZE)).await?;
    w.delete(&id).await
}

/// Such a note of a growth that was cut short, whose client works on another volume.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_another_volume_is_not_fenced_for_its_growth() -> Result<()> {
    let Some(w) = World::new("works", "").await? else { return Ok(()) };
    let (id, spec, other) = (w.make("cut").await?, w.spec("cut"), w.make("works").await?);
    let (owner, address) = writer_of(&w, "works")?;
    w.rbd(&["image-meta", "set", &spec, "volumectl.growing", &address])?;
    w.clients.controller.clone().controller_expand_volume(ask::expand(&id, 2 * SIZE)).await?;
    ensure!(!is_fenced(&w, &address)?);
    owner.write(b"still mine")?;
    drop(owner);
    w.delete(&id).await?;
    w.delete(&other).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_own_host_is_never_fenced() -> Result<()> {
    let Some(w) = World::new("own", "").await? else { return Ok(()) };
    let (id, spec) = (w.make("own").await?, w.spec("own"));
    let owner = Client::writer(&w, "own")?;
    let (code, plan, error) = w.volumectl(&["lock", "recover", &spec, "--force", "--host"])?;
    ensure!(code == 0 && plan.contains("refused") && plan.contains("another host"), "{code}: {plan} {error}");
    ensure!(!plan.contains("Add --yes"), "what is refused is not offered: {plan}");
    let args = ["lock", "recover", &spec, "--force", "--host", "--yes", "--confirm", &spec];
    let (code, _, error) = w.volumectl(&args)?;
    ensure!(code == 3 && error.contains("127.0.0.1") && error.contains("another host"), "{code}: {error}");
    // Tests beside this one fence clients of their own.
    ensure!(!w.ceph.ask(&["osd", "blocklist", "ls"])?.to_string().contains("127.0.0.1:0/0"));
    owner.write(b"still mine")?;
    drop(owner);
    w.delete(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_is_undone_from_the_host_that_it_hits() -> Result<()> {
    let Some(ceph) = Ceph::own("undo").await? else { return Ok(()) };
    let (code, _, error) = ceph.volumectl(&["volume", "create", "rbd/undo", "--size", "64Mi"])?;
    ensure!(code == 0, "{error}");
    let entry = r#"{"schema":1,"kind":"Fence","id":"20260101T000000-0001","image":"rbd/undo","fence":"127.0.0.1","steps":[],"undone":false}"#;
    ceph.run("rados", &["-p", "rbd", "setomapval", "volumectl.journal", "20260101T000000-0001", entry])?;
    ceph.run("ceph", &["osd", "blocklist", "add", "127.0.0.1", "3600"])?;
    // An entry that is not of this fence leaves it.
    let (code, _, error) = ceph.volumectl(&["lock", "undo", "nothing", "--timeout", "120"])?;
    ensure!(code != 0 && error.contains("no entry nothing"), "{code}: {error}");
    let listed = |ceph: &Ceph| ceph.ask(&["osd", "blocklist", "ls"]).map(|all| all.to_string());
    ensure!(listed(&ceph)?.contains("127.0.0.1:0/0"), "the fence stays");
    let (code, out, error) =
        ceph.volumectl(&["lock", "undo", "20260101T000000-0001", "-o", "json", "--timeout", "120"])?;
    ensure!(code == 0 && out.contains("from the fenced host"), "{code}: {out} {error}");
    ensure!(!listed(&ceph)?.contains("127.0.0.1:0/0"), "the fence is gone");
    let report: Value = serde_json::from_str(&out)?;
    ensure!(report["undone"] == true, "{report}");
    let (code, out, error) = ceph.volumectl(&["volume", "ls"])?;
    ensure!(code == 0 && out.contains("undo"), "{code}: {out} {error}");
    Ok(())
}

/// Kubernetes detaches a volume from a node that is out of service without asking that node.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_out_of_service_is_fenced_before_its_volume_goes_on() -> Result<()> {
    let Some(w) = World::new("service", "").await? else { return Ok(()) };
    w.nodes.set("node-2", Some(Node::Ready));
    let mut request = ask::create("service", SIZE, ask::mount("ext4"));
    request.parameters.insert("lockRecovery".into(), "auto".into());
    let auto = w.create(request).await?;
    let manual = w.make("service-manual").await?;
    let mut c = w.clients.controller.clone();
    let mut owners = Vec::new();
    for (id, name) in [(&auto, "service"), (&manual, "service-manual")] {
        c.controller_publish_volume(attach(id, "node-1")).await?;
        // What the client writes is before the file system's own first block.
        w.stage(id).await?;
        w.unstage(id).await?;
        let (owner, address) = writer_of(&w, name)?;
        for state in [Node::Ready, Node::Silent] {
            w.nodes.set("node-1", Some(state));
            let kept = c.controller_unpublish_volume(detach(id, "node-1")).await;
            refused(kept, Code::Unavailable, &["node-1", &address])?;
        }
        w.nodes.set("node-1", Some(Node::OutOfService));
        owners.push((owner, address));
    }
    let told = c.controller_unpublish_volume(detach(&manual, "node-1")).await;
    refused(told, Code::FailedPrecondition, &["out of service", "volumectl lock recover", &owners[1].1])?;
    c.controller_unpublish_volume(detach(&auto, "node-1")).await?;
    ensure!(is_fenced(&w, &owners[0].1)? && !is_fenced(&w, &owners[1].1)?);
    let (_, journal, _) = w.volumectl(&["lock", "journal"])?;
    ensure!(journal.contains(&owners[0].1), "{journal}");
    c.controller_publish_volume(attach(&auto, "node-2")).await?;
    let staging = w.stage(&auto).await?;
    std::fs::write(staging.join("data"), "of the new node")?;
    ensure!(owners[0].0.write(b"of the old node").is_err(), "a fenced client writes no more");
    owners[1].0.write(b"of the only node")?;
    drop(owners);
    w.unstage(&auto).await?;
    c.controller_unpublish_volume(detach(&auto, "node-2")).await?;
    w.until("the other client's end is seen", || {
        Ok(!w.rbd(&["status", &w.spec("service-manual")])?.contains("watcher="))
    })
    .await?;
    c.controller_unpublish_volume(detach(&manual, "node-1")).await?;
    w.delete(&auto).await?;
    w.delete(&manual).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_publish_one_volume_at_once_one_wins() -> Result<()> {
    let Some(w) = World::new("race", "").await? else { return Ok(()) };
    let (_driver, other) = second(&w, "node-2", "").await?;
    let id = w.make("race").await?;
    for round in 0..20 {
        let (mut a, mut b) = (w.clients.controller.clone(), other.controller.clone());
        let (a, b) = tokio::join!(
            a.controller_publish_volume(attach(&id, "node-1")),
            b.controller_publish_volume(attach(&id, "node-2"))
        );
        ensure!(a.is_ok() != b.is_ok(), "round {round}: {a:?} {b:?}");
        let loser = a.err().or(b.err()).context("both won")?;
        ensure!(loser.code() == Code::FailedPrecondition, "{loser}");
        let all = pb::ControllerUnpublishVolumeRequest { volume_id: id.clone(), ..Default::default() };
        w.clients.controller.clone().controller_unpublish_volume(all).await?;
    }
    w.delete(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_nodes_that_stage_one_volume_at_once_one_wins() -> Result<()> {
    let Some(w) = World::new("stages", "    attach: false\n").await? else { return Ok(()) };
    let (_driver, other) = second(&w, "node-2", "    attach: false\n").await?;
    let id = w.make("stages").await?;
    let theirs = w.scratch.path().join("node-2/kubelet/stage");
    std::fs::create_dir_all(&theirs)?;
    for round in 0..6 {
        let request = ask::stage(&id, &theirs, ask::mount("ext4"));
        let mut b = other.node.clone();
        let (a, b) = tokio::join!(w.stage(&id), b.node_stage_volume(request));
        ensure!(a.is_ok() != b.is_ok(), "round {round}: {a:?} {b:?}");
        let (a, b) = (a.map(drop), b.map(drop));
        let winner = if a.is_ok() { "node-1" } else { "node-2" };
        let loser = a.err().or(b.err()).context("both won")?;
        ensure!(matches!(loser.code(), Code::Unavailable | Code::FailedPrecondition), "{loser}");
        let shown = locks(&w, "stages")?;
        ensure!(shown["watchers"].as_array().is_some_and(|all| all.len() == 1), "{winner}: {shown}");
        // What was staged once goes to the other node as soon as it was unstaged.
        if winner == "node-1" {
            w.unstage(&id).await?;
            other.node.clone().node_stage_volume(ask::stage(&id, &theirs, ask::mount("ext4"))).await?;
            other.node.clone().node_unstage_volume(ask::unstage(&id, &theirs)).await?;
        } else {
            other.node.clone().node_unstage_volume(ask::unstage(&id, &theirs)).await?;
            w.stage(&id).await?;
            w.unstage(&id).await?;
        }
    }
    w.delete(&id).await
}

/// A node that has claimed a volume and is about to map it is shown, and named to the others; so is what it did not finish.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_shown_and_is_void_in_time() -> Result<()> {
    let Some(w) = World::new("claims", "    attach: false\n").await? else { return Ok(()) };
    let id = w.make("claims").await?;
    let spec = w.spec("claims");
    let claim = |ago: i64| -> Result<()> {
        let since = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() - ago)?;
        let note = serde_json::json!({"node": "node-9", "client": null, "since": since.to_string()});
        w.rbd(&["image-meta", "set", &spec, "volumectl.claim", &note.to_string()]).map(drop)
    };
    claim(5)?;
    let shown = locks(&w, "claims")?;
    ensure!(shown["mapping"]["node"] == "node-9" && shown["mapping"]["holds"] == true, "{shown}");
    let (code, out, error) = w.volumectl(&["lock", "ls", "--node", "node-9"])?;
    ensure!(code == 0 && out.contains("claim") && out.contains("node-9"), "{code}: {out}{error}");
    refused(w.stage(&id).await.map(tonic::Response::new), Code::Unavailable, &["node-9", "began to map it"])?;
    claim(120)?;
    ensure!(locks(&w, "claims")?["mapping"]["holds"] == false);
    w.stage(&id).await?;
    w.unstage(&id).await?;
    w.delete(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_never_begins_with_an_old_snapshot() -> Result<()> {
    let Some(w) = World::new("old", "").await? else { return Ok(()) };
    let (id, spec) = (w.make("old").await?, w.spec("old"));
    let write = |text: &[u8]| Client::open(&w, "old")?.write(text).context("writing");
    write(b"last year")?;
    for stale in ["volumectl.clone.young", "volumectl.clone.young.0123456789abcdef0123456789abcdef"] {
        w.rbd(&["snap", "create", &format!("{spec}@{stale}")])?;
    }
    write(b"this year")?;
    let mut request = ask::create("young", SIZE, ask::mount("ext4"));
    request.volume_content_source = ask::from_volume(&id);
    let clone = w.create(request).await?;
    let young = Client::open(&w, "young")?;
    let data = std::fs::read(&young.file)?;
    ensure!(data.starts_with(b"this year"), "{:?}", String::from_utf8_lossy(&data[..16]));
    drop(young);
    ensure!(
        !w.ceph
            .run("rados", &["-p", "rbd", "-N", &w.namespace, "listomapkeys", "volumectl.intents"])?
            .contains("clone/")
    );
    w.until("the clone is closed", || Ok(!w.rbd(&["status", &w.spec("young")])?.contains("watcher=")))
        .await?;
    w.delete(&clone).await?;
    // The stale ones go with the volume.
    w.delete(&id).await?;
    w.until("all is purged", || Ok(w.images()? == (Vec::new(), Vec::new()))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_cluster_and_a_damaged_intent_stop_no_sweep() -> Result<()> {
    let Some(w) = World::new("sweeps", "").await? else { return Ok(()) };
    let rados = |args: &[&str]| w.ceph.run("rados", &[&["-p", "rbd", "-N", &w.namespace][..], args].concat());
    let intent = |name: &str| {
        format!(
            r#"{{"schema":1,"kind":"Intent","id":"x","name":"{name}","cluster":"{}","since":"2020-01-01T00:00:00Z"}}"#,
            w.namespace
        )
    };
    let set = |key: &str, value: &str| rados(&["setomapval", "volumectl.intents", key, value]);
    // Before their intents, which this test's own driver may see at once.
    w.rbd(&["create", "--size", "64M", &w.spec("half-made")])?;
    w.rbd(&["create", "--size", "64M", &w.spec("pvc-1e0cd9f2-6c6e-4a3b-9f3a-1a2b3c4d5e6f")])?;
    set("create/aaa", "junk")?;
    set("create/bbb", r#"{"schema":7,"kind":"Intent"}"#)?;
    set("create/half-made", &intent("half-made"))?;
    set("create/zzz", &intent("zzz"))?;
    let dir = w.scratch.path().join("beside");
    std::fs::create_dir(&dir)?;
    let text = w.ceph.config_in(&dir, "rbd", &w.namespace, &w.namespace, "");
    let dead = dir.join("dead.conf");
    std::fs::write(&dead, "[global]\nmon_host = 127.0.0.1:1\n")?;
    let text = text.replace(
        "clusters: [",
        &format!("clusters: [{{clusterID: a-dead, cephConf: {}, pools: [rbd]}}, ", dead.display()),
    );
    let driver = InProcess::start(&text).await?;
    w.until("all that can be read is swept", || {
        let left = rados(&["listomapkeys", "volumectl.intents"])?;
        Ok(left.trim().lines().eq(["create/aaa", "create/bbb"]))
    })
    .await?;
    ensure!(
        w.images()?.0 == ["pvc-1e0cd9f2-6c6e-4a3b-9f3a-1a2b3c4d5e6f"],
        "an image of others stays: {:?}",
        w.images()?
    );
    drop(driver);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_no_pool_can_hold_is_refused_and_a_huge_one_holds_up_nobody() -> Result<()> {
    let Some(w) = World::new("huge", "").await? else { return Ok(()) };
    let huge = |name: &str| ask::create(name, 500 << 40, ask::block());
    let refusal = w.clients.controller.clone().create_volume(huge("huge")).await;
    refused(refusal, Code::OutOfRange, &["can ever hold", "maxOvercommit"])?;
    let small = w.make("small").await?;
    let grown = w.clients.controller.clone().controller_expand_volume(ask::expand(&small, 500 << 40)).await;
    refused(grown, Code::OutOfRange, &["maxOvercommit"])?;
    w.delete(&small).await?;
    let (_driver, clients) = second(&w, "node-2", "    maxOvercommit: 0\n").await?;
    let mut c = clients.controller.clone();
    let made = c
        .create_volume(ask::create("huge", 20 << 40, ask::block()))
        .await?
        .into_inner()
        .volume
        .context("no volume")?;
    Client::writer(&w, "huge")?;
    w.until("the writer's end is seen", || Ok(!w.rbd(&["status", &w.spec("huge")])?.contains("watcher=")))
        .await?;
    c.delete_volume(ask::delete(&made.volume_id)).await?;
    let begun = Instant::now();
    for i in 0..20 {
        let volume = c.create_volume(ask::create(&format!("beside-{i}"), SIZE, ask::block())).await?;
        c.delete_volume(ask::delete(&volume.into_inner().volume.context("no volume")?.volume_id)).await?;
    }
    ensure!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    w.until("all is purged", || Ok(w.images()? == (Vec::new(), Vec::new()))).await?;
    let objects = w.ceph.run("rados", &["-p", "rbd", "-N", &w.namespace, "ls"])?;
    ensure!(!objects.contains("rbd_data.") && !objects.contains("rbd_object_map."), "{objects}");
    Ok(())
}
