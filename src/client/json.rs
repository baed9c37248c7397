//! Entries, status and restart outcomes as JSON.
//!
//! The output may be a terminal, so control characters are always escaped; to a JSON parser the value is the
//! same.

use std::io::{self, Write};

use data_encoding::BASE64;
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::ReplicaKey;
use super::lines::Piece;
use super::table::{replica_state, restart_state};
use super::terminal::is_non_ascii_control;
use crate::model::proto::lease::gap::Cause;
use crate::model::proto::lease::replica_event::Kind;
use crate::model::proto::lease::{
    Gap, LeaseServiceStatus, ReplicaEvent, ReplicaStatus, ServiceRestartResponse, ServiceStatus,
    ServiceStatusResponse,
};
use crate::model::request_id::RequestId;
use crate::model::time::LogTime;

/// Formats compact JSON in which DEL and the characters of [`is_non_ascii_control`] are escaped. JSON itself
/// requires escapes for the other control characters.
struct TerminalSafe;

/// Entry of a log, distinguished by `type`. Empty fields are left out.
#[derive(Debug, Serialize)]
pub(super) struct Object<'a> {
    r#type: &'static str,
    service: &'a str,
    replica: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    instance: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    #[serde(flatten)]
    body: Body<'a>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Body<'a> {
    Line {
        /// Set if the line is UTF-8.
        #[serde(skip_serializing_if = "Option::is_none")]
        line: Option<&'a str>,
        /// Set if it is not.
        #[serde(skip_serializing_if = "Option::is_none")]
        line_base64: Option<String>,
        /// Whether the next object of this replica continues the line.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        partial: bool,
    },
    Gap {
        lines: u64,
        bytes: u64,
        exact: bool,
        cause: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        to: Option<String>,
    },
    Event {
        kind: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        #[serde(skip_serializing_if = "str::is_empty")]
        reason: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        message: &'a str,
    },
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

impl<'a> Object<'a> {
    /// Creates the object of a line. With `timestamps`, the time at its start becomes a field.
    pub(super) fn line(key: &'a ReplicaKey, instance: &'a str, piece: Piece<'a>, timestamps: bool) -> Self {
        let split = if timestamps && piece.first { split_time(piece.bytes) } else { None };
        let (time, bytes) = split.map_or((None, piece.bytes), |(time, text)| (Some(time.to_owned()), text));
        let text = std::str::from_utf8(bytes).ok();
        let body = Body::Line {
            line: text,
            line_base64: text.is_none().then(|| BASE64.encode(bytes)),
            partial: !piece.last,
        };
        Self::new("line", key, instance, time, body)
    }

    /// Creates the object of a gap.
    pub(super) fn gap(key: &'a ReplicaKey, instance: &'a str, gap: &Gap) -> Self {
        let body = Body::Gap {
            lines: gap.lines,
            bytes: gap.bytes,
            exact: gap.exact,
            cause: match gap.cause() {
                Cause::Unspecified => "unspecified",
                Cause::Lag => "lag",
                Cause::Rotated => "rotated",
                Cause::Source => "source",
                Cause::Limit => "limit",
            },
            from: gap.from.as_ref().and_then(time_text),
            to: gap.to.as_ref().and_then(time_text),
        };
        Self::new("gap", key, instance, None, body)
    }

    /// Creates the object of an event.
    pub(super) fn event(key: &'a ReplicaKey, event: &'a ReplicaEvent) -> Self {
        let body = Body::Event {
            kind: match event.kind() {
                Kind::Unspecified => "unspecified",
                Kind::Started => "started",
                Kind::Ended => "ended",
                Kind::Waiting => "waiting",
                Kind::Gone => "gone",
            },
            exit_code: event.exit_code,
            signal: event.signal,
            reason: &event.reason,
            message: &event.message,
        };
        Self::new("event", key, &event.instance, event.time.as_ref().and_then(time_text), body)
    }

    fn new(
        r#type: &'static str,
        key: &'a ReplicaKey,
        instance: &'a str,
        time: Option<String>,
        body: Body<'a>,
    ) -> Self {
        Self { r#type, service: &key.0, replica: key.1, instance, time, body }
    }
}

/// Response of `ServiceStatus`. Empty fields are left out.
#[derive(Debug, Serialize)]
pub(super) struct StatusObject<'a> {
    services: Vec<ServiceObject<'a>>,
    /// Time of the last known state, if the gateway has lost its view of the platform.
    #[serde(skip_serializing_if = "Option::is_none")]
    stale_since: Option<String>,
}

#[derive(Debug, Serialize)]
struct ServiceObject<'a> {
    service: &'a str,
    available: i32,
    total: i32,
    ready: i32,
    updated: i32,
    observed_generation: i64,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    uris: &'a [String],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<PortObject<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<PortObject<'a>>,
    replicas: Vec<ReplicaObject<'a>>,
}

