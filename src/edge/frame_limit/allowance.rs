//! The control frames that a peer may send. Pure: the time is passed in.

use std::time::{Duration, Instant};

use super::scanner::FrameHead;
use crate::model::rate::{Bucket, Rate};

/// Control frames per second that a connection may send, independent of what it receives. An honest client
/// that receives nothing sends an occasional PING. A thousand connections that use this up cost about a tenth
/// of a core.
pub(super) const PER_SECOND: u64 = 100;

/// Burst of control frames: eight times the settings, the priority tree and the cancellation of all 256
/// streams of a client. Handling them costs about as much as the TLS handshake before them.
pub(super) const BURST: u64 = 2_048;

/// Bytes sent to the peer that allow one more control frame. A client acknowledges what it receives, at worst
/// (grpc-go, or a client that does not batch) with two `WINDOW_UPDATE` and a PING for each DATA frame; the
/// shortest DATA frame of a log has about a hundred bytes. More than the longest answer to a control frame
/// (17 bytes, to a PING), so no flood pays for itself.
pub(super) const SENT_BYTES_EACH: u64 = 32;

/// Most control frames that sent bytes allow in advance. A client that reads late acknowledges its whole
/// window and the socket buffers at once: 16 MiB, in units of 256 bytes.
pub(super) const PAID_MAX: u64 = 65_536;

/// Payload bytes that count as one more control frame: SETTINGS with ten entries. Otherwise unknown frames of
/// 16 KiB would be a cheap way to keep TLS busy.
pub(super) const PAYLOAD_BYTES_EACH: u64 = 64;

/// The control frames that one peer may still send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    bucket: Bucket,
    /// Sent bytes that no frame has used.
    unspent_bytes: u64,
}

// === impl Allowance ===

impl Allowance {
    pub(super) fn new() -> Self {
        let rate = Rate::new(PER_SECOND, Duration::from_secs(1)).with_burst(BURST);
        Self { bucket: Bucket::new(rate), unspent_bytes: 0 }
    }

    /// Returns the cost of a frame, in control frames.
    pub(super) fn cost(head: FrameHead) -> u64 {
        if head.is_control() { 1 + head.length as u64 / PAYLOAD_BYTES_EACH } else { 0 }
    }

    /// Counts bytes that were sent to the peer.
    pub(super) fn add_sent(&mut self, bytes: usize) {
        self.unspent_bytes = self.unspent_bytes.saturating_add(bytes as u64).min(PAID_MAX * SENT_BYTES_EACH);
    }

    /// Takes `cost` control frames: first those that sent bytes allow, then those of the rate. Returns
    /// whether the peer is within its allowance.
    pub(super) fn take(&mut self, cost: u64, now: Instant) -> bool {
        let paid = cost.min(self.unspent_bytes / SENT_BYTES_EACH);
        self.unspent_bytes -= paid * SENT_BYTES_EACH;
        self.bucket.try_take(cost - paid, now).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::scanner::{DATA, HEADERS};
    use super::*;

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
