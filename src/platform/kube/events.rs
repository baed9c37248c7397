//! Events of leases: one watch per lease whose events are followed, of the namespace of that lease only.
//!
//! A watch of all namespaces would transfer the events of every pod of the cluster, of which few are ever
//! followed. Without permission, no lease has events; that is tried again rarely.

mod service;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::core::Status;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use self::service::service_of;
use super::api::error_chain;
use super::store::Store;
use super::watch_backoff::WatchBackoff;
use super::{jittered, objects};
use crate::model::event::{EVENTS_MAX, LeaseEvent, Object, Severity};
use crate::model::id::{Replica, ServiceName};
use crate::model::metrics::{EventWatchFailure, Metrics};
use crate::model::time::LogTime;
use crate::platform::NativeEvents;

/// Most watched leases. Each watch is a connection to the API server. More leases get synthetic events.
const WATCHES_MAX: usize = 256;

/// Time after a denied permission until the next attempt: an API server that has just started denies
/// everything for a moment. It doubles with each denial, up to [`DENIED_MAX`].
const DENIED_FIRST: Duration = Duration::from_secs(5);

/// Longest time until the next attempt: a person grants the permission, and followers have events meanwhile.
const DENIED_MAX: Duration = Duration::from_secs(600);

/// Longest delay after a watch failed. Longer than that of the cluster's own watches, because there are more.
const DELAY_MAX: Duration = Duration::from_secs(30);

/// Objects in one page of a list: bounds the memory that a list needs.
const PAGE_OBJECTS: u32 = 250;

/// The kinds of objects whose events are sent: those that a tenant's manifest leads to. Others in the
/// namespace, such as network policies, belong to the provider.
const KINDS: [&str; 8] = [
    "Pod",
    "ReplicaSet",
    "Deployment",
    "StatefulSet",
    "Service",
    "Ingress",
    "HTTPRoute",
    "PersistentVolumeClaim",
];

/// Watches the events of leases. Cheap to clone.
#[derive(Clone)]
pub(super) struct EventWatches(Arc<Shared>);

struct Shared {
    client: Client,
    store: Store,
    metrics: Metrics,
    permits: Arc<Semaphore>,
    permission: Mutex<Permission>,
}

/// Whether events may be watched, as far as known.
#[derive(Debug, Default)]
struct Permission {
    /// It was denied, and no attempt is made until then.
    denied_until: Option<Instant>,
    /// How often it was denied in a row.
    denials: u32,
}

/// The watch of one namespace.
struct EventWatch {
    shared: Arc<Shared>,
    namespace: String,
    stage: Stage,
    /// [`NativeEvents::Unavailable`] was reported, and no list since.
    is_unavailable: bool,
    /// The highest resource version of all events so far; a new list has known events too.
    newest: u64,
    /// The events of a list that is being read.
    listed: Vec<Versioned>,
    backoff: WatchBackoff,
}

enum Stage {
    /// Waits for permission and for a permit. Becomes `Watching`.
    Waiting,
    /// Becomes `Waiting` if permission is denied.
    Watching {
        events: BoxStream<'static, watcher::Result<watcher::Event<Event>>>,
        _permit: OwnedSemaphorePermit,
    },
}

/// An event and its resource version; `None` if that is not a number.
struct Versioned {
    version: Option<u64>,
    event: LeaseEvent,
}

// === impl EventWatches ===

impl EventWatches {
    pub(super) fn new(client: Client, store: Store, metrics: Metrics) -> Self {
        let permits = Arc::new(Semaphore::new(WATCHES_MAX));
        Self(Arc::new(Shared { client, store, metrics, permits, permission: Mutex::default() }))
    }

