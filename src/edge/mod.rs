//! Where the world comes in: sockets, TLS, the `LeaseRPC` service, the admin port, and the end of it all.

pub mod admin;
mod audit;
mod auth_state;
mod calls;
pub mod connection;
pub mod drain;
mod entrance;
mod fault;
mod frame_limit;
mod guard;
mod idle;
mod peers;
mod proxy;
pub mod quotas;
pub mod request;
mod request_body;
pub mod response;
pub mod server;
pub mod service;
pub mod status;
pub mod tls;
