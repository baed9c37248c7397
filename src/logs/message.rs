//! The gRPC messages of a log stream: complete, length prefix included. Pure.
//!
//! A chunk is encoded once per representation, whatever the number of followers: they share the bytes. A
//! `Message` adds the attributes that metrics need, and a `Batch` is what the connection gets at once.

use bytes::Bytes;
use tokio::time::Instant;

use super::chunk::Chunk;
use crate::model::id::{Instance, Replica};
use crate::model::limits::STREAM_SEND_MAX_BYTES;
use crate::model::line::{GapCause, OutputStream, SourceGap};
use crate::model::position::{Cursor, Position};
use crate::model::proto::framed;
use crate::model::proto::lease::replica_event::Kind;
use crate::model::proto::lease::{self, ServiceLogs, ServiceLogsResponse};
use crate::model::time::LogTime;
use crate::model::view::Run;
use crate::stream::Parts;

/// Bytes of a line's timestamp: thirty characters and a space.
const TIMESTAMP_BYTES: usize = 31;

/// Upper bound on how much longer the length fields of a message become with timestamps.
const LENGTH_FIELDS_BYTES: usize = 8;

/// Field number of `cursor` in `ServiceLogs`.
const CURSOR_FIELD: u32 = 100;

/// Field number of `part` in `ServiceLogs`.
const PART_FIELD: u32 = 105;

/// Reason of the waiting event when no replica is deployed.
pub(super) const NOTHING_DEPLOYED: &str = "NothingDeployed";

const NOTHING_DEPLOYED_MESSAGE: &str = "no replica of a chosen service is deployed under this lease";

/// Reason of the event that a log cannot be followed.
pub(super) const FOLLOW_UNAVAILABLE: &str = "FollowUnavailable";

/// Message of that event. Gives no details of the node to a tenant.
const FOLLOW_UNAVAILABLE_MESSAGE: &str =
    "the node cannot follow this log at present; it is read every few seconds instead";

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
#[derive(Clone, Debug)]
pub(crate) struct Event(pub(super) lease::ReplicaEvent);

/// How an event changes its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunChange {
    Started,
    Ended,
}

/// A chunk as one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedLines {
    /// The message, length prefix included.
    pub message: Bytes,
    /// The log bytes within the message; shares its memory.
    pub logs: Bytes,
}

/// Content of a message that is encoded for one follower.
#[derive(Debug)]
pub(crate) enum Content {
    Lines(Instance, Chunk),
    /// With the position after it, if that is known.
    Gap(Option<(Instance, Position)>, Gap),
    /// With the run that it belongs to, if there is one.
    Event(Option<Instance>, Event),
    Cursor(Cursor),
}

/// One message and its attributes.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// Complete. Empty if the representation leaves it out; its gap counts all the same.
    pub(crate) bytes: Bytes,
    /// Lines that end in it.
    pub(crate) lines: u64,
    pub(crate) log_bytes: u64,
    pub(crate) gap: Option<Gap>,
}

/// Messages that go to the connection as one frame.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// It has room for one message only.
    pub(crate) is_minimal: bool,
    pub(crate) parts: Parts,
    pub(crate) bytes: usize,
    /// Bytes that are kept free for heartbeats.
    pub(crate) reserved: usize,
    /// Messages that begin in the batch, without heartbeats.
    pub(crate) messages: u64,
    /// Lines that end in these messages.
    pub(crate) lines: u64,
    pub(crate) log_bytes: u64,
    /// When the oldest live line was read, for the delivery delay. A backfill has no such delay.
    pub(crate) oldest: Option<Instant>,
    pub(crate) gaps: Vec<Gap>,
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
        Self(lease::ReplicaEvent {
            instance: run.instance.to_string(),
            time: to_proto_time(run.started),
            ..Self::of(Kind::Started)
        })
    }

    /// Returns `None` if the run has not ended.
    pub(crate) fn ended(run: &Run) -> Option<Self> {
        let end = run.end.clone()?;
        Some(Self(lease::ReplicaEvent {
            instance: run.instance.to_string(),
            time: to_proto_time(end.time),
            exit_code: end.exit_code,
            signal: end.signal,
            reason: end.reason,
            ..Self::of(Kind::Ended)
        }))
    }

    /// No run is running, but one is expected to. `reason` is a word for programs, `message` is for people.
    pub(crate) fn waiting(reason: String, message: String) -> Self {
        Self(lease::ReplicaEvent { reason, message, ..Self::of(Kind::Waiting) })
    }

    /// The log of a live run cannot be followed. Its lines are read every few seconds.
    pub(crate) fn follow_unavailable() -> Self {
        Self::waiting(FOLLOW_UNAVAILABLE.to_owned(), FOLLOW_UNAVAILABLE_MESSAGE.to_owned())
    }

    /// Whether it follows all lines of a log. The others come between lines.
    pub(crate) fn follows_log(&self) -> bool {
        self.0.reason != FOLLOW_UNAVAILABLE
    }

    /// No selected replica is deployed.
    pub(crate) fn nothing_deployed() -> Self {
        Self::waiting(NOTHING_DEPLOYED.to_owned(), NOTHING_DEPLOYED_MESSAGE.to_owned())
    }

    /// The replica is no longer part of the lease.
    pub(crate) fn gone() -> Self {
        Self(Self::of(Kind::Gone))
    }

    /// Returns how it changes its run, if it does.
    pub(crate) fn run_change(&self) -> Option<RunChange> {
        match self.0.kind() {
            Kind::Started => Some(RunChange::Started),
            Kind::Ended => Some(RunChange::Ended),
            _ => None,
        }
    }

    fn of(kind: Kind) -> lease::ReplicaEvent {
        lease::ReplicaEvent {
            kind: kind.into(),
            time: to_proto_time(LogTime::now()),
            ..lease::ReplicaEvent::default()
        }
    }
}

