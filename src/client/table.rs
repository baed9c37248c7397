//! Status, and what came of a restart, as people read it: one line a replica.

use super::columns::columns;
use super::terminal::neutralise;
use crate::model::proto::lease::replica_status::State;
use crate::model::proto::lease::service_restart_status::State as Restarted;
use crate::model::proto::lease::{
    ForwarderPortStatus, LeaseIpStatus, ReplicaStatus, ServiceRestartStatus, ServiceStatus,
    ServiceStatusResponse,
};
use crate::model::time::LogTime;

/// Space between columns.
const GAP: usize = 2;

/// Nanoseconds in a second.
const NANOS: i64 = 1_000_000_000;

/// Lines in columns, each with a key that stays the same from one table to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Row>,
}

/// One line of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    cells: Vec<String>,
    /// What of it is news when it differs: all but the time that has passed.
    news: String,
}

// === impl Table ===

impl Table {
    /// The replicas of an answer, at `now`. A service of which a gateway tells no replicas has a line of its own.
    pub(super) fn of_status(answer: &ServiceStatusResponse, now: LogTime) -> Self {
        let mut rows = Vec::new();
        for service in &answer.services {
            rows.extend(service.replica_status.iter().map(|replica| of_replica(&service.name, replica, now)));
            if service.replica_status.is_empty() {
                rows.push(of_service(service));
            }
        }
        let head = vec!["REPLICA", "STATE", "READY", "RESTARTS", "AGE", "LAST END", "MESSAGE"];
        Self { head, rows }
    }

    /// What came of a restart.
    pub(super) fn of_restart(status: &[ServiceRestartStatus]) -> Self {
        let rows = status.iter().map(|one| {
            let state = restart_state(one.state());
            let name = format!("{}/{}", one.service, one.replica);
            Row::new(vec![name, state.to_owned(), one.message.clone().unwrap_or_default()], None)
        });
        Self { head: vec!["REPLICA", "STATE", "MESSAGE"], rows: rows.collect() }
    }

    /// The table, its columns as wide as they must be.
    pub(super) fn lines(&self) -> Vec<String> {
        let widths = self.widths();
        let head: Vec<String> = self.head.iter().map(|title| (*title).to_owned()).collect();
        std::iter::once(&head)
            .chain(self.rows.iter().map(|row| &row.cells))
            .map(|cells| line(cells, &widths))
            .collect()
    }

    /// The lines that are new or say something new since `before`, and one for each that is gone.
    pub(super) fn changed(&self, before: &Self) -> Vec<String> {
        let known = |rows: &[Row], row: &Row| rows.iter().any(|other| other.news == row.news);
        let named =
            |rows: &[Row], row: &Row| rows.iter().any(|other| other.cells.first() == row.cells.first());
        let changed = self.rows.iter().filter(|row| !known(&before.rows, row)).map(|row| row.cells.clone());
        let gone = before.rows.iter().filter(|row| !named(&self.rows, row));
        let gone = gone.filter_map(|row| Some(vec![row.cells.first()?.clone(), "gone".to_owned()]));
        let widths = self.widths();
        changed.chain(gone).map(|cells| line(&cells, &widths)).collect()
    }

    fn widths(&self) -> Vec<usize> {
        let width = |at: usize| {
            let cells = self.rows.iter().filter_map(|row| row.cells.get(at)).map(|cell| columns(cell));
            cells.chain([self.head[at].len()]).max().unwrap_or_default()
        };
        (0..self.head.len()).map(width).collect()
    }
}

impl Row {
    /// `age` says which cell changes though nothing happens.
    fn new(cells: Vec<String>, age: Option<usize>) -> Self {
        let cells: Vec<String> = cells.iter().map(|cell| harmless(cell)).collect();
        let lasting =
            cells.iter().enumerate().filter(|(at, _)| Some(*at) != age).map(|(_, cell)| cell.as_str());
        Self { news: lasting.collect::<Vec<_>>().join("\n"), cells }
    }
}

/// The last line of an answer that may be out of date. The time is the gateway's: this machine's clock may be another.
pub(super) fn stale_line(answer: &ServiceStatusResponse) -> Option<String> {
    let since = answer.stale_since.as_ref()?;
    let since = LogTime::from_parts(since.seconds, since.nanos)?;
    Some(format!("stale: last known at {since}; the gateway has lost its view of the cluster"))
}

