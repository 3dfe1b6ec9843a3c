//! From claims to volumes, in the order of their sources.

use anyhow::{Context as _, Result, bail};
use csi_proto::v1 as pb;
use pb::controller_client::ControllerClient;
use tonic::transport::Channel;

use super::manifests::Bundle;
use super::mount;
use super::objects::Claim;
use super::plan::{self, Origin, Plan};
use super::session::{Session, refused};
use super::snapshot_objects::Snapshot;
use super::snapshots;
use super::state::{Bound, fixed};
use crate::csi::args;

/// Makes everything in the file, what others are filled from first. Returns the claims in the file's order.
pub async fn run(session: &Session, bundle: &Bundle, plans: &[Plan<'_>]) -> Result<Vec<Bound>> {
    // A note that cannot be read is told here, and not taken for none below.
    bundle.snapshots.iter().try_for_each(|it| session.notes.snapshot(&it.metadata).map(drop))?;
    let mut claims: Vec<_> = plans.iter().collect();
    let mut snapshots: Vec<_> = bundle.snapshots.iter().collect();
    while !claims.is_empty() || !snapshots.is_empty() {
        let before = claims.len() + snapshots.len();
        let (ready, waiting): (Vec<_>, Vec<_>) =
            claims.into_iter().partition(|it| is_ready(session, bundle, it));
        claims = waiting;
        for plan in ready {
            bind(session, bundle, plan)
                .await
                .with_context(|| format!("claim {}", plan.claim.metadata.path()))?;
        }
        let (ready, waiting): (Vec<_>, Vec<_>) =
            snapshots.into_iter().partition(|it| snapshots::is_ready(session, bundle, it));
        snapshots = waiting;
        for snapshot in ready {
            snapshots::take(session, bundle, snapshot)
                .await
                .with_context(|| format!("snapshot {}", snapshot.metadata.path()))?;
        }
        if claims.len() + snapshots.len() == before {
            bail!("their sources wait for each other: {}", paths(&claims, &snapshots).join(", "));
        }
    }
    let bound = |it: &Plan<'_>| session.notes.bound(&it.claim.metadata)?.context("a claim was forgotten");
    plans.iter().map(bound).collect()
}

fn paths(claims: &[&Plan<'_>], snapshots: &[&Snapshot]) -> Vec<String> {
    let claims = claims.iter().map(|it| it.claim.metadata.path());
    claims.chain(snapshots.iter().map(|it| it.metadata.path())).collect()
}

fn is_ready(session: &Session, bundle: &Bundle, plan: &Plan<'_>) -> bool {
    matches!(plan.origin, Origin::Volume(..))
        || plan.claim.source().is_none()
        || matches!(source(session, bundle, plan.claim), Ok(Some(_)))
}

/// What a claim is filled from, once that exists.
fn source(session: &Session, bundle: &Bundle, claim: &Claim) -> Result<Option<pb::VolumeContentSource>> {
    let Some(reference) = claim.source() else { return Ok(None) };
    let (name, namespace) = (&reference.name, &claim.metadata.namespace);
    let missing = || format!("its source {} {name} is not there yet", reference.kind);
    if reference.kind == "VolumeSnapshot" {
        let same = |it: &&Snapshot| it.metadata.name == *name && it.metadata.namespace == *namespace;
        let snapshot = bundle.snapshots.iter().find(same).with_context(missing)?;
        let id = session.notes.snapshot(&snapshot.metadata)?.filter(|id| !id.is_empty());
        return Ok(args::source(Some(id.with_context(missing)?), None));
    }
    let claim = bundle.claim(namespace, name).with_context(missing)?;
    let bound = session.notes.bound(&claim.metadata)?.filter(|it| !it.volume_id.is_empty());
    Ok(args::source(None, Some(bound.with_context(missing)?.volume_id)))
}

/// Provision or bind, attach, mount, modify, and grow what is too small.
async fn bind(session: &Session, bundle: &Bundle, plan: &Plan<'_>) -> Result<()> {
    let mut bound = match session.notes.bound(&plan.claim.metadata)? {
        Some(bound) if !bound.volume_id.is_empty() => bound,
        _ => match plan.origin {
            Origin::Class(_) => create(session, bundle, plan).await?,
            Origin::Volume(..) => take_over(session, bundle, plan)?,
        },
    };
    mount::attach(session, bundle, plan, &mut bound).await?;
    mount::mount(session, bundle, plan, &mut bound).await?;
    modify(session, bundle, plan, &mut bound).await?;
    mount::grow(session, bundle, plan, &mut bound).await
}

fn empty_note(session: &Session, bundle: &Bundle, plan: &Plan<'_>) -> Result<Bound> {
    Ok(Bound {
        claim: plan.claim.metadata.path(),
        used_as: plan::used_as(&plan.capability),
        requested_bytes: plan.range.required_bytes,
        driver: session.driver.clone(),
        class: plan.class.clone(),
        fixed: fixed(plan),
        mutable_parameters: bundle.mutable_parameters(plan.claim, &session.driver)?,
        ..Bound::default()
    })
}

/// Binds a PersistentVolume of the file.
fn take_over(session: &Session, bundle: &Bundle, plan: &Plan<'_>) -> Result<Bound> {
    let Origin::Volume(volume, source) = plan.origin else { bail!("it has no PersistentVolume") };
    let capacity = plan::bytes(&volume.spec.capacity).map_err(anyhow::Error::msg)?;
    let bound = Bound {
        volume_id: source.volume_handle.clone(),
        capacity_bytes: capacity.unwrap_or_default(),
        pv: Some(volume.metadata.name.clone()),
        volume_context: source.volume_attributes.clone(),
        ..empty_note(session, bundle, plan)?
    };
    session.notes.note(&plan.claim.metadata, &bound)?;
    let name = &volume.metadata.name;
    anstream::eprintln!("bound {} to PersistentVolume {name} ({})", bound.claim, bound.volume_id);
    Ok(bound)
}

/// Makes a volume, or finds the one of that name. A refusal leaves no note: there is nothing to take back.
pub async fn create(session: &Session, bundle: &Bundle, plan: &Plan<'_>) -> Result<Bound> {
    let (Origin::Class(class), meta) = (plan.origin, &plan.claim.metadata) else { bail!("it has no class") };
    let topology = session.topology.clone();
    let request = pb::CreateVolumeRequest {
        name: plan::volume_name(meta),
        capacity_range: Some(plan.range),
        volume_capabilities: vec![plan.capability.clone()],
        parameters: plan::parameters(meta, class),
        secrets: plan.secrets(bundle, "provisioner")?,
        volume_content_source: source(session, bundle, plan.claim)?,
        accessibility_requirements: topology
            .map(|t| pb::TopologyRequirement { requisite: vec![t.clone()], preferred: vec![t] }),
        mutable_parameters: bundle.mutable_parameters(plan.claim, &session.driver)?,
    };
    // An empty note first, so that `undo` knows of a volume whose answer never came.
    let mut bound = empty_note(session, bundle, plan)?;
    session.notes.note(meta, &bound)?;
    let call =
        |mut client: ControllerClient<Channel>, request| async move { client.create_volume(request).await };
    let answer =
        session.step(&format!("create {}", bound.claim), &session.csi.controller, &request, call).await;
    if answer.as_ref().is_err_and(refused) {
        session.notes.forget(meta)?;
    }
    let volume = answer?.volume.context("the driver answered without a volume")?;
    bound.volume_id = volume.volume_id;
    // 0: the driver does not know.
    let asked = plan.range.required_bytes;
    bound.capacity_bytes = if volume.capacity_bytes == 0 { asked } else { volume.capacity_bytes };
    bound.volume_context = volume.volume_context;
    session.notes.note(meta, &bound)?;
    Ok(bound)
}

/// What external-resizer does when a claim has another VolumeAttributesClass.
async fn modify(session: &Session, bundle: &Bundle, plan: &Plan<'_>, bound: &mut Bound) -> Result<()> {
    let mutable_parameters = bundle.mutable_parameters(plan.claim, &session.driver)?;
    if mutable_parameters.is_empty() || mutable_parameters == bound.mutable_parameters {
        return Ok(());
    }
    let request = pb::ControllerModifyVolumeRequest {
        volume_id: bound.volume_id.clone(),
        secrets: plan.secrets(bundle, "provisioner")?,
        mutable_parameters: mutable_parameters.clone(),
    };
    let call = |mut client: ControllerClient<Channel>, request| async move {
        client.controller_modify_volume(request).await
    };
    session.step(&format!("modify {}", bound.claim), &session.csi.controller, &request, call).await?;
    bound.mutable_parameters = mutable_parameters;
    session.notes.note(&plan.claim.metadata, bound)
}
