//! Watches the cluster: one watch per kind over all namespaces, never one per lease or follower. All changes
//! go to the store.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures_core::future::BoxFuture;
use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::api::ApiResource;
use kube::core::{DynamicObject, GroupVersionKind};
use kube::runtime::utils::{Backoff, ResetTimerBackoff, StreamBackoff};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use super::freshness::Freshness;
use super::namespace::{Fact, PendingIndexWrite};
use super::objects::{HostFacts, LeaseFacts, LeasedFacts, PodFacts, ServiceEndpoints, WorkloadFacts};
use super::store::{Change, Key, Store};
use super::{jittered, names};
use crate::model::metrics::Metrics;
use crate::model::metrics::labels::Watched;

/// Objects in one page of a list: bounds the memory that listing a kind needs beside the stored facts.
const PAGE_OBJECTS: u32 = 250;

/// First delay after a watch failed. It doubles with each failure, up to [`DELAY_MAX`], and is jittered.
const DELAY_FIRST: Duration = Duration::from_millis(500);

/// Longest delay after a watch failed. Short, because views are out of date meanwhile; and there are few
/// watches and gateways.
const DELAY_MAX: Duration = Duration::from_secs(5);

/// Time without a failure after which the back-off starts anew. A list that begins is no sign of recovery,
/// nor is an event.
const FAILURE_KEPT: Duration = Duration::from_secs(30);

/// The context of a watch.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    pub(super) store: Store,
    /// Takes pods whose index is to be written. Pods that find no room come again with their next change.
    pub(super) unwritten: mpsc::Sender<PendingIndexWrite>,
    /// The kinds that were listed once.
    pub(super) listed: watch::Sender<BTreeSet<Watched>>,
    pub(super) freshness: Freshness,
    pub(super) metrics: Metrics,
}

/// Delays after failures in a row.
#[derive(Debug)]
struct WatchBackoff(ExponentialBackoff);

// === impl Watch ===

impl Watch {
    /// Returns the watches of [`BUILT_IN`](super::namespace::BUILT_IN). They run until they are dropped.
    pub(super) fn built_in(&self, client: &Client) -> [BoxFuture<'static, ()>; 5] {
        [
            self.of(client, Watched::Namespaces, |lease: &Namespace| {
                LeaseFacts::read(lease).map(Fact::Lease)
            }),
            self.of(client, Watched::Pods, |pod: &Pod| PodFacts::read(pod).map(Box::new).map(Fact::Pod)),
            self.of(client, Watched::Deployments, |deployment: &Deployment| {
                WorkloadFacts::of_deployment(deployment).map(Fact::Workload)
            }),
            self.of(client, Watched::StatefulSets, |set: &StatefulSet| {
                WorkloadFacts::of_stateful_set(set).map(Fact::Workload)
            }),
            self.of(client, Watched::Services, |service: &Service| {
                ServiceEndpoints::read(service).map(Fact::Endpoints)
            }),
        ]
    }

    /// Watches the provider's host names. The cluster must have that kind.
    pub(super) fn hosts(&self, client: &Client, manifests: &str) -> BoxFuture<'static, ()> {
        let read = |object: &DynamicObject| {
            HostFacts::read(object).map(|facts| (facts.namespace.clone(), Fact::Host(facts)))
        };
        self.of_provider(client, manifests, Watched::Hosts, names::HOSTS, read)
    }

    /// Watches the provider's leased addresses. The cluster must have that kind.
    pub(super) fn leased(&self, client: &Client, manifests: &str) -> BoxFuture<'static, ()> {
        let read = |object: &DynamicObject| {
            LeasedFacts::read(object).map(|facts| (facts.namespace.clone(), Fact::Leased(facts)))
        };
        self.of_provider(client, manifests, Watched::LeasedIps, names::LEASED, read)
    }

    fn of<K>(&self, client: &Client, kind: Watched, read: fn(&K) -> Option<Fact>) -> BoxFuture<'static, ()>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let read = move |object: &K| {
            let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
            let (namespace, name) = match kind {
                Watched::Namespaces => (name.clone(), name),
                Watched::Pods => (namespace, object.uid().unwrap_or_default()),
                _ => (namespace, name),
            };
            (Key { namespace, kind, name }, read(object))
        };
        Box::pin(self.clone().run(Api::all(client.clone()), kind, read))
    }

    /// Watches one of the provider's own kinds, given by its name and its plural.
    fn of_provider(
        &self,
        client: &Client,
        manifests: &str,
        kind: Watched,
        (name, plural): (&str, &str),
        read: fn(&DynamicObject) -> Option<(String, Fact)>,
    ) -> BoxFuture<'static, ()> {
        let gvk = GroupVersionKind::gvk(names::AKASH_GROUP, names::AKASH_VERSION, name);
        let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
        let read = move |object: &DynamicObject| {
            let (namespace, fact) = read(object).unzip();
            (Key { namespace: namespace.unwrap_or_default(), kind, name: object.name_any() }, fact)
        };
        Box::pin(self.clone().run(Api::namespaced_with(client.clone(), manifests, &resource), kind, read))
    }

    async fn run<K>(self, api: Api<K>, kind: Watched, read: impl Fn(&K) -> (Key, Option<Fact>))
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let config = watcher::Config::default().labels(names::AKASH).page_size(PAGE_OBJECTS);
        let backoff = ResetTimerBackoff::new(WatchBackoff::new(), FAILURE_KEPT);
        let events = StreamBackoff::new(watcher(api, config), backoff);
        pin_mut!(events);
        let mut listed: Option<Vec<(Key, Fact)>> = None;
        let mut was_listed = false;
        let mut failures = 0_u32;
        while let Some(event) = events.next().await {
            let change = match event {
                Ok(event) => {
                    if std::mem::take(&mut failures) > 0 {
                        tracing::info!(?kind, "watch works again");
                    }
                    // A list that has begun may still fail.
                    if !matches!(event, Event::Init | Event::InitApply(_)) {
                        self.freshness.works(kind);
                    }
                    change(event, kind, &mut listed, &read)
                }
                Err(error) => {
                    self.metrics.watch_failures.of(kind).increment(1);
                    self.freshness.failed(kind);
                    failures = failures.saturating_add(1);
                    // Logs the first failure of a series, and then ever fewer.
                    if failures.is_power_of_two() {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(?kind, failures, error, "watch failed, retrying");
                    }
                    None
                }
            };
            let is_list = matches!(change, Some(Change::Replace(..)));
            if is_list {
                self.metrics.watch_lists.of(kind).increment(1);
            }
            if let Some(change) = change {
                for pod in self.store.apply(change) {
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

impl WatchBackoff {
    fn new() -> Self {
        let builder = ExponentialBuilder::new().with_min_delay(DELAY_FIRST).with_max_delay(DELAY_MAX);
        Self(builder.without_max_times().build())
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(jittered)
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        *self = Self::new();
    }
}

/// Converts an event. Collects the objects of a list in `listed`.
fn change<K>(
    event: Event<K>,
    kind: Watched,
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
