//! The cinder backend against real Keystone, Cinder and Nova.

#[path = "cinder/clouds.rs"]
mod clouds;
#[path = "cinder/content.rs"]
mod content;
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
#[path = "cinder/safety.rs"]
mod safety;
#[path = "cinder/world.rs"]
mod world;