/// Encodes a chunk as one message, with or without times.
pub fn encode_lines(replica: &Replica, instance: &Instance, chunk: &Chunk, times: bool) -> EncodedLines {
    let lines = lines_entry(replica, instance, chunk, times);
    let length = lines.logs.len();
    // Prost writes fields in the order of their numbers: only cursor and part follow the log bytes.
    let trailing =
        lines.cursor.as_ref().map_or(0, |it| prost::encoding::message::encoded_len(CURSOR_FIELD, it))
            + lines.part.as_ref().map_or(0, |it| prost::encoding::message::encoded_len(PART_FIELD, it));
    let message = entry(lines);
    let end = message.len() - trailing;
    EncodedLines { logs: message.slice(end - length..end), message }
}

/// Returns the entry of a chunk, with or without times.
pub(super) fn lines_entry(replica: &Replica, instance: &Instance, chunk: &Chunk, times: bool) -> ServiceLogs {
    let logs = if times { timestamped(chunk) } else { chunk.data.clone() };
    let cursor = Some(to_proto_cursor(replica, instance, chunk.end));
    ServiceLogs { logs, cursor, part: part(chunk), ..named(replica) }
}

/// Returns an upper bound on the bytes that timestamps add to the message of `chunk`.
pub(crate) fn timestamps_max_bytes(chunk: &Chunk) -> usize {
    chunk.line_ends.len() * TIMESTAMP_BYTES + LENGTH_FIELDS_BYTES
}

/// Encodes a gap. `at` is the position after it, so that a client that resumes there does not read lines that
/// were reported as lost.
pub(crate) fn encode_gap(replica: &Replica, at: Option<(&Instance, Position)>, gap: &Gap) -> Bytes {
    entry(gap_entry(replica, at, gap))
}

/// Returns the entry of a gap, as [`encode_gap`] encodes it.
pub(super) fn gap_entry(replica: &Replica, at: Option<(&Instance, Position)>, gap: &Gap) -> ServiceLogs {
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
    ServiceLogs { logs: notice(gap).into(), cursor, gap: Some(body), ..named(replica) }
}

/// Encodes an event; one of no replica has no service name.
pub(crate) fn encode_event(replica: Option<&Replica>, event: Event) -> Bytes {
    entry(event_entry(replica, event))
}

/// Returns the entry of an event; one of no replica has no service name.
pub(super) fn event_entry(replica: Option<&Replica>, event: Event) -> ServiceLogs {
    ServiceLogs { event: Some(event.0), ..replica.map(named).unwrap_or_default() }
}

/// Encodes one response with the given cursors and nothing else.
pub(crate) fn encode_cursors<'a>(cursors: impl IntoIterator<Item = &'a Cursor>) -> Bytes {
    framed(&ServiceLogsResponse { services: cursors.into_iter().map(cursor_entry).collect() })
}

/// Returns the entry with a cursor and nothing else.
pub(super) fn cursor_entry(cursor: &Cursor) -> ServiceLogs {
    let position = to_proto_cursor(&cursor.replica, &cursor.instance, cursor.position);
    ServiceLogs { cursor: Some(position), ..named(&cursor.replica) }
}

