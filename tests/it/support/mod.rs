//! Helpers of all tests.

pub(crate) mod chain;
pub(crate) mod counting;
pub(crate) mod fake_platform;
pub(crate) mod gateway;
pub(crate) mod loss_check;
pub(crate) mod process;
pub(crate) mod promql;
pub(crate) mod provider;
pub(crate) mod raw;
pub(crate) mod rest;
pub(crate) mod seeds;
pub(crate) mod source;
pub(crate) mod statuses;

use leasemux::model::id::{Address, LeaseId, Replica};
use tonic_types::StatusExt as _;

/// Returns the account of tenant `number`.
pub(crate) fn account(number: u8) -> Address {
    Address::from_account([number; 20])
}

/// Returns a lease of a tenant.
pub(crate) fn lease(tenant: u8) -> LeaseId {
    LeaseId::new(account(tenant).as_str(), 7, 1, 1, account(200).as_str()).unwrap()
}

/// Returns a replica.
pub(crate) fn replica(service: &str, index: u32) -> Replica {
    Replica { service: service.parse().unwrap(), index }
}

/// Returns the reason code of a refusal.
pub(crate) fn reason(status: &tonic::Status) -> String {
    status.get_details_error_info().expect("every refusal has a reason").reason
}
