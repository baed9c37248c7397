//! The store with lists, watches and missed events.

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::core::DynamicObject;
use serde_json::json;

use super::*;
use crate::model::view::{ReplicaState, RunEnd};
use crate::platform::kube::namespace::INDEX_WAIT;
use crate::platform::kube::objects::{HostFacts, LeasedFacts};
use crate::platform::kube::objects::{LeaseFacts, ServiceEndpoints, WorkloadFacts};

const OWNER: &str = "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev";
const PROVIDER: &str = "akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";

fn lease() -> LeaseId {
    format!("{OWNER}/6194991/1/1/{PROVIDER}").parse().unwrap()
}

fn namespace_of(lease: &LeaseId, name: &str) -> (Key, Option<Fact>) {
    let namespace: Namespace = serde_json::from_value(json!({
        "metadata": { "name": name, "labels": {
            "akash.network": "true",
            "akash.network/lease.id.owner": lease.owner().as_str(),
            "akash.network/lease.id.dseq": lease.dseq().to_string(),
            "akash.network/lease.id.gseq": lease.gseq().to_string(),
            "akash.network/lease.id.oseq": lease.oseq().to_string(),
            "akash.network/lease.id.provider": lease.provider().as_str(),
        }}
    }))
    .unwrap();
    let key = Key { namespace: name.to_owned(), kind: Watched::Namespaces, name: name.to_owned() };
    (key, LeaseFacts::read(&namespace).map(Fact::Lease))
}

fn pod(name: &str, second: u32, more: serde_json::Value) -> (Key, Fact) {
    let mut object = json!({
        "metadata": {
            "name": name, "uid": format!("uid-{name}"), "namespace": lease().namespace(), "resourceVersion": "7",
            "creationTimestamp": format!("2026-11-25T00:00:{second:02}Z"),
            "labels": { "akash.network": "true", "akash.network/manifest-service": "web" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "rs", "controller": true }],
        },
        "status": {
            "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }],
            "containerStatuses": [
                { "name": "akash-attestation-sidecar", "image": "", "imageID": "", "ready": true, "restartCount": 9, "state": { "running": {} } },
                { "name": "web", "image": "", "imageID": "", "ready": true, "restartCount": 0, "containerID": "containerd://0",
                  "state": { "running": { "startedAt": "2026-11-25T00:01:00Z" } } },
            ],
        },
    });
    merge(&mut object, more);
    let pod: Pod = serde_json::from_value(object).unwrap();
    let key = Key { namespace: lease().namespace(), kind: Watched::Pods, name: format!("uid-{name}") };
    (key, Fact::Pod(Box::new(PodFacts::read(&pod).unwrap())))
}

fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    match (into, from) {
        (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
            for (name, value) in from {
                merge(into.entry(name).or_insert(serde_json::Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn deployment(count: u32) -> (Key, Fact) {
    let facts = WorkloadFacts {
        service: "web".parse().unwrap(),
        count,
        surge: 0,
        counts: crate::model::view::ReplicaCounts::default(),
        is_ordinal: false,
    };
    let key = Key { namespace: lease().namespace(), kind: Watched::Deployments, name: "web".into() };
    (key, Fact::Workload(facts))
}

fn store(pods: Vec<(Key, Fact)>, count: u32) -> Store {
    let store = Store::new("provider.example.com".into());
    // Otherwise the view would hide these pods until their indices are written.
    store.set_writes_indices(false);
    let (key, fact) = namespace_of(&lease(), &lease().namespace());
    store.apply(Change::Replace(Watched::Namespaces, vec![(key, fact.unwrap())]));
    store.apply(Change::Replace(Watched::Deployments, vec![deployment(count)]));
    store.apply(Change::Replace(Watched::Pods, pods));
    store
}

/// Index, state in one word, and number of runs of each replica.
fn replicas(view: &LeaseView) -> Vec<(u32, String, usize)> {
    let service = &view.services[&"web".parse().unwrap()];
    let word = |state: &ReplicaState| match state {
        ReplicaState::Waiting { reason, .. } => reason.clone(),
        other => format!("{other:?}"),
    };
    service
        .replicas
        .iter()
        .map(|(index, replica)| (*index, word(&replica.state), replica.runs.len()))
        .collect()
}

fn last_end(view: &LeaseView, index: u32) -> Option<RunEnd> {
    let replica = Replica { service: "web".parse().unwrap(), index };
    view.replica(&replica)?.newest()?.end.clone()
}

#[tokio::test(start_paused = true)]
async fn lease_is_found_if_namespace_and_labels_agree() {
    let store = store(vec![pod("a", 1, json!({}))], 1);
    assert!(store.watch(&lease()).is_some());
    let other: LeaseId = format!("{OWNER}/1/1/1/{PROVIDER}").parse().unwrap();
    assert!(store.watch(&other).is_none());
    // The labels name another lease than the name does.
    let (_, fact) = namespace_of(&other, &lease().namespace());
    assert_eq!(fact, None);
    let (key, _) = namespace_of(&lease(), &lease().namespace());
    store.apply(Change::Object(key, None));
    assert!(store.watch(&lease()).is_none());
}

#[tokio::test(start_paused = true)]
async fn list_replaces_missed_events() {
    let store = store(vec![pod("a", 1, json!({})), pod("b", 2, json!({}))], 2);
    let mut view = store.watch(&lease()).unwrap();
    let running = |index| (index, "Running".to_owned(), 1);
    assert_eq!(replicas(&view.borrow_and_update()), [running(0), running(1)]);
    // Missed: the deletion of a, and the creation of c. The view has the end of a's run, and c is in its
    // replica.
    store.apply(Change::Replace(Watched::Pods, vec![pod("b", 2, json!({})), pod("c", 3, json!({}))]));
    assert!(view.has_changed().unwrap());
    let seen = replicas(&view.borrow_and_update());
    assert_eq!(seen, [(0, "Running".to_owned(), 2), running(1)]);
    // After a while a is removed.
    tokio::time::advance(GONE_KEPT * 2).await;
    store.remove_expired();
    assert_eq!(replicas(&view.borrow_and_update()), [running(0), running(1)]);
    // The lease ends: its namespace is deleted.
    store.apply(Change::Replace(Watched::Namespaces, vec![]));
    assert!(view.borrow_and_update().ended);
    drop(view);
    store.remove_expired();
    assert_eq!(store.sizes().2, 0);
}

#[tokio::test(start_paused = true)]
async fn replica_of_replaced_pod_is_kept_until_next_one() {
    let store = store(vec![pod("a", 1, json!({})), pod("b", 2, json!({}))], 2);
    let view = store.watch(&lease()).unwrap();
    let set = |(key, fact): (Key, Fact)| store.apply(Change::Object(key, Some(fact)));
    // A pod that is being deleted frees its index, and its log is still read.
    set(pod("a", 1, json!({ "metadata": { "deletionTimestamp": "2026-11-25T00:02:00Z" } })));
    assert_eq!(replicas(&view.borrow())[0], (0, "Running".to_owned(), 1));
    store.apply(Change::Object(pod("a", 1, json!({})).0, None));
    assert_eq!(replicas(&view.borrow())[0], (0, "Pending".to_owned(), 1));
    assert_eq!(last_end(&view.borrow(), 0).unwrap().reason, "Deleted");
    let waiting = json!({ "status": { "containerStatuses": [
        { "name": "web", "image": "", "imageID": "", "ready": false, "restartCount": 0,
          "state": { "waiting": { "reason": "ImagePullBackOff", "message": "no such image" } } } ] } });
    set(pod("c", 3, waiting));
    assert_eq!(replicas(&view.borrow())[0], (0, "ImagePullBackOff".to_owned(), 1));
    assert!(
        store
            .occupant(&lease().namespace(), &Replica { service: "web".parse().unwrap(), index: 0 })
            .unwrap()
            .is_stuck()
    );
}

#[tokio::test(start_paused = true)]
async fn order_of_runs_is_kept_when_an_older_pod_dies_later() {
    let waiting = json!({ "status": { "containerStatuses": [
        { "name": "web", "image": "", "imageID": "", "ready": false, "restartCount": 0,
          "state": { "waiting": { "reason": "ContainerCreating" } } } ] } });
    let deleted = |second: u32| {
        json!({ "metadata": { "deletionTimestamp": format!("2026-11-25T00:02:{second:02}Z"),
                              "deletionGracePeriodSeconds": 30 } })
    };
    let running = json!({});
    // All pods but one are surplus. The younger one runs first.
    let pods =
        || vec![pod("a", 1, running.clone()), pod("b", 2, waiting.clone()), pod("c", 3, running.clone())];
    let store = store(pods(), 1);
    let view = store.watch(&lease()).unwrap();
    let set = |(key, fact): (Key, Fact)| store.apply(Change::Object(key, Some(fact)));
    let order = || -> Vec<String> {
        let replica = Replica { service: "web".parse().unwrap(), index: 1 };
        let view = view.borrow();
        let runs = view.replica(&replica).map(|replica| replica.runs.clone()).unwrap_or_default();
        runs.iter().map(|run| run.instance.parts().0.to_owned()).collect()
    };
    assert_eq!(order(), ["uid-c"]);
    set(pod("c", 3, deleted(40)));
    set(pod("b", 2, running.clone()));
    assert_eq!(order(), ["uid-c", "uid-b"]);
    set(pod("b", 2, deleted(50)));
    assert_eq!(order(), ["uid-c", "uid-b"]);
    // A gateway that starts now finds the same order.
    let written = |index: &str| json!({ "metadata": { "annotations": { "leasemux/replica": index } } });
    let both = |second, index| {
        let mut more = deleted(second);
        merge(&mut more, written(index));
        more
    };
    let other = self::store(vec![pod("b", 2, both(50, "1")), pod("c", 3, both(40, "1"))], 1);
    let seen = other.watch(&lease()).unwrap();
    let replica = Replica { service: "web".parse().unwrap(), index: 1 };
    let runs = seen.borrow().replica(&replica).unwrap().runs.clone();
    assert_eq!(runs.iter().map(|run| run.instance.parts().0.to_owned()).collect::<Vec<_>>(), order());
    store.apply(Change::Object(pod("c", 3, json!({})).0, None));
    assert_eq!(order(), ["uid-c", "uid-b"]);
}

#[tokio::test(start_paused = true)]
async fn gone_pod_is_kept_while_an_earlier_one_is_read() {
    let store = store(vec![pod("a", 1, json!({}))], 1);
    let view = store.watch(&lease()).unwrap();
    let set = |(key, fact): (Key, Fact)| store.apply(Change::Object(key, Some(fact)));
    let runs = || replicas(&view.borrow())[0].2;
    let expire = async || {
        tokio::time::advance(GONE_KEPT * 2).await;
        store.remove_expired();
    };
    // b replaces a, which ends slowly, and is replaced by c.
    set(pod("a", 1, json!({ "metadata": { "deletionTimestamp": "2026-11-25T00:02:00Z" } })));
    set(pod("b", 2, json!({})));
    store.apply(Change::Object(pod("b", 2, json!({})).0, None));
    set(pod("c", 3, json!({})));
    expire().await;
    assert_eq!(runs(), 3);
    // A reader of a has time to see its end.
    store.apply(Change::Object(pod("a", 1, json!({})).0, None));
    store.remove_expired();
    assert_eq!(runs(), 3);
    expire().await;
    assert_eq!(runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn written_index_counts_and_missing_one_is_pending() {
    let store = store(vec![], 2);
    let to_write =
        store.apply(Change::Replace(Watched::Pods, vec![pod("a", 1, written("1")), pod("b", 2, json!({}))]));
    let indices: Vec<(&str, u32)> = to_write.iter().map(|pod| (pod.pod.as_str(), pod.index)).collect();
    assert_eq!(indices, [("b", 0)]);
    assert_eq!((to_write[0].uid.as_str(), to_write[0].version.as_str()), ("uid-b", "7"));
    let to_write = store
        .apply(Change::Replace(Watched::Pods, vec![pod("a", 1, written("1")), pod("b", 2, written("0"))]));
    assert_eq!(to_write, []);
}

fn written(index: &str) -> serde_json::Value {
    json!({ "metadata": { "annotations": { "leasemux/replica": index } } })
}

#[tokio::test(start_paused = true)]
async fn pod_is_shown_at_its_written_index_only() {
    let store = store(vec![pod("a", 1, written("0"))], 3);
    store.set_writes_indices(true);
    let view = store.watch(&lease()).unwrap();
    let running = |index| (index, "Running".to_owned(), 1);
    let pending = |index| (index, "Pending".to_owned(), 0);
    let set = |(key, fact): (Key, Fact)| store.apply(Change::Object(key, Some(fact)));
    let to_write = set(pod("b", 2, json!({})));
    assert_eq!(to_write.iter().map(|pod| pod.index).collect::<Vec<_>>(), [1]);
    assert_eq!(replicas(&view.borrow()), [running(0), pending(1), pending(2)]);
    // Another gateway was first, and had seen another pod before this one.
    assert_eq!(set(pod("b", 2, written("2"))), []);
    assert_eq!(replicas(&view.borrow()), [running(0), pending(1), running(2)]);
    // The annotation was removed. The pod keeps its index, and is not hidden again.
    assert_eq!(set(pod("b", 2, json!({}))).len(), 1);
    assert_eq!(replicas(&view.borrow()), [running(0), pending(1), running(2)]);
}

#[tokio::test(start_paused = true)]
async fn pod_without_written_index_is_shown_after_a_while() {
    for is_denied in [false, true] {
        let store = store(vec![], 1);
        store.set_writes_indices(true);
        let view = store.watch(&lease()).unwrap();
        store.apply(Change::Replace(Watched::Pods, vec![pod("a", 1, json!({}))]));
        let shown = || replicas(&view.borrow())[0].2;
        assert_eq!(shown(), 0);
        if is_denied {
            store.set_writes_indices(false);
            assert_eq!(shown(), 1);
            // A write succeeds again: what was shown stays visible.
            store.set_writes_indices(true);
        } else {
            tokio::time::sleep(INDEX_WAIT / 2).await;
            store.show_overdue();
            assert_eq!(shown(), 0);
            tokio::time::sleep(INDEX_WAIT / 2).await;
            store.show_overdue();
        }
        assert_eq!(shown(), 1, "{is_denied}");
    }
}

#[tokio::test(start_paused = true)]
async fn pod_that_is_being_deleted_is_shown_and_gets_its_index_written() {
    let store = store(vec![], 1);
    store.set_writes_indices(true);
    let view = store.watch(&lease()).unwrap();
    let dying = json!({ "metadata": { "deletionTimestamp": "2026-11-25T00:02:00Z" } });
    let to_write = store.apply(Change::Replace(Watched::Pods, vec![pod("a", 1, dying)]));
    assert_eq!(to_write.iter().map(|pod| pod.index).collect::<Vec<_>>(), [0]);
    assert_eq!(replicas(&view.borrow())[0].2, 1);
}

#[tokio::test(start_paused = true)]
async fn runs_keep_their_numbers_through_a_crash() {
    let ended = |id: &str, code: i32, reason: &str| {
        json!({ "terminated": { "containerID": id, "exitCode": code, "reason": reason,
        "startedAt": "2026-11-25T00:01:00Z", "finishedAt": "2026-11-25T00:02:00Z" } })
    };
    let container = |restarts: i32, id: &str, state: serde_json::Value, last: serde_json::Value| {
        json!({ "status": { "containerStatuses": [
        { "name": "web", "image": "", "imageID": "", "ready": false, "restartCount": restarts, "containerID": id, "state": state, "lastState": last } ] } })
    };
    let store = store(vec![pod("a", 1, json!({}))], 1);
    let view = store.watch(&lease()).unwrap();
    let runs_after = |more| {
        let (key, fact) = pod("a", 1, more);
        store.apply(Change::Object(key, Some(fact)));
        let view = view.borrow();
        let replica = view.replica(&Replica { service: "web".parse().unwrap(), index: 0 }).unwrap();
        let runs = replica
            .runs
            .iter()
            .map(|run| (run.instance.parts().2, run.end.as_ref().map(|end| end.reason.clone())));
        (runs.collect::<Vec<_>>(), replica.restarts)
    };
    let oom = || Some("OOMKilled".to_owned());
    // It ended; it waits for its next run; the next container was created; it runs.
    assert_eq!(
        runs_after(container(0, "c0", ended("c0", 137, "OOMKilled"), json!({}))),
        (vec![(0, oom())], 0)
    );
    let back_off = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
    assert_eq!(
        runs_after(container(0, "c0", back_off.clone(), ended("c0", 137, "OOMKilled"))),
        (vec![(0, oom())], 0)
    );
    assert_eq!(
        runs_after(container(1, "c1", back_off, ended("c0", 137, "OOMKilled"))),
        (vec![(0, oom())], 0)
    );
    let running = json!({ "running": { "startedAt": "2026-11-25T00:03:00Z" } });
    let (runs, restarts) = runs_after(container(1, "c1", running, ended("c0", 137, "OOMKilled")));
    assert_eq!((runs, restarts), (vec![(0, oom()), (1, None)], 1));
    let end = last_end_of_first(&view.borrow());
    assert_eq!((end.exit_code, end.signal), (Some(137), Some(9)));
}

fn last_end_of_first(view: &LeaseView) -> RunEnd {
    view.services[&"web".parse().unwrap()].replicas[&0].runs[0].end.clone().unwrap()
}

fn of_provider(kind: &str, name: &str, spec: serde_json::Value) -> DynamicObject {
    let object = json!({
        "apiVersion": "akash.network/v2beta2", "kind": kind,
        "metadata": { "name": name, "namespace": "lease", "labels": { "akash.network": "true" } }, "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

/// A host name of a service, as the provider writes it: numbers are numbers.
fn host(name: &str, lease: &LeaseId, service: &str) -> Change {
    let object = of_provider(
        "ProviderHost",
        name,
        json!({ "owner": lease.owner().as_str(), "provider": lease.provider().as_str(), "hostname": name, "dseq": lease.dseq(),
                "gseq": lease.gseq(), "oseq": lease.oseq(), "service_name": service, "external_port": 80 }),
    );
    let facts = HostFacts::read(&object).unwrap();
    let key = Key { namespace: facts.namespace.clone(), kind: Watched::Hosts, name: name.to_owned() };
    Change::Object(key, Some(Fact::Host(facts)))
}

/// A port of a leased address, as the provider writes it: the lease is an object, and its number is text.
fn leased(service: &str, port: u16, external_port: u16) -> Change {
    let lease = lease();
    let object = of_provider(
        "ProviderLeasedIP",
        service,
        json!({ "lease_id": { "owner": lease.owner().as_str(), "dseq": lease.dseq().to_string(), "gseq": 1, "oseq": 1,
                              "provider": lease.provider().as_str() },
                "service_name": service, "port": port, "external_port": external_port, "sharing_key": "k", "protocol": "TCP" }),
    );
    let facts = LeasedFacts::read(&object).unwrap();
    let key = Key { namespace: facts.namespace.clone(), kind: Watched::LeasedIps, name: service.to_owned() };
    Change::Object(key, Some(Fact::Leased(facts)))
}

#[tokio::test(start_paused = true)]
async fn moved_host_name_changes_both_leases() {
    let store = store(vec![], 1);
    let other: LeaseId = format!("{OWNER}/1/1/1/{PROVIDER}").parse().unwrap();
    let (key, fact) = namespace_of(&other, &other.namespace());
    store.apply(Change::Object(key, fact));
    let (key, fact) = deployment(1);
    store.apply(Change::Object(Key { namespace: other.namespace(), ..key }, Some(fact)));
    let (view, beside) = (store.watch(&lease()).unwrap(), store.watch(&other).unwrap());
    let hosts = |view: &watch::Receiver<Arc<LeaseView>>| {
        view.borrow().services[&"web".parse().unwrap()].endpoints.uris.clone()
    };
    store.apply(host("a.example.com", &lease(), "web"));
    store.apply(host("b.example.com", &lease(), "api"));
    assert_eq!((hosts(&view), hosts(&beside)), (vec!["a.example.com".to_owned()], vec![]));
    // It moves to another lease's service.
    store.apply(host("a.example.com", &other, "web"));
    assert_eq!((hosts(&view), hosts(&beside)), (vec![], vec!["a.example.com".to_owned()]));
    // It belongs to no lease: the watch does not know to which one it belonged.
    let key = Key { namespace: String::new(), kind: Watched::Hosts, name: "a.example.com".to_owned() };
    store.apply(Change::Object(key, None));
    assert_eq!(hosts(&beside), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn address_is_leased_while_provider_lists_it() {
    let store = store(vec![], 1);
    let view = store.watch(&lease()).unwrap();
    let ips = || view.borrow().services[&"web".parse().unwrap()].endpoints.ips.clone();
    let balancer: Service = serde_json::from_value(json!({
        "metadata": { "name": "web-ip-80-tcp", "labels": { "akash.network/service-target": "metal-lb" } },
        "spec": { "type": "LoadBalancer", "selector": { "akash.network/manifest-service": "web" },
                  "ports": [{ "port": 80, "targetPort": "http", "protocol": "TCP" }, { "port": 81, "protocol": "TCP" }] },
        "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.7" }] } },
    }))
    .unwrap();
    let key = Key { namespace: lease().namespace(), kind: Watched::Services, name: "web-ip-80-tcp".into() };
    store.apply(Change::Object(key, ServiceEndpoints::read(&balancer).map(Fact::Endpoints)));
    // The addresses of load balancers count until the provider's own list is known.
    assert_eq!(ips().len(), 2);
    store.apply(Change::Replace(Watched::LeasedIps, vec![]));
    assert_eq!(ips(), []);
    store.apply(leased("web", 8080, 80));
    let ip = &ips()[0];
    assert_eq!((ip.ip.as_str(), ip.port, ip.external_port, ips().len()), ("203.0.113.7", 8080, 80, 1));
    // The lease of the address ends, and its load balancer still exists.
    let of_provider = Key { namespace: lease().namespace(), kind: Watched::LeasedIps, name: "web".into() };
    store.apply(Change::Object(of_provider, None));
    assert_eq!(ips(), []);
}
