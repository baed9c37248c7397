//! The reader alone, without HTTP/2 above it.

use std::sync::atomic::AtomicUsize;
use std::task::Waker;

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, payload: usize) -> Vec<u8> {
    let mut frame = u32::try_from(payload).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, 0, 0, 0, 0, 0]);
    frame.extend(vec![7; payload]);
    frame
}

const PING: u8 = 6;
const UNKNOWN: u8 = 77;

/// Input that repeats without end, in reads of at most `step` bytes.
struct Endless {
    bytes: Vec<u8>,
    at: usize,
    step: usize,
}

impl AsyncRead for Endless {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = &self.bytes[self.at..];
        let read = rest.len().min(buf.remaining()).min(self.step);
        buf.put_slice(&rest[..read]);
        self.at = if read == rest.len() { PREFACE.len() } else { self.at + read };
        Poll::Ready(Ok(()))
    }
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl std::task::Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A peer that sends the same frames without end.
struct Flood {
    io: FrameLimited<Endless>,
    flooded: Flooded,
    wakes: Arc<Wakes>,
}

impl Flood {
    fn new(frames: &[u8], step: usize) -> Self {
        let flooded = Flooded::default();
        let bytes = [PREFACE, frames].concat();
        let io = FrameLimited::new(Endless { bytes, at: 0, step }, flooded.clone());
        Self { io, flooded, wakes: Arc::default() }
    }

    /// Reads as one poll of HTTP/2 does, until `Pending` or an error. Returns the bytes, the number of reads
    /// and the error.
    fn poll(&mut self) -> (Vec<u8>, usize, Option<io::ErrorKind>) {
        let waker = Waker::from(Arc::clone(&self.wakes));
        let mut cx = Context::from_waker(&waker);
        let (mut bytes, mut reads) = (Vec::new(), 0);
        loop {
            let mut buffer = [0; 8 * 1024];
            let mut buffer = ReadBuf::new(&mut buffer);
            match Pin::new(&mut self.io).poll_read(&mut cx, &mut buffer) {
                Poll::Pending => return (bytes, reads, None),
                Poll::Ready(Err(error)) => return (bytes, reads, Some(error.kind())),
                Poll::Ready(Ok(())) => bytes.extend_from_slice(buffer.filled()),
            }
            reads += 1;
            assert!(reads < 1_000_000, "reading does not end");
        }
    }
}

#[test]
fn poll_reads_a_bounded_number_of_frames() {
    let mut flood = Flood::new(&frame(PING, 8).repeat(1_000), usize::MAX);
    let (first, _, error) = flood.poll();
    // The payload of the last frame is left for the next poll.
    assert_eq!((first.len(), error), (PREFACE.len() + FRAMES_PER_POLL * 17 - 8, None));
    for polls in 1..10 {
        assert_eq!(flood.wakes.0.load(Ordering::Relaxed), polls, "the task is woken for the next poll");
        assert_eq!(flood.poll().0.len(), FRAMES_PER_POLL * 17);
    }
}

#[test]
fn poll_reads_a_bounded_number_of_bytes() {
    let mut flood = Flood::new(&frame(scanner::DATA, 16_384), usize::MAX);
    for _ in 0..100 {
        let (bytes, ..) = flood.poll();
        assert!((BYTES_PER_POLL..2 * BYTES_PER_POLL).contains(&bytes.len()), "{}", bytes.len());
    }
}

#[test]
fn poll_makes_a_bounded_number_of_reads() {
    let mut flood = Flood::new(&frame(scanner::DATA, 16_384), 1);
    assert_eq!(flood.poll().1, READS_PER_POLL);
}

#[tokio::test(start_paused = true)]
async fn flood_ends_after_a_whole_frame_with_endless_headers() {
    for (kind, payload, step) in
        [(PING, 8, usize::MAX), (PING, 8, 5), (UNKNOWN, 0, usize::MAX), (UNKNOWN, 16_384, 1_000)]
    {
        let mut flood = Flood::new(&frame(kind, payload), step);
        let mut all = Vec::new();
        let error = loop {
            let (bytes, _, error) = flood.poll();
            all.extend(bytes);
            if let Some(error) = error {
                break error;
            }
        };
        assert_eq!(error, io::ErrorKind::ConnectionAborted);
        assert!(flood.flooded.is_set());
        let frames = all.strip_prefix(PREFACE).unwrap().strip_suffix(&endless_headers()[..]).unwrap();
        assert!(
            frames.chunks(9 + payload).all(|read| read == frame(kind, payload)),
            "{kind} {payload} {step}"
        );
        let least = if payload < 64 { 2_048 } else { 2_048 / 257 };
        assert!((least..least + 70).contains(&(frames.len() / (9 + payload))), "{kind} {payload} {step}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_and_slow_control_frames_are_not_cut_off() {
    let mut requests = Flood::new(&[frame(HEADERS, 100), frame(scanner::DATA, 10)].concat(), usize::MAX);
    for _ in 0..10_000 {
        assert_eq!(requests.poll().2, None);
    }
    // One poll of 64 frames per second.
    let mut slow = Flood::new(&frame(PING, 8), usize::MAX);
    for _ in 0..10_000 {
        assert_eq!(slow.poll().2, None);
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
    }
    assert!(!requests.flooded.is_set() && !slow.flooded.is_set());
}

mod allowance {
    use std::time::Instant;

    use super::super::scanner::DATA;
    use super::super::{Allowance, BURST, Duration, FrameHead, HEADERS, PAID_MAX, PER_SECOND};

    const PING: FrameHead = FrameHead { kind: 6, length: 8 };

    fn taken_until_exceeded(allowance: &mut Allowance, now: Instant) -> u64 {
        let mut taken = 0;
        while allowance.take(1, now) {
            taken += 1;
        }
        taken
    }

    #[test]
    fn allowance_without_traffic_is_burst_and_rate() {
        let (mut allowance, start) = (Allowance::new(), Instant::now());
        assert_eq!(taken_until_exceeded(&mut allowance, start), BURST);
        assert_eq!(taken_until_exceeded(&mut allowance, start + Duration::from_secs(3)), 3 * PER_SECOND);
    }

    #[test]
    fn sent_bytes_pay_for_frames_up_to_a_bound() {
        let (mut allowance, now) = (Allowance::new(), Instant::now());
        allowance.add_sent(31);
        allowance.add_sent(33);
        assert_eq!(taken_until_exceeded(&mut allowance, now), BURST + 2);
        allowance.add_sent(usize::MAX);
        assert_eq!(taken_until_exceeded(&mut allowance, now), PAID_MAX);
    }

    #[test]
    fn answers_to_pings_do_not_pay_for_the_flood() {
        let (mut allowance, now) = (Allowance::new(), Instant::now());
        let mut pings = 0;
        while allowance.take(Allowance::cost(PING), now) {
            allowance.add_sent(17);
            pings += 1;
        }
        assert!((BURST..3 * BURST).contains(&pings), "{pings}");
    }

    #[test]
    fn cost_grows_with_the_payload_of_control_frames_only() {
        assert_eq!(Allowance::cost(PING), 1);
        assert_eq!(Allowance::cost(FrameHead { kind: 200, length: 16_384 }), 257);
        assert_eq!(Allowance::cost(FrameHead { kind: DATA, length: 16_384 }), 0);
        assert_eq!(Allowance::cost(FrameHead { kind: HEADERS, length: 100 }), 0);
    }
}
