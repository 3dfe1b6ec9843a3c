//! The objects of snapshot.storage.k8s.io.

use serde::Deserialize;

use super::objects::{Map, Meta, ObjectRef};

/// snapshot.storage.k8s.io/v1 VolumeSnapshotClass.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotClass {
    /// Its metadata.
    pub metadata: Meta,
    /// The CSI driver's name.
    #[serde(default)]
    pub driver: String,
    /// `Delete` or `Retain`.
    #[serde(default)]
    pub deletion_policy: Option<String>,
    /// Parameters for the driver and the snapshotter.
    #[serde(default)]
    pub parameters: Map,
}

impl SnapshotClass {
    /// Whether it is for snapshots that name none.
    pub fn is_default(&self) -> bool {
        self.metadata.says_true(&["snapshot.storage.kubernetes.io/is-default-class"])
    }
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

/// `spec.source`: one of both.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSource {
    /// The claim whose volume it is taken of.
    #[serde(default)]
    pub persistent_volume_claim_name: Option<String>,
    /// The VolumeSnapshotContent of one that there is already.
    #[serde(default)]
    pub volume_snapshot_content_name: Option<String>,
}

/// snapshot.storage.k8s.io/v1 VolumeSnapshotContent.
#[derive(Debug, Clone, Deserialize)]
pub struct SnapshotContent {
    /// Its metadata.
    pub metadata: Meta,
    /// What it is.
    pub spec: ContentSpec,
}

/// Its `spec`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContentSpec {
    /// The CSI driver's name.
    pub driver: String,
    /// The snapshot behind it.
    pub source: ContentSource,
    /// The VolumeSnapshot that it is of.
    pub volume_snapshot_ref: ObjectRef,
}

/// `spec.source`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContentSource {
    /// The snapshot's handle.
    #[serde(default)]
    pub snapshot_handle: Option<String>,
}
