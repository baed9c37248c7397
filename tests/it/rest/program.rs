//! The REST port of the real program, with real sockets, TLS, processes and time.

use std::fs;
use std::path::PathBuf;

use leasemux::model::id::LeaseId;
use leasemux::model::proto::lease::replica_event::Kind;
use rustix::process::Signal;
use tokio::net::TcpStream;
use tokio::task::block_in_place;
use tokio_rustls::client::TlsStream;

use crate::shutdown::STEADY;
use crate::support::process::{Gateway, Workspace};
use crate::support::rest::{WsFollower, connect_tls, exchange};

/// A workspace with alice's lease, and a gateway with a REST port.
struct Program {
    workspace: Workspace,
    lease: LeaseId,
    gateway: Gateway,
}

impl Program {
    fn start(services: &[(&str, &str, u32)], more: &[&str]) -> Self {
        let workspace = Workspace::new();
        let lease = workspace.tenant("alice");
        fs::copy(workspace.path("alice/account.pub"), workspace.path("trusted/alice.pub")).unwrap();
        let sdl = workspace.sdl("alice.yaml", services);
        let provider = format!("--provider={}", lease.provider());
        let flags = [&["--rest-listen=127.0.0.1:0", provider.as_str()][..], more].concat();
        let gateway = workspace.serve(&[(&lease, &sdl)], &flags);
        Self { workspace, lease, gateway }
    }

    fn token(&self, ttl: &str) -> String {
        let alice = self.workspace.path("alice");
        let args = ["token", "new", "--ttl", ttl, "--identity", alice.to_str().unwrap()];
        block_in_place(|| self.workspace.run(&args)).out.trim().to_owned()
    }

    async fn connect(&self, identity: Option<PathBuf>) -> TlsStream<TcpStream> {
        let pem = self.workspace.path("data/server.pem");
        connect_tls(self.gateway.rest.expect("a REST port"), &pem, identity.as_deref()).await
    }

    /// Opens a websocket with a token.
    async fn open(&self, query: &str) -> WsFollower<TlsStream<TcpStream>> {
        let bearer = format!("Bearer {}", self.token("10m"));
        let path = format!("/lease/7/1/1/logs?{query}");
        WsFollower::open(self.connect(None).await, &path, &[("authorization", &bearer)]).await
    }

    /// Opens a websocket with alice's certificate.
    async fn open_by_certificate(&self, query: &str) -> WsFollower<TlsStream<TcpStream>> {
        let io = self.connect(Some(self.workspace.path("alice"))).await;
        WsFollower::open(io, &format!("/lease/7/1/1/logs?{query}"), &[]).await
    }