    /// Watches the events of a namespace until the stream is dropped. Endless.
    pub(super) fn watch(&self, namespace: String) -> BoxStream<'static, NativeEvents> {
        let watch = EventWatch {
            shared: Arc::clone(&self.0),
            namespace,
            stage: Stage::Waiting,
            is_unavailable: false,
            newest: 0,
            listed: Vec::new(),
            backoff: WatchBackoff::new(DELAY_MAX),
        };
        let news = futures_util::stream::unfold(watch, |mut watch| async {
            let news = watch.next().await;
            Some((news, watch))
        });
        news.boxed()
    }
}

// === impl Shared ===

impl Shared {
    fn denied_until(&self) -> Option<Instant> {
        self.permission.lock().denied_until.filter(|until| *until > Instant::now())
    }

    fn set_denied(&self) {
        let mut permission = self.permission.lock();
        let now = Instant::now();
        if permission.denied_until.is_some_and(|until| until > now) {
            // The same denial, of a request that began before.
            return;
        }
        let delay = DENIED_FIRST.saturating_mul(1 << permission.denials.min(10)).min(DENIED_MAX);
        permission.denied_until = Some(now + delay);
        permission.denials = permission.denials.saturating_add(1);
        if permission.denials == 1 {
            tracing::warn!(
                "no permission to list and watch events (events.k8s.io), deriving events from replica states"
            );
        }
    }

    /// Notes that a watch sent an event. A list does not suffice, because only lists may be permitted.
    fn set_permitted(&self) {
        let denials = std::mem::take(&mut *self.permission.lock()).denials;
        if denials > 0 {
            tracing::info!("permission to list and watch events is granted now");
        }
    }
}

// === impl EventWatch ===

impl EventWatch {
    /// Waits for news. Not cancel safe: keep the future.
    async fn next(&mut self) -> NativeEvents {
        loop {
            let Stage::Watching { events, .. } = &mut self.stage else {
                if let Some(failure) = self.begin().await {
                    self.shared.metrics.event_watch_failures.of(failure).increment(1);
                    self.is_unavailable = true;
                    return NativeEvents::Unavailable;
                }
                continue;
            };
            match events.next().await {
                Some(Ok(event)) => {
                    // A list that begins has requested nothing yet, and may still fail.
                    if !matches!(event, watcher::Event::Init | watcher::Event::InitApply(_)) {
                        self.backoff.reset();
                    }
                    if let Some(news) = self.take(event) {
                        return news;
                    }
                }
                Some(Err(error)) if is_denied(&error) => {
                    self.shared.set_denied();
                    self.stage = Stage::Waiting;
                }
                Some(Err(error)) => {
                    self.shared.metrics.event_watch_failures.of(EventWatchFailure::Error).increment(1);
                    let (failures, delay) = self.backoff.next();
                    // The cluster's own watches report an API server that fails.
                    tracing::debug!(
                        failures,
                        error = error_chain(&error),
                        "watch of events failed, retrying"
                    );
                    tokio::time::sleep(delay).await;
                }
                None => self.stage = Stage::Waiting,
            }
        }
    }

