//! Plain structs between the CSI services and the backends. Sizes are bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Keys and values, sorted.
pub type StringMap = BTreeMap<String, String>;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
    };
}

id!(
    /// A volume's handle: CSI `volume_id`, at most 128 bytes.
    VolumeId
);
id!(
    /// A snapshot's handle: CSI `snapshot_id`, at most 128 bytes.
    SnapshotId
);
id!(
    /// A node's name as the backend knows it: CSI `node_id`, at most 256 bytes.
    NodeId
);

/// CSI `CapacityRange`; 0 means not given. Validated: neither is negative and a limit is not below what is required.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapacityRange {
    /// At least so many bytes.
    pub required: u64,
    /// At most so many bytes.
    pub limit: u64,
}

impl CapacityRange {
    /// Whether a volume of `bytes` satisfies the range.
    pub fn admits(&self, bytes: u64) -> bool {
        bytes >= self.required && (self.limit == 0 || bytes <= self.limit)
    }
}

/// How many users a volume may have: CSI `VolumeCapability.AccessMode.Mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AccessMode {
    /// One node, read and write (any number of pods there).
    SingleNodeWriter,
    /// One node, read only.
    SingleNodeReaderOnly,
    /// Many nodes, read only.
    MultiNodeReaderOnly,
    /// Many nodes, one of them writes.
    MultiNodeSingleWriter,
    /// Many nodes write.
    MultiNodeMultiWriter,
    /// One node, one pod writes (ReadWriteOncePod).
    SingleNodeSingleWriter,
    /// One node, many pods write.
    SingleNodeMultiWriter,
}

impl AccessMode {
    /// Whether the mode never writes.
    pub fn is_read_only(self) -> bool {
        matches!(self, Self::SingleNodeReaderOnly | Self::MultiNodeReaderOnly)
    }

    /// Whether the mode is for more than one node.
    pub fn is_multi_node(self) -> bool {
        matches!(self, Self::MultiNodeReaderOnly | Self::MultiNodeSingleWriter | Self::MultiNodeMultiWriter)
    }
}

/// As what a volume is used: CSI `VolumeCapability.access_type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessType {
    /// As a raw block device.
    Block,
    /// As a file system.
    Mount {
        /// `ext4`, `xfs`, `btrfs`, or empty for the default.
        fs_type: String,
        /// Mount options. They may hold secrets by the specification, so they are not logged.
        flags: Vec<String>,
        /// The gid that owns the files (CSI `volume_mount_group`), if asked for.
        group: Option<u32>,
    },
}

/// One CSI `VolumeCapability`, validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// As a block device or a file system.
    pub access: AccessType,
    /// By whom.
    pub mode: AccessMode,
}

/// Topology segments, such as `topology.local.csi.volumectl.io/node: worker-1`.
pub type Topology = StringMap;

/// CSI `TopologyRequirement`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopologyRequest {
    /// The volume must be reachable from at least one of these; empty: no wish.
    pub requisite: Vec<Topology>,
    /// In order of preference.
    pub preferred: Vec<Topology>,
}

/// What Kubernetes says of the claim, for name templates and the record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PvcMeta {
    /// `csi.storage.k8s.io/pvc/namespace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// `csi.storage.k8s.io/pvc/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `csi.storage.k8s.io/pv/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pv_name: Option<String>,
    /// The claim's labels, where the caller passes them (`csi.volumectl.io/pvc/labels/<key>`).
    #[serde(skip_serializing_if = "StringMap::is_empty")]
    pub labels: StringMap,
    /// The claim's annotations, where the caller passes them (`csi.volumectl.io/pvc/annotations/<key>`).
    #[serde(skip_serializing_if = "StringMap::is_empty")]
    pub annotations: StringMap,
}

/// What a new volume is filled from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A snapshot: restore.
    Snapshot(SnapshotId),
    /// A volume: clone.
    Volume(VolumeId),
}

/// What is asked of CreateVolume, validated.
#[derive(Debug, Clone)]
pub struct VolumeSpec {
    /// CSI `name`: the idempotency key. At most 128 bytes, no control characters.
    pub name: String,
    /// The size asked for.
    pub range: CapacityRange,
    /// How it will be used; never empty, never block and mount both.
    pub capabilities: Vec<Capability>,
    /// StorageClass parameters without the `csi.storage.k8s.io/` and `csi.volumectl.io/` keys.
    pub parameters: StringMap,
    /// VolumeAttributesClass parameters.
    pub mutable_parameters: StringMap,
    /// What it is filled from.
    pub source: Option<Source>,
    /// Where it must be reachable.
    pub topology: Option<TopologyRequest>,
    /// The claim it is for.
    pub pvc: PvcMeta,
    /// CSI secrets. Not in `Debug` of any caller: take what is needed and drop the rest.
    pub secrets: Secrets,
}

/// CSI secrets: `Debug` prints only how many there are.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets(StringMap);

impl Secrets {
    /// Takes the map of a request.
    pub fn new(map: StringMap) -> Self {
        Self(map)
    }

