//! The Container Storage Interface, version 1.12 (package `csi.v1`): messages, clients and server traits
//! generated from `proto/csi.proto`.
//!
//! `Debug` of a message with a field marked `csi_secret` prints how many entries that field has and nothing of
//! what is in it, so that a request can be logged as it is. The code that does so is generated from the
//! descriptor, so a secret field added to csi.proto is covered without a change here.

use std::fmt;

/// Package `csi.v1`: messages, the clients (`*_client`) and the server traits (`*_server`).
#[allow(missing_docs, clippy::pedantic, unreachable_pub, rust_2018_idioms)]
pub mod v1 {
    tonic::include_proto!("csi.v1");
    include!(concat!(env!("OUT_DIR"), "/redacted_debug.rs"));
}

/// The specification's version that `csi.proto` follows.
pub const SPEC_VERSION: &str = "1.12.0";

/// The encoded `FileDescriptorSet` of csi.proto and its imports, with the options that csi.proto declares.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/csi.descriptor.bin"));

/// Stands in a debug print for a map of secrets; holds only their number.
struct Redacted(usize);

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} redacted>", self.0)
    }
}
