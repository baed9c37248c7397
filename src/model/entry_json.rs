//! Entries of a log stream as JSON objects, one per entry: `format=entries` of docs/PROTOCOL.md.
//!
//! Each object has the fields of the entry in gRPC. Lines are separate and have their times, which the
//! request must ask for (`timestamps`). Bytes that are not UTF-8 become U+FFFD.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;

use super::cursor_text;
use super::line::split_time;
use super::proto::lease::line_part::Stream;
use super::proto::lease::replica_event::Kind;
use super::proto::lease::{Gap, LinePart, ReplicaEvent, ServiceLogs, SourceState};
use super::time::LogTime;

#[derive(Serialize)]
struct EntryBody<'a> {
    service: &'a str,
    replica: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    instance: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lines: Vec<LineBody<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<PartBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gap: Option<GapBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<EventBody<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<SourceBody<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

#[derive(Serialize)]
struct LineBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<&'a str>,
    text: Cow<'a, str>,
}

#[derive(Serialize)]
struct PartBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<&'static str>,
    continues: bool,
    more: bool,
}

#[derive(Serialize)]
struct GapBody {
    lines: u64,
    bytes: u64,
    exact: bool,
    cause: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
}

#[derive(Serialize)]
struct EventBody<'a> {
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
}

#[derive(Serialize)]
struct SourceBody<'a> {
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    lines_left: Option<u64>,
}

/// The last object of a stream: why it ended.
#[derive(Serialize)]
struct EndBody<'a> {
    end: EndDetails<'a>,
}

#[derive(Serialize)]
struct EndDetails<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

/// Returns the object of an entry of a stream with timestamps.
pub(crate) fn entry(entry: &ServiceLogs) -> Vec<u8> {
    let cursor_instance = entry.cursor.as_ref().map(|cursor| cursor.instance.as_str());
    let event_instance = entry.event.as_ref().map(|event| event.instance.as_str());
    // The bytes of a gap are a notice for clients that do not know gaps.
    let lines = if entry.gap.is_none() { lines(&entry.logs, entry.part) } else { Vec::new() };
    to_line(&EntryBody {
        service: &entry.name,
        replica: entry.replica,
        instance: event_instance.or(cursor_instance).unwrap_or_default(),
        time: entry.event.as_ref().and_then(|event| time_text(event.time)),
        lines,
        part: entry.part.as_ref().map(PartBody::from),
        gap: entry.gap.as_ref().map(GapBody::from),
        event: entry.event.as_ref().map(EventBody::from),
        source: entry.source.as_ref().map(SourceBody::from),
        cursor: entry.cursor.as_ref().map(cursor_text::to_text),
    })
}

/// Returns the object of the end of a stream. `retry_after`: the delay before the stream can be resumed;
/// `None` if it cannot.
pub(crate) fn end(reason: &str, message: &str, retry_after: Option<Duration>) -> Vec<u8> {
    let retry_after_ms = retry_after.map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
    to_line(&EndBody { end: EndDetails { reason, message, retry_after_ms } })
}

fn to_line(body: &impl Serialize) -> Vec<u8> {
    // Fails only for maps with other keys than strings, which no body has.
    let mut text = serde_json::to_vec(body).unwrap_or_default();
    text.push(b'\n');
    text
}

fn lines(logs: &[u8], part: Option<LinePart>) -> Vec<LineBody<'_>> {
    if let Some(part) = part {
        let text = logs.strip_suffix(b"\n").unwrap_or(logs);
        return vec![if part.continues { LineBody::without_time(text) } else { LineBody::of(text) }];
    }
    let lines = logs.split_inclusive(|byte| *byte == b'\n');
    lines.map(|line| LineBody::of(line.strip_suffix(b"\n").unwrap_or(line))).collect()
}

/// Returns the last word of a name in the proto, in lower case: `CAUSE_UNSPECIFIED` is `unspecified`.
pub(crate) fn word(name: &str) -> String {
    name.rsplit('_').next().unwrap_or(name).to_ascii_lowercase()
}

/// Returns the text of a time; `None` if it is absent or out of range.
pub(crate) fn time_text(stamp: Option<prost_types::Timestamp>) -> Option<String> {
    LogTime::from_proto(&stamp?).map(|time| time.to_string())
}

// === impl LineBody ===

impl<'a> LineBody<'a> {
    fn of(line: &'a [u8]) -> Self {
        match split_time(line) {
            Some((time, _, text)) => Self { time: Some(time), text: String::from_utf8_lossy(text) },
            None => Self::without_time(line),
        }
    }

    fn without_time(text: &'a [u8]) -> Self {
        Self { time: None, text: String::from_utf8_lossy(text) }
    }
}

impl From<&LinePart> for PartBody {
    fn from(part: &LinePart) -> Self {
        let stream = match part.stream() {
            Stream::Stdout => Some("stdout"),
            Stream::Stderr => Some("stderr"),
            Stream::Unspecified => None,
        };
        Self { stream, continues: part.continues, more: part.more }
    }
}

impl From<&Gap> for GapBody {
    fn from(gap: &Gap) -> Self {
        Self {
            lines: gap.lines,
            bytes: gap.bytes,
            exact: gap.exact,
            cause: word(gap.cause().as_str_name()),
            from: time_text(gap.from),
            to: time_text(gap.to),
        }
    }
}

