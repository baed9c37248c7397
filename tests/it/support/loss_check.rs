//! The loss check: for every follower and replica, delivered ∪ reported gaps = produced, in order, without
//! repeats.

use std::collections::BTreeMap;

use leasemux::loss_checker::{LossChecker, Order, Start};
use leasemux::model::id::Instance;
use leasemux::model::proto::lease::replica_event::Kind;
use leasemux::model::proto::lease::source_state::State;
use leasemux::model::proto::lease::{
    Cursor, Gap, ReplicaEvent, ServiceLogs, ServiceLogsResponse, SourceState, gap,
};
use leasemux::model::published;
use serde_json::Value;

use super::fake_platform::{FakePlatform, LOST_BYTES};

/// More heartbeats of a replica than any test waits for.
const HEARTBEATS_MAX: usize = 2_000;

/// Everything that one follower received, in order.
#[derive(Debug, Default)]
pub(crate) struct Received {
    replicas: BTreeMap<(String, u32), Vec<Seen>>,
    /// Number of finished lines, by replica.
    lines: BTreeMap<(String, u32), usize>,
    /// The client's loss checker, which handles parts of two streams.
    pub(crate) judge: Judge,
    frames: Frames,
    /// Number of gaps because of lag, by replica. Those before its first run or line do not count: the
    /// gateway did not know the follower's position.
    lag_gaps: BTreeMap<(String, u32), usize>,
    /// The newest cursor, by replica.
    pub(crate) cursors: BTreeMap<(String, u32), Cursor>,
    /// What the heartbeats reported, by replica.
    sources: BTreeMap<(String, u32), Vec<SourceState>>,
}

/// Reads the frames of one websocket.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// The run that the last notice named, by replica.
    runs: BTreeMap<(String, u32), String>,
}

/// Checks numbered lines of two streams.
#[derive(Debug)]
pub(crate) struct Judge(pub(crate) LossChecker);

impl Default for Judge {
    fn default() -> Self {
        Self(LossChecker::new(Start::First, Order::TwoPipes))
    }
}

/// One entry that a follower received for a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Log bytes of a run; websockets and the published proto do not name it.
    Logs(String, Vec<u8>),
    /// A gap: lines, bytes, exact.
    Gap(u64, u64, bool),
    /// An event.
    Event(Kind, String),
}

// === impl Frames ===

impl Frames {
    /// Reads a frame. Also returns the entry that it shows, unless it concerns the whole stream.
    pub(crate) fn read(&mut self, text: &str) -> (Value, Option<ServiceLogs>) {
        let object = text.strip_suffix('\n').expect("a frame ends with a newline");
        let frame: Value = serde_json::from_str(object).expect("a frame is one JSON object");
        let message = frame["message"].as_str().expect("a message");
        let name = frame["name"].as_str().expect("a name");
        let Some(service) = frame["service"].as_str() else {
            assert!(frame["notice"].is_object(), "only a notice has no replica: {frame}");
            return (frame, None);
        };
        assert!(name == service || name.starts_with(&format!("{service}-")), "akt would drop {frame}");
        let replica = u32::try_from(frame["replica"].as_u64().expect("a replica")).unwrap();
        let run = self.runs.entry((service.to_owned(), replica)).or_default();
        let mut entry = ServiceLogs { name: service.to_owned(), replica, ..ServiceLogs::default() };
        let notice = &frame["notice"];
        let number = |key: &str| notice[key].as_u64().unwrap();
        let kind = match notice["kind"].as_str() {
            None => {
                let end = if frame["more"] == true { "" } else { "\n" };
                entry.logs = format!("{message}{end}").into_bytes().into();
                None
            }
            Some("gap") => {
                let cause = notice["cause"].as_str().unwrap().to_uppercase();
                let cause = gap::Cause::from_str_name(&cause).expect("a cause");
                let (lines, bytes) = (number("lines"), number("bytes"));
                let exact = notice["exact"].as_bool().unwrap();
                entry.gap = Some(Gap { lines, bytes, exact, cause: cause.into(), ..Gap::default() });
                None
            }
            Some("started") => Some(Kind::Started),
            Some("ended") => Some(Kind::Ended),
            Some("waiting") => Some(Kind::Waiting),
            Some("gone") => Some(Kind::Gone),
            Some(other) => panic!("{other} in {frame}"),
        };
        if let Some(kind) = kind {
            let instance = notice["instance"].as_str().unwrap_or_default().to_owned();
            if kind == Kind::Started {
                instance.clone_into(run);
            }
            entry.event = Some(ReplicaEvent { kind: kind.into(), instance, ..ReplicaEvent::default() });
        }
        entry.cursor =
            Some(Cursor { service: service.to_owned(), replica, instance: run.clone(), ..Cursor::default() });
        (frame, Some(entry))
    }
}

