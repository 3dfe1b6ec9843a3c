//! The admin CLI: one module a noun.

pub mod cli;
pub mod client;
pub mod csi;
pub mod demo;
pub mod errors;
pub mod load;
pub mod output;
pub mod quantity;
pub mod run;
pub mod secrets;
