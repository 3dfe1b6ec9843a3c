//! The rbd backend against a real Ceph cluster.

#[path = "rbd/contract.rs"]
mod contract;
#[path = "rbd/faults.rs"]
mod faults;
#[path = "rbd/features.rs"]
mod features;
#[path = "rbd/fencing.rs"]
mod fencing;
#[path = "rbd/world.rs"]
mod world;
