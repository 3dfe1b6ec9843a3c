//! Create, delete, get, validate, expand and modify.

use anyhow::{Result, ensure};
use csi_proto::v1 as pb;
use tonic::Code::{AlreadyExists, InvalidArgument, NotFound, OutOfRange};

use super::{Subject, refused};
use crate::requests as ask;

/// Done twice is done once.
pub async fn create_and_delete_are_idempotent(s: &Subject) -> Result<()> {
    let first = s.create("contract-twice").await?;
    let second = s.create("contract-twice").await?;
    ensure!(first == second, "{first:?} is not {second:?}");
    ensure!(s.ids().await? == [first.volume_id.clone()], "one volume, not two");
    s.delete(&[&first.volume_id, &first.volume_id]).await?;
    let again = s.create("contract-twice").await?;
    s.delete(&[&again.volume_id]).await
}

/// DESIGN: same name, other wishes: ALREADY_EXISTS that says what differs.
pub async fn the_same_name_with_other_wishes_is_taken(s: &Subject) -> Result<()> {
    let volume = s.create("contract-taken").await?;
    let good = s.create_request("contract-taken");
    let mut controller = s.clients.controller.clone();
    let mut larger = good.clone();
    larger.capacity_range = ask::at_least(s.grown * 2);
    refused(controller.create_volume(larger).await, AlreadyExists, &["contract-taken"])?;
    let mut limited = good.clone();
    limited.capacity_range = Some(pb::CapacityRange { required_bytes: 1, limit_bytes: 1 << 20 });
    if s.size > 1 << 20 {
        let code = controller.create_volume(limited).await.err().map(|e| e.code());
        ensure!(matches!(code, Some(AlreadyExists | OutOfRange)), "a limit below the size: {code:?}");
    }
    let mut sourced = good;
    let other = s.create("contract-taken-source").await?;
    sourced.volume_content_source = ask::from_volume(&other.volume_id);
    refused(controller.create_volume(sourced).await, AlreadyExists, &["contract-taken"])?;
    s.delete(&[&volume.volume_id, &other.volume_id]).await
}

/// 128 bytes, odd characters, names that differ only at the end.
pub async fn names_of_any_length_work(s: &Subject) -> Result<()> {
    let long = "n".repeat(127);
    let names =
        [format!("{long}a"), format!("{long}b"), "With Space/and:more".into(), "..".into(), "ünï".into()];
    let mut ids = std::collections::BTreeSet::new();
    for name in &names {
        let id = s.create(name).await?.volume_id;
        ensure!(id.len() <= 128, "{id} has {} bytes", id.len());
        ensure!(ids.insert(id.clone()), "{name:?} shares {id} with another name");
        ensure!(s.create(name).await?.volume_id == id);
    }
    for id in &ids {
        s.delete(&[id]).await?;
    }
    Ok(())
}

/// The size is at least what was required and within the limit; none asked: the default.
pub async fn sizes_are_kept(s: &Subject) -> Result<()> {
    let odd = s.size + 12_345;
    let mut request = s.create_request("contract-size");
    request.capacity_range = ask::at_least(odd);
    let volume = s.make(request.clone()).await?;
    ensure!(volume.capacity_bytes >= odd, "{} is below {odd}", volume.capacity_bytes);
    ensure!(
        s.get(&volume.volume_id).await?.volume.is_some_and(|v| v.capacity_bytes == volume.capacity_bytes)
    );
    s.delete(&[&volume.volume_id]).await?;

    request.name = "contract-exact".into();
    request.capacity_range = Some(pb::CapacityRange { required_bytes: s.size, limit_bytes: s.size });
    let exact = s.make(request.clone()).await?;
    ensure!(exact.capacity_bytes == s.size);
    s.delete(&[&exact.volume_id]).await?;

    request.name = "contract-default".into();
    request.capacity_range = None;
    let default = s.make(request).await?;
    ensure!(default.capacity_bytes > 0);
    s.delete(&[&default.volume_id]).await
}

