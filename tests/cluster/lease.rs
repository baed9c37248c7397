//! A lease in the cluster, as a provider creates it: a namespace, deployments, stateful sets.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use leasemux::model::id::{LeaseId, Owner};
use leasemux::platform::kube::{ClusterAccess, KubeConfig};
use serde_json::{Value, json};

use super::support::account;

/// Longest time that a cluster may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Polling interval.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Gauge of the API server: running requests, among them followed logs.
const RUNNING_REQUESTS: &str = "apiserver_longrunning_requests{";

/// Counter of the API server: finished requests.
const FINISHED_REQUESTS: &str = "apiserver_request_total{";

/// A lease in the cluster. Dropping it removes it and waits until it is gone.
pub(crate) struct Lease {
    client: Client,
    pub(crate) id: LeaseId,
}

/// A service whose replicas each print the numbers from 0.
pub(crate) struct Service {
    pub(crate) name: &'static str,
    pub(crate) replicas: u32,
    script: String,
    is_stateful: bool,
}

/// The cluster of `KUBECONFIG`.
pub(crate) fn kube_config() -> KubeConfig {
    let kubeconfig = std::env::var_os("KUBECONFIG").expect("KUBECONFIG names a cluster").into();
    KubeConfig {
        cluster: ClusterAccess {
            kubeconfig: Some(kubeconfig),
            context: None,
            manifest_namespace: "lease".into(),
            coordination_namespace: None,
        },
        provider: account(200),
        hostname: "provider.example.com".into(),
    }
}

// === impl Service ===

impl Service {
    /// A thousand lines a second.
    pub(crate) fn loud(name: &'static str, replicas: u32) -> Self {
        let script = "i=0; while true; do seq $i $((i+99)); i=$((i+100)); sleep 0.1; done".into();
        Self { name, replicas, script, is_stateful: false }
    }

    /// Ten lines a second.
    pub(crate) fn quiet(name: &'static str, replicas: u32) -> Self {
        let script = "i=0; while true; do echo $i; i=$((i+1)); sleep 0.1; done".into();
        Self { name, replicas, script, is_stateful: false }
    }

    /// A stateful set, ten lines a second.
    pub(crate) fn numbered(name: &'static str, replicas: u32) -> Self {
        Self { is_stateful: true, ..Self::quiet(name, replicas) }
    }

    /// One replica that exits with this code every two seconds.
    pub(crate) fn crashing(name: &'static str, code: u8) -> Self {
        let script =
            format!("i=0; while [ $i -lt 20 ]; do echo $i; i=$((i+1)); sleep 0.1; done; exit {code}");
        Self { name, replicas: 1, script, is_stateful: false }
    }

    /// The workload, of the kind that the provider creates for such a service.
    fn workload(&self, namespace: &str) -> Value {
        let Self { name, replicas, script, is_stateful } = self;
        let image = std::env::var("LEASEMUX_TEST_IMAGE").unwrap_or_else(|_| "busybox".into());
        let labels = json!({ "akash.network": "true", "akash.network/namespace": namespace, "akash.network/manifest-service": name });
        let mut workload = json!({
            "metadata": { "name": name, "namespace": namespace, "labels": labels },
            "spec": {
                "replicas": replicas, "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": labels }, "spec": {
                    "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
                    "containers": [{ "name": name, "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script] }],
                } },
            },
        });
        let rolling = json!({ "maxSurge": 0, "maxUnavailable": 1 });
        if *is_stateful {
            workload["spec"]["serviceName"] = json!("");
        } else {
            workload["spec"]["strategy"] = json!({ "type": "RollingUpdate", "rollingUpdate": rolling });
        }
        workload
    }
}

// === impl Lease ===

impl Lease {
    /// Creates a lease of this owner, with these services.
    pub(crate) async fn make(owner: &Owner, services: &[Service]) -> Self {
        let client = Client::try_default().await.unwrap();
        let id = LeaseId::new(owner.as_str(), 1, 1, 1, account(200).as_str()).unwrap();
        let name = id.namespace();
        let labels = json!({
            "akash.network": "true",
            "akash.network/namespace": name,
            "akash.network/lease.id.owner": id.owner().as_str(),
            "akash.network/lease.id.dseq": id.dseq().to_string(),
            "akash.network/lease.id.gseq": "1",
            "akash.network/lease.id.oseq": "1",
            "akash.network/lease.id.provider": id.provider().as_str(),
            // To find the remains of a killed test.
            "leasemux/test": "true",
        });
        let namespace: Namespace =
            serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } })).unwrap();
        let once = PostParams::default();
        Api::all(client.clone()).create(&once, &namespace).await.unwrap();
        // From here on it is removed, whatever happens.
        let lease = Self { client, id };
        for service in services {
            let workload = service.workload(&name);
            if service.is_stateful {
                let set: StatefulSet = serde_json::from_value(workload).unwrap();
                lease.api().create(&once, &set).await.unwrap();
            } else {
                let deployment: Deployment = serde_json::from_value(workload).unwrap();
                lease.api().create(&once, &deployment).await.unwrap();
            }
        }
        lease
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.id.namespace())
    }

    /// Sets the number of replicas of a stateful set.
    pub(crate) async fn scale(&self, set: &str, replicas: u32) {
        let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
        self.api::<StatefulSet>().patch(set, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Replaces the pods of a deployment, as a new manifest does.
    pub(crate) async fn roll_out(&self, deployment: &str) {
        let template = json!({ "metadata": { "annotations": { "changed": "true" } } });
        let patch = Patch::Merge(json!({ "spec": { "template": template } }));
        self.api::<Deployment>().patch(deployment, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Deletes all pods at once, without the gateway.
    pub(crate) async fn delete_pods(&self) {
        let all = ListParams::default();
        self.api::<Pod>().delete_collection(&DeleteParams::default(), &all).await.unwrap();
    }

    /// Number of followed logs, from the API server's metrics.
    pub(crate) async fn log_requests(&self) -> u64 {
        self.metric_of_logs(RUNNING_REQUESTS).await
    }

    /// Number of log requests that have ended, from the API server's metrics.
    pub(crate) async fn finished_log_requests(&self) -> u64 {
        self.metric_of_logs(FINISHED_REQUESTS).await
    }

    /// Waits until this number of logs is followed.
    pub(crate) async fn wait_for_log_requests(&self, number: u64) {
        let reached = async {
            while self.log_requests().await != number {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("logs are closed in time");
    }

    async fn metric_of_logs(&self, metric: &str) -> u64 {
        let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
        let text = self.client.request_text(request).await.unwrap();
        let of_logs = text.lines().filter(|line| {
            line.starts_with(metric)
                && line.contains("resource=\"pods\"")
                && line.contains("subresource=\"log\"")
        });
        of_logs.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let name = self.id.namespace();
        // With its own runtime and connections: the test's runtime may be ending.
        let removing = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(remove(&name));
        });
        // If the test fails already, its error counts; the thread has printed its own.
        let removed = removing.join();
        assert!(removed.is_ok() || std::thread::panicking(), "{} is still there", self.id.namespace());
    }
}

async fn remove(name: &str) {
    let namespaces: Api<Namespace> = Api::all(Client::try_default().await.unwrap());
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    let gone = async {
        while namespaces.get_opt(name).await.is_ok_and(|found| found.is_some()) {
            // It may have been too early, or the API server may be down: deletes again.
            let _ = namespaces.delete(name, &at_once).await;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("a namespace goes in time");
}
