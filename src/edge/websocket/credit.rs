//! Limits the data on its way to a client by its pongs. Pure.
//!
//! A ping can reach the client only after the data before it, and some clients disconnect if they get none
//! for 15 s. TCP alone would let megabytes wait in the kernel of a slow client.
//!
//! A pong shows that the client has read everything before the ping, so the bytes sent after the last
//! answered ping are still on their way. They are limited to about the amount that the client reads in a few
//! seconds: the limit doubles while pongs come soon, and halves while they come late. A ping follows each
//! half of the limit, so that a fast client need not wait for its pong.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// With a ping unanswered for this long, no data is sent.
pub(super) const PONG_TIMEOUT: Duration = Duration::from_secs(5);

/// With a ping unanswered for this long, data is sent again: the client may not answer pings at all.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(30);

/// First limit: about as much as TCP sends before its first acknowledgement.
const LIMIT_START_BYTES: u64 = 16 * 1024;

/// Least limit: a client that reads a kilobyte per second then gets a ping every four seconds.
const LIMIT_MIN_BYTES: u64 = 4 * 1024;

/// Greatest limit: 20 MB/s at a round trip of 200 ms.
const LIMIT_MAX_BYTES: u64 = 4 * 1024 * 1024;

/// A pong within this time after its ping is soon. A limit that was used is then doubled.
const SOON: Duration = Duration::from_secs(2);

/// A pong after this time is late. The limit is then halved.
const LATE: Duration = Duration::from_secs(4);

/// Most unanswered pings to remember: those of a minute. A silent client is disconnected then.
const PINGS_MAX: usize = 16;

/// The data that may be sent now.
#[derive(Debug)]
pub(super) struct CreditWindow {
    /// Most bytes on their way.
    limit: u64,
    /// Bytes of data sent so far.
    sent: u64,
    /// Bytes of data sent before the last ping.
    pinged: u64,
    /// Bytes of data sent before the last answered ping.
    answered: u64,
    /// Unanswered pings, oldest first.
    pings: VecDeque<Ping>,
    /// Number of the next ping.
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct Ping {
    number: u32,
    at: Instant,
    /// Bytes of data sent before it.
    sent: u64,
}

// === impl CreditWindow ===

impl CreditWindow {
    pub(super) fn new() -> Self {
        Self { limit: LIMIT_START_BYTES, sent: 0, pinged: 0, answered: 0, pings: VecDeque::new(), next: 0 }
    }

    /// Returns how many bytes of data may be sent before the next ping or pong.
    pub(super) fn bytes(&self) -> u64 {
        let unanswered = self.pings.front().map_or(Duration::ZERO, |oldest| oldest.at.elapsed());
        let before_pong = if unanswered < PONG_TIMEOUT {
            self.limit.saturating_sub(self.sent - self.answered)
        } else if unanswered < PAUSE_MAX {
            0
        } else {
            u64::MAX
        };
        before_pong.min((self.limit / 2).saturating_sub(self.sent - self.pinged))
    }

    /// Whether a ping must be sent before more data.
    pub(super) fn wants_ping(&self) -> bool {
        self.sent - self.pinged >= self.limit / 2
    }

