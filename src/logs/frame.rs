//! Encodes log entries as complete gRPC messages, length prefix included. Pure.
//!
//! A chunk is encoded once per [`Representation`], whatever the number of followers: they share the bytes.

use bytes::Bytes;

use crate::logs::chunk::Chunk;
use crate::model::id::{Instance, Replica};
use crate::model::line::{GapCause, SourceGap, Stream};
use crate::model::position::{Cursor, Position};
use crate::model::proto::framed;
use crate::model::proto::lease::replica_event::Kind;
use crate::model::proto::lease::{self, ServiceLogs, ServiceLogsResponse};
use crate::model::time::LogTime;
use crate::model::view::Run;

/// Bytes of a line's timestamp: thirty characters and a space.
const TIMESTAMP_BYTES: usize = 31;

/// Upper bound on how much longer the length fields of a message become with timestamps.
const LENGTH_FIELDS_BYTES: usize = 8;

/// Reason of the waiting event when no replica is deployed.
const NOTHING_DEPLOYED: &str = "NothingDeployed";

/// Reason of the event that a log cannot be followed.
const FOLLOW_UNAVAILABLE: &str = "FollowUnavailable";

/// Message of that event. Gives no details of the node to a tenant.
const FOLLOW_UNAVAILABLE_MESSAGE: &str =
    "the node cannot follow this log at present; it is read every few seconds instead";

/// How lines are represented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Representation {
    /// As recorded.
    Plain,
    /// Each with a prefix of its RFC 3339 time with nanoseconds and a space, as by kubectl.
    Timestamped,
}

/// Lines that were lost, as reported to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Why they were lost.
    pub cause: GapCause,
    /// Lines lost.
    pub lines: u64,
    /// Bytes lost.
    pub bytes: u64,
    /// Whether both are exact; otherwise they are lower bounds.
    pub exact: bool,
    /// Time of the last delivered line before the gap, if any.
    pub from: Option<LogTime>,
    /// Time of the first line after the gap, if known.
    pub to: Option<LogTime>,
}

/// A change in the life cycle of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    kind: Kind,
    /// The run that it is about, if any.
    instance: Option<Instance>,
    time: LogTime,
    /// Exit code of a run that ended by itself.
    exit_code: Option<i32>,
    /// Signal that ended the run.
    signal: Option<i32>,
    /// One word, for programs.
    reason: String,
    /// Details, for people.
    message: String,
}

/// An encoded chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinesFrame {
    /// The complete message.
    pub message: Bytes,
    /// The log bytes within the message; shares its memory.
    pub logs: Bytes,
}

// === impl Gap ===

impl Gap {
    /// Creates the gap to report for lines that the source has lost; `from` is the time of the last line
    /// before it.
    pub(crate) fn of_source(gap: &SourceGap, from: Option<LogTime>) -> Self {
        let SourceGap { cause, lines, bytes, exact, .. } = *gap;
        Self { cause, lines, bytes, exact, from, to: None }
    }
}

// === impl Event ===

impl Event {
    pub(crate) fn started(run: &Run) -> Self {
        Self { instance: Some(run.instance.clone()), time: run.started, ..Self::of(Kind::Started) }
    }

    /// Returns `None` if the run has not ended.
    pub(crate) fn ended(run: &Run) -> Option<Self> {
        let end = run.end.clone()?;
        Some(Self {
            instance: Some(run.instance.clone()),
            time: end.time,
            exit_code: end.exit_code,
            signal: end.signal,
            reason: end.reason,
            ..Self::of(Kind::Ended)
        })
    }

    /// No run is running, but one is expected to.
    pub(crate) fn waiting(reason: String, message: String) -> Self {
        Self { reason, message, ..Self::of(Kind::Waiting) }
    }

    /// The log of a live run cannot be followed. Its lines are read every few seconds.
    pub(crate) fn follow_unavailable() -> Self {
        Self::waiting(FOLLOW_UNAVAILABLE.to_owned(), FOLLOW_UNAVAILABLE_MESSAGE.to_owned())
    }

    /// The replica is no longer part of the lease.
    pub(crate) fn gone() -> Self {
        Self::of(Kind::Gone)
    }

    fn of(kind: Kind) -> Self {
        Self {
            kind,
            instance: None,
            time: LogTime::now(),
            exit_code: None,
            signal: None,
            reason: String::new(),
            message: String::new(),
        }
    }
}

