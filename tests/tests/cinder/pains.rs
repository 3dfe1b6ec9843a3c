//! What users of Cinder's own driver report, each a test.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::openstack::OpenStack;
use e2e::requests as ask;
use provisioners::cinder::Service;
use serde_json::json;
use tonic::Code;

use crate::content::Node;
use crate::world::World;

/// O1: what CreateVolume hands out can be attached at once.
#[tokio::test(flavor = "multi_thread")]
async fn o1_a_new_volume_can_be_attached_at_once() -> Result<()> {
    let Some(w) = World::new("o1").await? else { return Ok(()) };
    for i in 0..3 {
        let id = w.make(&format!("v-{i}")).await?;
        w.compute.forget();
        w.attach(&id).await?;
        ensure!(w.compute.count("POST", "/os-volume_attachments") == 1, "it was asked for more than once");
    }
    w.end().await
}

/// O2, D1: two replicas of the controller make the same volume at once: one is left, and both answer it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn o2_two_controllers_that_race_leave_one_volume() -> Result<()> {
    let Some(w) = World::new("o2").await? else { return Ok(()) };
    let (_scratch, driver, second) = w.second().await?;
    for round in 0..6 {
        let name = format!("race-{round}");
        let call = |clients: &e2e::clients::Clients| {
            let (clients, name) = (clients.clone(), name.clone());
            tokio::spawn(async move {
                let begun = Instant::now();
                loop {
                    match clients.controller.clone().create_volume(World::request(&name, &[])).await {
                        Err(status)
                            if status.code() == Code::Unavailable
                                && begun.elapsed() < Duration::from_secs(60) => {}
                        other => return other,
                    }
                }
            })
        };
        let (a, b) = (call(&w.clients), call(&second));
        let ids =
            [a.await??, b.await??].map(|answer| answer.into_inner().volume.unwrap_or_default().volume_id);
        ensure!(ids[0] == ids[1], "{ids:?}");
        let own = w.own("volumes").await?;
        ensure!(
            own.iter().filter(|volume| volume["metadata"]["volumectl.name"] == name.as_str()).count() == 1,
            "{own:?}"
        );
    }
    driver.stop().await?;
    w.end().await
}

/// O2, A5: of twins that somebody left the oldest is used. None is removed: it is not known which was handed out.
#[tokio::test(flavor = "multi_thread")]
async fn o2_twins_are_put_in_order() -> Result<()> {
    let Some(w) = World::new("o2-twins").await? else { return Ok(()) };
    let id = w.make("v").await?;
    let metadata = w.show(&id).await?["metadata"].clone();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let body = json!({"volume": {"size": 1, "name": "v", "metadata": metadata}});
    let twin =
        e2e::openstack::id(&w.bare().ask(Service::Volume, "volumes", Some(body.clone())).await?["volume"])?;
    e2e::openstack::wait_for(&w.bare(), Service::Volume, &format!("volumes/{twin}"), "volume", "available")
        .await?;
    w.attach(&twin).await?;
    ensure!(w.make("v").await? == id);
    ensure!(w.own("volumes").await?.len() == 2, "a volume in use was removed");
    w.detach(&twin).await?;
    ensure!(w.make("v").await? == id);
    ensure!(w.own("volumes").await?.len() == 2, "a volume that another call has made was removed");
    w.end().await
}

/// O3: states that pass are waited for; done by somebody else meanwhile is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn o3_states_that_pass_are_waited_for() -> Result<()> {
    let Some(w) = World::new("o3").await? else { return Ok(()) };
    let id = w.make("v").await?;
    for status in ["reserved", "attaching", "detaching", "extending"] {
        w.set_status(&id, status).await?;
        let (clients, of, server) = (w.clients.clone(), id.clone(), w.server.clone());
        let call = tokio::spawn(async move {
            clients
                .controller
                .clone()
                .controller_publish_volume(ask::attach(&of, &server, ask::mount("xfs")))
                .await
        });
        tokio::time::sleep(Duration::from_millis(400)).await;
        ensure!(!call.is_finished(), "{status}: it was not waited for: {:?}", call.await);
        w.set_status(&id, "available").await?;
        call.await?.with_context(|| status)?;
        w.detach(&id).await?;
    }
    w.end().await
}

