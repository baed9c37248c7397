//! Cursors that a caller invented, with the local platform: they do no harm, and the follower still gets live
//! lines.

use std::process::Command;
use std::time::Duration;

use leasemux::access::identity::IdentityFiles;
use leasemux::model::id::LeaseId;
use leasemux::model::proto::lease::lease_rpc_client::LeaseRpcClient;
use leasemux::model::proto::lease::{Cursor, ServiceLogsRequest, ServiceLogsResponse};
use leasemux::model::time::LogTime;
use leasemux::platform::Platform as _;
use leasemux::platform::local::sdl::Sdl;
use leasemux::platform::local::{LocalConfig, LocalPlatform};
use leasemux::sys::dir_watch::Notifier;
use prost_types::Timestamp;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::support::account;
use crate::support::gateway::{Gateway, proto_lease};
use crate::support::loss_check::Received;

/// Longer than any step; only a hang reaches it.
const DEADLINE: Duration = Duration::from_secs(30);

/// A follower of `web`, and what it received.
struct Follower {
    stream: Streaming<ServiceLogsResponse>,
    received: Received,
}

impl Follower {
    async fn open(client: &mut LeaseRpcClient<Channel>, request: ServiceLogsRequest) -> Self {
        let opened = tokio::time::timeout(DEADLINE, client.service_logs(request)).await.unwrap();
        Self { stream: opened.unwrap().into_inner(), received: Received::default() }
    }

    /// Reads until `enough` holds, or to the end.
    async fn read(&mut self, case: &str, enough: impl Fn(&Received) -> bool) -> &Received {
        while !enough(&self.received) {
            let next = tokio::time::timeout(DEADLINE, self.stream.message()).await;
            match next.unwrap_or_else(|_| panic!("{case}: no message after {:?}", self.received)) {
                Ok(Some(response)) => self.received.take(response),
                Ok(None) => break,
                Err(status) => panic!("{case}: {status:?}"),
            }
        }
        &self.received
    }
}

/// Returns variations of a real cursor.
fn invented(real: &Cursor) -> Vec<Cursor> {
    let at = real.time.unwrap();
    let times = [
        at,
        Timestamp { nanos: (at.nanos - 1).max(0), ..at },
        Timestamp { seconds: at.seconds + 1_000, ..at },
        Timestamp { seconds: -9_223_372_036, nanos: 0 },
        Timestamp { seconds: 9_223_372_036, nanos: 0 },
    ];
    let ordinals = [1, real.ordinal, real.ordinal + 1, u64::MAX - 1, u64::MAX];
    let offsets = [0, 1, 1_000, u64::MAX];
    let mut all = Vec::new();
    for time in times {
        for ordinal in ordinals {
            let of = |offset| Cursor { time: Some(time), ordinal, offset, ..real.clone() };
            all.extend(offsets.map(of));
        }
    }
    all
}

#[tokio::test]
async fn invented_cursors_do_not_stop_live_lines() {
    let dir = tempfile::tempdir().unwrap();
    let identity = dir.path().join("tenant");
    let owner = IdentityFiles::create(&identity, LogTime::now()).unwrap();
    let (chain, _) = IdentityFiles::load(&identity).unwrap().into_parts();
    let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // Prints twenty lines, then waits for a signal and prints without end.
    let script = format!("seq 20; read go < {}; while :; do echo tick; sleep 0.2; done", fifo.display());
    let sdl = format!(
        "{{version: '2.0', services: {{web: {{command: [sh, -c, '{script}']}}}}, \
         deployment: {{web: {{here: {{count: 1}}}}}}}}"
    );
    let leases = vec![(lease.clone(), Sdl::parse(&sdl).unwrap())];
    let exe = env!("CARGO_BIN_EXE_leasemux").into();
    let config = LocalConfig { exe, ..LocalConfig::new(dir.path().join("data"), leases) };
    let platform = LocalPlatform::start(config, Notifier::start()).unwrap();
    let gateway = Gateway::on(platform.clone());
    gateway.believe(&owner, &chain[0]);
    let mut client = gateway.client(&chain[0]).await;
    let request = ServiceLogsRequest { lease_id: Some(proto_lease(&lease)), ..ServiceLogsRequest::default() };
    let follow = ServiceLogsRequest { follow: true, ..request.clone() };

    let mut whole = Follower::open(&mut client, follow.clone()).await;
    let seen = whole.read("real", |seen| seen.lines("web", 0) == 20).await;
    let real = seen.cursors[&("web".to_owned(), 0)].clone();
    let so_far = seen.text("web", 0);
    drop(whole);
    let mut followers = Vec::new();
    for cursor in invented(&real) {
        let case = format!("{cursor:?}");
        let resume = vec![cursor];
        let request = ServiceLogsRequest { resume: resume.clone(), ..request.clone() };
        let mut history = Follower::open(&mut client, request).await;
        let text = history.read(&case, |_| false).await.text("web", 0);
        assert!(so_far.ends_with(&text), "{case}: {text}");
        let request = ServiceLogsRequest { resume, ..follow.clone() };
        followers.push((case, Follower::open(&mut client, request).await));
    }
    tokio::time::timeout(DEADLINE, tokio::fs::write(&fifo, "go\n")).await.unwrap().unwrap();
    // Concurrently, and only as long as necessary: the client's library closes a connection with many unread
    // small frames.
    let live = followers.into_iter().map(|(case, mut follower)| {
        let so_far = &so_far;
        async move {
            let seen = follower.read(&case, |seen| seen.ends_with("web", 0, "tick\n")).await.text("web", 0);
            // The first live line lacks its first byte if the cursor has that offset.
            let history = seen.trim_end_matches("tick\n").trim_end_matches("ick\n");
            assert!(!seen.is_empty() && so_far.ends_with(history), "{case}: {seen}");
        }
    });
    futures_util::future::join_all(live).await;
    platform.stop(Duration::ZERO).await;
}
