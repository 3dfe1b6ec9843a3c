//! Wrong requests get the code of the specification and a text that names the field.

use anyhow::{Result, ensure};
use csi_proto::v1 as pb;
use pb::volume_capability::access_mode::Mode;
use tonic::Code::{FailedPrecondition, InvalidArgument, OutOfRange, Unimplemented};

use super::{Subject, refused};
use crate::requests as ask;

/// Identity: a name, a version, and capabilities that agree with the services.
pub async fn identity_says_what_it_is(s: &Subject) -> Result<()> {
    let mut identity = s.clients.identity.clone();
    let info = identity.get_plugin_info(pb::GetPluginInfoRequest {}).await?.into_inner();
    ensure!(info.name.contains('.') && info.name.len() <= 63 && !info.vendor_version.is_empty(), "{info:?}");
    let capabilities =
        identity.get_plugin_capabilities(pb::GetPluginCapabilitiesRequest {}).await?.into_inner();
    ensure!(!capabilities.capabilities.is_empty());
    let probe = identity.probe(pb::ProbeRequest {}).await?.into_inner();
    ensure!(probe.ready == Some(true));
    let node = s.clients.node.clone().node_get_info(pb::NodeGetInfoRequest {}).await?.into_inner();
    ensure!(!node.node_id.is_empty() && node.max_volumes_per_node >= 0, "{node:?}");
    Ok(())
}