/// What each call that meets a status in which something is stuck says: the status, and what ends it.
fn says_how_it_ends(call: &str, id: &str, status: &str, answer: Result<(), tonic::Status>) -> Result<()> {
    let text = answer.err().with_context(|| format!("{call} in {status:?} was answered"))?;
    let words = [format!("{status:?}"), "`openstack volume set --state ".into(), format!(" {id}`")];
    let missing: Vec<_> = words.iter().filter(|word| !text.message().contains(*word)).collect();
    ensure!(missing.is_empty(), "{call} in {status:?}: {missing:?} is not in {text}");
    Ok(())
}

/// A volume that is stuck, in whatever status: the error says which, and the command that ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn stuck_states_are_named_with_the_command_that_ends_them() -> Result<()> {
    // Cinder's API resets none to `deleting`, and shows `managing` and `error_managing` as others.
    const STUCK: [&str; 17] = [
        "creating",
        "error",
        "error_deleting",
        "attaching",
        "detaching",
        "maintenance",
        "restoring-backup",
        "error_restoring",
        "reserved",
        "awaiting-transfer",
        "backing-up",
        "error_backing-up",
        "error_extending",
        "downloading",
        "uploading",
        "retyping",
        "extending",
    ];
    let Some(mut w) = World::new("stuck").await? else { return Ok(()) };
    let id = w.make("v").await?;
    w.config = w.config.replace("backends:", "operationTimeoutSeconds: 1\nbackends:");
    let (_scratch, hasty, clients) = w.second().await?;
    let mut c = clients.controller.clone();
    for status in STUCK {
        w.set_status(&id, status).await?;
        let attach = c.controller_publish_volume(ask::attach(&id, &w.server, ask::mount("xfs"))).await;
        says_how_it_ends("ControllerPublishVolume", &id, status, attach.map(drop))?;
    }
    for status in ["awaiting-transfer", "error_extending", "error_deleting"] {
        w.set_status(&id, status).await?;
        let grown = c.controller_expand_volume(ask::expand(&id, 2 << 30)).await;
        says_how_it_ends("ControllerExpandVolume", &id, status, grown.map(drop))?;
        let snapshot = c.create_snapshot(ask::snapshot(&id, "s")).await;
        says_how_it_ends("CreateSnapshot", &id, status, snapshot.map(drop))?;
    }
    w.set_status(&id, "awaiting-transfer").await?;
    says_how_it_ends(
        "DeleteVolume",
        &id,
        "awaiting-transfer",
        c.delete_volume(ask::delete(&id)).await.map(drop),
    )?;
    w.set_status(&id, "available").await?;
    hasty.stop().await?;
    w.end().await
}

/// O3: attached twice is success, elsewhere is refused with the server's name, not attached is success.
#[tokio::test(flavor = "multi_thread")]
async fn o3_attach_and_detach_by_the_specification() -> Result<()> {
    let Some(w) = World::new("o3-spec").await? else { return Ok(()) };
    let id = w.make("v").await?;
    ensure!(w.attach(&id).await? == w.attach(&id).await?);
    let other = w.cloud.nodes()?.iter().find(|server| **server != w.server).context("one server")?;
    let error = w.attach_to(&id, other).await.err().context("attached twice")?;
    ensure!(error.code() == Code::FailedPrecondition && error.message().contains(&w.server), "{error}");
    for node in ["00000000-0000-0000-0000-000000000000", "no-uuid"] {
        w.detach(&id).await?;
        let error = w.attach_to(&id, node).await.err().context("no such server")?;
        ensure!(error.code() == Code::NotFound && error.message().contains(node), "{error}");
    }
    w.detach(&id).await?;
    w.detach("00000000-0000-0000-0000-000000000000").await?;
    w.end().await
}

