//! Cursors as text, for protocols without protobuf: one word without characters that a URL escapes.
//!
//! `web:0:UID/web/1:1764517030.123456789:3:0` is service, replica, instance, time (Unix seconds; empty if the
//! cursor has none), ordinal and offset.

use std::fmt::Write as _;
use std::str::FromStr;

use super::id::{Instance, ServiceName};
use super::proto::lease::Cursor;

/// Digits of the part of a time below one second.
const NANOS_DIGITS: usize = 9;

/// Returns the text of a cursor.
pub(crate) fn to_text(cursor: &Cursor) -> String {
    let mut text = format!("{}:{}:{}:", cursor.service, cursor.replica, cursor.instance);
    // Writing to a string cannot fail.
    if let Some(time) = &cursor.time {
        let _ = write!(text, "{}.{:09}", time.seconds, time.nanos);
    }
    let _ = write!(text, ":{}:{}", cursor.ordinal, cursor.offset);
    text
}

/// Returns the cursor of a text; `None` if no cursor has this text.
pub(crate) fn parse(text: &str) -> Option<Cursor> {
    let parts: Vec<&str> = text.splitn(7, ':').collect();
    let [service, replica, instance, time, ordinal, offset] = parts[..] else { return None };
    // Each cursor has one text.
    let cursor = Cursor {
        service: ServiceName::from_str(service).ok()?.to_string(),
        replica: replica.parse().ok()?,
        instance: Instance::from_str(instance).ok()?.to_string(),
        time: if time.is_empty() { None } else { Some(parse_time(time)?) },
        ordinal: ordinal.parse().ok()?,
        offset: offset.parse().ok()?,
    };
    (to_text(&cursor) == text).then_some(cursor)
}

fn parse_time(text: &str) -> Option<prost_types::Timestamp> {
    let (seconds, nanos) = text.split_once('.').filter(|(_, nanos)| nanos.len() == NANOS_DIGITS)?;
    let nanos: u32 = nanos.parse().ok()?;
    Some(prost_types::Timestamp { seconds: seconds.parse().ok()?, nanos: i32::try_from(nanos).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(time: Option<(i64, i32)>) -> Cursor {
        Cursor {
            service: "web".into(),
            replica: 3,
            instance: "45fe8e1c-2c68/web/1".into(),
            time: time.map(|(seconds, nanos)| prost_types::Timestamp { seconds, nanos }),
            ordinal: 7,
            offset: 16_000,
        }
    }

    #[test]
    fn cursors_round_trip() {
        for time in [None, Some((1_764_517_030, 5)), Some((-7, 999_999_999)), Some((0, 0))] {
            let text = to_text(&cursor(time));
            assert_eq!(parse(&text), Some(cursor(time)), "{text}");
            let is_plain = |c: char| c.is_ascii_alphanumeric() || ":/.-_".contains(c);
            assert!(text.chars().all(is_plain), "{text}");
        }
        assert_eq!(to_text(&cursor(Some((5, 6)))), "web:3:45fe8e1c-2c68/web/1:5.000000006:7:16000");
    }

    #[test]
    fn other_texts_are_rejected() {
        for text in [
            "",
            "web",
            "web:0:u/web/1:5.000000006:7",
            "web:0:u/web/1:5.000000006:7:0:0",
            "web:0:u/web/1:5.6:7:0",
            "web:0:u/web/1:5:7:0",
            "web:00:u/web/1::7:0",
            "web:0:u/web/01::7:0",
            "web:0:u/web::7:0",
            "web:0:u/web/1:-0.000000001:7:0",
            "web:0:u/web/1:5.-00000006:7:0",
            "web:0:u/web/1::+7:0",
            "web:0:u/web/1::-7:0",
            "WEB:0:u/web/1::7:0 ",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
