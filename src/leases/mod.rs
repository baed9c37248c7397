//! What runs under a lease, told and restarted: [`status`] answers from the lease's view; [`restart`] has replicas make way for
//! new runs, one after the other, and says what came of each.

pub mod restart;
pub mod status;
