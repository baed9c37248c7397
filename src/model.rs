//! Values that all other modules use: identifiers, limits, refusals, positions, views, metrics. No runtime
//! and no I/O.

pub(crate) mod concurrency;
pub(crate) mod cursor_text;
pub(crate) mod entry_json;
pub mod event;
pub mod id;
pub(crate) mod label;
pub mod limits;
pub mod line;
pub mod metrics;
pub(crate) mod parse;
pub(crate) mod peer;
pub mod position;
pub mod proto;
pub mod published;
pub mod quota;
pub(crate) mod rate;
pub mod refusal;
pub(crate) mod replica_text;
pub(crate) mod text;
pub mod time;
pub mod view;
