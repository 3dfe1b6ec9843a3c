//! What can be known to be wrong before anything is done: a file that is refused has changed nothing.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};

use super::lookups::SIDECAR;
use super::manifests::Bundle;
use super::objects::{Claim, PersistentVolume, StorageClass};
use super::plan::{self, Origin, Plan, Site};
use super::snapshot_objects::Snapshot;
use super::state::Bound;
use super::volumes;
use crate::quantity::human;

/// What was noted of claims, by `namespace/name`.
pub type Known = BTreeMap<String, Bound>;

const STEPS: [&str; 6] =
    ["provisioner", "controller-publish", "node-stage", "node-publish", "controller-expand", "node-expand"];

/// All claims as they will be bound, or everything that is wrong.
pub fn plans<'a>(bundle: &'a Bundle, site: &Site, known: &Known) -> Result<Vec<Plan<'a>>> {
    let mut assigned = volumes::assign(bundle, site, known);
    let (mut plans, mut wrong) = (Vec::new(), Vec::new());
    for claim in &bundle.claims {
        let path = claim.metadata.path();
        let volume = assigned.remove(&path).transpose();
        match volume.and_then(|volume| one(bundle, site, claim, volume, known.get(&path))) {
            Ok(plan) => plans.push(plan),
            Err(error) => wrong.push(format!("claim {path}: {error:#}")),
        }
    }
    for snapshot in &bundle.snapshots {
        if let Err(error) = check_snapshot(bundle, site, snapshot) {
            wrong.push(format!("snapshot {}: {error:#}", snapshot.metadata.path()));
        }
    }
    ensure!(wrong.is_empty(), "{}\nnothing was changed", wrong.join("\n"));
    Ok(plans)
}

/// The plan of one claim, whatever the others are.
pub fn plan_of<'a>(bundle: &'a Bundle, site: &Site, claim: &'a Claim, known: &Known) -> Result<Plan<'a>> {
    let path = claim.metadata.path();
    let volume = volumes::assign(bundle, site, known).remove(&path).transpose();
    volume
        .and_then(|volume| one(bundle, site, claim, volume, known.get(&path)))
        .with_context(|| format!("claim {path}"))
}

/// Where a noted claim's volume came from, for who takes it back: by its note, as far as that goes.
pub fn origin_of<'a>(bundle: &'a Bundle, claim: &Claim, bound: &Bound) -> Result<Origin<'a>> {
    let origin = match &bound.pv {
        Some(name) => bundle.volume(name).and_then(static_origin),
        None => {
            let name = if bound.class.is_empty() { bundle.class_name(claim) } else { &bound.class };
            bundle.class(name).map(Origin::Class)
        }
    };
    origin.with_context(|| format!("claim {}", bound.claim))
}

fn static_origin(volume: &PersistentVolume) -> Result<Origin<'_>> {
    let source = volume.spec.csi.as_ref();
    let source =
        source.with_context(|| format!("PersistentVolume {}: spec.csi is missing", volume.metadata.name))?;
    Ok(Origin::Volume(volume, source))
}

fn one<'a>(
    bundle: &'a Bundle,
    site: &Site,
    claim: &'a Claim,
    volume: Option<&'a PersistentVolume>,
    known: Option<&Bound>,
) -> Result<Plan<'a>> {
    let begun = known.is_some_and(|bound| bound.volume_id.is_empty());
    ensure!(
        !begun || claim.spec.volume_name.is_none(),
        "it has spec.volumeName now, but a volume of its own was begun: take that back first (csi undo)"
    );
    let known = known.filter(|bound| !bound.volume_id.is_empty());
    // A claim keeps the class that it was given, also when another one is the default now.
    let class = match (claim.class_name(), known) {
        (None, Some(bound)) => bound.class.clone(),
        _ => bundle.class_name(claim).to_owned(),
    };
    let origin = match volume {
        Some(volume) => static_origin(volume)?,
        None => Origin::Class(provisions(bundle, site, &class)?),
    };
    check_source(bundle, claim, &origin)?;
    let plan = Plan {
        claim,
        origin,
        class,
        capability: origin.capability(claim, site.single_writer)?,
        range: plan::range(&claim.spec.resources)?,
    };
    STEPS.iter().try_for_each(|step| plan.secrets(bundle, step).map(drop))?;
    bundle.mutable_parameters(claim, &site.driver)?;
    if let Some(bound) = known {
        check_change(bundle, site, &plan, bound)?;
    }
    Ok(plan)
}

