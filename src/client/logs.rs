//! `leasemux logs`: one request, printed, and how it ended as an exit code.
//!
//! Ctrl-C is left to the system: nothing here needs cleaning up, and a process that waits for a stalled pipe could not hear
//! a handler anyway.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::Duration;

use super::connect::{Client, Connector};
use super::exit::Exit;
use super::follow::{Ended, FollowError, Follower};
use super::lines::Key;
use super::print::{OutputStyle, Printer};
use super::until::Until;
use crate::config::{LogsConfig, Moment};
use crate::model::id::ServiceName;
use crate::model::limits::STREAM_REPLICAS_MAX;
use crate::model::proto::lease::{ServiceFilter, ServiceLogsRequest, ServiceStatus, ServiceStatusRequest};
use crate::model::time::LogTime;

/// How long the question for the replicas may take: without the answer more is read than is printed, and nothing else.
const REPLICAS_TIMEOUT: Duration = Duration::from_secs(5);

/// Prints what `config` asks for to `out`, and what is said about it to `err`.
pub async fn run<O, E>(config: &LogsConfig, out: O, err: E, look: OutputStyle) -> Exit
where
    O: Write + Send,
    E: Write + Send,
{
    let mut printer = Printer::new(out, err, look);
    let ended = read(config, &mut printer).await;
    // Text that nobody takes any more is nobody's fault: `… | head` has what it wanted.
    match conclude(&ended, &mut printer) {
        Ok(exit) => exit,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => {
            // The output failed, so this may fail too, and then there is nobody to tell.
            let _ = printer.say(&format!("cannot write: {error}"));
            Exit::Failed
        }
    }
}

/// Reads the log into `printer`.
async fn read<O, E>(config: &LogsConfig, printer: &mut Printer<O, E>) -> Result<Ended, FollowError>
where
    O: Write + Send,
    E: Write + Send,
{
    let connector = Connector::new(&config.target)?;
    let is_relative = |moment: Option<Moment>| matches!(moment, Some(Moment::Ago(_)));
    if !is_relative(config.since) && config.until.is_none() {
        // No clock is needed.
        return Follower::new(connector, request(config, LogTime::MIN)).run(printer).await;
    }
    // Boxed: connecting takes far more room than following, and is soon over.
    let (mut client, clock) = Box::pin(connector.connect_with_clock()).await?;
    let now = clock.now();
    let request = request(config, now);
    let Some(until) = config.until else {
        return Follower::new(connector, request).with_client(client).run(printer).await;
    };
    let replicas = replicas(&mut client, config).await;
    let mut sink = Until::new(printer, until.resolve(now), config.timestamps, replicas);
    let complete = sink.complete();
    let follower = Follower::new(connector, request).with_client(client);
    complete.run_until_cancelled(follower.run(&mut sink)).await.unwrap_or(Ok(Ended::Complete))
}

/// Finds out which replicas a request is for; `None` if that cannot be known, as without permission to see the status.
async fn replicas(client: &mut Client, config: &LogsConfig) -> Option<BTreeSet<Key>> {
    let (filter, filters) = filters(&config.services, &config.replicas);
    let lease_id = Some((&config.lease).into());
    let request = ServiceStatusRequest { lease_id, filter, follow: false, filters };
    let answer = async { client.service_status(request).await.ok()?.into_inner().message().await.ok()? };
    let answer = tokio::time::timeout(REPLICAS_TIMEOUT, answer).await.ok()??;
    let known = answer.services.iter().all(|service| !service.replica_status.is_empty());
    let keys = answer.services.into_iter().flat_map(|service| {
        let ServiceStatus { name, replica_status, .. } = service;
        replica_status.into_iter().map(move |replica| (name.clone(), replica.replica))
    });
    let keys: BTreeSet<Key> = keys.take(STREAM_REPLICAS_MAX + 1).collect();
    (known && (1..=STREAM_REPLICAS_MAX).contains(&keys.len())).then_some(keys)
}

fn conclude<O, E>(ended: &Result<Ended, FollowError>, printer: &mut Printer<O, E>) -> io::Result<Exit>
where
    O: Write + Send,
    E: Write + Send,
{
    if let Err(FollowError::Sink(error)) = ended {
        return Err(io::Error::new(error.kind(), error.to_string()));
    }
    printer.finish()?;
    match ended {
        Ok(Ended::LeaseEnded) => printer.say("the lease has ended")?,
        Ok(Ended::Complete) => {}
        Err(error) => {
            printer.say(&error.to_string())?;
            return Ok(Exit::from(error));
        }
    }
    Ok(if printer.gaps() > 0 { Exit::LinesLost } else { Exit::Done })
}

