//! Watches the cluster: one watch per kind over all namespaces, never one per lease or follower. All changes
//! go to the store.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::api::ApiResource;
use kube::core::{DynamicObject, GroupVersionKind};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use super::freshness::Freshness;
use super::names;
use super::namespace::{Fact, PendingIndexWrite};
use super::objects::{HostFacts, LeaseFacts, LeasedFacts, PodFacts, ServiceEndpoints, WorkloadFacts};
use super::store::{Change, Key, Store};
use super::watch_backoff::WatchBackoff;
use crate::model::label::LabelValue as _;
use crate::model::metrics::Metrics;
use crate::model::metrics::labels::Watched;

/// Objects in one page of a list: bounds the memory that listing a kind needs beside the stored facts.
const PAGE_OBJECTS: u32 = 250;

/// Longest delay after a watch failed. Short, because views are out of date meanwhile; and there are few
/// watches and gateways.
const DELAY_MAX: Duration = Duration::from_secs(5);

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

    /// Returns the watches of the provider's own kinds, which the cluster may not have.
    pub(super) fn provider_kinds(
        &self,
        client: &Client,
        manifests: &str,
    ) -> [(Watched, BoxFuture<'static, ()>); 2] {
        let watch = |kind, (name, plural): (&str, &str), read: fn(&DynamicObject) -> Option<Fact>| {
            let gvk = GroupVersionKind::gvk(names::AKASH_GROUP, names::AKASH_VERSION, name);
            let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
            let api = Api::namespaced_with(client.clone(), manifests, &resource);
            (kind, self.clone().run(api, kind, read).boxed())
        };
        [
            watch(Watched::Hosts, names::HOSTS, |object| HostFacts::read(object).map(Fact::Host)),
            watch(Watched::LeasedIps, names::LEASED, |object| LeasedFacts::read(object).map(Fact::Leased)),
        ]
    }

    fn of<K>(&self, client: &Client, kind: Watched, read: fn(&K) -> Option<Fact>) -> BoxFuture<'static, ()>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        self.clone().run(Api::all(client.clone()), kind, read).boxed()
    }

    async fn run<K>(self, api: Api<K>, kind: Watched, read: fn(&K) -> Option<Fact>)
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let read = |object: &K| {
            let fact = read(object);
            (key(kind, object, fact.as_ref()), fact)
        };
        let config = watcher::Config::default().labels(names::AKASH).page_size(PAGE_OBJECTS);
        let mut backoff = WatchBackoff::new(DELAY_MAX);
        let mut events = pin!(watcher(api, config));
        let mut listed = Vec::new();
        while let Some(event) = events.next().await {
            let change = match event {
                Ok(event) => {
                    // A list that begins has requested nothing yet, and may still fail.
                    if !matches!(event, Event::Init | Event::InitApply(_)) {
                        if backoff.reset() {
                            tracing::info!(kind = kind.label(), "watch works again");
                        }
                        self.freshness.note_working(kind);
                    }
                    change(event, kind, &mut listed, read)
                }
                Err(error) => {
                    self.metrics.watch_failures.of(kind).increment(1);
                    self.freshness.failed(kind);
                    let (failures, delay) = backoff.next();
                    // Logs the first failure of a series, and then ever fewer.
                    if failures.is_power_of_two() {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(kind = kind.label(), failures, error, "watch failed, retrying");
                    }
                    tokio::time::sleep(delay).await;
                    None
                }
            };
            let Some(change) = change else { continue };
            let is_list = matches!(change, Change::Replace(..));
            for pod in self.store.apply(change) {
                let _ = self.unwritten.try_send(pod);
            }
            if is_list {
                self.metrics.watch_lists.of(kind).increment(1);
                self.listed.send_if_modified(|kinds| kinds.insert(kind));
            }
        }
    }
}

/// Returns the key of an object that `fact` was read from.
fn key(kind: Watched, object: &impl ResourceExt, fact: Option<&Fact>) -> Key {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let (namespace, name) = match (kind, fact) {
        (Watched::Namespaces, _) => (name.clone(), name),
        (Watched::Pods, _) => (namespace, object.uid().unwrap_or_default()),
        (_, Some(Fact::Host(HostFacts { namespace, .. }) | Fact::Leased(LeasedFacts { namespace, .. }))) => {
            (namespace.clone(), name)
        }
        _ => (namespace, name),
    };
    Key { namespace, kind, name }
}

/// Converts an event. Collects the objects of a list in `listed`.
fn change<K>(
    event: Event<K>,
    kind: Watched,
    listed: &mut Vec<(Key, Fact)>,
    read: impl Fn(&K) -> (Key, Option<Fact>),
) -> Option<Change> {
    match event {
        Event::Init => listed.clear(),
        Event::InitApply(object) => {
            if let (key, Some(fact)) = read(&object) {
                listed.push((key, fact));
            }
        }
        Event::InitDone => return Some(Change::Replace(kind, std::mem::take(listed))),
        Event::Apply(object) => {
            let (key, fact) = read(&object);
            return Some(Change::Object(key, fact));
        }
        Event::Delete(object) => {
            let (key, last) = read(&object);
            return Some(Change::Deleted(key, last));
        }
    }
    None
}
