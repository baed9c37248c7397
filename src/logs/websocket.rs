//! Encodes log lines and notices as websocket text frames: one JSON object and a newline each. Pure.
//!
//! A server does not mask its frames, so the frames of a chunk are encoded once, and all followers share
//! their bytes.

use std::fmt::Display;

use bytes::Bytes;

use super::chunk::Chunk;
use super::message::{self, Gap};
use crate::model::id::{Replica, ServiceName};
use crate::model::label::{LabelValue as _, label};
use crate::model::proto::lease::ReplicaEvent;
use crate::model::proto::lease::replica_event::Kind;

/// Most bytes of a line in one frame. Escapes lengthen a line at most sixfold, and the strictest client
/// accepts messages of 1 MiB.
pub const FRAME_LINE_MAX_BYTES: usize = 64 * 1024;

/// First byte of a frame that is a whole text message: FIN and opcode 1 (RFC 6455 §5.2).
const TEXT_FRAME: u8 = 0x81;

/// Most bytes of the header of a frame without mask.
const HEADER_MAX_BYTES: usize = 10;

/// The name in notices about no single service.
const GATEWAY_NAME: &str = "leasemux";

/// U+FFFD in UTF-8: replaces invalid bytes of a line.
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// Encodes the lines of one replica.
#[derive(Clone, Debug)]
pub struct LineEncoder {
    /// The object up to the text of the line.
    head: Box<[u8]>,
    /// The object after a line's last text.
    tail: Box<[u8]>,
    /// The object after text that a later frame continues.
    tail_more: Box<[u8]>,
}

/// The subject of a notice.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NoticeSubject<'a> {
    /// One replica, with the name that its lines have.
    Replica { name: &'a str, replica: &'a Replica },
    /// The whole stream; `service` is the one that was asked for, if it was a single one.
    Stream { service: Option<&'a ServiceName> },
}

/// Information in a stream that has only lines: sent as a line in brackets, with its details under the key
/// `notice`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Notice<'a> {
    /// Lines are missing.
    Gap(&'a Gap),
    /// A run has started.
    Started { instance: &'a str },
    /// A run has ended.
    Ended { instance: &'a str, exit_code: Option<i32>, signal: Option<i32>, reason: &'a str },
    /// No run is running, but one is expected to.
    Waiting { reason: &'a str, message: &'a str },
    /// The replica is no longer part of the lease.
    Gone,
    /// The stream waits for a permit to read older lines.
    Wait,
    /// The request failed: a sentence, and the stable reason.
    Error { text: &'a str, reason: &'a str },
    /// The stream ends before its request is complete: a sentence, and the stable reason.
    End { text: &'a str, reason: &'a str },
}

label! {
    /// The kind of a notice.
    pub(crate) enum NoticeKind as "kind" {
        Gap = "gap",
        Started = "started",
        Ended = "ended",
        Waiting = "waiting",
        Gone = "gone",
        Wait = "wait",
        Error = "error",
        End = "end",
    }
}

/// Appends one notice to `out`, as a frame.
pub(crate) fn push_notice(subject: NoticeSubject<'_>, notice: &Notice<'_>, out: &mut Vec<u8>) {
    push_text_frame(out, 0, |out| {
        out.push(b'{');
        push_text(out, "name", subject.name());
        push_text(out, "message", &notice.message(subject));
        if let NoticeSubject::Replica { replica, .. } = subject {
            push_text(out, "service", replica.service.as_str());
            push_value(out, "replica", replica.index);
        }
        push_key(out, "notice");
        out.push(b'{');
        push_text(out, "kind", notice.kind().label());
        notice.push_details(out);
        out.extend_from_slice(b"}}\n");
    });
}

// === impl LineEncoder ===

impl LineEncoder {
    /// Creates an encoder of lines of `replica`, which have this `name`.
    pub fn new(name: &str, replica: &Replica) -> Self {
        let mut head = vec![b'{'];
        push_text(&mut head, "name", name);
        push_key(&mut head, "message");
        head.push(b'"');
        let rest = format!("\",\"service\":\"{}\",\"replica\":{}", replica.service, replica.index);
        Self {
            head: head.into(),
            tail: format!("{rest}}}\n").into_bytes().into(),
            tail_more: format!("{rest},\"more\":true}}\n").into_bytes().into(),
        }
    }

    /// Returns about how many bytes [`LineEncoder::push_line`] appends for each line in addition to its text.
    pub fn overhead_bytes(&self) -> usize {
        4 + self.head.len() + self.tail.len()
    }

    /// Encodes the lines of a chunk, or its piece of a line.
    pub fn encode_chunk(&self, chunk: &Chunk) -> Bytes {
        let overhead = chunk.line_ends.len() * self.overhead_bytes();
        let mut frames = Vec::with_capacity(chunk.data.len() + overhead);
        for (line, _) in chunk.iter() {
            self.push_line(line, chunk.is_unfinished(), &mut frames);
        }
        frames.into()
    }

    /// Appends a line to `out`, with or without its newline: as one frame, or as several if it is longer than
    /// [`FRAME_LINE_MAX_BYTES`]. `more`: it is a piece of a line that a later piece continues.
    pub fn push_line(&self, line: &[u8], more: bool, out: &mut Vec<u8>) {
        let mut rest = if more { line } else { without_line_end(line) };
        loop {
            let (text, after) = rest.split_at(text_end(rest));
            let tail = if more || !after.is_empty() { &self.tail_more } else { &self.tail };
            push_text_frame(out, self.head.len() + text.len() + tail.len(), |out| {
                out.extend_from_slice(&self.head);
                push_escaped_bytes(out, text);
                out.extend_from_slice(tail);
            });
            if after.is_empty() {
                return;
            }
            rest = after;
        }
    }
}

// === impl NoticeSubject ===

impl<'a> NoticeSubject<'a> {
    /// Returns the name of the frame. Clients drop frames whose name does not begin with the service that
    /// they asked for.
    fn name(self) -> &'a str {
        match self {
            Self::Replica { name, .. } => name,
            Self::Stream { service } => service.map_or(GATEWAY_NAME, ServiceName::as_str),
        }
    }
}

