//! Compiles `proto/csi.proto` without `protoc`: the Rust types, the descriptor with its options, and a
//! `Debug` for each message with a `csi_secret` field that prints everything but the secret.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, error::Error, fs};

use prost_reflect::{DescriptorPool, FieldDescriptor, MessageDescriptor};

const PROTO: &str = "proto/csi.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO}");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_file("csi.proto")?;
    // `file_descriptor_set()` drops the options that csi.proto declares; the encoded form keeps them.
    let encoded = compiler.encode_file_descriptor_set();
    fs::write(out.join("csi.descriptor.bin"), &encoded)?;

    let pool = DescriptorPool::decode(encoded.as_slice())?;
    let secret: Vec<_> = pool.all_messages().filter(|m| m.fields().any(|f| is_secret(&pool, &f))).collect();
    fs::write(out.join("redacted_debug.rs"), redacted_debug(&pool, &secret)?)?;

    let mut config = tonic_prost_build::Config::new();
    config.skip_debug(secret.iter().map(|m| format!(".{}", m.full_name())));
    config.btree_map(["."]);
    tonic_prost_build::configure().compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    Ok(())
}

/// Whether the field carries the option `(csi.v1.csi_secret) = true`.
fn is_secret(pool: &DescriptorPool, field: &FieldDescriptor) -> bool {
    pool.get_extension_by_name("csi.v1.csi_secret")
        .is_some_and(|option| field.options().get_extension(&option).as_bool() == Some(true))
}

/// One `impl Debug` a message, secrets replaced by their number of entries.
fn redacted_debug(pool: &DescriptorPool, messages: &[MessageDescriptor]) -> Result<String, std::fmt::Error> {
    let mut code = String::new();
    for message in messages {
        let name = message.name();
        writeln!(code, "impl ::core::fmt::Debug for {name} {{")?;
        writeln!(code, "fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{")?;
        writeln!(code, "f.debug_struct({name:?})")?;
        for field in message.fields() {
            let name = field.name();
            if is_secret(pool, &field) {
                writeln!(code, ".field({name:?}, &crate::Redacted(self.{name}.len()))")?;
            } else {
                writeln!(code, ".field({name:?}, &self.{name})")?;
            }
        }
        writeln!(code, ".finish()\n}}\n}}")?;
    }
    Ok(code)
}
