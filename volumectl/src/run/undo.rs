//! From mounted volumes back to nothing, in reverse order.

use anyhow::{Context as _, Result, bail, ensure};
use csi_proto::v1 as pb;
use pb::controller_client::ControllerClient;
use pb::node_client::NodeClient;
use tonic::transport::Channel;

use super::check;
use super::forward;
use super::manifests::Bundle;
use super::objects::Claim;
use super::plan::Origin;
use super::session::{Session, refused};
use super::snapshots;
use super::state::Bound;

/// Takes back everything in the file that was made: claims in reverse order, then snapshots. One that fails does not
/// keep the others; the failures are told at the end.
pub async fn run(session: &Session, bundle: &Bundle, force: bool) -> Result<()> {
    let former = former(session, bundle)?;
    let claims: Vec<_> = bundle.claims.iter().chain(&former).collect();
    let others = session.notes.others(&claims)?;
    if !others.is_empty() {
        anstream::eprintln!("left: {} (noted here, and not in the file)", others.join(", "));
    }
    let mut failed = Vec::new();
    for snapshot in &bundle.snapshots {
        failed.extend(settle(session, bundle, snapshot).await.err());
    }
    for claim in claims.into_iter().rev() {
        let released = release(session, bundle, claim, force).await;
        failed.extend(released.with_context(|| format!("claim {}", claim.metadata.path())).err());
    }
    for snapshot in bundle.snapshots.iter().rev() {
        let released = snapshots::release(session, bundle, snapshot, force).await;
        failed.extend(released.with_context(|| format!("snapshot {}", snapshot.metadata.path())).err());
    }
    match failed.len() {
        0 => Ok(()),
        1 => Err(failed.remove(0)),
        n => {
            failed.iter().for_each(|error| anstream::eprintln!("failed: {error:#}"));
            bail!("{n} objects could not be taken back; repeat the command when the causes are gone")
        }
    }
}

/// Claims of workloads that have fewer replicas now.
fn former(session: &Session, bundle: &Bundle) -> Result<Vec<Claim>> {
    let others = session.notes.others(&bundle.claims.iter().collect::<Vec<_>>())?;
    Ok(others.iter().filter_map(|path| bundle.former(path)).collect())
}

/// A snapshot whose answer never came: the same call again tells its handle, while its source is there.
async fn settle(
    session: &Session,
    bundle: &Bundle,
    snapshot: &super::snapshot_objects::Snapshot,
) -> Result<()> {
    let begun = session.notes.snapshot(&snapshot.metadata)?.is_some_and(|id| id.is_empty());
    if !begun || !snapshots::is_ready(session, bundle, snapshot) {
        return Ok(());
    }
    match snapshots::take(session, bundle, snapshot).await {
        // It was not made, and its note is gone.
        Err(error) if refused(&error) => Ok(()),
        other => other.with_context(|| format!("snapshot {}", snapshot.metadata.path())),
    }
}

async fn release(session: &Session, bundle: &Bundle, claim: &Claim, force: bool) -> Result<()> {
    let Some(mut bound) = session.notes.bound(&claim.metadata)? else { return Ok(()) };
    ensure!(
        bound.driver == session.driver,
        "its volume is of the driver {}, this endpoint is {}",
        bound.driver,
        session.driver
    );
    if bound.volume_id.is_empty() {
        // Its creation was begun and the answer never came: the same call again tells the handle.
        let plan = check::plan_of(bundle, &session.site(), claim, &session.notes.all()?)?;
        bound = match forward::create(session, bundle, &plan).await {
            Err(error) if refused(&error) => {
                anstream::eprintln!("nothing was made for {}: {error:#}", bound.claim);
                return Ok(());
            }
            other => other?,
        };
    }
    let origin = check::origin_of(bundle, claim, &bound)?;
    unmount(session, &bound).await?;
    detach(session, bundle, claim, &bound, &origin).await?;
    let kept = match origin {
        Origin::Volume(volume, _) => {
            Some(format!("it is PersistentVolume {} of the file and was there before", volume.metadata.name))
        }
        Origin::Class(class) if class.retains() && !force => {
            Some("its class says reclaimPolicy: Retain (--force-delete deletes it)".to_owned())
        }
        Origin::Class(_) => None,
    };
    match kept {
        Some(why) => anstream::eprintln!("kept {}: {}, because {why}", bound.claim, bound.volume_id),
        None => delete(session, bundle, claim, &bound, &origin).await?,
    }
    session.notes.forget(&claim.metadata)
}

async fn delete(
    session: &Session,
    bundle: &Bundle,
    claim: &Claim,
    bound: &Bound,
    origin: &Origin<'_>,
) -> Result<()> {
    let secrets = origin.secrets(bundle, "provisioner", &claim.metadata)?;
    let request = pb::DeleteVolumeRequest { volume_id: bound.volume_id.clone(), secrets };
    let call =
        |mut client: ControllerClient<Channel>, request| async move { client.delete_volume(request).await };
    let what = format!("delete {}", bound.claim);
    session.step(&what, &session.csi.controller, &request, call).await.map(drop)
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

async fn detach(
    session: &Session,
    bundle: &Bundle,
    claim: &Claim,
    bound: &Bound,
    origin: &Origin<'_>,
) -> Result<()> {
    let Some(node_id) = &bound.node_id else { return Ok(()) };
    let request = pb::ControllerUnpublishVolumeRequest {
        volume_id: bound.volume_id.clone(),
        node_id: node_id.clone(),
        secrets: origin.secrets(bundle, "controller-publish", &claim.metadata)?,
    };
    let call = |mut client: ControllerClient<Channel>, request| async move {
        client.controller_unpublish_volume(request).await
    };
    let what = format!("detach {} from {node_id}", bound.claim);
    session.step(&what, &session.csi.controller, &request, call).await.map(drop)
}