/// What a service announces is answered, and what it does not announce is UNIMPLEMENTED.
pub async fn capabilities_agree_with_the_services(s: &Subject) -> Result<()> {
    use pb::controller_service_capability::rpc::Type as Can;
    let (mut c, mut node) = (s.clients.controller.clone(), s.clients.node.clone());
    let list = c.list_volumes(pb::ListVolumesRequest::default()).await.err().map(|e| e.code());
    let capacity = c.get_capacity(pb::GetCapacityRequest::default()).await.err().map(|e| e.code());
    let snapshots = c.list_snapshots(pb::ListSnapshotsRequest::default()).await.err().map(|e| e.code());
    let detach =
        c.controller_unpublish_volume(ask::detach("no-such-volume", "")).await.err().map(|e| e.code());
    let modify = pb::ControllerModifyVolumeRequest { volume_id: "no-such".into(), ..Default::default() };
    let modify = c.controller_modify_volume(modify).await.err().map(|e| e.code());
    for (can, answer) in [
        (Can::ListVolumes, list),
        (Can::GetCapacity, capacity),
        (Can::ListSnapshots, snapshots),
        (Can::PublishUnpublishVolume, detach),
        (Can::ModifyVolume, modify),
    ] {
        let announced = s.can(can).await?;
        ensure!(announced != (answer == Some(Unimplemented)), "{can:?}: announced: {announced}; {answer:?}");
    }
    let rpcs = node.node_get_capabilities(pb::NodeGetCapabilitiesRequest {}).await?.into_inner().capabilities;
    let known = rpcs.iter().all(|it| {
        use pb::node_service_capability::{Type, rpc::Type as Rpc};
        matches!(&it.r#type, Some(Type::Rpc(rpc)) if rpc.r#type() != Rpc::Unknown)
    });
    ensure!(!rpcs.is_empty() && known, "{rpcs:?}");
    let group = s
        .clients
        .group
        .clone()
        .group_controller_get_capabilities(pb::GroupControllerGetCapabilitiesRequest {})
        .await;
    let plugin = s
        .clients
        .identity
        .clone()
        .get_plugin_capabilities(pb::GetPluginCapabilitiesRequest {})
        .await?
        .into_inner();
    let announced = plugin.capabilities.iter().any(|it| {
        use pb::plugin_capability::{Type, service::Type as Service};
        matches!(&it.r#type, Some(Type::Service(it)) if it.r#type() == Service::GroupControllerService)
    });
    let has = group.as_ref().is_ok_and(|answer| !answer.get_ref().capabilities.is_empty());
    ensure!(announced == has, "the group service: announced: {announced}; {group:?}");
    Ok(())
}

/// CreateVolume.
pub async fn create_refuses_wrong_fields(s: &Subject) -> Result<()> {
    let good = s.create_request("contract-wrong");
    let try_with = async |change: &dyn Fn(&mut pb::CreateVolumeRequest)| {
        let mut request = good.clone();
        change(&mut request);
        s.clients.controller.clone().create_volume(request).await
    };
    refused(try_with(&|r| r.name.clear()).await, InvalidArgument, &["name", "required"])?;
    refused(try_with(&|r| r.name = "x".repeat(129)).await, InvalidArgument, &["name", "129", "128"])?;
    refused(try_with(&|r| r.name = "a\0b".into()).await, InvalidArgument, &["name", "U+0000"])?;
    refused(try_with(&|r| r.volume_capabilities.clear()).await, InvalidArgument, &["volume_capabilities"])?;
    let both = || vec![ask::mount(""), ask::block()];
    refused(try_with(&|r| r.volume_capabilities = both()).await, InvalidArgument, &["block and mount"])?;
    let no_type = pb::VolumeCapability { access_type: None, ..s.capability.clone() };
    let result = try_with(&|r| r.volume_capabilities = vec![no_type.clone()]).await;
    refused(result, InvalidArgument, &["volume_capabilities[0].access_type"])?;
    let no_mode = ask::with_mode(&s.capability, Mode::Unknown);
    let result = try_with(&|r| r.volume_capabilities = vec![no_mode.clone()]).await;
    refused(result, InvalidArgument, &["volume_capabilities[0].access_mode"])?;
    let range = |required_bytes, limit_bytes| Some(pb::CapacityRange { required_bytes, limit_bytes });
    refused(try_with(&|r| r.capacity_range = range(-1, 0)).await, InvalidArgument, &["required_bytes"])?;
    refused(try_with(&|r| r.capacity_range = range(2, 1)).await, OutOfRange, &["limit_bytes"])?;
    let huge = try_with(&|r| r.capacity_range = range(i64::MAX, 0)).await;
    let code = huge.as_ref().err().map(tonic::Status::code);
    ensure!(matches!(code, Some(OutOfRange | tonic::Code::ResourceExhausted)), "a size of 8 EiB: {huge:?}");
    let large = || [("k".to_owned(), "v".repeat(4096))].into();
    refused(try_with(&|r| r.parameters = large()).await, InvalidArgument, &["parameters", "4096"])?;
    let empty_source = || pb::VolumeContentSource { r#type: None };
    let result = try_with(&|r| r.volume_content_source = Some(empty_source())).await;
    refused(result, InvalidArgument, &["volume_content_source"])
}

/// Every call that is about a volume wants its handle.
pub async fn ids_are_required_everywhere(s: &Subject) -> Result<()> {
    let (mut controller, mut node) = (s.clients.controller.clone(), s.clients.node.clone());
    let words = &["volume_id", "required"];
    if s.can(pb::controller_service_capability::rpc::Type::PublishUnpublishVolume).await? {
        let attach = ask::attach("", "node", s.capability.clone());
        refused(controller.controller_publish_volume(attach).await, InvalidArgument, words)?;
        let mut attach = ask::attach("no-such-volume", "node", s.capability.clone());
        attach.volume_capability = None;
        let answer = controller.controller_publish_volume(attach).await;
        refused(answer, InvalidArgument, &["volume_capability"])?;
        let detach = ask::detach("", "node");
        refused(controller.controller_unpublish_volume(detach).await, InvalidArgument, words)?;
    }
    refused(controller.delete_volume(ask::delete("")).await, InvalidArgument, words)?;
    refused(controller.controller_expand_volume(ask::expand("", 1)).await, InvalidArgument, words)?;
    refused(
        controller.controller_get_volume(pb::ControllerGetVolumeRequest::default()).await,
        InvalidArgument,
        words,
    )?;
    let validate = pb::ValidateVolumeCapabilitiesRequest::default();
    refused(controller.validate_volume_capabilities(validate).await, InvalidArgument, words)?;
    let modify = pb::ControllerModifyVolumeRequest::default();
    refused(controller.controller_modify_volume(modify).await, InvalidArgument, words)?;
    refused(
        controller.create_snapshot(ask::snapshot("", "n")).await,
        InvalidArgument,
        &["source_volume_id"],
    )?;
    refused(controller.create_snapshot(ask::snapshot("v", "")).await, InvalidArgument, &["name"])?;
    refused(controller.delete_snapshot(ask::delete_snapshot("")).await, InvalidArgument, &["snapshot_id"])?;
    refused(
        controller.get_snapshot(pb::GetSnapshotRequest::default()).await,
        InvalidArgument,
        &["snapshot_id"],
    )?;
    let path = s.path("x")?;
    refused(
        node.node_stage_volume(ask::stage("", &path, s.capability.clone())).await,
        InvalidArgument,
        words,
    )?;
    refused(node.node_unstage_volume(ask::unstage("", &path)).await, InvalidArgument, words)?;
    refused(
        node.node_publish_volume(ask::publish("", &path, &path, s.capability.clone())).await,
        InvalidArgument,
        words,
    )?;
    refused(node.node_unpublish_volume(ask::unpublish("", &path)).await, InvalidArgument, words)?;
    refused(
        node.node_get_volume_stats(pb::NodeGetVolumeStatsRequest::default()).await,
        InvalidArgument,
        words,
    )?;
    refused(node.node_expand_volume(pb::NodeExpandVolumeRequest::default()).await, InvalidArgument, words)
}

/// A parameter with a slip is refused, and the text has the right spelling.
pub async fn unknown_parameters_name_the_nearest(s: &Subject) -> Result<()> {
    let mut request = s.create_request("contract-slip");
    request.parameters.insert(s.slip.0.into(), "-q".into());
    let answer = s.clients.controller.clone().create_volume(request).await;
    refused(answer, InvalidArgument, &[s.slip.0, s.slip.1])
}

/// Node calls check their paths and capabilities before they touch anything.
pub async fn paths_and_capabilities_are_checked_on_the_node(s: &Subject) -> Result<()> {
    let volume = s.create("contract-node-fields").await?;
    let (id, mut node) = (volume.volume_id.as_str(), s.clients.node.clone());
    let (staging, target) = (s.path("f/staging")?, s.path("f/target")?);
    let empty = std::path::Path::new("");
    let stage = |path, capability| pb::NodeStageVolumeRequest {
        volume_capability: capability,
        ..ask::stage(id, path, ask::block())
    };
    let good = Some(s.capability.clone());
    refused(
        node.node_stage_volume(stage(empty, good.clone())).await,
        InvalidArgument,
        &["staging_target_path"],
    )?;
    refused(
        node.node_stage_volume(stage("rel/path".as_ref(), good.clone())).await,
        InvalidArgument,
        &["absolute"],
    )?;
    refused(node.node_stage_volume(stage(&staging, None)).await, InvalidArgument, &["volume_capability"])?;
    refused(
        node.node_unstage_volume(ask::unstage(id, empty)).await,
        InvalidArgument,
        &["staging_target_path"],
    )?;
    refused(node.node_unpublish_volume(ask::unpublish(id, empty)).await, InvalidArgument, &["target_path"])?;
    let stats = node.node_get_volume_stats(ask::stats(id, empty)).await;
    refused(stats, InvalidArgument, &["volume_path"])?;
    let grow = node.node_expand_volume(ask::node_expand(id, empty, s.size)).await;
    refused(grow, InvalidArgument, &["volume_path"])?;
    let publish = |staging, target| ask::publish(id, staging, target, s.capability.clone());
    refused(node.node_publish_volume(publish(&staging, empty)).await, InvalidArgument, &["target_path"])?;
    refused(
        node.node_publish_volume(publish(empty, &target)).await,
        FailedPrecondition,
        &["staging_target_path"],
    )?;
    s.delete(&[id]).await
}

/// A field without a right form is told first, whatever the state of the volume, the snapshot or the paths is.
pub async fn form_comes_before_state(s: &Subject) -> Result<()> {
    let (mut controller, mut node) = (s.clients.controller.clone(), s.clients.node.clone());
    let large = || std::collections::BTreeMap::from([("k".to_owned(), "v".repeat(4096))]);
    let negative = Some(pb::CapacityRange { required_bytes: -1, limit_bytes: 0 });

    // The range's ends are in the wrong order, which is OUT_OF_RANGE, and a parameter is wrong.
    let mut create = s.create_request("contract-form");
    create.capacity_range = Some(pb::CapacityRange { required_bytes: 2, limit_bytes: 1 });
    create.parameters.insert(s.slip.0.into(), "-q".into());
    refused(controller.create_volume(create).await, InvalidArgument, &[s.slip.0])?;
    let mut grow = ask::expand("no-such-volume", 1);
    grow.capacity_range.clone_from(&negative);
    refused(controller.controller_expand_volume(grow).await, InvalidArgument, &["required_bytes"])?;
    let validate = pb::ValidateVolumeCapabilitiesRequest {
        volume_id: "no-such-volume".into(),
        volume_capabilities: vec![s.capability.clone()],
        volume_context: large(),
        ..Default::default()
    };
    refused(controller.validate_volume_capabilities(validate).await, InvalidArgument, &["volume_context"])?;
    let list = pb::ListSnapshotsRequest {
        starting_token: "bogus".into(),
        snapshot_id: "x".repeat(129),
        ..Default::default()
    };
    refused(controller.list_snapshots(list).await, InvalidArgument, &["snapshot_id"])?;

    let (empty, target) = (std::path::Path::new(""), s.path("form/target")?);
    let publish = |staging: &str| pb::NodePublishVolumeRequest {
        volume_id: "no-such-volume".into(),
        staging_target_path: staging.into(),
        target_path: target.display().to_string(),
        ..Default::default()
    };
    refused(node.node_publish_volume(publish("")).await, InvalidArgument, &["volume_capability"])?;
    refused(node.node_publish_volume(publish("rel/path")).await, InvalidArgument, &["staging_target_path"])?;
    let mut with_context = ask::publish("no-such-volume", empty, &target, s.capability.clone());
    with_context.volume_context = large();
    refused(node.node_publish_volume(with_context).await, InvalidArgument, &["volume_context"])?;
    let mut stage = ask::stage("no-such-volume", &s.path("form/staging")?, s.capability.clone());
    stage.publish_context = large();
    refused(node.node_stage_volume(stage).await, InvalidArgument, &["publish_context"])?;
    let mut grow = ask::node_expand("no-such-volume", &target, 1);
    grow.capacity_range = negative;
    refused(node.node_expand_volume(grow).await, InvalidArgument, &["required_bytes"])?;
    let mut stats = ask::stats("no-such-volume", &target);
    stats.staging_target_path = "rel/path".into();
    refused(node.node_get_volume_stats(stats).await, InvalidArgument, &["staging_target_path"])
}
