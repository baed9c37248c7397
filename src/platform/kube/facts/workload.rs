//! Deployments and stateful sets: what is kept of them.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};

use super::label;
use crate::model::id::ServiceName;
use crate::model::view::Counts;
use crate::platform::kube::names;

/// A deployment or stateful set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::platform::kube) struct WorkloadFacts {
    /// The service that it runs.
    pub(in crate::platform::kube) service: ServiceName,
    /// How many replicas there ought to be.
    pub(in crate::platform::kube) count: u32,
    /// What its controller counts.
    pub(in crate::platform::kube) counts: Counts,
    /// Whether its pods are numbered by Kubernetes.
    pub(in crate::platform::kube) is_ordinal: bool,
}

// === impl WorkloadFacts ===

impl WorkloadFacts {
    /// What is kept of a deployment; `None` if it is not one of a lease.
    pub(in crate::platform::kube) fn of_deployment(deployment: &Deployment) -> Option<Self> {
        let status = deployment.status.as_ref();
        let number = |pick: fn(&k8s_openapi::api::apps::v1::DeploymentStatus) -> Option<i32>| {
            unsigned(status.and_then(pick))
        };
        Some(Self {
            service: label(&deployment.metadata, names::SERVICE)?.parse().ok()?,
            count: deployment
                .spec
                .as_ref()
                .and_then(|spec| spec.replicas)
                .map_or(1, |count| unsigned(Some(count))),
            counts: Counts {
                observed_generation: status.and_then(|status| status.observed_generation).unwrap_or_default(),
                total: number(|status| status.replicas),
                updated: number(|status| status.updated_replicas),
                ready: number(|status| status.ready_replicas),
                available: number(|status| status.available_replicas),
            },
            is_ordinal: false,
        })
    }

    /// What is kept of a stateful set; `None` if it is not one of a lease.
    pub(in crate::platform::kube) fn of_stateful_set(set: &StatefulSet) -> Option<Self> {
        let status = set.status.as_ref();
        Some(Self {
            service: label(&set.metadata, names::SERVICE)?.parse().ok()?,
            count: set.spec.as_ref().and_then(|spec| spec.replicas).map_or(1, |count| unsigned(Some(count))),
            counts: Counts {
                observed_generation: status.and_then(|status| status.observed_generation).unwrap_or_default(),
                total: unsigned(status.map(|status| status.replicas)),
                updated: unsigned(status.and_then(|status| status.updated_replicas)),
                ready: unsigned(status.and_then(|status| status.ready_replicas)),
                // Not `currentReplicas`, which counts pods of the current revision, ready or not.
                available: unsigned(status.and_then(|status| status.available_replicas)),
            },
            is_ordinal: true,
        })
    }
}

fn unsigned(number: Option<i32>) -> u32 {
    number.and_then(|number| u32::try_from(number).ok()).unwrap_or_default()
}
