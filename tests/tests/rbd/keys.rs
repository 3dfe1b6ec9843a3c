//! What a driver that is killed leaves of the keys that it was given.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use csi_proto::v1 as pb;
use e2e::ceph::storage_daemon;
use e2e::drivers::Process;
use e2e::requests as ask;

use super::world::World;

/// The files below a directory that have a text in them.
fn files_with(dir: &Path, text: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type()))?;
        if kind.as_ref().is_ok_and(fs::FileType::is_dir) {
            found.extend(files_with(&path, text)?);
        } else if kind.is_ok_and(|kind| kind.is_file())
            && fs::read(&path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text))
        {
            found.push(path);
        }
    }
    Ok(found)
}

/// A qemu-storage-daemon that takes its time to begin: meanwhile the driver is killed.
fn slow_daemon(dir: &Path, real: &Path) -> Result<PathBuf> {
    let program = dir.join("qemu-storage-daemon");
    let begun = dir.join("begun");
    let text = format!("#!/bin/sh\n: >'{}'\nsleep 2\nexec '{}' \"$@\"\n", begun.display(), real.display());
    fs::write(&program, text)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_killed_while_it_maps_leaves_no_key() -> Result<()> {
    let test = "a_driver_that_is_killed_while_it_maps_leaves_no_key";
    let Some(w) = World::new("killed", "").await? else { return Ok(()) };
    let Some(real) = storage_daemon() else {
        e2e::skip(test, "no qemu-storage-daemon in target/tools");
        return Ok(());
    };
    let id = w.make("killed").await?;
    let key = w.ceph.run("ceph", &["auth", "get-key", "client.admin"])?.trim().to_owned();
    let dir = w.scratch.path().join("killed");
    let staging = dir.join("kubelet/stage");
    fs::create_dir_all(&staging)?;
    let config = w.ceph.config_in(&dir, "rbd", &w.namespace, &w.namespace, "");
    if !config.contains("mounter: fuse") {
        e2e::skip(test, "the kernel's client is handed the key by the kernel");
        return Ok(());
    }
    let slow = slow_daemon(&dir, &real)?;
    let slowly = config.replace(&real.display().to_string(), &slow.display().to_string());

    let mut driver = Process::start(&dir, &slowly)?;
    let mut node = driver.clients().await?.node;
    let request: pb::NodeStageVolumeRequest = ask::stage(&id, &staging, ask::mount("ext4"));
    let call = tokio::spawn({
        let request = request.clone();
        async move { node.node_stage_volume(request).await }
    });
    w.until("the daemon is started", || Ok(dir.join("begun").exists())).await?;
    ensure!(files_with(&dir.join("state"), &key)?.is_empty(), "no file has the key while an image is mapped");
    driver.kill()?;
    ensure!(call.await?.is_err(), "the driver was killed in the call");
    ensure!(files_with(&dir, &key)?.is_empty(), "what a killed driver leaves: {:?}", files_with(&dir, &key)?);

    // Drivers before this one wrote the key to a file.
    let mapping = fs::read_dir(dir.join("state/rbd"))?.next().transpose()?.map(|entry| entry.path());
    let left = mapping.unwrap_or_default().join("ceph.conf");
    fs::write(&left, format!("[global]\nkey = {key}\n"))?;
    let mut driver = Process::start(&dir, &config)?;
    let mut node = driver.clients().await?.node;
    ensure!(!left.exists(), "the next start removes it");
    w.until("the daemon that was begun is ended", || Ok(!is_begun(&dir)?)).await.ok();
    for _ in 0..20 {
        match node.node_stage_volume(request.clone()).await {
            Ok(_) => break,
            Err(_) => tokio::time::sleep(std::time::Duration::from_secs(1)).await,
        }
    }
    node.node_stage_volume(request).await?;
    ensure!(files_with(&dir, &key)?.is_empty(), "a mapped image has its key in no file");
    node.node_unstage_volume(ask::unstage(&id, &staging)).await?;
    drop(driver);
    w.delete(&id).await
}

/// Whether the slow daemon still waits.
fn is_begun(dir: &Path) -> Result<bool> {
    let wanted = dir.join("qemu-storage-daemon").display().to_string();
    Ok(fs::read_dir("/proc")?.flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&wanted)
    }))
}
