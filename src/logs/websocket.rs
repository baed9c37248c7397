//! Encodes log lines and notices as websocket text frames: one JSON object and a newline each. Pure.
//!
//! A server does not mask its frames, so the frames of a chunk are encoded once, and all followers share
//! their bytes.

use std::fmt::Display;
use std::io::Write as _;

use bytes::Bytes;

use super::chunk::{Chunk, text_end};
use super::notice::{Details, Notice, Notices};
use crate::model::id::{Replica, ServiceName};
use crate::model::label::LabelValue as _;

/// Most bytes of a line in one frame. Escapes lengthen a line at most sixfold, and the strictest client
/// accepts messages of 1 MiB.
pub const FRAME_LINE_MAX_BYTES: usize = 64 * 1024;

/// First byte of a frame that is a whole text message: FIN and opcode 1 (RFC 6455 §5.2).
const TEXT_FRAME: u8 = 0x81;

/// Most bytes of the header of a frame without mask.
const HEADER_MAX_BYTES: usize = 10;

/// The name in notices about no single service.
const GATEWAY_NAME: &str = "leasemux";

/// First byte of U+0080 to U+00BF in UTF-8. The first 32 of them are the control characters C1; the second
/// byte is their code.
const C1_LEAD: u8 = 0xc2;

/// U+FFFD in UTF-8: replaces invalid bytes of a line.
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// Encodes the lines of one replica. Made for each chunk, in one allocation.
#[derive(Clone, Debug)]
pub struct LineEncoder {
    /// The parts of an object around the text of its line: `head`, `tail` and `tail_more`.
    parts: Vec<u8>,
    head_end: usize,
    tail_end: usize,
}

/// The subject of a notice.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NoticeSubject<'a> {
    /// One replica, with the name that its lines have.
    Replica { name: &'a str, replica: &'a Replica },
    /// The whole stream; `service` is the one that was asked for, if it was a single one.
    Stream { service: Option<&'a ServiceName> },
}

/// Appends `text` to `out`, as a frame.
pub(crate) fn push_text_message(text: &[u8], out: &mut Vec<u8>) {
    push_text_frame(out, text.len(), |out| out.extend_from_slice(text));
}

/// Encodes a notice as a frame, with its details under the key `notice`. Returns nothing if `notices` does
/// not include it.
pub(crate) fn notice(subject: NoticeSubject<'_>, notice: &Notice<'_>, notices: Notices) -> Bytes {
    if !notices.includes(notice.kind) {
        return Bytes::new();
    }
    let mut frame = Vec::new();
    push_text_frame(&mut frame, 0, |out| {
        out.push(b'{');
        push_text(out, "name", subject.name());
        push_text(out, "message", &notice.line());
        if let NoticeSubject::Replica { replica, .. } = subject {
            push_text(out, "service", replica.service.as_str());
            push_value(out, "replica", replica.index);
        }
        push_key(out, "notice");
        out.push(b'{');
        push_text(out, "kind", notice.kind.label());
        push_details(out, notice.details);
        out.extend_from_slice(b"}}\n");
    });
    frame.into()
}

// === impl LineEncoder ===

impl LineEncoder {
    /// Creates an encoder of lines of `replica`, which have this `name`.
    pub fn new(name: &str, replica: &Replica) -> Self {
        let mut parts = Vec::with_capacity(2 * Self::overhead_max_bytes(name, replica));
        parts.push(b'{');
        push_text(&mut parts, "name", name);
        push_key(&mut parts, "message");
        parts.push(b'"');
        let head_end = parts.len();
        parts.push(b'"');
        push_text(&mut parts, "service", replica.service.as_str());
        push_value(&mut parts, "replica", replica.index);
        let end = parts.len();
        parts.extend_from_slice(b"}\n");
        let tail_end = parts.len();
        parts.extend_from_within(head_end..end);
        parts.extend_from_slice(b",\"more\":true}\n");
        Self { parts, head_end, tail_end }
    }

    /// The object up to the text of the line.
    fn head(&self) -> &[u8] {
        &self.parts[..self.head_end]
    }

    /// The object after a line's last text.
    fn tail(&self) -> &[u8] {
        &self.parts[self.head_end..self.tail_end]
    }

    /// The object after text that a later frame continues.
    fn tail_more(&self) -> &[u8] {
        &self.parts[self.tail_end..]
    }

    /// Returns an upper bound on the bytes of a frame besides the text of its line.
    pub(crate) fn overhead_max_bytes(name: &str, replica: &Replica) -> usize {
        // Keys and punctuation are 62 bytes, an index has at most ten digits. Names are not escaped.
        HEADER_MAX_BYTES + name.len() + replica.service.as_str().len() + 80
    }

