//! Images mapped by the kernel's client, as a user of the cluster that may do no more than it must.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::ceph::Ceph;
use e2e::contract::{Subject, refused};
use e2e::kubernetes::Api;
use e2e::requests as ask;
use e2e::scratch::Scratch;
use tonic::Code;

use super::second::{DIR, Second};
use super::{subject, sys, timed, until};

const DATA: &[u8] = b"what was fsynced";

/// A driver with a namespace of its own, and that.
pub(super) async fn on(
    ceph: &Ceph,
    test: &str,
    capability: pb::VolumeCapability,
) -> Result<(Subject, String)> {
    let scratch = Scratch::new()?;
    let nodes = Api::start(scratch.path(), "node-1").await?;
    let config = ceph.config(test, scratch.path(), "    callTimeoutSeconds: 10\n")?;
    let s = subject(scratch, &(nodes.config() + &config.text), capability).await?;
    Ok((Subject { alive: Box::new((nodes, s.alive)), ..s }, config.namespace))
}

/// The kernel's devices of a namespace, by their numbers.
pub(super) fn mapped(namespace: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir("/sys/bus/rbd/devices").into_iter().flatten().flatten();
    all.map(|entry| entry.path()).filter(|path| sys(&path.join("pool_ns")) == namespace).collect()
}

/// The node has the class's secret and no key of its own; a wrong key is said to be one.
#[tokio::test(flavor = "multi_thread")]
async fn maps_as_the_user_of_the_secret() -> Result<()> {
    let Some(ceph) = Ceph::shared("maps_as_the_user")? else { return Ok(()) };
    let (s, namespace) = on(ceph, "secret", ask::mount("ext4")).await?;
    let caps = ["mon", "profile rbd", "osd", "profile rbd", "mgr", "profile rbd"];
    let key = |user: &str| {
        let made = ceph.run("ceph", &[&["auth", "get-or-create-key", user][..], &caps].concat())?;
        Ok::<_, anyhow::Error>(made.trim().to_owned())
    };
    let (good, wrong) = (key("client.node-user")?, key("client.other")?);
    let id = s.create("secret").await?.volume_id;
    let staging = s.path("secret/staging")?;
    std::fs::create_dir_all(&staging)?;
    let mut request = ask::stage(&id, &staging, s.capability.clone());
    request.secrets = [("userID", "node-user"), ("userKey", &good)].map(|(k, v)| (k.into(), v.into())).into();
    let mut node = s.clients.node.clone();
    let mut bad = request.clone();
    bad.secrets.insert("userKey".into(), wrong);
    refused(node.node_stage_volume(bad).await, Code::PermissionDenied, &["client.node-user"])?;
    node.node_stage_volume(request).await?;
    let devices = mapped(&namespace);
    ensure!(devices.len() == 1, "{devices:?}");
    ensure!(sys(&devices[0].join("config_info")).contains("name=node-user"), "mapped as another user");
    node.node_unstage_volume(ask::unstage(&id, &staging)).await?;
    ensure!(mapped(&namespace).is_empty());
    s.delete(&[&id]).await
}

/// A device that somebody has open is not unmapped, and the error says who.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_in_use_is_not_unmapped() -> Result<()> {
    let Some(ceph) = Ceph::shared("in_use")? else { return Ok(()) };
    let (s, namespace) = on(ceph, "in-use", ask::block()).await?;
    let id = s.create("in-use").await?.volume_id;
    let used = s.mount(&id, "in-use").await?;
    let own = format!("pid {}", std::process::id());
    let mut node = s.clients.node.clone();
    let open = OpenOptions::new().write(true).open(&used.target)?;
    let unpublished = node.node_unpublish_volume(ask::unpublish(&id, &used.target)).await;
    refused(unpublished, Code::FailedPrecondition, &["busy", &own])?;
    drop(open);
    node.node_unpublish_volume(ask::unpublish(&id, &used.target)).await?;
    // By another way than the pod's.
    let number = mapped(&namespace).pop().context("not mapped")?;
    let device = Path::new("/dev").join(format!("rbd{}", number.file_name().unwrap_or_default().display()));
    let open = OpenOptions::new().write(true).open(&device)?;
    let unstaged = node.node_unstage_volume(ask::unstage(&id, &used.staging)).await;
    refused(unstaged, Code::FailedPrecondition, &["still in use", &own])?;
    ensure!(mapped(&namespace).len() == 1);
    drop(open);
    node.node_unstage_volume(ask::unstage(&id, &used.staging)).await?;
    ensure!(mapped(&namespace).is_empty());
    s.delete(&[&id]).await
}

