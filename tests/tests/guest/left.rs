//! Locks that an unmapping has left which was cut short, its driver killed while the cluster took no writes.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::ceph::Ceph;
use e2e::contract::{Subject, Used, refused};
use e2e::requests as ask;
use tonic::Code;

use super::rbd::{mapped, on};
use super::{sys, until};

const DATA: &[u8] = b"what was fsynced";

/// Sets the pool's quota, and waits until it is (not) reached.
async fn quota(ceph: &Ceph, objects: &str, full: bool) -> Result<()> {
    ceph.run("ceph", &["osd", "pool", "set-quota", "rbd", "max_objects", objects])?;
    let is_full = || {
        let text = ceph.run("ceph", &["osd", "pool", "ls", "detail"])?;
        Ok(text.lines().any(|line| line.contains("'rbd'") && line.contains("full_quota")) == full)
    };
    until("the pool's quota", is_full).await
}

fn device_of(namespace: &str, name: &str) -> Option<PathBuf> {
    mapped(namespace).into_iter().find(|path| sys(&path.join("name")) == name)
}

/// Unmaps as a driver does that is killed in the middle of it: the kernel has forgotten the image, its lock is still there.
async fn cut_short(s: &Subject, ceph: &Ceph, namespace: &str, used: &Used, name: &str) -> Result<()> {
    s.clients.node.clone().node_unpublish_volume(ask::unpublish(&used.id, &used.target)).await?;
    rustix::mount::unmount(&used.staging, rustix::mount::UnmountFlags::empty())?;
    let number = device_of(namespace, name).context("not mapped")?;
    let number = number.file_name().unwrap_or_default().display().to_string();
    quota(ceph, "1", true).await?;
    let write = format!("exec echo {number} >/sys/bus/rbd/remove_single_major");
    let mut unmapping = Command::new("sh").args(["-c", &write]).spawn()?;
    until("the device goes", || Ok(device_of(namespace, name).is_none())).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    unmapping.kill()?;
    unmapping.wait()?;
    quota(ceph, "0", false).await?;
    let locks = ceph.run("rbd", &["lock", "ls", &format!("rbd/{namespace}/{name}")])?;
    ensure!(locks.contains("auto "), "the lock was given back: {locks}");
    Ok(())
}

/// The client of the node that the other volume is mapped by is not fenced: it writes.
fn lives(s: &Subject, ceph: &Ceph, kept: &Used) -> Result<()> {
    s.write(kept, DATA).context("the node's other volume")?;
    let fenced = ceph.ask(&["osd", "blocklist", "ls"])?;
    let fenced = fenced.as_array().context("no list")?;
    ensure!(fenced.iter().all(|it| !it.to_string().contains("10.77.0.2")), "fenced: {fenced:?}");
    Ok(())
}

/// The same node has the volume again at once: Ceph's own clients would fence that node, and all its volumes with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_left_does_not_fence_its_node() -> Result<()> {
    let Some(ceph) = Ceph::own("left").await? else { return Ok(()) };
    let (s, namespace) = on(&ceph, "left", ask::mount("ext4")).await?;
    let mut all = Vec::new();
    for name in ["kept", "again", "gone"] {
        let id = s.create(name).await?.volume_id;
        all.push(s.mount(&id, name).await?);
    }
    let [kept, again, gone] = all.as_slice() else { unreachable!() };
    for used in [kept, again, gone] {
        s.write(used, DATA)?;
    }
    cut_short(&s, &ceph, &namespace, again, "again").await?;
    cut_short(&s, &ceph, &namespace, gone, "gone").await?;

    let again = s.mount(&again.id, "again").await?;
    ensure!(s.read(&again, DATA.len())? == DATA);
    s.write(&again, b"and more")?;
    lives(&s, &ceph, kept)?;

    s.clients.node.clone().node_unstage_volume(ask::unstage(&gone.id, &gone.staging)).await?;
    let spec = format!("rbd/{namespace}/gone");
    let silent = || Ok(!ceph.run("rbd", &["status", &spec])?.contains("watcher="));
    until("the watch of the image times out", silent).await?;
    let snapshot = s.clients.controller.clone().create_snapshot(ask::snapshot(&gone.id, "gone")).await;
    refused(snapshot, Code::Unavailable, &["would fence it", "volumectl lock ls"])?;
    s.delete(&[&gone.id]).await?;
    let purged = || Ok(ceph.run("rbd", &["trash", "ls", &format!("rbd/{namespace}")])?.trim().is_empty());
    until("the deleted image is purged", purged).await?;
    lives(&s, &ceph, kept)?;
    for used in [kept, &again] {
        s.unmount(used).await?;
        s.delete(&[&used.id]).await?;
    }
    Ok(())
}
