//! What external-attacher, kubelet and external-resizer do with a volume.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use csi_proto::v1 as pb;
use pb::controller_client::ControllerClient;
use pb::controller_service_capability::rpc::Type as Controller;
use pb::node_client::NodeClient;
use pb::node_service_capability::rpc::Type as Node;
use tonic::transport::Channel;

use super::manifests::Bundle;
use super::plan::Plan;
use super::session::Session;
use super::state::Bound;

/// Attaches a volume to this node.
pub async fn attach(session: &Session, bundle: &Bundle, plan: &Plan<'_>, bound: &mut Bound) -> Result<()> {
    if !session.controller_can(Controller::PublishUnpublishVolume) {
        return Ok(());
    }
    let node_id = &session.node_id;
    let request = pb::ControllerPublishVolumeRequest {
        volume_id: bound.volume_id.clone(),
        node_id: node_id.clone(),
        volume_capability: Some(plan.capability.clone()),
        readonly: plan.origin.read_only() && session.controller_can(Controller::PublishReadonly),
        secrets: plan.secrets(bundle, "controller-publish")?,
        volume_context: bound.volume_context.clone(),
    };
    bound.node_id = Some(node_id.clone());
    session.notes.note(&plan.claim.metadata, bound)?;
    let call = |mut client: ControllerClient<Channel>, request| async move {
        client.controller_publish_volume(request).await
    };
    let what = format!("attach {} to {node_id}", bound.claim);
    let answer = session.step(&what, &session.csi.controller, &request, call).await?;
    bound.publish_context = answer.publish_context;
    session.notes.note(&plan.claim.metadata, bound)
}

/// Stages it, where the driver has that, and publishes it.
pub async fn mount(session: &Session, bundle: &Bundle, plan: &Plan<'_>, bound: &mut Bound) -> Result<()> {
    if session.node_can(Node::StageUnstageVolume) {
        stage(session, bundle, plan, bound).await?;
    }
    let target = session.notes.target(&plan.claim.metadata);
    let parent = target.parent().context("the target has no parent")?;
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    bound.target = Some(target.clone());
    session.notes.note(&plan.claim.metadata, bound)?;
    let request = pb::NodePublishVolumeRequest {
        volume_id: bound.volume_id.clone(),
        publish_context: bound.publish_context.clone(),
        staging_target_path: text(bound.staging.as_ref()),
        target_path: target.display().to_string(),
        volume_capability: Some(plan.capability.clone()),
        readonly: plan.origin.read_only(),
        secrets: plan.secrets(bundle, "node-publish")?,
        volume_context: bound.volume_context.clone(),
    };
    let call =
        |mut client: NodeClient<Channel>, request| async move { client.node_publish_volume(request).await };
    let what = format!("publish {} at {}", bound.claim, target.display());
    session.step(&what, &session.csi.node, &request, call).await.map(drop)
}

async fn stage(session: &Session, bundle: &Bundle, plan: &Plan<'_>, bound: &mut Bound) -> Result<()> {
    let staging = session.notes.staging(&plan.claim.metadata);
    fs::create_dir_all(&staging).with_context(|| format!("making {}", staging.display()))?;
    bound.staging = Some(staging.clone());
    session.notes.note(&plan.claim.metadata, bound)?;
    let request = pb::NodeStageVolumeRequest {
        volume_id: bound.volume_id.clone(),
        publish_context: bound.publish_context.clone(),
        staging_target_path: staging.display().to_string(),
        volume_capability: Some(plan.capability.clone()),
        secrets: plan.secrets(bundle, "node-stage")?,
        volume_context: bound.volume_context.clone(),
    };
    let call =
        |mut client: NodeClient<Channel>, request| async move { client.node_stage_volume(request).await };
    session.step(&format!("stage {}", bound.claim), &session.csi.node, &request, call).await.map(drop)
}

fn text(path: Option<&PathBuf>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}

/// What external-resizer and kubelet do when a claim asks for more than its volume has.
pub async fn grow(session: &Session, bundle: &Bundle, plan: &Plan<'_>, bound: &mut Bound) -> Result<()> {
    if plan.range.required_bytes <= bound.capacity_bytes {
        return Ok(());
    }
    bound.requested_bytes = plan.range.required_bytes;
    session.notes.note(&plan.claim.metadata, bound)?;
    let grown = if session.controller_can(Controller::ExpandVolume) {
        grow_at_controller(session, bundle, plan, bound).await?
    } else {
        // As external-resizer does with a driver that grows volumes on their nodes alone.
        let capacity_bytes = plan.range.required_bytes;
        pb::ControllerExpandVolumeResponse { capacity_bytes, node_expansion_required: true }
    };
    bound.capacity_bytes = grown.capacity_bytes;
    if grown.node_expansion_required && session.node_can(Node::ExpandVolume) {
        let has = grow_on_node(session, bundle, plan, bound).await?.capacity_bytes;
        bound.capacity_bytes = bound.capacity_bytes.max(has);
    }
    session.notes.note(&plan.claim.metadata, bound)
}

async fn grow_at_controller(
    session: &Session,
    bundle: &Bundle,
    plan: &Plan<'_>,
    bound: &Bound,
) -> Result<pb::ControllerExpandVolumeResponse> {
    let request = pb::ControllerExpandVolumeRequest {
        volume_id: bound.volume_id.clone(),
        capacity_range: Some(plan.range),
        secrets: plan.secrets(bundle, "controller-expand")?,
        volume_capability: Some(plan.capability.clone()),
    };
    let call = |mut client: ControllerClient<Channel>, request| async move {
        client.controller_expand_volume(request).await
    };
    session.step(&format!("expand {}", bound.claim), &session.csi.controller, &request, call).await
}

async fn grow_on_node(
    session: &Session,
    bundle: &Bundle,
    plan: &Plan<'_>,
    bound: &Bound,
) -> Result<pb::NodeExpandVolumeResponse> {
    let request = pb::NodeExpandVolumeRequest {
        volume_id: bound.volume_id.clone(),
        volume_path: text(bound.target.as_ref()),
        capacity_range: Some(pb::CapacityRange { required_bytes: bound.capacity_bytes, limit_bytes: 0 }),
        staging_target_path: text(bound.staging.as_ref()),
        volume_capability: Some(plan.capability.clone()),
        secrets: plan.secrets(bundle, "node-expand")?,
    };
    let call =
        |mut client: NodeClient<Channel>, request| async move { client.node_expand_volume(request).await };
    session.step(&format!("grow {} on the node", bound.claim), &session.csi.node, &request, call).await
}
