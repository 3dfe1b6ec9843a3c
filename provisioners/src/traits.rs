//! The traits of a storage backend. Each is small; a backend implements those it can keep, and [`crate::Backend`]
//! collects them.
//!
//! Rules for every implementation:
//! - done twice is done once: every call can be repeated, also after the process was killed at any point;
//! - the driver calls no two methods at once on the same volume or snapshot, except reads and clones of one source;
//! - blocking work runs on blocking threads and calls [`Ctx::check`] where ending is safe.

use async_trait::async_trait;

use crate::{
    Access, Blocks, Capability, Capacity, CapacityQuery, CapacityRange, Ctx, ExpandOutcome, FsNote, Gauge,
    GroupSnapshot, GroupSpec, Identity, NodeId, NodeState, NodeVolume, Page, ParameterDoc, Part, Result,
    Secrets, Snapshot, SnapshotId, SnapshotSpec, StringMap, Topology, Volume, VolumeId, VolumeSpec,
};

/// What every backend can do.
#[async_trait]
pub trait Provisioner: Send + Sync + 'static {
    /// The backend's kind, such as `local`: what a configuration calls it.
    fn kind(&self) -> &'static str;

    /// The StorageClass parameters it knows, for refusing others and for the documentation.
    fn parameters(&self) -> &'static [ParameterDoc];

    /// Whether the backend answers and has what it needs. Called for CSI Probe, not more than once in a few seconds.
    async fn check(&self) -> Result<()>;

    /// How each of its parts is that can fail while the others serve; they are asked at the same time, so that none waits
    /// for another. The backend can serve while one is well.
    async fn parts(&self) -> Vec<Part> {
        vec![Part { name: String::new(), state: self.check().await }]
    }

    /// What is worth knowing of the servers, a line each: for `--check`.
    async fn describe(&self) -> Vec<String> {
        Vec::new()
    }

    /// What waits for an administrator, a line each; it asks nobody.
    fn attention(&self) -> Vec<String> {
        Vec::new()
    }

    /// What a handle of a volume, snapshot or group snapshot names; what holds are taken by. It asks nobody, and its answer
    /// stays the same while the process runs. A text that is no handle of this backend names only itself.
    fn identity(&self, handle: &str) -> Identity;

    /// Why a volume of this backend cannot be used so, or `Ok`.
    fn supports(&self, capability: &Capability) -> Result<()>;

    /// Parses and validates a request without touching the backend: parameters once into a typed struct, and the
    /// handle that the volume will have. Wrong parameters are [`crate::Error::Invalid`] with the nearest known name.
    fn prepare(&self, spec: VolumeSpec) -> Result<Box<dyn Creation>>;

    /// Deletes a volume and its record. A volume that does not exist: `Ok`. In use or with no record of ours:
    /// [`crate::Error::Refused`].
    async fn delete(&self, ctx: &Ctx, id: &VolumeId) -> Result<()>;

    /// One volume. None such: [`crate::Error::NotFound`].
    async fn get(&self, id: &VolumeId) -> Result<Volume>;

    /// Whether a volume that exists would satisfy `parameters` (StorageClass) — for ValidateVolumeCapabilities.
    /// `Ok(Some(reason))` when not.
    async fn differs(&self, ctx: &Ctx, id: &VolumeId, parameters: &StringMap) -> Result<Option<String>>;
}

/// A validated CreateVolume, ready to run.
#[async_trait]
pub trait Creation: Send {
    /// The handle that the volume has or will have; decided by the name alone where the backend lets us.
    fn id(&self) -> &VolumeId;

    /// Makes the volume, or finds the one made before. Same name and other parameters:
    /// [`crate::Error::AlreadyExists`] that says what differs.
    async fn run(self: Box<Self>, ctx: &Ctx) -> Result<Volume>;
}

/// Snapshots: CSI CREATE_DELETE_SNAPSHOT, LIST_SNAPSHOTS and GET_SNAPSHOT, and volumes made from them.
#[async_trait]
pub trait Snapshots: Send + Sync {
    /// The handle that a snapshot has or will have; no I/O.
    fn snapshot_id(&self, spec: &SnapshotSpec) -> Result<SnapshotId>;

