//! Measures how much is read from a log for followers that lag and are refilled. Gateway, service and
//! followers run in this process, since bytes are counted, not CPU time.
//!
//! The followers pause at the same time: each refill reads the log by itself, so this changes no count. While
//! a follower pauses, its connection still takes what the HTTP/2 window and the pipe hold (about 2.3 MB).

#![allow(clippy::cast_precision_loss, reason = "far below 2^52")]

use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_util::future::try_join_all;
use hyper_util::rt::TokioIo;
use leasemux::access::account::AccountKey;
use leasemux::access::authenticator::{Authenticator, ClientCertificate};
use leasemux::access::cert::Serial;
use leasemux::access::identity::IdentityFiles;
use leasemux::access::trust::{Trust, TrustAnswer, TrustedItem, Unavailable};
use leasemux::edge::admin::Exporter;
use leasemux::edge::connection::Connections;
use leasemux::edge::drain::Drain;
use leasemux::edge::server;
use leasemux::edge::service::LeaseService;
use leasemux::logs::actor::ActorContext;
use leasemux::logs::actors::ActorRegistry;
use leasemux::logs::entry_name::NameStyle;
use leasemux::logs::memory_budget::MemoryBudget;
use leasemux::loss_checker::{LossChecker, Order, Start};
use leasemux::model::id::Owner;
use leasemux::model::limits::Limits;
use leasemux::model::line::OutputStream;
use leasemux::model::proto::lease::lease_rpc_client::LeaseRpcClient;
use leasemux::model::proto::lease::{OnLag, ServiceLogsRequest};
use leasemux::model::time::LogTime;
use leasemux::platform::cri::path::LogName;
use leasemux::platform::cri::{self, Record};
use leasemux::restart::RestartManager;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::Result;
use crate::server::file_source::FileSource;

/// Capacity of a connection.
const PIPE_BYTES: usize = 256 * 1024;

/// Interval at which the service prints.
const PRINT_INTERVAL: Duration = Duration::from_millis(10);

/// How long all followers may take to read the rest, at the end.
const REST_MAX: Duration = Duration::from_secs(120);

const MEGABYTE: usize = 1_000_000;

/// How the followers read.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    /// They pause for this long, then read as fast as they can for as long.
    Bursts(Duration),
    /// They read steadily, at this share of the rate of the service.
    Steady(f64),
}

/// Trusts one tenant.
#[derive(Debug)]
struct Tenant(Owner, TrustedItem);

/// Runs `followers` slow followers of a service that prints `megabytes` per second, in lines of `line` bytes.
pub(super) fn run(followers: usize, megabytes: usize, line: usize, seconds: f64) -> Result<()> {
    println!(
        "{followers} refilled followers of a service that prints {megabytes} MB/s in lines of {line} B for {seconds} s \
         ({:.3} if no follower lagged)",
        1.0 / followers as f64,
    );
    let rate = megabytes * MEGABYTE;
    for (name, pattern) in [
        ("pause 2 s, read 2 s", Pattern::Bursts(Duration::from_secs(2))),
        ("pause 5 s, read 5 s", Pattern::Bursts(Duration::from_secs(5))),
        ("steady, half as fast", Pattern::Steady(0.5)),
    ] {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let span = Duration::from_secs_f64(seconds);
        let counts = runtime.block_on(measure(followers, rate, line, span, pattern))?;
        if counts.refills < followers as u64 {
            return Err(format!("{name}: {} refills: not all followers lagged", counts.refills).into());
        }
        println!("  {name:22} {counts}");
    }
    Ok(())
}

/// Numbers of one run.
struct Counts {
    live: f64,
    refilled: f64,
    /// Read from files, with their records and with searches of positions.
    files: f64,
    delivered: f64,
    refills: u64,
    repeated: u64,
    lost_lines: u64,
}

