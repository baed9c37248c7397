//! Simulation of the exchange between gateways: the real state machines, in virtual time, over a bus and a
//! source that fail in all ways. A seed reproduces a scenario exactly.
//!
//! `cargo run --release --example simulate_exchange -- --seeds 5000` runs more seeds than `cargo test`.

mod bus;
mod driver;
mod follower;
mod gateway;
mod ring;
pub(crate) mod scenario;
mod source;
mod world;

#[cfg(test)]
mod tests;
