//! The watches: one for each kind over the whole cluster, never one for a lease or a follower. Each tells the store what it sees.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::api::ApiResource;
use kube::core::{DynamicObject, GroupVersionKind};
use kube::runtime::utils::{Backoff, ResetTimerBackoff, StreamBackoff};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use rand::RngExt as _;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use super::akash::{HostFacts, LeasedFacts};
use super::freshness::Freshness;
use super::names;
use super::objects::{LeaseFacts, PodFacts, ServiceEndpoints, WorkloadFacts};
use super::store::{Change, Fact, Key, ObjectKind, PendingIndexWrite, Store};
use crate::model::metrics::Metrics;
use crate::model::metrics::labels::Watched;

/// Objects of one page of a list: what one kind costs in memory beside what is kept, while it is listed.
const PAGE_OBJECTS: u32 = 250;

/// First pause after a watch failed, about; doubled with each failure, up to [`PAUSE_MAX`].
const PAUSE_FIRST: Duration = Duration::from_millis(500);

/// Longest pause after a watch failed, about: what runs is not known meanwhile. There are only a few watches, and few gateways.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// So long after a failure it is over, if no other came. A list that was begun is no sign of that, nor an event.
const FAILURE_KEPT: Duration = Duration::from_secs(30);

/// What one watch needs.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    /// Where it tells what it sees.
    pub(super) store: Store,
    /// Where pods go whose index is to be written; if it is full, they come again.
    pub(super) unwritten: mpsc::Sender<PendingIndexWrite>,
    /// The kinds of which the first list was seen.
    pub(super) listed: watch::Sender<BTreeSet<ObjectKind>>,
    /// Where it is noted whether watches fail.
    pub(super) freshness: Freshness,
    /// Where failures and lists are counted.
    pub(super) metrics: Metrics,
}

/// Delays after failures in a row.
#[derive(Debug, Default)]
struct WatchBackoff {
    failures: u32,
}

// === impl Watch ===

impl Watch {
    /// Namespaces of leases.
    pub(super) async fn leases(self, client: Client) {
        let read = |namespace: &Namespace| {
            let facts = LeaseFacts::read(namespace);
            let key = key(ObjectKind::Lease, namespace.name_any(), namespace.name_any());
            (key, facts.map(Fact::Lease))
        };
        self.run(Api::all(client), ObjectKind::Lease, read).await;
    }

    /// Pods.
    pub(super) async fn pods(self, client: Client) {
        let read = |pod: &Pod| {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            (
                key(ObjectKind::Pod, namespace(pod), uid),
                PodFacts::read(pod).map(|facts| Fact::Pod(Box::new(facts))),
            )
        };
        self.run(Api::all(client), ObjectKind::Pod, read).await;
    }

    /// Deployments.
    pub(super) async fn deployments(self, client: Client) {
        let read = |object: &Deployment| {
            let fact = WorkloadFacts::of_deployment(object).map(Fact::Workload);
            (key(ObjectKind::Deployment, namespace(object), object.name_any()), fact)
        };
        self.run(Api::all(client), ObjectKind::Deployment, read).await;
    }

    /// Stateful sets.
    pub(super) async fn stateful_sets(self, client: Client) {
        let read = |object: &StatefulSet| {
            let fact = WorkloadFacts::of_stateful_set(object).map(Fact::Workload);
            (key(ObjectKind::StatefulSet, namespace(object), object.name_any()), fact)
        };
        self.run(Api::all(client), ObjectKind::StatefulSet, read).await;
    }

    /// Services.
    pub(super) async fn services(self, client: Client) {
        let read = |service: &Service| {
            let fact = ServiceEndpoints::read(service).map(Fact::Reach);
            (key(ObjectKind::Service, namespace(service), service.name_any()), fact)
        };
        self.run(Api::all(client), ObjectKind::Service, read).await;
    }

    /// Host names of the provider's, if it has that kind.
    pub(super) async fn hosts(self, client: Client, manifests: String) {
        let read = |object: &DynamicObject| {
            let facts = HostFacts::read(object);
            let namespace = facts.as_ref().map(|facts| facts.namespace.clone()).unwrap_or_default();
            (key(ObjectKind::Host, namespace, object.name_any()), facts.map(Fact::Host))
        };
        self.run(of_provider(client, &manifests, names::HOSTS), ObjectKind::Host, read).await;
    }

    /// Leased addresses of the provider's, if it has that kind.
    pub(super) async fn leased(self, client: Client, manifests: String) {
        let read = |object: &DynamicObject| {
            let facts = LeasedFacts::read(object);
            let namespace = facts.as_ref().map(|facts| facts.namespace.clone()).unwrap_or_default();
            (key(ObjectKind::Leased, namespace, object.name_any()), facts.map(Fact::Leased))
        };
        self.run(of_provider(client, &manifests, names::LEASED), ObjectKind::Leased, read).await;
    }