async fn measure(
    followers: usize,
    rate: usize,
    line: usize,
    span: Duration,
    pattern: Pattern,
) -> Result<Counts> {
    let dir = tempfile::tempdir()?;
    let owner = IdentityFiles::create(&dir.path().join("tenant"), LogTime::now())?;
    let (chain, _) = IdentityFiles::load(&dir.path().join("tenant"))?.into_parts();
    let der = chain.first().ok_or("the tenant has no certificate")?.to_vec();
    let logs = dir.path().join("logs");
    std::fs::create_dir(&logs)?;
    let mut file = File::create(logs.join(LogName::active(0).to_string()))?;
    let source = FileSource::new(&owner, &logs)?;
    let lease = source.lease().clone();
    let exporter = Exporter::new()?;
    let limits = Limits { stall: REST_MAX, ..Limits::default() };
    let context = ActorContext {
        platform: Arc::new(source),
        limits: Arc::new(limits),
        metrics: exporter.metrics.clone(),
        names: NameStyle::default(),
        memory: MemoryBudget::default(),
    };
    let restarts = RestartManager::new(Arc::clone(&context.platform), exporter.metrics.clone());
    let authenticator = Authenticator::new(Arc::new(Tenant(owner, TrustedItem::new(der.as_slice().into()))));
    let drain = Drain::default();
    let service = LeaseService::new(authenticator, ActorRegistry::new(context), restarts, drain.clone());
    let (routes, _health) = server::routes()?;
    let connections = Connections::new(service, routes);
    let request = ServiceLogsRequest {
        lease_id: Some((&lease).into()),
        follow: true,
        on_lag: OnLag::Refill.into(),
        ..ServiceLogsRequest::default()
    };
    let files_before = read_bytes()?;
    let (printed, total) = watch::channel(None);
    let reading = (0..followers).map(|_| {
        let client = client(&connections, &drain, &der);
        let (request, total) = (request.clone(), total.clone());
        async move { follow(client.await?, request, pattern, rate, total).await }
    });
    let printing = print(&mut file, rate, line, span, &printed);
    let (read, ()) = tokio::try_join!(try_join_all(reading), printing)?;
    let metric = |name: &str| -> Result<f64> {
        let text = exporter.render();
        let values =
            text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters")]
    let count = |name: &str| -> Result<u64> { Ok(metric(name)? as u64) };
    Ok(Counts {
        live: metric("leasemux_bytes_in_total ")?,
        refilled: metric("leasemux_refilled_bytes_total ")?,
        files: (read_bytes()? - files_before) as f64,
        delivered: metric("leasemux_bytes_delivered_total ")?,
        refills: count("leasemux_refills_total{lag=\"first\"}")?,
        repeated: count("leasemux_refills_total{lag=\"again\"}")?,
        lost_lines: read.into_iter().sum(),
    })
}

/// Prints numbered lines at this rate. Publishes their number at the end.
async fn print(
    file: &mut File,
    rate: usize,
    line: usize,
    span: Duration,
    printed: &watch::Sender<Option<u64>>,
) -> Result<()> {
    let began = Instant::now();
    let (mut number, mut record, mut time) = (0_u64, Vec::new(), LogTime::now());
    while began.elapsed() < span {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "far below 2^52")]
        let due = (began.elapsed().as_secs_f64() * rate as f64 / line as f64) as u64;
        record.clear();
        while number < due {
            number += 1;
            time = LogTime::now().max(time.saturating_add_nanos(1));
            let content =
                format!("{number} {}", "x".repeat(line.saturating_sub(number.to_string().len() + 2)));
            let content = content.as_bytes();
            cri::write(
                &mut record,
                &Record { time, stream: OutputStream::Stdout, partial: false, lost: None, content },
            );
        }
        file.write_all(&record)?;
        tokio::time::sleep(PRINT_INTERVAL).await;
    }
    printed.send_replace(Some(number));
    Ok(())
}

