//! The commands `identity` and `token`, which need no gateway.

pub(super) mod identity;
pub(super) mod token;
