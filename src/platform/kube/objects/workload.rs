//! Deployments and stateful sets.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, StatefulSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::label;
use crate::model::id::ServiceName;
use crate::model::view::ReplicaCounts;
use crate::platform::kube::names;

/// Default of a Deployment's `maxSurge`, in percent of its replicas.
const SURGE_PERCENT: u32 = 25;

/// A deployment or stateful set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkloadFacts {
    pub(crate) service: ServiceName,
    /// Wanted number of replicas.
    pub(crate) count: u32,
    /// Additional pods that a rollout may have.
    pub(crate) surge: u32,
    /// Counts of its controller.
    pub(crate) counts: ReplicaCounts,
    /// Whether Kubernetes numbers its pods.
    pub(crate) is_ordinal: bool,
}

// === impl WorkloadFacts ===

impl WorkloadFacts {
    /// Reads a deployment; `None` if it belongs to no lease.
    pub(crate) fn of_deployment(deployment: &Deployment) -> Option<Self> {
        let status = deployment.status.as_ref();
        let number = |pick: fn(&k8s_openapi::api::apps::v1::DeploymentStatus) -> Option<i32>| {
            unsigned(status.and_then(pick))
        };
        let spec = deployment.spec.as_ref();
        let count = spec.and_then(|spec| spec.replicas).map_or(1, |count| unsigned(Some(count)));
        Some(Self {
            service: label(&deployment.metadata, names::SERVICE)?.parse().ok()?,
            count,
            surge: spec.map_or(0, |spec| surge(spec, count)),
            counts: ReplicaCounts {
                observed_generation: status.and_then(|status| status.observed_generation).unwrap_or_default(),
                total: number(|status| status.replicas),
                updated: number(|status| status.updated_replicas),
                ready: number(|status| status.ready_replicas),
                available: number(|status| status.available_replicas),
            },
            is_ordinal: false,
        })
    }

    /// Reads a stateful set; `None` if it belongs to no lease.
    pub(crate) fn of_stateful_set(set: &StatefulSet) -> Option<Self> {
        let status = set.status.as_ref();
        Some(Self {
            service: label(&set.metadata, names::SERVICE)?.parse().ok()?,
            count: set.spec.as_ref().and_then(|spec| spec.replicas).map_or(1, |count| unsigned(Some(count))),
            surge: 0,
            counts: ReplicaCounts {
                observed_generation: status.and_then(|status| status.observed_generation).unwrap_or_default(),
                total: unsigned(status.map(|status| status.replicas)),
                updated: unsigned(status.and_then(|status| status.updated_replicas)),
                ready: unsigned(status.and_then(|status| status.ready_replicas)),
                // Not `currentReplicas`, which counts pods of the current revision, whether ready or not.
                available: unsigned(status.and_then(|status| status.available_replicas)),
            },
            is_ordinal: true,
        })
    }
}

/// Returns how many pods beyond `count` a rollout of this deployment may create before it deletes one.
fn surge(spec: &DeploymentSpec, count: u32) -> u32 {
    let strategy = spec.strategy.as_ref();
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate") {
        return 0;
    }
    let surge = strategy.and_then(|strategy| strategy.rolling_update.as_ref()?.max_surge.as_ref());
    // Kubernetes rounds a percentage up.
    let share = |percent: u32| count.saturating_mul(percent).div_ceil(100);
    match surge {
        Some(IntOrString::Int(pods)) => unsigned(Some(*pods)),
        Some(IntOrString::String(text)) => share(text.trim_end_matches('%').parse().unwrap_or(SURGE_PERCENT)),
        None => share(SURGE_PERCENT),
    }
}

fn unsigned(number: Option<i32>) -> u32 {
    number.and_then(|number| u32::try_from(number).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn surge_of(strategy: &Value, count: u32) -> u32 {
        let spec = json!({ "replicas": count, "selector": {}, "template": {}, "strategy": strategy });
        surge(&serde_json::from_value(spec).unwrap(), count)
    }

    #[test]
    fn surge_is_a_number_or_a_rounded_up_percentage() {
        let rolling =
            |surge: Value| json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": surge } });
        assert_eq!(surge_of(&rolling(json!(0)), 3), 0);
        assert_eq!(surge_of(&rolling(json!(2)), 3), 2);
        assert_eq!(surge_of(&rolling(json!("34%")), 3), 2);
        assert_eq!(surge_of(&json!({}), 3), 1);
        assert_eq!(surge_of(&json!({ "type": "Recreate" }), 3), 0);
    }
}
