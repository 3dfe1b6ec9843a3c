//! The Kubernetes objects that `csi run` reads, as far as they matter to a CSI driver.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::secrets::SecretManifest;

/// Keys and values.
pub type Map = BTreeMap<String, String>;

/// `metadata`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    /// The object's name.
    pub name: String,
    /// Its namespace.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    #[serde(default)]
    uid: Option<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: Map,
    /// Its annotations.
    #[serde(default)]
    pub annotations: Map,
}

impl Meta {
    /// `namespace/name`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The object's uid, or one made of its namespace and name, so that the same file always means the same volumes.
    pub fn uid(&self) -> String {
        self.uid.clone().unwrap_or_else(|| {
            let digest = Sha256::digest(self.path());
            let bytes: [u8; 16] = digest[..16].try_into().unwrap_or_default();
            uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
        })
    }
}

/// storage.k8s.io/v1 StorageClass.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StorageClass {
    /// Its metadata.
    pub metadata: Meta,
    /// The CSI driver's name.
    pub provisioner: String,
    /// Parameters for the driver and its sidecars.
    #[serde(default)]
    pub parameters: Map,
    /// Mount options of its volumes.
    #[serde(default)]
    pub mount_options: Vec<String>,
    /// `Delete` or `Retain`.
    #[serde(default)]
    pub reclaim_policy: Option<String>,
}

impl StorageClass {
    fn is_default(&self) -> bool {
        self.metadata
            .annotations
            .get("storageclass.kubernetes.io/is-default-class")
            .is_some_and(|v| v == "true")
    }
}

/// v1 PersistentVolumeClaim.
#[derive(Debug, Clone, Deserialize)]
pub struct Claim {
    /// Its metadata.
    pub metadata: Meta,
    /// What is claimed.
    pub spec: ClaimSpec,
}

/// Its `spec`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimSpec {
    /// `ReadWriteOnce`, …
    #[serde(default)]
    pub access_modes: Vec<String>,
    /// `requests.storage` and `limits.storage`.
    #[serde(default)]
    pub resources: Resources,
    /// `Filesystem` or `Block`.
    #[serde(default)]
    pub volume_mode: Option<String>,
    /// Its class; none: the default one.
    #[serde(default)]
    pub storage_class_name: Option<String>,
    /// What it is filled from.
    #[serde(default, alias = "dataSourceRef")]
    pub data_source: Option<Reference>,
    /// Its VolumeAttributesClass.
    #[serde(default)]
    pub volume_attributes_class_name: Option<String>,
}

/// Resources as Kubernetes writes them; a size can be a number in YAML.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// At least.
    pub requests: BTreeMap<String, Value>,
    /// At most.
    pub limits: BTreeMap<String, Value>,
}

/// A reference to another object.
#[derive(Debug, Clone, Deserialize)]
pub struct Reference {
    /// `VolumeSnapshot` or `PersistentVolumeClaim`.
    pub kind: String,
    /// Its name, in the same namespace.
    pub name: String,
}

/// snapshot.storage.k8s.io/v1 VolumeSnapshotClass.
#[derive(Debug, Clone, Deserialize)]
pub struct SnapshotClass {
    /// Its metadata.
    pub metadata: Meta,
    /// Parameters for the driver and the snapshotter.
    #[serde(default)]
    pub parameters: Map,
}

/// snapshot.storage.k8s.io/v1 VolumeSnapshot.
#[derive(Debug, Clone, Deserialize)]
pub struct Snapshot {
    /// Its metadata.
    pub metadata: Meta,
    /// What is taken.
    pub spec: SnapshotSpec,
}

/// Its `spec`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSpec {
    /// Of what.
    pub source: SnapshotSource,
    /// Its class.
    #[serde(default)]
    pub volume_snapshot_class_name: Option<String>,
}

/// `spec.source`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSource {
    /// The claim whose volume it is.
    pub persistent_volume_claim_name: String,
}

#[derive(Debug, Clone, Deserialize)]
struct AttributesClass {
    metadata: Meta,
    #[serde(default)]
    parameters: Map,
}

#[derive(Deserialize)]
struct SecretObject {
    metadata: Meta,
    #[serde(flatten)]
    values: SecretManifest,
}

/// Everything in a file.
#[derive(Default)]
pub struct Bundle {
    classes: Vec<StorageClass>,
    /// Claims, in the file's order.
    pub claims: Vec<Claim>,
    /// Snapshots, in the file's order.
    pub snapshots: Vec<Snapshot>,
    snapshot_classes: Vec<SnapshotClass>,
    attributes: Vec<AttributesClass>,
    secrets: BTreeMap<String, Map>,
    /// Objects that are not for a CSI driver, as `Kind name`.
    pub ignored: Vec<String>,
}

/// The parser's first line: those after it show the text, which may be a Secret's. Without its advice for programmers.
fn first_words(error: &str) -> &str {
    let line = error.lines().next().unwrap_or_default();
    line.split_once(", set ")
        .filter(|(_, advice)| advice.contains("Options"))
        .map_or(line, |(words, _)| words)
}

