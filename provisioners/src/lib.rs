//! What a storage backend is, and the backends.
//!
//! A backend implements [`Provisioner`] and the optional traits beside it; which of them it has is put together
//! once in a [`Backend`], and everything else (CSI capabilities, the README's table) is read from there.
//! The structs here carry no type of CSI and none of a backend's SDK: sizes are bytes, names are the
//! Kubernetes and CSI words, and failures are one [`Error`].

mod access;
mod backend;
mod blocking;
pub mod cinder;
mod context;
mod error;
mod exit;
mod filesystem;
mod identity;
pub mod local;
#[cfg(test)]
mod migration;
mod naming;
pub mod nfs;
mod parameters;
mod parts;
pub mod rbd;
pub mod reaper;
mod record;
mod size;
mod traits;
pub mod tree;
mod types;

pub use access::{
    Access, CinderDisk, FsNote, NfsMount, NodeVolume, Permit, RbdIdentity, RbdImage, RbdMounter, SecretText,
};
pub use backend::{Backend, Feature};
pub use blocking::THREADS;
pub use context::{Ctx, Observer};
pub use error::{Error, Result, plain};
pub use exit::ExitCode;
pub use identity::Identity;
pub use naming::{NameTemplate, key_for};
pub use parameters::{ParameterDoc, Parameters, parse_size, split_parameters};
pub use record::{Stored, seal, unseal};
pub use traits::{
    Attachment, CapacityReport, ChangedBlocks, Clones, Creation, Expansion, GroupSnapshots, Listing,
    Measures, Modify, NodeAccess, NodeRequest, Nodes, Placement, Provisioner, PublishRequest, Snapshots,
};
pub use types::{
    AccessMode, AccessType, Block, Blocks, Capability, Capacity, CapacityQuery, CapacityRange, Condition,
    ExpandOutcome, Gauge, GroupSnapshot, GroupSpec, NodeId, NodeState, Page, Part, PvcMeta, Secrets,
    Snapshot, SnapshotId, SnapshotSpec, Source, StringMap, Topology, TopologyRequest, Volume, VolumeId,
    VolumeSpec,
};
