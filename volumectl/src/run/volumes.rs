//! Which PersistentVolume of the file a claim is bound to, as the PV controller decides it
//! (pkg/controller/volume/persistentvolume: `checkVolumeSatisfyClaim`, `findMatchingVolume`).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail, ensure};

use super::manifests::Bundle;
use super::objects::{Claim, PersistentVolume};
use super::plan::{Site, bytes};
use super::state::Bound;
use crate::quantity::human;

/// The volumes that claims are bound to, or why one cannot be; claims whose volume is made are not in it.
pub type Assigned<'a> = BTreeMap<String, Result<&'a PersistentVolume>>;

/// Finds a volume for each claim that wants one: first for those that were bound before, then for those that name it,
/// then for all others in the file's order.
pub fn assign<'a>(bundle: &'a Bundle, site: &Site, known: &BTreeMap<String, Bound>) -> Assigned<'a> {
    // Also one whose creation was begun: its volume may be there.
    let bound = |claim: &Claim| known.get(&claim.metadata.path());
    let mut assigned = Assigned::new();
    for claim in &bundle.claims {
        if let Some(name) = bound(claim).and_then(|it| it.pv.as_deref()) {
            assigned.insert(claim.metadata.path(), bundle.volume(name));
        }
    }
    for naming in [true, false] {
        let wanted = |claim: &&Claim| named(claim).is_some() == naming && bound(claim).is_none();
        for claim in bundle.claims.iter().filter(wanted) {
            let found = find(bundle, site, claim, &taken(&assigned));
            if let Some(found) = found.transpose() {
                assigned.insert(claim.metadata.path(), found);
            }
        }
    }
    assigned
}

/// The volume that a claim names.
fn named(claim: &Claim) -> Option<&str> {
    claim.spec.volume_name.as_deref().filter(|name| !name.is_empty())
}

/// Names of volumes that have a claim, and which.
fn taken<'a>(assigned: &Assigned<'a>) -> BTreeMap<&'a str, String> {
    let have = |(claim, found): (&String, &Result<&'a PersistentVolume>)| {
        Some((found.as_ref().ok()?.metadata.name.as_str(), claim.clone()))
    };
    assigned.iter().filter_map(have).collect()
}

fn find<'a>(
    bundle: &'a Bundle,
    site: &Site,
    claim: &Claim,
    taken: &BTreeMap<&str, String>,
) -> Result<Option<&'a PersistentVolume>> {
    let class = bundle.class_name(claim);
    if let Some(name) = named(claim) {
        let volume = bundle.volume(name)?;
        if let Some(other) = taken.get(name) {
            bail!("PersistentVolume {name}, which spec.volumeName names, is bound to claim {other}");
        }
        let problems = misfits(volume, claim, class, site);
        ensure!(
            problems.is_empty(),
            "PersistentVolume {name}, which spec.volumeName names, does not fit: {}",
            problems.join("; ")
        );
        return Ok(Some(volume));
    }
    let free = || bundle.volumes.iter().filter(|it| !taken.contains_key(it.metadata.name.as_str()));
    let fitting = free().filter(|it| problems(it, claim, class, site).is_empty());
    // Who is kept for this claim comes first, then the smallest.
    let best =
        fitting.min_by_key(|it| (it.spec.claim_ref.is_none(), bytes(&it.spec.capacity).unwrap_or_default()));
    if best.is_some() || (!class.is_empty() && claim.spec.selector.is_none()) {
        return Ok(best);
    }
    let why = match (claim.class_name(), &claim.spec.selector) {
        (_, Some(_)) => "spec.selector: a volume is found by its labels and never made",
        (Some(_), None) => "storageClassName is \"\": a volume is found and never made",
        (None, None) => {
            "it names no class, and no StorageClass of the file has the annotation storageclass.kubernetes.io/is-default-class: \"true\""
        }
    };
    let each: Vec<_> = free()
        .map(|it| format!("{}: {}", it.metadata.name, problems(it, claim, class, site).join("; ")))
        .chain(taken.iter().map(|(name, claim)| format!("{name}: bound to claim {claim}")))
        .collect();
    if each.is_empty() {
        bail!("{why}; and the file has no PersistentVolume");
    }
    bail!("{why}; and no PersistentVolume of the file fits ({})", each.join(" | "));
}

