//! The node's side: stage, publish, statistics, growth.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use pb::volume_capability::access_mode::Mode;
use tonic::Code::{AlreadyExists, FailedPrecondition, NotFound};

use super::{Subject, Used, refused};
use crate::requests as ask;

const DATA: &[u8] = b"what a database would keep";

/// Create, stage, publish, unpublish, unstage, delete, each done twice.
pub async fn a_volume_lives_its_whole_life(s: &Subject) -> Result<()> {
    let id = s.create("contract-life").await?.volume_id;
    let (first, again) = (s.mount(&id, "life").await?, s.mount(&id, "life").await?);
    s.write(&first, DATA)?;
    ensure!(s.read(&again, DATA.len())? == DATA);
    if s.guards_use {
        refused(
            s.clients.controller.clone().delete_volume(ask::delete(&id)).await,
            FailedPrecondition,
            &[&id],
        )?;
    }
    s.unmount(&first).await?;
    s.unmount(&first).await?;
    ensure!(!first.target.exists(), "NodeUnpublishVolume removes the target");
    s.delete(&[&id]).await
}

/// Data is there after unstage and stage, and a file system is not made anew.
pub async fn data_survives_unstage(s: &Subject) -> Result<()> {
    let id = s.create("contract-survive").await?.volume_id;
    let used = s.mount(&id, "a").await?;
    s.write(&used, DATA)?;
    s.unmount(&used).await?;
    let used = s.mount(&id, "b").await?;
    ensure!(s.read(&used, DATA.len())? == DATA);
    s.unmount(&used).await?;
    s.delete(&[&id]).await
}

async fn stats(s: &Subject, used: &Used) -> Result<pb::NodeGetVolumeStatsResponse> {
    let request = ask::stats(&used.id, &used.target);
    Ok(s.clients.node.clone().node_get_volume_stats(request).await?.into_inner())
}

/// NodeGetVolumeStats: bytes (and inodes of a file system), and a condition.
pub async fn statistics_are_given(s: &Subject) -> Result<()> {
    let id = s.create("contract-stats").await?.volume_id;
    let used = s.mount(&id, "stats").await?;
    let answer = stats(s, &used).await?;
    let bytes =
        answer.usage.iter().find(|u| u.unit() == pb::volume_usage::Unit::Bytes).context("no bytes")?;
    ensure!(bytes.total > 0 && bytes.used >= 0 && bytes.available <= bytes.total, "{bytes:?}");
    ensure!(!s.sized || bytes.total <= s.size, "{bytes:?} is more than {}", s.size);
    ensure!(s.is_block() || answer.usage.len() == 2, "inodes are given: {answer:?}");
    ensure!(answer.volume_condition.is_some_and(|c| !c.abnormal && !c.message.is_empty()));
    let request = pb::NodeGetVolumeStatsRequest {
        volume_id: id.clone(),
        volume_path: s.path("not-there")?.display().to_string(),
        staging_target_path: String::new(),
    };
    refused(
        s.clients.node.clone().node_get_volume_stats(request).await,
        tonic::Code::NotFound,
        &["not-there"],
    )?;
    s.unmount(&used).await?;
    s.delete(&[&id]).await
}

/// NodeGetVolumeStats and NodeExpandVolume find a volume where it is, and nowhere else.
pub async fn a_path_of_no_volume_or_another_is_not_found(s: &Subject) -> Result<()> {
    let id = s.create("contract-elsewhere").await?.volume_id;
    let other = s.create("contract-elsewhere-other").await?.volume_id;
    let (used, theirs) = (s.mount(&id, "elsewhere").await?, s.mount(&other, "theirs").await?);
    let nothing = s.path("elsewhere/nothing")?;
    fs::create_dir_all(&nothing)?;
    let link = s.path("elsewhere/link")?;
    std::os::unix::fs::symlink(&used.target, &link)?;
    let mut paths =
        vec!["some/path".into(), "/".into(), "/proc".into(), nothing, link, used.target.join("..")];
    // Which directory of a share is mounted somewhere is not known without asking the server.
    let info = s.clients.identity.clone().get_plugin_info(pb::GetPluginInfoRequest {}).await?.into_inner();
    if info.manifest.get("backend").is_none_or(|backend| backend != "nfs") {
        paths.push(theirs.target.clone());
    }
    for path in &paths {
        let answer = s.clients.node.clone().node_get_volume_stats(ask::stats(&id, path)).await;
        refused(answer, NotFound, &[&id]).with_context(|| format!("statistics of {}", path.display()))?;
        let answer = s.clients.node.clone().node_expand_volume(ask::node_expand(&id, path, s.size)).await;
        refused(answer, NotFound, &[&id]).with_context(|| format!("growing {}", path.display()))?;
    }
    stats(s, &used).await?;
    s.unmount(&used).await?;
    s.unmount(&theirs).await?;
    s.delete(&[&id, &other]).await
}

