//! Control frames of HTTP/2: a peer that sends too many is cut and counted, and delays no other task. An
//! honest follower may send many.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::proto::lease::ServiceLogsResponse;
use leasemux::model::proto::lease::lease_rpc_client::LeaseRpcClient;
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};

use super::floods::{
    DATA, END_HEADERS, ENHANCE_YOUR_CALM, HEADERS, SETTINGS, WINDOW_UPDATE, flood, frame, headers, preface,
    with_follower,
};
use crate::quotas::{follow, quota_exceeded};
use crate::support::gateway::{Gateway, PATIENCE, Setup};
use crate::support::loss_check::Received;
use crate::support::raw::encoded;
use crate::support::replica;

const PRIORITY: u8 = 2;
const PING: u8 = 6;
const UNKNOWN: u8 = 0xbe;

const ACK: u8 = 1;

/// Most frames that one poll of a connection handles.
const FRAMES_PER_POLL: usize = 64;

/// Burst of control frames.
const BURST: usize = 2_048;

/// Each kind of control frame that HTTP/2 allows in any number without a call.
fn control_frames() -> Vec<(&'static str, Vec<u8>)> {
    let table_size = |bytes: u32| frame(SETTINGS, 0, 0, &[&[0, 1][..], &bytes.to_be_bytes()].concat());
    vec![
        ("ping", frame(PING, 0, 0, &[0; 8])),
        ("ping ack", frame(PING, ACK, 0, &[0; 8])),
        ("settings", frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])),
        ("settings without entries", frame(SETTINGS, 0, 0, &[])),
        ("settings of the header table", [table_size(0), table_size(4_096)].concat()),
        ("window update", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("priority", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 15])),
        ("unknown", frame(UNKNOWN, 0, 0, &[])),
        ("unknown, long", frame(UNKNOWN, 0, 5, &[0; 16_384])),
    ]
}