/// A handle that is not ours is a volume that does not exist.
pub async fn a_missing_volume_is_not_found(s: &Subject) -> Result<()> {
    let gone = s.create("contract-gone").await?.volume_id;
    s.delete(&[&gone]).await?;
    let mut controller = s.clients.controller.clone();
    for id in [gone.as_str(), "not-one-of-ours", "../../etc/passwd", "a:b:c"] {
        s.delete(&[id]).await?;
        let get = pb::ControllerGetVolumeRequest { volume_id: id.into() };
        refused(controller.controller_get_volume(get).await, NotFound, &[id])?;
        refused(controller.controller_expand_volume(ask::expand(id, s.grown)).await, NotFound, &[id])?;
        let validate = pb::ValidateVolumeCapabilitiesRequest {
            volume_id: id.into(),
            volume_capabilities: vec![s.capability.clone()],
            ..pb::ValidateVolumeCapabilitiesRequest::default()
        };
        refused(controller.validate_volume_capabilities(validate).await, NotFound, &[id])?;
        let stats = pb::NodeGetVolumeStatsRequest {
            volume_id: id.into(),
            volume_path: "some/path".into(),
            ..Default::default()
        };
        refused(s.clients.node.clone().node_get_volume_stats(stats).await, NotFound, &[id])?;
        let grow = pb::NodeExpandVolumeRequest {
            volume_id: id.into(),
            volume_path: "some/path".into(),
            ..Default::default()
        };
        refused(s.clients.node.clone().node_expand_volume(grow).await, NotFound, &[id])?;
        let stage = ask::stage(id, &s.path("gone")?, s.capability.clone());
        refused(s.clients.node.clone().node_stage_volume(stage).await, NotFound, &[id])?;
    }
    Ok(())
}

/// Sixteen equal calls at once make one volume and all get it.
pub async fn repeated_calls_join(s: &Subject) -> Result<()> {
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (mut controller, request) = (s.clients.controller.clone(), s.create_request("contract-join"));
        calls.spawn(async move { controller.create_volume(request).await });
    }
    let mut ids = std::collections::BTreeSet::new();
    while let Some(call) = calls.join_next().await {
        ids.extend(call??.into_inner().volume.map(|v| v.volume_id));
    }
    ensure!(ids.len() == 1, "{ids:?}");
    let id = ids.into_iter().next().unwrap_or_default();
    for _ in 0..16 {
        let mut controller = s.clients.controller.clone();
        let id = id.clone();
        calls.spawn(async move {
            controller.delete_volume(ask::delete(&id)).await?;
            Ok(tonic::Response::new(pb::CreateVolumeResponse::default()))
        });
    }
    while let Some(call) = calls.join_next().await {
        call??;
    }
    Ok(())
}

