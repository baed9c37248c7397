//! The provider's own kinds, installed while the gateway runs.

use std::time::Duration;

use leasemux::edge::admin::Exporter;
use leasemux::model::limits::Limits;
use leasemux::model::view::Endpoints;
use leasemux::platform::Platform as _;
use serde_json::json;

use super::cluster::Cluster;
use super::{SERVICE, Scenario, connect_counted, eventually, pass};

/// The endpoints of the service.
async fn endpoints(scenario: &Scenario) -> Endpoints {
    let view = scenario.platform.watch(scenario.lease()).await.unwrap();
    let view = view.borrow();
    view.services[&SERVICE.parse().unwrap()].endpoints.clone()
}

/// Waits for these endpoints. Advances the clock by minutes.
async fn in_minutes(scenario: &Scenario, minutes: u32, so: impl Fn(&Endpoints) -> bool) {
    for _ in 0..minutes {
        for _ in 0..20 {
            if so(&endpoints(scenario).await) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        pass(Duration::from_secs(60)).await;
    }
    panic!("unexpected endpoints: {:?}", endpoints(scenario).await);
}

#[tokio::test]
async fn later_installed_kinds_are_found_then_not_checked() {
    let (cluster, dir, exporter) =
        (Cluster::start().await, tempfile::tempdir().unwrap(), Exporter::new().unwrap());
    for plural in ["providerhosts", "providerleasedips"] {
        cluster.set_installed(plural, false);
    }
    let platform = connect_counted(&cluster, &dir, &exporter).await.unwrap();
    let scenario = Scenario::of(cluster, platform, exporter, dir, 1, Limits::default());
    scenario.run("a");
    scenario.shows(&[1]).await;
    let (lease, namespace) = (scenario.lease().clone(), scenario.lease().namespace());
    scenario.cluster.put(
        "services",
        json!({ "metadata": { "name": "web-ip", "namespace": namespace, "labels": { "akash.network": "true",
                "akash.network/manifest-service": SERVICE, "akash.network/service-target": "metal-lb" } },
            "spec": { "type": "LoadBalancer", "ports": [{ "port": 80, "targetPort": 8080, "protocol": "TCP" }] },
            "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.7" }] } } }),
    );
    scenario.cluster.put(
        "providerhosts",
        json!({ "apiVersion": "akash.network/v2beta2", "kind": "ProviderHost",
            "metadata": { "name": "shop.example.com", "namespace": "lease" },
            "spec": { "owner": lease.owner().as_str(), "provider": lease.provider().as_str(), "hostname": "shop.example.com",
                "dseq": lease.dseq(), "gseq": 1, "oseq": 1, "service_name": SERVICE, "external_port": 80 } }),
    );
    // Without the provider's list, the addresses of load balancers count.
    eventually(async || !endpoints(&scenario).await.ips.is_empty()).await;
    let requests = scenario.cluster.kind_requests();
    for _ in 0..10 {
        pass(Duration::from_secs(60)).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let requests = scenario.cluster.kind_requests() - requests;
    assert!((4..=22).contains(&requests), "{requests} in ten minutes");
    assert!(endpoints(&scenario).await.uris.is_empty());
    scenario.cluster.set_installed("providerhosts", true);
    in_minutes(&scenario, 5, |endpoints| endpoints.uris == ["shop.example.com"]).await;
    assert!(!endpoints(&scenario).await.ips.is_empty());
    // The provider's list is empty: nothing is leased.
    scenario.cluster.set_installed("providerleasedips", true);
    in_minutes(&scenario, 5, |endpoints| endpoints.ips.is_empty()).await;
    assert_eq!(endpoints(&scenario).await.uris, ["shop.example.com"]);
    let requests = scenario.cluster.kind_requests();
    for _ in 0..10 {
        pass(Duration::from_secs(60)).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(scenario.cluster.kind_requests(), requests);
}