/// O4: many that wait are served by one request a round, and each learns soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn o4_one_poller_serves_all_who_wait() -> Result<()> {
    let Some(w) = World::new("o4").await? else { return Ok(()) };
    let mut ids = Vec::new();
    for i in 0..8 {
        ids.push(w.make(&format!("v-{i}")).await?);
    }
    w.volumes.forget();
    let mut calls = tokio::task::JoinSet::new();
    for id in ids {
        let (clients, server) = (w.clients.clone(), w.server.clone());
        let request = ask::attach(&id, &server, ask::mount("xfs"));
        calls.spawn(async move { clients.controller.clone().controller_publish_volume(request).await });
    }
    let begun = Instant::now();
    while let Some(call) = calls.join_next().await {
        call??;
    }
    let rounds = w.volumes.count("GET", "/detail");
    let most = usize::try_from(begun.elapsed().as_millis() / 150).unwrap_or(usize::MAX) + 2;
    ensure!(rounds <= most, "{rounds} lists in {:?}", begun.elapsed());
    // A look at each before it is attached, and another where that was late; all else is the lists'.
    let single = w.volumes.count("GET", "/volumes/") - rounds;
    ensure!(single <= 8 * 2, "{single} requests for single volumes");
    w.end().await
}

/// O5, D3, D5: a node finds the disk by its serial, with no credentials and no udev.
#[tokio::test(flavor = "multi_thread")]
async fn o5_a_node_needs_no_credentials() -> Result<()> {
    let Some(w) = World::new("o5").await? else { return Ok(()) };
    let id = w.make("v").await?;
    let context = w.attach(&id).await?;
    ensure!(context["volumeId"] == id && context["bytes"] == (1 << 30).to_string(), "{context:?}");
    let node = Node::start(&w, None).await?;
    node_only(&node, &id, context).await?;
    drop(node);
    w.end().await
}

async fn node_only(node: &Node, id: &str, context: std::collections::BTreeMap<String, String>) -> Result<()> {
    let (staging, mut node) = (node.staging(), node.clients.node.clone());
    let mut request = ask::stage(id, &staging, ask::mount("xfs"));
    request.publish_context = context.into_iter().collect();
    for _ in 0..2 {
        node.node_stage_volume(request.clone()).await?;
    }
    std::fs::write(staging.join("file"), "x")?;
    node.node_unstage_volume(ask::unstage(id, &staging)).await?;
    // Not formatted again.
    node.node_stage_volume(request.clone()).await?;
    ensure!(std::fs::read_to_string(staging.join("file"))? == "x");
    node.node_unstage_volume(ask::unstage(id, &staging)).await?;
    // A disk that is smaller than the controller says is not touched.
    request.publish_context.insert("bytes".into(), (2_i64 << 30).to_string());
    let mut late = tonic::Request::new(request);
    late.set_timeout(Duration::from_secs(2));
    ensure!(node.node_stage_volume(late).await.is_err());
    Ok(())
}

/// Neither the application credential's secret nor a token is in the log, at any level.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_the_log() -> Result<()> {
    let Some(mut w) = World::new("log").await? else { return Ok(()) };
    w.driver.take().context("driver")?.stop().await?;
    let clouds: serde_json::Value = serde_json::from_slice(&std::fs::read(w.cloud.clouds_file())?)?;
    let secret =
        clouds["clouds"]["app"]["auth"]["application_credential_secret"].as_str().context("no secret")?;
    let (file, log) = (w.scratch.path().join("log.yaml"), w.scratch.path().join("log"));
    std::fs::write(&file, w.config.replace("cloud: demo", "cloud: app"))?;
    let mut child = std::process::Command::new(e2e::drivers::binary("csi-driver")?)
        .args(["--log", "trace", "--config"])
        .arg(&file)
        .stderr(std::fs::File::create(&log)?)
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let socket = w.scratch.path().join("sockets/cinder.csi.volumectl.io.sock");
    let work = async {
        w.clients = e2e::clients::Clients::ready(&socket).await?;
        let id = w.make("v").await?;
        w.attach(&id).await?;
        w.detach(&id).await?;
        anyhow::Ok(w.delete(&id).await?)
    };
    let done = work.await;
    child.kill()?;
    child.wait()?;
    done?;
    let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    ensure!(text.contains("created"), "the log has nothing: {text:.300}");
    // Keystone's tokens begin so.
    for hidden in [secret, "gAAAAA"] {
        let line = text.lines().find(|line| line.contains(hidden));
        ensure!(line.is_none(), "{:.400}", line.unwrap_or_default());
    }
    Ok(())
}