    /// Starts the watch; waits for permission and for a permit if their lack was reported before. Returns the
    /// reason to report otherwise.
    async fn begin(&mut self) -> Option<EventWatchFailure> {
        while let Some(until) = self.shared.denied_until() {
            if !self.is_unavailable {
                return Some(EventWatchFailure::Denied);
            }
            // Jittered: the first one to try learns it for all.
            tokio::time::sleep_until(until + jittered(DENIED_FIRST)).await;
        }
        let permits = Arc::clone(&self.shared.permits);
        let permit = match Arc::clone(&permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) if !self.is_unavailable => return Some(EventWatchFailure::Limit),
            Err(_) => match permits.acquire_owned().await {
                Ok(permit) => permit,
                // The semaphore is never closed.
                Err(_) => std::future::pending().await,
            },
        };
        let api: Api<Event> = Api::namespaced(self.shared.client.clone(), &self.namespace);
        let events = watcher(api, watcher::Config::default().page_size(PAGE_OBJECTS)).boxed();
        self.stage = Stage::Watching { events, _permit: permit };
        None
    }

    /// Takes an event of the watch. Deletions, an hour after an event, are of no interest.
    fn take(&mut self, event: watcher::Event<Event>) -> Option<NativeEvents> {
        match event {
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(event) => {
                self.listed.extend(self.read(&event));
                if self.listed.len() >= 2 * EVENTS_MAX {
                    self.keep_newest();
                }
            }
            watcher::Event::InitDone => {
                self.is_unavailable = false;
                self.keep_newest();
                let known = self.newest;
                let listed = std::mem::take(&mut self.listed);
                // Lower than before if the API server's data was restored from a backup.
                self.newest = listed.iter().filter_map(|event| event.version).max().unwrap_or(known);
                let is_new = |event: &Versioned| event.version.is_none_or(|version| version > known);
                let events = listed.into_iter().filter(is_new).map(|event| event.event);
                return Some(NativeEvents::Listed(events.collect()));
            }
            watcher::Event::Apply(event) => {
                self.shared.set_permitted();
                let Versioned { version, event } = self.read(&event)?;
                self.newest = self.newest.max(version.unwrap_or_default());
                return Some(NativeEvents::Changed(Box::new(event)));
            }
            watcher::Event::Delete(_) => {}
        }
        None
    }

    fn keep_newest(&mut self) {
        // Most times are whole seconds.
        self.listed.sort_by_key(|event| (event.event.time(), event.version));
        self.listed.drain(..self.listed.len().saturating_sub(EVENTS_MAX));
    }

    fn read(&self, event: &Event) -> Option<Versioned> {
        let store = &self.shared.store;
        let replica = |uid: &str| store.replica_of(&self.namespace, uid);
        let event_read = read(event, &self.namespace, replica, || store.services(&self.namespace))?;
        let version = event.metadata.resource_version.as_ref().and_then(|version| version.parse().ok());
        Some(Versioned { version, event: event_read })
    }
}

/// Converts an event of `namespace`. Returns `None` for an object that is not the tenant's. `replica` returns
/// the replica of the pod with a uid, and `services` the services of the lease.
fn read(
    event: &Event,
    namespace: &str,
    replica: impl Fn(&str) -> Option<Replica>,
    services: impl Fn() -> BTreeSet<ServiceName>,
) -> Option<LeaseEvent> {
    let ObjectReference { kind, name, namespace: of, uid, .. } = event.regarding.clone().unwrap_or_default();
    let (kind, name) = (kind.unwrap_or_default(), name.unwrap_or_default());
    if of.as_deref() != Some(namespace) || !KINDS.contains(&kind.as_str()) {
        return None;
    }
    let replica = uid.filter(|_| kind == "Pod").and_then(|uid| replica(&uid));
    let (service, index) = match replica {
        Some(Replica { service, index }) => (Some(service), Some(index)),
        None => (service_of(&kind, &name, services().iter()), None),
    };
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let severity =
        if event.type_.as_deref() == Some("Warning") { Severity::Warning } else { Severity::Normal };
    let object = Object { kind, namespace: namespace.to_owned(), name };
    let series = event.series.as_ref();
    let count = series.map(|series| series.count).or(event.deprecated_count);
    let last = series.map(|series| time(series.last_observed_time.0));
    let read = LeaseEvent::new(severity, &text(&event.reason), &text(&event.note), object)
        .reported_by(&text(&event.reporting_controller), &text(&event.reporting_instance));
    Some(LeaseEvent {
        service,
        replica: index,
        count: count.and_then(|count| u32::try_from(count).ok()),
        first_timestamp: event.deprecated_first_timestamp.as_ref().map(objects::time),
        last_timestamp: last.or(event.deprecated_last_timestamp.as_ref().map(objects::time)),
        event_time: event.event_time.as_ref().map(|at| time(at.0)),
        uid: text(&event.metadata.uid),
        ..read
    })
}

