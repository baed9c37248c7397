//! Events of namespaces: lists and watches of `events.k8s.io`, and their permission.

use std::collections::BTreeMap;

use http_body_util::BodyExt;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Body, Cluster, refuse};

/// Requests for events.
#[derive(Debug, Default)]
pub(super) struct EventRequests {
    denied: bool,
    pub(super) lists: usize,
    /// Watches that are open now, and the most at once.
    watches: (usize, usize),
    refused: usize,
}

/// Counts an open watch, until it is dropped.
struct OpenWatch(Cluster);

impl Cluster {
    /// Creates or changes an event with this name about an object, such as `Pod/web-0`. `more`: further
    /// fields.
    pub(crate) fn event(&self, namespace: &str, name: &str, object: &str, reason: &str, more: &Value) {
        let (kind, object) = object.split_once('/').unwrap();
        let mut event = json!({
            "metadata": { "namespace": namespace, "name": name, "uid": format!("uid-of-{name}") },
            "regarding": { "kind": kind, "namespace": namespace, "name": object, "uid": format!("uid-{object}") },
            "type": "Normal", "reason": reason, "note": format!("{reason} of {object}"), "eventTime": null,
            "reportingController": "kubelet", "reportingInstance": "node1",
            "deprecatedLastTimestamp": "2026-11-25T00:00:00Z", "deprecatedCount": 1,
        });
        event.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        self.put(&kind_of(namespace), event);
    }

    /// Sets whether requests for events are denied. Open watches continue.
    pub(crate) fn deny_events(&self, denied: bool) {
        self.change(|state| state.events.denied = denied);
    }

    /// Numbers of lists of events, of watches now, and of the most watches at once.
    pub(crate) fn event_requests(&self) -> (usize, usize, usize) {
        let events = &self.lock().events;
        (events.lists, events.watches.0, events.watches.1)
    }

    /// Number of refused requests for events.
    pub(crate) fn events_refused(&self) -> usize {
        self.lock().events.refused
    }

    pub(super) async fn events(&self, namespace: &str, query: &BTreeMap<String, String>) -> Response<Body> {
        let kind = kind_of(namespace);
        {
            let mut state = self.lock();
            if state.events.denied {
                state.events.refused += 1;
                return refuse(StatusCode::FORBIDDEN, "events.events.k8s.io is forbidden");
            }
        }
        if query.get("watch").is_none_or(|watch| watch != "true") {
            self.lock().events.lists += 1;
            return self.list_when_answered(&kind).await;
        }
        let open = OpenWatch::begin(self);
        let keep = move |frame| {
            let _open = &open;
            frame
        };
        self.watch(&kind, query).map(|body| BodyExt::boxed(body.map_frame(keep)))
    }
}

impl OpenWatch {
    fn begin(cluster: &Cluster) -> Self {
        let watches = &mut cluster.lock().events.watches;
        *watches = (watches.0 + 1, watches.1.max(watches.0 + 1));
        Self(cluster.clone())
    }
}

impl Drop for OpenWatch {
    fn drop(&mut self) {
        if let Ok(mut state) = self.0.state.lock() {
            state.events.watches.0 -= 1;
        }
    }
}

/// The key of the events of a namespace among all objects.
fn kind_of(namespace: &str) -> String {
    format!("events of {namespace}")
}
