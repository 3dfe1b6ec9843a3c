//! Wrong requests get the code of the specification and a text that names the field.

use anyhow::{Result, ensure};
use csi_proto::v1 as pb;
use pb::volume_capability::access_mode::Mode;
use tonic::Code::{FailedPrecondition, InvalidArgument, OutOfRange};

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
    let publish = |staging, target| ask::publish(id, staging, target, s.capability.clone());
    refused(node.node_publish_volume(publish(&staging, empty)).await, InvalidArgument, &["target_path"])?;
    refused(
        node.node_publish_volume(publish(empty, &target)).await,
        FailedPrecondition,
        &["staging_target_path"],
    )?;
    s.delete(&[id]).await
}