fn time(stamp: Timestamp) -> LogTime {
    i64::try_from(stamp.as_nanosecond()).map_or(LogTime::MIN, LogTime::from_nanos)
}

/// Whether the gateway may not list or watch events.
fn is_denied(error: &watcher::Error) -> bool {
    let is_forbidden = |status: &Status| status.code == 403;
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status)
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => is_forbidden(status),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use futures_util::future::select_all;
    use http::{Request, Response};
    use http_body_util::{BodyExt as _, Full, StreamBody};
    use kube::client::Body;
    use metrics::NoopRecorder;
    use serde_json::{Value, json};
    use tokio::time::timeout;
    use tower::service_fn;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    /// An API server that has one event and counts lists.
    #[derive(Default)]
    struct ApiServer {
        denies: AtomicBool,
        lists: AtomicUsize,
    }

    impl ApiServer {
        fn denying(denies: bool) -> Arc<Self> {
            Arc::new(Self { denies: denies.into(), ..Self::default() })
        }

        fn answer(&self, request: &Request<Body>) -> (u16, Option<Value>) {
            if request.uri().query().unwrap_or_default().contains("watch=true") {
                return (200, None);
            }
            self.lists.fetch_add(1, Ordering::Relaxed);
            if self.denies.load(Ordering::Relaxed) {
                let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
                    "reason": "Forbidden", "message": "events is forbidden", "metadata": {} });
                return (403, Some(status));
            }
            let event = json!({ "metadata": { "uid": "u", "resourceVersion": "7" }, "regarding": pod("u") });
            let list = json!({ "kind": "EventList", "apiVersion": "events.k8s.io/v1", "items": [event],
                "metadata": { "resourceVersion": "9" } });
            (200, Some(list))
        }

        fn lists(&self) -> usize {
            self.lists.load(Ordering::Relaxed)
        }

        fn watches(self: &Arc<Self>, max: usize) -> EventWatches {
            let server = Arc::clone(self);
            let service = service_fn(move |request| {
                let (code, body) = server.answer(&request);
                let body = match body {
                    Some(body) => Full::from(body.to_string()).boxed_unsync(),
                    // An open watch is silent.
                    None => StreamBody::new(futures_util::stream::pending()).boxed_unsync(),
                };
                std::future::ready(Response::builder().status(code).body(body))
            });
            let client = Client::new(service, "default");
            let metrics = Metrics::register(&NoopRecorder);
            let permits = Arc::new(Semaphore::new(max));
            let store = Store::new(String::new());
            EventWatches(Arc::new(Shared { client, store, metrics, permits, permission: Mutex::default() }))
        }
    }

    fn listed(news: Option<NativeEvents>) -> usize {
        let Some(NativeEvents::Listed(events)) = news else { panic!("{news:?}") };
        events.len()
    }

    #[tokio::test(start_paused = true)]
    async fn denied_permission_is_tried_rarely_for_all() {
        let server = ApiServer::denying(true);
        let watches = server.watches(WATCHES_MAX);
        let mut all: Vec<_> = (0..20).map(|_| watches.watch("ns".to_owned())).collect();
        for watch in &mut all {
            assert_eq!(watch.next().await, Some(NativeEvents::Unavailable));
        }
        assert_eq!(server.lists(), 1);
        let news = timeout(3 * HOUR, select_all(all.iter_mut().map(|watch| watch.next()))).await;
        assert!(news.is_err(), "nothing is reported twice");
        // 5 s, 10 s and so on, then every ten minutes; the answers are immediate.
        assert!((20..60).contains(&server.lists()), "{}", server.lists());
        server.denies.store(false, Ordering::Relaxed);
        for watch in &mut all {
            assert_eq!(listed(timeout(DENIED_MAX + 2 * DENIED_FIRST, watch.next()).await.unwrap()), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn watches_are_limited_and_wait_for_each_other() {
        let server = ApiServer::denying(false);
        let watches = server.watches(1);
        let (mut first, mut second) = (watches.watch("ns".to_owned()), watches.watch("ns".to_owned()));
        assert_eq!(listed(first.next().await), 1);
        assert_eq!(second.next().await, Some(NativeEvents::Unavailable));
        assert!(timeout(HOUR, second.next()).await.is_err());
        assert_eq!(server.lists(), 1);
        drop(first);
        assert_eq!(listed(second.next().await), 1);
    }

    fn event(regarding: Value, more: &Value) -> Option<LeaseEvent> {
        let mut event = json!({ "metadata": { "uid": "u", "resourceVersion": "7" }, "regarding": regarding,
            "reason": "BackOff", "note": "Back-off", "type": "Warning" });
        event.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        let event: Event = serde_json::from_value(event).unwrap();
        let replica =
            |uid: &str| (uid == "known").then(|| Replica { service: "web".parse().unwrap(), index: 3 });
        read(&event, "ns", replica, || ["web".parse().unwrap()].into())
    }

    fn pod(uid: &str) -> Value {
        json!({ "kind": "Pod", "namespace": "ns", "name": "web-5cfc6c7b4b-4cl7z", "uid": uid })
    }

    #[test]
    fn event_has_replica_or_service_of_its_object() {
        let of = |regarding| {
            let event = event(regarding, &json!({})).unwrap();
            (event.service.map(|service| service.to_string()), event.replica)
        };
        assert_eq!(of(pod("known")), (Some("web".to_owned()), Some(3)));
        // The pod is gone.
        assert_eq!(of(pod("other")), (Some("web".to_owned()), None));
        let claim =
            json!({ "kind": "PersistentVolumeClaim", "namespace": "ns", "name": "data", "uid": "known" });
        assert_eq!(of(claim), (None, None));
    }

    #[test]
    fn object_outside_the_lease_has_no_events() {
        assert_eq!(event(json!({ "kind": "Pod", "namespace": "other", "name": "web-0" }), &json!({})), None);
        assert_eq!(event(json!({ "kind": "Node", "name": "node1" }), &json!({})), None);
        let policy = json!({ "kind": "NetworkPolicy", "namespace": "ns", "name": "akash-deny" });
        assert_eq!(event(policy, &json!({})), None);
        assert_eq!(event(json!(null), &json!({})), None);
    }

    #[test]
    fn both_kinds_of_reporters_are_read() {
        let old = json!({ "deprecatedCount": 3, "deprecatedFirstTimestamp": "2026-11-25T00:00:00Z",
            "deprecatedLastTimestamp": "2026-11-25T00:01:00Z", "eventTime": null,
            "reportingController": "kubelet", "reportingInstance": "node1" });
        let old = event(pod("known"), &old).unwrap();
        assert_eq!(
            (old.count, old.event_time, old.reporting_controller.as_str()),
            (Some(3), None, "kubelet")
        );
        assert_eq!(old.time().unwrap().to_string(), "2026-11-25T00:01:00.000000000Z");
        assert!(old.first_timestamp < old.last_timestamp);
        let new = json!({ "eventTime": "2026-11-25T00:00:00.000001Z", "action": "Binding",
            "series": { "count": 9, "lastObservedTime": "2026-11-25T00:02:00.000000Z" } });
        let new = event(pod("known"), &new).unwrap();
        assert_eq!((new.count, new.severity), (Some(9), Severity::Warning));
        assert_eq!(new.time().unwrap().to_string(), "2026-11-25T00:02:00.000000000Z");
        assert_eq!(new.event_time.unwrap().to_string(), "2026-11-25T00:00:00.000001000Z");
        let bare = event(pod("known"), &json!({ "type": null, "note": null, "reason": null })).unwrap();
        assert_eq!((bare.severity, bare.note.as_str(), bare.time()), (Severity::Normal, "", None));
    }
}
