use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::mpsc::{Sender, channel};
use tonic::{Code, Status};

use super::*;
use crate::client::follow::{ConnectionChange, Sink};
use crate::client::testing::{FakeGateway, LEASE, Step};
use crate::config::{CallConfig, Format, Target};
use crate::model::metrics::CanaryDisconnect;
use crate::model::proto::lease::{Cursor, Gap, OnLag, ServiceLogs};
use crate::model::time::LogTime;

/// Limit on every wait of the tests.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }
}

fn config(target: Target, duration: Duration) -> CanaryConfig {
    CanaryConfig {
        call: CallConfig {
            lease: LEASE.parse().unwrap(),
            source: crate::config::LeaseSource::default(),
            target,
            services: vec!["counter".parse().unwrap()],
            replicas: Vec::new(),
        },
        metrics_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        on_lag: OnLag::Refill,
        duration: Some(duration),
        log_format: Format::Text,
    }
}

fn entry(instance: &str, ordinal: u64, logs: &str) -> ServiceLogs {
    let cursor =
        Cursor { service: "counter".into(), instance: instance.into(), ordinal, ..Default::default() };
    let logs = logs.as_bytes().to_vec().into();
    ServiceLogs { name: "counter".into(), logs, cursor: Some(cursor), ..Default::default() }
}

/// Returns lines with these numbers, printed now.
fn lines(instance: &str, numbers: &[u64]) -> ServiceLogs {
    let now = LogTime::now();
    let text = numbers.iter().map(|n| format!("leasemux-canary run=run-{instance} n={n} at={now} padding\n"));
    entry(instance, *numbers.last().unwrap(), &text.collect::<String>())
}

fn gap(instance: &str, ordinal: u64, lines: u64, exact: bool, cause: i32) -> ServiceLogs {
    let gap = Gap { lines, exact, cause, ..Default::default() };
    ServiceLogs { gap: Some(gap), ..entry(instance, ordinal, "") }
}

fn send(entry: ServiceLogs) -> Step {
    Step::Send(Box::new(entry))
}

fn end(code: Code) -> Step {
    Step::End(Status::new(code, "because"))
}

/// Returns the value of a series on a page of metrics.
fn metric<'a>(page: &'a str, series: &str) -> &'a str {
    let found = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {series} in {page}"))
}

