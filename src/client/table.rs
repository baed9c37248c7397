//! Tables of replica states and restart outcomes, one line per replica.

use super::terminal::{columns, escape_to_line};
use crate::model::proto::lease::replica_status::State;
use crate::model::proto::lease::{ReplicaStatus, ServiceRestartStatus, ServiceStatus, ServiceStatusResponse};
use crate::model::time::LogTime;

const COLUMN_SPACE: usize = 2;

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// Head of the column that changes with time alone.
const AGE: &str = "AGE";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    head: &'static [&'static str],
    /// Escaped cells. A row may be shorter than the head.
    rows: Vec<Vec<String>>,
}

// === impl Table ===

impl Table {
    /// Lists the replicas of a response, with ages at `now`. A service without known replicas gets a line of
    /// its own.
    pub(super) fn of_status(response: &ServiceStatusResponse, now: LogTime) -> Self {
        let rows = response.services.iter().flat_map(|service| match service.replica_status.as_slice() {
            [] => vec![of_service(service)],
            replicas => replicas.iter().map(|replica| of_replica(&service.name, replica, now)).collect(),
        });
        Self::new(&["REPLICA", "STATE", "READY", "RESTARTS", AGE, "LAST END", "MESSAGE"], rows)
    }

    /// Lists the outcomes of a restart.
    pub(super) fn of_restart(status: &[ServiceRestartStatus]) -> Self {
        let rows = status.iter().map(|one| {
            let name = format!("{}/{}", one.service, one.replica);
            vec![name, one.state().as_str_name().to_owned(), one.message.clone().unwrap_or_default()]
        });
        Self::new(&["REPLICA", "STATE", "MESSAGE"], rows)
    }

    fn new(head: &'static [&'static str], rows: impl Iterator<Item = Vec<String>>) -> Self {
        let rows = rows.map(|cells| cells.iter().map(|cell| escape_cell(cell)).collect());
        Self { head, rows: rows.collect() }
    }

    /// Formats the table. Columns are as wide as their widest cell.
    pub(super) fn lines(&self) -> Vec<String> {
        let widths = self.widths();
        let rows = self.rows.iter().map(|cells| line(cells, &widths));
        std::iter::once(line(self.head, &widths)).chain(rows).collect()
    }

    /// Formats the rows that are new or changed since `before`, and one line for each removed row.
    pub(super) fn changed(&self, before: &Self) -> Vec<String> {
        let is_unchanged = |row: &&Vec<String>| before.rows.iter().any(|other| self.is_same(row, other));
        let is_named = |row: &&Vec<String>| self.rows.iter().any(|other| other.first() == row.first());
        let widths = self.widths();
        let changed = self.rows.iter().filter(|row| !is_unchanged(row)).map(|row| line(row, &widths));
        let gone = before.rows.iter().filter(|row| !is_named(row)).filter_map(|row| row.first());
        changed.chain(gone.map(|name| line(&[name.as_str(), "gone"], &widths))).collect()
    }

    /// Returns whether two rows differ in nothing but the age.
    fn is_same(&self, one: &[String], other: &[String]) -> bool {
        self.head.iter().enumerate().all(|(at, head)| *head == AGE || one.get(at) == other.get(at))
    }

    fn widths(&self) -> Vec<usize> {
        let width = |(at, head): (usize, &&str)| {
            let cells = self.rows.iter().filter_map(|row| row.get(at)).map(|cell| columns(cell));
            cells.chain([head.len()]).max().unwrap_or_default()
        };
        self.head.iter().enumerate().map(width).collect()
    }
}

/// Returns a line about a response that may be out of date. Its time is by the gateway's clock.
pub(super) fn stale_line(response: &ServiceStatusResponse) -> Option<String> {
    let since = LogTime::from_proto(response.stale_since.as_ref()?)?;
    Some(format!("stale: last known at {since}; the gateway has lost its view of the cluster"))
}

pub(super) fn replica_state(state: State) -> &'static str {
    match state {
        State::Unspecified | State::Unknown => "unknown",
        State::Waiting => "waiting",
        State::Running => "running",
        State::Terminated => "terminated",
    }
}

/// Returns a line per service: counts and addresses.
pub(super) fn summaries(response: &ServiceStatusResponse) -> Vec<String> {
    let address = |host: &str, external_port: u32, port: u32, protocol: &str| {
        format!("{host}:{external_port} -> {port}/{protocol}")
    };
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
        let of_ports = service.ports.iter();
        parts.extend(of_ports.map(|port| address(&port.host, port.external_port, port.port, &port.proto)));
        let of_ips = service.ips.iter();
        parts.extend(of_ips.map(|ip| address(&ip.ip, ip.external_port, ip.port, &ip.protocol)));
        escape_cell(&format!("{}: {}", service.name, parts.join(", ")))
    };
    response.services.iter().map(summary).collect()
}

