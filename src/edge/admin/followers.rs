//! `/followers`: who lags now. Metrics may not name anybody; this list does, for the operator.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Serialize;

use crate::logs::actors::ActorRegistry;
use crate::logs::lag::{LagReport, LaggingFollower};

/// Most rows that are shown: more than a person reads, and some hundred kilobytes.
const ROWS_MAX: usize = 1_000;

/// Whose lag is looked up: nobody's, until there is somebody to follow. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Followers(Arc<OnceLock<ActorRegistry>>);

/// The list, for programs. Members may be added, and none is taken away.
#[derive(Debug, Serialize)]
struct List<'a> {
    /// How many lag.
    lagging: usize,
    /// How many of them are not in the list.
    left_out: usize,
    followers: Vec<Row<'a>>,
}

/// One follower of one replica.
#[derive(Debug, Serialize)]
struct Row<'a> {
    owner: &'a str,
    lease: String,
    replica: String,
    stream: u64,
    peer: Option<String>,
    /// Entries, lines and bytes that it has not taken yet, those lost included.
    behind_entries: u64,
    behind_lines: u64,
    behind_bytes: u64,
    /// What was overwritten before it took it, of that.
    lost_lines: u64,
    lost_bytes: u64,
    /// What its stream has handed to HTTP/2, and its peer does not take.
    unsent_bytes: u64,
    /// How long the oldest of what it has not taken has waited.
    waiting_seconds: f64,
    /// How long its peer has taken nothing of what it was sent.
    stalled_seconds: f64,
}

/// What stands above the columns.
const HEADINGS: [&str; 11] = [
    "WAITING",
    "STALLED",
    "UNSENT",
    "ENTRIES",
    "LINES",
    "BYTES",
    "LOST LINES",
    "STREAM",
    "PEER",
    "REPLICA",
    "LEASE",
];

/// How many columns, from the left, hold numbers.
const NUMBERS: usize = 8;

// === impl Followers ===

impl Followers {
    /// From now on those of `fanout`. The first word counts.
    pub fn set(&self, fanout: ActorRegistry) {
        let _ = self.0.set(fanout);
    }

    /// Who lags now, and the `most` worst of them.
    pub fn lagging(&self, most: usize) -> LagReport {
        self.0.get().map(|fanout| fanout.lagging(most)).unwrap_or_default()
    }

    /// The list for people, in columns.
    pub(super) fn text(&self) -> String {
        table(&self.lagging(ROWS_MAX))
    }

    /// The list for programs.
    pub(super) fn json(&self) -> String {
        json(&self.lagging(ROWS_MAX))
    }
}

fn json(lagging: &LagReport) -> String {
    let followers: Vec<_> = lagging.worst.iter().map(Row::of).collect();
    let list = List { lagging: lagging.total, left_out: lagging.total - followers.len(), followers };
    // Numbers and strings: nothing that JSON could not hold.
    serde_json::to_string(&list).unwrap_or_default() + "\n"
}

