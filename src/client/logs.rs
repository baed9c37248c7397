//! `leasemux logs`: prints the log of one request.
//!
//! Ctrl-C keeps its default action unless progress is drawn, which `interrupt` erases first.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::Duration;

use super::ReplicaKey;
use super::connect::{Client, Connector};
use super::error::CallError;
use super::exit::Exit;
use super::follow::{Ended, Follower};
use super::line_options::LineOptions;
use super::output_style::OutputStyle;
use super::print::Printer;
use super::request::{filters, status};
use super::services::{expand_with, explain};
use super::until::Until;
use crate::config::{Format, LogsConfig, TimeSpec};
use crate::model::limits::STREAM_REPLICAS_MAX;
use crate::model::proto::lease::{OnLag, ServiceFilter, ServiceLogsRequest, ServiceStatus};
use crate::model::time::LogTime;

/// Limit on the query for the replicas. Without its result, the call reads more than it prints.
const REPLICAS_TIMEOUT: Duration = Duration::from_secs(5);

/// Interval of heartbeats in a follow. A source that is cut off is reported within two seconds after
/// [`UNREACHABLE_AFTER`](super::print::UNREACHABLE_AFTER), which a person does not notice.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);

/// Prints the entries that `config` requests to `out`, and messages to `err`.
pub async fn run(
    config: &LogsConfig,
    out: impl Write + Send,
    err: impl Write + Send,
    style: OutputStyle,
) -> Exit {
    let mut printer = Printer::with_lines(out, err, style, LineOptions::new(config));
    let complete = printer.complete();
    let _interrupts = printer.erase_on_interrupt();
    let ended = complete.run_until_cancelled(read(config, style.terminal, &mut printer)).await;
    let ended = match ended.unwrap_or(Ok(Ended::Complete)) {
        Ok(ended) => Ok(ended),
        Err(error) => Err((explain(&error, &config.call).await, error)),
    };
    match conclude(ended, &mut printer) {
        Ok(exit) => exit,
        // The reader has all it wanted, as in `… | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => {
            // The error output may fail as well; then there is no way to report it.
            let _ = printer.message(&format!("cannot write: {error}"));
            Exit::Failed
        }
    }
}

async fn read(config: &LogsConfig, is_terminal: bool, printer: &mut Printer<'_>) -> Result<Ended, CallError> {
    let connector = Connector::new(&config.call.target)?;
    let is_relative = |time: Option<TimeSpec>| matches!(time, Some(TimeSpec::Ago(_)));
    if !is_relative(config.since) && config.until.is_none() && !config.call.has_patterns() {
        // The request does not depend on the current time.
        return Follower::new(connector, request(config, is_terminal, LogTime::MIN)).run(printer).await;
    }
    // Boxed: the future that connects is far larger than the one that follows, and short-lived.
    let (mut client, clock) = Box::pin(connector.connect_with_clock()).await?;
    let now = clock.now();
    let call = expand_with(&config.call, &mut client).await?;
    let config = &LogsConfig { call, ..config.clone() };
    let request = request(config, is_terminal, now);
    let Some(until) = config.until else {
        return Follower::new(connector, request).with_client(client).run(printer).await;
    };
    let replicas = replicas(&mut client, config).await;
    let mut sink = Until::new(printer, until.resolve(now), config.has_times(), replicas);
    let complete = sink.complete();
    let follower = Follower::new(connector, request).with_client(client);
    complete.run_until_cancelled(follower.run(&mut sink)).await.unwrap_or(Ok(Ended::Complete))
}

/// Returns the replicas that a request covers; `None` if they are unknown, as without permission to see the
/// status.
async fn replicas(client: &mut Client, config: &LogsConfig) -> Option<BTreeSet<ReplicaKey>> {
    let response = async { status(client, &config.call, false).await.ok()?.0.message().await.ok()? };
    let response = tokio::time::timeout(REPLICAS_TIMEOUT, response).await.ok()??;
    let is_known = response.services.iter().all(|service| !service.replica_status.is_empty());
    let keys = response.services.into_iter().flat_map(|service| {
        let ServiceStatus { name, replica_status, .. } = service;
        replica_status.into_iter().map(move |replica| (name.clone(), replica.replica))
    });
    let keys: BTreeSet<ReplicaKey> = keys.take(STREAM_REPLICAS_MAX + 1).collect();
    (is_known && (1..=STREAM_REPLICAS_MAX).contains(&keys.len())).then_some(keys)
}

