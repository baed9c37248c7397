//! Soak test: the real program over real sockets for minutes, with restarts of services and of the gateway,
//! cut connections, and fast and slow followers. Timing is not checked, only that every line is delivered or
//! reported lost.
//!
//! ```sh
//! LEASEMUX_TEST_SOAK_SECONDS=900 cargo test --test it soak -- --ignored --nocapture
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use leasemux::client::connect::Connector;
use leasemux::client::follow::{ConnectionChange, Follower, Sink};
use leasemux::loss_checker::{LossChecker, Order, Start, Tally};
use leasemux::model::id::LeaseId;
use leasemux::model::proto::lease::{ServiceLogs, ServiceLogsRequest};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::Signal;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, block_in_place};
use tokio_util::sync::CancellationToken;

use crate::shutdown::{STEADY, connector};
use crate::support::process::{Gateway, Workspace, own_port};

/// Environment variable with the duration, in seconds.
const SECONDS: &str = "LEASEMUX_TEST_SOAK_SECONDS";

/// Duration without [`SECONDS`].
const SECONDS_DEFAULT: u64 = 60;

/// Followers that read at full speed.
const FAST: usize = 20;

/// Followers that pause regularly, for long enough to fall out of the ring.
const SLOW: usize = 4;

/// Entries between two pauses of a slow follower.
const SLOW_ENTRIES: u64 = 300;

/// How long a slow follower pauses.
const SLOW_PAUSE: Duration = Duration::from_secs(3);

/// Interval of disturbances.
const DISTURBED_EVERY: Duration = Duration::from_secs(3);

/// One in this many disturbances is a restart of the gateway, the longest kind.
const GATEWAY_RESTARTS_ONE_IN: u32 = 8;

/// A service that prints about 4,000 lines per second, in bursts.
const LOUD: &str = "n=0
    while :; do
      i=0
      while [ $i -lt 200 ]; do i=$((i+1)); n=$((n+1)); echo \"$n of a loud service with a longer line\"; done
      sleep 0.05
    done";

/// A sink that checks entries, and pauses if the follower is slow.
struct Checked {
    checker: LossChecker,
    entries: u64,
    is_slow: bool,
    resumed: Arc<AtomicU64>,
}

/// A TCP relay before the gateway that can cut its connections.
struct Relay {
    address: SocketAddr,
    connections: Arc<std::sync::Mutex<JoinSet<()>>>,
    _accept: JoinSet<()>,
}

/// Number of disturbances by kind.
#[derive(Debug, Default)]
struct Disturbances {
    restarts: u32,
    gateway_restarts: u32,
    cuts: u32,
}

// === impl Checked ===

impl Sink for Checked {
    fn entry(&mut self, entry: &ServiceLogs) -> io::Result<()> {
        self.checker.feed(entry);
        self.entries += 1;
        if self.is_slow && self.entries.is_multiple_of(SLOW_ENTRIES) {
            // Each follower has its own thread.
            std::thread::sleep(SLOW_PAUSE);
        }
        Ok(())
    }

    fn connection(&mut self, change: &ConnectionChange<'_>) -> io::Result<()> {
        self.resumed.fetch_add(u64::from(matches!(change, ConnectionChange::Resumed)), Ordering::Relaxed);
        Ok(())
    }
}

// === impl Relay ===

impl Relay {
    async fn start(gateway: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(std::sync::Mutex::new(JoinSet::new()));
        let relayed = Arc::clone(&connections);
        let mut accept = JoinSet::new();
        accept.spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                relayed.lock().unwrap().spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(gateway).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Self { address, connections, _accept: accept }
    }

    /// Cuts all open connections.
    fn cut(&self) {
        self.connections.lock().unwrap().abort_all();
    }
}

/// Runs one follower on a runtime of its own until `stop`. Returns its totals.
fn follow(
    connector: Connector,
    request: ServiceLogsRequest,
    mut sink: Checked,
    stop: CancellationToken,
) -> Tally {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let follower = Follower::new(connector, request);
        let ended = stop.run_until_cancelled(follower.run(&mut sink)).await;
        assert!(ended.is_none(), "a follower ended: {ended:?}");
    });
    sink.checker.verdict().unwrap_or_else(|violation| panic!("{violation}"))
}

