//! Encodes log entries as complete gRPC messages of the published proto. Pure.
//!
//! An entry has a name and bytes, and nothing else: gaps and events become notice lines, and cursors are left
//! out. Pieces of a line follow one another as the container wrote them, as `kubectl logs` prints them. A
//! line that does not continue gets a newline, so that the next line is not appended to it.

use bytes::Bytes;

use super::chunk::Chunk;
use super::notice::{Notice, Notices};
use crate::model::proto::framed;
use crate::model::published::{ServiceLogs, ServiceLogsResponse};

/// Encodes a chunk. The last line gets a newline if the container ended it without one, so that the next
/// entry begins a new line.
pub(crate) fn lines(name: &str, chunk: &Chunk) -> Bytes {
    if chunk.is_unfinished() || chunk.data.ends_with(b"\n") {
        return entry(name, chunk.data.clone());
    }
    entry(name, [&chunk.data[..], b"\n"].concat().into())
}

/// Encodes a notice if `notices` includes it. `within_line`: the entry before it ended within a line, which a
/// newline must end first. Of a notice that is left out, only that newline remains, if the line does not
/// continue.
pub(crate) fn notice(name: &str, notice: &Notice<'_>, notices: Notices, within_line: bool) -> Option<Bytes> {
    let newline = if within_line { "\n" } else { "" };
    if notices.includes(notice.kind) {
        return Some(entry(name, format!("{newline}{}\n", notice.line()).into()));
    }
    (within_line && notice.kind.ends_line()).then(|| entry(name, newline.into()))
}

fn entry(name: &str, logs: Bytes) -> Bytes {
    framed(&ServiceLogsResponse { services: vec![ServiceLogs { name: name.to_owned(), logs }] })
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::logs::chunk::LineEnd;
    use crate::logs::notice::NoticeKind;
    use crate::model::position::Position;
    use crate::model::proto::PREFIX_BYTES;
    use crate::model::time::LogTime;

    fn decode(message: &Bytes) -> (String, String) {
        let length = u32::from_be_bytes(message[1..PREFIX_BYTES].try_into().unwrap());
        assert_eq!((message[0], length as usize), (0, message.len() - PREFIX_BYTES));
        let mut response = ServiceLogsResponse::decode(&message[PREFIX_BYTES..]).unwrap();
        assert_eq!(response.services.len(), 1);
        let ServiceLogs { name, logs } = response.services.remove(0);
        (name, String::from_utf8(logs.into()).unwrap())
    }

    fn chunk(data: &'static str, is_finished: bool) -> Chunk {
        let time = LogTime::from_nanos(5);
        let start = Position::START;
        Chunk {
            data: Bytes::from_static(data.as_bytes()),
            line_ends: Box::new([LineEnd { end: u32::try_from(data.len()).unwrap(), time, stream: None }]),
            continues: false,
            start,
            end: if is_finished { start.after_line(time) } else { start.after_bytes(data.len()) },
        }
    }

    #[test]
    fn lines_have_their_newlines() {
        let logs = |chunk| decode(&lines("web-0", &chunk));
        assert_eq!(logs(chunk("one\n", true)), ("web-0".to_owned(), "one\n".to_owned()));
        assert_eq!(logs(chunk("last", true)).1, "last\n");
        assert_eq!(logs(chunk("piece", false)).1, "piece");
        // Field 2, where the draft has the replica's number.
        assert!(lines("web-0", &chunk("one\n", true)).ends_with(b"\x12\x04one\n"));
    }

    #[test]
    fn notice_is_a_line_of_its_own() {
        let gone = Notice::new(NoticeKind::Gone, "replica 0 is gone");
        let logs = |notices, within_line| {
            notice("web-0", &gone, notices, within_line).map(|message| decode(&message).1)
        };
        assert_eq!(logs(Notices::All, false).as_deref(), Some("[leasemux: replica 0 is gone]\n"));
        assert_eq!(logs(Notices::All, true).as_deref(), Some("\n[leasemux: replica 0 is gone]\n"));
        assert_eq!(logs(Notices::Loss, false), None);
    }

    #[test]
    fn line_ends_although_the_notice_is_left_out() {
        let logs = |kind, within_line| {
            let notice = notice("web-0", &Notice::new(kind, "text"), Notices::None, within_line);
            notice.map(|message| decode(&message).1)
        };
        for kind in [NoticeKind::Gap, NoticeKind::Started, NoticeKind::Ended, NoticeKind::Gone] {
            assert_eq!(logs(kind, true).as_deref(), Some("\n"), "{kind:?}");
            assert_eq!(logs(kind, false), None, "{kind:?}");
        }
        // The log is read later: its line continues then.
        assert_eq!(logs(NoticeKind::Waiting, true), None);
    }
}
