//! Calls that are rejected before their request has arrived. The status waits for the request for a short
//! time, and the stream is not reset while the request may still arrive: some clients that are still sending
//! see only the reset, not the status before it.

use std::time::Duration;

use leasemux::edge::service::SERVICE;
use leasemux::model::limits::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::Instant;

use crate::support::gateway::Gateway;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// A raw connection. HTTP/2 libraries hide when a stream is reset.
struct RawConnection(DuplexStream);

#[derive(Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl RawConnection {
    async fn new(pipe: DuplexStream) -> Self {
        let mut raw = Self(pipe);
        raw.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        raw.send(4, 0, 0, &[]).await;
        raw
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        frame.extend(payload);
        self.0.write_all(&frame).await.unwrap();
    }

    /// Begins a call on stream 1, without its body.
    async fn begin(&mut self, path: &str) {
        let mut block = vec![0x83, 0x86];
        for (name, value) in [(0x04, path), (0x01, "gateway")] {
            block.extend([name, u8::try_from(value.len()).unwrap()]);
            block.extend(value.as_bytes());
        }
        self.send(HEADERS, END_HEADERS, 1, &block).await;
    }

    async fn next(&mut self) -> Frame {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.unwrap();
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await.unwrap();
        Frame { kind, flags, stream: u32::from_be_bytes(stream), payload }
    }

    /// Returns the next frame of stream 1, except for window updates.
    async fn next_of_call(&mut self) -> Frame {
        loop {
            let frame = self.next().await;
            if frame.stream == 1 && frame.kind != 8 {
                return frame;
            }
        }
    }

    /// Sends a ping. Returns the frames of stream 1 that arrive before its answer.
    async fn until_pong(&mut self) -> Vec<Frame> {
        self.send(PING, 0, 0, b"any text").await;
        let mut frames = Vec::new();
        loop {
            let frame = self.next().await;
            if (frame.kind, frame.flags) == (PING, ACK) {
                return frames;
            }
            if frame.stream == 1 && frame.kind != 8 {
                frames.push(frame);
            }
        }
    }
}

/// Time for which a rejection waits for the request.
const WAIT: Duration = Duration::from_secs(1);

/// Returns paths of calls that are rejected before their request is read.
fn paths() -> [String; 5] {
    let of = |method| format!("/{SERVICE}/{method}");
    [of("ServiceLogs"), of("ServiceStatus"), of("ServiceRestart"), of("NoSuchMethod"), "/none/None".into()]
}

/// Begins a call that is rejected. Returns how long its status took.
async fn time_to_status(raw: &mut RawConnection, path: &str) -> Duration {
    let began = Instant::now();
    raw.begin(path).await;
    let status = raw.next_of_call().await;
    assert_eq!((status.kind, status.flags), (HEADERS, END_HEADERS | END_STREAM), "{path}");
    began.elapsed()
}

/// Checks a duration, with a small tolerance.
fn assert_near(took: Duration, expected: Duration) {
    assert!(took >= expected && took < expected + Duration::from_millis(100), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn status_of_rejected_call_follows_its_request() {
    for path in paths() {
        let gateway = Gateway::new(Limits::default());
        let mut raw = RawConnection::new(gateway.connect(None)).await;
        raw.begin(&path).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        raw.send(DATA, 0, 1, &[0; 1_000]).await;
        assert_eq!(raw.until_pong().await, [], "{path}");
        raw.send(DATA, END_STREAM, 1, &[0; 1_000]).await;
        let began = Instant::now();
        let status = raw.next_of_call().await;
        assert_eq!((status.kind, status.flags), (HEADERS, END_HEADERS | END_STREAM), "{path}");
        assert_near(began.elapsed(), Duration::ZERO);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(raw.until_pong().await, [], "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn late_request_of_rejected_call_causes_no_reset() {
    for path in paths() {
        let gateway = Gateway::new(Limits::default());
        let mut raw = RawConnection::new(gateway.connect(None)).await;
        assert_near(time_to_status(&mut raw, &path).await, WAIT);
        tokio::time::sleep(Duration::from_secs(1)).await;
        raw.send(DATA, 0, 1, &[0; 1_000]).await;
        assert_eq!(raw.until_pong().await, [], "{path}");
        raw.send(DATA, END_STREAM, 1, &[0; 1_000]).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(raw.until_pong().await, [], "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn rejected_call_without_request_is_reset_after_delay() {
    for path in paths() {
        let gateway = Gateway::new(Limits::default());
        let mut raw = RawConnection::new(gateway.connect(None)).await;
        assert_near(time_to_status(&mut raw, &path).await, WAIT);
        let began = Instant::now();
        let reset = raw.next_of_call().await;
        // The code is NO_ERROR, because the response is complete.
        assert_eq!((reset.kind, &reset.payload[..]), (RST_STREAM, &[0; 4][..]), "{path}");
        assert_near(began.elapsed(), Duration::from_secs(2));
    }
}

#[tokio::test(start_paused = true)]
async fn request_of_rejected_call_is_read_up_to_limit() {
    for path in paths() {
        let gateway = Gateway::new(Limits::default());
        let mut raw = RawConnection::new(gateway.connect(None)).await;
        raw.begin(&path).await;
        let (began, mut sent, mut frames) = (Instant::now(), 0, Vec::new());
        while frames.last().is_none_or(|frame: &Frame| frame.kind != RST_STREAM) {
            // Less than the window, which grows again as the bytes are read.
            raw.send(DATA, 0, 1, &[0; 8_192]).await;
            sent += 8_192;
            frames.extend(raw.until_pong().await);
        }
        let [status, reset] = &frames[..] else { panic!("{frames:?}") };
        assert_eq!((status.kind, &reset.payload[..]), (HEADERS, &[0; 4][..]), "{path}");
        assert!((512 * 1024..600 * 1024).contains(&sent), "{sent}");
        assert_near(began.elapsed(), Duration::ZERO);
    }
}
