//! Container logs as Kubernetes runtimes keep them: the grammar of a record, both ways, and in [`path`] the layout of the
//! files. Pure: no input or output, no clock.
//!
//! A record is one line of a file: `TIMESTAMP stdout|stderr TAGS CONTENT`. The content is the container's own bytes, whatever
//! they are, without the newline. TAGS are separated by `:`; the first says whether the line ends with this record (`F`, full)
//! or goes on in the stream's next one (`P`, partial). The grammar is that of the CRI's log format ("Kubelet CRI logging",
//! kubernetes/design-proposals-archive), read leniently: runtimes differ in the digits and zone of the timestamp.
//!
//! Two further tags are our own. `lost=LINES/BYTES` marks the place where our log writer had to drop output, and `inexact` beside
//! it means that more may be lost, or if the numbers are zero, that anything may be. To any other reader such a record is a line
//! with a notice in it. Tags that are not known are skipped.

pub mod path;

use std::io::Write as _;

use memchr::memchr;

pub use crate::model::line::Stream;
use crate::model::time::LogTime;

/// The length of `2026-11-23T12:00:00`.
const SECONDS_LEN: usize = 19;

/// Digits of a whole fraction of a second.
const FRACTION_DIGITS: usize = 9;

/// Longest timestamp: nine digits of fraction and an offset of the zone, `2026-11-23T12:00:00.123456789+01:00`.
const TIME_MAX_LEN: usize = 35;

/// Name of the tag for output that was dropped.
const LOST_TAG: &str = "lost=";

/// The tag beside it if the numbers are lower bounds.
const INEXACT_TAG: &str = "inexact";

/// Output that a log writer had to drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedOutput {
    /// Lines, those included that were written only in part.
    pub lines: u64,
    /// Their bytes, newlines included.
    pub bytes: u64,
    /// Whether these are all. If not, the numbers are lower bounds, and zero means that nothing may be lost.
    pub exact: bool,
}

/// One record of a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// When it was written.
    pub time: LogTime,
    /// Where to.
    pub stream: Stream,
    /// Whether the line goes on in the next record of the same stream.
    pub partial: bool,
    /// Set if this record stands for output that was dropped; the content is then a notice for people.
    pub lost: Option<DroppedOutput>,
    /// The container's bytes, without a newline.
    pub content: &'a [u8],
}

/// Reads records one after the other. It remembers the last second it saw, which most often is that of the next record: only a
/// new one costs a reading of the calendar.
#[derive(Clone, Debug, Default)]
pub struct Parser {
    /// The last `2026-11-23T12:00:00`, and its nanoseconds since the epoch if it is UTC.
    seen: Option<([u8; SECONDS_LEN], i64)>,
}

/// Reads one record, given without its newline; `None` if it is not one. For many use a [`Parser`].
pub fn parse(record: &[u8]) -> Option<Record<'_>> {
    Parser::default().parse(record)
}

/// Appends `record` and its newline. The content must hold no newline: it would begin another record.
pub fn write(out: &mut Vec<u8>, record: &Record<'_>) {
    debug_assert!(memchr(b'\n', record.content).is_none(), "newline in a record's content");
    let (time, stream) = (record.time, record.stream.name());
    let tag = if record.partial { 'P' } else { 'F' };
    // Writing to a vector does not fail.
    let _ = write!(out, "{time} {stream} {tag}");
    if let Some(DroppedOutput { lines, bytes, exact }) = record.lost {
        let _ = write!(out, ":{LOST_TAG}{lines}/{bytes}");
        if !exact {
            let _ = write!(out, ":{INEXACT_TAG}");
        }
    }
    out.push(b' ');
    out.extend_from_slice(record.content);
    out.push(b'\n');
}

// === impl Stream ===

impl Stream {
    /// As records have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    fn parse(name: &[u8]) -> Option<Self> {
        match name {
            b"stdout" => Some(Self::Stdout),
            b"stderr" => Some(Self::Stderr),
            _ => None,
        }
    }
}

// === impl Lost ===

impl DroppedOutput {
    fn parse(tag: &[u8]) -> Option<Self> {
        let (lines, bytes) = std::str::from_utf8(tag).ok()?.strip_prefix(LOST_TAG)?.split_once('/')?;
        Some(Self { lines: lines.parse().ok()?, bytes: bytes.parse().ok()?, exact: true })
    }
}

// === impl Parser ===

