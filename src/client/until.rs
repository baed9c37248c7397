//! Ends a log at an instant (`--until`).
//!
//! The protocol has no such limit, so the client applies it: it requests lines with their times. After a
//! replica's first later line, the client drops everything of that replica. If the replicas are known, the
//! call ends after the last of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use memchr::memchr;
use prost_types::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ReplicaKey;
use super::follow::{ConnectionChange, Sink};
use crate::model::limits::STREAM_REPLICAS_MAX;
use crate::model::line::split_time;
use crate::model::proto::lease::ServiceLogs;
use crate::model::time::LogTime;

/// Sink that passes on entries up to an instant.
#[derive(Debug)]
pub(super) struct Until<'a, S> {
    inner: &'a mut S,
    end: LogTime,
    /// Whether lines keep their time.
    timestamps: bool,
    replicas: BTreeMap<ReplicaKey, ReplicaState>,
    /// Replicas that have not reached the instant; `None` if unknown.
    remaining: Option<BTreeSet<ReplicaKey>>,
    /// Cancelled when no replica remains.
    complete: CancellationToken,
}

/// Progress of one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ReplicaState {
    /// The next bytes start a line.
    #[default]
    BetweenLines,
    /// The next bytes continue a line that is passed on.
    WithinLine,
    /// A line was later than the instant. Final.
    Ended,
}

// === impl Until ===

impl<'a, S: Sink> Until<'a, S> {
    /// Creates a sink that passes entries of a request with timestamps to `inner`. `replicas` are all that
    /// the call covers, if known.
    pub(super) fn new(
        inner: &'a mut S,
        end: LogTime,
        timestamps: bool,
        replicas: Option<BTreeSet<ReplicaKey>>,
    ) -> Self {
        let complete = CancellationToken::new();
        Self { inner, end, timestamps, replicas: BTreeMap::new(), remaining: replicas, complete }
    }

    /// Returns a token that is cancelled when nothing more will be passed on.
    pub(super) fn complete(&self) -> CancellationToken {
        self.complete.clone()
    }

    /// Returns the state of a replica. The number of states is bounded: a gateway may name any number of
    /// replicas over time.
    fn state(&mut self, key: &ReplicaKey) -> &mut ReplicaState {
        if self.replicas.len() >= STREAM_REPLICAS_MAX && !self.replicas.contains_key(key) {
            self.replicas.pop_first();
        }
        self.replicas.entry(key.clone()).or_default()
    }

    fn mark_ended(&mut self, key: &ReplicaKey) {
        *self.state(key) = ReplicaState::Ended;
        if let Some(remaining) = &mut self.remaining {
            remaining.remove(key);
            if remaining.is_empty() {
                self.complete.cancel();
            }
        }
    }

    fn is_later(&self, time: Option<&Timestamp>) -> bool {
        time.and_then(LogTime::from_proto).is_some_and(|time| time > self.end)
    }

    /// Passes on the lines of `entry` before the first later one.
    fn lines(&mut self, key: &ReplicaKey, entry: &ServiceLogs) -> io::Result<()> {
        let mut rest: &[u8] = &entry.logs;
        let mut kept = Vec::with_capacity(rest.len());
        while !rest.is_empty() {
            let end = memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
            let (mut line, after) = rest.split_at(end);
            rest = after;
            if *self.state(key) == ReplicaState::BetweenLines
                && let Some((_, time, text)) = split_time(line)
            {
                if time > self.end {
                    self.mark_ended(key);
                    break;
                }
                line = if self.timestamps { line } else { text };
            }
            kept.extend_from_slice(line);
            let ends = line.ends_with(b"\n");
            *self.state(key) = if ends { ReplicaState::BetweenLines } else { ReplicaState::WithinLine };
        }
        if kept.is_empty() && !entry.logs.is_empty() {
            return Ok(());
        }
        self.inner.entry(&ServiceLogs { logs: kept.into(), ..entry.clone() })
    }
}

