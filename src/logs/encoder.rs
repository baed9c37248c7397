//! Encodes what a follower of one replica is sent, in its representation. Pure.
//!
//! A message is empty if the representation leaves it out: notices that were not asked for, and cursors where
//! the protocol has none.

use std::borrow::Cow;

use bytes::Bytes;

use super::chunk::Chunk;
use super::entries;
use super::entry_name::{NameStyle, entry_name};
use super::message::{self, Event, Gap};
use super::notice::Notice;
use super::published;
use super::representation::Representation;
use super::websocket::{self, LineEncoder, NoticeSubject};
use crate::model::id::{Instance, Replica, ServiceName};
use crate::model::position::{Cursor, Position};
use crate::model::proto::lease::SourceState;

/// Upper bound on a notice besides its details: the sentence, of which each character may be escaped, the
/// names and the keys.
const NOTICE_MAX_BYTES: usize = 4 * 1_024;

/// Upper bound on how much longer text becomes in a JSON string: `\u001b` for one byte.
const ESCAPE_MAX_BYTES: usize = 6;

/// Upper bound on the tags and lengths of a published entry.
const PUBLISHED_OVERHEAD_BYTES: usize = 32;

/// Encodes for the followers of one replica that have the same representation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encoder<'a> {
    pub(crate) replica: &'a Replica,
    pub(crate) names: NameStyle,
    pub(crate) representation: Representation,
}

// === impl Encoder ===

impl Encoder<'_> {
    /// Encodes a chunk.
    pub(crate) fn lines(&self, instance: &Instance, chunk: &Chunk) -> Bytes {
        let name = || self.name(Some(instance));
        match self.representation {
            Representation::Plain => message::encode_lines(self.replica, instance, chunk, false).message,
            Representation::Timestamped => message::encode_lines(self.replica, instance, chunk, true).message,
            Representation::WebSocket(_) => LineEncoder::new(&name(), self.replica).encode_chunk(chunk),
            Representation::Published(_) => published::lines(&name(), chunk),
            Representation::Entries => {
                entries::frame(&message::lines_entry(self.replica, instance, chunk, true))
            }
        }
    }

    /// Returns an upper bound on the length of [`Encoder::lines`], without encoding them. Their plain message
    /// has the length `plain`.
    pub(crate) fn lines_max_bytes(&self, instance: Option<&Instance>, chunk: &Chunk, plain: usize) -> usize {
        let name = || self.name(instance);
        let data = chunk.data.len();
        match self.representation {
            Representation::Plain => plain,
            Representation::Timestamped => plain + message::timestamps_max_bytes(chunk),
            Representation::WebSocket(_) => {
                // A chunk is smaller than the text of a frame, so that each line is one frame.
                let overhead = LineEncoder::overhead_max_bytes(&name(), self.replica);
                data * ESCAPE_MAX_BYTES + chunk.line_ends.len() * overhead
            }
            Representation::Published(_) => data + name().len() + PUBLISHED_OVERHEAD_BYTES,
            Representation::Entries => {
                data * ESCAPE_MAX_BYTES + entries::overhead_max_bytes(self.replica, instance, chunk)
            }
        }
    }

    /// Encodes a gap. `at` is the position after it. `within_line`: the message before ended within a line.
    pub(crate) fn gap(&self, at: Option<(&Instance, Position)>, gap: &Gap, within_line: bool) -> Bytes {
        let instance = at.map(|(instance, _)| instance);
        match self.representation {
            Representation::Plain | Representation::Timestamped => message::encode_gap(self.replica, at, gap),
            Representation::Entries => entries::frame(&message::gap_entry(self.replica, at, gap)),
            Representation::WebSocket(_) | Representation::Published(_) => {
                self.notice(instance, &Notice::of_gap(gap), within_line)
            }
        }
    }

    /// Encodes an event of the run of `instance`, if there is one.
    pub(crate) fn event(&self, instance: Option<&Instance>, event: &Event, within_line: bool) -> Bytes {
        match self.representation {
            Representation::Plain | Representation::Timestamped => {
                message::encode_event(Some(self.replica), event.clone())
            }
            Representation::Entries => {
                entries::frame(&message::event_entry(Some(self.replica), event.clone()))
            }
            Representation::WebSocket(_) | Representation::Published(_) => {
                let notice = Notice::of_event(Some(self.replica.index), &event.0);
                notice.map(|notice| self.notice(instance, &notice, within_line)).unwrap_or_default()
            }
        }
    }

    /// Returns an upper bound on the length of a gap or event whose plain message has the length `plain`.
    pub(crate) fn notice_max_bytes(&self, plain: usize) -> usize {
        match self.representation {
            Representation::Plain | Representation::Timestamped => plain,
            Representation::WebSocket(_) | Representation::Published(_) | Representation::Entries => {
                NOTICE_MAX_BYTES + ESCAPE_MAX_BYTES * plain
            }
        }
    }

    fn notice(&self, instance: Option<&Instance>, notice: &Notice<'_>, within_line: bool) -> Bytes {
        let name = self.name(instance);
        let subject = NoticeSubject::Replica { name: &name, replica: self.replica };
        encode_notice(self.representation, subject, notice, within_line)
    }

    fn name<'b>(&self, instance: Option<&'b Instance>) -> Cow<'b, str> {
        entry_name(self.names, self.replica, instance.and_then(Instance::pod_name))
    }
}