fn table(lagging: &LagReport) -> String {
    if lagging.total == 0 {
        return "nobody lags\n".to_owned();
    }
    let mut lines = vec![HEADINGS.map(str::to_owned)];
    lines.extend(lagging.worst.iter().map(columns));
    let widths: Vec<usize> =
        (0..HEADINGS.len()).map(|at| lines.iter().map(|line| line[at].len()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for line in &lines {
        let padded = line.iter().zip(&widths).enumerate().map(|(at, (cell, width))| {
            if at < NUMBERS { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    let left_out = lagging.total - lagging.worst.len();
    if left_out > 0 {
        // Writing to a string does not fail.
        let _ = writeln!(text, "and {left_out} more, who lag less");
    }
    text
}

fn columns(laggard: &LaggingFollower) -> [String; HEADINGS.len()] {
    [
        time(laggard.waiting),
        time(laggard.stalled),
        laggard.unsent_bytes.to_string(),
        laggard.backlog.entries.to_string(),
        laggard.backlog.lines.to_string(),
        laggard.backlog.bytes.to_string(),
        laggard.lost.lines.to_string(),
        laggard.stream.to_string(),
        laggard.peer.map_or_else(|| "-".to_owned(), |peer| peer.to_string()),
        laggard.replica.to_string(),
        laggard.lease.to_string(),
    ]
}

fn time(time: Duration) -> String {
    format!("{:.1}s", time.as_secs_f64())
}

// === impl Row ===

impl<'a> Row<'a> {
    fn of(laggard: &'a LaggingFollower) -> Self {
        Self {
            owner: laggard.lease.owner().as_str(),
            lease: laggard.lease.to_string(),
            replica: laggard.replica.to_string(),
            stream: laggard.stream,
            peer: laggard.peer.map(|peer| peer.to_string()),
            behind_entries: laggard.backlog.entries,
            behind_lines: laggard.backlog.lines,
            behind_bytes: laggard.backlog.bytes,
            lost_lines: laggard.lost.lines,
            lost_bytes: laggard.lost.bytes,
            unsent_bytes: laggard.unsent_bytes,
            waiting_seconds: laggard.waiting.as_secs_f64(),
            stalled_seconds: laggard.stalled.as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::ring::Backlog;
    use crate::model::id::{Address, LeaseId, Replica};

    fn laggard(peer: Option<&str>, lines: u64) -> LaggingFollower {
        let [owner, provider] = [1, 2].map(|number| Address::from_account([number; 20]));
        LaggingFollower {
            lease: LeaseId::new(owner.as_str(), 1, 1, 1, provider.as_str()).unwrap(),
            replica: Replica { service: "web".parse().unwrap(), index: 3 },
            stream: 17,
            peer: peer.map(|peer| peer.parse().unwrap()),
            backlog: Backlog { entries: 2, lines, bytes: 30 * lines },
            lost: Backlog { entries: 1, lines: lines / 2, bytes: 10 },
            waiting: Duration::from_millis(12_345),
            unsent_bytes: 0,
            stalled: Duration::ZERO,
        }
    }

    #[test]
    fn columns_stand_below_their_headings_and_who_is_left_out_is_said() {
        let worst = vec![laggard(Some("[2001:db8::1]:50000"), 1_000_000), laggard(None, 2)];
        let lease = worst[0].lease.to_string();
        let text = table(&LagReport { total: 5, worst });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[3], "and 3 more, who lag less");
        for heading in ["PEER", "REPLICA", "LEASE"] {
            let at = lines[0].find(heading).unwrap();
            assert!(
                lines[1..3].iter().all(|line| line.as_bytes()[at - 1] == b' ' && line.as_bytes()[at] != b' ')
            );
        }
        let cells: Vec<_> = lines[1].split_whitespace().collect();
        let wanted = [
            "12.3s",
            "0.0s",
            "0",
            "2",
            "1000000",
            "30000000",
            "500000",
            "17",
            "[2001:db8::1]:50000",
            "web/3",
            &lease,
        ];
        assert_eq!(cells, wanted);
        assert_eq!(lines[2].split_whitespace().nth(8), Some("-"));
    }

    #[test]
    fn programs_are_told_the_same() {
        let list = json(&LagReport { total: 2, worst: vec![laggard(None, 4)] });
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        assert_eq!((&list["lagging"], &list["left_out"]), (&2.into(), &1.into()));
        let row = &list["followers"][0];
        assert_eq!((&row["replica"], &row["peer"]), (&"web/3".into(), &serde_json::Value::Null));
        assert_eq!((&row["behind_lines"], &row["lost_lines"]), (&4.into(), &2.into()));
        assert_eq!(row["owner"].as_str().unwrap(), Address::from_account([1; 20]).as_str());
    }

    #[test]
    fn recorded_list_for_programs_is_unchanged() {
        const RECORDED: &str = include_str!("../../../tests/surface/fixtures/followers.json");
        let list = json(&LagReport {
            total: 3,
            worst: vec![laggard(Some("[2001:db8::1]:50000"), 8), laggard(None, 4)],
        });
        assert_eq!(list, RECORDED);
    }

    #[test]
    fn before_there_is_anybody_to_follow_nobody_lags() {
        assert_eq!(Followers::default().text(), "nobody lags\n");
        assert_eq!(Followers::default().json(), "{\"lagging\":0,\"left_out\":0,\"followers\":[]}\n");
    }
}
