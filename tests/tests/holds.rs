//! Copies beside calls of the node: one volume has one name in a process.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::clients::Clients;
use e2e::drivers::{InProcess, Process, local_config};
use e2e::requests as ask;
use e2e::scratch::Scratch;
use tonic::{Code, Status};

const SIZE: usize = 512 << 20;
const ID: &str = "default:large";

/// A raw block volume full of data, so that a copy of it takes a while, whose first and last bytes are 0.
async fn large(scratch: &Scratch, clients: &Clients) -> Result<()> {
    let size = i64::try_from(SIZE)?;
    clients.controller.clone().create_volume(ask::create("large", size, ask::block())).await?;
    let mut content = vec![0xa5; SIZE];
    (content[0], content[SIZE - 1]) = (0, 0);
    Ok(fs::write(scratch.path().join("volumes/large/disk.img"), content)?)
}

/// Begins a snapshot of it, and returns when the copy is under way.
async fn copying(
    scratch: &Scratch,
    clients: &Clients,
) -> Result<tokio::task::JoinHandle<Result<String, Status>>> {
    let mut controller = clients.controller.clone();
    let task = tokio::spawn(async move {
        let answer = controller.create_snapshot(ask::snapshot(ID, "s")).await?.into_inner();
        Ok(answer.snapshot.unwrap_or_default().snapshot_id)
    });
    let drafts = scratch.path().join("volumes/.volumectl/tmp");
    let is_written =
        |path: &PathBuf| fs::metadata(drafts.join(path)).is_ok_and(|m| m.is_file() && m.len() > 0);
    while !Scratch::tree(&drafts).iter().any(is_written) {
        ensure!(!task.is_finished(), "the copy ended before it was seen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(task)
}

/// The first and the last byte of a volume's file.
fn ends(scratch: &Scratch, volume: &str) -> Result<(u8, u8)> {
    let file = fs::File::open(scratch.path().join("volumes").join(volume).join("disk.img"))?;
    let mut two = [[0], [0]];
    file.read_exact_at(&mut two[0], 0)?;
    file.read_exact_at(&mut two[1], SIZE as u64 - 1)?;
    Ok((two[0][0], two[1][0]))
}

fn write(device: &Path) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).open(device)?;
    file.write_all_at(&[1], 0)?;
    file.write_all_at(&[1], SIZE as u64 - 1)?;
    Ok(file.sync_all()?)
}

/// A volume that is staged, published and written to while it is copied: the snapshot holds a state that was.
#[tokio::test(flavor = "multi_thread")]
async fn c12_a_snapshot_is_not_torn_by_a_pod_that_starts() -> Result<()> {
    if !e2e::is_root("torn") {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let driver = InProcess::start(&local_config(scratch.path(), "")).await?;
    let clients = driver.clients().await?;
    large(&scratch, &clients).await?;
    let copy = copying(&scratch, &clients).await?;
    let (staging, target) = (scratch.path().join("kubelet/staging"), scratch.path().join("kubelet/target"));
    fs::create_dir_all(&staging)?;
    let mut node = clients.node.clone();
    let mut refused = 0;
    while let Err(status) = node.node_stage_volume(ask::stage(ID, &staging, ask::block())).await {
        ensure!(status.code() == Code::Aborted && status.message().contains("CreateSnapshot"), "{status}");
        refused += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.node_publish_volume(ask::publish(ID, &staging, &target, ask::block())).await?;
    write(&target)?;
    let snapshot = copy.await??;
    ensure!(refused > 0, "the volume was staged while it was copied");
    let mut restore = ask::create("restored", i64::try_from(SIZE)?, ask::block());
    restore.volume_content_source = ask::from_snapshot(&snapshot);
    clients.controller.clone().create_volume(restore).await?;
    ensure!(ends(&scratch, "restored")? == (0, 0), "{:?}", ends(&scratch, "restored")?);
    node.node_unpublish_volume(ask::unpublish(ID, &target)).await?;
    node.node_unstage_volume(ask::unstage(ID, &staging)).await?;
    driver.stop().await
}

/// What frees is not refused because of a copy: it waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn c12_an_unstage_waits_for_a_copy() -> Result<()> {
    let scratch = Scratch::new()?;
    let driver = InProcess::start(&local_config(scratch.path(), "")).await?;
    let clients = driver.clients().await?;
    large(&scratch, &clients).await?;
    let copy = copying(&scratch, &clients).await?;
    let path = scratch.path().join("kubelet/staging");
    clients.node.clone().node_unpublish_volume(ask::unpublish(ID, &path.join("target"))).await?;
    ensure!(!copy.is_finished(), "a target was taken down only after the copy");
    clients.node.clone().node_unstage_volume(ask::unstage(ID, &path)).await?;
    let begun = Instant::now();
    copy.await??;
    ensure!(begun.elapsed() < Duration::from_secs(2), "it was unstaged while it was copied");
    driver.stop().await
}

const UUID: &str = "7a1d4b0e-3a6c-4b7e-9d6f-0123456789ab";

/// A driver of two clouds that never answer, so that what is asked of them goes on until it is dropped.
async fn silent_cloud(scratch: &Scratch) -> Result<(std::net::TcpListener, InProcess, Clients)> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let clouds = scratch.path().join("clouds.yaml");
    let auth = format!(
        "{{auth_url: \"http://{}/v3\", username: u, password: p, user_domain_id: default, project_id: p}}",
        listener.local_addr()?
    );
    fs::write(&clouds, format!("clouds:\n  main:\n    auth: {auth}\n"))?;
    let (local, file) = (local_config(scratch.path(), ""), clouds.display());
    let (head, _) = local.split_once("backends:\n").context("no backends")?;
    let config = format!(
        "{head}backends:\n  - type: cinder\n    clouds: [{{name: main, cloud: main, cloudsFile: {file}}}, {{name: east, cloud: main, cloudsFile: {file}}}]\n    \
         instanceId: {UUID}\n    deviceRoot: {}\n",
        scratch.path().join("devices").display()
    );
    let driver = InProcess::start(&config).await?;
    let clients = Clients::lazy(&driver.socket)?;
    Ok((listener, driver, clients))
}