/// One word for what a replica does.
pub(super) fn replica_state(state: State) -> &'static str {
    match state {
        State::Unspecified | State::Unknown => "unknown",
        State::Waiting => "waiting",
        State::Running => "running",
        State::Terminated => "terminated",
    }
}

/// One word for what came of a restart.
pub(super) fn restart_state(state: Restarted) -> &'static str {
    match state {
        Restarted::Pending => "pending",
        Restarted::Active => "active",
        Restarted::Failure => "failure",
    }
}

/// What there is to say of services as a whole: counts, and where they can be reached.
pub(super) fn summaries(answer: &ServiceStatusResponse) -> Vec<String> {
    let summary = |service: &ServiceStatus| {
        let counts = service.status.clone().unwrap_or_default();
        let mut parts = vec![format!(
            "{} of {} available",
            counts.available_replicas.max(counts.available),
            counts.total
        )];
        if counts.updated_replicas < counts.total {
            parts.push(format!("{} updated", counts.updated_replicas));
        }
        parts.extend(counts.uris);
        parts.extend(service.ports.iter().map(|port: &ForwarderPortStatus| {
            format!("{}:{} -> {}/{}", port.host, port.external_port, port.port, port.proto)
        }));
        parts.extend(service.ips.iter().map(|ip: &LeaseIpStatus| {
            format!("{}:{} -> {}/{}", ip.ip, ip.external_port, ip.port, ip.protocol)
        }));
        harmless(&format!("{}: {}", service.name, parts.join(", ")))
    };
    answer.services.iter().map(summary).collect()
}

fn of_replica(service: &str, replica: &ReplicaStatus, now: LogTime) -> Row {
    let state = replica_state(replica.state());
    let started = replica.started_at.as_ref();
    let started = started.and_then(|stamp| LogTime::from_parts(stamp.seconds, stamp.nanos));
    let cells = vec![
        format!("{service}/{}", replica.replica),
        state.to_owned(),
        if replica.ready { "yes" } else { "no" }.to_owned(),
        replica.restarts.to_string(),
        started.map_or_else(|| "-".to_owned(), |started| age(started, now)),
        last_end(replica),
        replica.message.clone(),
    ];
    Row::new(cells, Some(4))
}

fn of_service(service: &ServiceStatus) -> Row {
    let counts = service.status.clone().unwrap_or_default();
    let state = format!("{} of {}", counts.available, counts.total);
    Row::new(vec![service.name.clone(), state, counts.ready_replicas.to_string()], None)
}

fn last_end(replica: &ReplicaStatus) -> String {
    let how = match (replica.last_signal, replica.last_exit_code) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("exit {code}"),
        (None, None) => String::new(),
    };
    match (how.is_empty(), replica.last_reason.as_str()) {
        (true, "") => "-".to_owned(),
        (true, reason) => reason.to_owned(),
        (false, "") => how,
        (false, reason) => format!("{how} ({reason})"),
    }
}

/// In one unit, as kubectl shows it.
fn age(started: LogTime, now: LogTime) -> String {
    let seconds = now.as_nanos().saturating_sub(started.as_nanos()).max(0) / NANOS;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        let padding = width + GAP - columns(cell).min(*width);
        line.push_str(cell);
        line.extend(std::iter::repeat_n(' ', padding));
    }
    line.truncate(line.trim_end().len());
    line
}

