//! The provider's own resources. All are in its manifest namespace and name their lease in their content.

use kube::core::DynamicObject;
use serde_json::Value;

use crate::model::id::{LeaseId, ServiceName};

/// A host name that leads to a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HostFacts {
    /// The namespace of the lease.
    pub(super) namespace: String,
    pub(super) service: ServiceName,
    pub(super) host: String,
}

/// A port of a leased address. The load balancer has the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeasedFacts {
    /// The namespace of the lease.
    pub(super) namespace: String,
    pub(super) service: ServiceName,
    pub(super) port: u16,
    /// The port at the address.
    pub(super) external_port: u16,
    /// `TCP` or `UDP`.
    pub(super) protocol: String,
}

// === impl HostFacts ===

impl HostFacts {
    /// Reads a `ProviderHost`; `None` if it belongs to no lease.
    pub(super) fn read(object: &DynamicObject) -> Option<Self> {
        let spec = object.data.get("spec")?;
        let host = text(spec, "hostname").or_else(|| object.metadata.name.clone())?;
        let namespace = lease(spec)?.namespace();
        Some(Self { namespace, service: text(spec, "service_name")?.parse().ok()?, host })
    }
}

// === impl LeasedFacts ===

impl LeasedFacts {
    /// Reads a `ProviderLeasedIP`; `None` if it belongs to no lease.
    pub(super) fn read(object: &DynamicObject) -> Option<Self> {
        let spec = object.data.get("spec")?;
        Some(Self {
            namespace: lease(spec.get("lease_id")?)?.namespace(),
            service: text(spec, "service_name")?.parse().ok()?,
            port: number(spec, "port")?.try_into().ok()?,
            external_port: number(spec, "external_port")?.try_into().ok()?,
            protocol: text(spec, "protocol")?.to_ascii_uppercase(),
        })
    }
}

fn lease(fields: &Value) -> Option<LeaseId> {
    let short = |field: &str| u32::try_from(number(fields, field)?).ok();
    let (owner, provider) = (text(fields, "owner")?, text(fields, "provider")?);
    LeaseId::new(&owner, number(fields, "dseq")?, short("gseq")?, short("oseq")?, &provider).ok()
}

/// Reads a number. The same field is a number in one resource and text in another.
fn number(fields: &Value, field: &str) -> Option<u64> {
    match fields.get(field)? {
        Value::String(text) => text.parse().ok(),
        value => value.as_u64(),
    }
}

fn text(fields: &Value, field: &str) -> Option<String> {
    fields.get(field)?.as_str().map(str::to_owned)
}
