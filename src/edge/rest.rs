//! The REST and websocket interface of an Akash provider: its routes, queries, errors and bodies. Pure so far.

pub(crate) mod close;
pub(crate) mod error;
pub mod query;
pub(crate) mod route;
pub(crate) mod status_json;