#[tokio::test(start_paused = true)]
async fn flood_of_control_frames_is_cut() {
    for (name, frames) in control_frames() {
        let error = with_follower(|pipe| flood(pipe, Vec::new(), |_| frames.clone())).await;
        assert_eq!(error, Some(ENHANCE_YOUR_CALM), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn flood_of_control_frames_is_a_failure_of_the_peer() {
    let quota = QuotaLimits { auth_failures_per_minute: 2, ..QuotaLimits::default() };
    let setup = &Setup::new(Limits { quota, ..Limits::default() }, &[("web", 1)]);
    let gateway = &setup.gateway;
    let [bad, good] = ["192.0.2.1:1", "192.0.2.2:1"].map(|text| Some(text.parse().unwrap()));
    let call = |address| async move {
        let pipe = gateway.connect_from(Some(setup.certificate.clone()), address);
        let mut client = LeaseRpcClient::new(gateway.channel_over(pipe).await);
        client.service_logs(setup.request()).await.map(drop)
    };
    for _ in 0..2 {
        call(bad).await.expect("too few failures yet");
        flood(gateway.connect_from(None, bad), Vec::new(), |_| frame(PING, 0, 0, &[0; 8])).await;
    }
    quota_exceeded(&call(bad).await.unwrap_err(), "auth_failures_per_peer", "peer", 2);
    call(good).await.expect("another address is not affected");
}

/// A peer with endless PING frames that takes all answers. `read` counts the bytes that were read.
struct Endless {
    read: Arc<AtomicUsize>,
    preface: Vec<u8>,
    ping: Vec<u8>,
}

impl AsyncRead for Endless {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let at = self.read.load(Ordering::Relaxed);
        let rest = match self.preface.get(at..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => &self.ping[(at - self.preface.len()) % self.ping.len()..],
        };
        let bytes = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..bytes]);
        self.read.fetch_add(bytes, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Endless {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn flooded_connection_lets_other_tasks_run() {
    // Each answer allows a part of another frame.
    const MOST: usize = 3 * BURST;
    let gateway = Gateway::new(Limits::default());
    let read = Arc::<AtomicUsize>::default();
    let ping = frame(PING, 0, 0, &[0; 8]);
    let (pings, length) = (ping.repeat(1_000), ping.len());
    let preface = preface();
    let first = preface.len();
    gateway.serve(Endless { read: Arc::clone(&read), preface, ping: pings }, None, None);
    // A task that is always ready: between two of its polls the connection is polled once.
    let (mut before, mut most) = (0, 0);
    let observer = std::future::poll_fn(move |cx| {
        let now = read.load(Ordering::Relaxed);
        most = most.max(now - before);
        before = now;
        if Arc::strong_count(&read) == 1 || now > MOST * length {
            return Poll::Ready((now, most));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    });
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(observer);
    let (all, most) = tasks.join_next().await.unwrap().unwrap();
    assert!(most <= FRAMES_PER_POLL * length + first, "{most} bytes in one poll");
    assert!((BURST * length..MOST * length).contains(&all), "{all} bytes in all");
}

/// A follower that answers each DATA frame like the least economical honest client: with a `WINDOW_UPDATE`
/// for the stream, one for the connection, and a PING.
struct Talkative {
    pipe: DuplexStream,
    unread: Vec<u8>,
    message: Vec<u8>,
    received: Received,
    control_frames: usize,
}

impl Talkative {
    async fn follow(setup: &Setup) -> Self {
        let mut pipe = setup.gateway.connect(Some(setup.certificate.clone()));
        // content-type: application/grpc
        let mut block = headers();
        block.extend([0x0f, 0x10, 16]);
        block.extend(b"application/grpc");
        let call =
            [preface(), frame(HEADERS, END_HEADERS, 1, &block), frame(DATA, 1, 1, &encoded(&follow(setup)))];
        pipe.write_all(&call.concat()).await.unwrap();
        Self {
            pipe,
            unread: Vec::new(),
            message: Vec::new(),
            received: Received::default(),
            control_frames: 0,
        }
    }

    async fn until(&mut self, lines: usize) {
        while self.received.lines("web", 0) < lines {
            let read = tokio::time::timeout(PATIENCE, self.pipe.read_buf(&mut self.unread)).await;
            assert!(read.expect("more data").unwrap() > 0, "cut after {} frames", self.control_frames);
            while let Some((kind, payload)) = self.next_frame() {
                match kind {
                    DATA => self.data(&payload).await,
                    SETTINGS | HEADERS | PING | WINDOW_UPDATE => {}
                    other => panic!("a frame of type {other}"),
                }
            }
        }
    }

    fn next_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let head = self.unread.get(..9)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, payload) = (head[3], self.unread.get(9..9 + length)?.to_vec());
        self.unread.drain(..9 + length);
        Some((kind, payload))
    }

    async fn data(&mut self, payload: &[u8]) {
        let increment = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let answer = [
            frame(WINDOW_UPDATE, 0, 1, &increment),
            frame(WINDOW_UPDATE, 0, 0, &increment),
            frame(PING, 0, 0, &[0; 8]),
        ];
        self.pipe.write_all(&answer.concat()).await.unwrap();
        self.control_frames += answer.len();
        self.message.extend_from_slice(payload);
        while let Some(prefix) = self.message.get(..5) {
            let length = usize::try_from(u32::from_be_bytes(prefix[1..].try_into().unwrap())).unwrap();
            let Some(message) = self.message.get(5..5 + length) else { break };
            self.received.take(ServiceLogsResponse::decode(message).unwrap());
            self.message.drain(..5 + length);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn talkative_honest_follower_is_not_cut() {
    const LINES: usize = 10_000;
    // Each line is sent separately.
    let limits = Limits { pace: std::time::Duration::ZERO, ..Limits::default() };
    let setup = Setup::new(limits, &[("web", 1)]);
    let run = setup.gateway.platform.start(&setup.lease, &replica("web", 0));
    let mut follower = Talkative::follow(&setup).await;
    for line in 0..LINES {
        setup.gateway.platform.print(&run, [format!("{line}\n")]);
        follower.until(line + 1).await;
    }
    assert!(follower.control_frames > 10 * BURST, "{} control frames", follower.control_frames);
    assert_eq!(follower.received.assert_complete(&setup.gateway.platform, "web", 0, &[(&run, 0)]), 0);
}
