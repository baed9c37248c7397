//! The commands `context`, `identity` and `token`, which need no gateway.

pub(super) mod context;
pub(super) mod identity;
pub(super) mod token;
