//! What is in the files that `csi run` is given.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::input::Text;
use super::objects::{AttributesClass, Claim, Map, Meta, ObjectRef, PersistentVolume, StorageClass};
use super::snapshot_objects::{Snapshot, SnapshotClass, SnapshotContent};
use super::workloads::{self, Claims, Workload};
use crate::secrets::SecretManifest;

/// Kinds that are read, and their API groups.
const KINDS: [(&str, &str); 8] = [
    ("StorageClass", "storage.k8s.io"),
    ("PersistentVolumeClaim", ""),
    ("PersistentVolume", ""),
    ("VolumeSnapshotClass", "snapshot.storage.k8s.io"),
    ("VolumeSnapshot", "snapshot.storage.k8s.io"),
    ("VolumeSnapshotContent", "snapshot.storage.k8s.io"),
    ("VolumeAttributesClass", "storage.k8s.io"),
    ("Secret", ""),
];

/// Kinds without a namespace.
const OF_THE_CLUSTER: [&str; 5] = [
    "StorageClass",
    "PersistentVolume",
    "VolumeSnapshotClass",
    "VolumeSnapshotContent",
    "VolumeAttributesClass",
];

/// Fields that are not read and would change nothing: the server's own, and what makes no difference on one node.
const WITHOUT_EFFECT: [&str; 9] = [
    "apiVersion",
    "kind",
    "status",
    "metadata",
    "volumeBindingMode",
    "spec.claimRef",
    // What is in the file is not deleted.
    "spec.persistentVolumeReclaimPolicy",
    "spec.deletionPolicy",
    "spec.volumeSnapshotRef",
];

#[derive(Deserialize)]
struct SecretObject {
    #[serde(flatten)]
    values: SecretManifest,
}

/// Everything in the files.
#[derive(Default)]
pub struct Bundle {
    /// StorageClasses.
    pub classes: Vec<StorageClass>,
    /// Claims, in the files' order; those of workloads last.
    pub claims: Vec<Claim>,
    /// PersistentVolumes.
    pub volumes: Vec<PersistentVolume>,
    /// Snapshots, in the files' order.
    pub snapshots: Vec<Snapshot>,
    /// VolumeSnapshotClasses.
    pub snapshot_classes: Vec<SnapshotClass>,
    /// VolumeSnapshotContents.
    pub contents: Vec<SnapshotContent>,
    /// VolumeAttributesClasses.
    pub attributes: Vec<AttributesClass>,
    secrets: BTreeMap<String, Map>,
    templates: Vec<Claims>,
    used: Vec<(String, String)>,
    // Which text has it.
    seen: BTreeMap<String, String>,
    /// What of the files is not done, or done in another way than a cluster does it: a line each.
    pub remarks: Vec<String>,
}

/// The parser's first line: those after it show the text, which may be a Secret's. Without its advice for programmers.
fn first_words(error: &str) -> &str {
    let line = error.lines().next().unwrap_or_default();
    line.split_once(", set ")
        .filter(|(_, advice)| advice.contains("Options"))
        .map_or(line, |(words, _)| words)
}

impl Bundle {
    /// Parses texts of one or more documents each.
    pub fn parse(texts: &[Text]) -> Result<Self> {
        let mut bundle = Self::default();
        for text in texts {
            bundle.read(text).with_context(|| text.name.clone())?;
        }
        bundle.expand()?;
        if bundle.claims.is_empty() && bundle.snapshots.is_empty() && bundle.templates.is_empty() {
            let names: Vec<_> = texts.iter().map(|text| text.name.as_str()).collect();
            let names = names.join(", ");
            bail!(
                "{names}: no PersistentVolumeClaim, no VolumeSnapshot, no claim of a workload: nothing to do"
            );
        }
        Ok(bundle)
    }

    fn read(&mut self, text: &Text) -> Result<()> {
        // Strict: `on` and `yes` are texts, as Kubernetes reads them.
        let options = serde_saphyr::options! { strict_booleans: true };
        let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(&text.text, options)
            .map_err(|e| anyhow::anyhow!("not YAML: {}", first_words(&e.to_string())))?;
        documents.into_iter().filter(|d| !d.is_null()).try_for_each(|it| self.document(it, &text.name))
    }

    fn document(&mut self, mut object: Value, file: &str) -> Result<()> {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        ensure!(!kind.is_empty(), "a document has no kind");
        if kind.ends_with("List") && !object["items"].is_null() {
            let Value::Array(items) = object["items"].take() else { bail!("{kind}: items is not a list") };
            // The items of a typed list need not say their kind.
            let of = kind.trim_end_matches("List").to_owned();
            return items.into_iter().try_for_each(|mut item| {
                if !of.is_empty() && item["kind"].is_null() && item.is_object() {
                    item["kind"] = of.clone().into();
                }
                self.document(item, file)
            });
        }
        let version = object["apiVersion"].as_str().unwrap_or_default().to_owned();
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let known = |(name, its): &(&str, &str)| *name == kind && (*its == group || version.is_empty());
        if !KINDS.iter().chain(&workloads::KINDS).any(known) {
            let name = object["metadata"]["name"].as_str().unwrap_or("without a name");
            self.remarks.push(format!("ignored: {kind} {name} (nothing is done with this kind)"));
            return Ok(());
        }
        let label = self.label(&kind, &object, file)?;
        self.add(object, &kind, &label)
    }