#[tokio::test]
async fn each_fault_moves_its_metric() {
    let recorder = admin::recorder(each()).unwrap();
    let handle = recorder.handle();
    let readiness = Readiness::default();
    let mut sink = CanarySink::new(Handles::register(&recorder), readiness.clone());
    let page = handle.render();
    for metric in each() {
        assert!(page.contains(&format!("# HELP {} {}\n", metric.name, metric.help)), "{}", metric.name);
        assert!(
            page.contains(&format!("# TYPE {} {}\n", metric.name, metric.kind.word())),
            "{}",
            metric.name
        );
    }
    let values = |page: &str| -> Vec<String> {
        let series = [
            "lines_delivered_total",
            "lines_lost_total{cause=\"lag\"}",
            "lines_lost_total{cause=\"rotated\"}",
            "lines_lost_total{cause=\"other\"}",
            "lines_unreported_total",
            "lines_repeated_total",
            "lines_out_of_order_total",
            "lines_overreported_total",
            "lines_unknown_total{kind=\"malformed\"}",
            "lines_unknown_total{kind=\"foreign\"}",
            "gaps_total{exact=\"true\"}",
            "gaps_total{exact=\"false\"}",
            "runs_total",
            "delay_seconds_count",
            "connected",
        ];
        series.map(|series| metric(page, &format!("leasemux_canary_{series}")).to_owned()).to_vec()
    };
    let mut before = values(&page);
    assert_eq!(before, ["0"; 15]);
    sink.connection(&ConnectionChange::Resumed).unwrap();
    assert!(readiness.get());
    before[14] = "1".to_owned();
    // The entries, and which of these values change with them.
    for (entries, changes) in [
        (vec![lines("p", &[1, 2])], &[0, 12, 13][..]),
        (vec![gap("p", 3, 1, true, 1), lines("p", &[4])], &[0, 1, 10, 13]),
        (vec![gap("p", 4, 1, false, 2), lines("p", &[8])], &[0, 2, 11, 13]),
        (vec![gap("p", 8, 0, true, 77), lines("p", &[9])], &[0, 10, 13]),
        (vec![gap("p", 9, 2, true, 0), lines("p", &[12])], &[0, 3, 10, 13]),
        (vec![lines("p", &[12])], &[5]),
        (vec![lines("p", &[14, 13])], &[0, 6, 13]),
        (vec![gap("p", 9, 2, true, 1), lines("p", &[15])], &[0, 1, 7, 10, 13]),
        (vec![entry("p", 15, "leasemux-canary run=\u{1b}]0;x\n")], &[8]),
        (vec![entry("p", 15, "hello\n")], &[9]),
        (vec![lines("p2", &[1])], &[0, 12, 13]),
        // Counts at the end.
        (vec![lines("p2", &[3])], &[0, 13]),
    ] {
        for entry in &entries {
            sink.entry(entry).unwrap();
        }
        let now = values(&handle.render());
        let changed: Vec<_> = (0..now.len()).filter(|at| now[*at] != before[*at]).collect();
        assert_eq!(changed, changes, "{entries:?}");
        before = now;
    }
    // The stream is lost: the missing line cannot come any more. A follower pauses first.
    let error = CallError::from(Status::unavailable("gone"));
    let change = ConnectionChange::Lost { error: &error, retry_in: Duration::ZERO };
    sink.pause().unwrap();
    sink.connection(&change).unwrap();
    assert_eq!(metric(&handle.render(), "leasemux_canary_lines_unreported_total"), "1");
    // Another attempt fails.
    sink.pause().unwrap();
    assert!(!readiness.get() && metric(&handle.render(), "leasemux_canary_connected") == "0");
    let totals = sink.finish();
    let page = handle.render();
    assert_eq!((totals.unreported, metric(&page, "leasemux_canary_lines_unreported_total")), (1, "1"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let last: f64 = metric(&page, "leasemux_canary_last_line_timestamp_seconds").parse().unwrap();
    assert!((now - last).abs() < 60.0, "{last}");
    let future = LogTime::now().saturating_add_nanos(100_000_000_000);
    sink.entry(&entry("p2", 4, &format!("leasemux-canary run=run-p2 n=4 at={future}\n"))).unwrap();
    let ahead: f64 = metric(&handle.render(), "leasemux_canary_clock_ahead_seconds").parse().unwrap();
    assert!((90.0..=100.0).contains(&ahead), "{ahead}");
}

/// Runs a canary against a scripted gateway until its metrics satisfy `is_enough`. Returns the result, the
/// output and the last metrics.
async fn run_until(
    gateway: &FakeGateway,
    duration: Duration,
    is_enough: impl Fn(&str) -> bool,
) -> (Result<Exit, CanaryError>, String, String) {
    let out = Shared::default();
    let config = config(gateway.target(), duration);
    let mut page = String::new();
    let watch = async {
        while !is_enough(&page) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let text = out.text();
            let address = text.lines().next().and_then(|line| line.split_once("http://"));
            if let Some((_, address)) = address {
                page = get(address, "/metrics").await;
            }
        }
    };
    let canary = Box::pin(serve_and_follow(&config, out.clone()));
    let (result, ()) =
        tokio::time::timeout(TEST_TIMEOUT, async { tokio::join!(canary, watch) }).await.unwrap();
    (result, out.text(), page)
}

async fn get(address: &str, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let Ok(mut socket) = tokio::net::TcpStream::connect(address).await else { return String::new() };
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    let mut answer = String::new();
    // The canary may have ended.
    let _ = socket.write_all(request.as_bytes()).await;
    let _ = socket.read_to_string(&mut answer).await;
    answer
}

#[tokio::test]
async fn faulty_gateway_is_detected_over_grpc() {
    let sound = [lines("p", &[1, 2, 3]), gap("p", 5, 2, true, 1), lines("p", &[6])];
    for (numbers, fault) in [
        (&[7, 8][..], None),
        (&[7, 9], Some("unreported       1 lines")),
        (&[7, 7], Some("repeated         1 lines")),
        (&[8, 7], Some("out of order     1 lines")),
    ] {
        let steps: Vec<Step> = sound.clone().into_iter().chain([lines("p", numbers)]).map(send).collect();
        let gateway = FakeGateway::start(vec![steps.into_iter().chain([Step::Hang]).collect()]).await;
        let (result, out, _) = run_until(&gateway, Duration::from_secs(1), |_| true).await;
        assert_eq!(result.unwrap(), if fault.is_some() { Exit::Failed } else { Exit::LinesLost }, "{out}");
        assert!(out.contains("reported lost    2 lines, in 1 gaps"), "{out}");
        let check = fault.map_or("loss check       passed", |_| "loss check       FAILED");
        assert!(out.contains(check) && fault.is_none_or(|fault| out.contains(fault)), "{out}");
        let request = &gateway.requests()[0];
        assert_eq!((request.follow, request.tail_lines, request.on_lag()), (true, Some(0), OnLag::Refill));
        assert_eq!(request.filter.as_ref().unwrap().name, "counter");
    }
}

#[tokio::test]
async fn unavailable_and_rejecting_gateway_is_tried_again() {
    let gateway = FakeGateway::start(vec![
        vec![end(Code::Unavailable)],
        vec![send(lines("p", &[1, 2])), Step::Disconnect],
        vec![end(Code::Unauthenticated)],
        vec![end(Code::NotFound)],
        vec![end(Code::Internal)],
        // A stream that ends without an error.
        vec![send(lines("p", &[3])), end(Code::Ok)],
        vec![send(lines("p", &[4])), Step::Hang],
    ])
    .await;
    let delivered = |page: &str| page.contains("leasemux_canary_lines_delivered_total 4");
    let (result, out, page) = run_until(&gateway, Duration::from_secs(20), delivered).await;
    assert_eq!(result.unwrap(), Exit::Done, "{out}");
    for (reason, times) in
        [("unavailable", "3"), ("rejected", "1"), ("not_found", "1"), ("other", "1"), ("lagged", "0")]
    {
        let series = format!("leasemux_canary_disconnects_total{{reason=\"{reason}\"}}");
        assert_eq!(metric(&page, &series), times, "{series}");
    }
    assert_eq!(metric(&page, "leasemux_canary_connected"), "1");
    let requests = gateway.requests();
    let resumed: Vec<_> =
        requests.iter().map(|request| request.resume.first().map(|cursor| cursor.ordinal)).collect();
    assert_eq!(resumed, [None, None, Some(2), Some(2), Some(2), Some(2), Some(3)]);
    assert!(requests[2..].iter().all(|request| request.tail_lines.is_none()));
}

#[tokio::test]
async fn permanent_errors_end_the_canary() {
    for (answers, exit) in [
        (vec![vec![end(Code::Unauthenticated)]], Exit::Rejected),
        (vec![vec![end(Code::NotFound)]], Exit::NotFound),
        (vec![vec![send(lines("p", &[1])), Step::Disconnect], vec![end(Code::InvalidArgument)]], Exit::Usage),
    ] {
        let gateway = FakeGateway::start(answers).await;
        let (result, out, _) = run_until(&gateway, TEST_TIMEOUT, |_| true).await;
        assert_eq!(Exit::from(&result.unwrap_err()), exit, "{out}");
    }
    // A port that is in use.
    let gateway = FakeGateway::start(Vec::new()).await;
    let config = CanaryConfig { metrics_listen: gateway.address, ..config(gateway.target(), TEST_TIMEOUT) };
    let error = Box::pin(serve_and_follow(&config, Vec::new())).await.unwrap_err();
    assert!(error.to_string().starts_with("--metrics-listen: cannot listen on 127.0.0.1:"), "{error}");
    assert_eq!(Exit::from(&error), Exit::Failed);
}

#[tokio::test]
async fn canary_without_lines_fails() {
    let gateway = FakeGateway::start(vec![vec![send(entry("p", 1, "hello\n")), Step::Hang]]).await;
    let connected = |page: &str| page.contains("leasemux_canary_connected 1\n");
    let (result, out, _) = run_until(&gateway, Duration::from_secs(5), connected).await;
    assert_eq!(result.unwrap(), Exit::Failed);
    assert!(out.contains("nothing to check: no line of the counter was delivered"), "{out}");
}

/// Replaces the trusted certificate when the stream is lost: by another one, then by the right one.
struct Replacing {
    trusted: PathBuf,
    certificates: VecDeque<String>,
    lost: Vec<CanaryDisconnect>,
    lines: Sender<()>,
}

impl Sink for Replacing {
    fn entry(&mut self, _: &ServiceLogs) -> io::Result<()> {
        self.lines.try_send(()).map_err(io::Error::other)
    }

    fn connection(&mut self, change: &ConnectionChange<'_>) -> io::Result<()> {
        if let ConnectionChange::Lost { error, .. } = change {
            self.lost.push(sink::reason(error));
            if let Some(certificate) = self.certificates.pop_front() {
                fs::write(&self.trusted, certificate)?;
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn trusted_certificate_is_read_again_for_each_attempt() {
    let gateway = FakeGateway::start(vec![
        vec![send(lines("p", &[1])), Step::Disconnect],
        vec![send(lines("p", &[2])), Step::Hang],
    ])
    .await;
    let other = FakeGateway::start(Vec::new()).await;
    let right = fs::read_to_string(gateway.target().ca.unwrap()).unwrap();
    let wrong = fs::read_to_string(other.target().ca.unwrap()).unwrap();
    let trusted = tempfile::NamedTempFile::new().unwrap();
    fs::write(trusted.path(), &right).unwrap();
    let target = Target { ca: Some(trusted.path().to_owned()), ..gateway.target() };
    let follower = Follower::new(Connector::new(&target).unwrap(), request(&config(target, TEST_TIMEOUT)));
    let (lines, mut received) = channel(2);
    // While a file is being replaced, it may be incomplete.
    let certificates = [wrong, "-----BEGIN".to_owned(), right].into();
    let mut sink = Replacing { trusted: trusted.path().to_owned(), certificates, lost: Vec::new(), lines };
    let both = async {
        received.recv().await;
        received.recv().await;
    };
    tokio::time::timeout(TEST_TIMEOUT, async {
        tokio::select! {
            ended = follower.persistent().run(&mut sink) => panic!("{ended:?}"),
            () = both => {}
        }
    })
    .await
    .unwrap();
    let rejected = CanaryDisconnect::Rejected;
    assert_eq!(sink.lost, [CanaryDisconnect::Unavailable, rejected, rejected]);
}