// === impl Received ===

impl Received {
    /// Adds a response.
    pub(crate) fn take(&mut self, response: ServiceLogsResponse) {
        for entry in response.services {
            self.take_entry(entry);
        }
    }

    /// Adds an entry. Objects have gaps without bytes.
    pub(crate) fn take_entry(&mut self, entry: ServiceLogs) {
        self.judge.0.feed(&entry);
        let key = (entry.name, entry.replica);
        let seen = self.replicas.entry(key.clone()).or_default();
        let cursor = entry.cursor;
        if let Some(source) = entry.source {
            assert!(entry.logs.is_empty() && entry.gap.is_none() && entry.event.is_none());
            assert_eq!(
                cursor.as_ref(),
                self.cursors.get(&key),
                "a heartbeat of {key:?} has the last position"
            );
            let sources = self.sources.entry(key).or_default();
            sources.push(source);
            // Otherwise a test that waits in vain would never end.
            assert!(sources.len() < HEARTBEATS_MAX, "only heartbeats come: {:?}", sources.last());
            return;
        }
        if let Some(gap) = entry.gap {
            let is_notice = entry.logs.starts_with(b"[leasemux: ") && entry.logs.ends_with(b"]\n");
            assert!(is_notice || entry.logs.is_empty());
            if gap.cause() == gap::Cause::Lag && seen.iter().any(Seen::has_place) {
                *self.lag_gaps.entry(key.clone()).or_default() += 1;
            }
            seen.push(Seen::Gap(gap.lines, gap.bytes, gap.exact));
        } else if let Some(event) = entry.event {
            assert!(entry.logs.is_empty());
            seen.push(Seen::Event(event.kind(), event.instance));
        } else if !entry.logs.is_empty() {
            let instance = cursor.as_ref().expect("logs have a cursor").instance.clone();
            let ended = memchr::memchr_iter(b'\n', &entry.logs).count();
            *self.lines.entry(key.clone()).or_default() += ended;
            seen.push(Seen::Logs(instance, entry.logs.to_vec()));
        }
        if let Some(cursor) = cursor {
            self.cursors.insert(key, cursor);
        }
    }

    /// Adds a websocket frame about a replica. Returns the frame as JSON.
    pub(crate) fn take_frame(&mut self, text: &str) -> Value {
        let (frame, entry) = self.frames.read(text);
        let Some(entry) = entry else { return frame };
        let key = (entry.name.clone(), entry.replica);
        let seen = self.replicas.entry(key.clone()).or_default();
        if let Some(event) = &entry.event {
            seen.push(Seen::Event(event.kind(), event.instance.clone()));
            return frame;
        }
        if let Some(gap) = &entry.gap {
            if gap.cause() == gap::Cause::Lag && seen.iter().any(Seen::has_place) {
                *self.lag_gaps.entry(key).or_default() += 1;
            }
            seen.push(Seen::Gap(gap.lines, gap.bytes, gap.exact));
        } else {
            *self.lines.entry(key).or_default() += usize::from(entry.logs.ends_with(b"\n"));
            seen.push(Seen::Logs(String::new(), entry.logs.to_vec()));
        }
        self.judge.0.feed(&entry);
        frame
    }