impl Parser {
    /// Reads one record, given without its newline; `None` if it is not one.
    pub fn parse<'a>(&mut self, record: &'a [u8]) -> Option<Record<'a>> {
        let (time, rest) = cut(record)?;
        let (stream, rest) = cut(rest)?;
        // A record that ends with its tags has no content.
        let (tags, content) = cut(rest).unwrap_or((rest, b""));
        let (partial, lost) = parse_tags(tags)?;
        Some(Record { time: self.time(time)?, stream: Stream::parse(stream)?, partial, lost, content })
    }

    /// Reads RFC 3339 with up to nine digits of fraction, in UTC or with an offset.
    pub(in crate::platform) fn time(&mut self, text: &[u8]) -> Option<LogTime> {
        let (seconds, rest) = text.split_first_chunk::<SECONDS_LEN>()?;
        let Some(nanos) = utc_fraction(rest) else {
            return slow_time(text);
        };
        let base = match self.seen {
            Some((seen, base)) if seen == *seconds => base,
            _ => {
                let mut whole = [b'Z'; SECONDS_LEN + 1];
                whole[..SECONDS_LEN].copy_from_slice(seconds);
                // In the first second of the range only the text as a whole lies within it.
                let Some(base) = slow_time(&whole).map(LogTime::as_nanos) else {
                    return slow_time(text);
                };
                self.seen = Some((*seconds, base));
                base
            }
        };
        base.checked_add(nanos).map(LogTime::from_nanos)
    }
}

/// The text before the first space, and what is behind it.
#[inline]
fn cut(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr(b' ', text)?;
    Some((&text[..at], &text[at + 1..]))
}

#[inline]
fn parse_tags(tags: &[u8]) -> Option<(bool, Option<DroppedOutput>)> {
    let (first, more) = tags.split_first()?;
    let partial = match first {
        b'F' => false,
        b'P' => true,
        _ => return None,
    };
    if more.is_empty() {
        return Some((partial, None));
    }
    let mut tags = more.strip_prefix(b":")?.split(|byte| *byte == b':');
    let lost = tags.clone().find_map(DroppedOutput::parse);
    let exact = lost.is_some() && !tags.any(|tag| tag == INEXACT_TAG.as_bytes());
    Some((partial, lost.map(|lost| DroppedOutput { exact, ..lost })))
}

/// The nanoseconds of `Z`, `.Z`, `.5Z`, `.123456789Z`; `None` for anything else.
#[inline]
fn utc_fraction(text: &[u8]) -> Option<i64> {
    let text = text.strip_suffix(b"Z")?;
    let Some(digits) = text.strip_prefix(b".") else {
        return text.is_empty().then_some(0);
    };
    if digits.len() > FRACTION_DIGITS {
        return None;
    }
    let mut nanos = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        nanos = nanos * 10 + i64::from(digit - b'0');
    }
    for _ in digits.len()..FRACTION_DIGITS {
        nanos *= 10;
    }
    Some(nanos)
}