/// Encodes a chunk.
pub fn lines(
    replica: &Replica,
    instance: &Instance,
    chunk: &Chunk,
    representation: Representation,
) -> LinesFrame {
    let logs = match representation {
        Representation::Plain => chunk.data.clone(),
        Representation::Timestamped => timestamped(chunk),
    };
    let length = logs.len();
    let cursor = to_proto_cursor(replica, instance, chunk.end);
    // Prost writes fields in the order of their numbers: only cursor and part follow the log bytes.
    let part = part(chunk);
    let trailing = prost::encoding::message::encoded_len(CURSOR_FIELD, &cursor)
        + part.as_ref().map_or(0, |part| prost::encoding::message::encoded_len(PART_FIELD, part));
    let message = entry(ServiceLogs { logs, cursor: Some(cursor), part, ..named(replica) });
    let end = message.len() - trailing;
    LinesFrame { logs: message.slice(end - length..end), message }
}

/// Returns an upper bound on the bytes that timestamps add to the message of `chunk`.
pub(crate) fn timestamps_max_bytes(chunk: &Chunk) -> usize {
    chunk.line_ends.len() * TIMESTAMP_BYTES + LENGTH_FIELDS_BYTES
}

/// Encodes a gap. `at` is the position after it, so that a client that resumes there does not read lines that
/// were reported as lost.
pub(crate) fn gap(replica: &Replica, at: Option<(&Instance, Position)>, gap: &Gap) -> Bytes {
    let cause = match gap.cause {
        GapCause::Lag => lease::gap::Cause::Lag,
        GapCause::Rotated => lease::gap::Cause::Rotated,
        GapCause::Source => lease::gap::Cause::Source,
        GapCause::Limit => lease::gap::Cause::Limit,
    };
    let body = lease::Gap {
        lines: gap.lines,
        bytes: gap.bytes,
        from: gap.from.and_then(to_proto_time),
        to: gap.to.and_then(to_proto_time),
        cause: cause.into(),
        exact: gap.exact,
    };
    let cursor = at.map(|(instance, position)| to_proto_cursor(replica, instance, position));
    entry(ServiceLogs { logs: notice(gap).into(), cursor, gap: Some(body), ..named(replica) })
}

pub(crate) fn event(replica: &Replica, event: &Event) -> Bytes {
    let body = lease::ReplicaEvent {
        kind: event.kind.into(),
        instance: event.instance.as_ref().map(ToString::to_string).unwrap_or_default(),
        time: to_proto_time(event.time),
        exit_code: event.exit_code,
        signal: event.signal,
        reason: event.reason.clone(),
        message: event.message.clone(),
    };
    entry(ServiceLogs { event: Some(body), ..named(replica) })
}

/// Encodes the waiting event, without a service name, that no selected replica is deployed.
pub(crate) fn nothing_deployed() -> Bytes {
    let body = lease::ReplicaEvent {
        kind: Kind::Waiting.into(),
        time: to_proto_time(LogTime::now()),
        reason: NOTHING_DEPLOYED.to_owned(),
        message: "no replica of a chosen service is deployed under this lease".to_owned(),
        ..lease::ReplicaEvent::default()
    };
    entry(ServiceLogs { event: Some(body), ..ServiceLogs::default() })
}

/// Encodes one response with the given cursors and nothing else.
pub(crate) fn cursors<'a>(cursors: impl IntoIterator<Item = &'a Cursor>) -> Bytes {
    let services = cursors.into_iter().map(|cursor| ServiceLogs {
        cursor: Some(to_proto_cursor(&cursor.replica, &cursor.instance, cursor.position)),
        ..named(&cursor.replica)
    });
    framed(&ServiceLogsResponse { services: services.collect() })
}

/// Field number of `cursor` in `ServiceLogs`.
const CURSOR_FIELD: u32 = 100;

/// Field number of `part` in `ServiceLogs`.
const PART_FIELD: u32 = 105;

fn named(replica: &Replica) -> ServiceLogs {
    ServiceLogs { name: replica.service.to_string(), replica: replica.index, ..ServiceLogs::default() }
}

fn entry(entry: ServiceLogs) -> Bytes {
    framed(&ServiceLogsResponse { services: vec![entry] })
}

