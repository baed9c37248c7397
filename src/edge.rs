//! The network side: sockets, TLS, HTTP/2, the `LeaseRPC` service, the admin port and graceful shutdown.
//!
//! `server` accepts a connection within its limits and calls `tls` (handshake) and `connection` (HTTP/2) in
//! turn. `connection` calls `service` for each request: authentication, quotas, the call, `response`.
//! `stream_supervisor` watches each HTTP/2 stream from outside.

pub mod admin;
mod audit;
pub(crate) mod call_trace;
pub mod connection;
pub mod drain;
mod errors;
pub(crate) mod forward;
mod frame_limit;
pub(crate) mod page_files;
mod peer_limits;
mod proxy;
pub mod published;
mod quotas;
pub mod request;
mod request_body;
mod response;
pub mod rest;
pub mod server;
pub mod service;
mod stream_supervisor;
mod task_classes;
pub mod tls;
pub(crate) mod upstream;
pub mod websocket;
