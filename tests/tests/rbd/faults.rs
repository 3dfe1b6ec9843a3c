//! A cluster that is slow, full, cut off or does not let us in. The tests that disturb it have one of their own.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use csi_proto::v1 as pb;
use e2e::ceph::Ceph;
use e2e::clients::repeated;
use e2e::contract::refused;
use e2e::drivers::InProcess;
use e2e::requests as ask;
use e2e::scratch::Scratch;
use tonic::Code;

use super::world::{SIZE, World};

/// A driver that has no user of its own: every call brings secrets.
pub(super) async fn by_secrets(w: &World) -> Result<InProcess> {
    let dir = w.scratch.path().join("by-secrets");
    std::fs::create_dir_all(&dir)?;
    let text = w.ceph.config_in(&dir, "rbd", &w.namespace, &w.namespace, "");
    let conf = format!("cephConf: {}", w.ceph.conf().display());
    let text = text.replace(&conf, &format!("monitors: ['{}']", w.ceph.monitors()?));
    InProcess::start(&text).await
}

pub(super) fn request(name: &str, user: &str, key: &str) -> pb::CreateVolumeRequest {
    let mut request = ask::create(name, SIZE, ask::mount("ext4"));
    request.secrets = [("userID", user), ("userKey", key)].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_wrong_keys_and_missing_caps_are_told_apart() -> Result<()> {
    let Some(w) = World::new("secrets", "").await? else { return Ok(()) };
    let driver = by_secrets(&w).await?;
    let mut c = driver.clients().await?.controller;
    let bare = ask::create("secret", SIZE, ask::mount("ext4"));
    refused(c.create_volume(bare.clone()).await, Code::InvalidArgument, &["secrets", "userID"])?;
    let mut half = bare;
    half.secrets.insert("userID".into(), "admin".into());
    refused(c.create_volume(half).await, Code::InvalidArgument, &["userKey"])?;

    let key = |user: &str, caps: &[&str]| {
        let name = format!("client.{user}");
        let made = w.ceph.run("ceph", &[&["auth", "get-or-create-key", &name][..], caps].concat())?;
        Ok::<_, anyhow::Error>(made.trim().to_owned())
    };
    let good = key("csi-good", &["mon", "profile rbd", "osd", "profile rbd", "mgr", "profile rbd"])?;
    let poor = key("csi-poor", &["mon", "profile rbd", "osd", "allow r"])?;
    let wrong = c.create_volume(request("secret", "csi-good", &poor)).await;
    refused(wrong, Code::PermissionDenied, &["client.csi-good", "ceph auth get-key"])?;
    let capless = c.create_volume(request("secret", "csi-poor", &poor)).await;
    refused(capless, Code::PermissionDenied, &["osd 'profile rbd", "client.csi-poor"])?;
    let nobody = c.create_volume(request("secret", "nobody", &good)).await;
    refused(nobody, Code::PermissionDenied, &["client.nobody"])?;

    // What a Secret's `data` has when a key that is encoded already is encoded once more.
    let twice = STANDARD.encode(&good);
    let told = c.create_volume(request("secret", "csi-good", &twice)).await;
    refused(told, Code::InvalidArgument, &["secrets[\"userKey\"]", "twice"])?;

    let made = c.create_volume(request("secret", "csi-good", &good)).await?.into_inner();
    let id = made.volume.context("no volume")?.volume_id;
    let mut delete = ask::delete(&id);
    delete.secrets = request("", "csi-good", &good).secrets;
    c.delete_volume(delete).await?;
    for secret in [&good, &poor] {
        let told = format!("{:?}", request("secret", "csi-good", secret));
        ensure!(!told.contains(secret.as_str()), "a request's debug form shows no key");
    }
    Ok(())
}

/// Each call is the first one that its driver gets: nothing remembers an earlier call's user.
#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_driver_takes_the_secrets_of_every_call_that_has_them() -> Result<()> {
    let Some(w) = World::new("fresh", "").await? else { return Ok(()) };
    let admin = w.ceph.run("ceph", &["auth", "get-key", "client.admin"])?.trim().to_owned();
    let secrets = request("", "admin", &admin).secrets;
    let id = w.make("source").await?;
    let snapshot = w.snapshot(&id, "of-source").await?;
    let group = pb::CreateVolumeGroupSnapshotRequest {
        name: "together".into(),
        source_volume_ids: vec![id.clone()],
        ..Default::default()
    };
    let made = w.clients.group.clone().create_volume_group_snapshot(group).await?.into_inner();
    let group = made.group_snapshot.context("no group")?.group_snapshot_id;

    let list = pb::ListSnapshotsRequest { secrets: secrets.clone(), ..Default::default() };
    let one = pb::ListSnapshotsRequest { snapshot_id: snapshot.snapshot_id.clone(), ..list.clone() };
    let get = pb::GetSnapshotRequest { snapshot_id: snapshot.snapshot_id.clone(), secrets: secrets.clone() };
    let validate = pb::ValidateVolumeCapabilitiesRequest {
        volume_id: id.clone(),
        volume_capabilities: vec![ask::mount("ext4")],
        secrets: secrets.clone(),
        ..Default::default()
    };
    macro_rules! first_call {
        ($service:ident, $method:ident, $request:expr) => {{
            let driver = by_secrets(&w).await?;
            let mut bare = $request;
            bare.secrets.clear();
            let without = driver.clients().await?.$service.$method(bare).await;
            refused(without, Code::InvalidArgument, &["secrets"])?;
            let answer = driver.clients().await?.$service.$method($request).await?.into_inner();
            driver.stop().await?;
            answer
        }};
    }
    ensure!(
        first_call!(controller, list_snapshots, list.clone()).entries.len() == 2,
        "with the group's member"
    );
    ensure!(first_call!(controller, list_snapshots, one.clone()).entries.len() == 1);
    ensure!(first_call!(controller, get_snapshot, get.clone()).snapshot == Some(snapshot.clone()));
    ensure!(first_call!(controller, validate_volume_capabilities, validate.clone()).confirmed.is_some());
    let get = pb::GetVolumeGroupSnapshotRequest {
        group_snapshot_id: group.clone(),
        secrets: secrets.clone(),
        ..Default::default()
    };
    ensure!(first_call!(group, get_volume_group_snapshot, get.clone()).group_snapshot.is_some());

    // volumectl asks for the members first, so it leaves nothing behind either.
    let driver = by_secrets(&w).await?;
    let ended = std::process::Command::new(e2e::drivers::binary("volumectl")?)
        .args(["csi", "group", "delete", &group, "--endpoint", &driver.socket.display().to_string()])
        .env("CSI_SECRETS", serde_json::to_string(&secrets)?)
        .output()?;
    ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    w.clients.controller.clone().delete_snapshot(ask::delete_snapshot(&snapshot.snapshot_id)).await?;
    w.delete(&id).await?;
    w.until("nothing is left", || Ok(w.images()? == (vec![], vec![]))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_is_exhausted_and_says_so() -> Result<()> {
    let Some(w) = World::new("full", "").await? else { return Ok(()) };
    let pool = w.ceph.pool("full")?;
    let dir = w.scratch.path().join("full");
    std::fs::create_dir(&dir)?;
    let config = w.ceph.config_in(&dir, &pool, "", &w.namespace, "    callTimeoutSeconds: 20\n");
    let driver = InProcess::start(&config).await?;
    let mut c = driver.clients().await?.controller;
    let before = c.create_volume(ask::create("before", SIZE, ask::mount("ext4"))).await?.into_inner();
    w.ceph.run("ceph", &["osd", "pool", "set-quota", &pool, "max_objects", "1"])?;
    w.until("the quota is noticed", || {
        let dump = w.ceph.ask(&["osd", "dump"])?;
        let pools = dump["pools"].as_array().context("no pools")?;
        let own = pools.iter().find(|own| own["pool_name"] == pool.as_str()).context("no pool")?;
        Ok(own["flags_names"].as_str().is_some_and(|flags| flags.contains("full_quota")))
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let begun = Instant::now();
    let full = c.create_volume(ask::create("after", SIZE, ask::mount("ext4"))).await;
    refused(full, Code::ResourceExhausted, &["full", "quota"])?;
    ensure!(begun.elapsed() < Duration::from_secs(15), "it does not hang: {:?}", begun.elapsed());
    let capacity = c.get_capacity(pb::GetCapacityRequest::default()).await?.into_inner();
    ensure!(capacity.available_capacity == 0, "{capacity:?}");
    w.ceph.run("ceph", &["osd", "pool", "set-quota", &pool, "max_objects", "0"])?;
    let again = async || c.clone().create_volume(ask::create("after", SIZE, ask::mount("ext4"))).await;
    let mut made = again().await;
    for _ in 0..60 {
        if made.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        made = again().await;
    }
    for volume in [before, made?.into_inner()] {
        c.delete_volume(ask::delete(&volume.volume.context("no volume")?.volume_id)).await?;
    }
    drop(driver);
    w.ceph.remove_pool(&pool)
}

/// The driver and its cluster, which nobody else uses.
async fn alone(test: &str, more: &str) -> Result<Option<(Ceph, Scratch, InProcess)>> {
    let Some(ceph) = Ceph::own(test).await? else { return Ok(None) };
    let scratch = Scratch::new()?;
    let driver = InProcess::start(&ceph.config_in(scratch.path(), "rbd", "", "alone", more)).await?;
    Ok(Some((ceph, scratch, driver)))
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_restart_and_hang_under_load_lose_nothing() -> Result<()> {
    let Some((ceph, _scratch, driver)) = alone("restarts", "    callTimeoutSeconds: 10\n").await? else {
        return Ok(());
    };
    let clients = driver.clients().await?;
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..60 {
        let mut controller = clients.controller.clone();
        // Whatever happens, the caller repeats as the provisioner does, and gets one volume.
        calls.spawn(async move {
            let request = ask::create(&format!("load-{i}"), SIZE, ask::mount("ext4"));
            for _ in 0..200 {
                let begun = Instant::now();
                let answer = controller.create_volume(request.clone()).await;
                ensure!(begun.elapsed() < Duration::from_secs(25), "no call hangs: {:?}", begun.elapsed());
                match answer {
                    Ok(made) => return Ok(made.into_inner().volume.unwrap_or_default().volume_id),
                    Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            }
            anyhow::bail!("load-{i} was not made in two hundred tries")
        });
    }
    ceph.tell("signal mon.a KILL")?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ceph.tell("start mon.a")?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ceph.tell("signal osd.0 STOP")?;
    tokio::time::sleep(Duration::from_secs(12)).await;
    ceph.tell("signal osd.0 CONT")?;
    let mut ids = Vec::new();
    while let Some(done) = calls.join_next().await {
        ids.push(done??);
    }
    ids.sort();
    let list = clients.controller.clone().list_volumes(pb::ListVolumesRequest::default()).await?.into_inner();
    let listed: Vec<_> = list.entries.into_iter().filter_map(|e| Some(e.volume?.volume_id)).collect();
    ensure!(listed == ids, "{} listed, {} made", listed.len(), ids.len());
    for id in ids {
        let patience = Duration::from_secs(60);
        repeated(patience, async || clients.controller.clone().delete_volume(ask::delete(&id)).await).await?;
    }
    for _ in 0..300 {
        if ceph.run("rbd", &["trash", "ls", "rbd"])?.trim().is_empty() {
            ensure!(ceph.run("rbd", &["ls", "rbd"])?.trim().is_empty());
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    anyhow::bail!("the trash is not purged")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_driver_connects_anew() -> Result<()> {
    let Some((ceph, scratch, driver)) = alone("fenced", "").await? else { return Ok(()) };
    let mut c = driver.clients().await?.controller;
    c.create_volume(ask::create("first", SIZE, ask::mount("ext4"))).await?;
    let sessions: serde_json::Value =
        serde_json::from_str(&ceph.run("ceph", &["tell", "mon.a", "sessions"])?)?;
    for session in sessions.as_array().context("no sessions")? {
        let address = &session["addrs"]["addrvec"][0];
        if let (Some(addr), Some(nonce)) = (address["addr"].as_str(), address["nonce"].as_u64())
            && session["entity_name"] == "client.admin"
        {
            ceph.run("ceph", &["osd", "blocklist", "add", &format!("{addr}/{nonce}"), "600"])?;
        }
    }
    let again = async || c.clone().create_volume(ask::create("second", SIZE, ask::mount("ext4"))).await;
    let mut tries = 0;
    while let Err(status) = again().await {
        ensure!(tries < 20, "still: {status}");
        tries += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drop(scratch);
    Ok(())
}

/// Storage daemons that start anew have new addresses. A client hears of that when it asks for a new map, and it asks when
/// a call takes long: sooner than the call is given up.
#[tokio::test(flavor = "multi_thread")]
async fn daemons_that_start_anew_are_found_also_with_a_short_timeout() -> Result<()> {
    let Some(ceph) = Ceph::own("anew").await? else { return Ok(()) };
    let scratch = Scratch::new()?;
    let config = ceph.config("anew", scratch.path(), "    callTimeoutSeconds: 5\n")?;
    let driver = InProcess::start(&config.text).await?;
    let mut c = driver.clients().await?.controller;
    c.create_volume(ask::create("before", SIZE, ask::mount("ext4"))).await?;
    for round in 0..3 {
        ceph.restart_osds(1)?;
        let begun = Instant::now();
        while let Err(status) =
            c.create_volume(ask::create(&format!("after-{round}"), SIZE, ask::mount("ext4"))).await
        {
            ensure!(
                begun.elapsed() < Duration::from_secs(40),
                "the cluster is well, and the driver says: {status}"
            );
        }
    }
    Ok(())
}

/// What only works as long as the driver's container runs is said beforehand.
#[tokio::test(flavor = "multi_thread")]
async fn check_warns_of_volumes_that_end_with_the_drivers_container() -> Result<()> {
    let Some(ceph) = Ceph::shared("check warns")? else { return Ok(()) };
    let scratch = Scratch::new()?;
    let file = scratch.path().join("driver.yaml");
    std::fs::write(&file, ceph.config("check-warns", scratch.path(), "")?.text)?;
    let check = |before: &[&str], mode: &str| -> Result<String> {
        let program = e2e::drivers::binary("csi-driver")?.display().to_string();
        let file = file.display().to_string();
        let argv = [before, &[&program, "--config", &file, "--mode", mode, "--check"]].concat();
        let output = std::process::Command::new(argv[0]).args(&argv[1..]).output()?;
        let said = String::from_utf8(output.stdout)?;
        ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        Ok(said)
    };
    // As in a pod without hostPID: the kernel kills all of its processes with the first.
    let inside = ["unshare", "--pid", "--fork", "--mount-proc"];
    let said = check(&inside, "node")?;
    ensure!(
        said.contains("ready") && said.contains("warning: ") && said.contains("`mounter: fuse`"),
        "{said}"
    );
    ensure!(said.contains("hostPID: true"), "what to do: {said}");
    let said = check(&inside, "controller")?;
    ensure!(!said.contains("warning: "), "a controller maps nothing: {said}");
    let ours = std::fs::read_link("/proc/self/ns/pid")? == Path::new("pid:[4026531836]");
    let said = check(&[], "node")?;
    ensure!(!ours || !said.contains("hostPID"), "{said}");
    Ok(())
}