/// What keeps a claim that names none from a volume.
pub fn problems(volume: &PersistentVolume, claim: &Claim, class: &str, site: &Site) -> Vec<String> {
    let mut found = misfits(volume, claim, class, site);
    if claim.spec.selector.as_ref().is_some_and(|selector| !selector.fits(&volume.metadata.labels)) {
        found.push("its labels do not fit spec.selector".into());
    }
    found
}

/// What keeps a volume from a claim.
fn misfits(volume: &PersistentVolume, claim: &Claim, class: &str, site: &Site) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(other_claim(volume, claim));
    found.extend(too_small(volume, claim));
    let spec = &volume.spec;
    let mut differs = |field: &str, has: &str, asked: &str| {
        if has != asked {
            found.push(format!("its {field} is \"{has}\", the claim's is \"{asked}\""));
        }
    };
    differs("storageClassName", &spec.storage_class_name, class);
    let text = |name: &Option<String>| name.clone().unwrap_or_default();
    let asked = text(&claim.spec.volume_attributes_class_name);
    differs("volumeAttributesClassName", &text(&spec.volume_attributes_class_name), &asked);
    differs("volumeMode", spec.volume_mode.as_deref().unwrap_or("Filesystem"), claim.volume_mode());
    let lacking = claim.spec.access_modes.iter().filter(|mode| !spec.access_modes.contains(mode));
    let lacking: Vec<_> = lacking.map(String::as_str).collect();
    if !lacking.is_empty() {
        found.push(format!("its accessModes ({}) lack {}", spec.access_modes.join(", "), lacking.join(", ")));
    }
    found.extend(elsewhere(volume, site));
    found
}

fn other_claim(volume: &PersistentVolume, claim: &Claim) -> Option<String> {
    let kept = volume.spec.claim_ref.as_ref()?;
    let meta = &claim.metadata;
    if kept.name != meta.name || kept.namespace != meta.namespace {
        return Some(format!("its claimRef is {}/{}", kept.namespace, kept.name));
    }
    let uid = kept.uid.as_ref().filter(|uid| !uid.is_empty() && **uid != meta.uid())?;
    Some(format!("its claimRef has the uid {uid} of an earlier claim; remove claimRef.uid to bind it again"))
}

fn too_small(volume: &PersistentVolume, claim: &Claim) -> Option<String> {
    let has = match bytes(&volume.spec.capacity) {
        Ok(Some(has)) => has,
        Ok(None) => return Some("it has no capacity.storage".into()),
        Err(problem) => return Some(format!("its capacity.storage: {problem}")),
    };
    // A claim without a size of its own is told elsewhere.
    let asked = bytes(&claim.spec.resources.requests).ok().flatten()?;
    (has < asked).then(|| format!("its capacity {} is less than the {} asked for", human(has), human(asked)))
}

/// What is no volume of this driver, or not for this node.
fn elsewhere(volume: &PersistentVolume, site: &Site) -> Option<String> {
    let Some(csi) = &volume.spec.csi else { return Some("it is no CSI volume (spec.csi is missing)".into()) };
    if csi.driver != site.driver {
        return Some(format!("it is of the driver {}, this endpoint is {}", csi.driver, site.driver));
    }
    if csi.volume_handle.is_empty() {
        return Some("its spec.csi.volumeHandle is empty".into());
    }
    let required = volume.spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    let away = required.is_some_and(|nodes| !nodes.fits(&site.labels));
    away.then(|| {
        let labels: BTreeSet<_> = site.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let labels = labels.into_iter().collect::<Vec<_>>().join(", ");
        format!("its nodeAffinity excludes this node ({labels})")
    })
}