    /// Takes a snapshot, complete or absent, or finds the one taken before. Same name and another source volume:
    /// [`crate::Error::AlreadyExists`].
    async fn snapshot(&self, ctx: &Ctx, spec: SnapshotSpec) -> Result<Snapshot>;

    /// Deletes a snapshot. None such: `Ok`. A member of a group: [`crate::Error::Invalid`].
    async fn delete_snapshot(&self, ctx: &Ctx, id: &SnapshotId) -> Result<()>;

    /// One snapshot. None such: [`crate::Error::NotFound`].
    async fn get_snapshot(&self, ctx: &Ctx, id: &SnapshotId) -> Result<Snapshot>;

    /// Snapshots after `after`, at most `max` (0: all), of one volume if `source` is given.
    async fn list_snapshots(
        &self,
        ctx: &Ctx,
        source: Option<&VolumeId>,
        after: Option<&str>,
        max: usize,
    ) -> Result<Page<Snapshot>>;
}

/// A volume can be made from another ([`crate::Source::Volume`]): CSI CLONE_VOLUME.
pub trait Clones: Send + Sync {}

/// Snapshots of several volumes at one moment: CSI GroupController.
#[async_trait]
pub trait GroupSnapshots: Send + Sync {
    /// The handle that a group has or will have; no I/O.
    fn group_id(&self, spec: &GroupSpec) -> Result<String>;

    /// Takes all snapshots at one moment, all or none, or finds those taken before.
    async fn snapshot_group(&self, ctx: &Ctx, spec: GroupSpec) -> Result<GroupSnapshot>;

    /// Deletes a group and its snapshots. None such: `Ok`. `members` must be the group's
    /// ([`crate::Error::Invalid`] otherwise); empty: not checked.
    async fn delete_group(&self, ctx: &Ctx, id: &str, members: &[SnapshotId]) -> Result<()>;

    /// One group. None such: [`crate::Error::NotFound`]. `members` as in [`GroupSnapshots::delete_group`].
    async fn get_group(&self, ctx: &Ctx, id: &str, members: &[SnapshotId]) -> Result<GroupSnapshot>;
}

/// Volumes can grow: CSI EXPAND_VOLUME.
#[async_trait]
pub trait Expansion: Send + Sync {
    /// Grows a volume to the range; one that is large enough already is left as it is. Never shrinks.
    async fn expand(&self, ctx: &Ctx, id: &VolumeId, range: CapacityRange) -> Result<ExpandOutcome>;

    /// Whether volumes are grown only where they are, by NodeExpandVolume: then EXPAND_VOLUME is no capability of the
    /// controller's.
    fn is_on_node(&self) -> bool {
        false
    }
}

/// What ControllerPublishVolume asks, validated.
#[derive(Debug, Clone)]
pub struct PublishRequest {
    /// The node to publish to.
    pub node: NodeId,
    /// How it will be used.
    pub capability: Capability,
    /// Whether the node may only read.
    pub read_only: bool,
}

/// Volumes are attached to nodes by the controller: CSI PUBLISH_UNPUBLISH_VOLUME.
#[async_trait]
pub trait Attachment: Send + Sync {
    /// Publishes a volume to a node; returns CSI `publish_context`. Published there with another mode:
    /// [`crate::Error::AlreadyExists`]; to another node and not multi-node: [`crate::Error::Refused`], naming it.
    async fn publish(&self, ctx: &Ctx, id: &VolumeId, request: &PublishRequest) -> Result<StringMap>;

    /// Ends it, for one node or (`None`) for all. A volume or publication that does not exist: `Ok`.
    async fn unpublish(&self, ctx: &Ctx, id: &VolumeId, node: Option<&NodeId>) -> Result<()>;
}

/// Volumes can be listed: CSI LIST_VOLUMES.
#[async_trait]
pub trait Listing: Send + Sync {
    /// Volumes after `after` in a stable order, at most `max` (0: all).
    async fn list(&self, after: Option<&str>, max: usize) -> Result<Page<Volume>>;
}

