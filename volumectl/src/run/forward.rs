//! From claims to mounted volumes.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use csi_proto::v1 as pb;
use pb::controller_client::ControllerClient;
use pb::controller_service_capability::rpc::Type as Controller;
use pb::node_client::NodeClient;
use pb::node_service_capability::rpc::Type as Node;
use tonic::transport::Channel;

use super::manifests::{Bundle, Claim, Meta, Snapshot, StorageClass};
use super::plan;
use super::session::Session;
use super::state::Bound;
use crate::csi::args;

/// Makes everything in the file, what others are filled from first. Returns the claims in the file's order.
pub async fn run(session: &Session, bundle: &Bundle) -> Result<Vec<Bound>> {
    let mut claims: Vec<_> = bundle.claims.iter().collect();
    let mut snapshots: Vec<_> = bundle.snapshots.iter().collect();
    while !claims.is_empty() || !snapshots.is_empty() {
        let before = claims.len() + snapshots.len();
        let (ready, waiting): (Vec<_>, Vec<_>) =
            claims.into_iter().partition(|c| claim_is_ready(session, bundle, c));
        claims = waiting;
        for claim in ready {
            bind(session, bundle, claim).await?;
        }
        let (ready, waiting): (Vec<_>, Vec<_>) =
            snapshots.into_iter().partition(|s| source_of(session, bundle, s).is_some());
        snapshots = waiting;
        for snapshot in ready {
            take(session, bundle, snapshot).await?;
        }
        if claims.len() + snapshots.len() == before {
            let left =
                claims.iter().map(|c| c.metadata.path()).chain(snapshots.iter().map(|s| s.metadata.path()));
            bail!("their sources are not in the file: {}", left.collect::<Vec<_>>().join(", "));
        }
    }
    let bound = |c: &Claim| session.notes.bound(&c.metadata)?.context("a claim was forgotten");
    bundle.claims.iter().map(bound).collect()
}

fn claim_is_ready(session: &Session, bundle: &Bundle, claim: &Claim) -> bool {
    claim.spec.data_source.is_none() || matches!(source(session, bundle, claim), Ok(Some(_)))
}

/// The claim that a snapshot is of, once it has a volume.
fn source_of(session: &Session, bundle: &Bundle, snapshot: &Snapshot) -> Option<Bound> {
    let name = &snapshot.spec.source.persistent_volume_claim_name;
    let same = |c: &&Claim| c.metadata.name == *name && c.metadata.namespace == snapshot.metadata.namespace;
    session.notes.bound(&bundle.claims.iter().find(same)?.metadata).ok()?.filter(|b| !b.volume_id.is_empty())
}

/// What a claim is filled from, once that exists.
fn source(session: &Session, bundle: &Bundle, claim: &Claim) -> Result<Option<pb::VolumeContentSource>> {
    let Some(reference) = &claim.spec.data_source else { return Ok(None) };
    let same = |meta: &Meta| meta.name == reference.name && meta.namespace == claim.metadata.namespace;
    let snapshot = bundle.snapshots.iter().map(|s| &s.metadata).find(|m| same(m));
    let volume = bundle.claims.iter().map(|c| &c.metadata).find(|m| same(m));
    let path = claim.metadata.path();
    let missing =
        || format!("claim {path}: its source {} {} is not there yet", reference.kind, reference.name);
    Ok(match reference.kind.as_str() {
        "VolumeSnapshot" => {
            let id = session.notes.snapshot(snapshot.with_context(missing)?)?.with_context(missing)?;
            args::source(Some(id), None)
        }
        "PersistentVolumeClaim" => {
            let bound = session.notes.bound(volume.with_context(missing)?)?;
            let id = bound.map(|b| b.volume_id).filter(|id| !id.is_empty()).with_context(missing)?;
            args::source(None, Some(id))
        }
        other => bail!("claim {path}: a source of kind {other} is not known"),
    })
}

