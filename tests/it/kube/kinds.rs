//! The provider's own kinds, installed while the gateway runs.

use std::time::Duration;

use leasemux::edge::admin::Exporter;
use leasemux::model::view::Endpoints;
use leasemux::platform::Platform as _;
use serde_json::json;

use super::cluster::Cluster;
use super::{SERVICE, Stage, connect_counted, eventually, pass};

/// Where the stage's service can be reached.
async fn endpoints(stage: &Stage) -> Endpoints {
    let view = stage.platform.watch(stage.lease()).await.unwrap();
    let view = view.borrow();
    view.services[&SERVICE.parse().unwrap()].endpoints.clone()
}

/// Waits until they are so, where minutes must pass for it.
async fn in_minutes(stage: &Stage, minutes: u32, so: impl Fn(&Endpoints) -> bool) {
    for _ in 0..minutes {
        for _ in 0..20 {
            if so(&endpoints(stage).await) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        pass(Duration::from_secs(60)).await;
    }
    panic!("not so: {:?}", endpoints(stage).await);
}

#[tokio::test]
async fn kinds_that_are_installed_later_are_noticed_and_then_no_longer_looked_for() {
    let (cluster, dir, exporter) =
        (Cluster::start().await, tempfile::tempdir().unwrap(), Exporter::new().unwrap());
    for plural in ["providerhosts", "providerleasedips"] {
        cluster.lack(plural, true);
    }
    let platform = connect_counted(&cluster, &dir, &exporter).await.unwrap();
    let stage = Stage::of(cluster, platform, exporter, dir, 1);
    stage.run("a");
    stage.shows(&[1]).await;
    let (lease, namespace) = (stage.lease().clone(), stage.lease().namespace());
    stage.cluster.put(
        "services",
        json!({ "metadata": { "name": "web-ip", "namespace": namespace, "labels": { "akash.network": "true",
                "akash.network/manifest-service": SERVICE, "akash.network/service-target": "metal-lb" } },
            "spec": { "type": "LoadBalancer", "ports": [{ "port": 80, "targetPort": 8080, "protocol": "TCP" }] },
            "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.7" }] } } }),
    );
    stage.cluster.put(
        "providerhosts",
        json!({ "apiVersion": "akash.network/v2beta2", "kind": "ProviderHost",
            "metadata": { "name": "shop.example.com", "namespace": "lease" },
            "spec": { "owner": lease.owner().as_str(), "provider": lease.provider().as_str(), "hostname": "shop.example.com",
                "dseq": lease.dseq(), "gseq": 1, "oseq": 1, "service_name": SERVICE, "external_port": 80 } }),
    );
    // Without the provider's word a balancer's is taken.
    eventually(async || !endpoints(&stage).await.ips.is_empty()).await;
    let asked = stage.cluster.kinds_asked();
    for _ in 0..10 {
        pass(Duration::from_secs(60)).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let asked = stage.cluster.kinds_asked() - asked;
    assert!((4..=22).contains(&asked), "{asked} in ten minutes");
    assert!(endpoints(&stage).await.uris.is_empty());
    stage.cluster.lack("providerhosts", false);
    in_minutes(&stage, 5, |endpoints| endpoints.uris == ["shop.example.com"]).await;
    assert!(!endpoints(&stage).await.ips.is_empty());
    // The provider says that nothing is leased (any more).
    stage.cluster.lack("providerleasedips", false);
    in_minutes(&stage, 5, |endpoints| endpoints.ips.is_empty()).await;
    assert_eq!(endpoints(&stage).await.uris, ["shop.example.com"]);
    let asked = stage.cluster.kinds_asked();
    for _ in 0..10 {
        pass(Duration::from_secs(60)).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(stage.cluster.kinds_asked(), asked);
}
