//! What the tests stand on.

pub(crate) mod chain;
pub(crate) mod gateway;
pub(crate) mod oracle;
pub(crate) mod process;
pub(crate) mod promql;
pub(crate) mod raw;
pub(crate) mod seeds;
pub(crate) mod source;
pub(crate) mod statuses;
pub(crate) mod world;

use leasemux::model::id::{Address, LeaseId, Replica};
use tonic_types::StatusExt as _;

/// The account of a tenant, by a number.
pub(crate) fn account(number: u8) -> Address {
    Address::from_account([number; 20])
}

/// A lease of a tenant, by a number.
pub(crate) fn lease(tenant: u8) -> LeaseId {
    LeaseId::new(account(tenant).as_str(), 7, 1, 1, account(200).as_str()).unwrap()
}

/// A slot.
pub(crate) fn replica(service: &str, index: u32) -> Replica {
    Replica { service: service.parse().unwrap(), index }
}

/// The stable word for why a call was refused, which every refusal has.
pub(crate) fn reason(status: &tonic::Status) -> String {
    status.get_details_error_info().expect("every refusal has a reason").reason
}