// === impl Notice ===

impl<'a> Notice<'a> {
    /// Returns the notice of an event; `None` if its kind is unknown.
    pub(crate) fn of_event(event: &'a ReplicaEvent) -> Option<Self> {
        let ReplicaEvent { instance, exit_code, signal, reason, message, .. } = event;
        Some(match event.kind() {
            Kind::Started => Self::Started { instance },
            Kind::Ended => Self::Ended { instance, exit_code: *exit_code, signal: *signal, reason },
            Kind::Waiting => Self::Waiting { reason, message },
            Kind::Gone => Self::Gone,
            Kind::Unspecified => return None,
        })
    }

    pub(crate) fn kind(&self) -> NoticeKind {
        match self {
            Self::Gap(_) => NoticeKind::Gap,
            Self::Started { .. } => NoticeKind::Started,
            Self::Ended { .. } => NoticeKind::Ended,
            Self::Waiting { .. } => NoticeKind::Waiting,
            Self::Gone => NoticeKind::Gone,
            Self::Wait => NoticeKind::Wait,
            Self::Error { .. } => NoticeKind::Error,
            Self::End { .. } => NoticeKind::End,
        }
    }

    /// Returns the line that people see.
    fn message(&self, subject: NoticeSubject<'_>) -> String {
        let replica = match subject {
            NoticeSubject::Replica { replica, .. } => format!("replica {}", replica.index),
            NoticeSubject::Stream { .. } => "the service".to_owned(),
        };
        let text = match self {
            Self::Gap(gap) => return message::notice(gap).trim_end().to_owned(),
            Self::Started { .. } => format!("{replica} started"),
            Self::Ended { exit_code, signal, reason, .. } => {
                let cause = match (signal, exit_code) {
                    (Some(signal), _) => format!(" by signal {signal}"),
                    (None, Some(code)) => format!(" with exit code {code}"),
                    (None, None) => String::new(),
                };
                format!("{replica} ended{cause}{}", in_brackets(reason))
            }
            Self::Waiting { reason, message: "" } => format!("{replica} is waiting{}", in_brackets(reason)),
            Self::Waiting { reason, message } => {
                format!("{replica} is waiting{}: {message}", in_brackets(reason))
            }
            Self::Gone => format!("{replica} is no longer part of the lease"),
            Self::Wait => "waiting for a backfill slot".to_owned(),
            Self::Error { text, .. } | Self::End { text, .. } => (*text).to_owned(),
        };
        format!("[leasemux: {text}]")
    }

