//! Helpers of all tests.

pub(crate) mod chain;
pub(crate) mod completion;
pub(crate) mod counting;
pub(crate) mod entries;
pub(crate) mod fake_platform;
pub(crate) mod gateway;
pub(crate) mod grpc_server;
pub(crate) mod ids;
pub(crate) mod loss_check;
pub(crate) mod process;
pub(crate) mod promql;
pub(crate) mod provider;
pub(crate) mod raw;
pub(crate) mod rest;
pub(crate) mod seeds;
pub(crate) mod source;
pub(crate) mod statuses;
pub(crate) mod terminal;

use tonic_types::StatusExt as _;

pub(crate) use self::ids::{account, lease, replica};

/// Returns the reason code of a refusal.
pub(crate) fn reason(status: &tonic::Status) -> String {
    status.get_details_error_info().expect("every refusal has a reason").reason
}
