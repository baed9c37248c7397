//! `leasemux logs`: one request, printed, and how it ended as an exit code.
//!
//! Ctrl-C is left to the system: nothing here needs cleaning up, and a process that waits for a stalled pipe could not hear
//! a handler anyway.

use std::io::{self, Write};

use super::connect::Connector;
use super::exit::Exit;
use super::follow::{Ended, FollowError, Follower};
use super::print::{Look, Printer};
use crate::config::LogsConfig;
use crate::model::id::ServiceName;
use crate::model::proto::lease::{ServiceFilter, ServiceLogsRequest};

/// Prints what `config` asks for to `out`, and what is said about it to `err`.
pub async fn run<O, E>(config: &LogsConfig, out: O, err: E, look: Look) -> Exit
where
    O: Write + Send,
    E: Write + Send,
{
    let mut printer = Printer::new(out, err, look);
    let ended = match Connector::new(&config.target) {
        Ok(connector) => Follower::new(connector, request(config)).run(&mut printer).await,
        Err(error) => Err(error.into()),
    };
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

/// The request that asks for what `config` describes.
pub fn request(config: &LogsConfig) -> ServiceLogsRequest {
    let (filter, filters) = filters(&config.services, &config.replicas);
    ServiceLogsRequest {
        lease_id: Some((&config.lease).into()),
        filter,
        filters,
        follow: config.follow,
        tail_lines: config.tail,
        since: config.since.map(Into::into),
        timestamps: config.timestamps,
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

    fn config(target: Target, follow: bool) -> LogsConfig {
        LogsConfig {
            lease: LEASE.parse().unwrap(),
            target,
            services: vec!["web".parse().unwrap()],
            replicas: vec![0, 1],
            follow,
            tail: Some(3),
            since: None,
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
        print_as(config, Look::PLAIN).await
    }

    async fn print_as(config: &LogsConfig, look: Look) -> (Exit, String, String) {
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
            let look = Look { output, ..Look::PLAIN };
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
        let exit = run(&config(gateway.target(), true), Closed, &mut err, Look::PLAIN).await;
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