/// Every call that takes a hold, for a volume of the silent cloud: the answer's code and message.
async fn each_call(clients: &Clients, id: &str, dir: &Path) -> Vec<(&'static str, Status)> {
    let (mut c, mut n) = (clients.controller.clone(), clients.node.clone());
    let mut clone = ask::create("clone", 1 << 30, ask::block());
    clone.volume_content_source = ask::from_volume(id);
    let modify = csi_proto::v1::ControllerModifyVolumeRequest {
        volume_id: id.into(),
        mutable_parameters: [("type".to_owned(), "fast".to_owned())].into(),
        ..Default::default()
    };
    let attach = ask::attach(id, UUID, ask::block());
    let mut all = Vec::new();
    macro_rules! call {
        ($name:literal, $call:expr) => {
            let answer = tokio::time::timeout(Duration::from_secs(5), $call).await;
            all.push((
                $name,
                answer
                    .map_or_else(|_| Status::ok("it waits"), |it| it.err().unwrap_or_else(|| Status::ok(""))),
            ));
        };
    }
    call!("ControllerPublishVolume", c.controller_publish_volume(attach));
    call!("ControllerExpandVolume", c.controller_expand_volume(ask::expand(id, 2 << 30)));
    call!("ControllerModifyVolume", c.controller_modify_volume(modify));
    call!("CreateSnapshot", c.create_snapshot(ask::snapshot(id, "s")));
    call!("CreateVolume", c.create_volume(clone));
    call!("NodeStageVolume", n.node_stage_volume(ask::stage(id, dir, ask::block())));
    call!("NodePublishVolume", n.node_publish_volume(ask::publish(id, dir, &dir.join("t"), ask::block())));
    call!("NodeExpandVolume", n.node_expand_volume(ask::node_expand(id, dir, 2 << 30)));
    call!("DeleteVolume", c.delete_volume(ask::delete(id)));
    all
}

/// A volume has one name in a process however calls spell its handle: who meets a running call is told so.
#[tokio::test(flavor = "multi_thread")]
async fn c12_two_handles_of_one_volume_meet() -> Result<()> {
    let scratch = Scratch::new()?;
    let (_listener, driver, clients) = silent_cloud(&scratch).await?;
    let (staging, mut controller) = (scratch.path().join("kubelet/staging"), clients.controller.clone());
    let running =
        tokio::spawn(async move { controller.controller_unpublish_volume(ask::detach(UUID, "")).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensure!(!running.is_finished(), "{:?}", running.await);
    for spelled in [format!("main/{UUID}"), format!("east/{UUID}")] {
        for (call, status) in each_call(&clients, &spelled, &staging).await {
            let told = status.message().contains("ControllerUnpublishVolume");
            ensure!(status.code() == Code::Aborted && told, "{call} of {spelled}: {status}");
        }
    }
    let other = UUID.replace('7', "8");
    let status = clients.node.clone().node_stage_volume(ask::stage(&other, &staging, ask::block())).await;
    let status = status.err().context("it is not attached")?;
    ensure!(status.code() == Code::NotFound, "another volume is no concern: {status}");
    running.abort();
    drop(driver);
    Ok(())
}

/// A driver that still drains is followed by another on the same socket, which stays reachable.
#[tokio::test(flavor = "multi_thread")]
async fn c14_the_successor_of_a_draining_driver_stays_reachable() -> Result<()> {
    let scratch = Scratch::new()?;
    let text = local_config(scratch.path(), "");
    let mut old = Process::start(scratch.path(), &text)?;
    let clients = old.clients().await?;
    large(&scratch, &clients).await?;
    let copy = copying(&scratch, &clients).await?;
    let socket = old.socket.clone();
    let ending = tokio::task::spawn_blocking(move || old.terminate().map(|code| (old, code)));
    while std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut new = Process::start(scratch.path(), &text)?;
    new.clients().await?;
    ensure!(!ending.is_finished(), "the old one was gone before its successor came");
    let (old, code) = ending.await??;
    ensure!(code == Some(0), "{code:?}");
    let _ = copy.await?;
    drop(old);
    ensure!(new.socket.exists(), "the socket is gone");
    new.clients().await.context("the successor cannot be reached")?;
    Ok(())
}