    /// Goes on until it is dropped.
    async fn run<K>(self, api: Api<K>, kind: ObjectKind, read: impl Fn(&K) -> (Key, Option<Fact>))
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let config = watcher::Config::default().labels(names::AKASH).page_size(PAGE_OBJECTS);
        let events = StreamBackoff::new(
            watcher(api, config),
            ResetTimerBackoff::new(WatchBackoff::default(), FAILURE_KEPT),
        );
        pin_mut!(events);
        let mut listed: Option<Vec<(Key, Fact)>> = None;
        let mut was_listed = false;
        let mut failures = 0_u32;
        while let Some(event) = events.next().await {
            let change = match event {
                Ok(event) => {
                    if std::mem::take(&mut failures) > 0 {
                        tracing::info!(?kind, "the watch goes on");
                    }
                    // A list that has begun may yet fail.
                    if !matches!(event, Event::Init | Event::InitApply(_)) {
                        self.freshness.works(kind);
                    }
                    change(event, kind, &mut listed, &read)
                }
                Err(error) => {
                    self.metrics.watch_failures.of(watched(kind)).increment(1);
                    self.freshness.failed(kind);
                    failures = failures.saturating_add(1);
                    // The first of a series, and then fewer and fewer.
                    if failures.is_power_of_two() {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(?kind, failures, error, "a watch failed, and will be tried again");
                    }
                    None
                }
            };
            let is_list = matches!(change, Some(Change::Replace(..)));
            if is_list {
                self.metrics.watch_lists.of(watched(kind)).increment(1);
            }
            if let Some(change) = change {
                for pod in self.store.apply(change) {
                    // If there is no room it comes again with the next change.
                    let _ = self.unwritten.try_send(pod);
                }
            }
            if is_list && !std::mem::replace(&mut was_listed, true) {
                self.listed.send_modify(|kinds| _ = kinds.insert(kind));
            }
        }
    }
}

// === impl WatchBackoff ===

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = PAUSE_FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        Some(pause.mul_f64(rand::rng().random_range(0.5..1.5)))
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// What an event says. What a list has told so far is kept in `listed`.
fn change<K>(
    event: Event<K>,
    kind: ObjectKind,
    listed: &mut Option<Vec<(Key, Fact)>>,
    read: &impl Fn(&K) -> (Key, Option<Fact>),
) -> Option<Change> {
    match event {
        Event::Init => *listed = Some(Vec::new()),
        Event::InitApply(object) => {
            if let (key, Some(fact)) = read(&object) {
                listed.get_or_insert_default().push((key, fact));
            }
        }
        Event::InitDone => return Some(Change::Replace(kind, listed.take().unwrap_or_default())),
        Event::Apply(object) => {
            return Some(match read(&object) {
                (key, Some(fact)) => Change::Set(key, fact),
                (key, None) => Change::Unset(key),
            });
        }
        Event::Delete(object) => return Some(Change::Unset(read(&object).0)),
    }
    None
}

/// All of one of the provider's own kinds: its name, and its plural.
fn of_provider(client: Client, manifests: &str, (kind, plural): (&str, &str)) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk(names::AKASH_GROUP, names::AKASH_VERSION, kind);
    Api::namespaced_with(client, manifests, &ApiResource::from_gvk_with_plural(&kind, plural))
}

/// The kind with this plural, if it is watched.
pub(super) fn kind_of(plural: &str) -> Option<ObjectKind> {
    Some(match plural {
        "namespaces" => ObjectKind::Lease,
        "pods" => ObjectKind::Pod,
        "deployments" => ObjectKind::Deployment,
        "statefulsets" => ObjectKind::StatefulSet,
        "services" => ObjectKind::Service,
        plural if plural == names::HOSTS.1 => ObjectKind::Host,
        plural if plural == names::LEASED.1 => ObjectKind::Leased,
        _ => return None,
    })
}

/// How a kind is called in metrics.
pub(super) fn watched(kind: ObjectKind) -> Watched {
    match kind {
        ObjectKind::Lease => Watched::Namespaces,
        ObjectKind::Pod => Watched::Pods,
        ObjectKind::Deployment => Watched::Deployments,
        ObjectKind::StatefulSet => Watched::StatefulSets,
        ObjectKind::Service => Watched::Services,
        ObjectKind::Host => Watched::Hosts,
        ObjectKind::Leased => Watched::LeasedIps,
    }
}

fn key(kind: ObjectKind, namespace: String, name: String) -> Key {
    Key { namespace, kind, name }
}

fn namespace<K: ResourceExt>(object: &K) -> String {
    object.namespace().unwrap_or_default()
}
