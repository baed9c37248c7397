//! Events of a lease in the form of the Akash provider's `kubeevents` stream. Pure so far.
//!
//! [`synthetic`] derives events from changes of the lease view, for platforms without events and for changes
//! that Kubernetes does not report. [`service`] finds the service that a Kubernetes event belongs to.

#[allow(dead_code, reason = "for events of Kubernetes, which are not watched yet")]
pub(crate) mod service;
pub(crate) mod synthetic;

use serde::Serialize;

use crate::model::id::ServiceName;
use crate::model::text::truncate;
use crate::model::time::LogTime;
use crate::model::view::Filter;

/// Maximum size of a note in bytes. With 256 events per lease, its events take at most about half a MiB.
const NOTE_MAX_BYTES: usize = 1_024;

/// The reporter of events that this gateway derives from the lease view.
pub(crate) const REPORTER: &str = "leasemux";

/// One event. Serializes as clients read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LeaseEvent {
    #[serde(rename = "type")]
    pub(crate) severity: Severity,
    /// One word, for programs.
    pub(crate) reason: String,
    /// A sentence, for people.
    pub(crate) note: String,
    pub(crate) object: Object,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) reporting_controller: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) reporting_instance: String,
    // Additions to the provider's form.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) service: Option<ServiceName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replica: Option<u32>,
    /// How often it happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) first_timestamp: Option<LogTime>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) last_timestamp: Option<LogTime>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) event_time: Option<LogTime>,
    /// Of the Kubernetes object. A changed event has the same.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) uid: String,
}

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Object {
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

// === impl LeaseEvent ===

impl LeaseEvent {
    /// Creates an event with only the keys that every event has. Cuts a long note.
    pub(crate) fn new(severity: Severity, reason: &str, note: &str, object: Object) -> Self {
        let mut cut = truncate(note, NOTE_MAX_BYTES).to_owned();
        if cut.len() < note.len() {
            cut.push('…');
        }
        Self {
            severity,
            reason: reason.to_owned(),
            note: cut,
            object,
            reporting_controller: String::new(),
            reporting_instance: String::new(),
            service: None,
            replica: None,
            count: None,
            first_timestamp: None,
            last_timestamp: None,
            event_time: None,
            uid: String::new(),
        }
    }

    /// Whether `filter` selects it. An event of no known service is only part of an unfiltered stream.
    pub(crate) fn is_selected(&self, filter: &Filter) -> bool {
        match &self.service {
            Some(service) => filter.selects_service(service),
            None => *filter == Filter::everything(),
        }
    }

    /// Returns the payload of its websocket frame: one JSON object and a newline.
    pub(crate) fn frame(&self) -> String {
        // Fails only for maps with other keys than strings, which it does not have.
        let mut json = serde_json::to_string(self).unwrap_or_default();
        json.push('\n');
        json
    }
}

/// Serializes a value that is present as its text.
#[expect(clippy::ref_option, reason = "the signature that serde requires")]
fn text<T: std::fmt::Display, S: serde::Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Object {
        Object { kind: "Pod".into(), namespace: "ns".into(), name: "web-pod-abc".into() }
    }

    #[test]
    fn frame_has_the_keys_of_the_provider_first() {
        let event = LeaseEvent::new(Severity::Normal, "Started", "Container started", pod());
        let expected = concat!(
            r#"{"type":"Normal","reason":"Started","note":"Container started","#,
            r#""object":{"kind":"Pod","namespace":"ns","name":"web-pod-abc"}}"#,
            "\n"
        );
        assert_eq!(event.frame(), expected);
        let event = LeaseEvent {
            reporting_controller: "kubelet".into(),
            service: Some("web".parse().unwrap()),
            replica: Some(0),
            count: Some(3),
            last_timestamp: Some(LogTime::from_nanos(1)),
            uid: "u".into(),
            ..event
        };
        let added = concat!(
            r#","reportingController":"kubelet","service":"web","replica":0,"count":3,"#,
            r#""lastTimestamp":"1970-01-01T00:00:00.000000001Z","uid":"u"}"#,
            "\n"
        );
        assert!(event.frame().ends_with(added), "{}", event.frame());
    }

    #[test]
    fn note_is_bounded_and_escaped() {
        let event = LeaseEvent::new(Severity::Warning, "Failed", &"é\n".repeat(2_000), pod());
        assert!(event.note.len() <= NOTE_MAX_BYTES + "…".len() && event.note.ends_with('…'));
        assert_eq!(event.frame().matches('\n').count(), 1);
        assert!(event.frame().starts_with(r#"{"type":"Warning""#));
    }

    #[test]
    fn filter_selects_events_of_its_services() {
        let mut filter = Filter::everything();
        let mut event = LeaseEvent::new(Severity::Normal, "Synced", "", pod());
        assert!(event.is_selected(&filter));
        filter.add("web".parse().unwrap(), &[]);
        assert!(!event.is_selected(&filter), "unknown service");
        event.service = Some("web".parse().unwrap());
        assert!(event.is_selected(&filter) && event.is_selected(&Filter::everything()));
        event.service = Some("api".parse().unwrap());
        assert!(!event.is_selected(&filter));
        let mut restricted = Filter::everything();
        restricted.restrict(["web".parse().unwrap()].into());
        event.service = None;
        assert!(!event.is_selected(&restricted), "the token permits one service only");
    }
}
