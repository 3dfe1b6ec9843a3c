//! The cinder backend against real Keystone, Cinder and Nova.

#[path = "cinder/contract.rs"]
mod contract;