    /// Appends the keys after `kind`.
    fn push_details(&self, out: &mut Vec<u8>) {
        match self {
            Self::Gap(gap) => {
                push_value(out, "lines", gap.lines);
                push_value(out, "bytes", gap.bytes);
                push_text(out, "cause", gap.cause.label());
                push_value(out, "exact", gap.exact);
            }
            Self::Started { instance } => push_text(out, "instance", instance),
            Self::Ended { instance, exit_code, signal, reason } => {
                push_text(out, "instance", instance);
                if let Some(code) = exit_code {
                    push_value(out, "exit_code", code);
                }
                if let Some(signal) = signal {
                    push_value(out, "signal", signal);
                }
                push_reason(out, reason);
            }
            Self::Waiting { reason, .. } | Self::Error { reason, .. } | Self::End { reason, .. } => {
                push_reason(out, reason);
            }
            Self::Gone | Self::Wait => {}
        }
    }
}

// === impl NoticeKind ===

impl NoticeKind {
    /// Whether a client that wants no other notices needs this one: lines are missing, or the stream fails or
    /// ends early.
    pub(crate) fn is_loss(self) -> bool {
        matches!(self, Self::Gap | Self::Error | Self::End)
    }
}

fn in_brackets(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}

fn push_reason(out: &mut Vec<u8>, reason: &str) {
    if !reason.is_empty() {
        push_text(out, "reason", reason);
    }
}

/// Appends a comma, unless it is the first key of its object, and the key.
fn push_key(out: &mut Vec<u8>, key: &str) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    out.push(b'"');
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
}

fn push_text(out: &mut Vec<u8>, key: &str, text: &str) {
    push_key(out, key);
    out.push(b'"');
    push_escaped(out, text.as_bytes());
    out.push(b'"');
}

/// Appends a number or a truth value.
fn push_value(out: &mut Vec<u8>, key: &str, value: impl Display) {
    push_key(out, key);
    out.extend_from_slice(value.to_string().as_bytes());
}

/// Appends a frame whose payload `write` appends. `min_bytes` is a lower bound of the payload's length.
fn push_text_frame(out: &mut Vec<u8>, min_bytes: usize, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    let (_, reserved) = frame_header(min_bytes);
    out.reserve(reserved + min_bytes);
    out.resize(start + reserved, 0);
    write(out);
    let payload = start + reserved..out.len();
    let (header, length) = frame_header(payload.len());
    if length > reserved {
        // Rare: escapes lengthened the line over the limit of the short header.
        out.resize(out.len() + length - reserved, 0);
        out.copy_within(payload, start + length);
    }
    out[start..start + length].copy_from_slice(&header[..length]);
}

/// Returns the header of a text frame with this many bytes of payload, and the header's length.
fn frame_header(payload: usize) -> ([u8; HEADER_MAX_BYTES], usize) {
    let mut header = [0; HEADER_MAX_BYTES];
    header[0] = TEXT_FRAME;
    if let Ok(short @ 0..=125) = u8::try_from(payload) {
        header[1] = short;
        (header, 2)
    } else if let Ok(medium) = u16::try_from(payload) {
        header[1] = 126;
        header[2..4].copy_from_slice(&medium.to_be_bytes());
        (header, 4)
    } else {
        header[1] = 127;
        header[2..].copy_from_slice(&(payload as u64).to_be_bytes());
        (header, HEADER_MAX_BYTES)
    }
}

/// Returns the line without its newline and one carriage return before it.
fn without_line_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Returns the end of the longest text for one frame that ends between characters.
fn text_end(line: &[u8]) -> usize {
    if line.len() <= FRAME_LINE_MAX_BYTES {
        return line.len();
    }
    // A character has at most three continuation bytes; more of them are not UTF-8.
    let is_start = |end: &usize| line[*end] & 0xc0 != 0x80;
    (FRAME_LINE_MAX_BYTES - 3..=FRAME_LINE_MAX_BYTES).rev().find(is_start).unwrap_or(FRAME_LINE_MAX_BYTES)
}

/// Appends the inside of a JSON string. Replaces invalid UTF-8.
fn push_escaped_bytes(out: &mut Vec<u8>, mut bytes: &[u8]) {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(_) => return push_escaped(out, bytes),
            Err(e) => {
                let (valid, invalid) = bytes.split_at(e.valid_up_to());
                push_escaped(out, valid);
                out.extend_from_slice(REPLACEMENT);
                bytes = &invalid[e.error_len().unwrap_or(invalid.len())..];
            }
        }
    }
}

