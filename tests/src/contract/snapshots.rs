//! Snapshots, restore, clones and groups.

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use pb::controller_service_capability::rpc::Type as Can;
use tonic::Code::{AlreadyExists, InvalidArgument, NotFound, OutOfRange};

use super::{Subject, refused};
use crate::requests as ask;

const OLD: &[u8] = b"as it was at the snapshot";
const NEW: &[u8] = b"written after the snapshot";

/// Done twice is done once, creation time included; the name is taken for another volume.
pub async fn snapshots_are_idempotent(s: &Subject) -> Result<()> {
    let (a, b) = (s.create("contract-snap-a").await?, s.create("contract-snap-b").await?);
    let first = s.snapshot(&a.volume_id, "contract-snap").await?;
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    let second = s.snapshot(&a.volume_id, "contract-snap").await?;
    ensure!(first == second, "{first:?} is not {second:?}");
    ensure!(first.ready_to_use && first.creation_time.is_some() && first.size_bytes >= s.size, "{first:?}");
    let other =
        s.clients.controller.clone().create_snapshot(ask::snapshot(&b.volume_id, "contract-snap")).await;
    refused(other, AlreadyExists, &["contract-snap"])?;
    let missing = s.clients.controller.clone().create_snapshot(ask::snapshot("no-such-volume", "x")).await;
    refused(missing, NotFound, &["no-such-volume"])?;
    let get = pb::GetSnapshotRequest { snapshot_id: first.snapshot_id.clone(), ..Default::default() };
    ensure!(
        s.clients.controller.clone().get_snapshot(get).await?.into_inner().snapshot == Some(first.clone())
    );
    for id in ["no-such-snapshot", "a:b:c"] {
        let get = pb::GetSnapshotRequest { snapshot_id: id.into(), ..Default::default() };
        refused(s.clients.controller.clone().get_snapshot(get).await, NotFound, &[id])?;
    }
    s.delete_snapshot(&first.snapshot_id).await?;
    s.delete_snapshot(&first.snapshot_id).await?;
    s.delete_snapshot("no-such-snapshot").await?;
    s.delete(&[&a.volume_id, &b.volume_id]).await
}

/// 128 bytes, and names that differ only at the end.
pub async fn snapshot_names_of_any_length_work(s: &Subject) -> Result<()> {
    let volume = s.create("contract-long-snap").await?.volume_id;
    let long = "n".repeat(127);
    let mut ids = std::collections::BTreeSet::new();
    for end in ["a", "b"] {
        let id = s.snapshot(&volume, &format!("{long}{end}")).await?.snapshot_id;
        ensure!(id.len() <= 128 && ids.insert(id.clone()), "{id} of {} bytes", id.len());
    }
    for id in &ids {
        s.delete_snapshot(id).await?;
    }
    s.delete(&[&volume]).await
}

/// A snapshot of a mounted volume holds the data of its moment; the restore can be larger.
pub async fn a_restore_has_the_data_of_the_snapshot(s: &Subject) -> Result<()> {
    let volume = s.create("contract-restore-source").await?;
    let used = s.mount(&volume.volume_id, "source").await?;
    s.write(&used, OLD)?;
    if s.is_block() {
        // A raw device in use cannot be made to stand still.
        s.unmount(&used).await?;
    }
    let snapshot = s.snapshot(&volume.volume_id, "contract-restore").await?;
    let used = if s.is_block() { s.mount(&volume.volume_id, "source").await? } else { used };
    s.write(&used, NEW)?;

    let mut request = s.create_request("contract-restored");
    request.volume_content_source = ask::from_snapshot(&snapshot.snapshot_id);
    request.capacity_range = ask::at_least(s.grown);
    let restored = s.make(request.clone()).await?;
    ensure!(restored.content_source == request.volume_content_source && restored.capacity_bytes >= s.grown);
    ensure!(s.make(request.clone()).await? == restored);
    let other = s.mount(&restored.volume_id, "restored").await?;
    ensure!(s.read(&other, OLD.len())? == OLD, "the restore has the old data");
    ensure!(s.read(&used, NEW.len())? == NEW, "the source has the new data");
    s.unmount(&other).await?;
    s.unmount(&used).await?;
    s.delete(&[&restored.volume_id, &volume.volume_id]).await?;
    s.delete_snapshot(&snapshot.snapshot_id).await
}