/// Encodes the given cursors and nothing else.
pub(crate) fn cursors<'a>(
    representation: Representation,
    cursors: impl IntoIterator<Item = &'a Cursor>,
) -> Bytes {
    match representation {
        Representation::Plain | Representation::Timestamped => message::encode_cursors(cursors),
        Representation::Entries => entries::frames(cursors.into_iter().map(message::cursor_entry)),
        Representation::WebSocket(_) | Representation::Published(_) => Bytes::new(),
    }
}

/// Encodes a heartbeat; one of no replica has no service name. `cursor` is the position after the last entry.
/// Protocols without heartbeats get nothing.
pub(crate) fn heartbeat(
    representation: Representation,
    replica: Option<&Replica>,
    cursor: Option<&Cursor>,
    source: SourceState,
) -> Bytes {
    match representation {
        Representation::Plain | Representation::Timestamped => {
            message::encode_heartbeat(replica, cursor, source)
        }
        Representation::Entries => entries::frame(&message::heartbeat_entry(replica, cursor, source)),
        Representation::WebSocket(_) | Representation::Published(_) => Bytes::new(),
    }
}

/// Encodes that no selected replica is deployed. `service`: the only service that was asked for, if it was
/// one.
pub(crate) fn nothing_deployed(representation: Representation, service: Option<&ServiceName>) -> Bytes {
    let event = Event::nothing_deployed();
    match representation {
        Representation::Plain | Representation::Timestamped => message::encode_event(None, event),
        Representation::Entries => entries::frame(&message::event_entry(None, event)),
        Representation::WebSocket(_) | Representation::Published(_) => {
            let notice = Notice::of_event(None, &event.0);
            let subject = NoticeSubject::Stream { service };
            notice.map(|notice| encode_notice(representation, subject, &notice, false)).unwrap_or_default()
        }
    }
}

/// Encodes that the stream waits. Only websockets of lines have this notice.
pub(crate) fn wait(representation: Representation, service: Option<&ServiceName>) -> Bytes {
    match representation {
        Representation::WebSocket(notices) => {
            websocket::notice(NoticeSubject::Stream { service }, &Notice::wait(), notices)
        }
        _ => Bytes::new(),
    }
}

