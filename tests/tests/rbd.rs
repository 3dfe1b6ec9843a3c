//! The rbd backend against a real Ceph cluster.

#[path = "rbd/client.rs"]
mod client;
#[path = "rbd/clusters.rs"]
mod clusters;
#[path = "rbd/content.rs"]
mod content;
#[path = "rbd/contract.rs"]
mod contract;
#[path = "rbd/faults.rs"]
mod faults;
#[path = "rbd/features.rs"]
mod features;
#[path = "rbd/fencing.rs"]
mod fencing;
#[path = "rbd/keys.rs"]
mod keys;
#[path = "rbd/named.rs"]
mod named;
#[path = "rbd/readers.rs"]
mod readers;
#[path = "rbd/rights.rs"]
mod rights;
#[path = "rbd/safety.rs"]
mod safety;
#[path = "rbd/torn.rs"]
mod torn;
#[path = "rbd/world.rs"]
mod world;
