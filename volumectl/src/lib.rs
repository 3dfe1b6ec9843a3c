//! The admin CLI: one module a noun.

#![forbid(unsafe_code)]

pub mod ceph;
pub mod cli;
pub mod client;
pub mod csi;
pub mod demo;
pub mod errors;
pub mod load;
pub mod lock;
pub mod output;
pub mod progress;
pub mod quantity;
pub mod run;
pub mod secrets;
pub mod volume;
