//! leasemux: a gateway for Akash leases. One actor per service replica tails its container log once and fans chunks out,
//! already encoded, to every follower; buffers are bounded; who falls behind loses lines and is told exactly how many.
//!
//! The rooms, from the street to the cellar; each uses only what is below it:
//! [`serve`] (wiring) · [`edge`] (sockets, TLS, the service) · [`logs`] (the multiplexer) and [`leases`] (status, restart) ·
//! [`stream`] (what a response's body and its watcher share) · [`access`] (may they?) and [`platform`] (where is it?) ·
//! [`model`] (values) and [`host`] (what the operating system offers).
//! Beside them: [`client`] (the command line's calls) and [`config`] (what was asked for).

pub mod access;
pub mod client;
pub mod config;
#[cfg(test)]
mod docs;
pub mod edge;
pub mod logs;
pub mod model;
pub mod platform;
pub mod restart;
pub mod serve;
pub mod status;
pub mod stream;
pub mod sys;
