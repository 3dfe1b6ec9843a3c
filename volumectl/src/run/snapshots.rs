//! What external-snapshotter does.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use csi_proto::v1 as pb;
use pb::controller_client::ControllerClient;
use tonic::transport::Channel;

use super::lookups::SIDECAR;
use super::manifests::Bundle;
use super::objects::Map;
use super::session::{Session, refused};
use super::snapshot_objects::Snapshot;
use super::state::Bound;

const PAUSE: Duration = Duration::from_millis(500);

/// The claim that a snapshot is of, once it has a volume.
fn source_of(session: &Session, bundle: &Bundle, snapshot: &Snapshot) -> Option<Bound> {
    let name = snapshot.spec.source.persistent_volume_claim_name.as_ref()?;
    let claim = bundle.claim(&snapshot.metadata.namespace, name)?;
    session.notes.bound(&claim.metadata).ok()?.filter(|bound| !bound.volume_id.is_empty())
}

/// Whether it can be taken now.
pub fn is_ready(session: &Session, bundle: &Bundle, snapshot: &Snapshot) -> bool {
    snapshot.spec.source.volume_snapshot_content_name.is_some()
        || source_of(session, bundle, snapshot).is_some()
}

fn parameters(session: &Session, bundle: &Bundle, snapshot: &Snapshot) -> Result<Map> {
    let class = bundle.snapshot_class(snapshot, &session.driver)?;
    Ok(class.map(|class| class.parameters.clone()).unwrap_or_default())
}

/// Takes a snapshot, or finds the one of that name, and waits until it can be used.
pub async fn take(session: &Session, bundle: &Bundle, snapshot: &Snapshot) -> Result<()> {
    let meta = &snapshot.metadata;
    if let Some(handle) = bundle.content(snapshot, &session.driver)? {
        return session.notes.note_snapshot(meta, handle);
    }
    if session.notes.snapshot(meta)?.is_some_and(|id| !id.is_empty()) {
        return Ok(());
    }
    let source = source_of(session, bundle, snapshot).context("the snapshot's source has no volume")?;
    let parameters = parameters(session, bundle, snapshot)?;
    let request = pb::CreateSnapshotRequest {
        source_volume_id: source.volume_id,
        name: format!("snapshot-{}", meta.uid()),
        secrets: bundle.secrets("snapshotter", &parameters, meta)?,
        parameters: parameters.into_iter().filter(|(k, _)| !k.starts_with(SIDECAR)).collect(),
    };
    // An empty note first, as for a volume.
    session.notes.note_snapshot(meta, "")?;
    let begun = Instant::now();
    loop {
        let call = |mut client: ControllerClient<Channel>, request| async move {
            client.create_snapshot(request).await
        };
        let what = format!("snapshot {}", meta.path());
        let answer = session.step(&what, &session.csi.controller, &request, call).await;
        if answer.as_ref().is_err_and(refused) {
            session.notes.forget_snapshot(meta)?;
        }
        let made = answer?.snapshot.context("the driver answered without a snapshot")?;
        if made.ready_to_use {
            return session.notes.note_snapshot(meta, &made.snapshot_id);
        }
        if begun.elapsed() > session.csi.timeout() {
            bail!("{} cannot be used yet; the same command again waits for it", made.snapshot_id);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Deletes what was taken. One of the file's own VolumeSnapshotContent stays, and one whose class retains it.
pub async fn release(session: &Session, bundle: &Bundle, snapshot: &Snapshot, force: bool) -> Result<()> {
    let meta = &snapshot.metadata;
    let Some(snapshot_id) = session.notes.snapshot(meta)? else { return Ok(()) };
    if snapshot_id.is_empty() {
        // Its creation was begun, and the source has had no volume since: nothing can have come of it.
        return session.notes.forget_snapshot(meta);
    }
    if snapshot.spec.source.volume_snapshot_content_name.is_some() {
        anstream::eprintln!("kept {}: {snapshot_id}, which was there before", meta.path());
        return session.notes.forget_snapshot(meta);
    }
    let class = bundle.snapshot_class(snapshot, &session.driver)?;
    if !force && class.is_some_and(|class| class.deletion_policy.as_deref() == Some("Retain")) {
        anstream::eprintln!(
            "kept {}: {snapshot_id}, because its class says deletionPolicy: Retain (--force-delete deletes it)",
            meta.path()
        );
        return session.notes.forget_snapshot(meta);
    }
    let parameters = parameters(session, bundle, snapshot)?;
    let secrets = bundle.secrets("snapshotter", &parameters, meta)?;
    let request = pb::DeleteSnapshotRequest { snapshot_id, secrets };
    let call =
        |mut client: ControllerClient<Channel>, request| async move { client.delete_snapshot(request).await };
    session
        .step(&format!("delete snapshot {}", meta.path()), &session.csi.controller, &request, call)
        .await?;
    session.notes.forget_snapshot(meta)
}