impl<S: Sink> Sink for Until<'_, S> {
    fn entry(&mut self, entry: &ServiceLogs) -> io::Result<()> {
        let key = (entry.name.clone(), entry.replica);
        if *self.state(&key) == ReplicaState::Ended {
            return Ok(());
        }
        if let Some(gap) = &entry.gap {
            // `from` is the time of the last line before the gap.
            if self.is_later(gap.from.as_ref()) {
                self.mark_ended(&key);
                return Ok(());
            }
            *self.state(&key) = ReplicaState::BetweenLines;
            return self.inner.entry(entry);
        }
        if let Some(event) = &entry.event {
            // A later event does not end the log: it may precede older lines.
            let is_later = self.is_later(event.time.as_ref());
            return if is_later { Ok(()) } else { self.inner.entry(entry) };
        }
        self.lines(&key, entry)
    }

    fn pause(&mut self) -> io::Result<()> {
        self.inner.pause()
    }

    fn due(&self) -> Option<Instant> {
        self.inner.due()
    }

    fn on_due(&mut self) -> io::Result<()> {
        self.inner.on_due()
    }

    fn heartbeat(&mut self, heartbeat: &ServiceLogs, now: LogTime) -> io::Result<()> {
        let key = (heartbeat.name.clone(), heartbeat.replica);
        if *self.state(&key) == ReplicaState::Ended {
            return Ok(());
        }
        self.inner.heartbeat(heartbeat, now)
    }

    fn connection(&mut self, change: &ConnectionChange<'_>) -> io::Result<()> {
        self.inner.connection(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::proto::lease::{Gap, ReplicaEvent};

    /// 2026-01-31T12:00:00Z.
    const NOON: i64 = 1_769_860_800;

    #[derive(Debug, Default)]
    struct Received(Vec<ServiceLogs>);

    impl Sink for Received {
        fn entry(&mut self, entry: &ServiceLogs) -> io::Result<()> {
            self.0.push(entry.clone());
            Ok(())
        }

        fn heartbeat(&mut self, heartbeat: &ServiceLogs, _now: LogTime) -> io::Result<()> {
            self.entry(heartbeat)
        }
    }

    fn line(second: i64, text: &str) -> String {
        format!("{} {text}", LogTime::from_parts(NOON + second, 0).unwrap())
    }

    fn stamp(second: i64) -> Timestamp {
        Timestamp { seconds: NOON + second, nanos: 0 }
    }

    fn logs(replica: u32, text: &str) -> ServiceLogs {
        ServiceLogs {
            name: "web".into(),
            replica,
            logs: text.as_bytes().to_vec().into(),
            ..Default::default()
        }
    }

    fn key(replica: u32) -> ReplicaKey {
        ("web".to_owned(), replica)
    }

    /// Returns the entries passed on up to five seconds past noon, and whether the call was complete.
    fn passed(
        timestamps: bool,
        replicas: Option<&[u32]>,
        entries: &[ServiceLogs],
    ) -> (Vec<ServiceLogs>, bool) {
        let mut inner = Received::default();
        let until = LogTime::from_parts(NOON + 5, 0).unwrap();
        let replicas = replicas.map(|replicas| replicas.iter().map(|replica| key(*replica)).collect());
        let mut sink = Until::new(&mut inner, until, timestamps, replicas);
        for entry in entries {
            sink.entry(entry).unwrap();
        }
        let complete = sink.complete().is_cancelled();
        (inner.0, complete)
    }

    fn text(entries: &[ServiceLogs]) -> String {
        entries.iter().map(|entry| String::from_utf8(entry.logs.to_vec()).unwrap()).collect()
    }

    #[test]
    fn replica_ends_before_its_first_later_line() {
        let first = line(1, "a\n") + &line(5, "b\n") + &line(6, "c\n") + &line(2, "late\n");
        let entries = [logs(0, &first), logs(1, &line(4, "other\n")), logs(0, &line(3, "d\n"))];
        let (found, complete) = passed(false, None, &entries);
        assert_eq!((text(&found).as_str(), complete), ("a\nb\nother\n", false));
        let (found, _) = passed(true, None, &entries);
        assert_eq!(text(&found), line(1, "a\n") + &line(5, "b\n") + &line(4, "other\n"));
    }

    #[test]
    fn pieces_of_a_line_follow_its_first_piece() {
        let later = line(9, "no time of its own\n");
        let entries = [logs(0, &line(5, "begins ")), logs(0, &later), logs(0, &line(6, "x")), logs(0, "y\n")];
        assert_eq!(text(&passed(false, None, &entries).0), format!("begins {later}"));
    }

    #[test]
    fn call_is_complete_when_every_replica_has_ended() {
        let later = line(6, "x\n");
        let both = [logs(0, &later), logs(1, &later)];
        assert!(!passed(false, Some(&[0, 1]), &both[..1]).1);
        assert!(passed(false, Some(&[0, 1]), &both).1);
        assert!(!passed(false, None, &both).1);
    }

    #[test]
    fn gaps_and_events_end_with_the_lines() {
        let gap = |second| ServiceLogs {
            gap: Some(Gap { from: Some(stamp(second)), ..Gap::default() }),
            ..logs(0, "")
        };
        let event = |second| {
            let event = ReplicaEvent { time: Some(stamp(second)), ..ReplicaEvent::default() };
            ServiceLogs { event: Some(event), ..logs(0, "") }
        };
        let entries = [
            logs(0, &line(1, "half")),
            gap(1),
            logs(0, &line(2, "a\n")),
            event(9),
            logs(0, &line(3, "b\n")),
            event(4),
            gap(6),
            logs(0, &line(3, "c\n")),
        ];
        let (found, complete) = passed(false, Some(&[0]), &entries);
        assert_eq!((text(&found).as_str(), complete), ("halfa\nb\n", true));
        assert_eq!(found.iter().filter(|entry| entry.gap.is_some()).count(), 1);
        assert_eq!(found.iter().filter(|entry| entry.event.is_some()).count(), 1);
    }

    #[test]
    fn heartbeats_end_with_the_lines() {
        let (mut inner, end) = (Received::default(), LogTime::from_parts(NOON + 5, 0).unwrap());
        let mut sink = Until::new(&mut inner, end, false, None);
        sink.heartbeat(&logs(0, ""), end).unwrap();
        sink.entry(&logs(0, &line(6, "later\n"))).unwrap();
        for replica in [0, 1] {
            sink.heartbeat(&logs(replica, ""), end).unwrap();
        }
        assert_eq!(inner.0.iter().map(|heartbeat| heartbeat.replica).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn line_without_a_time_is_passed_on() {
        assert_eq!(text(&passed(false, None, &[logs(0, "no time\n"), logs(0, "")]).0), "no time\n");
    }
}