    fn restart(&self, service: &str) {
        let mut args = self.workspace.call_args("restart", self.gateway.address, "alice", &self.lease);
        args.extend(["--service".to_owned(), service.to_owned()]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let done = block_in_place(|| self.workspace.run(&args));
        assert!(done.status.success(), "{done:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_pass_restart_of_replica_and_drain() {
    let program = Program::start(&[("web", STEADY, 2)], &[]);
    let mut by_token = program.open("follow=true&services=web").await;
    let mut by_certificate = program.open_by_certificate("follow=true&service=web%2C").await;
    let mut grpc = program.workspace.follow(program.gateway.address, "alice", &program.lease);
    for stream in [&mut by_token, &mut by_certificate] {
        stream.keeps_frames = true;
        let has_lines = |replica| move |stream: &WsFollower<_>| stream.received.lines("web", replica) >= 50;
        stream.until("lines of web/0", has_lines(0)).await;
        stream.until("lines of web/1", has_lines(1)).await;
    }
    program.restart("web");
    for stream in [&mut by_token, &mut by_certificate] {
        for replica in [0, 1] {
            stream
                .until("the new run", |stream| {
                    let started = stream.received.events("web", replica).contains(&Kind::Started);
                    started && stream.received.lines("web", replica) >= 100
                })
                .await;
        }
        let names: Vec<&str> = stream.frames.iter().filter_map(|frame| frame["name"].as_str()).collect();
        assert!(names.iter().all(|name| matches!(*name, "web-0" | "web-1")), "{names:?}");
    }
    block_in_place(|| {
        grpc.until("two runs", |seen| seen.runs("web/0").len() == 2 && seen.runs("web/1").len() == 2);
    });
    program.gateway.program.signal(Signal::TERM);
    for stream in [&mut by_token, &mut by_certificate] {
        assert_eq!(stream.end().await, (1001, String::new()));
        assert_eq!(stream.last()["notice"]["kind"], "end");
        let tally = stream.received.judge.0.verdict().unwrap_or_else(|violation| panic!("{violation}"));
        assert_eq!((tally.gaps, tally.lost_lines, tally.checked), (0, 0, tally.lines), "{tally:?}");
        assert!(tally.lines >= 200, "{tally:?}");
    }
    let Program { gateway, .. } = program;
    let done = block_in_place(|| gateway.program.done());
    assert!(done.status.success(), "{done:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_stops_reading_gets_exact_gap_or_refill() {
    // 60,000 lines of 200 bytes: far more than the ring and all socket buffers.
    const COUNT: usize = 60_000;
    let script = "while ! [ -e $GATES/go ]; do sleep 0.05; done
        awk 'BEGIN { for (n = 1; n <= 60000; n++) printf \"%d %0190d\\n\", n, n }'
        while ! [ -e $GATES/end ]; do sleep 0.05; done
        echo \"60001 the end\"
        sleep 1000";
    let program = Program::start(&[("web", script, 1)], &["--ring-max-bytes=64KiB"]);
    let mut slow = program.open("follow=true").await;
    let mut refilled = program.open("follow=true&on_lag=refill").await;
    let mut quick = program.open("follow=true").await;
    quick.keeps_frames = false;
    let mut grpc = program.workspace.follow(program.gateway.address, "alice", &program.lease);
    program.workspace.open("go");
    // It may lag itself, but does not wait for the slow one.
    let has_all = |stream: &WsFollower<_>| {
        let missing = usize::try_from(stream.received.missing("web", 0)).unwrap();
        stream.received.lines("web", 0) + missing == COUNT
    };
    quick.until("all lines", has_all).await;
    block_in_place(|| {
        grpc.until("all lines", |seen| seen.tally().lines + seen.tally().lost_lines >= COUNT as u64);
    });
    program.workspace.open("end");
    for stream in [&mut quick, &mut slow, &mut refilled] {
        stream.until("the end", |stream| stream.received.ends_with("web", 0, "the end\n")).await;
        let tally = stream.received.judge.0.verdict().unwrap_or_else(|violation| panic!("{violation}"));
        assert_eq!(tally.lines + tally.lost_lines, COUNT as u64 + 1, "{tally:?}");
    }
    assert!(slow.received.judge.0.tally().lost_lines > 0);
    // The log has all lines.
    assert_eq!((refilled.received.judge.0.tally().gaps, refilled.notices().len()), (0, 0));
    assert!(program.gateway.metric("leasemux_refills_total{lag=\"first\"}") > 0);
    assert_eq!(
        slow.notices().iter().filter(|kind| **kind == "gap").count() as u64,
        slow.received.judge.0.tally().gaps
    );
    grpc.end().0.verdict();
    let lost = program.gateway.metric("leasemux_lines_lost_total{cause=\"lag\"}");
    assert!(lost >= slow.received.judge.0.tally().lost_lines, "{lost}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_certificate_and_key_close_their_streams() {
    let program = Program::start(&[("web", STEADY, 1)], &["--trust-poll=1s"]);
    let mut by_token = program.open("follow=true").await;
    let mut by_certificate = program.open_by_certificate("follow=true").await;
    for stream in [&mut by_token, &mut by_certificate] {
        stream.until("lines", |stream| stream.received.lines("web", 0) >= 20).await;
    }
    fs::remove_file(program.workspace.path("trusted/alice.pem")).unwrap();
    assert_eq!(by_certificate.end().await, (4000, "credentials no longer valid".to_owned()));
    assert_eq!(by_certificate.last()["notice"]["reason"], "CERTIFICATE_WITHDRAWN");
    fs::remove_file(program.workspace.path("trusted/alice.pub")).unwrap();
    assert_eq!(by_token.end().await, (4000, "credentials no longer valid".to_owned()));
    for stream in [&by_token, &by_certificate] {
        stream.received.judge.0.verdict().unwrap_or_else(|violation| panic!("{violation}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_token_closes_the_stream_if_configured() {
    let program = Program::start(&[("web", STEADY, 1)], &["--rest-expired=close"]);
    let bearer = format!("Bearer {}", program.token("4s"));
    let io = program.connect(None).await;
    let mut stream =
        WsFollower::open(io, "/lease/7/1/1/logs?follow=true", &[("authorization", &bearer)]).await;
    assert_eq!(stream.end().await, (4000, "credentials no longer valid".to_owned()));
    assert_eq!(stream.last()["notice"]["reason"], "TOKEN_EXPIRED");
    stream.received.judge.0.verdict().unwrap_or_else(|violation| panic!("{violation}"));
    // A later request fails before the upgrade.
    let head = format!("GET /lease/7/1/1/status HTTP/1.1\r\nHost: any\r\nAuthorization: {bearer}\r\n");
    exchange(program.connect(None).await, &head).await.is_fault(401, "JWT is expired");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_names_replicas_over_tls() {
    let flags = ["--public-hostname=provider.test", "--rest-notices=none"];
    let program = Program::start(&[("web", STEADY, 1)], &flags);
    let answer = exchange(program.connect(None).await, "GET /status HTTP/1.1\r\nHost: localhost\r\n").await;
    assert_eq!(answer.json()["cluster_public_hostname"], "provider.test");
    let io = program.connect(Some(program.workspace.path("alice"))).await;
    let answer = exchange(io, "GET /lease/7/1/1/status HTTP/1.1\r\nHost: x:1\r\n").await;
    assert_eq!(answer.json()["services"]["web"]["replica_status"][0]["replica"], 0);
    let mut quiet = program.open("follow=true").await;
    quiet.until("lines", |stream| stream.received.lines("web", 0) >= 20).await;
    program.gateway.program.signal(Signal::TERM);
    assert_eq!(quiet.end().await, (1001, String::new()));
    assert_eq!(quiet.notices(), [""; 0]);
    let Program { gateway, .. } = program;
    let done = block_in_place(|| gateway.program.done());
    assert!(done.status.success(), "{done:?}");
}