fn of_replica(service: &str, replica: &ReplicaStatus, now: LogTime) -> Vec<String> {
    let started = replica.started_at.as_ref().and_then(LogTime::from_proto);
    vec![
        format!("{service}/{}", replica.replica),
        replica_state(replica.state()).to_owned(),
        if replica.ready { "yes" } else { "no" }.to_owned(),
        replica.restarts.to_string(),
        started.map_or_else(|| "-".to_owned(), |started| age(started, now)),
        last_end(replica),
        replica.message.clone(),
    ]
}

fn of_service(service: &ServiceStatus) -> Vec<String> {
    let counts = service.status.clone().unwrap_or_default();
    let state = format!("{} of {}", counts.available, counts.total);
    vec![service.name.clone(), state, counts.ready_replicas.to_string()]
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

/// Formats an age in one unit, as kubectl does.
fn age(started: LogTime, now: LogTime) -> String {
    let seconds = now.as_nanos().saturating_sub(started.as_nanos()).max(0) / NANOS_PER_SECOND;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn line(cells: &[impl AsRef<str>], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, width) in cells.iter().map(AsRef::as_ref).zip(widths) {
        let padding = width + COLUMN_SPACE - columns(cell).min(*width);
        line.push_str(cell);
        line.extend(std::iter::repeat_n(' ', padding));
    }
    line.truncate(line.trim_end().len());
    line
}

/// Escapes a cell. Its newlines and tabs become spaces, as neither has a fixed width. Colours are escaped
/// too: their bytes would count as width.
fn escape_cell(text: &str) -> String {
    escape_to_line(&text.replace(['\n', '\t'], " ").replace('\x1b', "^["))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::proto::lease::LeaseServiceStatus;

    fn replica(index: u32, state: State) -> ReplicaStatus {
        ReplicaStatus { replica: index, state: state.into(), ..ReplicaStatus::default() }
    }

    fn response(replica_status: Vec<ReplicaStatus>) -> ServiceStatusResponse {
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
        Table::of_status(&response(replicas), LogTime::from_nanos(seconds * NANOS_PER_SECOND))
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
    fn columns_fit_their_widest_cell() {
        let expected = [
            "REPLICA  STATE    READY  RESTARTS  AGE  LAST END        MESSAGE",
            "web/0    running  yes    0         2m   -",
            "web/1    waiting  no     12        -    exit 3 (Error)  CrashLoopBackOff: a b ^[[2J",
        ];
        assert_eq!(table(vec![running(0), waiting()], 150).lines(), expected);
        assert_eq!(summaries(&response(vec![])), ["web: 1 of 2 available"]);
        // A gateway that reports no replicas.
        assert_eq!(table(vec![], 0).lines()[1], "web      1 of 2  0");
    }

    #[test]
    fn columns_align_after_wide_characters() {
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
    fn stale_response_ends_with_its_time() {
        let current = response(vec![running(0)]);
        assert_eq!(stale_line(&current), None);
        let stale_since = Some(prost_types::Timestamp { seconds: 60, nanos: 0 });
        let stale = ServiceStatusResponse { stale_since, ..current };
        let expected = "stale: last known at 1970-01-01T00:01:00.000000000Z; the gateway has lost its view of the cluster";
        assert_eq!(stale_line(&stale).as_deref(), Some(expected));
    }

    #[test]
    fn age_alone_is_no_change() {
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
        let age = |seconds: i64| age(LogTime::from_nanos(0), LogTime::from_nanos(seconds * NANOS_PER_SECOND));
        assert_eq!([-5, 0, 119, 120, 7_200, 172_800].map(age), ["0s", "0s", "119s", "2m", "2h", "2d"]);
    }

    #[test]
    fn restart_has_one_row_per_replica() {
        use crate::model::proto::lease::service_restart_status::State;
        let one = |replica: &str, state: State, message: Option<&str>| ServiceRestartStatus {
            service: "web".into(),
            replica: replica.into(),
            state: state.into(),
            message: message.map(str::to_owned),
        };
        let status = [one("0", State::Active, None), one("1", State::Failure, Some("not attempted: why"))];
        let expected =
            ["REPLICA  STATE    MESSAGE", "web/0    active", "web/1    failure  not attempted: why"];
        assert_eq!(Table::of_restart(&status).lines(), expected);
    }
}
