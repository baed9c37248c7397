//! Kubernetes objects, and what is kept of them: a watch over a whole cluster must cost little memory.

mod container;
mod pod;
mod reach;
mod workload;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

pub(super) use self::container::{ContainerFacts, RunFacts, State};
pub(super) use self::pod::PodFacts;
pub(super) use self::reach::ServiceEndpoints;
pub(super) use self::workload::WorkloadFacts;
use super::names;
use crate::model::id::LeaseId;
use crate::model::time::LogTime;

/// Longest message of a kubelet or scheduler that is kept, in bytes.
const MESSAGE_MAX_BYTES: usize = 1_024;

/// A namespace of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeaseFacts {
    /// The lease that its labels name.
    pub(super) lease: LeaseId,
    /// Whether it is being deleted.
    pub(super) ends: bool,
}

// === impl LeaseFacts ===

impl LeaseFacts {
    /// The lease of a namespace, by its labels and by its name; `None` if it is none, or the two do not agree.
    pub(super) fn read(namespace: &Namespace) -> Option<Self> {
        let meta = &namespace.metadata;
        let parts: Option<Vec<&str>> = names::LEASE_PARTS.iter().map(|part| label(meta, part)).collect();
        let lease: LeaseId = parts?.join("/").parse().ok()?;
        (meta.name.as_deref() == Some(lease.namespace().as_str()))
            .then(|| Self { lease, ends: meta.deletion_timestamp.is_some() })
    }
}

/// A message, not longer than what is kept of it.
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