/// Stops a gateway gracefully.
fn stop_gateway(gateway: Gateway) {
    let done = block_in_place(|| gateway.stop(Signal::TERM));
    assert_eq!(done.status.code(), Some(0), "{done:?}");
}

/// Restarts a service and waits until it is ready.
fn restart(workspace: &Workspace, gateway: SocketAddr, lease: &LeaseId, service: &str) {
    let mut args = workspace.call_args("restart", gateway, "alice", lease);
    args.extend(["--service".to_owned(), service.to_owned()]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = block_in_place(|| workspace.run(&args));
    assert_eq!(done.status.code(), Some(0), "{done:?}");
}

/// Returns the resident memory, in KiB, and the open files of a process.
fn usage(pid: i32) -> (u64, usize) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    (resident.and_then(|kib| kib.parse().ok()).unwrap_or_default(), files)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: .ci/full runs it"]
async fn soak_of_restarts_and_cuts_loses_nothing_unreported() {
    let seconds = std::env::var(SECONDS).ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS_DEFAULT);
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("alice.yaml", &[("web", STEADY, 2), ("loud", LOUD, 1)]);
    let listen = format!("--listen=127.0.0.1:{}", own_port());
    let flags = [listen.as_str(), "--ring-max-bytes=64KiB"];
    let serve = || block_in_place(|| workspace.serve(&[(&lease, &sdl)], &flags));
    let mut gateway = serve();
    let relay = Relay::start(gateway.address).await;
    let connector = connector(&workspace, relay.address);
    let request = ServiceLogsRequest { lease_id: Some((&lease).into()), follow: true, ..Default::default() };
    let stop = CancellationToken::new();
    let resumed = Arc::new(AtomicU64::new(0));
    let followers: Vec<_> = (0..FAST + SLOW)
        .map(|number| {
            let sink = Checked {
                checker: LossChecker::new(Start::First, Order::Exact),
                entries: 0,
                is_slow: number >= FAST,
                resumed: Arc::clone(&resumed),
            };
            let (connector, request, stop) = (connector.clone(), request.clone(), stop.clone());
            std::thread::spawn(move || follow(connector, request, sink, stop))
        })
        .collect();

    let seed = u64::from(std::process::id());
    println!("seed {seed}, {seconds} s, {FAST} fast and {SLOW} slow followers");
    println!("at the start: (resident KiB, open files) {:?}", usage(gateway.program.id()));
    let mut random = SmallRng::seed_from_u64(seed);
    let mut done = Disturbances::default();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end && !followers.iter().any(std::thread::JoinHandle::is_finished) {
        tokio::time::sleep(DISTURBED_EVERY).await;
        if random.random_ratio(1, GATEWAY_RESTARTS_ONE_IN) {
            stop_gateway(gateway);
            gateway = serve();
            done.gateway_restarts += 1;
        } else if random.random_bool(0.5) {
            relay.cut();
            done.cuts += 1;
        } else {
            let service = if random.random_bool(0.5) { "web" } else { "loud" };
            restart(&workspace, gateway.address, &lease, service);
            done.restarts += 1;
        }
    }
    println!("at the end:   (resident KiB, open files) {:?}", usage(gateway.program.id()));
    stop.cancel();
    let mut all = Tally::default();
    for follower in followers {
        let tally = block_in_place(|| follower.join()).expect("a follower's loss check");
        assert_eq!(tally.checked, tally.lines, "{tally:?}");
        all.lines += tally.lines;
        all.gaps += tally.gaps;
        all.lost_lines += tally.lost_lines;
    }
    println!(
        "{} lines delivered, {} lines reported lost in {} gaps; unexplained 0, repeated 0; {done:?}, {} streams resumed",
        all.lines,
        all.lost_lines,
        all.gaps,
        resumed.load(Ordering::Relaxed),
    );
    assert!(all.lines > 0);
    stop_gateway(gateway);
    block_in_place(|| workspace.until_nothing_is_left());
}
