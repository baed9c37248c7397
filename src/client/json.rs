//! Entries, status and restart outcomes as JSON.
//!
//! The output may be a terminal, so control characters are always escaped; to a JSON parser the value is the
//! same.

use std::io::{self, Write};

use data_encoding::BASE64;
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

use super::ReplicaKey;
use super::lines::Piece;
use super::table::replica_state;
use super::terminal::is_non_ascii_control;
use crate::model::entry_json::{time_text, word};
use crate::model::id::RequestId;
use crate::model::line::split_time;
use crate::model::proto::lease::{
    Gap, ReplicaEvent, ReplicaStatus, ServiceRestartResponse, ServiceStatus, ServiceStatusResponse,
};

/// Formats compact JSON in which DEL and the characters of [`is_non_ascii_control`] are escaped. JSON itself
/// requires escapes for the other control characters.
struct TerminalSafe;

/// JSON object whose fields keep their order, unlike those of [`serde_json::Map`].
#[derive(Debug, Default)]
pub(super) struct Object(Vec<(&'static str, Field)>);

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Field {
    Value(Value),
    Objects(Vec<Object>),
}

/// Writes `object` and a newline.
pub(super) fn write_line(out: &mut (impl Write + ?Sized), object: &impl Serialize) -> io::Result<()> {
    object.serialize(&mut Serializer::with_formatter(&mut *out, TerminalSafe))?;
    out.write_all(b"\n")
}

/// Escapes control characters in `json`, a JSON text. They occur in strings only, so the value stays the
/// same.
pub fn escape(json: &str) -> String {
    let mut out = Vec::with_capacity(json.len());
    // Writing to a vector cannot fail.
    let _ = escape_into(&mut out, json);
    String::from_utf8_lossy(&out).into_owned()
}

fn escape_into<W: ?Sized + Write>(out: &mut W, text: &str) -> io::Result<()> {
    let must_escape = |c: char| c == '\x7f' || is_non_ascii_control(c);
    let mut rest = text;
    while let Some((at, found)) = rest.char_indices().find(|(_, c)| must_escape(*c)) {
        out.write_all(&rest.as_bytes()[..at])?;
        // All are in the basic plane, so each is one UTF-16 unit.
        write!(out, "\\u{:04x}", u32::from(found))?;
        rest = &rest[at + found.len_utf8()..];
    }
    out.write_all(rest.as_bytes())
}

// === impl TerminalSafe ===

impl Formatter for TerminalSafe {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        escape_into(out, fragment)
    }
}

// === impl Object ===

impl Object {
    /// Creates the object of a line. With `timestamps`, the time at its start becomes a field.
    pub(super) fn line(key: &ReplicaKey, instance: &str, piece: Piece<'_>, timestamps: bool) -> Self {
        let split = if timestamps && piece.first { split_time(piece.bytes) } else { None };
        let (time, bytes) = split.map_or((None, piece.bytes), |(time, _, text)| (Some(time), text));
        let object = Self::entry("line", key, instance).optional("time", time);
        let object = match std::str::from_utf8(bytes) {
            Ok(text) => object.field("line", text),
            Err(_) => object.field("line_base64", BASE64.encode(bytes)),
        };
        // The next object of this replica continues the line.
        if piece.last { object } else { object.field("partial", true) }
    }

    /// Creates the object of a gap.
    pub(super) fn gap(key: &ReplicaKey, instance: &str, gap: &Gap) -> Self {
        Self::entry("gap", key, instance)
            .field("lines", gap.lines)
            .field("bytes", gap.bytes)
            .field("exact", gap.exact)
            .field("cause", word(gap.cause().as_str_name()))
            .optional("from", time_text(gap.from))
            .optional("to", time_text(gap.to))
    }

    /// Creates the object of an event.
    pub(super) fn event(key: &ReplicaKey, event: &ReplicaEvent) -> Self {
        Self::entry("event", key, &event.instance)
            .optional("time", time_text(event.time))
            .field("kind", word(event.kind().as_str_name()))
            .optional("exit_code", event.exit_code)
            .optional("signal", event.signal)
            .optional("reason", &*event.reason)
            .optional("message", &*event.message)
    }

    /// Creates the object of a status response. `stale_since` is the time of the last known state, if the
    /// gateway has lost its view of the platform.
    pub(super) fn status(response: &ServiceStatusResponse) -> Self {
        Self::default()
            .objects("services", response.services.iter().map(Self::service))
            .optional("stale_since", time_text(response.stale_since))
    }

    /// Creates the object of the outcome of a restart.
    pub(super) fn restart(request_id: &RequestId, response: &ServiceRestartResponse) -> Self {
        let replicas = response.status.iter().map(|replica| {
            let object = Self::default()
                .field("service", &*replica.service)
                .field("replica", &*replica.replica)
                .field("state", replica.state().as_str_name());
            // Unlike other texts, an empty message is part of the object.
            match replica.message.as_deref() {
                Some(message) => object.field("message", message),
                None => object,
            }
        });
        Self::default().field("request_id", request_id.as_str()).objects("status", replicas)
    }

    fn service(service: &ServiceStatus) -> Self {
        let counts = service.status.clone().unwrap_or_default();
        let ports = service.ports.iter().map(|port| {
            Self::port(&port.host, port.port, port.external_port, &port.proto).optional("name", &*port.name)
        });
        let ips = service.ips.iter().map(|ip| Self::port(&ip.ip, ip.port, ip.external_port, &ip.protocol));
        let object = Self::default()
            .field("service", &*service.name)
            .field("available", counts.available)
            .field("total", counts.total)
            .field("ready", counts.ready_replicas)
            .field("updated", counts.updated_replicas)
            .field("observed_generation", counts.observed_generation)
            .optional("uris", counts.uris);
        let object = if service.ports.is_empty() { object } else { object.objects("ports", ports) };
        let object = if service.ips.is_empty() { object } else { object.objects("ips", ips) };
        object.objects("replicas", service.replica_status.iter().map(Self::replica))
    }

    /// Creates the object of a port of the provider, or of an IP address.
    fn port(host: &str, port: u32, external_port: u32, protocol: &str) -> Self {
        Self::default()
            .field("host", host)
            .field("port", port)
            .field("external_port", external_port)
            .field("protocol", protocol)
    }

    fn replica(replica: &ReplicaStatus) -> Self {
        Self::default()
            .field("replica", replica.replica)
            .optional("instance", &*replica.instance)
            .field("state", replica_state(replica.state()))
            .field("ready", replica.ready)
            .field("restarts", replica.restarts)
            .optional("last_exit_code", replica.last_exit_code)
            .optional("last_signal", replica.last_signal)
            .optional("last_reason", &*replica.last_reason)
            .optional("started_at", time_text(replica.started_at))
            .optional("message", &*replica.message)
    }

    /// Creates an object with the fields that all entries of a log have.
    fn entry(kind: &str, key: &ReplicaKey, instance: &str) -> Self {
        Self::default()
            .field("type", kind)
            .field("service", &*key.0)
            .field("replica", key.1)
            .optional("instance", instance)
    }

    fn field(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.0.push((name, Field::Value(value.into())));
        self
    }

    /// Adds a field unless its value is null, or an empty text or list.
    fn optional(self, name: &'static str, value: impl Into<Value>) -> Self {
        match value.into() {
            Value::Null => self,
            Value::String(text) if text.is_empty() => self,
            Value::Array(list) if list.is_empty() => self,
            value => self.field(name, value),
        }
    }

    fn objects(mut self, name: &'static str, objects: impl Iterator<Item = Self>) -> Self {
        self.0.push((name, Field::Objects(objects.collect())));
        self
    }
}

impl Serialize for Object {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, field)| (name, field)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        let line = "a \u{9b}2J b \u{7f} c \u{202e}abc\u{2069} \u{85}\x1b[2J häßlich 日本 \u{1f980}";
        let key = ("c1".to_owned(), 0);
        let piece = Piece { bytes: line.as_bytes(), first: true, last: true };
        let mut out = Vec::new();
        write_line(&mut out, &Object::line(&key, "", piece, false)).unwrap();
        let out = String::from_utf8(out).unwrap();
        let expected = r#""a \u009b2J b \u007f c \u202eabc\u2069 \u0085\u001b[2J häßlich 日本 🦀""#;
        assert!(out.contains(expected), "{out}");
        assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["line"], line);
    }

    proptest! {
        #[test]
        fn escaped_json_has_the_same_value(text in any::<String>(), controls in "[\u{7f}-\u{9f}\u{202a}-\u{202e}a\"\\\\]{0,20}") {
            let value = Value::from(format!("{text}{controls}{text}"));
            let mut out = Vec::new();
            write_line(&mut out, &value).unwrap();
            let out = String::from_utf8(out).unwrap();
            let text = out.strip_suffix('\n').unwrap();
            prop_assert!(!text.chars().any(|c| c.is_control() || is_non_ascii_control(c)), "{text:?}");
            prop_assert_eq!(escape(&value.to_string()), text);
            prop_assert_eq!(serde_json::from_str::<Value>(text).unwrap(), value);
        }
    }
}