/// A read-only publication cannot be written, and cannot be asked for writable at the same target.
pub async fn read_only_is_read_only(s: &Subject) -> Result<()> {
    let id = s.create("contract-readonly").await?.volume_id;
    let used = s.mount(&id, "rw").await?;
    s.write(&used, DATA)?;
    s.clients.node.clone().node_unpublish_volume(ask::unpublish(&id, &used.target)).await?;
    let mut request = ask::publish(&id, &used.staging, &used.target, s.capability.clone());
    request.readonly = true;
    for _ in 0..2 {
        s.clients.node.clone().node_publish_volume(request.clone()).await?;
    }
    ensure!(s.read(&used, DATA.len())? == DATA);
    ensure!(s.write(&used, b"no").is_err(), "a read-only publication was written to");
    request.readonly = false;
    refused(s.clients.node.clone().node_publish_volume(request).await, AlreadyExists, &["read"])?;
    s.unmount(&used).await?;
    s.delete(&[&id]).await
}

/// SINGLE_NODE_WRITER: two pods of one node.
pub async fn two_pods_share_a_volume(s: &Subject) -> Result<()> {
    let id = s.create("contract-share").await?.volume_id;
    let first = s.mount(&id, "share").await?;
    let second = Used { id: id.clone(), staging: first.staging.clone(), target: s.path("share/second")? };
    let request = ask::publish(&id, &second.staging, &second.target, s.capability.clone());
    s.clients.node.clone().node_publish_volume(request).await?;
    s.write(&first, DATA)?;
    ensure!(s.read(&second, DATA.len())? == DATA);
    s.clients.node.clone().node_unpublish_volume(ask::unpublish(&id, &first.target)).await?;
    ensure!(s.read(&second, DATA.len())? == DATA, "the other pod keeps its volume");
    s.unmount(&second).await?;
    s.delete(&[&id]).await
}

/// SINGLE_NODE_SINGLE_WRITER (ReadWriteOncePod): a second target is refused.
pub async fn one_pod_only_means_one(s: &Subject) -> Result<()> {
    let id = s.create("contract-rwop").await?.volume_id;
    let alone = ask::with_mode(&s.capability, Mode::SingleNodeSingleWriter);
    let (staging, target, second) = (s.path("rwop/staging")?, s.path("rwop/one")?, s.path("rwop/two")?);
    fs::create_dir_all(&staging)?;
    let mut node = s.clients.node.clone();
    node.node_stage_volume(s.stage_request(&id, &staging, alone.clone()).await?).await?;
    for _ in 0..2 {
        node.node_publish_volume(ask::publish(&id, &staging, &target, alone.clone())).await?;
    }
    let other = ask::publish(&id, &staging, &second, alone.clone());
    refused(
        node.node_publish_volume(other.clone()).await,
        FailedPrecondition,
        &[&target.display().to_string()],
    )?;
    node.node_unpublish_volume(ask::unpublish(&id, &target)).await?;
    node.node_publish_volume(other).await?;
    s.unmount(&Used { id: id.clone(), staging, target: second }).await?;
    s.delete(&[&id]).await
}

async fn total(s: &Subject, used: &Used) -> Result<i64> {
    let bytes = stats(s, used).await?.usage.into_iter().find(|u| u.unit() == pb::volume_usage::Unit::Bytes);
    Ok(bytes.context("no bytes")?.total)
}

/// ControllerExpandVolume and NodeExpandVolume while the volume is in use.
pub async fn a_staged_volume_grows(s: &Subject) -> Result<()> {
    if let Err(reason) = &s.grows_staged {
        crate::skip("a_staged_volume_grows", reason);
        return Ok(());
    }
    let id = s.create("contract-grow").await?.volume_id;
    let used = s.mount(&id, "grow").await?;
    s.write(&used, DATA)?;
    let before = total(s, &used).await?;
    let answer =
        s.clients.controller.clone().controller_expand_volume(ask::expand(&id, s.grown)).await?.into_inner();
    for _ in 0..2 {
        let request = pb::NodeExpandVolumeRequest {
            staging_target_path: used.staging.display().to_string(),
            ..ask::node_expand(&id, &used.target, answer.capacity_bytes)
        };
        let grown = s.clients.node.clone().node_expand_volume(request).await?.into_inner();
        ensure!(!s.sized || grown.capacity_bytes >= s.grown, "{grown:?}");
    }
    let after = total(s, &used).await?;
    ensure!(!s.sized || after - before >= (s.grown - s.size) / 2, "from {before} to {after} bytes");
    ensure!(s.read(&used, DATA.len())? == DATA);
    s.unmount(&used).await?;
    s.delete(&[&id]).await
}

/// Grown while nobody used it: the next stage finds the room.
pub async fn an_unstaged_volume_grows(s: &Subject) -> Result<()> {
    let id = s.create("contract-grow-later").await?.volume_id;
    let used = s.mount(&id, "later").await?;
    s.write(&used, DATA)?;
    let before = total(s, &used).await?;
    s.unmount(&used).await?;
    s.clients.controller.clone().controller_expand_volume(ask::expand(&id, s.grown)).await?;
    let used = s.mount(&id, "later").await?;
    let after = total(s, &used).await?;
    ensure!(!s.sized || after - before >= (s.grown - s.size) / 2, "from {before} to {after} bytes");
    ensure!(s.read(&used, DATA.len())? == DATA);
    s.unmount(&used).await?;
    s.delete(&[&id]).await
}
