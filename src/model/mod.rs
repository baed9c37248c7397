//! Values: what everything else speaks of. No runtime, no clock of its own, no input or output.

pub mod concurrency;
pub mod id;
pub mod limits;
pub mod line;
pub mod metrics;
pub mod peer;
pub mod position;
pub mod proto;
pub mod quota;
pub mod rate;
pub mod request_id;
pub(crate) mod text;
pub mod time;
pub mod view;