/// O7: Nova's and Cinder's zones are compared, and `--check` says which versions were agreed on.
#[tokio::test(flavor = "multi_thread")]
async fn o7_check_tells_versions_and_zones() -> Result<()> {
    let Some(w) = World::new("o7").await? else { return Ok(()) };
    let file = w.scratch.path().join("check.yaml");
    std::fs::write(&file, &w.config)?;
    let output = std::process::Command::new(e2e::drivers::binary("csi-driver")?)
        .args(["--check", "--config"])
        .arg(&file)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && text.contains("Cinder 3.60, Nova 2.60"), "{text}");
    w.end().await
}

/// O10: a node's Probe asks no server, so that a cloud that is away does not restart pods.
#[tokio::test(flavor = "multi_thread")]
async fn o10_a_nodes_probe_is_local() -> Result<()> {
    let Some(w) = World::new("o10").await? else { return Ok(()) };
    let request = w.clients.identity.clone().probe(pb::ProbeRequest {}).await;
    ensure!(request.is_ok());
    let d = w.scratch.path().display();
    let config = format!(
        "nodeId: node-1\nsocketDir: {d}/other\nstateDir: {d}/state\nkubeletDir: {d}/kubelet\nbackends:\n  - type: cinder\n    instanceId: {}\n    clouds: [{{name: main, cloud: none, cloudsFile: /nonexistent}}]\n",
        w.server
    );
    let config = csi_driver::config::Config::parse(&config).map_err(|e| anyhow::anyhow!(e))?;
    let metrics = csi_driver::metrics::Metrics::new();
    let drivers = csi_driver::registry::drivers(&config, csi_driver::cli::Mode::Node, &metrics)
        .map_err(|e| anyhow::anyhow!(e))?;
    ensure!(drivers[0].probe_backend().await.map_err(|e| anyhow::anyhow!("{e}"))?, "not ready");
    w.end().await
}

/// D4: what is not served is not announced.
#[tokio::test(flavor = "multi_thread")]
async fn d4_only_what_is_served_is_announced() -> Result<()> {
    let Some(w) = World::new("d4").await? else { return Ok(()) };
    let mut request = ask::create("inline", 1 << 30, ask::mount("xfs"));
    request.parameters.insert("capacity".into(), "1Gi".into());
    let error = w.create(request).await.err().context("an inline volume's parameter")?;
    ensure!(error.code() == Code::InvalidArgument && error.message().contains("capacity"), "{error}");
    w.end().await
}

/// A thousand volumes of others: listing goes page by page, and finding one's own does not need them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_foreign_volumes() -> Result<()> {
    let Some((_turn, cloud)) = OpenStack::harmed("thousand").await? else { return Ok(()) };
    let w = World::on(cloud, "thousand", "").await?;
    let id = w.make("v").await?;
    cloud.tell("foreign 1000")?;
    w.volumes.forget();
    let begun = Instant::now();
    let listed =
        w.clients.controller.clone().list_volumes(pb::ListVolumesRequest::default()).await?.into_inner();
    ensure!(
        listed.entries.len() == 1 && listed.entries[0].volume.as_ref().is_some_and(|v| v.volume_id == id)
    );
    ensure!(w.volumes.count("GET", "marker=") >= 2, "one page was enough for 1,000 volumes");
    println!("a list among 1,000 volumes: {:?}", begun.elapsed());
    w.volumes.forget();
    w.attach(&id).await?;
    ensure!(w.volumes.count("GET", "marker=") == 0, "waiting read all volumes");
    cloud.tell("foreign 0")?;
    w.end().await
}