/// A clone of a mounted volume.
pub async fn a_clone_has_the_data(s: &Subject) -> Result<()> {
    let volume = s.create("contract-clone-source").await?;
    let used = s.mount(&volume.volume_id, "source").await?;
    s.write(&used, OLD)?;
    if s.is_block() {
        s.unmount(&used).await?;
    }
    let mut request = s.create_request("contract-clone");
    request.volume_content_source = ask::from_volume(&volume.volume_id);
    let clone = s.make(request.clone()).await?;
    ensure!(clone.content_source == request.volume_content_source);
    let used = if s.is_block() { s.mount(&volume.volume_id, "source").await? } else { used };
    let other = s.mount(&clone.volume_id, "clone").await?;
    ensure!(s.read(&other, OLD.len())? == OLD);
    s.write(&other, NEW)?;
    ensure!(s.read(&used, OLD.len())? == OLD, "writing to the clone leaves the source alone");
    s.unmount(&other).await?;
    s.unmount(&used).await?;
    s.delete(&[&volume.volume_id, &clone.volume_id]).await
}

/// A source must exist and must not be larger than the volume.
pub async fn sources_are_checked(s: &Subject) -> Result<()> {
    let mut request = s.create_request("contract-no-source");
    let mut controller = s.clients.controller.clone();
    request.volume_content_source = ask::from_snapshot("no-such-snapshot");
    refused(controller.create_volume(request.clone()).await, NotFound, &["no-such-snapshot"])?;
    request.volume_content_source = ask::from_volume("no-such-volume");
    refused(controller.create_volume(request.clone()).await, NotFound, &["no-such-volume"])?;
    let mut large = s.create_request("contract-large");
    large.capacity_range = ask::at_least(s.grown);
    let large = s.make(large).await?;
    request.volume_content_source = ask::from_volume(&large.volume_id);
    request.capacity_range = Some(pb::CapacityRange { required_bytes: s.size, limit_bytes: s.size });
    refused(controller.create_volume(request).await, OutOfRange, &[])?;
    s.delete(&[&large.volume_id]).await
}

/// ListSnapshots: all, paged, by volume, by handle.
pub async fn snapshots_can_be_listed_and_filtered(s: &Subject) -> Result<()> {
    let (a, b) = (s.create("contract-ls-a").await?, s.create("contract-ls-b").await?);
    let (mut ids, mut of_a) = (Vec::new(), Vec::new());
    for (volume, name) in [(&a, "contract-ls-1"), (&a, "contract-ls-2"), (&b, "contract-ls-3")] {
        ids.push(s.snapshot(&volume.volume_id, name).await?.snapshot_id);
        if volume.volume_id == a.volume_id {
            of_a.extend(ids.last().cloned());
        }
    }
    // Listings are in the order of handles.
    ids.sort();
    of_a.sort();
    let list = async |request: pb::ListSnapshotsRequest| -> Result<(Vec<String>, String)> {
        let page = s.clients.controller.clone().list_snapshots(request).await?.into_inner();
        let ids = page.entries.into_iter().filter_map(|e| Some(e.snapshot?.snapshot_id)).collect();
        Ok((ids, page.next_token))
    };
    let all = pb::ListSnapshotsRequest::default;
    ensure!(list(all()).await?.0 == ids);
    let only_a = pb::ListSnapshotsRequest { source_volume_id: a.volume_id.clone(), ..all() };
    ensure!(list(only_a).await?.0 == of_a);
    let one = pb::ListSnapshotsRequest { snapshot_id: ids[2].clone(), ..all() };
    ensure!(list(one).await?.0 == ids[2..]);
    for nothing in [
        pb::ListSnapshotsRequest { snapshot_id: "no-such-snapshot".into(), ..all() },
        pb::ListSnapshotsRequest { source_volume_id: "no-such-volume".into(), ..all() },
    ] {
        ensure!(list(nothing).await?.0.is_empty());
    }
    let (first, token) = list(pb::ListSnapshotsRequest { max_entries: 2, ..all() }).await?;
    ensure!(first == ids[..2] && !token.is_empty());
    let (rest, token) =
        list(pb::ListSnapshotsRequest { max_entries: 2, starting_token: token, ..all() }).await?;
    ensure!(rest == ids[2..] && token.is_empty());
    for id in &ids {
        s.delete_snapshot(id).await?;
    }
    s.delete(&[&a.volume_id, &b.volume_id]).await
}

/// A volume with snapshots can be deleted, and they can still be restored.
pub async fn snapshots_outlive_their_volume(s: &Subject) -> Result<()> {
    let volume = s.create("contract-outlive").await?;
    let snapshot = s.snapshot(&volume.volume_id, "contract-outlive").await?;
    s.delete(&[&volume.volume_id]).await?;
    let mut request = s.create_request("contract-outlived");
    request.volume_content_source = ask::from_snapshot(&snapshot.snapshot_id);
    let restored = s.make(request).await?;
    s.delete(&[&restored.volume_id]).await?;
    s.delete_snapshot(&snapshot.snapshot_id).await
}