impl<'a> From<&'a ReplicaEvent> for EventBody<'a> {
    fn from(event: &'a ReplicaEvent) -> Self {
        let kind = match event.kind() {
            Kind::Unspecified => "unknown".to_owned(),
            kind => word(kind.as_str_name()),
        };
        let ReplicaEvent { exit_code, signal, reason, message, .. } = event;
        Self { kind, exit_code: *exit_code, signal: *signal, reason, message }
    }
}

impl<'a> From<&'a SourceState> for SourceBody<'a> {
    fn from(source: &'a SourceState) -> Self {
        Self {
            state: word(source.state().as_str_name()),
            since: time_text(source.since),
            reason: &source.reason,
            lines_left: source.lines_left,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::proto::lease::Cursor;
    use super::super::proto::lease::gap::Cause;
    use super::super::proto::lease::source_state::State;
    use super::*;

    fn of(entry: &ServiceLogs) -> Value {
        let line = super::entry(entry);
        assert_eq!(line.last(), Some(&b'\n'));
        serde_json::from_slice(&line).unwrap()
    }

    fn base(logs: &[u8]) -> ServiceLogs {
        let cursor =
            Cursor { service: "web".into(), instance: "u/web/0".into(), ordinal: 2, ..Cursor::default() };
        ServiceLogs {
            name: "web".into(),
            logs: logs.to_vec().into(),
            cursor: Some(cursor),
            ..ServiceLogs::default()
        }
    }

    #[test]
    fn lines_have_their_times_and_one_cursor() {
        let entry =
            base(b"2026-01-31T12:00:00.000000001Z a \xff b\r\n2026-01-31T12:00:00.000000002Z \nno time\n");
        let expected = json!({
            "service": "web", "replica": 0, "instance": "u/web/0", "cursor": "web:0:u/web/0::2:0",
            "lines": [
                {"time": "2026-01-31T12:00:00.000000001Z", "text": "a \u{fffd} b\r"},
                {"time": "2026-01-31T12:00:00.000000002Z", "text": ""},
                {"text": "no time"},
            ],
        });
        assert_eq!(of(&entry), expected);
    }

    #[test]
    fn only_first_piece_of_line_has_a_time() {
        let piece = |logs: &[u8], continues, more| {
            let part = LinePart { stream: Stream::Stderr.into(), continues, more };
            of(&ServiceLogs { part: Some(part), ..base(logs) })
        };
        let first = piece(b"2026-01-31T12:00:00.000000001Z 50 %", false, true);
        assert_eq!(first["lines"], json!([{"time": "2026-01-31T12:00:00.000000001Z", "text": "50 %"}]));
        assert_eq!(first["part"], json!({"stream": "stderr", "continues": false, "more": true}));
        // Text that looks like a time.
        let last = piece(b"2026-01-31T12:00:00.000000001Z x\n", true, false);
        assert_eq!(last["lines"], json!([{"text": "2026-01-31T12:00:00.000000001Z x"}]));
        assert_eq!(piece(b"", true, false)["lines"], json!([{"text": ""}]));
    }

    #[test]
    fn gaps_events_and_states_have_no_lines() {
        let stamp = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let gap =
            Gap { lines: 12, bytes: 99, to: stamp(7), cause: Cause::Lag.into(), exact: true, from: None };
        let gap = of(&ServiceLogs { gap: Some(gap), ..base(b"[leasemux: 12 lines missing]\n") });
        let expected = json!({
            "lines": 12, "bytes": 99, "exact": true, "cause": "lag", "to": "1970-01-01T00:00:07.000000000Z",
        });
        assert_eq!((&gap["gap"], gap.get("lines")), (&expected, None));
        assert_eq!(gap["cursor"], "web:0:u/web/0::2:0");

        let event = ReplicaEvent {
            kind: Kind::Ended.into(),
            instance: "u/web/1".into(),
            time: stamp(5),
            exit_code: Some(137),
            reason: "OOMKilled".into(),
            ..ReplicaEvent::default()
        };
        let event = of(&ServiceLogs { event: Some(event), cursor: None, ..base(b"") });
        let expected = json!({
            "service": "web", "replica": 0, "instance": "u/web/1", "time": "1970-01-01T00:00:05.000000000Z",
            "event": {"kind": "ended", "exit_code": 137, "reason": "OOMKilled"},
        });
        assert_eq!(event, expected);

        let source =
            SourceState { state: State::Backfilling.into(), lines_left: Some(3), ..SourceState::default() };
        let source = of(&ServiceLogs { source: Some(source), ..base(b"") });
        assert_eq!(source["source"], json!({"state": "backfilling", "lines_left": 3}));
        assert!(source.get("lines").is_none());
    }

    #[test]
    fn end_names_reason_and_delay() {
        let of = |line: Vec<u8>| serde_json::from_slice::<Value>(&line).unwrap();
        let end = super::end("DRAINING", "the gateway shuts down", Some(Duration::from_millis(1_500)));
        let expected =
            json!({"reason": "DRAINING", "message": "the gateway shuts down", "retry_after_ms": 1_500});
        assert_eq!(of(end), json!({ "end": expected }));
        assert_eq!(of(super::end("", "x", None)), json!({"end": {"message": "x"}}));
    }
}
