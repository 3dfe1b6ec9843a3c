//! The CSI driver: gRPC in, backend calls out.
//!
//! A request is validated (`validate`), turned into plain structs (`convert`), run in single flight (`flight`) by a
//! backend of the crate `provisioners` or by the node's kernel (`host`), and answered; errors become gRPC codes in one
//! place (`status`). Capabilities are read from the backend's traits (`capabilities`).

#![deny(unsafe_code)]

mod blocks;
mod capabilities;
pub mod cli;
pub mod config;
mod controller;
mod convert;
pub mod driver;
pub mod flight;
mod group;
pub mod health;
mod holds;
pub mod host;
mod http;
pub mod identity;
pub mod metrics;
mod node;
pub mod registry;
pub mod server;
mod sockets;
pub mod status;
pub mod table;
pub mod telemetry;
pub mod token;
mod validate;
