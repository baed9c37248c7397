//! A fleet over a real NATS server.
//!
//! The tests need the server of `.ci/nats`. Without its variable, each reports that it tests nothing.

mod bus;
mod fleet;
mod permissions;
mod proxy;
pub(crate) mod server;