/// Reads until all printed lines were received. Returns how many of them were reported as lost.
async fn follow(
    mut client: LeaseRpcClient<Channel>,
    request: ServiceLogsRequest,
    pattern: Pattern,
    rate: usize,
    total: watch::Receiver<Option<u64>>,
) -> Result<u64> {
    let mut stream = client.service_logs(request).await?.into_inner();
    let mut checker = LossChecker::new(Start::First, Order::Exact);
    let (began, mut bytes) = (Instant::now(), 0_usize);
    let mut burst = Instant::now();
    loop {
        let all = *total.borrow();
        let tally = checker.tally();
        if all.is_some_and(|all| tally.lines + tally.lost_lines >= all) {
            return Ok(checker.verdict()?.lost_lines);
        }
        if all.is_none() {
            match pattern {
                Pattern::Bursts(length) if burst.elapsed() >= length => {
                    tokio::time::sleep(length).await;
                    burst = Instant::now();
                }
                Pattern::Bursts(_) => {}
                Pattern::Steady(share) => {
                    let due = Duration::from_secs_f64(bytes as f64 / (rate as f64 * share));
                    tokio::time::sleep_until(began + due).await;
                }
            }
        }
        // Wakes now and then, to notice that all was printed.
        let next =
            tokio::time::timeout(if all.is_some() { REST_MAX } else { PRINT_INTERVAL }, stream.message());
        match next.await {
            Ok(response) => {
                for entry in response?.ok_or("a follow ended by itself")?.services {
                    bytes += entry.logs.len();
                    checker.feed(&entry);
                }
            }
            Err(_) if all.is_some() => return Err("the rest did not come in time".into()),
            Err(_) => {}
        }
    }
}

async fn client(connections: &Connections, drain: &Drain, der: &[u8]) -> Result<LeaseRpcClient<Channel>> {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let certificate = ClientCertificate::new(Some(&[CertificateDer::from(der.to_vec())]));
    let connections = connections.clone();
    drain.spawn(async move { _ = connections.serve(ours, certificate, None).await });
    let mut pipe = Some(theirs);
    let connector = tower::service_fn(move |_: Uri| {
        let pipe = pipe.take();
        async move { pipe.map(TokioIo::new).ok_or_else(|| std::io::Error::other("one connection only")) }
    });
    let channel = Endpoint::from_static("http://gateway").connect_with_connector(connector).await?;
    Ok(LeaseRpcClient::new(channel))
}

/// Returns how many bytes this process has read from files and sockets.
fn read_bytes() -> Result<u64> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")).ok_or("no rchar")?;
    Ok(read.trim().parse()?)
}

// === impl Counts ===

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { live, refilled, files, delivered, refills, repeated, lost_lines } = self;
        let million = MEGABYTE as f64;
        write!(
            f,
            "{:.3} upstream bytes per delivered byte ({:.1} MB live, {:.1} MB refilled, {:.1} MB delivered); {:.3} read \
             from files; {refills} refills, {repeated} soon after another; {lost_lines} lines lost",
            (live + refilled) / delivered,
            live / million,
            refilled / million,
            delivered / million,
            files / delivered,
        )
    }
}

// === impl Tenant ===

impl Trust for Tenant {
    fn certificate<'a>(
        &'a self,
        owner: &'a Owner,
        _: &'a Serial,
    ) -> BoxFuture<'a, std::result::Result<TrustAnswer, Unavailable>> {
        let is_tenant = *owner == self.0;
        let answer = if is_tenant { TrustAnswer::Trusted(self.1.clone()) } else { TrustAnswer::Unknown };
        Box::pin(std::future::ready(Ok(answer)))
    }

    fn account_key<'a>(
        &'a self,
        _: &'a Owner,
    ) -> BoxFuture<'a, std::result::Result<TrustAnswer<AccountKey>, Unavailable>> {
        Box::pin(std::future::ready(Ok(TrustAnswer::Unknown)))
    }
}