/// Encodes a heartbeat, as [`heartbeat_entry`] returns it.
pub(super) fn encode_heartbeat(
    replica: Option<&Replica>,
    cursor: Option<&Cursor>,
    source: lease::SourceState,
) -> Bytes {
    entry(heartbeat_entry(replica, cursor, source))
}

/// Returns the entry of a heartbeat; one of no replica has no service name. `cursor` is the position after
/// the last entry.
pub(super) fn heartbeat_entry(
    replica: Option<&Replica>,
    cursor: Option<&Cursor>,
    source: lease::SourceState,
) -> ServiceLogs {
    let cursor = cursor.map(|cursor| to_proto_cursor(&cursor.replica, &cursor.instance, cursor.position));
    ServiceLogs { cursor, source: Some(source), ..replica.map(named).unwrap_or_default() }
}

fn named(replica: &Replica) -> ServiceLogs {
    ServiceLogs { name: replica.service.to_string(), replica: replica.index, ..ServiceLogs::default() }
}

fn entry(entry: ServiceLogs) -> Bytes {
    framed(&ServiceLogsResponse { services: vec![entry] })
}

/// Returns how the piece in `chunk` relates to its line; `None` for whole lines.
fn part(chunk: &Chunk) -> Option<lease::LinePart> {
    let stream = match chunk.stream() {
        Some(OutputStream::Stdout) => lease::line_part::Stream::Stdout,
        Some(OutputStream::Stderr) => lease::line_part::Stream::Stderr,
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
pub(super) fn notice(gap: &Gap) -> String {
    let why = match gap.cause {
        GapCause::Lag => "the follower fell behind",
        GapCause::Rotated => "the log was rotated away before it was read",
        GapCause::Source => "the source lost them",
        GapCause::Limit => "a limit of the gateway cut them",
    };
    let unit = if gap.lines == 1 { "line" } else { "lines" };
    match (gap.exact, gap.lines) {
        (true, lines) => format!("[leasemux: {lines} {unit} ({} bytes) missing here: {why}]\n", gap.bytes),
        (false, 0) => format!("[leasemux: lines may be missing here: {why}]\n"),
        (false, lines) => {
            format!("[leasemux: at least {lines} {unit} ({} bytes) missing here: {why}]\n", gap.bytes)
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

// === impl Message ===

impl Message {
    /// Creates a message without lines and gap.
    pub(crate) fn bare(bytes: Bytes) -> Self {
        Self { bytes, lines: 0, log_bytes: 0, gap: None }
    }
}

// === impl Batch ===

impl Batch {
    /// Creates a batch that begins with the remainder of a message, which was counted in the batch before.
    pub(crate) fn beginning_with(remainder: Option<Bytes>) -> Self {
        Self {
            bytes: remainder.as_ref().map_or(0, Bytes::len),
            parts: remainder.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Returns how many bytes are missing to a full batch. The last message may exceed them.
    pub(crate) fn room(&self) -> usize {
        let max_bytes = if self.is_minimal { 1 } else { STREAM_SEND_MAX_BYTES };
        max_bytes.saturating_sub(self.bytes + self.reserved)
    }

    /// Cuts its last message at `max_bytes`. Returns the remainder.
    pub(crate) fn cut(&mut self, max_bytes: usize) -> Option<Bytes> {
        let excess = self.bytes.checked_sub(max_bytes).filter(|excess| *excess > 0)?;
        let last = self.parts.last_mut()?;
        let remainder = last.split_off(last.len().saturating_sub(excess));
        self.bytes -= remainder.len();
        Some(remainder)
    }

    /// Appends a message; `read_at` is when the oldest line of a live message was read. A message that was
    /// left out only counts its gap.
    pub(crate) fn add(&mut self, message: Message, read_at: Option<Instant>) {
        self.gaps.extend(message.gap);
        if message.bytes.is_empty() {
            return;
        }
        self.bytes += message.bytes.len();
        self.messages += 1;
        self.lines += message.lines;
        self.log_bytes += message.log_bytes;
        self.oldest = match (self.oldest, read_at) {
            (Some(oldest), Some(read_at)) => Some(oldest.min(read_at)),
            (oldest, read_at) => oldest.or(read_at),
        };
        self.parts.push(message.bytes);
    }

    /// Appends a heartbeat, which does not count as a message.
    pub(crate) fn add_heartbeat(&mut self, heartbeat: Bytes) {
        self.bytes += heartbeat.len();
        self.parts.push(heartbeat);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::logs::chunk::LineEnd;
    use crate::model::proto::PREFIX_BYTES;
    use crate::model::view::RunEnd;

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
        let encoded = encode_lines(&replica(), &instance(), &chunk(Position::START), false);
        assert_eq!(&encoded.logs[..], b"one\ntwo\n");
        let message = encoded.message.as_ptr_range();
        assert!(message.contains(&encoded.logs.as_ptr()));
        let entry = decode(&encoded.message);
        assert_eq!((entry.name.as_str(), entry.replica), ("web", 3));
        assert_eq!(entry.logs, encoded.logs);
        let cursor = entry.cursor.unwrap();
        assert_eq!(cursor.instance, "uid/web/7");
        assert_eq!((cursor.ordinal, cursor.offset), (2, 0));
        assert_eq!(cursor.time, Some(prost_types::Timestamp { seconds: 1, nanos: 5 }));
    }

    #[test]
    fn timestamps_prefix_each_line() {
        let encoded = encode_lines(&replica(), &instance(), &chunk(Position::START), true);
        let timestamp = "1970-01-01T00:00:01.000000005Z";
        assert_eq!(timestamp.len() + 1, TIMESTAMP_BYTES);
        assert_eq!(encoded.logs, format!("{timestamp} one\n{timestamp} two\n"));
        let piece = Chunk {
            data: Bytes::from_static(b"end\n"),
            line_ends: Box::new([LineEnd {
                end: 4,
                time: LogTime::from_nanos(1),
                stream: Some(OutputStream::Stderr),
            }]),
            continues: true,
            start: Position::START.after_bytes(9),
            end: Position::START.after_line(LogTime::from_nanos(1)),
        };
        let encoded = encode_lines(&replica(), &instance(), &piece, true);
        assert_eq!(&encoded.logs[..], b"end\n");
        let part = decode(&encoded.message).part.unwrap();
        assert_eq!(
            (part.stream(), part.continues, part.more),
            (lease::line_part::Stream::Stderr, true, false)
        );
        // A whole line of the other stream, within a line of the merged output.
        let whole = Chunk { continues: false, ..piece };
        let encoded = encode_lines(&replica(), &instance(), &whole, true);
        assert_eq!(&encoded.logs[..], b"1970-01-01T00:00:00.000000001Z end\n");
        assert_eq!(decode(&encoded.message).part, None);
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
        let entry = decode(&encode_gap(&replica(), Some((&instance(), at)), &body));
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
        let one = decode(&encode_gap(&replica(), None, &Gap { lines: 1, ..body }));
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
                let entry = decode(&encode_gap(&replica(), None, &body));
                notices.push_str(std::str::from_utf8(&entry.logs).unwrap());
            }
        }
        assert_eq!(notices, RECORDED);
    }

    #[test]
    fn event_has_no_log_bytes() {
        let end = RunEnd {
            time: LogTime::from_nanos(1),
            exit_code: Some(0),
            signal: None,
            reason: "Completed".into(),
        };
        let run = Run {
            instance: instance(),
            started: LogTime::MIN,
            end: Some(end),
            log_is_gone: false,
            later_unknown: false,
        };
        let body = Event::ended(&run).unwrap();
        let entry = decode(&encode_event(Some(&replica()), body));
        assert!(entry.logs.is_empty() && entry.cursor.is_none());
        let event = entry.event.unwrap();
        assert_eq!((event.kind(), event.exit_code, event.signal), (Kind::Ended, Some(0), None));
        assert_eq!(event.instance, "uid/web/7");
    }

    proptest! {
        /// Every batch but the last is exactly full, and together they have all bytes.
        #[test]
        fn cut_keeps_every_byte(sizes in prop::collection::vec(1_usize..40, 1..60), max in 16_usize..64) {
            let mut source = sizes.iter().enumerate().map(|(i, size)| vec![u8::try_from(i).unwrap(); *size]);
            let all: Vec<u8> = source.clone().flatten().collect();
            let (mut sent, mut messages, mut remainder) = (Vec::new(), 0, None);
            loop {
                let mut batch = Batch::beginning_with(remainder.take());
                while batch.bytes < max && let Some(message) = source.next() {
                    batch.add(Message::bare(message.into()), None);
                }
                remainder = batch.cut(max);
                messages += batch.messages;
                let bytes: Vec<u8> = batch.parts.iter().flatten().copied().collect();
                prop_assert_eq!(bytes.len(), batch.bytes);
                prop_assert!(bytes.len() == max || remainder.is_none() && bytes.len() < max);
                sent.extend_from_slice(&bytes);
                if bytes.len() < max {
                    break;
                }
            }
            prop_assert_eq!(sent, all);
            prop_assert_eq!(messages, sizes.len() as u64);
        }
    }
}
