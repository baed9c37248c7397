//! Generates code from `proto/` without `protoc`: protox parses, tonic-prost-build generates. Stores the
//! descriptor set for gRPC reflection, and the versions of compiler and sources for `--version` and
//! `leasemux_build_info`.

use std::path::PathBuf;
use std::process::Command;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["akash/provider/lease/v1/service.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".akash.provider.lease.v1.ServiceLogs.logs")
        .include_file("lease_api.rs")
        .compile_fds(descriptors)?;
    // Separate from the above: the gateway does not serve the API of nodes, so reflection must not list it.
    let node_api =
        protox::compile(["akash/cert/v1/query.proto", "cosmos/auth/v1beta1/query.proto"], ["proto"])?;
    tonic_prost_build::configure().include_file("node_api.rs").compile_fds(node_api)?;
    // Separate as well: clients of the gateway have no use for it.
    let exchange = protox::compile(["leasemux/exchange/v1/exchange.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".leasemux.exchange.v1")
        .include_file("exchange_api.rs")
        .compile_fds(exchange)?;
    let rustc =
        Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into())).arg("--version").output()?;
    let version = String::from_utf8(rustc.stdout)?;
    // `rustc 1.95.0 (59807616e 2026-04-14)`
    println!("cargo::rustc-env=LEASEMUX_RUSTC={}", version.split(' ').nth(1).unwrap_or("unknown"));
    // Not from git: builds of the same sources would differ.
    println!("cargo::rerun-if-env-changed=LEASEMUX_REVISION");
    let mut version = std::env::var("CARGO_PKG_VERSION")?;
    let revision = std::env::var("LEASEMUX_REVISION").unwrap_or_default();
    if !revision.is_empty() {
        version = format!("{version} ({revision})");
    }
    println!("cargo::rustc-env=LEASEMUX_VERSION={version}");
    println!("cargo::rustc-env=LEASEMUX_COMMIT={}", if revision.is_empty() { "unknown" } else { &revision });
    if std::env::var_os("PROFILE").is_some_and(|profile| profile == "release") {
        // Halves the size on disk. The sections are loaded only for backtraces, which can read them
        // compressed.
        println!("cargo::rustc-link-arg-bins=-Wl,--compress-debug-sections=zlib");
    }
    Ok(())
}