    pub(super) fn record_data(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// Records a ping that is sent now. Returns its payload.
    pub(super) fn record_ping(&mut self) -> [u8; 4] {
        let number = self.next;
        self.pinged = self.sent;
        self.next = number.wrapping_add(1);
        if self.pings.len() < PINGS_MAX {
            self.pings.push_back(Ping { number, at: Instant::now(), sent: self.sent });
        }
        number.to_be_bytes()
    }

    /// Records a pong. Without the payload of a ping it answers the oldest one, since some clients send pongs
    /// without payload.
    pub(super) fn record_pong(&mut self, payload: &[u8]) {
        let is_answered = |ping: &Ping| ping.number.to_be_bytes() == *payload;
        let index = self.pings.iter().position(is_answered).unwrap_or(0);
        // A client may answer several pings with one pong.
        let Some(ping) = self.pings.drain(..self.pings.len().min(index + 1)).next_back() else { return };
        let read = ping.sent - self.answered;
        self.answered = ping.sent;
        let delay = ping.at.elapsed();
        if delay >= LATE {
            self.limit = (self.limit / 2).max(LIMIT_MIN_BYTES);
        } else if delay <= SOON && read >= self.limit / 4 {
            // Only a limit that was used: an idle client proves nothing.
            self.limit = (self.limit * 2).min(LIMIT_MAX_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    async fn seconds(seconds: u64) {
        advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn unanswered_ping_pauses_data() {
        let mut window = CreditWindow::new();
        window.record_ping();
        assert_eq!(window.bytes(), LIMIT_START_BYTES / 2);
        seconds(5).await;
        assert_eq!(window.bytes(), 0);
        window.record_ping();
        seconds(24).await;
        assert_eq!(window.bytes(), 0);
        seconds(1).await;
        assert_eq!(window.bytes(), LIMIT_START_BYTES / 2);
        // The second ping is 25 s old.
        window.record_pong(b"");
        assert_eq!(window.bytes(), 0);
        window.record_pong(b"");
        assert_eq!(window.bytes(), LIMIT_START_BYTES / 8, "both pongs were late");
    }

    #[tokio::test(start_paused = true)]
    async fn pong_answers_its_ping_and_those_before() {
        let mut window = CreditWindow::new();
        let pings: Vec<_> = (0..4).map(|_| window.record_ping()).collect();
        window.record_pong(&pings[1]);
        window.record_pong(b"unknown");
        assert_eq!(window.pings.len(), 1);
        window.record_pong(&pings[3]);
        window.record_pong(&pings[3]);
        assert!(window.pings.is_empty());
        for _ in 0..1_000 {
            window.record_ping();
        }
        assert_eq!(window.pings.len(), PINGS_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn ping_goes_out_in_middle_of_limit() {
        let mut window = CreditWindow::new();
        let half = LIMIT_START_BYTES / 2;
        for _ in 0..2 {
            assert_eq!((window.wants_ping(), window.bytes()), (false, half));
            window.record_data(usize::try_from(half).unwrap());
            assert_eq!((window.wants_ping(), window.bytes()), (true, 0));
            window.record_ping();
        }
        assert_eq!((window.wants_ping(), window.bytes()), (false, 0));
        window.record_pong(b"");
        // The limit has doubled, and a quarter of it is on its way.
        assert_eq!(window.bytes(), LIMIT_START_BYTES);
    }

    /// Sends as much as allowed to a client that reads this many bytes per second, with a round trip of this
    /// long. Returns the bytes that it read in a minute, and its longest time between two pings.
    async fn run(bytes_per_second: u64, round_trip: Duration) -> (u64, Duration) {
        const STEP: Duration = Duration::from_millis(10);
        let mut window = CreditWindow::new();
        // Unread by the client: data or pings, each with its time of arrival.
        let mut queue: VecDeque<(Instant, Option<[u8; 4]>, u64)> = VecDeque::new();
        let mut pongs: VecDeque<(Instant, [u8; 4])> = VecDeque::new();
        let start = Instant::now();
        let (mut next_ping, mut last_ping, mut longest, mut read) = (start, start, Duration::ZERO, 0);
        while start.elapsed() < Duration::from_secs(60) {
            let now = Instant::now();
            while pongs.front().is_some_and(|(at, _)| *at <= now) {
                window.record_pong(&pongs.pop_front().unwrap().1);
            }
            loop {
                if now >= next_ping || window.wants_ping() {
                    queue.push_back((now + round_trip / 2, Some(window.record_ping()), 0));
                    next_ping = now + Duration::from_secs(5);
                }
                let bytes = window.bytes().min(1_000_000);
                if bytes == 0 || queue.len() > 100 {
                    break;
                }
                window.record_data(usize::try_from(bytes).unwrap());
                queue.push_back((now + round_trip / 2, None, bytes));
            }
            let mut budget = bytes_per_second * 10 / 1_000;
            while let Some((at, ping, bytes)) = queue.front_mut() {
                if *at > now || budget == 0 && *bytes > 0 {
                    break;
                }
                if let Some(number) = ping {
                    longest = longest.max(now - last_ping);
                    last_ping = now;
                    pongs.push_back((now + round_trip / 2, *number));
                }
                let taken = budget.min(*bytes);
                (*bytes, budget, read) = (*bytes - taken, budget - taken, read + taken);
                if *bytes == 0 {
                    queue.pop_front();
                }
            }
            advance(STEP).await;
        }
        (read, longest)
    }

    #[tokio::test(start_paused = true)]
    async fn slow_client_gets_pings_in_time() {
        for bytes_per_second in [1_000, 5_000, 20_000, 200_000] {
            let (read, longest) = run(bytes_per_second, Duration::from_millis(50)).await;
            assert!(longest < Duration::from_secs(12), "{bytes_per_second}: {longest:?}");
            // It is never idle for long.
            assert!(read > bytes_per_second * 50, "{bytes_per_second}: {read}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn distant_client_gets_full_rate() {
        let (read, longest) = run(10_000_000, Duration::from_millis(200)).await;
        assert!(read > 10_000_000 * 50, "{read}");
        assert!(longest < Duration::from_secs(6));
    }
}
