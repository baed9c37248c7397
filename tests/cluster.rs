//! The `kube` platform against a real cluster: the one that `KUBECONFIG` names. It makes a namespace as an Akash provider would, and takes
//! it away again. Its image must have a shell: `LEASEMUX_TEST_IMAGE`, or `busybox`.
//!
//! ```sh
//! KUBECONFIG=~/.kube/config cargo test --test cluster -- --ignored
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use leasemux::edge::admin::Exporter;
use leasemux::model::id::{Address, LeaseId, Replica};
use leasemux::model::view::{LeaseView, Run};
use leasemux::platform::kube::{KubeConfig, KubePlatform, KubeSource};
use leasemux::platform::{From, Platform as _, RestartRequest, TailItem, TailRequest};
use serde_json::json;
use tokio::sync::watch;

/// How long a cluster may take to do as it was told.
const PATIENCE: Duration = Duration::from_secs(120);

/// A lease in the cluster.
struct Lease {
    client: Client,
    id: LeaseId,
}

impl Lease {
    /// With one service of so many replicas, each of which prints numbers, fast.
    async fn make(client: &Client, dseq: u64, count: u32) -> Self {
        let id = LeaseId::new(account(1).as_str(), dseq, 1, 1, account(200).as_str()).unwrap();
        let name = id.namespace();
        let labels = |more: &[(&str, String)]| {
            let mut labels = json!({ "akash.network": "true", "akash.network/namespace": name });
            for (label, value) in more {
                labels[format!("akash.network/{label}")] = json!(value);
            }
            labels
        };
        let of_lease = labels(&[
            ("lease.id.owner", id.owner().to_string()),
            ("lease.id.dseq", id.dseq().to_string()),
            ("lease.id.gseq", "1".into()),
            ("lease.id.oseq", "1".into()),
            ("lease.id.provider", id.provider().to_string()),
        ]);
        let namespace: Namespace =
            serde_json::from_value(json!({ "metadata": { "name": name, "labels": of_lease } })).unwrap();
        Api::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        let image = std::env::var("LEASEMUX_TEST_IMAGE").unwrap_or_else(|_| "busybox".into());
        let of_service = labels(&[("manifest-service", "web".into())]);
        let script = "i=0; while true; do seq $i $((i+99)); i=$((i+100)); sleep 0.1; done";
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": name, "labels": of_service },
            "spec": {
                "replicas": count, "selector": { "matchLabels": of_service },
                "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 0, "maxUnavailable": 1 } },
                "template": { "metadata": { "labels": of_service }, "spec": {
                    "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
                    "containers": [{ "name": "web", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script] }],
                } },
            },
        }))
        .unwrap();
        Api::namespaced(client.clone(), &name).create(&PostParams::default(), &deployment).await.unwrap();
        Self { client: client.clone(), id }
    }

    /// Takes it away.
    async fn remove(self) {
        let namespaces: Api<Namespace> = Api::all(self.client);
        namespaces.delete(&self.id.namespace(), &DeleteParams::default()).await.unwrap();
    }
}

/// A number that no other run of the test has.
fn unique() -> u64 {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    now.as_secs()
}

fn account(number: u8) -> Address {
    Address::from_account([number; 20])
}

fn replica(index: u32) -> Replica {
    Replica { service: "web".parse().unwrap(), index }
}

/// Waits until a slot has a run that goes on, and is not `other`.
async fn running(view: &mut watch::Receiver<Arc<LeaseView>>, index: u32, other: Option<&Run>) -> Run {
    let found = |view: &LeaseView| {
        let run = view.replica(&replica(index))?.present()?;
        (Some(&run.instance) != other.map(|run| &run.instance)).then(|| run.clone())
    };
    let view = tokio::time::timeout(PATIENCE, view.wait_for(|view| found(view).is_some())).await;
    found(&view.expect("a run in time").unwrap()).unwrap()
}

/// Follows a run from its oldest line that is kept, until it has ended or so many lines came. Each must be the next number.
async fn numbers(platform: &KubePlatform, lease: &LeaseId, index: u32, run: &Run, enough: usize) -> usize {
    let (replica, instance) = (replica(index), run.instance.clone());
    let request = TailRequest { lease: lease.clone(), replica, instance, from: From::Start, follow: true };
    let mut tail = platform.tail(request).await.unwrap();
    let (mut expected, mut lines) = (None::<u64>, 0);
    while let Some(item) = tokio::time::timeout(PATIENCE, tail.items.next()).await.expect("a line in time") {
        let TailItem::Lines(batch) = item.unwrap() else { panic!("a gap before {expected:?}") };
        for index in 0..batch.lines.len() {
            let number: u64 = std::str::from_utf8(batch.bytes(index)).unwrap().trim_end().parse().unwrap();
            assert_eq!(number, expected.unwrap_or(number), "in place of the next number");
            expected = Some(number + 1);
            lines += 1;
        }
        if lines >= enough {
            break;
        }
    }
    lines
}

#[tokio::test]
#[ignore = "needs a cluster: KUBECONFIG"]
async fn lines_are_followed_and_a_replica_restarted_in_its_slot() {
    let file = std::env::var_os("KUBECONFIG").expect("KUBECONFIG names a cluster").into();
    let config = KubeConfig {
        source: KubeSource::File { file, context: None },
        provider: account(200),
        hostname: "provider.example.com".into(),
        manifest_namespace: "lease".into(),
    };
    let platform = KubePlatform::start(&config, &Exporter::new().unwrap().metrics).await.unwrap();
    let client = Client::try_default().await.unwrap();
    let lease = Lease::make(&client, unique(), 2).await;
    let found = async {
        loop {
            if let Ok(view) = platform.watch(&lease.id).await {
                break view;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let mut view = tokio::time::timeout(PATIENCE, found).await.expect("the lease in time");
    let mut beside = view.clone();
    let (first, other) = (running(&mut view, 0, None).await, running(&mut beside, 1, None).await);
    // Some thousand lines: with small log files, through rotations.
    assert!(numbers(&platform, &lease.id, 1, &other, 5_000).await >= 5_000);
    let restart = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (replica, instance) = (replica(0), Some(first.instance.clone()));
        platform.restart(RestartRequest { lease: lease.id.clone(), replica, instance }).await.unwrap();
    };
    // The old run is read to its end, and the next one comes in its slot.
    let (read, ()) = tokio::join!(numbers(&platform, &lease.id, 0, &first, usize::MAX), restart);
    assert!(read > 0);
    let next = running(&mut view, 0, Some(&first)).await;
    assert!(numbers(&platform, &lease.id, 0, &next, 500).await >= 500);
    assert_eq!(view.borrow().replica(&replica(1)).unwrap().present().unwrap().instance, other.instance);
    lease.remove().await;
    tokio::time::timeout(PATIENCE, view.wait_for(|view| view.ended)).await.expect("an end in time").unwrap();
}
