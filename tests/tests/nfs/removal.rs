//! Deleted volumes of which the server does not let something be removed: what is said, counted and tried again.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::nfs::Nfs;
use tonic::Code;

use crate::world::World;

/// Whose the export is, and as whom the controller works; and a user of a pod.
const OWNER: u32 = 1500;
const USER: u32 = 2000;

/// A driver on a server that takes root for nobody.
async fn squashed(server: &Nfs, version: &str) -> Result<World> {
    let (share, dir) = server.share("removal")?;
    chown(&dir, Some(OWNER), Some(OWNER))?;
    World::at(server, share, dir, &format!(", nfsVersion: \"{version}\", uid: {OWNER}, gid: {OWNER}")).await
}

/// A volume with a file of a user's directory that only this user can remove, and files that go.
async fn volume(w: &World, name: &str, parameters: &[(&str, &str)]) -> Result<String> {
    let id = w.create(World::request(name, parameters)).await?.volume_id;
    let (dir, theirs) = (w.dir.join(name), w.dir.join(name).join("theirs"));
    for i in 0..40 {
        fs::create_dir_all(dir.join(format!("d{}/e", i % 4)))?;
        fs::write(dir.join(format!("d{}/e/{i}", i % 4)), "x")?;
    }
    fs::create_dir(&theirs)?;
    fs::write(theirs.join("stays"), "x")?;
    give(&dir, OWNER)?;
    give(&theirs, USER)?;
    World::settle().await;
    Ok(id)
}

fn give(dir: &std::path::Path, owner: u32) -> Result<()> {
    chown(dir, Some(owner), Some(owner))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(if dir.is_dir() { 0o755 } else { 0o644 }))?;
    if dir.is_dir() {
        for entry in fs::read_dir(dir)? {
            give(&entry?.path(), owner)?;
        }
    }
    Ok(())
}

/// What is left in the trash, as the server has it.
fn left(w: &World) -> Vec<String> {
    let files = walk(&w.own("trash"));
    files.into_iter().map(|path| path.display().to_string()).collect()
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

fn gauge(w: &World, name: &str) -> Result<f64> {
    let all = w.metric(&format!("volumectl_csi_nfs_{name}{{"))?;
    let line = all.first().with_context(|| format!("no {name}"))?;
    Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
}

async fn modify(w: &World, id: &str, key: &str, value: &str) -> Result<()> {
    let request = pb::ControllerModifyVolumeRequest {
        volume_id: id.into(),
        mutable_parameters: [(key.to_owned(), value.to_owned())].into(),
        ..pb::ControllerModifyVolumeRequest::default()
    };
    w.clients.controller.clone().controller_modify_volume(request).await?;
    Ok(())
}

/// `trash`: the call is answered; what stays is counted between tries, too, and goes when it can.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_removed_is_counted_until_it_is() -> Result<()> {
    if !Nfs::possible("counted") {
        return Ok(());
    }
    let server = Nfs::start("3,4", &["root_squash"])?;
    for version in ["3", "4.1"] {
        let mut w = squashed(&server, version).await?;
        let id = volume(&w, "v", &[]).await?;
        w.delete(&id).await?;
        ensure!(w.ids().await?.is_empty() && w.names()?.is_empty());
        for restarted in [false, true] {
            if restarted {
                w.restart().await?;
            }
            w.until("it is counted", || Ok(gauge(&w, "removals_stuck")? > 0.5)).await?;
            ensure!(
                left(&w).len() == 1 && left(&w)[0].ends_with("theirs/stays"),
                "all else is gone: {:?}",
                left(&w)
            );
            // Longer than the time between two tries (sweepSeconds: 2).
            for _ in 0..50 {
                let counted = (gauge(&w, "removals_stuck")?, gauge(&w, "removals_pending")?);
                ensure!(counted.0 > 0.5 && counted.1 > 0.5, "{counted:?}");
                tokio::time::sleep(std::time::Duration::from_millis(60)).await;
            }
            let info =
                w.clients.identity.clone().get_plugin_info(pb::GetPluginInfoRequest {}).await?.into_inner();
            let attention = info.manifest.get("attention").cloned().unwrap_or_default();
            ensure!(attention.contains("theirs/stays"), "{:?}", info.manifest);
        }
        give(&w.own("trash"), OWNER)?;
        w.until_clean().await?;
        w.until("nothing is counted", || Ok(gauge(&w, "removals_stuck")? < 0.5)).await?;
        ensure!(gauge(&w, "removals_pending")? < 0.5);
    }
    Ok(())
}

/// `fail`: the call fails with the first path as long as something stays, also after a restart, and is answered when all is
/// removed. The volume is one until then.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_fails_with_the_path_until_all_is_removed() -> Result<()> {
    if !Nfs::possible("fails") {
        return Ok(());
    }
    let server = Nfs::start("3,4", &["root_squash"])?;
    for version in ["3", "4.1"] {
        let mut w = squashed(&server, version).await?;
        let id = volume(&w, "v", &[("onDeleteFailure", "fail")]).await?;
        for restarted in [false, false, true] {
            if restarted {
                w.restart().await?;
            }
            let error = w.delete(&id).await.err().context("it cannot be deleted")?;
            ensure!(error.code() == Code::FailedPrecondition, "{error}");
            ensure!(
                error.message().contains("theirs/stays") && error.message().contains("/trash/"),
                "{error}"
            );
            ensure!(left(&w).len() == 1 && w.names()?.is_empty(), "{:?}", left(&w));
            ensure!(w.ids().await? == std::slice::from_ref(&id));
            let condition = w.get(&id).await?.status.unwrap_or_default().volume_condition.unwrap_or_default();
            ensure!(condition.abnormal && condition.message.contains("being deleted"), "{condition:?}");
        }
        give(&w.own("trash"), OWNER)?;
        World::settle().await;
        w.delete(&id).await?;
        ensure!(
            left(&w).is_empty()
                && fs::read_dir(w.own("trash"))?.next().is_none()
                && w.ids().await?.is_empty()
        );
        w.delete(&id).await?;

        // Set later, and taken back: then it is answered, and what stays is left to the sweeps.
        let id = volume(&w, "w", &[]).await?;
        modify(&w, &id, "onDeleteFailure", "fail").await?;
        let error = w.delete(&id).await.err().context("it cannot be deleted")?;
        ensure!(error.code() == Code::FailedPrecondition, "{error}");
        modify(&w, &id, "onDeleteFailure", "trash").await?;
        w.delete(&id).await?;
        ensure!(left(&w).len() == 1 && w.ids().await?.is_empty());
        give(&w.own("trash"), OWNER)?;
        w.until_clean().await?;
    }
    Ok(())
}

/// A directory that the driver must not look into may hold another share: it is not moved, and the path is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_be_looked_into_is_named() -> Result<()> {
    if !Nfs::possible("closed") {
        return Ok(());
    }
    let server = Nfs::start("3,4", &["root_squash"])?;
    let w = squashed(&server, "4.1").await?;
    let id = volume(&w, "v", &[]).await?;
    let closed = w.dir.join("v/theirs/deep");
    fs::create_dir_all(closed.join("deeper"))?;
    chown(&closed, Some(USER), Some(USER))?;
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700))?;
    World::settle().await;
    let error = w.delete(&id).await.err().context("it cannot be looked into")?;
    ensure!(error.code() == Code::FailedPrecondition && error.message().contains("v/theirs/deep"), "{error}");
    ensure!(w.names()? == ["v"] && w.ids().await? == [id]);
    Ok(())
}
