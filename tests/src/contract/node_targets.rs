//! Targets that are not what kubelet would give, or that somebody uses.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Result, ensure};
use tonic::Code::{AlreadyExists, FailedPrecondition, InvalidArgument};

use super::{Subject, Used, refused};
use crate::requests as ask;

/// A symbolic link on the way, `..`, and a file where a directory should be (or the other way round).
pub async fn bad_targets_are_refused(s: &Subject) -> Result<()> {
    let id = s.create("contract-targets").await?.volume_id;
    let used = s.mount(&id, "targets").await?;
    let victim = s.path("victim/keep")?;
    fs::write(&victim, "untouched")?;
    let link = s.path("targets/link")?;
    symlink(s.path("victim")?, &link)?;
    let try_at = async |target: std::path::PathBuf| {
        s.clients
            .node
            .clone()
            .node_publish_volume(ask::publish(&id, &used.staging, &target, s.capability.clone()))
            .await
    };
    refused(try_at(link.join("inside")).await, InvalidArgument, &["link", "symbolic link"])?;
    refused(try_at(link.clone()).await, InvalidArgument, &["symbolic link"])?;
    refused(try_at(s.path("targets/x/../../victim/y")?).await, InvalidArgument, &[".."])?;
    let wrong = s.path("targets/wrong")?;
    if s.is_block() {
        fs::create_dir(&wrong)?;
    } else {
        fs::write(&wrong, "a file")?;
    }
    let code = try_at(wrong.clone()).await.err().map(|e| e.code());
    ensure!(matches!(code, Some(InvalidArgument | FailedPrecondition)), "the wrong kind of target: {code:?}");
    ensure!(s.is_block() || fs::read_to_string(&wrong)? == "a file", "the file in the way was kept");
    ensure!(fs::read_to_string(&victim)? == "untouched");
    ensure!(fs::read_dir(s.path("victim")?)?.count() == 1, "nothing was made through the link");
    s.unmount(&used).await?;
    s.delete(&[&id]).await
}

/// An open file keeps a volume: the refusal names the process, and later it works.
pub async fn a_busy_volume_is_not_unmounted(s: &Subject) -> Result<()> {
    let id = s.create("contract-busy").await?.volume_id;
    let used = s.mount(&id, "busy").await?;
    s.write(&used, b"busy")?;
    let path = if s.is_block() { used.target.clone() } else { used.target.join("data") };
    let open = fs::File::open(&path)?;
    if !s.is_block() {
        let answer = s.clients.node.clone().node_unpublish_volume(ask::unpublish(&id, &used.target)).await;
        refused(answer, FailedPrecondition, &[&used.target.display().to_string()])?;
    }
    drop(open);
    s.unmount(&used).await?;
    s.delete(&[&id]).await
}

/// What somebody else mounted at the target is neither taken for ours nor unmounted by a publish.
pub async fn a_foreign_mount_is_left_alone(s: &Subject) -> Result<()> {
    let id = s.create("contract-foreign").await?.volume_id;
    let other = s.create("contract-foreign-other").await?.volume_id;
    let (used, theirs) = (s.mount(&id, "mine").await?, s.mount(&other, "theirs").await?);
    s.write(&theirs, b"theirs")?;
    let request = ask::publish(&id, &used.staging, &theirs.target, s.capability.clone());
    refused(
        s.clients.node.clone().node_publish_volume(request).await,
        AlreadyExists,
        &[&theirs.target.display().to_string()],
    )?;
    ensure!(s.read(&theirs, 6)? == b"theirs");
    s.unmount(&used).await?;
    s.unmount(&theirs).await?;
    s.delete(&[&id, &other]).await
}

/// Kubelet repeats these after its own restart, and for volumes that are gone.
pub async fn unpublish_and_unstage_of_nothing_are_fine(s: &Subject) -> Result<()> {
    let id = s.create("contract-nothing").await?.volume_id;
    let nothing =
        Used { id: id.clone(), staging: s.path("nothing/staging")?, target: s.path("nothing/target")? };
    s.unmount(&nothing).await?;
    fs::create_dir_all(&nothing.staging)?;
    fs::create_dir_all(&nothing.target)?;
    s.unmount(&nothing).await?;
    ensure!(!nothing.target.exists());
    s.delete(&[&id]).await?;
    s.unmount(&nothing).await
}
