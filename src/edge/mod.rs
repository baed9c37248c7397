//! Where the world comes in: sockets, TLS, the `LeaseRPC` service, the admin port, and the end of it all.

pub mod admin;
mod admission;
mod audit;
mod auth_state;
mod calls;
pub mod connection;
pub mod drain;
pub mod errors;
mod fault;
mod frame_limit;
mod idle;
mod peer_limits;
mod proxy;
pub mod quotas;
pub mod request;
mod request_body;
pub mod response;
pub mod server;
pub mod service;
mod stream_supervisor;
pub mod tls;