/// Returns how the piece in `chunk` relates to its line; `None` for whole lines.
fn part(chunk: &Chunk) -> Option<lease::LinePart> {
    let stream = match chunk.stream() {
        Some(Stream::Stdout) => lease::line_part::Stream::Stdout,
        Some(Stream::Stderr) => lease::line_part::Stream::Stderr,
        None => lease::line_part::Stream::Unspecified,
    };
    let (continues, more) = (chunk.continues, chunk.is_unfinished());
    (continues || more).then(|| lease::LinePart { stream: stream.into(), continues, more })
}

fn timestamped(chunk: &Chunk) -> Bytes {
    if chunk.continues {
        // The first piece has the line's timestamp.
        return chunk.data.clone();
    }
    let mut out = Vec::with_capacity(chunk.data.len() + chunk.line_ends.len() * TIMESTAMP_BYTES);
    for (bytes, time) in chunk.iter() {
        out.extend_from_slice(time.to_string().as_bytes());
        out.push(b' ');
        out.extend_from_slice(bytes);
    }
    out.into()
}

/// Returns the notice line of a gap. Clients that do not know the gap field see it in the log.
fn notice(gap: &Gap) -> String {
    let cause = match gap.cause {
        GapCause::Lag => "the follower fell behind",
        GapCause::Rotated => "the log was rotated away before it was read",
        GapCause::Source => "the source lost them",
        GapCause::Limit => "a limit of the gateway cut them",
    };
    let unit = if gap.lines == 1 { "line" } else { "lines" };
    match (gap.exact, gap.lines) {
        (true, lines) => format!("[leasemux: {lines} {unit} ({} bytes) missing here: {cause}]\n", gap.bytes),
        (false, 0) => format!("[leasemux: lines may be missing here: {cause}]\n"),
        (false, lines) => {
            format!("[leasemux: at least {lines} {unit} ({} bytes) missing here: {cause}]\n", gap.bytes)
        }
    }
}

fn to_proto_cursor(replica: &Replica, instance: &Instance, position: Position) -> lease::Cursor {
    lease::Cursor {
        service: replica.service.to_string(),
        replica: replica.index,
        instance: instance.to_string(),
        time: to_proto_time(position.time),
        ordinal: position.ordinal,
        offset: position.offset,
    }
}

