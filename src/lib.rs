//! leasemux: logs, status and restarts of Akash leases over gRPC.
//!
//! One actor per service replica tails its container log once and sends chunks, already encoded, to every
//! follower through a bounded ring. A follower that lags skips lines and receives the exact number that it
//! lost.
//!
//! `docs/ARCHITECTURE.md` has diagrams and the order of the modules, which a test checks. Start reading at
//! [`logs`], the multiplexer.

pub mod access;
pub mod canary;
pub mod client;
pub mod config;
pub mod demo;
pub mod edge;
mod events;
pub mod exchange;
pub mod logs;
pub mod loss_checker;
pub mod model;
pub mod platform;
pub mod program;
pub mod restart;
pub mod serve;
pub mod status;
pub mod stream;
pub mod sys;
pub mod ui;