/// Reports how the call ended; an error with its text. Returns the error if the output failed.
fn conclude(ended: Result<Ended, (String, CallError)>, printer: &mut Printer<'_>) -> io::Result<Exit> {
    if let Err((_, CallError::Sink(error))) = ended {
        return Err(error);
    }
    printer.finish()?;
    match ended {
        Ok(Ended::LeaseEnded) => printer.message("the lease has ended")?,
        Ok(Ended::Complete) => {}
        Err((text, error)) => {
            printer.message(&text)?;
            return Ok(Exit::from(&error));
        }
    }
    Ok(if printer.gaps() > 0 { Exit::LinesLost } else { Exit::Done })
}

fn request(config: &LogsConfig, is_terminal: bool, now: LogTime) -> ServiceLogsRequest {
    let (filter, filters) = filters(&config.call);
    // An empty filter selects everything, and makes the request one of the draft wherever it is sent.
    let filter = filter.or_else(|| filters.is_empty().then(ServiceFilter::default));
    // A file or program must get every line. A person wants to see the newest ones.
    let default_on_lag = if config.follow && !is_terminal { OnLag::Refill } else { OnLag::Drop };
    let shows_heartbeats = config.follow && config.output.format() == Format::Text;
    ServiceLogsRequest {
        lease_id: Some((&config.call.lease).into()),
        filter,
        filters,
        follow: config.follow,
        tail_lines: config.tail,
        since: config.since.map(|since| since.resolve(now).into()),
        // `--until` compares the times of lines.
        timestamps: config.has_times() || config.until.is_some(),
        previous: config.previous,
        resume: Vec::new(),
        on_lag: config.on_lag.unwrap_or(default_on_lag).into(),
        heartbeat: shows_heartbeats.then(|| HEARTBEAT_INTERVAL.try_into().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::net::TcpListener;
    use tonic::{Code, Status};
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;
    use crate::client::testing::{ClosedOutput, FakeGateway, LEASE, Step};
    use crate::config::{CallConfig, FormConfig, LogsOutput, SelectionConfig, Target};
    use crate::model::proto::lease::replica_event::Kind;
    use crate::model::proto::lease::source_state::State;
    use crate::model::proto::lease::{Cursor, Gap, ReplicaEvent, ServiceLogs, SourceState};

    /// Limit on every wait of the tests.
    const TEST_TIMEOUT: Duration = Duration::from_secs(30);

    fn config(target: Target, follow: bool) -> LogsConfig {
        LogsConfig {
            call: CallConfig {
                lease: LEASE.parse().unwrap(),
                source: crate::config::LeaseSource::default(),
                target,
                services: vec!["web".parse().unwrap()],
                replicas: vec![0, 1],
            },
            follow,
            tail: Some(3),
            since: None,
            until: None,
            timestamps: false,
            quiet: false,
            previous: false,
            on_lag: None,
            output: LogsOutput::Text,
            selection: SelectionConfig::default(),
            form: FormConfig::default(),
        }
    }

    fn cursor(replica: u32, ordinal: u64) -> Cursor {
        Cursor { service: "web".into(), replica, instance: "p/web/0".into(), ordinal, ..Default::default() }
    }

    fn lines(replica: u32, ordinal: u64, text: &str) -> Step {
        let logs = text.as_bytes().to_vec().into();
        let cursor = Some(cursor(replica, ordinal));
        Step::Send(Box::new(ServiceLogs { name: "web".into(), replica, logs, cursor, ..Default::default() }))
    }

    fn gap(replica: u32, ordinal: u64, lines: u64) -> Step {
        let gap = Some(Gap { lines, bytes: lines * 10, exact: true, cause: 1, ..Default::default() });
        let cursor = Some(cursor(replica, ordinal));
        Step::Send(Box::new(ServiceLogs { name: "web".into(), replica, gap, cursor, ..Default::default() }))
    }

    fn started(replica: u32) -> Step {
        let event =
            ReplicaEvent { kind: Kind::Started.into(), instance: "p/web/0".into(), ..Default::default() };
        Step::Send(Box::new(ServiceLogs {
            name: "web".into(),
            replica,
            event: Some(event),
            ..Default::default()
        }))
    }

    fn end(code: Code) -> Step {
        Step::End(Status::new(code, "because"))
    }

    async fn print(config: &LogsConfig) -> (Exit, String, String) {
        print_as(config, OutputStyle::PLAIN).await
    }

    async fn print_as(config: &LogsConfig, style: OutputStyle) -> (Exit, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = run(config, &mut out, &mut err, style).await;
        (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[tokio::test]
    async fn all_requested_entries_are_printed() {
        let gateway = FakeGateway::start(vec![vec![
            started(0),
            lines(0, 2, "a\nb\n"),
            lines(1, 1, "c\n"),
            end(Code::Ok),
        ]])
        .await;
        let (exit, out, err) = print(&config(gateway.target(), false)).await;
        assert_eq!((exit, out.as_str()), (Exit::Done, "web/0 | a\nweb/0 | b\nweb/1 | c\n"), "{err}");
        assert_eq!(err, "web/0 * started\n");
        let request = &gateway.requests()[0];
        assert_eq!(request.lease_id.as_ref().unwrap().dseq, 6_194_991);
        assert_eq!(request.filter.as_ref().unwrap().replicas, [0, 1]);
        assert_eq!((request.tail_lines, request.follow), (Some(3), false));
        assert_eq!(gateway.handshakes(), [(None, false)]);
    }

    #[tokio::test]
    async fn interrupted_follow_resumes_at_its_cursors() {
        let gateway = FakeGateway::start(vec![
            vec![
                started(0),
                lines(0, 2, "a\nb\n"),
                lines(1, 1, "c\nlong"),
                lines(0, 3, "d\n"),
                Step::Disconnect,
            ],
            vec![end(Code::Unavailable)],
            vec![started(0), lines(1, 2, " line\n"), lines(0, 4, "e\n"), end(Code::NotFound)],
        ])
        .await;
        let (exit, out, err) = print(&config(gateway.target(), true)).await;
        assert_eq!(exit, Exit::Done, "{err}");
        assert_eq!(out, "web/0 | a\nweb/0 | b\nweb/1 | c\nweb/0 | d\nweb/1 | long line\nweb/0 | e\n");
        assert_eq!(err.matches("web/0 * started").count(), 1, "{err}");
        assert_eq!(err.matches("; reconnecting in ").count(), 2, "{err}");
        assert!(
            err.ends_with("reconnected, resuming where the stream ended\nleasemux: the lease has ended\n"),
            "{err}"
        );
        let requests = gateway.requests();
        assert_eq!(requests.len(), 3);
        for again in &requests[1..] {
            assert_eq!(again.resume, [cursor(0, 3), cursor(1, 1)]);
            assert_eq!((again.tail_lines, again.follow, &again.filter), (None, true, &requests[0].filter));
        }
    }

    #[tokio::test]
    async fn output_without_terminal_is_refilled_by_default() {
        let terminal = OutputStyle { terminal: true, ..OutputStyle::PLAIN };
        for (follow, style, given, expected) in [
            (true, OutputStyle::PLAIN, None, OnLag::Refill),
            (true, terminal, None, OnLag::Drop),
            (false, OutputStyle::PLAIN, None, OnLag::Drop),
            (true, OutputStyle::PLAIN, Some(OnLag::Drop), OnLag::Drop),
            (true, terminal, Some(OnLag::Refill), OnLag::Refill),
            (true, OutputStyle::PLAIN, Some(OnLag::Close), OnLag::Close),
        ] {
            let gateway = FakeGateway::start(vec![vec![lines(0, 1, "a\n"), end(Code::NotFound)]]).await;
            let config = LogsConfig { on_lag: given, ..config(gateway.target(), follow) };
            print_as(&config, style).await;
            assert_eq!(gateway.requests()[0].on_lag(), expected, "{follow} {given:?}");
        }
    }

    #[tokio::test]
    async fn gateway_without_refill_is_asked_to_drop() {
        for (given, services) in [(None, &["web"][..]), (Some(OnLag::Refill), &["web", "db"])] {
            let gateway = FakeGateway::start(vec![
                vec![end(Code::Unimplemented)],
                vec![lines(0, 1, "a\n"), Step::Disconnect],
                vec![end(Code::Unimplemented)],
                vec![lines(0, 2, "b\n"), Step::Disconnect],
                // The gateway was updated.
                vec![lines(0, 3, "c\n"), end(Code::NotFound)],
            ])
            .await;
            let mut config = LogsConfig { on_lag: given, ..config(gateway.target(), true) };
            config.call.services = services.iter().map(|name| name.parse().unwrap()).collect();
            let (exit, out, err) = print(&config).await;
            assert_eq!((exit, out.as_str()), (Exit::Done, "web/0 | a\nweb/0 | b\nweb/0 | c\n"), "{err}");
            assert_eq!(err.matches("cannot read lines again").count(), 1, "{err}");
            let requests = gateway.requests();
            let asked: Vec<_> = requests.iter().map(ServiceLogsRequest::on_lag).collect();
            assert_eq!(asked, [OnLag::Refill, OnLag::Drop, OnLag::Refill, OnLag::Drop, OnLag::Refill]);
            for retry in [0, 2] {
                let first = ServiceLogsRequest { on_lag: OnLag::Drop.into(), ..requests[retry].clone() };
                assert_eq!(requests[retry + 1], first);
            }
            let cursors = |number: usize| requests[number].resume.clone();
            assert_eq!([0, 2, 4].map(cursors), [vec![], vec![cursor(0, 1)], vec![cursor(0, 2)]]);
        }
    }

    #[tokio::test]
    async fn unimplemented_call_is_final_and_blames_no_refill() {
        for (given, calls) in [(None, 2), (Some(OnLag::Drop), 1), (Some(OnLag::Close), 1)] {
            let answers = vec![vec![end(Code::Unimplemented)], vec![end(Code::Unimplemented)]];
            let gateway = FakeGateway::start(answers).await;
            let config = LogsConfig { on_lag: given, ..config(gateway.target(), true) };
            let (exit, _, err) = print(&config).await;
            assert_eq!((exit, err.as_str()), (Exit::Failed, "leasemux: the gateway answered: because\n"));
            assert_eq!(gateway.requests().len(), calls, "{given:?}");
        }
    }

    /// End of a read of a log that is temporarily unavailable.
    fn unreadable() -> Step {
        let info = std::collections::HashMap::new();
        let mut details = ErrorDetails::with_error_info("PLATFORM_UNAVAILABLE", "leasemux", info);
        details.set_retry_info(Some(Duration::from_millis(1)));
        Step::End(Status::with_error_details(Code::Unavailable, "web/1 cannot be read", details))
    }

    #[tokio::test]
    async fn read_of_unavailable_log_resumes_at_its_cursor() {
        let gateway = FakeGateway::start(vec![
            vec![lines(0, 2, "a\nb\n"), lines(1, 1, "c\n"), unreadable()],
            vec![lines(1, 2, "d\n"), end(Code::Ok)],
        ])
        .await;
        let config = LogsConfig { tail: None, ..config(gateway.target(), false) };
        let (exit, out, err) = print(&config).await;
        assert_eq!(
            (exit, out.as_str()),
            (Exit::Done, "web/0 | a\nweb/0 | b\nweb/1 | c\nweb/1 | d\n"),
            "{err}"
        );
        assert_eq!(gateway.requests()[1].resume, [cursor(0, 2), cursor(1, 1)]);
        assert!(
            err.starts_with("leasemux: the gateway answered: web/1 cannot be read; reconnecting in "),
            "{err}"
        );
    }

    #[tokio::test]
    async fn resumed_read_keeps_limit_for_replicas_without_cursor() {
        let gateway = FakeGateway::start(vec![
            vec![lines(0, 1, "a\n"), unreadable()],
            // One call for the replica with a cursor, one for the others. The error of one does not prevent
            // the other.
            vec![lines(0, 2, "b\n"), unreadable()],
            vec![lines(0, 2, "a\nb\n"), lines(1, 1, "c\n"), end(Code::Ok)],
            vec![end(Code::Ok)],
            vec![lines(0, 2, "a\nb\n"), lines(1, 1, "c\n"), end(Code::Ok)],
        ])
        .await;
        let (exit, out, err) = print(&config(gateway.target(), false)).await;
        assert_eq!((exit, out.as_str()), (Exit::Done, "web/0 | a\nweb/0 | b\nweb/1 | c\n"), "{err}");
        let requests = gateway.requests();
        let asked: Vec<_> = requests.iter().map(|one| (one.tail_lines, one.resume.len())).collect();
        assert_eq!(asked, [(Some(3), 0), (None, 1), (Some(3), 0), (None, 2), (Some(3), 0)]);
        assert_eq!(requests[1].filters[0].replicas, [0]);
    }

    #[tokio::test]
    async fn read_of_unavailable_log_gives_up_after_four_retries() {
        // Another replica prints all the time.
        let again = |number| vec![lines(0, number, "a\n"), unreadable()];
        let gateway = FakeGateway::start((1..20).map(again).collect()).await;
        let config = LogsConfig { tail: None, ..config(gateway.target(), false) };
        let (exit, out, err) = print(&config).await;
        assert_eq!((exit, out.lines().count()), (Exit::Unavailable, 5), "{err}");
        assert_eq!((gateway.requests().len(), err.matches("; reconnecting in ").count()), (5, 4));
        assert!(err.ends_with("leasemux: the gateway answered: web/1 cannot be read\n"), "{err}");
    }

    #[tokio::test]
    async fn read_of_previous_run_is_not_resumed() {
        let gateway = FakeGateway::start(vec![
            vec![started(0), unreadable()],
            vec![lines(0, 1, "a\n"), unreadable()],
            vec![lines(0, 1, "a\n"), end(Code::Ok)],
        ])
        .await;
        let config = LogsConfig { tail: None, previous: true, ..config(gateway.target(), false) };
        let (exit, out, err) = print(&config).await;
        assert_eq!((exit, out.as_str()), (Exit::Unavailable, "web/0 | a\n"), "{err}");
        assert_eq!(gateway.requests().len(), 2);
    }

    #[tokio::test]
    async fn lease_without_services_is_reported() {
        let event = ReplicaEvent {
            kind: Kind::Waiting.into(),
            reason: "NothingDeployed".into(),
            ..Default::default()
        };
        let entry = ServiceLogs { event: Some(event), ..Default::default() };
        let answer = || vec![Step::Send(Box::new(entry.clone())), end(Code::Ok)];
        let gateway = FakeGateway::start(vec![answer(), answer()]).await;
        let config = config(gateway.target(), false);
        let (exit, out, err) = print(&config).await;
        let expected = "leasemux: nothing is deployed under this lease\n";
        assert_eq!((exit, out.as_str(), err.as_str()), (Exit::Done, "", expected));
        let style = OutputStyle { format: Format::Json, ..OutputStyle::PLAIN };
        let (exit, out, err) = print_as(&config, style).await;
        assert_eq!((exit, err.as_str()), (Exit::Done, ""));
        assert!(out.contains(r#""kind":"waiting","reason":"NothingDeployed""#), "{out}");
    }

    #[tokio::test]
    async fn service_gone_after_reconnect_is_not_end_of_lease() {
        let details =
            ErrorDetails::with_error_info("SERVICE_NOT_FOUND", "leasemux", std::collections::HashMap::new());
        let gone = Status::with_error_details(Code::NotFound, "the lease has no service web", details);
        let gateway =
            FakeGateway::start(vec![vec![lines(0, 1, "a\n"), end(Code::Unavailable)], vec![Step::End(gone)]])
                .await;
        let (exit, _, err) = print(&config(gateway.target(), true)).await;
        assert_eq!(exit, Exit::NotFound, "{err}");
        assert!(err.contains("no service web"), "{err}");
    }

    #[tokio::test]
    async fn follower_closed_for_lag_resumes() {
        let details =
            ErrorDetails::with_error_info("FOLLOWER_LAGGED", "leasemux", std::collections::HashMap::new());
        let lagged = Status::with_error_details(Code::ResourceExhausted, "too slow", details);
        let gateway = FakeGateway::start(vec![
            vec![lines(0, 1, "a\n"), Step::End(lagged)],
            vec![lines(0, 2, "b\n"), end(Code::Ok)],
        ])
        .await;
        let (exit, out, err) = print(&config(gateway.target(), true)).await;
        assert_eq!((exit, out.as_str()), (Exit::Done, "web/0 | a\nweb/0 | b\n"));
        assert!(err.contains("could not keep up; reconnecting"), "{err}");
    }

    #[tokio::test]
    async fn used_up_quota_is_retried_by_follow_only() {
        let mut details =
            ErrorDetails::with_error_info("QUOTA_USED_UP", "leasemux", std::collections::HashMap::new());
        details.set_retry_info(Some(Duration::from_millis(1)));
        let refused = Status::with_error_details(Code::ResourceExhausted, "history_reads: no more", details);
        for format in [Format::Text, Format::Json] {
            // The refusal follows the response header: the quota is checked when reading starts.
            let refusal = || vec![Step::End(refused.clone()), Step::Hang];
            let lines = vec![lines(0, 2, "a\nb\n"), end(Code::Ok)];
            let gateway = FakeGateway::start(vec![refusal(), refusal(), lines]).await;
            let style = OutputStyle { format, ..OutputStyle::PLAIN };
            let (exit, out, err) = print_as(&config(gateway.target(), true), style).await;
            assert_eq!((exit, out.lines().count()), (Exit::Done, 2), "{out}{err}");
            assert_eq!(
                err.matches("the gateway answered: history_reads: no more; reconnecting in").count(),
                2
            );
            let requests = gateway.requests();
            assert!(requests.len() == 3 && requests.iter().all(|again| again.tail_lines == Some(3)));
            let gateway = FakeGateway::start(vec![refusal()]).await;
            let (exit, out, err) = print_as(&config(gateway.target(), false), style).await;
            assert_eq!((exit, out.as_str()), (Exit::Rejected, ""));
            assert_eq!(err, "leasemux: the gateway answered: history_reads: no more\n");
        }
    }

    fn minutes_ago(minutes: i64) -> LogTime {
        LogTime::now().saturating_add_nanos(-60_000_000_000 * minutes)
    }

    #[tokio::test]
    async fn relative_since_uses_the_clock_of_the_gateway() {
        for (gateway_behind, since_minutes) in [(Some(10), 15), (Some(-10), -5), (None, 5)] {
            let mut gateway = FakeGateway::start(vec![vec![lines(0, 1, "a\n"), end(Code::Ok)]]).await;
            if let Some(minutes) = gateway_behind {
                gateway.set_date(minutes_ago(minutes));
            }
            let since = Some(TimeSpec::Ago(Duration::from_secs(300)));
            let config = LogsConfig { since, tail: None, ..config(gateway.target(), false) };
            let before = minutes_ago(since_minutes);
            let (exit, out, err) = print(&config).await;
            assert_eq!((exit, out.as_str()), (Exit::Done, "web/0 | a\n"), "{err}");
            let asked = gateway.requests()[0].since.unwrap();
            let asked = LogTime::from_parts(asked.seconds, asked.nanos).unwrap();
            let off = (asked.as_nanos() - before.as_nanos()).abs();
            assert!(off < 60_000_000_000, "{gateway_behind:?}: {off} ns off");
            assert_eq!(gateway.handshakes().len(), 1, "both calls share a connection");
        }
    }

    #[tokio::test]
    async fn until_ends_the_log_and_then_the_call() {
        let line = |minutes: i64, text: &str| format!("{} {text}\n", minutes_ago(minutes));
        let text = line(9, "a") + &line(8, "b") + &line(2, "late");
        for (replicas, hangs) in [(vec![1], true), (vec![], false)] {
            let last = if hangs { Step::Hang } else { end(Code::Ok) };
            let mut gateway = FakeGateway::start(vec![vec![lines(1, 3, &text), last]]).await;
            gateway.set_replicas(&replicas);
            let until = Some(TimeSpec::Ago(Duration::from_secs(300)));
            let config = LogsConfig { until, tail: None, ..config(gateway.target(), false) };
            let printed = tokio::time::timeout(TEST_TIMEOUT, print(&config)).await;
            let (exit, out, err) = printed.expect("the call ends");
            assert_eq!((exit, out.as_str()), (Exit::Done, "web/1 | a\nweb/1 | b\n"), "{err}");
            assert!(gateway.requests()[0].timestamps);
        }
    }

    #[tokio::test]
    async fn lost_lines_are_reported_with_own_exit_code() {
        let gateway = FakeGateway::start(vec![vec![
            lines(0, 1, "a\n"),
            gap(0, 13, 12),
            lines(0, 14, "n\n"),
            end(Code::Ok),
        ]])
        .await;
        let (exit, out, err) = print(&config(gateway.target(), false)).await;
        assert_eq!((exit, out.as_str()), (Exit::LinesLost, "web/0 | a\nweb/0 | n\n"));
        assert_eq!(err, "web/0 ! 12 lines (120 bytes) lost: this side fell behind\n");
    }

    #[tokio::test]
    async fn status_codes_map_to_exit_codes() {
        for (code, exit) in [
            (Code::InvalidArgument, Exit::Usage),
            (Code::Unauthenticated, Exit::Rejected),
            (Code::PermissionDenied, Exit::Rejected),
            (Code::ResourceExhausted, Exit::Rejected),
            (Code::NotFound, Exit::NotFound),
            (Code::Unavailable, Exit::Unavailable),
            (Code::Internal, Exit::Failed),
        ] {
            let gateway = FakeGateway::start(vec![vec![end(code)]]).await;
            // The first error is final for a follow too.
            let (found, out, err) = print(&config(gateway.target(), true)).await;
            assert_eq!((found, out.as_str()), (exit, ""), "{code:?}");
            assert_eq!(err, "leasemux: the gateway answered: because\n");
            assert_eq!(gateway.requests().len(), 1);
        }
        // Later in a follow, only some errors are final.
        let gateway = FakeGateway::start(vec![vec![lines(0, 1, "a\n"), end(Code::Unauthenticated)]]).await;
        assert_eq!(print(&config(gateway.target(), true)).await.0, Exit::Rejected);
        let gateway = FakeGateway::start(vec![vec![lines(0, 1, "a\nb"), Step::Disconnect]]).await;
        let (exit, out, err) = print(&config(gateway.target(), false)).await;
        assert_eq!((exit, out.as_str()), (Exit::Unavailable, "web/0 | a\nweb/0 | b\n"), "{err}");
    }

    #[tokio::test]
    async fn follow_asks_for_heartbeats_and_reports_unreachable_log() {
        // The gateway's clock is an hour ahead.
        let ahead = LogTime::now().saturating_add_nanos(3_600_000_000_000);
        let source = |state: State, since: Option<LogTime>| {
            let since = since.map(Into::into);
            let source = SourceState { state: state.into(), since, ..Default::default() };
            let (name, cursor) = ("web".into(), Some(cursor(0, 1)));
            Step::Send(Box::new(ServiceLogs { name, cursor, source: Some(source), ..Default::default() }))
        };
        let steps = vec![
            lines(0, 1, "a\n"),
            source(State::Live, None),
            source(State::Reconnecting, Some(ahead.saturating_add_nanos(-40_000_000_000))),
            source(State::Reconnecting, Some(ahead.saturating_add_nanos(-40_000_000_000))),
            lines(0, 2, "b\n"),
            end(Code::Ok),
        ];
        let mut gateway = FakeGateway::start(vec![steps, vec![end(Code::Ok)], vec![end(Code::Ok)]]).await;
        gateway.set_date(ahead);
        let (exit, out, err) = print(&config(gateway.target(), true)).await;
        assert_eq!((exit, out.as_str()), (Exit::Done, "web/0 | a\nweb/0 | b\n"), "{err}");
        let notices: Vec<&str> = err.lines().collect();
        let [unreachable, reachable] = notices.as_slice() else { panic!("{err}") };
        let seconds = unreachable.strip_prefix("web/0 * log unreachable for ").unwrap();
        let seconds: u64 = seconds.strip_suffix(" s, retrying").unwrap().parse().unwrap();
        assert!((38..60).contains(&seconds), "{unreachable}");
        assert!(reachable.starts_with("web/0 * log reachable again after "), "{reachable}");
        // Not without follow, and not for programs.
        print(&config(gateway.target(), false)).await;
        print(&LogsConfig { output: LogsOutput::Json, ..config(gateway.target(), true) }).await;
        let asked: Vec<_> = gateway.requests().into_iter().map(|request| request.heartbeat).collect();
        assert_eq!(asked, [Some(prost_types::Duration { seconds: 2, nanos: 0 }), None, None]);
    }

    #[tokio::test]
    async fn closed_output_is_a_success() {
        let gateway = FakeGateway::start(vec![vec![lines(0, 1, "a\n"), Step::Hang]]).await;
        let mut err = Vec::new();
        let exit = run(&config(gateway.target(), true), ClosedOutput, &mut err, OutputStyle::PLAIN).await;
        assert_eq!((exit, err.len()), (Exit::Done, 0));
    }

    #[tokio::test]
    async fn identity_adds_certificate_and_mtls_server_name() {
        let gateway = FakeGateway::start(vec![vec![end(Code::Ok)], vec![end(Code::Ok)]]).await;
        let mut target = gateway.target();
        target.identity = Some(gateway.identity());
        assert_eq!(print(&config(target.clone(), false)).await.0, Exit::Done);
        target.gateway = format!("https://localhost:{}", gateway.address.port()).parse().unwrap();
        assert_eq!(print(&config(target.clone(), false)).await.0, Exit::Done);
        assert_eq!(gateway.handshakes(), [(None, true), (Some("mtls.localhost".to_owned()), true)]);
    }

    #[tokio::test]
    async fn connection_errors_have_clear_messages() {
        async fn check(target: Target, exit: Exit, text: &str) {
            let (found, _, err) = print(&config(target, true)).await;
            assert!(err.contains(text), "{text} in {err}");
            assert_eq!(found, exit, "{err}");
        }
        let at = |address: SocketAddr| Target {
            gateway: format!("https://{address}").parse().unwrap(),
            identity: None,
            token: None,
            ca: None,
            insecure: false,
        };
        let gateway = FakeGateway::start(vec![]).await;
        check(at(gateway.address), Exit::Rejected, "--ca FILE").await;
        let web = FakeGateway::start_with_alpn(vec![], b"http/1.1").await;
        check(web.target(), Exit::Unavailable, "not a gRPC server").await;
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = silent.local_addr().unwrap();
        drop(silent);
        check(at(closed), Exit::Unavailable, "cannot reach the gateway").await;
        let mut target = gateway.target();
        target.ca = Some(gateway.identity().join("key.pem"));
        check(target, Exit::Usage, "no certificate").await;
        let mut target = at(gateway.address);
        target.insecure = true;
        check(target, Exit::Unavailable, "nothing more in the script").await;
    }
}