    /// Adds an entry of the published proto, whose name is that of a replica.
    pub(crate) fn take_published(&mut self, entry: published::ServiceLogs) {
        // A notice is an entry of its own. A newline before it ends the line of the entry before.
        let notice = entry.logs.strip_prefix(b"\n").unwrap_or(&entry.logs).strip_prefix(b"[leasemux: ");
        let notice = notice.map(|text| std::str::from_utf8(text).unwrap().strip_suffix("]\n").unwrap());
        let replica =
            entry.name.rsplit_once('-').map(|(service, index)| (service.to_owned(), index.parse().unwrap()));
        let Some(key) = replica else {
            assert!(notice.is_some(), "only a notice has no replica: {entry:?}");
            return;
        };
        let seen = self.replicas.entry(key.clone()).or_default();
        let Some(notice) = notice else {
            *self.lines.entry(key).or_default() += memchr::memchr_iter(b'\n', &entry.logs).count();
            seen.push(Seen::Logs(String::new(), entry.logs.into()));
            return;
        };
        if let Some((size, _)) = notice.split_once(" missing here: ") {
            let mut numbers = size.split([' ', '(']).filter_map(|word| word.parse().ok());
            let exact = !size.starts_with("at least ") && size != "lines may be";
            seen.push(Seen::Gap(numbers.next().unwrap_or(0), numbers.next().unwrap_or(0), exact));
            return;
        }
        let text = notice
            .strip_prefix(&format!("replica {} ", entry.name.rsplit_once('-').unwrap().1))
            .unwrap_or(notice);
        let kind = match text.split(' ').next() {
            Some("started") => Kind::Started,
            Some("ended") => Kind::Ended,
            Some("is") if text == "is gone" => Kind::Gone,
            _ => Kind::Waiting,
        };
        seen.push(Seen::Event(kind, String::new()));
    }

    /// Returns all entries of a replica, in order.
    pub(crate) fn of(&self, service: &str, replica: u32) -> &[Seen] {
        self.replicas.get(&(service.to_owned(), replica)).map_or(&[], Vec::as_slice)
    }

    /// Returns whether the log bytes of a replica end with this text.
    pub(crate) fn ends_with(&self, service: &str, replica: u32, end: &str) -> bool {
        let last = self.of(service, replica).iter().rev().find_map(Seen::logs);
        last.is_some_and(|bytes| bytes.ends_with(end.as_bytes()))
    }

    /// Returns all log bytes of a replica.
    pub(crate) fn text(&self, service: &str, replica: u32) -> String {
        let bytes: Vec<u8> =
            self.of(service, replica).iter().filter_map(Seen::logs).flatten().copied().collect();
        String::from_utf8(bytes).unwrap()
    }

    /// Returns the number of finished lines of a replica.
    pub(crate) fn lines(&self, service: &str, replica: u32) -> usize {
        self.lines.get(&(service.to_owned(), replica)).copied().unwrap_or_default()
    }

    /// Returns the kinds of the events of a replica, in order.
    pub(crate) fn events(&self, service: &str, replica: u32) -> Vec<Kind> {
        let kinds = self.of(service, replica).iter().filter_map(|seen| match seen {
            Seen::Event(kind, _) => Some(*kind),
            _ => None,
        });
        kinds.collect()
    }

    /// Returns what the heartbeats of a replica reported, in order.
    pub(crate) fn sources(&self, service: &str, replica: u32) -> &[SourceState] {
        self.sources.get(&(service.to_owned(), replica)).map_or(&[], Vec::as_slice)
    }

    /// Returns the state and reason in the last heartbeat of a replica.
    pub(crate) fn last_source(&self, service: &str, replica: u32) -> Option<(State, &str)> {
        let last = self.sources(service, replica).last()?;
        Some((last.state(), &last.reason))
    }

    /// Returns the number of gaps because of lag, in a place that the gateway knew.
    pub(crate) fn lag_gaps(&self, service: &str, replica: u32) -> usize {
        self.lag_gaps.get(&(service.to_owned(), replica)).copied().unwrap_or_default()
    }

    /// Returns the number of lines in reported gaps.
    pub(crate) fn missing(&self, service: &str, replica: u32) -> u64 {
        let gaps = self.of(service, replica).iter().map(|seen| match seen {
            Seen::Gap(lines, ..) => *lines,
            _ => 0,
        });
        gaps.sum()
    }

    /// Asserts that the entries of these runs are the produced lines from line `from` to the current end,
    /// except for
    /// gaps of exactly the lost size. Returns the number of lost lines.
    #[track_caller]
    pub(crate) fn assert_complete(
        &self,
        platform: &FakePlatform,
        service: &str,
        replica: u32,
        runs: &[(&Instance, usize)],
    ) -> u64 {
        self.checked(platform, service, replica, runs).1
    }