/// Appends the inside of a JSON string: valid UTF-8. Escapes quotes, backslashes, control characters and DEL,
/// so that a terminal shows the frame without acting on it. Searches eight bytes at a time, since most text
/// has nothing to escape.
fn push_escaped(out: &mut Vec<u8>, text: &[u8]) {
    // Start of the text that is not appended yet.
    let mut plain = 0;
    let mut escape = |at: usize| {
        out.extend_from_slice(&text[plain..at]);
        push_escape(out, text[at]);
        plain = at + 1;
    };
    let (words, remainder) = text.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let mut marks = bytes_to_escape(u64::from_le_bytes(*word));
        while marks != 0 {
            escape(index * 8 + marks.trailing_zeros() as usize / 8);
            marks &= marks - 1;
        }
    }
    let end = words.len() * 8;
    for (index, byte) in remainder.iter().enumerate() {
        if matches!(byte, 0..0x20 | b'"' | b'\\' | 0x7f) {
            escape(end + index);
        }
    }
    out.extend_from_slice(&text[plain..]);
}

/// Marks the highest bit of each byte that must be escaped.
fn bytes_to_escape(word: u64) -> u64 {
    const LOW: u64 = u64::MAX / 0xff;
    const HIGH: u64 = LOW * 0x80;
    // Each sum stays within its byte: both sides are at most 0x7f.
    let low_bits = word & !HIGH;
    let is_not_control = low_bits + LOW * (0x80 - 0x20);
    let differs_from = |byte: u8| ((word ^ (LOW * u64::from(byte))) & !HIGH) + LOW * 0x7f;
    // A byte over 0x7f is never marked: it belongs to a longer character.
    let needs_none = is_not_control & differs_from(b'"') & differs_from(b'\\') & differs_from(0x7f);
    !(needs_none | word) & HIGH
}

