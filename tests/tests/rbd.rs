//! The rbd backend against a real Ceph cluster.

#[path = "rbd/contract.rs"]
mod contract;