/// Provision, attach, stage, publish, and grow what is too small.
async fn bind(session: &Session, bundle: &Bundle, claim: &Claim) -> Result<()> {
    let class = bundle.class(claim)?;
    ensure!(
        class.provisioner == session.driver,
        "claim {}: its class {} is for the driver {}, this endpoint is {}",
        claim.metadata.path(),
        class.metadata.name,
        class.provisioner,
        session.driver
    );
    let capability =
        plan::capability(claim, class, session.controller_can(Controller::SingleNodeMultiWriter))?;
    let mut bound = match session.notes.bound(&claim.metadata)? {
        Some(bound) if !bound.volume_id.is_empty() => bound,
        _ => create(session, bundle, claim, class, &capability).await?,
    };
    attach(session, bundle, claim, class, &capability, &mut bound).await?;
    mount(session, bundle, claim, class, &capability, &mut bound).await?;
    grow(session, bundle, claim, class, &capability, &mut bound).await
}

/// Asks again for a volume whose creation was begun: the same name gives the same volume.
pub async fn create_again(session: &Session, bundle: &Bundle, claim: &Claim) -> Result<Bound> {
    let class = bundle.class(claim)?;
    let capability =
        plan::capability(claim, class, session.controller_can(Controller::SingleNodeMultiWriter))?;
    create(session, bundle, claim, class, &capability).await
}

async fn create(
    session: &Session,
    bundle: &Bundle,
    claim: &Claim,
    class: &StorageClass,
    capability: &pb::VolumeCapability,
) -> Result<Bound> {
    let topology = session.topology.clone();
    let request = pb::CreateVolumeRequest {
        name: plan::volume_name(claim),
        capacity_range: Some(plan::range(claim)?),
        volume_capabilities: vec![capability.clone()],
        parameters: plan::parameters(claim, class),
        secrets: bundle.secrets("provisioner", &class.parameters, &claim.metadata)?,
        volume_content_source: source(session, bundle, claim)?,
        accessibility_requirements: topology
            .map(|t| pb::TopologyRequirement { requisite: vec![t.clone()], preferred: vec![t] }),
        mutable_parameters: bundle.mutable_parameters(claim)?,
    };
    // An empty note first, so that `undo` knows of a volume whose answer never came.
    let mut bound =
        Bound { claim: claim.metadata.path(), used_as: plan::used_as(capability), ..Bound::default() };
    session.notes.note(&claim.metadata, &bound)?;
    let call =
        |mut client: ControllerClient<Channel>, request| async move { client.create_volume(request).await };
    let answer =
        session.step(&format!("create {}", bound.claim), &session.csi.controller, &request, call).await?;
    let volume = answer.volume.context("the driver answered without a volume")?;
    (bound.volume_id, bound.capacity_bytes) = (volume.volume_id, volume.capacity_bytes);
    bound.volume_context = volume.volume_context;
    session.notes.note(&claim.metadata, &bound)?;
    Ok(bound)
}

async fn attach(
    session: &Session,
    bundle: &Bundle,
    claim: &Claim,
    class: &StorageClass,
    capability: &pb::VolumeCapability,
    bound: &mut Bound,
) -> Result<()> {
    if !session.controller_can(Controller::PublishUnpublishVolume) {
        return Ok(());
    }
    let request = pb::ControllerPublishVolumeRequest {
        volume_id: bound.volume_id.clone(),
        node_id: session.node_id.clone(),
        volume_capability: Some(capability.clone()),
        readonly: false,
        secrets: bundle.secrets("controller-publish", &class.parameters, &claim.metadata)?,
        volume_context: bound.volume_context.clone(),
    };
    bound.node_id = Some(session.node_id.clone());
    session.notes.note(&claim.metadata, bound)?;
    let call = |mut client: ControllerClient<Channel>, request| async move {
        client.controller_publish_volume(request).await
    };
    let answer = session
        .step(
            &format!("attach {} to {}", bound.claim, session.node_id),
            &session.csi.controller,
            &request,
            call,
        )
        .await?;
    bound.publish_context = answer.publish_context;
    session.notes.note(&claim.metadata, bound)
}

