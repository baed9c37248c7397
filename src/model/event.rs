//! Events of a lease, in the form of the Akash provider's `kubeevents` stream.

use serde::Serialize;

use super::id::ServiceName;
use super::text::truncate;
use super::time::LogTime;
use super::view::Filter;

/// Most events that are kept and sent of one lease: what Kubernetes has of a busy lease, since it merges
/// repeated ones and deletes them after an hour.
pub(crate) const EVENTS_MAX: usize = 256;

/// Maximum size of a note in bytes. Kubernetes allows that, and up to 64 KiB from old reporters.
const NOTE_MAX_BYTES: usize = 1_024;

/// Maximum size of any other text in bytes, as for the name of a Kubernetes object.
const WORD_MAX_BYTES: usize = 253;

/// The reporter of events that this gateway derives from the lease view.
pub(crate) const REPORTER: &str = "leasemux";

/// One event. Serializes as clients read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseEvent {
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
    /// Creates an event with only the keys that every event has. Cuts long texts.
    pub(crate) fn new(severity: Severity, reason: &str, note: &str, object: Object) -> Self {
        let mut cut = truncate(note, NOTE_MAX_BYTES).to_owned();
        if cut.len() < note.len() {
            cut.push('…');
        }
        let Object { kind, namespace, name } = object;
        Self {
            severity,
            reason: word(reason),
            note: cut,
            object: Object { kind: word(&kind), namespace: word(&namespace), name: word(&name) },
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

    /// Sets the reporter. Cuts long names.
    pub(crate) fn reported_by(self, controller: &str, instance: &str) -> Self {
        Self { reporting_controller: word(controller), reporting_instance: word(instance), ..self }
    }

    /// Returns when it happened last.
    pub(crate) fn time(&self) -> Option<LogTime> {
        self.last_timestamp.or(self.event_time).or(self.first_timestamp)
    }

    /// Returns its text for clients: one JSON object and a newline.
    pub(crate) fn json_line(&self) -> String {
        // Fails only for maps with other keys than strings, which it does not have.
        let mut json = serde_json::to_string(self).unwrap_or_default();
        json.push('\n');
        json
    }
}

/// Whether `filter` selects events of this service. Events of no known service are only part of an unfiltered
/// stream.
pub(crate) fn is_selected(service: Option<&ServiceName>, filter: &Filter) -> bool {
    match service {
        Some(service) => filter.selects_service(service),
        None => *filter == Filter::everything(),
    }
}

fn word(text: &str) -> String {
    truncate(text, WORD_MAX_BYTES).to_owned()
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
    fn text_has_the_keys_of_the_provider_first() {
        let event = LeaseEvent::new(Severity::Normal, "Started", "Container started", pod());
        let expected = concat!(
            r#"{"type":"Normal","reason":"Started","note":"Container started","#,
            r#""object":{"kind":"Pod","namespace":"ns","name":"web-pod-abc"}}"#,
            "\n"
        );
        assert_eq!(event.json_line(), expected);
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
        assert!(event.json_line().ends_with(added), "{}", event.json_line());
    }

    #[test]
    fn texts_are_bounded_and_escaped() {
        let event = LeaseEvent::new(Severity::Warning, "Failed", &"é\n".repeat(2_000), pod());
        assert!(event.note.len() <= NOTE_MAX_BYTES + "…".len() && event.note.ends_with('…'));
        assert_eq!(event.json_line().matches('\n').count(), 1);
        assert!(event.json_line().starts_with(r#"{"type":"Warning""#));
        let long = "x".repeat(10_000);
        let object = Object { kind: long.clone(), namespace: long.clone(), name: long.clone() };
        let event = LeaseEvent::new(Severity::Normal, &long, &long, object).reported_by(&long, &long);
        assert!(event.json_line().len() < 3_000);
    }

    #[test]
    fn filter_selects_events_of_its_services() {
        let [web, api]: [ServiceName; 2] = ["web", "api"].map(|name| name.parse().unwrap());
        let mut filter = Filter::everything();
        assert!(is_selected(None, &filter) && is_selected(Some(&web), &filter));
        filter.add(web.clone(), &[]);
        assert!(!is_selected(None, &filter), "unknown service");
        assert!(is_selected(Some(&web), &filter) && !is_selected(Some(&api), &filter));
        let mut restricted = Filter::everything();
        restricted.restrict([web.clone()].into());
        assert!(!is_selected(None, &restricted), "the token permits one service only");
        assert!(is_selected(Some(&web), &restricted) && !is_selected(Some(&api), &restricted));
    }
}