    /// Returns about how many bytes [`LineEncoder::push_line`] appends for each line in addition to its text.
    pub fn overhead_bytes(&self) -> usize {
        4 + self.tail_end
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
        let head = self.head();
        let mut rest = if more { line } else { without_line_end(line) };
        loop {
            let (text, after) = rest.split_at(text_end(rest, FRAME_LINE_MAX_BYTES));
            let tail = if more || !after.is_empty() { self.tail_more() } else { self.tail() };
            push_text_frame(out, head.len() + text.len() + tail.len(), |out| {
                out.extend_from_slice(head);
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
    pub(super) fn name(self) -> &'a str {
        match self {
            Self::Replica { name, .. } => name,
            Self::Stream { service } => service.map_or(GATEWAY_NAME, ServiceName::as_str),
        }
    }
}

/// Appends the keys after `kind`.
fn push_details(out: &mut Vec<u8>, details: Details<'_>) {
    match details {
        Details::None => {}
        Details::Gap(gap) => {
            push_value(out, "lines", gap.lines);
            push_value(out, "bytes", gap.bytes);
            push_text(out, "cause", gap.cause.label());
            push_value(out, "exact", gap.exact);
        }
        Details::Event(event) => {
            push_text_unless_empty(out, "instance", &event.instance);
            if let Some(code) = event.exit_code {
                push_value(out, "exit_code", code);
            }
            if let Some(signal) = event.signal {
                push_value(out, "signal", signal);
            }
            push_text_unless_empty(out, "reason", &event.reason);
        }
        Details::Reason(reason) => push_text_unless_empty(out, "reason", reason),
    }
}

fn push_text_unless_empty(out: &mut Vec<u8>, key: &str, text: &str) {
    if !text.is_empty() {
        push_text(out, key, text);
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
    // Writing to a vector cannot fail.
    let _ = write!(out, "{value}");
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

/// Appends the inside of a JSON string: valid UTF-8. Escapes quotes, backslashes and all control characters
/// (C0, DEL and C1), so that a terminal shows the frame without acting on it. Searches eight bytes at a time,
/// since most text has nothing to escape.
fn push_escaped(out: &mut Vec<u8>, text: &[u8]) {
    // Start of the text that is not appended yet.
    let mut plain = 0;
    let mut escape = |at: usize| {
        let (code, length) = match text[at..] {
            [C1_LEAD, code @ 0x80..=0x9f, ..] => (code, 2),
            // Another character of two bytes.
            [C1_LEAD, ..] | [] => return,
            [code, ..] => (code, 1),
        };
        out.extend_from_slice(&text[plain..at]);
        push_escape(out, code);
        plain = at + length;
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
        if matches!(*byte, 0..0x20 | b'"' | b'\\' | 0x7f | C1_LEAD) {
            escape(end + index);
        }
    }
    out.extend_from_slice(&text[plain..]);
}

/// Marks the highest bit of each byte that must be escaped, or that may begin a character to escape.
fn bytes_to_escape(word: u64) -> u64 {
    const LOW: u64 = u64::MAX / 0xff;
    const HIGH: u64 = LOW * 0x80;
    // Each sum stays within its byte: both sides are at most 0x7f.
    let low_bits = word & !HIGH;
    let is_not_control = low_bits + LOW * (0x80 - 0x20);
    let differs_from = |byte: u8| ((word ^ (LOW * u64::from(byte))) & !HIGH) + LOW * 0x7f;
    let needs_none = is_not_control & differs_from(b'"') & differs_from(b'\\') & differs_from(0x7f);
    // Other bytes over 0x7f are never marked: they belong to a longer character.
    (!(needs_none | word) | (!differs_from(C1_LEAD) & word)) & HIGH
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
pub(super) mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;
    use serde_json::{Value, json};
    use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket};

    use super::*;
    use crate::logs::chunk::LineEnd;
    use crate::logs::message::Gap;
    use crate::logs::notice::NoticeKind;
    use crate::model::line::GapCause;
    use crate::model::position::Position;
    use crate::model::proto::lease::ReplicaEvent;
    use crate::model::proto::lease::replica_event::Kind;
    use crate::model::time::LogTime;

    /// Decodes whole frames with an independent implementation.
    pub(in crate::logs) fn decode(frames: &[u8]) -> Vec<Value> {
        let count = payloads(frames).len();
        let mut socket = WebSocket::from_raw_socket(Cursor::new(frames.to_vec()), Role::Client, None);
        let decoded = (0..count).map(|_| socket.read().unwrap().into_text().unwrap());
        decoded.map(|text| serde_json::from_str(&text).unwrap()).collect()
    }

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
                prop_assert_eq!(mark == 0x80, matches!(byte, 0..0x20 | b'"' | b'\\' | 0x7f | C1_LEAD));
            }
        }

        #[test]
        fn frame_has_no_control_characters(line in "[a-d\u{7d}-\u{a1}\u{0}-\u{22}\u{c0}é]{0,40}") {
            let mut frame = Vec::new();
            encoder().push_line(line.as_bytes(), true, &mut frame);
            let [payload] = payloads(&frame)[..] else { panic!("not one frame") };
            let text = std::str::from_utf8(payload).unwrap();
            prop_assert!(!text.trim_end_matches('\n').contains(char::is_control), "{text:?}");
            let object: Value = serde_json::from_str(text).unwrap();
            prop_assert_eq!(&object["message"], &line);
        }
    }

    fn notice_object(subject: NoticeSubject<'_>, of: &Notice<'_>) -> Value {
        let frame = notice(subject, of, Notices::All);
        let [payload] = payloads(&frame)[..] else { panic!("not one frame") };
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
        let gap = Gap { cause: GapCause::Lag, lines: 12, bytes: 345, exact: true, from: None, to: None };
        assert_eq!(
            notice_object(subject, &Notice::of_gap(&gap)),
            object(
                "12 lines (345 bytes) missing here: the follower fell behind",
                json!({ "kind": "gap", "lines": 12, "bytes": 345, "cause": "lag", "exact": true })
            )
        );
        let of_event = |kind: Kind, event: ReplicaEvent| {
            let event = ReplicaEvent { kind: kind.into(), ..event };
            notice_object(subject, &Notice::of_event(Some(3), &event).unwrap())
        };
        let run = || ReplicaEvent { instance: "uid/web/7".to_owned(), ..ReplicaEvent::default() };
        assert_eq!(
            of_event(Kind::Started, run()),
            object("replica 3 started", json!({ "kind": "started", "instance": "uid/web/7" }))
        );
        let ended = ReplicaEvent { exit_code: Some(137), reason: "OOMKilled".to_owned(), ..run() };
        assert_eq!(
            of_event(Kind::Ended, ended),
            object(
                "replica 3 ended with exit code 137 (OOMKilled)",
                json!({ "kind": "ended", "instance": "uid/web/7", "exit_code": 137, "reason": "OOMKilled" })
            )
        );
        assert_eq!(
            of_event(Kind::Ended, ReplicaEvent { signal: Some(9), ..run() }),
            object(
                "replica 3 ended with signal 9",
                json!({ "kind": "ended", "instance": "uid/web/7", "signal": 9 })
            )
        );
        let (reason, message) = ("CrashLoopBackOff".to_owned(), "back-off 10s".to_owned());
        assert_eq!(
            of_event(Kind::Waiting, ReplicaEvent { reason, message, ..ReplicaEvent::default() }),
            object(
                "replica 3 is waiting (CrashLoopBackOff): back-off 10s",
                json!({ "kind": "waiting", "reason": "CrashLoopBackOff" })
            )
        );
        assert_eq!(
            of_event(Kind::Gone, ReplicaEvent::default()),
            object("replica 3 is no longer part of the lease", json!({ "kind": "gone" }))
        );
    }

    #[test]
    fn notices_about_stream_have_service_as_name() {
        let service = "web".parse().unwrap();
        assert_eq!(
            notice_object(NoticeSubject::Stream { service: Some(&service) }, &Notice::wait()),
            json!({ "name": "web", "message": "[leasemux: waiting for a backfill slot]",
                    "notice": { "kind": "wait" } })
        );
        let error = Notice::new(NoticeKind::Error, "lease not found").with_reason("LEASE_NOT_FOUND");
        assert_eq!(
            notice_object(NoticeSubject::Stream { service: None }, &error),
            json!({ "name": "leasemux", "message": "[leasemux: lease not found]",
                    "notice": { "kind": "error", "reason": "LEASE_NOT_FOUND" } })
        );
        let end = Notice::new(NoticeKind::End, "the gateway is shutting down").with_reason("DRAINING");
        assert_eq!(
            notice_object(NoticeSubject::Stream { service: None }, &end)["message"],
            "[leasemux: the gateway is shutting down]"
        );
        assert!(notice(NoticeSubject::Stream { service: None }, &end, Notices::None).is_empty());
    }
}