impl Bundle {
    /// Reads a file of one or more documents.
    pub fn load(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        Self::parse(&text).with_context(|| file.display().to_string())
    }

    /// Parses a text of one or more documents.
    pub fn parse(text: &str) -> Result<Self> {
        let mut bundle = Self::default();
        // Strict: `on` and `yes` are texts, as Kubernetes reads them.
        let options = serde_saphyr::options! { strict_booleans: true };
        let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
            .map_err(|e| anyhow::anyhow!("not YAML: {}", first_words(&e.to_string())))?;
        documents.into_iter().filter(|d| !d.is_null()).try_for_each(|document| bundle.add(document))?;
        if bundle.claims.is_empty() && bundle.snapshots.is_empty() {
            bail!("has no PersistentVolumeClaim and no VolumeSnapshot: there is nothing to do");
        }
        Ok(bundle)
    }

    fn add(&mut self, mut object: Value) -> Result<()> {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let name = object["metadata"]["name"].as_str().unwrap_or("without a name").to_owned();
        match kind.as_str() {
            "List" => match object["items"].take() {
                Value::Array(items) => items.into_iter().try_for_each(|item| self.add(item))?,
                _ => bail!("a List without items"),
            },
            "StorageClass" => self.classes.push(typed(object, &kind, &name)?),
            "PersistentVolumeClaim" => self.claims.push(typed(object, &kind, &name)?),
            "VolumeSnapshotClass" => self.snapshot_classes.push(typed(object, &kind, &name)?),
            "VolumeSnapshot" => self.snapshots.push(typed(object, &kind, &name)?),
            "VolumeAttributesClass" => self.attributes.push(typed(object, &kind, &name)?),
            "Secret" => {
                // The parser's error could quote a value.
                let secret: SecretObject = serde_json::from_value(object)
                    .map_err(|_| anyhow::anyhow!("Secret {name} cannot be read"))?;
                self.secrets.insert(secret.metadata.path(), secret.values.values()?);
            }
            "" => bail!("a document has no kind"),
            _ => self.ignored.push(format!("{kind} {name}")),
        }
        Ok(())
    }

    /// A claim's class, or the default one.
    pub fn class(&self, claim: &Claim) -> Result<&StorageClass> {
        let wanted = claim.spec.storage_class_name.as_deref();
        let found = match wanted {
            Some(name) => self.classes.iter().find(|c| c.metadata.name == name),
            None => self.classes.iter().find(|c| c.is_default()).or(match self.classes.as_slice() {
                [only] => Some(only),
                _ => None,
            }),
        };
        let name = wanted.unwrap_or("the default one");
        found.with_context(|| {
            format!("claim {}: StorageClass {name} is not in the file", claim.metadata.path())
        })
    }

    /// A snapshot's class parameters.
    pub fn snapshot_parameters(&self, snapshot: &Snapshot) -> Result<Map> {
        let Some(name) = &snapshot.spec.volume_snapshot_class_name else { return Ok(Map::new()) };
        let class = self.snapshot_classes.iter().find(|c| c.metadata.name == *name);
        let path = snapshot.metadata.path();
        Ok(class
            .with_context(|| format!("snapshot {path}: VolumeSnapshotClass {name} is not in the file"))?
            .parameters
            .clone())
    }

    /// A claim's mutable parameters.
    pub fn mutable_parameters(&self, claim: &Claim) -> Result<Map> {
        let Some(name) = &claim.spec.volume_attributes_class_name else { return Ok(Map::new()) };
        let class = self.attributes.iter().find(|c| c.metadata.name == *name);
        let path = claim.metadata.path();
        Ok(class
            .with_context(|| format!("claim {path}: VolumeAttributesClass {name} is not in the file"))?
            .parameters
            .clone())
    }

    /// The secrets that class parameters name for a step, such as `provisioner` or `node-stage`
    /// (`csi.storage.k8s.io/<step>-secret-name` and `-namespace`, with the templates of external-provisioner).
    pub fn secrets(&self, step: &str, parameters: &Map, claim: &Meta) -> Result<Map> {
        let parameter = |what: &str| parameters.get(&format!("csi.storage.k8s.io/{step}-secret-{what}"));
        let Some(name) = parameter("name") else { return Ok(Map::new()) };
        let fill = |text: &str| {
            text.replace("${pvc.namespace}", &claim.namespace).replace("${pvc.name}", &claim.name)
        };
        let namespace = parameter("namespace").map_or_else(|| claim.namespace.clone(), |n| fill(n));
        let path = format!("{namespace}/{}", fill(name));
        self.secrets
            .get(&path)
            .cloned()
            .with_context(|| format!("the {step} secret {path} is not in the file"))
    }
}

fn typed<T: DeserializeOwned>(object: Value, kind: &str, name: &str) -> Result<T> {
    serde_json::from_value(object).with_context(|| format!("{kind} {name}"))
}

fn default_namespace() -> String {
    "default".into()
}

#[cfg(test)]
#[path = "manifests_tests.rs"]
mod tests;
