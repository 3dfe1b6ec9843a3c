//! A backend and what it can do, put together once.

use std::sync::Arc;

use crate::{
    Attachment, CapacityReport, ChangedBlocks, Clones, Expansion, GroupSnapshots, Listing, Measures, Modify,
    NodeAccess, Placement, Provisioner, Snapshots,
};

/// One configured backend: the traits it implements. CSI capabilities are read from here, and nowhere else.
#[derive(Clone)]
pub struct Backend {
    /// Create, delete, get.
    pub provisioner: Arc<dyn Provisioner>,
    /// The node's side.
    pub node: Arc<dyn NodeAccess>,
    /// Snapshots and restore.
    pub snapshots: Option<Arc<dyn Snapshots>>,
    /// Volumes from volumes.
    pub clones: Option<Arc<dyn Clones>>,
    /// Snapshots of several volumes at one moment.
    pub groups: Option<Arc<dyn GroupSnapshots>>,
    /// Growing.
    pub expansion: Option<Arc<dyn Expansion>>,
    /// Attaching by the controller.
    pub attachment: Option<Arc<dyn Attachment>>,
    /// Listing.
    pub listing: Option<Arc<dyn Listing>>,
    /// Free space.
    pub capacity: Option<Arc<dyn CapacityReport>>,
    /// Changing parameters.
    pub modify: Option<Arc<dyn Modify>>,
    /// Topology.
    pub placement: Option<Arc<dyn Placement>>,
    /// Allocated and changed blocks of snapshots.
    pub blocks: Option<Arc<dyn ChangedBlocks>>,
    /// Numbers of its own for `/metrics`.
    pub measures: Option<Arc<dyn Measures>>,
}

macro_rules! with {
    ($($(#[$doc:meta])* $with:ident $field:ident $tr:ident;)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $with<T: $tr + 'static>(mut self, it: Arc<T>) -> Self {
            self.$field = Some(it);
            self
        }
    )*};
}

impl Backend {
    /// A backend that can do the least.
    pub fn new<P: Provisioner + NodeAccess>(it: Arc<P>) -> Self {
        Self {
            provisioner: it.clone(),
            node: it,
            snapshots: None,
            clones: None,
            groups: None,
            expansion: None,
            attachment: None,
            listing: None,
            capacity: None,
            modify: None,
            placement: None,
            blocks: None,
            measures: None,
        }
    }

    with! {
        /// It implements [`Snapshots`].
        with_snapshots snapshots Snapshots;
        /// It implements [`Clones`].
        with_clones clones Clones;
        /// It implements [`GroupSnapshots`].
        with_groups groups GroupSnapshots;
        /// It implements [`Expansion`].
        with_expansion expansion Expansion;
        /// It implements [`Attachment`].
        with_attachment attachment Attachment;
        /// It implements [`Listing`].
        with_listing listing Listing;
        /// It implements [`CapacityReport`].
        with_capacity capacity CapacityReport;
        /// It implements [`Modify`].
        with_modify modify Modify;
        /// It implements [`Placement`].
        with_placement placement Placement;
        /// It implements [`ChangedBlocks`].
        with_blocks blocks ChangedBlocks;
        /// It implements [`Measures`].
        with_measures measures Measures;
    }

    /// Whether the backend has a feature.
    pub fn has(&self, feature: Feature) -> bool {
        match feature {
            Feature::Snapshots => self.snapshots.is_some(),
            Feature::Clones => self.clones.is_some(),
            Feature::GroupSnapshots => self.groups.is_some(),
            Feature::Expansion => self.expansion.is_some(),
            Feature::Attachment => self.attachment.is_some(),
            Feature::Listing => self.listing.is_some(),
            Feature::Capacity => self.capacity.is_some(),
            Feature::Modify => self.modify.is_some(),
            Feature::Topology => self.placement.is_some(),
            Feature::ChangedBlocks => self.blocks.is_some(),
        }
    }
}

/// What a backend may have beyond the least: one a trait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// [`Snapshots`].
    Snapshots,
    /// [`Clones`].
    Clones,
    /// [`GroupSnapshots`].
    GroupSnapshots,
    /// [`Expansion`].
    Expansion,
    /// [`Attachment`].
    Attachment,
    /// [`Listing`].
    Listing,
    /// [`CapacityReport`].
    Capacity,
    /// [`Modify`].
    Modify,
    /// [`Placement`].
    Topology,
    /// [`ChangedBlocks`].
    ChangedBlocks,
}

impl Feature {
    /// All of them, in the order of the README's table.
    pub const ALL: [Self; 10] = [
        Self::Snapshots,
        Self::Clones,
        Self::GroupSnapshots,
        Self::Expansion,
        Self::Attachment,
        Self::Listing,
        Self::Capacity,
        Self::Modify,
        Self::Topology,
        Self::ChangedBlocks,
    ];

    /// What people call it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Snapshots => "snapshot, restore",
            Self::Clones => "clone",
            Self::GroupSnapshots => "group snapshot",
            Self::Expansion => "expand",
            Self::Attachment => "attach",
            Self::Listing => "list",
            Self::Capacity => "capacity",
            Self::Modify => "modify",
            Self::Topology => "topology",
            Self::ChangedBlocks => "changed blocks",
        }
    }
}