fn to_proto_time(time: LogTime) -> Option<prost_types::Timestamp> {
    (time != LogTime::MIN).then(|| time.into())
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::logs::chunk::LineEnd;
    use crate::model::proto::PREFIX_BYTES;

    fn replica() -> Replica {
        Replica { service: "web".parse().unwrap(), index: 3 }
    }

    fn instance() -> Instance {
        Instance::new("uid", "web", 7).unwrap()
    }

    fn decode(message: &Bytes) -> ServiceLogs {
        assert_eq!(message[0], 0, "not compressed");
        let length = u32::from_be_bytes(message[1..5].try_into().unwrap());
        assert_eq!(length as usize, message.len() - PREFIX_BYTES);
        let mut response = ServiceLogsResponse::decode(&message[PREFIX_BYTES..]).unwrap();
        assert_eq!(response.services.len(), 1);
        response.services.remove(0)
    }

    fn chunk(start: Position) -> Chunk {
        let time = LogTime::from_nanos(1_000_000_005);
        Chunk {
            data: Bytes::from_static(b"one\ntwo\n"),
            line_ends: Box::new([
                LineEnd { end: 4, time, stream: None },
                LineEnd { end: 8, time, stream: None },
            ]),
            continues: false,
            start,
            end: start.after_line(time).after_line(time),
        }
    }

    #[test]
    fn log_bytes_share_memory_of_message() {
        let frame = lines(&replica(), &instance(), &chunk(Position::START), Representation::Plain);
        assert_eq!(&frame.logs[..], b"one\ntwo\n");
        let message = frame.message.as_ptr_range();
        assert!(message.contains(&frame.logs.as_ptr()));
        let entry = decode(&frame.message);
        assert_eq!((entry.name.as_str(), entry.replica), ("web", 3));
        assert_eq!(entry.logs, frame.logs);
        let cursor = entry.cursor.unwrap();
        assert_eq!(cursor.instance, "uid/web/7");
        assert_eq!((cursor.ordinal, cursor.offset), (2, 0));
        assert_eq!(cursor.time, Some(prost_types::Timestamp { seconds: 1, nanos: 5 }));
    }

    #[test]
    fn timestamps_prefix_each_line() {
        let frame = lines(&replica(), &instance(), &chunk(Position::START), Representation::Timestamped);
        let timestamp = "1970-01-01T00:00:01.000000005Z";
        assert_eq!(timestamp.len() + 1, TIMESTAMP_BYTES);
        assert_eq!(frame.logs, format!("{timestamp} one\n{timestamp} two\n"));
        let piece = Chunk {
            data: Bytes::from_static(b"end\n"),
            line_ends: Box::new([LineEnd {
                end: 4,
                time: LogTime::from_nanos(1),
                stream: Some(Stream::Stderr),
            }]),
            continues: true,
            start: Position::START.after_bytes(9),
            end: Position::START.after_line(LogTime::from_nanos(1)),
        };
        let frame = lines(&replica(), &instance(), &piece, Representation::Timestamped);
        assert_eq!(&frame.logs[..], b"end\n");
        let part = decode(&frame.message).part.unwrap();
        assert_eq!(
            (part.stream(), part.continues, part.more),
            (lease::line_part::Stream::Stderr, true, false)
        );
        // A whole line of the other stream, within a line of the merged output.
        let whole = Chunk { continues: false, ..piece };
        let frame = lines(&replica(), &instance(), &whole, Representation::Timestamped);
        assert_eq!(&frame.logs[..], b"1970-01-01T00:00:00.000000001Z end\n");
        assert_eq!(decode(&frame.message).part, None);
    }

    #[test]
    fn gap_has_count_and_resume_position() {
        let at = Position::START.after_line(LogTime::from_nanos(9));
        let body = Gap {
            cause: GapCause::Lag,
            lines: 12,
            bytes: 345,
            exact: true,
            from: None,
            to: Some(LogTime::from_nanos(10)),
        };
        let entry = decode(&gap(&replica(), Some((&instance(), at)), &body));
        assert_eq!(
            &entry.logs[..],
            b"[leasemux: 12 lines (345 bytes) missing here: the follower fell behind]\n"
        );
        let gap_field = entry.gap.unwrap();
        assert_eq!((gap_field.lines, gap_field.bytes, gap_field.exact), (12, 345, true));
        assert_eq!(gap_field.cause(), lease::gap::Cause::Lag);
        assert_eq!(
            (gap_field.from, gap_field.to),
            (None, Some(prost_types::Timestamp { seconds: 0, nanos: 10 }))
        );
        assert_eq!(entry.cursor.unwrap().ordinal, 1);
        let one = decode(&gap(&replica(), None, &Gap { lines: 1, ..body }));
        assert!(one.logs.starts_with(b"[leasemux: 1 line ("), "{:?}", one.logs);
    }

    /// Clients of the bare draft see these lines, and scripts look for them.
    #[test]
    fn recorded_gap_notices_are_unchanged() {
        const RECORDED: &str = include_str!("../../tests/surface/fixtures/gap-notices.txt");
        let mut notices = String::new();
        for cause in [GapCause::Lag, GapCause::Rotated, GapCause::Source, GapCause::Limit] {
            for (lines, bytes, exact) in
                [(1, 2, true), (12, 345, true), (0, 0, false), (1, 2, false), (12, 345, false)]
            {
                let body = Gap { cause, lines, bytes, exact, from: None, to: None };
                let entry = decode(&gap(&replica(), None, &body));
                notices.push_str(std::str::from_utf8(&entry.logs).unwrap());
            }
        }
        assert_eq!(notices, RECORDED);
    }

    #[test]
    fn event_has_no_log_bytes() {
        let body = Event {
            kind: Kind::Ended,
            instance: Some(instance()),
            time: LogTime::from_nanos(1),
            exit_code: Some(0),
            signal: None,
            reason: "Completed".into(),
            message: String::new(),
        };
        let entry = decode(&event(&replica(), &body));
        assert!(entry.logs.is_empty() && entry.cursor.is_none());
        let event = entry.event.unwrap();
        assert_eq!((event.kind(), event.exit_code, event.signal), (Kind::Ended, Some(0), None));
        assert_eq!(event.instance, "uid/web/7");
    }
}
