//! What runs under a lease, told and restarted: [`status`] answers from the lease's view.

pub mod status;
