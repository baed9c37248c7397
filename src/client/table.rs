//! Tables of replica states and restart outcomes, one line per replica.

use super::terminal::{columns, escape_to_line};
use crate::model::proto::lease::replica_status::State;
use crate::model::proto::lease::service_restart_status::State as Restarted;
use crate::model::proto::lease::{
    ForwarderPortStatus, LeaseIpStatus, ReplicaStatus, ServiceRestartStatus, ServiceStatus,
    ServiceStatusResponse,
};
use crate::model::time::LogTime;

const COLUMN_SPACE: usize = 2;

const NANOS_PER_SECOND: i64 = 1_000_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    cells: Vec<String>,
    /// All cells but the age. The row has changed if this has.
    lasting: String,
}

// === impl Table ===

impl Table {
    /// Lists the replicas of a response, with ages at `now`. A service without known replicas gets a line of
    /// its own.
    pub(super) fn of_status(response: &ServiceStatusResponse, now: LogTime) -> Self {
        let mut rows = Vec::new();
        for service in &response.services {
            rows.extend(service.replica_status.iter().map(|replica| of_replica(&service.name, replica, now)));
            if service.replica_status.is_empty() {
                rows.push(of_service(service));
            }
        }
        let head = vec!["REPLICA", "STATE", "READY", "RESTARTS", "AGE", "LAST END", "MESSAGE"];
        Self { head, rows }
    }

    /// Lists the outcomes of a restart.
    pub(super) fn of_restart(status: &[ServiceRestartStatus]) -> Self {
        let rows = status.iter().map(|one| {
            let state = restart_state(one.state());
            let name = format!("{}/{}", one.service, one.replica);
            Row::new(vec![name, state.to_owned(), one.message.clone().unwrap_or_default()], None)
        });
        Self { head: vec!["REPLICA", "STATE", "MESSAGE"], rows: rows.collect() }
    }

    /// Formats the table. Columns are as wide as their widest cell.
    pub(super) fn lines(&self) -> Vec<String> {
        let widths = self.widths();
        let head: Vec<String> = self.head.iter().map(|title| (*title).to_owned()).collect();
        std::iter::once(&head)
            .chain(self.rows.iter().map(|row| &row.cells))
            .map(|cells| line(cells, &widths))
            .collect()
    }

    /// Formats the rows that are new or changed since `before`, and one line for each removed row.
    pub(super) fn changed(&self, before: &Self) -> Vec<String> {
        let is_unchanged = |row: &Row| before.rows.iter().any(|other| other.lasting == row.lasting);
        let is_named = |row: &Row| self.rows.iter().any(|other| other.cells.first() == row.cells.first());
        let changed = self.rows.iter().filter(|row| !is_unchanged(row)).map(|row| row.cells.clone());
        let gone = before.rows.iter().filter(|row| !is_named(row));
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
    /// `age` is the index of the cell that changes with time alone.
    fn new(cells: Vec<String>, age: Option<usize>) -> Self {
        let cells: Vec<String> = cells.iter().map(|cell| escape_cell(cell)).collect();
        let lasting =
            cells.iter().enumerate().filter(|(at, _)| Some(*at) != age).map(|(_, cell)| cell.as_str());
        Self { lasting: lasting.collect::<Vec<_>>().join("\n"), cells }
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

pub(super) fn restart_state(state: Restarted) -> &'static str {
    match state {
        Restarted::Pending => "pending",
        Restarted::Active => "active",
        Restarted::Failure => "failure",
    }
}

/// Returns a line per service: counts and addresses.
pub(super) fn summaries(response: &ServiceStatusResponse) -> Vec<String> {
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
        escape_cell(&format!("{}: {}", service.name, parts.join(", ")))
    };
    response.services.iter().map(summary).collect()
}

fn of_replica(service: &str, replica: &ReplicaStatus, now: LogTime) -> Row {
    let state = replica_state(replica.state());
    let started = replica.started_at.as_ref().and_then(LogTime::from_proto);
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

fn line(cells: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(widths) {
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
