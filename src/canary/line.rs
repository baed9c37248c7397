//! The lines of the counting service: `leasemux-canary run=ID n=NUMBER at=TIME`, and anything after a space.
//!
//! The identifier differs between runs. Numbers count from 1 in each run. The time is in Unix seconds, with
//! or without a fraction, or as in RFC 3339.

use crate::model::time::LogTime;

/// Begin of each line of the counter.
const PREFIX: &[u8] = b"leasemux-canary ";

/// Longest identifier of a run. A UUID has 36 characters.
const RUN_ID_MAX_BYTES: usize = 64;

/// Start of a line that has all fields: the names, the longest identifier and number, and a time.
pub(super) const HEAD_MAX_BYTES: usize = 192;

/// Digits of a nanosecond.
const NANO_DIGITS: usize = 9;

/// One line of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Numbered(Numbered<'a>),
    /// It begins as a line of the counter, and the rest is not one.
    Malformed,
    /// Other output.
    Foreign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbered<'a> {
    /// Identifier of the run: letters, digits, `-`, `_` and `.`.
    pub(super) run: &'a str,
    /// Number of the line in its run, from 1.
    pub(super) number: u64,
    /// Time at which the service printed the line.
    pub(super) at: LogTime,
}

// === impl Line ===

impl<'a> Line<'a> {
    pub(super) fn parse(line: &'a [u8]) -> Self {
        match line.strip_prefix(PREFIX) {
            Some(fields) => Numbered::parse(fields).map_or(Self::Malformed, Self::Numbered),
            None => Self::Foreign,
        }
    }
}

// === impl Numbered ===

impl<'a> Numbered<'a> {
    fn parse(fields: &'a [u8]) -> Option<Self> {
        let mut fields = fields.splitn(4, |byte| *byte == b' ');
        let mut field = |name: &str| {
            let value = fields.next()?.strip_prefix(name.as_bytes())?;
            std::str::from_utf8(value).ok().filter(|value| !value.is_empty())
        };
        let run = field("run=")?;
        let is_id = run.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        let number = field("n=")?.parse().ok().filter(|number| *number > 0)?;
        let at = time(field("at=")?)?;
        (is_id && run.len() <= RUN_ID_MAX_BYTES).then_some(Self { run, number, at })
    }
}

fn time(text: &str) -> Option<LogTime> {
    if text.contains('T') {
        let time: jiff::Timestamp = text.parse().ok()?;
        return Some(LogTime::from_nanos(i64::try_from(time.as_nanosecond()).ok()?));
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let nanos: i32 = format!("{fraction:0<NANO_DIGITS$}").parse().ok()?;
    let is_valid = is_number(seconds) && is_number(fraction) && fraction.len() <= NANO_DIGITS;
    LogTime::from_parts(seconds.parse().ok()?, nanos).filter(|_| is_valid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbered(line: &str) -> Option<(&str, u64, String)> {
        match Line::parse(line.as_bytes()) {
            Line::Numbered(line) => Some((line.run, line.number, line.at.to_string())),
            _ => None,
        }
    }

    #[test]
    fn numbered_lines_are_parsed() {
        for (text, at) in [
            ("1796027775", "2026-11-30T08:36:15.000000000Z"),
            ("1796027775.25", "2026-11-30T08:36:15.250000000Z"),
            ("1796027775.000000001", "2026-11-30T08:36:15.000000001Z"),
            ("2026-11-30T08:36:15Z", "2026-11-30T08:36:15.000000000Z"),
            ("2026-11-30T08:36:15.25Z", "2026-11-30T08:36:15.250000000Z"),
        ] {
            for end in ["", " ", " padding padding"] {
                let line = format!("leasemux-canary run=0-a_B.c n=17 at={text}{end}");
                assert_eq!(numbered(&line), Some(("0-a_B.c", 17, at.to_owned())), "{line}");
            }
        }
        let longest = format!(
            "leasemux-canary run={} n={} at=2026-11-30T08:36:15.123456789+00:00",
            "r".repeat(RUN_ID_MAX_BYTES),
            u64::MAX
        );
        assert!(numbered(&longest).is_some() && longest.len() < HEAD_MAX_BYTES);
    }

    #[test]
    fn other_lines_are_told_apart() {
        for malformed in [
            "",
            "run=a n=1",
            "run=a n=0 at=1",
            "run=a n=-1 at=1",
            "run=a n=18446744073709551616 at=1",
            "run= n=1 at=1",
            "run=a\u{1b}b n=1 at=1",
            "run=a n=1 at=",
            "run=a n=1 at=now",
            "run=a n=1 at=1.",
            "run=a n=1 at=.5",
            "run=a n=1 at=-1",
            "run=a n=1 at=+1",
            "run=a n=1 at=1.0000000001",
            "run=a n=1 at=99999999999999999999",
            "run=a n=1 at=2026-11-30T08:36:15",
            "n=1 run=a at=1",
            "run=a  n=1 at=1",
        ] {
            let line = format!("leasemux-canary {malformed}");
            assert_eq!(Line::parse(line.as_bytes()), Line::Malformed, "{line}");
        }
        let long = format!("leasemux-canary run={} n=1 at=1", "r".repeat(RUN_ID_MAX_BYTES + 1));
        assert_eq!(Line::parse(long.as_bytes()), Line::Malformed);
        for foreign in
            [&b""[..], b"leasemux-canary", b"1 text", b"\xff\xfe", b" leasemux-canary run=a n=1 at=1"]
        {
            assert_eq!(Line::parse(foreign), Line::Foreign, "{foreign:?}");
        }
    }

    proptest! {
        /// No input panics.
        #[test]
        fn any_bytes_are_parsed(
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
            field in "[0-9.T:+Z-]{0,12}",
        ) {
            Line::parse(&[PREFIX, &bytes].concat());
            Line::parse(format!("leasemux-canary run=a n={field} at={field}").as_bytes());
        }
    }
}
