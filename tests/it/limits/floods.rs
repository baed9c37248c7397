//! What no honest client sends: it costs the sender its connection, and nobody else anything.

use std::time::Duration;

use bytes::BufMut as _;
use leasemux::edge::service::SERVICE;
use leasemux::model::limits::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::Instant;

use super::follow;
use crate::support::gateway::Scene;
use crate::support::replica;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_HEADERS: u8 = 4;

/// Why HTTP/2 says goodbye to who is too much.
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

/// What every connection begins with.
pub(super) fn preface() -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat()
}

/// The headers of a call, as HPACK has them: POST, http, and names from its table with values as they are.
pub(super) fn headers() -> Vec<u8> {
    let path = format!("/{SERVICE}/ServiceLogs");
    let mut block = vec![0x83, 0x86];
    for (name, value) in [(0x04, path.as_str()), (0x01, "gateway")] {
        block.extend([name, u8::try_from(value.len()).unwrap()]);
        block.extend(value.as_bytes());
    }
    block
}

/// Sends all of this, again and again what `more` makes with an odd number, until the gateway closes the connection. Answers
/// the error of its goodbye.
pub(super) async fn flood(
    mut pipe: DuplexStream,
    begin: Vec<u8>,
    more: impl Fn(u32) -> Vec<u8>,
) -> Option<u32> {
    pipe.write_all(&[preface(), begin].concat()).await.unwrap();
    let (mut from, mut to) = tokio::io::split(pipe);
    let send = async {
        for stream in (1..2_000_001).step_by(2) {
            if to.write_all(&more(stream)).await.is_err() {
                return;
            }
        }
        panic!("a million times, and the connection is open still");
    };
    let mut heard = Vec::new();
    let listen = async {
        // It may be cut off while something is on its way.
        let _ = from.read_to_end(&mut heard).await;
    };
    tokio::join!(send, listen);
    goodbye(&heard)
}

pub(super) fn goodbye(mut heard: &[u8]) -> Option<u32> {
    let mut error = None;
    while heard.len() >= 9 {
        let length = usize::from(heard[0]) << 16 | usize::from(heard[1]) << 8 | usize::from(heard[2]);
        let payload = heard.get(9..9 + length)?;
        if heard[3] == GOAWAY {
            error = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
        heard = &heard[9 + length..];
    }
    error
}

/// A scene in which somebody follows.
pub(super) async fn beside<F: Future>(act: impl FnOnce(DuplexStream) -> F) -> F::Output {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let run = scene.gateway.world.start(&scene.lease, &replica("web", 0));
    let mut stream = scene.open(follow(&scene)).await.unwrap();
    scene.gateway.world.print(&run, ["before\n"]);
    stream.until(|seen| seen.lines("web", 0) == 1).await;
    let outcome = act(scene.gateway.connect(Some(scene.certificate.clone()))).await;
    scene.gateway.world.print(&run, ["after\n"]);
    stream.until(|seen| seen.lines("web", 0) == 2).await;
    stream.received.ask(&scene.gateway.world, "web", 0, &[(&run, 0)]);
    scene.gateway.eventually(|gateway| gateway.metric("leasemux_connections") == 1).await;
    outcome
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_calls_that_are_taken_back_is_cut_off() {
    let call_and_reset = |stream| {
        [frame(HEADERS, END_HEADERS, stream, &headers()), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])]
            .concat()
    };
    let error = beside(|pipe| flood(pipe, Vec::new(), call_and_reset)).await;
    assert_eq!(error, Some(ENHANCE_YOUR_CALM));
}

#[tokio::test(start_paused = true)]
async fn streams_that_break_the_protocol_again_and_again_are_cut_off() {
    // A window that grows beyond all bounds is an error of its stream, which the gateway must reset.
    let call_and_break = |stream| {
        let beyond = frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]);
        [frame(HEADERS, END_HEADERS, stream, &headers()), beyond].concat()
    };
    let error = beside(|pipe| flood(pipe, Vec::new(), call_and_break)).await;
    assert_eq!(error, Some(ENHANCE_YOUR_CALM));
}

#[tokio::test(start_paused = true)]
async fn headers_without_end_are_cut_off() {
    let begin = frame(HEADERS, 0, 1, &headers());
    let error = beside(|pipe| flood(pipe, begin, |_| frame(CONTINUATION, 0, 1, &[]))).await;
    assert_eq!(error, Some(ENHANCE_YOUR_CALM));
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_frames_with_nothing_in_them_is_cut_off() {
    let begin = frame(HEADERS, END_HEADERS, 1, &headers());
    let error = beside(|pipe| flood(pipe, begin, |_| frame(DATA, 0, 1, &[]))).await;
    assert_eq!(error, Some(ENHANCE_YOUR_CALM));
}

#[tokio::test(start_paused = true)]
async fn headers_that_come_byte_by_byte_are_not_waited_for() {
    let took = beside(|mut pipe| async move {
        let began = Instant::now();
        pipe.write_all(&[preface(), frame(HEADERS, 0, 1, &[])].concat()).await.unwrap();
        for byte in headers() {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if pipe.write_all(&frame(CONTINUATION, 0, 1, &[byte])).await.is_err() {
                return began.elapsed();
            }
        }
        panic!("all of them were waited for");
    });
    let took = took.await;
    assert!(took >= Duration::from_secs(1) && took <= Duration::from_secs(11), "{took:?}");
}