    /// As [`Received::assert_complete`]. Returns the number of produced lines that were received or reported
    /// as lost, and the number of lost ones.
    #[track_caller]
    pub(crate) fn checked(
        &self,
        platform: &FakePlatform,
        service: &str,
        replica: u32,
        runs: &[(&Instance, usize)],
    ) -> (usize, u64) {
        let seen = self.of(service, replica);
        let mut lost = 0;
        let produced: Vec<(String, Option<bytes::Bytes>)> = runs
            .iter()
            .flat_map(|(run, from)| {
                platform.produced(run).into_iter().skip(*from).map(|line| (run.to_string(), line))
            })
            .collect();
        let length = |line: &Option<bytes::Bytes>| line.as_ref().map_or(LOST_BYTES, |line| line.len() as u64);
        // A place in the produced lines: line, and bytes of it that were received or lost.
        let (mut line, mut within) = (0, 0);
        // A gap has counted this line. The rest of it may follow.
        let mut counted = false;
        for one in seen {
            match one {
                Seen::Event(..) => {}
                Seen::Gap(lines, bytes, exact) => {
                    assert!(exact, "an inexact gap cannot be checked");
                    let end = line + usize::from(counted) + usize::try_from(*lines).unwrap();
                    let missing =
                        produced[line..end].iter().map(|(_, text)| length(text)).sum::<u64>() - within as u64;
                    let rest = missing.checked_sub(*bytes);
                    let rest = rest.unwrap_or_else(|| panic!("{bytes} bytes of {missing} at line {line}"));
                    if rest == 0 {
                        (line, within, counted) = (end, 0, false);
                    } else {
                        let whole = length(&produced[end - 1].1);
                        assert!(rest < whole, "bytes of the gap at line {line}: {bytes}, not {missing}");
                        (line, within, counted) = (end - 1, usize::try_from(whole - rest).unwrap(), true);
                    }
                    lost += lines;
                }
                Seen::Logs(run, bytes) => {
                    let mut bytes = &bytes[..];
                    while !bytes.is_empty() {
                        let (produced_by, text) =
                            produced.get(line).unwrap_or_else(|| panic!("more than was printed: {bytes:?}"));
                        assert!(
                            run.is_empty() || run == produced_by,
                            "at line {line}: {run}, not {produced_by}"
                        );
                        let text = text.as_ref().expect("a line that was not lost");
                        let rest = &text[within..];
                        let count = rest.len().min(bytes.len());
                        assert_eq!(
                            String::from_utf8_lossy(&bytes[..count]),
                            String::from_utf8_lossy(&rest[..count]),
                            "at line {line}"
                        );
                        bytes = &bytes[count..];
                        within += count;
                        if within == text.len() {
                            (line, within, counted) = (line + 1, 0, false);
                        }
                    }
                }
            }
        }
        (line, lost)
    }

    /// Asserts that the lines of a replica are the printed lines, in order and without repeats, except at
    /// gaps of any
    /// size. All lines differ. Returns the number of gaps.
    #[track_caller]
    pub(crate) fn assert_ordered(&self, service: &str, replica: u32, printed: &[String]) -> usize {
        let (mut expected, mut gaps, mut after_gap, mut partial) = (0, 0, false, String::new());
        for seen in self.of(service, replica) {
            match seen {
                Seen::Gap(..) => (gaps, after_gap) = (gaps + 1, true),
                Seen::Event(..) => {}
                Seen::Logs(_, bytes) => {
                    partial.push_str(std::str::from_utf8(bytes).unwrap());
                    while let Some((line, rest)) = partial.split_once('\n') {
                        let at =
                            printed.iter().position(|text| text == line).expect("a line that was printed");
                        assert!(at >= expected, "{line} again, or out of order");
                        assert!(
                            at == expected || after_gap,
                            "lines {expected} to {at} are missing without a gap"
                        );
                        (expected, after_gap) = (at + 1, false);
                        partial = rest.to_owned();
                    }
                }
            }
        }
        assert!(
            expected == printed.len() || after_gap,
            "the last {} lines are missing",
            printed.len() - expected
        );
        gaps
    }
}

impl Seen {
    /// Returns whether it shows a place in a log.
    fn has_place(&self) -> bool {
        matches!(self, Self::Logs(..) | Self::Event(Kind::Started, _))
    }

    fn logs(&self) -> Option<&Vec<u8>> {
        match self {
            Self::Logs(_, bytes) => Some(bytes),
            _ => None,
        }
    }
}
