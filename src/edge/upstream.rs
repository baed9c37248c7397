//! The real provider behind the gateway: forwards requests and connections that the gateway does not serve.
//!
//! - [`client_hello`] reads the first TLS message of a connection and decides whether the gateway terminates
//!   TLS.
//! - [`splice`] copies a TLS connection to the provider and back, without terminating it.
//! - [`framing`] rejects HTTP/1.1 requests of ambiguous length, before anything parses them.
//! - [`provider`] forwards HTTP/1.1 requests, and tunnels websockets.
//! - [`grpc`] forwards gRPC calls as bytes.
//!
//! There is one configured provider per protocol; no request determines the address. Nothing here knows
//! leases or checks credentials: the provider does.

pub(crate) mod client_hello;
pub(super) mod copy;
pub(crate) mod failure;
pub(crate) mod framing;
pub(crate) mod grpc;
mod headers;
pub(crate) mod limits;
mod pool;
pub(crate) mod provider;
pub(crate) mod splice;
pub(crate) mod target;
#[cfg(test)]
mod tests;