/// Reads any timestamp that begins as those of RFC 3339 do.
#[cold]
fn slow_time(text: &[u8]) -> Option<LogTime> {
    if text.len() > TIME_MAX_LEN || text.get(10) != Some(&b'T') {
        return None;
    }
    let stamp: jiff::Timestamp = std::str::from_utf8(text).ok()?.parse().ok()?;
    let nanos = i64::try_from(stamp.as_nanosecond()).ok()?;
    Some(LogTime::from_nanos(nanos)).filter(|time| *time != LogTime::MIN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NANOS: i64 = 1_795_435_200_123_456_789;
    const TIME: &str = "2026-11-23T12:00:00.123456789Z";

    /// Partial, lost (lines, bytes), content.
    type Parts<'a> = (bool, Option<(u64, u64)>, &'a str);

    #[track_caller]
    fn check(record: &str, expected: Option<Parts<'_>>) {
        let parsed = parse(record.as_bytes());
        let found = parsed.map(|record| {
            assert_eq!(record.time, LogTime::from_nanos(NANOS));
            let lost = record.lost.map(|lost| (lost.lines, lost.bytes));
            (record.partial, lost, std::str::from_utf8(record.content).unwrap())
        });
        assert_eq!(found, expected, "{record:?}");
    }

    #[test]
    fn records() {
        check(&format!("{TIME} stdout F hello world"), Some((false, None, "hello world")));
        check(&format!("{TIME} stderr P  two  spaces "), Some((true, None, " two  spaces ")));
        check(&format!("{TIME} stdout F "), Some((false, None, "")));
        check(&format!("{TIME} stdout F"), Some((false, None, "")));
        check(&format!("{TIME} stdout F:lost=12/3456 x"), Some((false, Some((12, 3456)), "x")));
        check(&format!("{TIME} stdout P:new:lost=0/1:a=b x"), Some((true, Some((0, 1)), "x")));
        check(&format!("{TIME} stdout F:lost=12 x"), Some((false, None, "x")));
        check(&format!("{TIME} stdout F:inexact x"), Some((false, None, "x")));
        for (tags, exact) in [("lost=1/2", true), ("lost=0/0:inexact", false), ("inexact:a:lost=0/0", false)]
        {
            let record = format!("{TIME} stderr F:{tags} x");
            assert_eq!(parse(record.as_bytes()).unwrap().lost.unwrap().exact, exact, "{tags}");
        }
        check(&format!("{TIME} stdout F:lost=-1/99999999999999999999 x"), Some((false, None, "x")));
        check(&format!("{TIME} stdout F:unknown x"), Some((false, None, "x")));
        for garbage in
            ["stdout FF x", "stdout  F x", "stdout f x", "stdin F x", "stdout :F x", "stdout", "stdout "]
        {
            check(&format!("{TIME} {garbage}"), None);
        }
        for garbage in
            ["", " ", "   ", "x", "stdout F x", "failed to try resolving symlinks in path \"/x\": no"]
        {
            check(garbage, None);
        }
        assert_eq!(parse(&[0xff; 64]), None);
    }

    #[test]
    fn content_need_not_be_text() {
        let mut record = format!("{TIME} stderr F ").into_bytes();
        record.extend_from_slice(&[0xff, 0, b'\r']);
        assert_eq!(parse(&record).unwrap().content, [0xff, 0, b'\r']);
    }

    #[track_caller]
    fn check_time(text: &str, nanos: Option<i64>) {
        let record = format!("{text} stdout F x");
        assert_eq!(parse(record.as_bytes()).map(|record| record.time.as_nanos()), nanos, "{text:?}");
    }

    #[test]
    fn timestamps() {
        let second = NANOS - 123_456_789;
        check_time("2026-11-23T12:00:00Z", Some(second));
        check_time("2026-11-23T12:00:00.5Z", Some(second + 500_000_000));
        check_time("2026-11-23T12:00:00.000000001Z", Some(second + 1));
        check_time("2026-11-23T13:30:00.123456789+01:30", Some(NANOS));
        check_time("2026-11-23T04:00:00-08:00", Some(second));
        check_time("2026-11-23T12:00:00+00:00", Some(second));
        check_time("1969-12-31T23:59:59.999999999Z", Some(-1));
        check_time("9999-12-31T23:59:59Z", None);
        check_time("2026-11-23T12:00:00", None);
        check_time("2026-11-23T12:00:00.1234567890Z", None);
        check_time("2026-11-23T12:00:00.12x4Z", None);
        check_time("2026-13-23T12:00:00Z", None);
        check_time("2026-11-23T12:00:0xZ", None);
        check_time("2026-11-23", None);
        check_time("1795435200", None);
    }

    fn times() -> impl Strategy<Value = LogTime> {
        prop_oneof![
            (i64::MIN + 1..=i64::MAX).prop_map(LogTime::from_nanos),
            (NANOS..NANOS + 3_000_000_000).prop_map(LogTime::from_nanos),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            records in prop::collection::vec(
                (
                    times(),
                    any::<bool>(),
                    any::<bool>(),
                    prop::option::of(any::<(u64, u64, bool)>()),
                    prop::collection::vec(any::<u8>().prop_filter("newline", |byte| *byte != b'\n'), 0..40),
                ),
                0..20,
            )
        ) {
            let records: Vec<Record<'_>> = records
                .iter()
                .map(|(time, stderr, partial, lost, content)| Record {
                    time: *time,
                    stream: if *stderr { Stream::Stderr } else { Stream::Stdout },
                    partial: *partial,
                    lost: lost.map(|(lines, bytes, exact)| DroppedOutput { lines, bytes, exact }),
                    content,
                })
                .collect();
            let mut out = Vec::new();
            for record in &records {
                write(&mut out, record);
            }
            let mut parser = Parser::default();
            let read: Option<Vec<Record<'_>>> =
                out.split_inclusive(|byte| *byte == b'\n').map(|line| parser.parse(&line[..line.len() - 1])).collect();
            prop_assert_eq!(read, Some(records));
        }

        #[test]
        fn nothing_makes_it_panic(record in prop::collection::vec(any::<u8>(), 0..80), at in 0_usize..40) {
            let _ = parse(&record);
            let mut close = format!("{TIME} stdout F:lost=1/2 x").into_bytes();
            if let Some(byte) = record.first() {
                close[at] = *byte;
            }
            let _ = parse(&close);
        }
    }
}
