//! Compiles the protos with `protox`, so that no `protoc` is needed, and keeps the descriptor set for reflection.

use std::path::{Path, PathBuf};

#[expect(
    clippy::disallowed_methods,
    reason = "cargo tells build scripts their output folder by environment alone"
)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("../../proto");
    let mut files: Vec<PathBuf> = std::fs::read_dir(root.join("passline/v1"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "proto")
    });
    files.sort();
    println!("cargo:rerun-if-changed=../../proto");
    let descriptors = protox::compile(&files, [root])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    std::fs::write(out.join("passline.bin"), prost_encode(&descriptors))?;
    tonic_prost_build::configure()
        .bytes(".passline.v1.IngestDelivery.body")
        .bytes(".passline.v1.Delivery.body")
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}

fn prost_encode(descriptors: &prost_types::FileDescriptorSet) -> Vec<u8> {
    prost::Message::encode_to_vec(descriptors)
}
