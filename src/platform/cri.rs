//! Parses and writes the log records of Kubernetes runtimes; [`path`] has the layout of the files. Pure: no
//! I/O, no clock.
//!
//! A record is one line of a file: `TIMESTAMP stdout|stderr TAGS CONTENT`. The content is arbitrary bytes of
//! the container, without the newline. TAGS are separated by `:`. The first is `F` (full) if the line ends
//! with this record, or `P` (partial) if it continues in the stream's next one. The grammar is that of the
//! CRI's log format ("Kubelet CRI logging", kubernetes/design-proposals-archive), parsed leniently: runtimes
//! differ in the digits and zone of the timestamp.
//!
//! Two tags are our own. `lost=LINES/BYTES` marks a place where our log writer dropped output. `inexact`
//! beside it means that the numbers are lower bounds; if they are zero, perhaps nothing was lost. For other
//! readers the record is a line with a notice. Unknown tags are skipped.

pub mod path;

use std::io::Write as _;

use memchr::memchr;

use crate::model::line::OutputStream;
use crate::model::time::LogTime;

/// Length of `2026-11-23T12:00:00`.
const SECONDS_LEN: usize = 19;

/// Most digits of a fraction of a second.
const FRACTION_DIGITS: usize = 9;

/// Longest timestamp, with a fraction and a zone: `2026-11-23T12:00:00.123456789+01:00`.
const TIME_MAX_LEN: usize = 35;

/// Tag of a record about dropped output.
const LOST_TAG: &str = "lost=";

/// Additional tag if the numbers are lower bounds.
const INEXACT_TAG: &str = "inexact";

/// Output that a log writer dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedOutput {
    /// Number of lines, including those written in part.
    pub lines: u64,
    /// Number of bytes, including newlines.
    pub bytes: u64,
    /// Whether the numbers are exact. Otherwise they are lower bounds, and zero means that perhaps nothing
    /// was lost.
    pub exact: bool,
}

/// One record of a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// When it was written.
    pub time: LogTime,
    /// The stream it was written to.
    pub stream: OutputStream,
    /// Whether the line continues in the next record of the same stream.
    pub partial: bool,
    /// Set if this record stands for dropped output; the content is then a notice for people.
    pub lost: Option<DroppedOutput>,
    /// The container's bytes, without a newline.
    pub content: &'a [u8],
}

/// Parses records. Caches the last second, which the next record usually shares, to avoid calendar
/// arithmetic.
#[derive(Clone, Debug, Default)]
pub struct Parser {
    /// The last `2026-11-23T12:00:00`, and its nanoseconds since the epoch as UTC.
    last_second: Option<([u8; SECONDS_LEN], i64)>,
}

/// Parses one record, given without its newline. For many, use a [`Parser`].
pub fn parse(record: &[u8]) -> Option<Record<'_>> {
    Parser::default().parse(record)
}

/// Returns the time of the record at the start of a file, which may be cut off within its content.
pub(super) fn first_time(start: &[u8]) -> Option<LogTime> {
    let record = start.split(|byte| *byte == b'\n').next().and_then(parse);
    record.map(|record| record.time)
}

/// Appends `record` and a newline to `out`. The content must contain no newline, which would begin another
/// record.
pub fn write(out: &mut Vec<u8>, record: &Record<'_>) {
    debug_assert!(memchr(b'\n', record.content).is_none(), "newline in a record's content");
    let (time, stream) = (record.time, record.stream.name());
    let tag = if record.partial { 'P' } else { 'F' };
    // Writing to a vector cannot fail.
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

// === impl OutputStream ===

impl OutputStream {
    /// Returns the stream's name in records.
    pub(crate) const fn name(self) -> &'static str {
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

// === impl DroppedOutput ===

impl DroppedOutput {
    fn parse(tag: &[u8]) -> Option<Self> {
        let (lines, bytes) = std::str::from_utf8(tag).ok()?.strip_prefix(LOST_TAG)?.split_once('/')?;
        Some(Self { lines: lines.parse().ok()?, bytes: bytes.parse().ok()?, exact: true })
    }
}

// === impl Parser ===

impl Parser {
    /// Parses one record, given without its newline.
    pub fn parse<'a>(&mut self, record: &'a [u8]) -> Option<Record<'a>> {
        let (time, rest) = cut(record)?;
        let (stream, rest) = cut(rest)?;
        // A record that ends with its tags has no content.
        let (tags, content) = cut(rest).unwrap_or((rest, b""));
        let (partial, lost) = parse_tags(tags)?;
        Some(Record { time: self.time(time)?, stream: OutputStream::parse(stream)?, partial, lost, content })
    }

    /// Parses an RFC 3339 time with up to nine digits of fraction, in UTC or with an offset.
    pub(super) fn time(&mut self, text: &[u8]) -> Option<LogTime> {
        let (seconds, rest) = text.split_first_chunk::<SECONDS_LEN>()?;
        let Some(nanos) = utc_fraction(rest) else {
            return slow_time(text);
        };
        let base = match self.last_second {
            Some((second, base)) if second == *seconds => base,
            _ => {
                let mut whole = [b'Z'; SECONDS_LEN + 1];
                whole[..SECONDS_LEN].copy_from_slice(seconds);
                // The range of times begins within a second, whose start is outside of it.
                let Some(base) = slow_time(&whole).map(LogTime::as_nanos) else {
                    return slow_time(text);
                };
                self.last_second = Some((*seconds, base));
                base
            }
        };
        base.checked_add(nanos).map(LogTime::from_nanos)
    }
}

/// Splits at the first space.
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

/// Returns the nanoseconds of `Z`, `.Z`, `.5Z` or `.123456789Z`; `None` for other texts.
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

/// Parses any RFC 3339 timestamp.
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

    /// Partial, dropped (lines, bytes), content.
    type Parts<'a> = (bool, Option<(u64, u64)>, &'a str);

    #[track_caller]
    fn check(record: &str, expected: Option<Parts<'_>>) {
        let parsed = parse(record.as_bytes());
        let actual = parsed.map(|record| {
            assert_eq!(record.time, LogTime::from_nanos(NANOS));
            let lost = record.lost.map(|lost| (lost.lines, lost.bytes));
            (record.partial, lost, std::str::from_utf8(record.content).unwrap())
        });
        assert_eq!(actual, expected, "{record:?}");
    }

    #[test]
    fn records_are_parsed_leniently() {
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
    fn content_may_be_any_bytes() {
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
    fn timestamps_of_any_zone_are_parsed() {
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
        fn written_records_are_parsed_back(
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
                    stream: if *stderr { OutputStream::Stderr } else { OutputStream::Stdout },
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
        fn any_bytes_parse_without_panic(record in prop::collection::vec(any::<u8>(), 0..80), at in 0_usize..40) {
            let _ = parse(&record);
            let mut close = format!("{TIME} stdout F:lost=1/2 x").into_bytes();
            if let Some(byte) = record.first() {
                close[at] = *byte;
            }
            let _ = parse(&close);
        }
    }
}
