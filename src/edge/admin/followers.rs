//! `/followers`: the lagging followers, for the operator. Unlike metrics, this list names tenants.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Serialize;

use crate::logs::actors::ActorRegistry;
use crate::logs::ring::{LagReport, LaggingFollower};

/// Most rows: more than a person reads, and some hundred kilobytes.
const ROWS_MAX: usize = 1_000;

/// Source of the lagging followers: empty until [`Followers::set`]. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Followers(Arc<OnceLock<ActorRegistry>>);

/// The list as JSON. Keys may be added, and are never removed.
#[derive(Debug, Serialize)]
struct List<'a> {
    lagging: usize,
    /// Lagging followers that are not in the list.
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
    /// Entries, lines and bytes between the follower and the head, including lost ones.
    behind_entries: u64,
    behind_lines: u64,
    behind_bytes: u64,
    /// Of those, lines and bytes that the ring evicted before it read them.
    lost_lines: u64,
    lost_bytes: u64,
    /// Bytes handed to HTTP/2 that the peer does not take.
    unsent_bytes: u64,
    /// Age of the oldest unread entry.
    waiting_seconds: f64,
    /// Time since the peer last took something.
    stalled_seconds: f64,
}

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

/// Number of leading columns that hold numbers.
const NUMERIC: usize = 8;

// === impl Followers ===

impl Followers {
    /// Sets the registry of followers. Later calls have no effect.
    pub fn set(&self, actors: ActorRegistry) {
        let _ = self.0.set(actors);
    }

    /// Returns the bytes of the memory budget that are held or reserved.
    pub(super) fn memory_used(&self) -> usize {
        self.0.get().map_or(0, |actors| actors.context().memory.charged())
    }

    /// Returns the number of lagging followers and the `max` worst of them.
    pub fn lagging(&self, max: usize) -> LagReport {
        self.0.get().map(|actors| actors.lagging(max)).unwrap_or_default()
    }

    /// Returns the live tails that are shared with other gateways, as JSON; `None` without a fleet.
    pub(super) fn fleet_json(&self) -> Option<String> {
        let fleet = self.0.get()?.fleet()?;
        // Numbers and strings: encoding cannot fail.
        Some(serde_json::to_string(&fleet).unwrap_or_default() + "\n")
    }

    pub(super) fn text(&self) -> String {
        table(&self.lagging(ROWS_MAX))
    }

    pub(super) fn json(&self) -> String {
        json(&self.lagging(ROWS_MAX))
    }
}

fn json(lagging: &LagReport) -> String {
    let followers: Vec<_> = lagging.worst.iter().map(Row::of).collect();
    let list = List { lagging: lagging.total, left_out: lagging.total - followers.len(), followers };
    // Numbers and strings: encoding cannot fail.
    serde_json::to_string(&list).unwrap_or_default() + "\n"
}

fn table(lagging: &LagReport) -> String {
    if lagging.total == 0 {
        return "no follower lags\n".to_owned();
    }
    let mut lines = vec![HEADINGS.map(str::to_owned)];
    lines.extend(lagging.worst.iter().map(columns));
    let widths: Vec<usize> =
        (0..HEADINGS.len()).map(|at| lines.iter().map(|line| line[at].len()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for line in &lines {
        let padded = line.iter().zip(&widths).enumerate().map(|(at, (cell, width))| {
            if at < NUMERIC { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    let left_out = lagging.total - lagging.worst.len();
    if left_out > 0 {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "and {left_out} more that lag less");
    }
    text
}

fn columns(follower: &LaggingFollower) -> [String; HEADINGS.len()] {
    [
        time(follower.waiting),
        time(follower.stalled),
        follower.unsent_bytes.to_string(),
        follower.backlog.entries.to_string(),
        follower.backlog.lines.to_string(),
        follower.backlog.bytes.to_string(),
        follower.lost.lines.to_string(),
        follower.stream.to_string(),
        follower.peer.map_or_else(|| "-".to_owned(), |peer| peer.to_string()),
        follower.replica.to_string(),
        follower.lease.to_string(),
    ]
}

fn time(time: Duration) -> String {
    format!("{:.1}s", time.as_secs_f64())
}

// === impl Row ===

impl<'a> Row<'a> {
    fn of(follower: &'a LaggingFollower) -> Self {
        Self {
            owner: follower.lease.owner().as_str(),
            lease: follower.lease.to_string(),
            replica: follower.replica.to_string(),
            stream: follower.stream,
            peer: follower.peer.map(|peer| peer.to_string()),
            behind_entries: follower.backlog.entries,
            behind_lines: follower.backlog.lines,
            behind_bytes: follower.backlog.bytes,
            lost_lines: follower.lost.lines,
            lost_bytes: follower.lost.bytes,
            unsent_bytes: follower.unsent_bytes,
            waiting_seconds: follower.waiting.as_secs_f64(),
            stalled_seconds: follower.stalled.as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::ring::Backlog;
    use crate::model::id::{Address, LeaseId, Replica};

    fn follower(peer: Option<&str>, lines: u64) -> LaggingFollower {
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
    fn follower_table_is_aligned_and_counts_omitted_rows() {
        let worst = vec![follower(Some("[2001:db8::1]:50000"), 1_000_000), follower(None, 2)];
        let lease = worst[0].lease.to_string();
        let text = table(&LagReport { total: 5, worst });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[3], "and 3 more that lag less");
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
    fn follower_json_has_the_same_rows() {
        let list = json(&LagReport { total: 2, worst: vec![follower(None, 4)] });
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        assert_eq!((&list["lagging"], &list["left_out"]), (&2.into(), &1.into()));
        let row = &list["followers"][0];
        assert_eq!((&row["replica"], &row["peer"]), (&"web/3".into(), &serde_json::Value::Null));
        assert_eq!((&row["behind_lines"], &row["lost_lines"]), (&4.into(), &2.into()));
        assert_eq!(row["owner"].as_str().unwrap(), Address::from_account([1; 20]).as_str());
    }

    #[test]
    fn follower_json_matches_the_recorded_one() {
        const RECORDED: &str = include_str!("../../../tests/surface/fixtures/followers.json");
        let list = json(&LagReport {
            total: 3,
            worst: vec![follower(Some("[2001:db8::1]:50000"), 8), follower(None, 4)],
        });
        assert_eq!(list, RECORDED);
    }

    #[test]
    fn follower_list_without_actors_is_empty() {
        assert_eq!(Followers::default().text(), "no follower lags\n");
        assert_eq!(Followers::default().json(), "{\"lagging\":0,\"left_out\":0,\"followers\":[]}\n");
    }
}
