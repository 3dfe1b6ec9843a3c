//! From mounted volumes back to nothing, in reverse order.

use anyhow::{Context as _, Result, bail};
use csi_proto::v1 as pb;
use pb::controller_client::ControllerClient;
use pb::node_client::NodeClient;
use tonic::transport::Channel;

use super::forward;
use super::manifests::{Bundle, Claim, Snapshot};
use super::session::Session;
use super::state::Bound;

/// Takes back everything in the file that was made: claims in reverse order, then snapshots. One that fails does not
/// keep the others; the failures are told at the end.
pub async fn run(session: &Session, bundle: &Bundle, force: bool) -> Result<()> {
    let mut failed = Vec::new();
    for claim in bundle.claims.iter().rev() {
        if let Err(error) = release(session, bundle, claim, force).await {
            failed.push(error);
        }
    }
    for snapshot in bundle.snapshots.iter().rev() {
        if let Err(error) = drop_snapshot(session, bundle, snapshot).await {
            failed.push(error);
        }
    }
    session.notes.tidy();
    match failed.len() {
        0 => Ok(()),
        1 => Err(failed.remove(0)),
        n => {
            failed.iter().for_each(|error| anstream::eprintln!("failed: {error:#}"));
            bail!("{n} objects could not be taken back; repeat the command when the causes are gone")
        }
    }
}

async fn release(session: &Session, bundle: &Bundle, claim: &Claim, force: bool) -> Result<()> {
    let Some(mut bound) = session.notes.bound(&claim.metadata)? else { return Ok(()) };
    if bound.volume_id.is_empty() {
        // Its creation was begun and the answer never came: the same call again tells the handle.
        bound = forward::create_again(session, bundle, claim).await?;
    }
    unmount(session, &bound).await?;
    detach(session, bundle, claim, &bound).await?;
    let class = bundle.class(claim)?;
    if class.reclaim_policy.as_deref() == Some("Retain") && !force {
        let id = &bound.volume_id;
        anstream::eprintln!(
            "kept {}: {id}, because its class says reclaimPolicy: Retain (--force-delete deletes it)",
            bound.claim
        );
        return session.notes.forget(&claim.metadata);
    }
    let request = pb::DeleteVolumeRequest {
        volume_id: bound.volume_id.clone(),
        secrets: bundle.secrets("provisioner", &class.parameters, &claim.metadata)?,
    };
    let call =
        |mut client: ControllerClient<Channel>, request| async move { client.delete_volume(request).await };
    session.step(&format!("delete {}", bound.claim), &session.csi.controller, &request, call).await?;
    session.notes.forget(&claim.metadata)
}

async fn unmount(session: &Session, bound: &Bound) -> Result<()> {
    let volume_id = &bound.volume_id;
    if let Some(target) = &bound.target {
        let target_path = target.display().to_string();
        let request = pb::NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path };
        let call = |mut client: NodeClient<Channel>, request| async move {
            client.node_unpublish_volume(request).await
        };
        session.step(&format!("unpublish {}", bound.claim), &session.csi.node, &request, call).await?;
    }
    if let Some(staging) = &bound.staging {
        let staging_target_path = staging.display().to_string();
        let request = pb::NodeUnstageVolumeRequest { volume_id: volume_id.clone(), staging_target_path };
        let call = |mut client: NodeClient<Channel>, request| async move {
            client.node_unstage_volume(request).await
        };
        session.step(&format!("unstage {}", bound.claim), &session.csi.node, &request, call).await?;
    }
    Ok(())
}

async fn detach(session: &Session, bundle: &Bundle, claim: &Claim, bound: &Bound) -> Result<()> {
    let Some(node_id) = &bound.node_id else { return Ok(()) };
    let parameters = &bundle.class(claim)?.parameters;
    let request = pb::ControllerUnpublishVolumeRequest {
        volume_id: bound.volume_id.clone(),
        node_id: node_id.clone(),
        secrets: bundle.secrets("controller-publish", parameters, &claim.metadata)?,
    };
    let call = |mut client: ControllerClient<Channel>, request| async move {
        client.controller_unpublish_volume(request).await
    };
    session
        .step(&format!("detach {} from {node_id}", bound.claim), &session.csi.controller, &request, call)
        .await
        .map(drop)
}

async fn drop_snapshot(session: &Session, bundle: &Bundle, snapshot: &Snapshot) -> Result<()> {
    let Some(snapshot_id) = session.notes.snapshot(&snapshot.metadata)? else { return Ok(()) };
    let parameters = bundle.snapshot_parameters(snapshot)?;
    let secrets = bundle.secrets("snapshotter", &parameters, &snapshot.metadata)?;
    let path = snapshot.metadata.path();
    let request = pb::DeleteSnapshotRequest { snapshot_id: snapshot_id.clone(), secrets: secrets.clone() };
    let call =
        |mut client: ControllerClient<Channel>, request| async move { client.delete_snapshot(request).await };
    session
        .step(&format!("delete snapshot {path}"), &session.csi.controller, &request, call)
        .await
        .context(path)?;
    session.notes.forget_snapshot(&snapshot.metadata)
}
