//! leasemux: logs, status and restarts of Akash leases over gRPC.
//!
//! One actor per service replica tails its container log once and sends chunks, already encoded, to every
//! follower through a bounded ring. A follower that lags skips lines and receives the exact number that it
//! lost.
//!
//! Modules from top to bottom; each imports only from modules below it: [`serve`] (wiring) · [`edge`]
//! (sockets, TLS, the service) · [`logs`] (the multiplexer), [`status`] and [`restart`] · [`stream`] (state
//! shared by a response body and its supervisor) · [`access`] (authentication and trust) and [`platform`]
//! (what runs, and its logs) · [`sys`] (operating system) · [`model`] (values). Beside them: [`client`]
//! (command-line client), [`config`] (settings), [`demo`] and [`loss_checker`]. `docs/ARCHITECTURE.md` has
//! diagrams.

pub mod access;
pub mod client;
pub mod config;
pub mod demo;
#[cfg(test)]
mod docs;
pub mod edge;
pub mod logs;
pub mod loss_checker;
pub mod model;
pub mod platform;
pub mod restart;
pub mod serve;
pub mod status;
pub mod stream;
pub mod sys;
