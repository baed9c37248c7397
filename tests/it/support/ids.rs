//! Names of tenants, leases and replicas.

use leasemux::model::id::{Address, LeaseId, Replica};

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
