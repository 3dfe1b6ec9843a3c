//! The CSI plugin.
fn main() {}
