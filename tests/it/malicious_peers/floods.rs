//! Frames that no honest client sends: they cost the sender its connection, and affect no other peer.

use std::time::Duration;

use bytes::BufMut as _;
use leasemux::edge::service::SERVICE;
use leasemux::model::limits::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::Instant;

use crate::quotas::follow;
use crate::support::gateway::Setup;
use crate::support::replica;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_HEADERS: u8 = 4;

/// Error code of GOAWAY for a flood.
pub(super) const ENHANCE_YOUR_CALM: u32 = 11;

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(9 + payload.len());
    frame.put_uint(payload.len() as u64, 3);
    frame.put_u8(kind);
    frame.put_u8(flags);
    frame.put_u32(stream);
    frame.put_slice(payload);
    frame
}

/// The start of every connection.
pub(super) fn preface() -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat()
}

/// The headers of a call in HPACK: POST, http, and literal values with names from the static table.
pub(super) fn headers() -> Vec<u8> {
    let path = format!("/{SERVICE}/ServiceLogs");
    let mut block = vec![0x83, 0x86];
    for (name, value) in [(0x04, path.as_str()), (0x01, "gateway")] {
        block.extend([name, u8::try_from(value.len()).unwrap()]);
        block.extend(value.as_bytes());
    }
    block
}

/// Sends `start`, then the frames of `more` for each stream id, until the gateway closes the connection.
/// Returns the code of its GOAWAY.
pub(super) async fn flood(
    mut pipe: DuplexStream,
    start: Vec<u8>,
    more: impl Fn(u32) -> Vec<u8>,
) -> Option<u32> {
    pipe.write_all(&[preface(), start].concat()).await.unwrap();
    let (mut from, mut to) = tokio::io::split(pipe);
    let send = async {
        for stream in (1..2_000_001).step_by(2) {
            if to.write_all(&more(stream)).await.is_err() {
                return;
            }
        }
        panic!("the connection is open after a million rounds");
    };
    let mut received = Vec::new();
    let receive = async {
        // The connection may be cut while data is in transit.
        let _ = from.read_to_end(&mut received).await;
    };
    tokio::join!(send, receive);
    goaway_code(&received)
}

/// Returns the code of GOAWAY among the received frames.
pub(super) fn goaway_code(mut received: &[u8]) -> Option<u32> {
    let mut error = None;
    while received.len() >= 9 {
        let length =
            usize::from(received[0]) << 16 | usize::from(received[1]) << 8 | usize::from(received[2]);
        let payload = received.get(9..9 + length)?;
        if received[3] == GOAWAY {
            error = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
        received = &received[9 + length..];
    }
    error
}

/// Runs `act` beside a follower, and checks that it gets all lines.
pub(super) async fn with_follower<F: Future>(act: impl FnOnce(DuplexStream) -> F) -> F::Output {
    let setup = Setup::new(Limits::default(), &[("web", 1)]);
    let run = setup.gateway.platform.start(&setup.lease, &replica("web", 0));
    let mut stream = setup.open(follow(&setup)).await.unwrap();
    setup.gateway.platform.print(&run, ["before\n"]);
    stream.until(|seen| seen.lines("web", 0) == 1).await;
    let outcome = act(setup.gateway.connect(Some(setup.certificate.clone()))).await;
    setup.gateway.platform.print(&run, ["after\n"]);
    stream.until(|seen| seen.lines("web", 0) == 2).await;
    stream.received.assert_complete(&setup.gateway.platform, "web", 0, &[(&run, 0)]);
    setup.gateway.eventually(|gateway| gateway.metric("leasemux_connections") == 1).await;
    outcome
}

#[tokio::test(start_paused = true)]
async fn flood_of_reset_calls_is_cut() {
    let call_and_reset = |stream| {
        [frame(HEADERS, END_HEADERS, stream, &headers()), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])]
            .concat()
    };
    let error = with_follower(|pipe| flood(pipe, Vec::new(), call_and_reset)).await;
    assert_eq!(error, Some(ENHANCE_YOUR_CALM));
}

#[tokio::test(start_paused = true)]
async fn flood_of_stream_errors_is_cut() {
    // A window over its maximum is a stream error, so the gateway must reset the stream.
    let call_and_break = |stream| {
        let beyond = frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]);
        [frame(HEADERS, END_HEADERS, stream, &headers()), beyond].concat()
    };
    let error = with_follower(|pipe| flood(pipe, Vec::new(), call_and_break)).await;
    assert_eq!(error, Some(ENHANCE_YOUR_CALM));
}

#[tokio::test(start_paused = true)]
async fn endless_headers_are_cut() {
    let start = frame(HEADERS, 0, 1, &headers());
    let error = with_follower(|pipe| flood(pipe, start, |_| frame(CONTINUATION, 0, 1, &[]))).await;
    assert_eq!(error, Some(ENHANCE_YOUR_CALM));
}

#[tokio::test(start_paused = true)]
async fn flood_of_empty_frames_is_cut() {
    let start = frame(HEADERS, END_HEADERS, 1, &headers());
    let error = with_follower(|pipe| flood(pipe, start, |_| frame(DATA, 0, 1, &[]))).await;
    assert_eq!(error, Some(ENHANCE_YOUR_CALM));
}

#[tokio::test(start_paused = true)]
async fn slow_headers_are_cut() {
    let took = with_follower(|mut pipe| async move {
        let began = Instant::now();
        pipe.write_all(&[preface(), frame(HEADERS, 0, 1, &[])].concat()).await.unwrap();
        for byte in headers() {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if pipe.write_all(&frame(CONTINUATION, 0, 1, &[byte])).await.is_err() {
                return began.elapsed();
            }
        }
        panic!("not cut");
    });
    let took = took.await;
    assert!(took >= Duration::from_secs(1) && took <= Duration::from_secs(11), "{took:?}");
}