/// Free space is known: CSI GET_CAPACITY.
#[async_trait]
pub trait CapacityReport: Send + Sync {
    /// What is free for volumes of such parameters.
    async fn capacity(&self, query: &CapacityQuery) -> Result<Capacity>;
}

/// Which blocks of snapshots hold data or differ: CSI SNAPSHOT_METADATA_SERVICE.
#[async_trait]
pub trait ChangedBlocks: Send + Sync {
    /// From byte `from` on, the ranges that `target` holds, or those in which it differs from `base`, an earlier
    /// snapshot of the same volume. Another volume's, or not earlier: [`crate::Error::Invalid`].
    async fn blocks(
        &self,
        ctx: &Ctx,
        base: Option<&SnapshotId>,
        target: &SnapshotId,
        from: u64,
    ) -> Result<Blocks>;
}

/// What a backend measures of itself, for `/metrics`.
pub trait Measures: Send + Sync {
    /// The numbers now.
    fn gauges(&self) -> Vec<Gauge>;
}

/// Who knows how the nodes are: Kubernetes.
#[async_trait]
pub trait Nodes: Send + Sync {
    /// How a node is.
    async fn state(&self, node: &str) -> NodeState;
}

/// Parameters that can be changed later: CSI MODIFY_VOLUME.
#[async_trait]
pub trait Modify: Send + Sync {
    /// Sets the mutable parameters. One that cannot be changed: [`crate::Error::Invalid`].
    async fn modify(&self, ctx: &Ctx, id: &VolumeId, parameters: &StringMap) -> Result<()>;
}

/// Volumes live in a place: CSI VOLUME_ACCESSIBILITY_CONSTRAINTS.
pub trait Placement: Send + Sync {
    /// The segments of the node that this process runs on.
    fn topology(&self) -> Topology;
}

/// What a node call says of a volume. Calls that bring no context (unstage, statistics) leave the maps empty.
#[derive(Debug, Clone, Copy)]
pub struct NodeRequest<'a> {
    /// The volume.
    pub id: &'a VolumeId,
    /// CSI `volume_context`.
    pub context: &'a StringMap,
    /// CSI `publish_context`.
    pub publish_context: &'a StringMap,
    /// CSI secrets of the call.
    pub secrets: &'a Secrets,
}

/// The node's side of a backend.
#[async_trait]
pub trait NodeAccess: Send + Sync {
    /// How to get at a volume on this node. Not there: [`crate::Error::NotFound`].
    async fn access(&self, request: &NodeRequest<'_>) -> Result<NodeVolume>;

    /// How a volume that may be on this node is got at, without asking a server: for calls that take it away or look at
    /// it. No handle of this backend: [`crate::Error::NotFound`].
    async fn held(&self, id: &VolumeId) -> Result<Access>;

    /// A volume's device was attached on this node by this call, as the client of `address` if that is known.
    async fn attached(&self, volume: &VolumeId, access: &Access, address: Option<&str>) -> Result<()> {
        let _ = (volume, access, address);
        Ok(())
    }

    /// A volume that is not attached to this node is about to be: where it is for this node `alone`, one of several nodes
    /// that ask at the same moment gets it, and locks that were left behind are cleared away before the node's client meets
    /// them. `clients`: the addresses of the clients that this node's kernel has for other volumes.
    async fn attaching(
        &self,
        volume: &VolumeId,
        access: &Access,
        clients: &[String],
        alone: bool,
    ) -> Result<()> {
        let _ = (volume, access, clients, alone);
        Ok(())
    }

    /// Writes down what is done with a volume's file system.
    async fn note(&self, id: &VolumeId, note: &FsNote) -> Result<()>;

    /// The ranges (from, to, in bytes) that the volume's server has stored anything in; `None`: it cannot tell.
    async fn stored(&self, id: &VolumeId, secrets: &Secrets) -> Result<Option<Vec<(u64, u64)>>> {
        let _ = (id, secrets);
        Ok(None)
    }

    /// CSI `node_id` where that is not the configured one. Not known yet: an error, and it is asked again.
    async fn node_id(&self) -> Result<Option<String>> {
        Ok(None)
    }

    /// CSI `max_volumes_per_node`; 0: no limit.
    fn volume_limit(&self) -> u32 {
        0
    }
}