    /// What an object is called in messages; it has a name, and is not there twice.
    fn label(&mut self, kind: &str, object: &Value, file: &str) -> Result<String> {
        let meta: Meta = serde_json::from_value(object["metadata"].clone())
            .map_err(|error| anyhow::anyhow!("{kind}: metadata: {error}"))?;
        let name = if OF_THE_CLUSTER.contains(&kind) { meta.name.clone() } else { meta.path() };
        let label = format!("{kind} {name}");
        if let Some(problem) = meta.problem() {
            bail!("{label}: {problem}");
        }
        if let Some(other) = self.seen.insert(label.clone(), file.to_owned()) {
            bail!("{label} is there twice ({other}, {file}); remove one of both");
        }
        Ok(label)
    }

    fn add(&mut self, object: Value, kind: &str, label: &str) -> Result<()> {
        match kind {
            "StorageClass" => {
                let it = self.typed(object, label)?;
                self.classes.push(it);
            }
            "PersistentVolumeClaim" => {
                let it = self.typed(object, label)?;
                self.claims.push(it);
            }
            "PersistentVolume" => {
                let it = self.typed(object, label)?;
                self.volumes.push(it);
            }
            "VolumeSnapshotClass" => {
                let it = self.typed(object, label)?;
                self.snapshot_classes.push(it);
            }
            "VolumeSnapshot" => {
                let it = self.typed(object, label)?;
                self.snapshots.push(it);
            }
            "VolumeSnapshotContent" => {
                let it = self.typed(object, label)?;
                self.contents.push(it);
            }
            "VolumeAttributesClass" => {
                let it = self.typed(object, label)?;
                self.attributes.push(it);
            }
            "Secret" => self.secret(object, label)?,
            _ => self.workload(object, kind, label)?,
        }
        Ok(())
    }

    /// An object as what it is, and a line for each of its fields that is not read.
    fn typed<T: DeserializeOwned>(&mut self, object: Value, label: &str) -> Result<T> {
        let (value, unread) = read_and_unread(object, label)?;
        self.remarks.extend(unread.iter().map(|field| format!("ignored: {label}: {field} is not used")));
        Ok(value)
    }

    fn secret(&mut self, object: Value, label: &str) -> Result<()> {
        const KNOWN: [&str; 7] =
            ["apiVersion", "kind", "metadata", "data", "stringData", "type", "immutable"];
        for field in object.as_object().into_iter().flatten().map(|(field, _)| field) {
            if !KNOWN.contains(&field.as_str()) {
                self.remarks.push(format!("ignored: {label}: {field} is not used"));
            }
        }
        // The parser's error could quote a value.
        let secret: SecretObject =
            serde_json::from_value(object).map_err(|_| anyhow::anyhow!("{label} cannot be read"))?;
        let path = label.trim_start_matches("Secret ").to_owned();
        self.secrets.insert(path, secret.values.values().with_context(|| label.to_owned())?);
        Ok(())
    }

    fn workload(&mut self, object: Value, kind: &str, label: &str) -> Result<()> {
        let (workload, unread): (Workload, _) = read_and_unread(object, label)?;
        let claims = workload.claims(kind);
        self.remarks.push(workloads::remark(label, kind, &claims));
        let unread = unread.iter().filter(|field| field.contains("olumeClaimTemplate"));
        let unread = unread.filter(|field| !field.contains(".metadata.") && !field.contains(".status"));
        let (api, kinds) = (".apiVersion", ".kind");
        let unread = unread.filter(|field| !field.ends_with(api) && !field.ends_with(kinds));
        self.remarks.extend(unread.map(|field| format!("ignored: {label}: {field} is not used")));
        for volume in workload.inline() {
            self.remarks.push(format!(
                "ignored: {label}: its volume {volume} is inline (csi), which only kubelet makes"
            ));
        }
        self.used.extend(workload.uses().into_iter().map(|claim| (label.to_owned(), claim)));
        self.templates.extend(claims);
        Ok(())
    }

    /// The claims of the workloads, after all that are in the files themselves.
    fn expand(&mut self) -> Result<()> {
        for claims in &self.templates {
            for claim in claims.all() {
                let path = claim.metadata.path();
                if let Some(problem) = claim.metadata.problem() {
                    bail!("{}: claim {path}: {problem}", claims.owner);
                }
                let own = self.claims.iter().any(|it| it.metadata.path() == path);
                ensure!(
                    !own || claims.adopts,
                    "{}: claim {path} is there already; the ephemeral volume needs another name",
                    claims.owner
                );
                if !own {
                    self.claims.push(claim);
                }
            }
        }
        for (label, claim) in &self.used {
            if !self.claims.iter().any(|it| it.metadata.path() == *claim) {
                self.remarks.push(format!("ignored: {label}: its claim {claim} is not in the file"));
            }
        }
        Ok(())
    }

    /// The claim that was made for a workload of the file which has fewer replicas now.
    pub fn former(&self, path: &str) -> Option<Claim> {
        self.templates.iter().find_map(|claims| claims.of_path(path))
    }

    /// A Secret by name.
    pub fn secret_of(&self, step: &str, reference: &ObjectRef) -> Result<Map> {
        let path = format!("{}/{}", reference.namespace, reference.name);
        self.secrets
            .get(&path)
            .cloned()
            .with_context(|| format!("the {step} secret {path} is not in the file"))
    }
}

fn read_and_unread<T: DeserializeOwned>(object: Value, label: &str) -> Result<(T, Vec<String>)> {
    let mut unread = Vec::new();
    let value = serde_ignored::deserialize(object, |path| unread.push(path.to_string().replace(".?", "")))
        .map_err(|error| anyhow::anyhow!("{label}: {error}"))?;
    let below = |field: &str, known: &str| {
        field.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    unread.retain(|field| !WITHOUT_EFFECT.iter().any(|known| below(field, known)));
    Ok((value, unread))
}

#[cfg(test)]
#[path = "manifests_tests.rs"]
mod tests;