/// A class that volumes can be made of, here.
fn provisions<'a>(bundle: &'a Bundle, site: &Site, name: &str) -> Result<&'a StorageClass> {
    let class = bundle.class(name)?;
    ensure!(
        class.provisioner == site.driver,
        "its class {name} is for the driver {}, this endpoint is {}",
        class.provisioner,
        site.driver
    );
    let known =
        |key: &str| key == "fstype" || key.ends_with("-secret-name") || key.ends_with("-secret-namespace");
    let theirs = class.parameters.keys().filter_map(|key| key.strip_prefix(SIDECAR));
    if let Some(unknown) = theirs.into_iter().find(|key| !known(key)) {
        bail!("its class {name} has the parameter {SIDECAR}{unknown}, which no sidecar knows");
    }
    let policy = class.reclaim_policy.as_deref().unwrap_or("Delete");
    ensure!(
        ["Delete", "Retain"].contains(&policy),
        "its class {name} has reclaimPolicy \"{policy}\"; known: Delete, Retain"
    );
    let topologies = &class.allowed_topologies;
    ensure!(
        topologies.is_empty() || topologies.iter().any(|term| term.fits(&site.labels)),
        "allowedTopologies of its class {name} exclude this node ({})",
        site.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
    );
    Ok(class)
}

/// What a claim is filled from is in the file, and of a kind that a CSI driver copies.
fn check_source(bundle: &Bundle, claim: &Claim, origin: &Origin<'_>) -> Result<()> {
    let (Some(source), Origin::Class(_)) = (claim.source(), origin) else { return Ok(()) };
    let (kind, name, meta) = (&source.kind, &source.name, &claim.metadata);
    let group = source.api_group.as_deref().unwrap_or_default();
    ensure!(
        source.namespace.as_ref().is_none_or(|namespace| *namespace == meta.namespace),
        "its source {kind} {name} is in another namespace, which needs a ReferenceGrant of the cluster"
    );
    let there = match (group, kind.as_str()) {
        ("", "PersistentVolumeClaim") => bundle.claim(&meta.namespace, name).is_some(),
        ("snapshot.storage.k8s.io", "VolumeSnapshot") => {
            let same = |it: &Snapshot| it.metadata.name == *name && it.metadata.namespace == meta.namespace;
            bundle.snapshots.iter().any(same)
        }
        ("", "VolumeSnapshot") => {
            bail!("its source VolumeSnapshot {name} needs apiGroup: snapshot.storage.k8s.io")
        }
        _ => bail!(
            "its source {kind} {name} (apiGroup \"{group}\") is filled in by a volume populator of the cluster, not by a CSI driver"
        ),
    };
    ensure!(there, "its source {kind} {name} is not in the file");
    Ok(())
}

/// What may change of a claim that has its volume: more room, and the VolumeAttributesClass.
fn check_change(bundle: &Bundle, site: &Site, plan: &Plan<'_>, bound: &Bound) -> Result<()> {
    ensure!(
        bound.driver.is_empty() || bound.driver == site.driver,
        "its volume is of the driver {}, this endpoint is {}",
        bound.driver,
        site.driver
    );
    let changed = bound.changed(plan);
    ensure!(
        changed.is_empty(),
        "{} cannot change while it has its volume {}: take it back first (csi undo)",
        changed.join(", "),
        bound.volume_id
    );
    let asked = plan.range.required_bytes;
    ensure!(
        asked >= bound.requested_bytes || asked > bound.capacity_bytes,
        "it asks for {}, its volume {} has {}: a volume cannot shrink",
        human(asked),
        bound.volume_id,
        human(bound.capacity_bytes)
    );
    let allowed = bundle.class(&plan.class).is_ok_and(|class| class.allow_volume_expansion);
    ensure!(
        asked <= bound.capacity_bytes || allowed,
        "it asks for {}, its volume {} has {}, and its class {} in the file does not say allowVolumeExpansion: true",
        human(asked),
        bound.volume_id,
        human(bound.capacity_bytes),
        if plan.class.is_empty() { "\"\"" } else { &plan.class }
    );
    Ok(())
}

