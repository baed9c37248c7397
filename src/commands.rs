//! Commands that follow no gateway: `context`, `identity`, `token`, and the answers to shells.

pub(super) mod complete;
pub(super) mod context;
pub(super) mod identity;
pub(super) mod token;