/// `noshare`: a client of its own for each image, so that fencing one hits no other.
#[tokio::test(flavor = "multi_thread")]
async fn noshare_gives_each_image_a_client() -> Result<()> {
    let Some(ceph) = Ceph::shared("noshare")? else { return Ok(()) };
    for (options, clients) in [("", 1), ("noshare", 2)] {
        let (s, namespace) = on(ceph, "noshare", ask::mount("ext4")).await?;
        let mut all = Vec::new();
        for name in ["one", "two"] {
            let mut request = s.create_request(&format!("noshare-{name}"));
            request.parameters.insert("mapOptions".into(), options.into());
            let id = s.make(request).await?.volume_id;
            all.push(s.mount(&id, name).await?);
        }
        let mut ids: Vec<_> = mapped(&namespace).iter().map(|path| sys(&path.join("client_id"))).collect();
        ids.sort();
        ids.dedup();
        ensure!(ids.len() == clients, "mapOptions: {options:?}: clients {ids:?}");
        for used in all {
            s.unmount(&used).await?;
            s.delete(&[&used.id]).await?;
        }
    }
    Ok(())
}

/// Without a monitor a mapped image is unmapped, mapping one fails in time, and later it is mapped again.
#[tokio::test(flavor = "multi_thread")]
async fn mapped_again_after_the_monitor_was_away() -> Result<()> {
    let Some(ceph) = Ceph::own("monitor").await? else { return Ok(()) };
    let (s, namespace) = on(&ceph, "monitor", ask::mount("xfs")).await?;
    let mut request = s.create_request("monitor");
    request.capacity_range = ask::at_least(320 * ask::MIB);
    let id = s.make(request).await?.volume_id;
    let used = s.mount(&id, "monitor").await?;
    s.write(&used, DATA)?;
    ceph.tell("signal mon.a KILL")?;
    s.write(&used, b"while the monitor is away")?;
    s.unmount(&used).await?;
    ensure!(mapped(&namespace).is_empty());
    let staging = s.path("monitor/again")?;
    std::fs::create_dir_all(&staging)?;
    let mut node = s.clients.node.clone();
    let (staged, took) = timed(node.node_stage_volume(ask::stage(&id, &staging, s.capability.clone()))).await;
    let status = staged.err().context("mapped without a monitor")?;
    ensure!([Code::Unavailable, Code::DeadlineExceeded].contains(&status.code()), "{status}");
    ensure!(took < Duration::from_secs(90), "mapping without a monitor took {took:?}");
    ceph.tell("start mon.a")?;
    ceph.tell("healthy")?;
    let used = s.mount(&id, "monitor").await?;
    ensure!(s.read(&used, 9)? == b"while the");
    s.unmount(&used).await?;
    s.delete(&[&id]).await
}

fn is_written(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|data| data == DATA)
}

/// Two nodes want one volume. As long as the first lives the second is refused; when its power was cut, its lock is taken
/// from it by fencing, and the second finds a file system in order with all that was fsynced.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_is_fenced_and_its_volume_moves() -> Result<()> {
    let Some(ceph) = Ceph::shared("dies")? else { return Ok(()) };
    let (s, namespace) = on(ceph, "moves", ask::mount("ext4")).await?;
    let id = s.create("moves").await?.volume_id;
    let spec = format!("rbd/{namespace}/moves");
    let there = ceph.config_in(Path::new(DIR), "rbd", &namespace, &namespace, "");
    let mut second = Second::start(&there).await?;
    let path = second.stage(&id, "--fs ext4")?;
    second.shell(&format!("printf '{}' >{path}/data && sync {path}/data", DATA.escape_ascii()))?;
    let staging = s.path("moves/staging")?;
    std::fs::create_dir_all(&staging)?;
    let request = ask::stage(&id, &staging, s.capability.clone());
    let mut node = s.clients.node.clone();
    refused(node.node_stage_volume(request.clone()).await, Code::FailedPrecondition, &["open elsewhere"])?;
    let volumectl = |args: &[&str]| ceph.volumectl(&[args, &["--cluster-id", &namespace]].concat());
    let recover = || volumectl(&["lock", "recover", &spec, "--yes"]);
    let (code, _, error) = recover()?;
    ensure!(code == 3 && error.contains("lives"), "{code}: {error}");
    second.kill();
    let gone = || Ok(volumectl(&["lock", "ls", "--image", &spec])?.1.contains("watch is gone"));
    until("the dead node's watch times out", gone).await?;
    let (code, text, error) = recover()?;
    ensure!(code == 0, "{code}: {error}");
    let fenced = ceph.ask(&["osd", "blocklist", "ls"])?;
    let fenced = fenced.as_array().context("no list")?.len();
    ensure!(fenced > 0, "the dead node is not fenced: {text}");
    node.node_stage_volume(request).await?;
    ensure!(is_written(&staging.join("data")), "what was fsynced is lost");
    let mut file = OpenOptions::new().append(true).open(staging.join("data"))?;
    file.write_all(b", and more")?;
    file.sync_all()?;
    drop(file);
    node.node_unstage_volume(ask::unstage(&id, &staging)).await?;
    s.delete(&[&id]).await
}