/// Port of the provider, or of an IP address.
#[derive(Debug, Serialize)]
struct PortObject<'a> {
    host: &'a str,
    port: u32,
    external_port: u32,
    protocol: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
}

#[derive(Debug, Serialize)]
struct ReplicaObject<'a> {
    replica: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    instance: &'a str,
    state: &'static str,
    ready: bool,
    restarts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_signal: Option<i32>,
    #[serde(skip_serializing_if = "str::is_empty")]
    last_reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
}

/// Outcome of a restart.
#[derive(Debug, Serialize)]
pub(super) struct RestartObject<'a> {
    request_id: String,
    status: Vec<RestartedObject<'a>>,
}

#[derive(Debug, Serialize)]
struct RestartedObject<'a> {
    service: &'a str,
    replica: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

// === impl StatusObject ===

impl<'a> StatusObject<'a> {
    pub(super) fn new(response: &'a ServiceStatusResponse) -> Self {
        Self {
            services: response.services.iter().map(ServiceObject::new).collect(),
            stale_since: response.stale_since.as_ref().and_then(time_text),
        }
    }
}

impl<'a> ServiceObject<'a> {
    fn new(service: &'a ServiceStatus) -> Self {
        let counts = service.status.as_ref();
        let number = |of: fn(&LeaseServiceStatus) -> i32| counts.map_or(0, of);
        let ports = service.ports.iter().map(|port| PortObject {
            host: &port.host,
            port: port.port,
            external_port: port.external_port,
            protocol: &port.proto,
            name: &port.name,
        });
        let ips = service.ips.iter().map(|ip| PortObject {
            host: &ip.ip,
            port: ip.port,
            external_port: ip.external_port,
            protocol: &ip.protocol,
            name: "",
        });
        Self {
            service: &service.name,
            available: number(|counts| counts.available),
            total: number(|counts| counts.total),
            ready: number(|counts| counts.ready_replicas),
            updated: number(|counts| counts.updated_replicas),
            observed_generation: counts.map_or(0, |counts| counts.observed_generation),
            uris: counts.map_or(&[], |counts| &counts.uris),
            ports: ports.collect(),
            ips: ips.collect(),
            replicas: service.replica_status.iter().map(ReplicaObject::new).collect(),
        }
    }
}

impl<'a> ReplicaObject<'a> {
    fn new(replica: &'a ReplicaStatus) -> Self {
        Self {
            replica: replica.replica,
            instance: &replica.instance,
            state: replica_state(replica.state()),
            ready: replica.ready,
            restarts: replica.restarts,
            last_exit_code: replica.last_exit_code,
            last_signal: replica.last_signal,
            last_reason: &replica.last_reason,
            started_at: replica.started_at.as_ref().and_then(time_text),
            message: &replica.message,
        }
    }
}

// === impl RestartObject ===

impl<'a> RestartObject<'a> {
    pub(super) fn new(request_id: &RequestId, response: &'a ServiceRestartResponse) -> Self {
        let status = response.status.iter().map(|one| RestartedObject {
            service: &one.service,
            replica: &one.replica,
            state: restart_state(one.state()),
            message: one.message.as_deref(),
        });
        Self { request_id: request_id.to_string(), status: status.collect() }
    }
}

/// Splits the time at the start of `line` from the text after it.
fn split_time(line: &[u8]) -> Option<(&str, &[u8])> {
    let space = memchr::memchr(b' ', line)?;
    let time = std::str::from_utf8(&line[..space]).ok()?;
    time.parse::<jiff::Timestamp>().ok()?;
    Some((time, &line[space + 1..]))
}

fn time_text(stamp: &prost_types::Timestamp) -> Option<String> {
    LogTime::from_parts(stamp.seconds, stamp.nanos).map(|time| time.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

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
