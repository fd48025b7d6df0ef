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
    let mut compiler = protox::Compiler::new([root])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(&files)?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    // As the compiler encodes it: prost's types would lose our own options.
    let encoded = compiler.encode_file_descriptor_set();
    std::fs::write(out.join("passline.bin"), encoded)?;
    tonic_prost_build::configure()
        .bytes(".passline.v1.IngestDelivery.body")
        .bytes(".passline.v1.Delivery.body")
        .btree_map(".")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
