//! Turns `proto/` into Rust, without `protoc`: protox parses, tonic-prost-build generates, and the descriptor set is
//! kept for gRPC reflection.

use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["akash/provider/lease/v1/service.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".akash.provider.lease.v1.ServiceLogs.logs")
        .compile_fds(descriptors)?;
    Ok(())
}
