//! The cinder backend against real Keystone, Cinder and Nova.

#[path = "cinder/contract.rs"]
mod contract;
#[path = "cinder/crash.rs"]
mod crash;
#[path = "cinder/faults.rs"]
mod faults;
#[path = "cinder/features.rs"]
mod features;
#[path = "cinder/pains.rs"]
mod pains;
#[path = "cinder/world.rs"]
mod world;