/// Different volumes do not wait for each other, and none gets lost.
pub async fn many_volumes_at_once(s: &Subject) -> Result<()> {
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..24 {
        let (mut controller, request) =
            (s.clients.controller.clone(), s.create_request(&format!("contract-many-{i}")));
        calls.spawn(async move {
            let id =
                controller.create_volume(request).await?.into_inner().volume.unwrap_or_default().volume_id;
            controller.create_volume(pb::CreateVolumeRequest::default()).await.err();
            Ok::<_, tonic::Status>(id)
        });
    }
    let mut ids = Vec::new();
    while let Some(call) = calls.join_next().await {
        ids.push(call??);
    }
    ids.sort();
    ensure!(s.ids().await? == ids, "the list has what was created");
    s.delete(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// ValidateVolumeCapabilities confirms what is and says why not.
pub async fn capabilities_are_validated(s: &Subject) -> Result<()> {
    let volume = s.create("contract-validate").await?;
    let request = pb::ValidateVolumeCapabilitiesRequest {
        volume_id: volume.volume_id.clone(),
        volume_context: volume.volume_context.clone(),
        volume_capabilities: vec![s.capability.clone()],
        parameters: s.parameters.clone(),
        ..pb::ValidateVolumeCapabilitiesRequest::default()
    };
    let mut controller = s.clients.controller.clone();
    let answer = controller.validate_volume_capabilities(request.clone()).await?.into_inner();
    let confirmed = answer.confirmed.unwrap_or_default();
    ensure!(confirmed.volume_capabilities == [s.capability.clone()], "{}", answer.message);
    let none = pb::ValidateVolumeCapabilitiesRequest { volume_capabilities: Vec::new(), ..request.clone() };
    refused(controller.validate_volume_capabilities(none).await, InvalidArgument, &["volume_capabilities"])?;
    let strange =
        pb::ValidateVolumeCapabilitiesRequest { volume_capabilities: vec![ask::mount("tapefs")], ..request };
    let answer = controller.validate_volume_capabilities(strange).await?.into_inner();
    ensure!(
        answer.confirmed.is_none() && !answer.message.is_empty(),
        "a file system that is not offered: {answer:?}"
    );
    s.delete(&[&volume.volume_id]).await
}

/// ControllerExpandVolume.
pub async fn expansion_grows_and_never_shrinks(s: &Subject) -> Result<()> {
    let volume = s.create("contract-expand").await?;
    let id = volume.volume_id.as_str();
    let mut controller = s.clients.controller.clone();
    for _ in 0..2 {
        let grown = controller.controller_expand_volume(ask::expand(id, s.grown)).await?.into_inner();
        ensure!(grown.capacity_bytes >= s.grown, "{grown:?}");
    }
    let same = controller.controller_expand_volume(ask::expand(id, s.size)).await?.into_inner();
    ensure!(same.capacity_bytes >= s.grown, "a smaller wish leaves it as it is: {same:?}");
    ensure!(s.get(id).await?.volume.is_some_and(|v| v.capacity_bytes >= s.grown));
    let mut limited = ask::expand(id, 1);
    limited.capacity_range = Some(pb::CapacityRange { required_bytes: 1, limit_bytes: s.size });
    refused(controller.controller_expand_volume(limited).await, OutOfRange, &[])?;
    let mut none = ask::expand(id, 1);
    none.capacity_range = None;
    refused(controller.controller_expand_volume(none).await, InvalidArgument, &["capacity_range"])?;
    s.delete(&[id]).await
}

/// ControllerModifyVolume refuses what it does not know and what cannot change.
pub async fn what_cannot_be_modified_is_refused(s: &Subject) -> Result<()> {
    let volume = s.create("contract-modify").await?;
    if s.can(pb::controller_service_capability::rpc::Type::ModifyVolume).await? {
        let request = pb::ControllerModifyVolumeRequest {
            volume_id: volume.volume_id.clone(),
            mutable_parameters: [("iopz".to_owned(), "100".to_owned())].into(),
            ..pb::ControllerModifyVolumeRequest::default()
        };
        refused(
            s.clients.controller.clone().controller_modify_volume(request).await,
            InvalidArgument,
            &["iopz"],
        )?;
    }
    s.delete(&[&volume.volume_id]).await
}

/// ControllerModifyVolume and `mutable_parameters` of CreateVolume, where the backend has something to change.
pub async fn mutable_parameters_are_set_at_creation_and_later(s: &Subject) -> Result<()> {
    if !s.can(pb::controller_service_capability::rpc::Type::ModifyVolume).await? {
        return Ok(());
    }
    let mut controller = s.clients.controller.clone();
    let good = || [(s.mutable.0.to_owned(), s.mutable.1.to_owned())].into();
    let wrong = || [("iopz".to_owned(), "100".to_owned())].into();
    let modify = |id: &str, mutable_parameters| pb::ControllerModifyVolumeRequest {
        volume_id: id.into(),
        mutable_parameters,
        ..Default::default()
    };
    let mut with = s.create_request("contract-mutable-with");
    with.mutable_parameters = wrong();
    refused(controller.create_volume(with.clone()).await, InvalidArgument, &["mutable_parameters", "iopz"])?;
    with.mutable_parameters = good();
    let with = s.make(with).await?.volume_id;
    let without = s.create("contract-mutable-without").await?.volume_id;
    for id in [&with, &without] {
        for _ in 0..2 {
            controller.controller_modify_volume(modify(id, good())).await?;
        }
        refused(controller.controller_modify_volume(modify(id, wrong())).await, InvalidArgument, &["iopz"])?;
    }
    refused(controller.controller_modify_volume(modify("no-such-volume", good())).await, NotFound, &[])?;
    s.delete(&[&with, &without]).await
}