async fn mount(
    session: &Session,
    bundle: &Bundle,
    claim: &Claim,
    class: &StorageClass,
    capability: &pb::VolumeCapability,
    bound: &mut Bound,
) -> Result<()> {
    let mut staging_target_path = String::new();
    if session.node_can(Node::StageUnstageVolume) {
        let staging = session.notes.staging(&claim.metadata);
        fs::create_dir_all(&staging).with_context(|| format!("making {}", staging.display()))?;
        staging_target_path = staging.display().to_string();
        bound.staging = Some(staging);
        session.notes.note(&claim.metadata, bound)?;
        let request = pb::NodeStageVolumeRequest {
            volume_id: bound.volume_id.clone(),
            publish_context: bound.publish_context.clone(),
            staging_target_path: staging_target_path.clone(),
            volume_capability: Some(capability.clone()),
            secrets: bundle.secrets("node-stage", &class.parameters, &claim.metadata)?,
            volume_context: bound.volume_context.clone(),
        };
        let call =
            |mut client: NodeClient<Channel>, request| async move { client.node_stage_volume(request).await };
        session.step(&format!("stage {}", bound.claim), &session.csi.node, &request, call).await?;
    }
    let target = session.notes.target(&claim.metadata);
    let parent = target.parent().context("the target has no parent")?;
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    bound.target = Some(target.clone());
    session.notes.note(&claim.metadata, bound)?;
    let request = pb::NodePublishVolumeRequest {
        volume_id: bound.volume_id.clone(),
        publish_context: bound.publish_context.clone(),
        staging_target_path,
        target_path: target.display().to_string(),
        volume_capability: Some(capability.clone()),
        readonly: false,
        secrets: bundle.secrets("node-publish", &class.parameters, &claim.metadata)?,
        volume_context: bound.volume_context.clone(),
    };
    let call =
        |mut client: NodeClient<Channel>, request| async move { client.node_publish_volume(request).await };
    session
        .step(&format!("publish {} at {}", bound.claim, target.display()), &session.csi.node, &request, call)
        .await?;
    Ok(())
}

/// What external-resizer and kubelet do when a claim asks for more than its volume has.
async fn grow(
    session: &Session,
    bundle: &Bundle,
    claim: &Claim,
    class: &StorageClass,
    capability: &pb::VolumeCapability,
    bound: &mut Bound,
) -> Result<()> {
    let range = plan::range(claim)?;
    if range.required_bytes <= bound.capacity_bytes {
        return Ok(());
    }
    let request = pb::ControllerExpandVolumeRequest {
        volume_id: bound.volume_id.clone(),
        capacity_range: Some(range),
        secrets: bundle.secrets("controller-expand", &class.parameters, &claim.metadata)?,
        volume_capability: Some(capability.clone()),
    };
    let call = |mut client: ControllerClient<Channel>, request| async move {
        client.controller_expand_volume(request).await
    };
    let answer =
        session.step(&format!("expand {}", bound.claim), &session.csi.controller, &request, call).await?;
    if answer.node_expansion_required && session.node_can(Node::ExpandVolume) {
        let text = |path: &Option<std::path::PathBuf>| {
            path.as_ref().map(|p| p.display().to_string()).unwrap_or_default()
        };
        let request = pb::NodeExpandVolumeRequest {
            volume_id: bound.volume_id.clone(),
            volume_path: text(&bound.target),
            capacity_range: Some(pb::CapacityRange { required_bytes: answer.capacity_bytes, limit_bytes: 0 }),
            staging_target_path: text(&bound.staging),
            volume_capability: Some(capability.clone()),
            secrets: bundle.secrets("node-expand", &class.parameters, &claim.metadata)?,
        };
        let call = |mut client: NodeClient<Channel>, request| async move {
            client.node_expand_volume(request).await
        };
        session.step(&format!("grow {} on the node", bound.claim), &session.csi.node, &request, call).await?;
    }
    bound.capacity_bytes = answer.capacity_bytes;
    session.notes.note(&claim.metadata, bound)
}

async fn take(session: &Session, bundle: &Bundle, snapshot: &Snapshot) -> Result<()> {
    let source = source_of(session, bundle, snapshot).context("the snapshot's source has no volume")?;
    let parameters = bundle.snapshot_parameters(snapshot)?;
    let request = pb::CreateSnapshotRequest {
        source_volume_id: source.volume_id,
        name: format!("snapshot-{}", snapshot.metadata.uid()),
        secrets: bundle.secrets("snapshotter", &parameters, &snapshot.metadata)?,
        parameters: parameters.into_iter().filter(|(k, _)| !k.starts_with("csi.storage.k8s.io/")).collect(),
    };
    let call =
        |mut client: ControllerClient<Channel>, request| async move { client.create_snapshot(request).await };
    let answer = session
        .step(&format!("snapshot {}", snapshot.metadata.path()), &session.csi.controller, &request, call)
        .await?;
    let made = answer.snapshot.context("the driver answered without a snapshot")?;
    session.notes.note_snapshot(&snapshot.metadata, &made.snapshot_id)
}
