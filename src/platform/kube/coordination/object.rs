//! The object that stands for a turn: what is read from it, and what is written.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::Preconditions;

use crate::platform::kube::names;

/// The name of the object of the lease with this namespace.
pub(super) fn name(lease: &str) -> String {
    format!("leasemux-{lease}")
}

pub(super) fn holder_of(object: &Lease) -> &str {
    object.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

pub(super) fn note_of(object: &Lease) -> &str {
    let annotations = object.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(names::RESTARTS)).map(String::as_str).unwrap_or_default()
}

/// Only if it is still this very object in this very version.
pub(super) fn as_is(object: &Lease) -> Preconditions {
    let meta = &object.metadata;
    Preconditions { uid: meta.uid.clone(), resource_version: meta.resource_version.clone() }
}

/// A new object of this name in `own`, which goes when the namespace `owner` with this UID does.
pub(super) fn new(name: &str, own: &str, (owner, uid): (&str, String)) -> Lease {
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Namespace".to_owned(),
        name: owner.to_owned(),
        uid,
        ..OwnerReference::default()
    };
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(own.to_owned()),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    Lease { metadata, spec: None }
}

/// The object as `holder` writes it, who has the turn for another `term` from now on.
pub(super) fn held(mut object: Lease, holder: &str, term: Duration, note: String) -> Lease {
    let now = MicroTime(k8s_openapi::jiff::Timestamp::now());
    let spec = object.spec.get_or_insert_with(LeaseSpec::default);
    if spec.holder_identity.as_deref() != Some(holder) {
        spec.holder_identity = Some(holder.to_owned());
        spec.acquire_time = Some(now.clone());
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default().saturating_add(1));
    }
    spec.lease_duration_seconds = Some(i32::try_from(term.as_secs()).unwrap_or(i32::MAX));
    spec.renew_time = Some(now);
    object.metadata.annotations.get_or_insert_default().insert(names::RESTARTS.to_owned(), note);
    object.metadata.managed_fields = None;
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gateways of other versions read and write this object.
    #[test]
    fn recorded_object_is_read_and_written_unchanged() {
        const RECORDED: &str = include_str!("../../../../tests/surface/fixtures/kubernetes-lease.json");
        let found: Lease = serde_json::from_str(RECORDED).unwrap();
        assert_eq!((holder_of(&found), note_of(&found)), ("gateway-1_uuid", "{\"hand\":{}}"));
        assert_eq!(found.metadata.name, Some(name("namespace")));
        let fresh = new(&name("namespace"), "gateways", ("namespace", "uid".to_owned()));
        let mut written = held(fresh, "gateway-1_uuid", Duration::from_secs(15), note_of(&found).to_owned());
        let (spec, times) = (written.spec.as_mut().unwrap(), found.spec.as_ref().unwrap());
        (spec.acquire_time, spec.renew_time) = (times.acquire_time.clone(), times.renew_time.clone());
        assert_eq!(serde_json::to_string_pretty(&written).unwrap() + "\n", RECORDED);
    }
}