/// Group snapshots, where the backend has them.
pub async fn groups_are_all_or_nothing(s: &Subject) -> Result<()> {
    let request = pb::GroupControllerGetCapabilitiesRequest {};
    let mut group = s.clients.group.clone();
    if !s.can(Can::CreateDeleteSnapshot).await?
        || group.group_controller_get_capabilities(request).await.is_err()
    {
        return Ok(());
    }
    let (a, b) =
        (s.create("contract-group-a").await?.volume_id, s.create("contract-group-b").await?.volume_id);
    let wish = |ids: &[&str]| pb::CreateVolumeGroupSnapshotRequest {
        name: "contract-group".into(),
        source_volume_ids: ids.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    group_calls_want_their_fields(s).await?;
    refused(group.create_volume_group_snapshot(wish(&[])).await, InvalidArgument, &["source_volume_ids"])?;
    refused(group.create_volume_group_snapshot(wish(&[&a, &a])).await, InvalidArgument, &["twice"])?;
    refused(group.create_volume_group_snapshot(wish(&[&a, "no-such"])).await, NotFound, &["no-such"])?;
    ensure!(
        s.clients
            .controller
            .clone()
            .list_snapshots(pb::ListSnapshotsRequest::default())
            .await?
            .get_ref()
            .entries
            .is_empty()
    );

    let made = group
        .create_volume_group_snapshot(wish(&[&a, &b]))
        .await?
        .into_inner()
        .group_snapshot
        .context("no group")?;
    let again = group
        .create_volume_group_snapshot(wish(&[&b, &a]))
        .await?
        .into_inner()
        .group_snapshot
        .context("no group")?;
    ensure!(made == again && made.snapshots.len() == 2 && made.ready_to_use, "{made:?} is not {again:?}");
    ensure!(made.snapshots.iter().all(|m| m.group_snapshot_id == made.group_snapshot_id));
    refused(group.create_volume_group_snapshot(wish(&[&a])).await, AlreadyExists, &["contract-group"])?;
    let member = ask::delete_snapshot(&made.snapshots[0].snapshot_id);
    refused(s.clients.controller.clone().delete_snapshot(member).await, InvalidArgument, &["group"])?;

    group_is_found_and_deleted(s, made).await?;
    s.delete(&[&a, &b]).await
}

/// Without a name or a handle, and with one that is nobody's.
async fn group_calls_want_their_fields(s: &Subject) -> Result<()> {
    let mut group = s.clients.group.clone();
    let create = pb::CreateVolumeGroupSnapshotRequest {
        source_volume_ids: vec!["no-such-volume".into()],
        ..Default::default()
    };
    refused(group.create_volume_group_snapshot(create).await, InvalidArgument, &["name"])?;
    let words = &["group_snapshot_id", "required"];
    refused(
        group.get_volume_group_snapshot(pb::GetVolumeGroupSnapshotRequest::default()).await,
        InvalidArgument,
        words,
    )?;
    refused(
        group.delete_volume_group_snapshot(pb::DeleteVolumeGroupSnapshotRequest::default()).await,
        InvalidArgument,
        words,
    )?;
    let id = || "no-such-group".to_owned();
    let get = pb::GetVolumeGroupSnapshotRequest { group_snapshot_id: id(), ..Default::default() };
    refused(group.get_volume_group_snapshot(get).await, NotFound, &[&id()])?;
    let delete = pb::DeleteVolumeGroupSnapshotRequest { group_snapshot_id: id(), ..Default::default() };
    group.delete_volume_group_snapshot(delete).await?;
    Ok(())
}

/// GetVolumeGroupSnapshot and DeleteVolumeGroupSnapshot of a group.
async fn group_is_found_and_deleted(s: &Subject, made: pb::VolumeGroupSnapshot) -> Result<()> {
    let mut group = s.clients.group.clone();
    let ids: Vec<_> = made.snapshots.iter().map(|m| m.snapshot_id.clone()).collect();
    let get = |snapshot_ids| pb::GetVolumeGroupSnapshotRequest {
        group_snapshot_id: made.group_snapshot_id.clone(),
        snapshot_ids,
        ..Default::default()
    };
    ensure!(
        group.get_volume_group_snapshot(get(ids.clone())).await?.into_inner().group_snapshot
            == Some(made.clone())
    );
    refused(
        group.get_volume_group_snapshot(get(ids[..1].to_vec())).await,
        InvalidArgument,
        &["snapshot_ids"],
    )?;
    let delete = pb::DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: made.group_snapshot_id.clone(),
        snapshot_ids: ids.clone(),
        ..Default::default()
    };
    group.delete_volume_group_snapshot(delete.clone()).await?;
    group.delete_volume_group_snapshot(delete).await?;
    refused(group.get_volume_group_snapshot(get(ids)).await, NotFound, &[])?;
    Ok(())
}
