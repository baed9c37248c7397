//! The stored parts of Kubernetes objects. They are small, because the watches cover the whole cluster.

mod endpoints;
mod pod;
mod workload;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

pub(super) use self::endpoints::ServiceEndpoints;
pub(super) use self::pod::{ContainerFacts, PodFacts, RunFacts, State};
pub(super) use self::workload::WorkloadFacts;
use super::names;
use crate::model::id::LeaseId;
use crate::model::time::LogTime;

/// Longest stored message of a kubelet or scheduler.
const MESSAGE_MAX_BYTES: usize = 1_024;

/// The namespace of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeaseFacts {
    pub(super) lease: LeaseId,
    /// Whether it is being deleted.
    pub(super) ends: bool,
}

// === impl LeaseFacts ===

impl LeaseFacts {
    /// Reads a namespace; `None` if it belongs to no lease, or if its labels and its name disagree.
    pub(super) fn read(namespace: &Namespace) -> Option<Self> {
        let meta = &namespace.metadata;
        let parts: Option<Vec<&str>> = names::LEASE_PARTS.iter().map(|part| label(meta, part)).collect();
        let lease: LeaseId = parts?.join("/").parse().ok()?;
        (meta.name.as_deref() == Some(lease.namespace().as_str()))
            .then(|| Self { lease, ends: meta.deletion_timestamp.is_some() })
    }
}

/// Truncates a message to [`MESSAGE_MAX_BYTES`].
fn clip(mut message: String) -> String {
    if message.len() > MESSAGE_MAX_BYTES {
        let end =
            (0..=MESSAGE_MAX_BYTES).rev().find(|end| message.is_char_boundary(*end)).unwrap_or_default();
        message.truncate(end);
    }
    message
}

fn label<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    entry(meta.labels.as_ref(), name)
}

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    entry(meta.annotations.as_ref(), name)
}

fn entry<'a>(map: Option<&'a BTreeMap<String, String>>, name: &str) -> Option<&'a str> {
    map?.get(name).map(String::as_str)
}

pub(super) fn time(time: &Time) -> LogTime {
    let nanos = time.0.as_nanosecond();
    i64::try_from(nanos).map_or(LogTime::MIN, LogTime::from_nanos)
}
