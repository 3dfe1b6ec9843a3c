//! The Kubernetes objects that `csi run` reads, as far as they matter to a CSI driver.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::selectors::{LabelSelector, NodeSelector, TopologyTerm};

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
    /// The metadata of an object that a controller would make.
    pub fn made(namespace: &str, name: String) -> Self {
        Self { name, namespace: namespace.into(), uid: None, labels: Map::new(), annotations: Map::new() }
    }

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

    /// What is wrong with the names, which become paths below the mount directory: the API server's rules.
    pub fn problem(&self) -> Option<String> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let label = |part: &str| {
            !part.is_empty() && part.chars().all(plain) && !part.starts_with('-') && !part.ends_with('-')
        };
        if self.name.len() > 253 || !self.name.split('.').all(label) {
            return Some(format!("metadata.name \"{}\" is not a DNS name", self.name));
        }
        if self.namespace.len() > 63 || !label(&self.namespace) {
            return Some(format!("metadata.namespace \"{}\" is not a DNS label", self.namespace));
        }
        let odd =
            |uid: &&String| uid.is_empty() || !uid.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        self.uid.as_ref().filter(odd).map(|uid| format!("metadata.uid \"{uid}\" is not a uid"))
    }

    pub(super) fn says_true(&self, annotations: &[&str]) -> bool {
        annotations.iter().any(|key| self.annotations.get(*key).is_some_and(|value| value == "true"))
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
    /// Whether its claims may ask for more later.
    #[serde(default)]
    pub allow_volume_expansion: bool,
    /// Where its volumes may be.
    #[serde(default)]
    pub allowed_topologies: Vec<TopologyTerm>,
}

impl StorageClass {
    /// Whether it is for claims that name none.
    pub fn is_default(&self) -> bool {
        self.metadata.says_true(&[
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ])
    }

    /// Whether the volume outlives its claim.
    pub fn retains(&self) -> bool {
        self.reclaim_policy.as_deref() == Some("Retain")
    }
}

/// v1 PersistentVolumeClaim.
#[derive(Debug, Clone, Deserialize)]
pub struct Claim {
    /// Its metadata.
    pub metadata: Meta,
    /// What is claimed.
    pub spec: ClaimSpec,
    /// The workload whose template it is made of.
    #[serde(skip)]
    pub owner: Option<String>,
}

impl Claim {
    /// The class that it names: `Some("")` is none at all, `None` the default one.
    pub fn class_name(&self) -> Option<&str> {
        let older = self.metadata.annotations.get("volume.beta.kubernetes.io/storage-class");
        older.or(self.spec.storage_class_name.as_ref()).map(String::as_str)
    }

    /// What it is filled from.
    pub fn source(&self) -> Option<&Reference> {
        self.spec.data_source_ref.as_ref().or(self.spec.data_source.as_ref())
    }

    /// `Filesystem` or `Block`.
    pub fn volume_mode(&self) -> &str {
        self.spec.volume_mode.as_deref().unwrap_or("Filesystem")
    }
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
    #[serde(default)]
    volume_mode: Option<String>,
    #[serde(default)]
    storage_class_name: Option<String>,
    /// The PersistentVolume that it wants.
    #[serde(default)]
    pub volume_name: Option<String>,
    /// The labels of the PersistentVolumes that it may have.
    #[serde(default)]
    pub selector: Option<LabelSelector>,
    #[serde(default)]
    data_source: Option<Reference>,
    #[serde(default)]
    data_source_ref: Option<Reference>,
    /// Its VolumeAttributesClass.
    #[serde(default)]
    pub volume_attributes_class_name: Option<String>,
}

/// Resources as Kubernetes writes them; a size can be a number in YAML.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// At least.
    pub requests: Storage,
    /// At most.
    pub limits: Storage,
}

/// A list of resources of which one is storage.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Storage {
    /// The quantity.
    pub storage: Option<Value>,
}

/// A reference to another object.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reference {
    /// Its group; none is the core group.
    #[serde(default)]
    pub api_group: Option<String>,
    /// `VolumeSnapshot` or `PersistentVolumeClaim`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its namespace, where that is another one.
    #[serde(default)]
    pub namespace: Option<String>,
}

/// v1 PersistentVolume.
#[derive(Debug, Clone, Deserialize)]
pub struct PersistentVolume {
    /// Its metadata.
    pub metadata: Meta,
    /// What it is.
    pub spec: VolumeSpec,
}

/// Its `spec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeSpec {
    /// Its size.
    pub capacity: Storage,
    /// How it may be used.
    pub access_modes: Vec<String>,
    /// `Filesystem` or `Block`.
    pub volume_mode: Option<String>,
    /// Its class; none and "" are the same.
    pub storage_class_name: String,
    /// Its VolumeAttributesClass.
    pub volume_attributes_class_name: Option<String>,
    /// Its mount options.
    pub mount_options: Vec<String>,
    /// The claim that it is kept for.
    pub claim_ref: Option<ClaimRef>,
    /// Where it can be used.
    pub node_affinity: Option<NodeAffinity>,
    /// The volume behind it.
    pub csi: Option<CsiSource>,
}

/// `spec.claimRef`.
#[derive(Debug, Clone, Deserialize)]
pub struct ClaimRef {
    /// The claim's namespace.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    #[serde(default)]
    pub uid: Option<String>,
}

/// `spec.nodeAffinity`.
#[derive(Debug, Clone, Deserialize)]
pub struct NodeAffinity {
    /// What a node must have.
    #[serde(default)]
    pub required: Option<NodeSelector>,
}

/// `spec.csi`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CsiSource {
    /// The CSI driver's name.
    pub driver: String,
    /// The volume's handle.
    pub volume_handle: String,
    /// It is only read.
    #[serde(default)]
    pub read_only: bool,
    /// Its file system.
    #[serde(default)]
    pub fs_type: String,
    /// `volume_context`.
    #[serde(default)]
    pub volume_attributes: Map,
    /// For ControllerPublishVolume.
    #[serde(default)]
    pub controller_publish_secret_ref: Option<ObjectRef>,
    /// For NodeStageVolume.
    #[serde(default)]
    pub node_stage_secret_ref: Option<ObjectRef>,
    /// For NodePublishVolume.
    #[serde(default)]
    pub node_publish_secret_ref: Option<ObjectRef>,
    /// For ControllerExpandVolume.
    #[serde(default)]
    pub controller_expand_secret_ref: Option<ObjectRef>,
    /// For NodeExpandVolume.
    #[serde(default)]
    pub node_expand_secret_ref: Option<ObjectRef>,
}

/// A Secret, or another object, by name.
#[derive(Debug, Clone, Deserialize)]
pub struct ObjectRef {
    /// Its name.
    pub name: String,
    /// Its namespace.
    #[serde(default = "default_namespace")]
    pub namespace: String,
}

/// storage.k8s.io/v1 VolumeAttributesClass.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttributesClass {
    /// Its metadata.
    pub metadata: Meta,
    /// The CSI driver's name.
    #[serde(default)]
    pub driver_name: String,
    /// Mutable parameters.
    #[serde(default)]
    pub parameters: Map,
}

pub(super) fn default_namespace() -> String {
    "default".into()
}