/// Returns the request for what `config` describes, if it is `now`.
fn request(config: &LogsConfig, now: LogTime) -> ServiceLogsRequest {
    let (filter, filters) = filters(&config.services, &config.replicas);
    ServiceLogsRequest {
        lease_id: Some((&config.lease).into()),
        filter,
        filters,
        follow: config.follow,
        tail_lines: config.tail,
        since: config.since.map(|since| since.resolve(now).into()),
        // The times of lines tell which are too late.
        timestamps: config.timestamps || config.until.is_some(),
        previous: config.previous,
        resume: Vec::new(),
        on_lag: config.on_lag.into(),
    }
}

/// The filters of a request for these replicas of each of these services: in the draft's own field as long as that will do, so
/// that any gateway understands it.
pub(super) fn filters(
    services: &[ServiceName],
    replicas: &[u32],
) -> (Option<ServiceFilter>, Vec<ServiceFilter>) {
    let filter =
        |service: &ServiceName| ServiceFilter { name: service.to_string(), replicas: replicas.to_vec() };
    match services {
        [] => (None, Vec::new()),
        [service] => (Some(filter(service)), Vec::new()),
        services => (None, services.iter().map(filter).collect()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use tokio::net::TcpListener;
    use tonic::{Code, Status};
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;
    use crate::client::fake::{FakeGateway, Step};
    use crate::config::{Output, ServerTrust, Target};
    use crate::model::proto::lease::replica_event::Kind;
    use crate::model::proto::lease::{Cursor, Gap, OnLag, ReplicaEvent, ServiceLogs};

    const LEASE: &str = "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev/6194991/1/1/akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";

    /// Whatever takes longer is broken.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn config(target: Target, follow: bool) -> LogsConfig {
        LogsConfig {
            lease: LEASE.parse().unwrap(),
            target,
            services: vec!["web".parse().unwrap()],
            replicas: vec![0, 1],
            follow,
            tail: Some(3),
            since: None,
            until: None,
            timestamps: false,
            previous: false,
            on_lag: OnLag::Drop,
            output: Output::Text,
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

    async fn print_as(config: &LogsConfig, look: OutputStyle) -> (Exit, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = run(config, &mut out, &mut err, look).await;
        (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[tokio::test]
    async fn everything_asked_for_is_printed() {
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
        assert_eq!(gateway.met(), [(None, false)]);
    }

    #[tokio::test]
    async fn a_cut_follow_goes_on_where_it_was() {
        let gateway = FakeGateway::start(vec![
            vec![started(0), lines(0, 2, "a\nb\n"), lines(1, 1, "c\nlong"), lines(0, 3, "d\n"), Step::Cut],
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
            err.ends_with("connected again, going on where it was cut\nleasemux: the lease has ended\n"),
            "{err}"
        );
        let requests = gateway.requests();
        assert_eq!(requests.len(), 3);
        for again in &requests[1..] {
            assert_eq!(again.resume, [cursor(0, 3), cursor(1, 1)]);
            assert_eq!((again.tail_lines, again.follow, &again.filter), (None, true, &requests[0].filter));
        }
    }

    /// How a gateway ends a read of a log that cannot be read at the moment.
    fn unreadable() -> Step {
        let info = std::collections::HashMap::new();
        let mut details = ErrorDetails::with_error_info("PLATFORM_UNAVAILABLE", "leasemux", info);
        details.set_retry_info(Some(Duration::from_millis(1)));
        Step::End(Status::with_error_details(Code::Unavailable, "web/1 cannot be read", details))
    }

    #[tokio::test]
    async fn read_of_unreadable_log_goes_on_from_its_cursor() {
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
            err.starts_with("leasemux: the gateway says: web/1 cannot be read; reconnecting in "),
            "{err}"
        );
    }

    #[tokio::test]
    async fn limited_read_keeps_its_limit_where_nothing_was_sent() {
        let gateway = FakeGateway::start(vec![
            vec![lines(0, 1, "a\n"), unreadable()],
            // The call for the replica that was read, and the call for the others: each is made, whatever comes of the other.
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
    async fn read_that_stays_unreadable_ends_as_unavailable() {
        // Another replica prints all the time.
        let again = |number| vec![lines(0, number, "a\n"), unreadable()];
        let gateway = FakeGateway::start((1..20).map(again).collect()).await;
        let config = LogsConfig { tail: None, ..config(gateway.target(), false) };
        let (exit, out, err) = print(&config).await;
        assert_eq!((exit, out.lines().count()), (Exit::Unavailable, 5), "{err}");
        assert_eq!((gateway.requests().len(), err.matches("; reconnecting in ").count()), (5, 4));
        assert!(err.ends_with("leasemux: the gateway says: web/1 cannot be read\n"), "{err}");
    }

    #[tokio::test]
    async fn read_of_previous_run_is_retried_only_from_its_beginning() {
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
    async fn lease_with_nothing_deployed_is_said_so() {
        let event = ReplicaEvent {
            kind: Kind::Waiting.into(),
            reason: "NothingDeployed".into(),
            ..Default::default()
        };
        let entry = ServiceLogs { event: Some(event), ..Default::default() };
        let told = || vec![Step::Send(Box::new(entry.clone())), end(Code::Ok)];
        let gateway = FakeGateway::start(vec![told(), told()]).await;
        let config = config(gateway.target(), false);
        let (exit, out, err) = print(&config).await;
        let said = "leasemux: nothing is deployed under this lease\n";
        assert_eq!((exit, out.as_str(), err.as_str()), (Exit::Done, "", said));
        let look = OutputStyle { output: Output::Json, ..OutputStyle::PLAIN };
        let (exit, out, err) = print_as(&config, look).await;
        assert_eq!((exit, err.as_str()), (Exit::Done, ""));
        assert!(out.contains(r#""kind":"waiting","reason":"NothingDeployed""#), "{out}");
    }

    #[tokio::test]
    async fn a_service_that_is_gone_after_a_cut_is_not_taken_for_the_end_of_the_lease() {
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
    async fn a_follower_that_was_closed_for_lagging_reads_on() {
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
    async fn a_follow_that_may_not_read_older_lines_yet_comes_again_and_nobody_else_does() {
        let mut details =
            ErrorDetails::with_error_info("QUOTA_USED_UP", "leasemux", std::collections::HashMap::new());
        details.set_retry_info(Some(Duration::from_millis(1)));
        let refused = Status::with_error_details(Code::ResourceExhausted, "history_reads: no more", details);
        for output in [Output::Text, Output::Json] {
            // The call was answered before: it is only when it comes to reading that it is refused.
            let refusal = || vec![Step::End(refused.clone()), Step::Hang];
            let lines = vec![lines(0, 2, "a\nb\n"), end(Code::Ok)];
            let gateway = FakeGateway::start(vec![refusal(), refusal(), lines]).await;
            let look = OutputStyle { output, ..OutputStyle::PLAIN };
            let (exit, out, err) = print_as(&config(gateway.target(), true), look).await;
            assert_eq!((exit, out.lines().count()), (Exit::Done, 2), "{out}{err}");
            assert_eq!(err.matches("the gateway says: history_reads: no more; reconnecting in").count(), 2);
            let requests = gateway.requests();
            assert!(requests.len() == 3 && requests.iter().all(|again| again.tail_lines == Some(3)));
            let gateway = FakeGateway::start(vec![refusal()]).await;
            let (exit, out, err) = print_as(&config(gateway.target(), false), look).await;
            assert_eq!((exit, out.as_str()), (Exit::Refused, ""));
            assert_eq!(err, "leasemux: the gateway says: history_reads: no more\n");
        }
    }

    fn minutes_ago(minutes: i64) -> LogTime {
        LogTime::now().saturating_add_nanos(-60_000_000_000 * minutes)
    }

    #[tokio::test]
    async fn relative_since_follows_the_gateways_clock() {
        for (gateway_behind, since_minutes) in [(Some(10), 15), (Some(-10), -5), (None, 5)] {
            let mut gateway = FakeGateway::start(vec![vec![lines(0, 1, "a\n"), end(Code::Ok)]]).await;
            if let Some(minutes) = gateway_behind {
                gateway.set_date(minutes_ago(minutes));
            }
            let since = Some(Moment::Ago(Duration::from_secs(300)));
            let config = LogsConfig { since, tail: None, ..config(gateway.target(), false) };
            let before = minutes_ago(since_minutes);
            let (exit, out, err) = print(&config).await;
            assert_eq!((exit, out.as_str()), (Exit::Done, "web/0 | a\n"), "{err}");
            let asked = gateway.requests()[0].since.unwrap();
            let asked = LogTime::from_parts(asked.seconds, asked.nanos).unwrap();
            // A date has whole seconds.
            let off = (asked.as_nanos() - before.as_nanos()).abs();
            assert!(off < 60_000_000_000, "{gateway_behind:?}: {off} ns off");
            assert_eq!(gateway.met().len(), 1, "one connection does for both");
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
            let until = Some(Moment::Ago(Duration::from_secs(300)));
            let config = LogsConfig { until, tail: None, ..config(gateway.target(), false) };
            let printed = tokio::time::timeout(PATIENCE, print(&config)).await;
            let (exit, out, err) = printed.expect("the call ends");
            assert_eq!((exit, out.as_str()), (Exit::Done, "web/1 | a\nweb/1 | b\n"), "{err}");
            assert!(gateway.requests()[0].timestamps);
        }
    }

    #[tokio::test]
    async fn lost_lines_are_told_and_show_in_the_exit_code() {
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
    async fn each_end_has_its_exit_code() {
        for (code, exit) in [
            (Code::InvalidArgument, Exit::Usage),
            (Code::Unauthenticated, Exit::Refused),
            (Code::PermissionDenied, Exit::Refused),
            (Code::ResourceExhausted, Exit::Refused),
            (Code::NotFound, Exit::NotFound),
            (Code::Unavailable, Exit::Unavailable),
            (Code::Internal, Exit::Failed),
        ] {
            let gateway = FakeGateway::start(vec![vec![end(code)]]).await;
            // The first answer decides for a follow as well: nobody waits for a lease that is not there.
            let (found, out, err) = print(&config(gateway.target(), true)).await;
            assert_eq!((found, out.as_str()), (exit, ""), "{code:?}");
            assert_eq!(err, "leasemux: the gateway says: because\n");
            assert_eq!(gateway.requests().len(), 1);
        }
        // In the middle of a follow, only some are final.
        let gateway = FakeGateway::start(vec![vec![lines(0, 1, "a\n"), end(Code::Unauthenticated)]]).await;
        assert_eq!(print(&config(gateway.target(), true)).await.0, Exit::Refused);
        let gateway = FakeGateway::start(vec![vec![lines(0, 1, "a\nb"), Step::Cut]]).await;
        let (exit, out, err) = print(&config(gateway.target(), false)).await;
        assert_eq!((exit, out.as_str()), (Exit::Unavailable, "web/0 | a\nweb/0 | b\n"), "{err}");
    }

    #[tokio::test]
    async fn a_reader_that_leaves_ends_it_quietly() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let gateway = FakeGateway::start(vec![vec![lines(0, 1, "a\n"), Step::Hang]]).await;
        let mut err = Vec::new();
        let exit = run(&config(gateway.target(), true), Closed, &mut err, OutputStyle::PLAIN).await;
        assert_eq!((exit, err.len()), (Exit::Done, 0));
    }

    #[tokio::test]
    async fn a_tenant_shows_its_certificate_and_asks_for_the_mtls_name() {
        let gateway = FakeGateway::start(vec![vec![end(Code::Ok)], vec![end(Code::Ok)]]).await;
        let mut target = gateway.target();
        target.identity = Some(gateway.identity());
        assert_eq!(print(&config(target.clone(), false)).await.0, Exit::Done);
        target.gateway = format!("https://localhost:{}", gateway.address.port()).parse().unwrap();
        assert_eq!(print(&config(target.clone(), false)).await.0, Exit::Done);
        assert_eq!(gateway.met(), [(None, true), (Some("mtls.localhost".to_owned()), true)]);
    }

    #[tokio::test]
    async fn what_is_no_gateway_is_told_clearly() {
        async fn check(target: Target, exit: Exit, text: &str) {
            let (found, _, err) = print(&config(target, true)).await;
            assert!(err.contains(text), "{text} in {err}");
            assert_eq!(found, exit, "{err}");
        }
        let at = |address: SocketAddr| Target {
            gateway: format!("https://{address}").parse().unwrap(),
            identity: None,
            token: None,
            trust: ServerTrust::System,
        };
        let gateway = FakeGateway::start(vec![]).await;
        check(at(gateway.address), Exit::Refused, "--ca FILE").await;
        let web = FakeGateway::start_with_alpn(vec![], b"http/1.1").await;
        check(web.target(), Exit::Unavailable, "not a gRPC server").await;
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nobody = silent.local_addr().unwrap();
        drop(silent);
        check(at(nobody), Exit::Unavailable, "cannot reach the gateway").await;
        let mut target = gateway.target();
        target.trust = ServerTrust::File(gateway.identity().join("key.pem"));
        check(target, Exit::Usage, "no certificate").await;
        let mut target = at(gateway.address);
        target.trust = ServerTrust::Anyone;
        check(target, Exit::Unavailable, "nothing more in the script").await;
    }
}