fn encode_notice(
    representation: Representation,
    subject: NoticeSubject<'_>,
    notice: &Notice<'_>,
    within_line: bool,
) -> Bytes {
    match representation {
        Representation::WebSocket(notices) => websocket::notice(subject, notice, notices),
        Representation::Published(notices) => {
            published::notice(subject.name(), notice, notices, within_line).unwrap_or_default()
        }
        Representation::Plain | Representation::Timestamped | Representation::Entries => Bytes::new(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;
    use prost::Message as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::logs::chunk::Chunker;
    use crate::logs::notice::Notices;
    use crate::logs::websocket::tests::decode;
    use crate::model::entry_json;
    use crate::model::limits::CHUNK_MAX_BYTES;
    use crate::model::line::{GapCause, Line, LineBatch};
    use crate::model::proto::lease::ServiceLogsResponse;
    use crate::model::proto::unframed;
    use crate::model::time::LogTime;

    const WEBSOCKET: Representation = Representation::WebSocket(Notices::All);
    const PUBLISHED: Representation = Representation::Published(Notices::All);

    fn replica() -> Replica {
        Replica { service: "web".parse().unwrap(), index: 3 }
    }

    fn instance() -> Instance {
        Instance::new("uid", "web", 7).unwrap().with_pod_name("web-5cfc6c7b4b-4cl7z")
    }

    fn encoder(replica: &Replica, representation: Representation) -> Encoder<'_> {
        Encoder { replica, names: NameStyle::Pod, representation }
    }

    /// Groups lines, which have no newlines, into chunks.
    fn chunks(lines: &[String]) -> Vec<Chunk> {
        let (mut data, mut ends, mut after) = (Vec::new(), Vec::new(), Position::START);
        for line in lines {
            data.extend_from_slice(line.as_bytes());
            data.push(b'\n');
            let time = LogTime::from_nanos(1);
            after = after.after_line(time);
            ends.push(Line::whole(data.len(), time, after));
        }
        let (mut chunker, mut chunks) = (Chunker::new(Position::START), Vec::new());
        chunker.push(&LineBatch { data: data.into(), lines: ends }, &mut chunks);
        chunks.extend(chunker.flush());
        chunks
    }

    fn lines() -> impl Strategy<Value = Vec<String>> {
        let long = ("[a日\u{10ffff}\u{1}\"]{1,9}", 1..3 * CHUNK_MAX_BYTES);
        let long = long.prop_map(|(text, length)| text.repeat(length / text.len() + 1));
        prop::collection::vec(prop_oneof![9 => "[^\r\n]{0,60}", 1 => long], 1..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn websocket_frames_decode_to_the_lines(lines in lines()) {
            let (replica, instance) = (replica(), instance());
            let encoder = encoder(&replica, WEBSOCKET);
            let (mut decoded, mut open) = (Vec::new(), String::new());
            for chunk in chunks(&lines) {
                let frames = encoder.lines(&instance, &chunk);
                prop_assert!(frames.len() <= encoder.lines_max_bytes(Some(&instance), &chunk, 0));
                for object in decode(&frames) {
                    prop_assert_eq!(&object["name"], "web-5cfc6c7b4b-4cl7z");
                    open.push_str(object["message"].as_str().unwrap());
                    if object.get("more").is_none() {
                        decoded.push(std::mem::take(&mut open));
                    }
                }
            }
            prop_assert_eq!(decoded, lines);
            prop_assert!(open.is_empty());
        }

        #[test]
        fn entries_have_the_fields_of_grpc(lines in lines()) {
            let (replica, instance) = (replica(), instance());
            let of = |representation| encoder(&replica, representation);
            for chunk in chunks(&lines) {
                let frame = of(Representation::Entries).lines(&instance, &chunk);
                let bound = of(Representation::Entries).lines_max_bytes(Some(&instance), &chunk, 0);
                prop_assert!(frame.len() <= bound);
                let message = of(Representation::Timestamped).lines(&instance, &chunk);
                let message = unframed(&mut BytesMut::from(&message[..])).unwrap();
                let response = ServiceLogsResponse::decode(message.freeze()).unwrap();
                let object = entry_json::entry(&response.services[0]);
                prop_assert_eq!(decode(&frame), vec![serde_json::from_slice::<Value>(&object).unwrap()]);
            }
        }

        #[test]
        fn bounds_hold_for_published_lines(lines in lines()) {
            let (replica, instance) = (replica(), instance());
            let encoder = encoder(&replica, PUBLISHED);
            for chunk in chunks(&lines) {
                let message = encoder.lines(&instance, &chunk);
                prop_assert!(message.len() <= encoder.lines_max_bytes(Some(&instance), &chunk, 0));
            }
        }

        #[test]
        fn bounds_hold_for_notices(reason in any::<String>(), text in any::<String>()) {
            let (replica, instance) = (replica(), instance());
            let event = Event::waiting(reason, text);
            let plain = encoder(&replica, Representation::Plain).event(None, &event, false).len();
            for representation in [WEBSOCKET, PUBLISHED, Representation::Plain, Representation::Entries] {
                let encoder = encoder(&replica, representation);
                let message = encoder.event(Some(&instance), &event, true);
                prop_assert!(message.len() <= encoder.notice_max_bytes(plain));
            }
        }
    }

    #[test]
    fn notices_follow_the_setting() {
        let gap = Gap { cause: GapCause::Lag, lines: 1, bytes: 2, exact: true, from: None, to: None };
        let replica = replica();
        for (notices, has_gap, has_event) in
            [(Notices::All, true, true), (Notices::Loss, true, false), (Notices::None, false, false)]
        {
            for representation in [Representation::WebSocket(notices), Representation::Published(notices)] {
                let encoder = encoder(&replica, representation);
                assert_eq!(encoder.gap(None, &gap, false).is_empty(), !has_gap);
                assert_eq!(encoder.event(None, &Event::gone(), false).is_empty(), !has_event);
                assert_eq!(nothing_deployed(representation, None).is_empty(), !has_event);
                assert!(cursors(representation, []).is_empty());
            }
            assert_eq!(wait(Representation::WebSocket(notices), None).is_empty(), !has_event);
        }
        assert!(wait(PUBLISHED, None).is_empty());
    }

    #[test]
    fn entries_of_gaps_events_and_positions_are_frames() {
        let (replica, instance) = (replica(), instance());
        let encoder = encoder(&replica, Representation::Entries);
        let position = json!("web:3:uid/web/7::0:0");
        let gap = Gap { cause: GapCause::Lag, lines: 1, bytes: 2, exact: true, from: None, to: None };
        let gap = &decode(&encoder.gap(Some((&instance, Position::START)), &gap, true))[0];
        assert_eq!((&gap["gap"]["lines"], &gap["cursor"], gap.get("lines")), (&json!(1), &position, None));
        assert_eq!(decode(&encoder.event(None, &Event::gone(), false))[0]["event"]["kind"], "gone");
        let nothing = &decode(&nothing_deployed(Representation::Entries, None))[0];
        assert_eq!(
            (&nothing["service"], &nothing["event"]["reason"]),
            (&json!(""), &json!("NothingDeployed"))
        );
        let cursor = Cursor { replica: replica.clone(), instance, position: Position::START };
        let positions = decode(&cursors(Representation::Entries, [&cursor, &cursor]));
        assert_eq!((positions.len(), &positions[1]["cursor"]), (2, &position));
        let source = SourceState { lines_left: Some(3), ..SourceState::default() };
        let beat = &decode(&heartbeat(Representation::Entries, Some(&replica), Some(&cursor), source))[0];
        assert_eq!((&beat["source"]["lines_left"], &beat["cursor"]), (&json!(3), &position));
        assert!(wait(Representation::Entries, None).is_empty());
    }
}
