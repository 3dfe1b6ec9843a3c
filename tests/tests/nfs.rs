//! The nfs backend on a real server (nfs-ganesha), in all versions of the protocol that it speaks.

#[path = "nfs/contract.rs"]
mod contract;
#[path = "nfs/copies.rs"]
mod copies;
#[path = "nfs/faults.rs"]
mod faults;
#[path = "nfs/features.rs"]
mod features;
#[path = "nfs/records.rs"]
mod records;
#[path = "nfs/removal.rs"]
mod removal;
#[path = "nfs/safety.rs"]
mod safety;
#[path = "nfs/shares.rs"]
mod shares;
#[path = "nfs/world.rs"]
mod world;
