//! Entries as JSON: one object a line, told apart by `type`.
//!
//! The output may be a terminal, so characters that steer one are always escaped: to a JSON parser the value is the same.

use std::io::{self, Write};

use data_encoding::BASE64;
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::lines::{Key, Piece};
use super::table::{replica_state, restart_state};
use super::terminal::steers_beyond_ascii;
use crate::model::proto::lease::gap::Cause;
use crate::model::proto::lease::replica_event::Kind;
use crate::model::proto::lease::{
    Gap, LeaseServiceStatus, ReplicaEvent, ReplicaStatus, ServiceRestartResponse, ServiceStatus,
    ServiceStatusResponse,
};
use crate::model::request_id::RequestId;
use crate::model::time::LogTime;

/// Formats compact JSON in which DEL and the characters of [`steers_beyond_ascii`] are escaped. (JSON itself requires that of
/// other control characters.)
struct TerminalSafe;

/// One object. Fields that say nothing are left out.
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
        /// The line, if it is UTF-8.
        #[serde(skip_serializing_if = "Option::is_none")]
        line: Option<&'a str>,
        /// The line's bytes, if it is not.
        #[serde(skip_serializing_if = "Option::is_none")]
        line_base64: Option<String>,
        /// Whether the next object of this replica goes on with the same line.
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
pub(super) fn write_line(out: &mut impl Write, object: &impl Serialize) -> io::Result<()> {
    object.serialize(&mut Serializer::with_formatter(&mut *out, TerminalSafe))?;
    out.write_all(b"\n")
}

/// Escapes what steers a terminal in `json`, a text of JSON. Outside strings there is none of it, so the value stays the same.
pub fn escape(json: &str) -> String {
    let mut out = Vec::with_capacity(json.len());
    // Writing to a vector does not fail.
    let _ = escape_into(&mut out, json);
    String::from_utf8_lossy(&out).into_owned()
}

fn escape_into<W: ?Sized + Write>(out: &mut W, text: &str) -> io::Result<()> {
    let must_escape = |c: char| c == '\x7f' || steers_beyond_ascii(c);
    let mut rest = text;
    while let Some((at, found)) = rest.char_indices().find(|(_, c)| must_escape(*c)) {
        out.write_all(&rest.as_bytes()[..at])?;
        // All of them are in the basic plane, so one unit of UTF-16 holds each.
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
    /// A line. With `timestamps` it begins with its time, which becomes a field of its own.
    pub(super) fn line(key: &'a Key, instance: &'a str, piece: Piece<'a>, timestamps: bool) -> Self {
        let (mut time, mut bytes) = (None, piece.bytes);
        if timestamps && piece.first {
            (time, bytes) = split_time(bytes);
        }
        let text = std::str::from_utf8(bytes).ok();
        let body = Body::Line {
            line: text,
            line_base64: text.is_none().then(|| BASE64.encode(bytes)),
            partial: !piece.last,
        };
        Self::new("line", key, instance, time, body)
    }

    /// Lost lines.
    pub(super) fn gap(key: &'a Key, instance: &'a str, gap: &Gap) -> Self {
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
            from: gap.from.as_ref().and_then(show_time),
            to: gap.to.as_ref().and_then(show_time),
        };
        Self::new("gap", key, instance, None, body)
    }

    /// A turn in a replica's life.
    pub(super) fn event(key: &'a Key, event: &'a ReplicaEvent) -> Self {
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
        Self::new("event", key, &event.instance, event.time.as_ref().and_then(show_time), body)
    }

    fn new(
        r#type: &'static str,
        key: &'a Key,
        instance: &'a str,
        time: Option<String>,
        body: Body<'a>,
    ) -> Self {
        Self { r#type, service: &key.0, replica: key.1, instance, time, body }
    }
}

/// An answer of `ServiceStatus`. Fields that say nothing are left out.
#[derive(Debug, Serialize)]
pub(super) struct StatusObject<'a> {
    services: Vec<ServiceObject<'a>>,
    /// When this was last known to be so, if the gateway has lost its view of the platform.
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

/// A port, of the provider or of an address.
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

/// What came of a restart.
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
    pub(super) fn new(answer: &'a ServiceStatusResponse) -> Self {
        Self {
            services: answer.services.iter().map(ServiceObject::new).collect(),
            stale_since: answer.stale_since.as_ref().and_then(show_time),
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
            started_at: replica.started_at.as_ref().and_then(show_time),
            message: &replica.message,
        }
    }
}

// === impl RestartObject ===

impl<'a> RestartObject<'a> {
    pub(super) fn new(request_id: &RequestId, answer: &'a ServiceRestartResponse) -> Self {
        let status = answer.status.iter().map(|one| RestartedObject {
            service: &one.service,
            replica: &one.replica,
            state: restart_state(one.state()),
            message: one.message.as_deref(),
        });
        Self { request_id: request_id.to_string(), status: status.collect() }
    }
}

/// The time that the line begins with and the line behind it, if it does.
fn split_time(line: &[u8]) -> (Option<String>, &[u8]) {
    let Some(space) = memchr::memchr(b' ', line) else {
        return (None, line);
    };
    let time = std::str::from_utf8(&line[..space]).ok();
    match time.filter(|text| text.parse::<jiff::Timestamp>().is_ok()) {
        Some(time) => (Some(time.to_owned()), &line[space + 1..]),
        None => (None, line),
    }
}

fn show_time(stamp: &prost_types::Timestamp) -> Option<String> {
    LogTime::from_parts(stamp.seconds, stamp.nanos).map(|time| time.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn json_escapes_what_steers_a_terminal() {
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
        fn escaped_json_has_the_same_value(text in any::<String>(), steering in "[\u{7f}-\u{9f}\u{202a}-\u{202e}a\"\\\\]{0,20}") {
            let value = Value::from(format!("{text}{steering}{text}"));
            let mut out = Vec::new();
            write_line(&mut out, &value).unwrap();
            let out = String::from_utf8(out).unwrap();
            let text = out.strip_suffix('\n').unwrap();
            prop_assert!(!text.chars().any(|c| c.is_control() || steers_beyond_ascii(c)), "{text:?}");
            prop_assert_eq!(escape(&value.to_string()), text);
            prop_assert_eq!(serde_json::from_str::<Value>(text).unwrap(), value);
        }
    }
}
