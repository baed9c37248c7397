//! Where the world comes in: sockets, TLS, the `LeaseRPC` service, the admin port, and the end of it all.

pub mod admin;
mod audit;
mod calls;
pub mod connection;
pub mod drain;
mod entrance;
mod frame_limit;
mod guard;
mod idle;
mod peers;
mod proxy;
pub mod quotas;
pub mod request;
pub mod response;
pub mod server;
pub mod service;
pub mod status;
pub mod tls;