/// On one line, and fit for a terminal.
fn harmless(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    // Colours too are shown: they would be no part of a column's width. A tab has no width of its own.
    neutralise(text.replace(['\n', '\t'], " ").replace('\x1b', "^[").as_bytes(), &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::proto::lease::LeaseServiceStatus;

    fn replica(index: u32, state: State) -> ReplicaStatus {
        ReplicaStatus { replica: index, state: state.into(), ..ReplicaStatus::default() }
    }

    fn answer(replica_status: Vec<ReplicaStatus>) -> ServiceStatusResponse {
        let status = LeaseServiceStatus {
            total: 2,
            available: 1,
            available_replicas: 1,
            updated_replicas: 2,
            ..Default::default()
        };
        let service = ServiceStatus {
            name: "web".into(),
            status: Some(status),
            replica_status,
            ..ServiceStatus::default()
        };
        ServiceStatusResponse { services: vec![service], ..ServiceStatusResponse::default() }
    }

    fn table(replicas: Vec<ReplicaStatus>, seconds: i64) -> Table {
        Table::of_status(&answer(replicas), LogTime::from_nanos(seconds * NANOS))
    }

    fn running(seconds: i64) -> ReplicaStatus {
        let started_at = Some(prost_types::Timestamp { seconds, nanos: 0 });
        ReplicaStatus { ready: true, started_at, ..replica(0, State::Running) }
    }

    fn waiting() -> ReplicaStatus {
        ReplicaStatus {
            restarts: 12,
            last_exit_code: Some(3),
            last_reason: "Error".into(),
            message: "CrashLoopBackOff: a\nb \x1b[2J".into(),
            ..replica(1, State::Waiting)
        }
    }

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let expected = [
            "REPLICA  STATE    READY  RESTARTS  AGE  LAST END        MESSAGE",
            "web/0    running  yes    0         2m   -",
            "web/1    waiting  no     12        -    exit 3 (Error)  CrashLoopBackOff: a b ^[[2J",
        ];
        assert_eq!(table(vec![running(0), waiting()], 150).lines(), expected);
        assert_eq!(summaries(&answer(vec![])), ["web: 1 of 2 available"]);
        // A gateway that knows no replicas.
        assert_eq!(table(vec![], 0).lines()[1], "web      1 of 2  0");
    }

    #[test]
    fn columns_line_up_after_wide_characters() {
        let last = |reason: &str, message: &str| ReplicaStatus {
            last_reason: reason.into(),
            message: message.into(),
            ..replica(1, State::Waiting)
        };
        let lines = table(vec![last("日本語", "a\tb\r\n"), last("Error", "c")], 0).lines();
        let expected = [
            "REPLICA  STATE    READY  RESTARTS  AGE  LAST END  MESSAGE",
            "web/1    waiting  no     0         -    日本語    a b^M",
            "web/1    waiting  no     0         -    Error     c",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn stale_answer_ends_with_its_time() {
        let current = answer(vec![running(0)]);
        assert_eq!(stale_line(&current), None);
        let stale_since = Some(prost_types::Timestamp { seconds: 60, nanos: 0 });
        let stale = ServiceStatusResponse { stale_since, ..current };
        let expected = "stale: last known at 1970-01-01T00:01:00.000000000Z; the gateway has lost its view of the cluster";
        assert_eq!(stale_line(&stale).as_deref(), Some(expected));
    }

    #[test]
    fn time_alone_is_no_news() {
        let before = table(vec![running(0), waiting()], 10);
        assert!(table(vec![running(0), waiting()], 20).changed(&before).is_empty());
        let after = table(vec![running(15)], 20);
        assert!(
            after.changed(&before).iter().any(|line| line == "web/1    gone"),
            "{:?}",
            after.changed(&before)
        );
        let crashed = ReplicaStatus { restarts: 1, ..running(15) };
        assert_eq!(
            table(vec![crashed, waiting()], 20).changed(&before),
            ["web/0    running  yes    1         5s   -"]
        );
    }

    #[test]
    fn ages_have_one_unit() {
        let age = |seconds: i64| age(LogTime::from_nanos(0), LogTime::from_nanos(seconds * NANOS));
        assert_eq!([-5, 0, 119, 120, 7_200, 172_800].map(age), ["0s", "0s", "119s", "2m", "2h", "2d"]);
    }

    #[test]
    fn a_restart_is_told_replica_by_replica() {
        let one = |replica: &str, state: Restarted, message: Option<&str>| ServiceRestartStatus {
            service: "web".into(),
            replica: replica.into(),
            state: state.into(),
            message: message.map(str::to_owned),
        };
        let status =
            [one("0", Restarted::Active, None), one("1", Restarted::Failure, Some("not attempted: why"))];
        let expected =
            ["REPLICA  STATE    MESSAGE", "web/0    active", "web/1    failure  not attempted: why"];
        assert_eq!(Table::of_restart(&status).lines(), expected);
    }
}