    /// One secret.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} redacted>", self.0.len())
    }
}

/// CSI `VolumeCondition`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Whether the volume needs somebody's attention.
    pub abnormal: bool,
    /// Why, or `healthy`.
    pub message: String,
}

impl Condition {
    /// Nothing is wrong.
    pub fn healthy() -> Self {
        Self { abnormal: false, message: "healthy".into() }
    }

    /// Something is wrong: the text says what and what to do.
    pub fn abnormal(message: impl Into<String>) -> Self {
        Self { abnormal: true, message: message.into() }
    }
}

/// A volume as a backend knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its handle.
    pub id: VolumeId,
    /// Its size.
    pub capacity: u64,
    /// CSI `volume_context`: what nodes are told. No secret.
    pub context: StringMap,
    /// What it was filled from.
    pub source: Option<Source>,
    /// Where it can be reached from; empty: everywhere.
    pub topology: Vec<Topology>,
    /// The nodes it is published to (ControllerPublishVolume).
    pub published: BTreeSet<NodeId>,
    /// Its health.
    pub condition: Condition,
}

/// What is asked of CreateSnapshot, validated.
#[derive(Debug, Clone)]
pub struct SnapshotSpec {
    /// CSI `name`: the idempotency key.
    pub name: String,
    /// The volume to take it of.
    pub source: VolumeId,
    /// VolumeSnapshotClass parameters without the `csi.storage.k8s.io/` keys.
    pub parameters: StringMap,
    /// CSI secrets.
    pub secrets: Secrets,
}

/// A snapshot as a backend knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its handle.
    pub id: SnapshotId,
    /// The volume it was taken of.
    pub source: VolumeId,
    /// The smallest volume that it can be restored to.
    pub size: u64,
    /// When the data was as the snapshot has it. The same at every call.
    pub created: Timestamp,
    /// Whether it can be restored now.
    pub ready: bool,
    /// The group it was taken in.
    pub group: Option<String>,
}

/// What is asked of CreateVolumeGroupSnapshot, validated.
#[derive(Debug, Clone)]
pub struct GroupSpec {
    /// CSI `name`: the idempotency key.
    pub name: String,
    /// The volumes to take it of; not empty, no doubles, sorted.
    pub sources: Vec<VolumeId>,
    /// VolumeGroupSnapshotClass parameters without the `csi.storage.k8s.io/` keys.
    pub parameters: StringMap,
    /// CSI secrets.
    pub secrets: Secrets,
}

/// A group of snapshots taken at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSnapshot {
    /// Its handle: CSI `group_snapshot_id`.
    pub id: String,
    /// One snapshot a volume.
    pub snapshots: Vec<Snapshot>,
    /// When.
    pub created: Timestamp,
    /// Whether all can be restored now.
    pub ready: bool,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The entries, in the backend's stable order.
    pub items: Vec<T>,
    /// Where the next page starts (the last item's position here); `None`: this was the last.
    pub next: Option<String>,
}

/// What is asked of GetCapacity.
#[derive(Debug, Clone, Default)]
pub struct CapacityQuery {
    /// How the volumes would be used.
    pub capabilities: Vec<Capability>,
    /// StorageClass parameters.
    pub parameters: StringMap,
    /// From where they would have to be reachable.
    pub topology: Option<Topology>,
}

/// What is free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes that volumes can still take.
    pub available: u64,
    /// The largest volume that can be made now.
    pub maximum: Option<u64>,
    /// The smallest volume that can be made.
    pub minimum: Option<u64>,
}

/// What an expansion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpandOutcome {
    /// The size now.
    pub capacity: u64,
    /// Whether the node has to grow the file system, too.
    pub node_expansion_required: bool,
}

/// One number for `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gauge {
    /// Its name without the program's prefix.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
    /// Its value now.
    pub value: f64,
}

/// How a node of Kubernetes is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeState {
    /// It is ready.
    Ready,
    /// It is there and not ready: it may be alive and only cut off.
    NotReady,
    /// An administrator says that it is shut down: taint `node.kubernetes.io/out-of-service`.
    OutOfService,
    /// There is no such node.
    Gone,
    /// Nobody could say; why.
    Unknown(String),
}

/// A range of bytes of a snapshot: CSI `BlockMetadata`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// The first byte.
    pub offset: u64,
    /// How many.
    pub size: u64,
}

/// Ranges of a snapshot that come one after the other.
#[derive(Debug)]
pub struct Blocks {
    /// The size of the volume at the (later) snapshot.
    pub capacity: u64,
    /// The ranges in ascending order; an error is the last.
    pub ranges: tokio::sync::mpsc::Receiver<crate::Result<Block>>,
}

/// A part of a backend that can fail while the others serve, such as a cluster or a share.
#[derive(Debug, Clone)]
pub struct Part {
    /// What it is, such as `cluster ceph`; empty: the backend as a whole.
    pub name: String,
    /// Whether it can be used, and if not, why.
    pub state: crate::Result<()>,
}