fn check_snapshot(bundle: &Bundle, site: &Site, snapshot: &Snapshot) -> Result<()> {
    if bundle.content(snapshot, &site.driver)?.is_some() {
        return Ok(());
    }
    let claim = snapshot.spec.source.persistent_volume_claim_name.as_deref();
    let claim = claim.context("spec.source names neither a claim nor a VolumeSnapshotContent")?;
    ensure!(
        bundle.claim(&snapshot.metadata.namespace, claim).is_some(),
        "its source PersistentVolumeClaim {claim} is not in the file"
    );
    if let Some(class) = bundle.snapshot_class(snapshot, &site.driver)? {
        bundle.secrets("snapshotter", &class.parameters, &snapshot.metadata)?;
    }
    Ok(())
}

/// What of the file is not done, now that it is known what becomes of the claims: a line each.
pub fn remarks(bundle: &Bundle, site: &Site, plans: &[Plan<'_>]) -> Vec<String> {
    let mut lines = bundle.remarks.clone();
    let defaults = bundle.classes.iter().filter(|class| class.is_default()).count();
    if let (true, Some(class)) = (defaults > 1, bundle.default_class()) {
        lines.push(format!("{defaults} classes are annotated as default: {} is taken", class.metadata.name));
    }
    plans.iter().for_each(|plan| lines.extend(of_claim(plan)));
    for snapshot in &bundle.snapshots {
        let given = snapshot.spec.source.volume_snapshot_content_name.is_some();
        if !given && bundle.snapshot_class(snapshot, &site.driver).is_ok_and(|class| class.is_none()) {
            let path = snapshot.metadata.path();
            lines.push(format!(
                "snapshot {path} has no class in the file; it is taken without (a cluster refuses that)"
            ));
        }
    }
    lines.extend(unbound(bundle, site, plans));
    lines
}

fn of_claim(plan: &Plan<'_>) -> Vec<String> {
    let (spec, mut unused) = (&plan.claim.spec, Vec::new());
    let block = plan.claim.volume_mode() == "Block";
    match plan.origin {
        Origin::Class(class) => {
            if block && !class.mount_options.is_empty() {
                unused.push(format!(
                    "mountOptions of its class {} (it is a raw block device)",
                    class.metadata.name
                ));
            }
        }
        Origin::Volume(volume, _) => {
            let name = &volume.metadata.name;
            if block && !volume.spec.mount_options.is_empty() {
                unused.push(format!("mountOptions of PersistentVolume {name} (it is a raw block device)"));
            }
            if plan.claim.source().is_some() {
                unused.push(format!("its data source (PersistentVolume {name} is bound as it is)"));
            }
            if spec.volume_name.is_some() && spec.selector.is_some() {
                unused.push("selector (volumeName says which volume)".to_owned());
            }
        }
    }
    unused.into_iter().map(|what| format!("ignored: claim {}: {what}", plan.claim.metadata.path())).collect()
}

/// PersistentVolumes that no claim has.
fn unbound(bundle: &Bundle, site: &Site, plans: &[Plan<'_>]) -> Vec<String> {
    let bound = |name: &str| {
        plans.iter().any(|plan| matches!(plan.origin, Origin::Volume(it, _) if it.metadata.name == name))
    };
    let free = bundle.volumes.iter().filter(|volume| !bound(&volume.metadata.name));
    free.map(|volume| {
        let kept = volume.spec.claim_ref.as_ref();
        let claim = kept.and_then(|kept| bundle.claim(&kept.namespace, &kept.name));
        let why = claim.map(|claim| {
            let problems = volumes::problems(volume, claim, bundle.class_name(claim), site).join("; ");
            format!(", and it does not fit the claim of its claimRef: {problems}")
        });
        let why = why.unwrap_or_default();
        format!("ignored: PersistentVolume {} (no claim is bound to it{why})", volume.metadata.name)
    })
    .collect()
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