fn push_escape(out: &mut Vec<u8>, byte: u8) {
    let hex = |digit: u8| if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\t' => b't',
        b'\n' => b'n',
        b'\r' => b'r',
        _ => return out.extend_from_slice(&[b'\\', b'u', b'0', b'0', hex(byte >> 4), hex(byte & 0xf)]),
    };
    out.extend_from_slice(&[b'\\', short]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::logs::chunk::LineEnd;
    use crate::model::line::GapCause;
    use crate::model::position::Position;
    use crate::model::time::LogTime;

    fn replica() -> Replica {
        Replica { service: "web".parse().unwrap(), index: 3 }
    }

    fn encoder() -> LineEncoder {
        LineEncoder::new("web-5cfc6c7b4b-4cl7z", &replica())
    }

    /// Splits text frames by their headers, and checks these.
    fn payloads(mut frames: &[u8]) -> Vec<&[u8]> {
        let mut payloads = Vec::new();
        while let [first, second, rest @ ..] = frames {
            assert_eq!(*first, TEXT_FRAME);
            let (length, rest) = match second {
                126 => (usize::from(u16::from_be_bytes(rest[..2].try_into().unwrap())), &rest[2..]),
                127 => {
                    (usize::try_from(u64::from_be_bytes(rest[..8].try_into().unwrap())).unwrap(), &rest[8..])
                }
                short => (usize::from(*short), rest),
            };
            let shortest = if length < 126 {
                2
            } else if length < 65_536 {
                4
            } else {
                10
            };
            assert_eq!(frames.len() - rest.len(), shortest, "header of {length} bytes");
            let (payload, rest) = rest.split_at(length);
            payloads.push(payload);
            frames = rest;
        }
        assert!(frames.is_empty());
        payloads
    }

    fn encode(line: &[u8], more: bool) -> Vec<Value> {
        let mut frames = Vec::new();
        encoder().push_line(line, more, &mut frames);
        let parse = |payload: &[u8]| {
            let json = payload.strip_suffix(b"\n").unwrap();
            assert!(json.iter().all(|byte| *byte >= 0x20 && *byte != 0x7f), "terminal-safe");
            serde_json::from_slice(json).unwrap()
        };
        payloads(&frames).into_iter().map(parse).collect()
    }

    fn message(line: &[u8]) -> String {
        let [object] = &encode(line, false)[..] else { panic!("not one frame") };
        object["message"].as_str().unwrap().to_owned()
    }

    #[test]
    fn line_becomes_one_frame() {
        let mut frames = Vec::new();
        encoder().push_line(b"hello <world>\r\n", false, &mut frames);
        let payload = "{\"name\":\"web-5cfc6c7b4b-4cl7z\",\"message\":\"hello <world>\",\"service\":\"web\",\
                       \"replica\":3}\n";
        assert_eq!(frames[..2], [0x81, u8::try_from(payload.len()).unwrap()]);
        assert_eq!(frames[2..], *payload.as_bytes());
    }

    #[test]
    fn line_text_is_escaped() {
        assert_eq!(message(b""), "");
        assert_eq!(message(b"\r"), "");
        assert_eq!(message(b"a\r\r\n"), "a\r");
        assert_eq!(
            message(b"tab\tquote\"slash\\bell\x07esc\x1b[0m del\x7f"),
            "tab\tquote\"slash\\bell\x07esc\x1b[0m del\x7f"
        );
        assert_eq!(message("é\u{2028}日本\u{10ffff}".as_bytes()), "é\u{2028}日本\u{10ffff}");
        assert_eq!(message(b"\xff\xc3(\xe2\x82"), "\u{fffd}\u{fffd}(\u{fffd}");
    }

    #[test]
    fn piece_of_line_has_more() {
        let [object] = &encode(b"piece\r", true)[..] else { panic!("not one frame") };
        assert_eq!((&object["message"], &object["more"]), (&json!("piece\r"), &json!(true)));
    }

    #[test]
    fn chunk_becomes_one_frame_per_line() {
        let time = LogTime::from_nanos(1);
        let line_ends = [4, 9].map(|end| LineEnd { end, time, stream: None });
        let mut chunk = Chunk {
            data: Bytes::from_static(b"one\ntwo\r\n"),
            line_ends: Box::new(line_ends),
            continues: false,
            start: Position::START,
            end: Position::START.after_line(time).after_line(time),
        };
        let frames = encoder().encode_chunk(&chunk);
        let messages: Vec<Value> =
            payloads(&frames).into_iter().map(|payload| serde_json::from_slice(payload).unwrap()).collect();
        assert_eq!([&messages[0]["message"], &messages[1]["message"]], ["one", "two"]);
        chunk.line_ends = Box::new([LineEnd { end: 9, time, stream: None }]);
        chunk.end = Position::START.after_bytes(9);
        let frames = encoder().encode_chunk(&chunk);
        assert!(payloads(&frames)[0].ends_with(b",\"more\":true}\n"));
    }

    #[test]
    fn long_line_is_cut_between_characters() {
        let whole = vec![b'x'; FRAME_LINE_MAX_BYTES];
        assert_eq!(encode(&whole, false).len(), 1);
        // The limit is within the second character, the third and so on.
        for before in 1..6 {
            let line =
                format!("{}{}", "y".repeat(FRAME_LINE_MAX_BYTES - before), "日本\u{10ffff}".repeat(50_000));
            let objects = encode(line.as_bytes(), false);
            let mut joined = String::new();
            for (number, object) in objects.iter().enumerate() {
                let text = object["message"].as_str().unwrap();
                assert!(
                    text.len() <= FRAME_LINE_MAX_BYTES && text.len() > FRAME_LINE_MAX_BYTES - 4
                        || number + 1 == objects.len()
                );
                assert_eq!(object.get("more").is_some(), number + 1 < objects.len());
                joined.push_str(text);
            }
            assert_eq!(joined, line);
        }
        // No character begins near the limit.
        assert_eq!(encode(&vec![0x80; FRAME_LINE_MAX_BYTES + 1], false).len(), 2);
    }

    #[test]
    fn worst_line_stays_below_one_mebibyte() {
        for byte in [0x01, 0xff] {
            let mut frames = Vec::new();
            encoder().push_line(&vec![byte; FRAME_LINE_MAX_BYTES], false, &mut frames);
            assert_eq!(payloads(&frames).len(), 1);
            assert!(frames.len() < 1 << 20);
        }
    }

    #[test]
    fn header_grows_with_escapes() {
        // Around both limits of the header's length.
        let overhead = encoder().overhead_bytes() - 4;
        for length in (0..140).chain(65_400 - overhead..65_540 - overhead) {
            for escapes in [0, 1, 3, 20] {
                let mut line = vec![b'x'; length];
                line.extend(vec![b'"'; escapes]);
                assert_eq!(message(&line).len(), line.len());
            }
        }
    }

    proptest! {
        #[test]
        fn any_line_decodes_to_its_text(line in prop::collection::vec(prop_oneof![any::<u8>(), 0x20..0x7f_u8], 0..300)) {
            let text = String::from_utf8_lossy(&line);
            let text = text.strip_suffix('\n').unwrap_or(&text);
            prop_assert_eq!(message(&line), text.strip_suffix('\r').unwrap_or(text));
        }

        #[test]
        fn marks_are_exact(word in any::<[u8; 8]>()) {
            let marks = bytes_to_escape(u64::from_le_bytes(word)).to_le_bytes();
            for (mark, byte) in marks.into_iter().zip(word) {
                prop_assert_eq!(mark == 0x80, matches!(byte, 0..0x20 | b'"' | b'\\' | 0x7f));
            }
        }
    }

    fn notice(subject: NoticeSubject<'_>, notice: &Notice<'_>) -> Value {
        let mut frames = Vec::new();
        push_notice(subject, notice, &mut frames);
        let [payload] = payloads(&frames)[..] else { panic!("not one frame") };
        assert!(payload.ends_with(b"\n"));
        serde_json::from_slice(payload).unwrap()
    }

    #[test]
    fn notices_have_text_and_keys() {
        let replica = replica();
        let subject = NoticeSubject::Replica { name: "web-0", replica: &replica };
        let object = |text: &str, notice: Value| {
            json!({ "name": "web-0", "message": format!("[leasemux: {text}]"), "service": "web", "replica": 3,
                    "notice": notice })
        };
        let instance = "uid/web/7";
        let gap = Gap { cause: GapCause::Lag, lines: 12, bytes: 345, exact: true, from: None, to: None };
        assert_eq!(
            notice(subject, &Notice::Gap(&gap)),
            object(
                "12 lines (345 bytes) missing here: the follower fell behind",
                json!({ "kind": "gap", "lines": 12, "bytes": 345, "cause": "lag", "exact": true })
            )
        );
        assert_eq!(
            notice(subject, &Notice::Started { instance }),
            object("replica 3 started", json!({ "kind": "started", "instance": "uid/web/7" }))
        );
        let ended = Notice::Ended { instance, exit_code: Some(137), signal: None, reason: "OOMKilled" };
        assert_eq!(
            notice(subject, &ended),
            object(
                "replica 3 ended with exit code 137 (OOMKilled)",
                json!({ "kind": "ended", "instance": "uid/web/7", "exit_code": 137, "reason": "OOMKilled" })
            )
        );
        let mut event =
            ReplicaEvent { instance: instance.to_owned(), signal: Some(9), ..ReplicaEvent::default() };
        assert!(Notice::of_event(&event).is_none());
        event.set_kind(Kind::Ended);
        let killed = Notice::of_event(&event).unwrap();
        assert_eq!(
            notice(subject, &killed),
            object(
                "replica 3 ended by signal 9",
                json!({ "kind": "ended", "instance": "uid/web/7", "signal": 9 })
            )
        );
        let waiting = Notice::Waiting { reason: "CrashLoopBackOff", message: "back-off 10s" };
        assert_eq!(
            notice(subject, &waiting),
            object(
                "replica 3 is waiting (CrashLoopBackOff): back-off 10s",
                json!({ "kind": "waiting", "reason": "CrashLoopBackOff" })
            )
        );
        assert_eq!(
            notice(subject, &Notice::Gone),
            object("replica 3 is no longer part of the lease", json!({ "kind": "gone" }))
        );
    }

    #[test]
    fn notices_about_stream_have_service_as_name() {
        let service = "web".parse().unwrap();
        assert_eq!(
            notice(NoticeSubject::Stream { service: Some(&service) }, &Notice::Wait),
            json!({ "name": "web", "message": "[leasemux: waiting for a backfill slot]",
                    "notice": { "kind": "wait" } })
        );
        let error = Notice::Error { text: "lease not found", reason: "LEASE_NOT_FOUND" };
        assert_eq!(
            notice(NoticeSubject::Stream { service: None }, &error),
            json!({ "name": "leasemux", "message": "[leasemux: lease not found]",
                    "notice": { "kind": "error", "reason": "LEASE_NOT_FOUND" } })
        );
        let end = Notice::End { text: "the gateway is shutting down", reason: "DRAINING" };
        assert_eq!(
            notice(NoticeSubject::Stream { service: None }, &end)["message"],
            "[leasemux: the gateway is shutting down]"
        );
    }

    #[test]
    fn loss_notices_are_gap_error_and_end() {
        let loss: Vec<_> =
            NoticeKind::ALL.iter().filter(|kind| kind.is_loss()).map(|kind| kind.label()).collect();
        assert_eq!(loss, ["gap", "error", "end"]);
    }
}
