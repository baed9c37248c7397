//! State and sums of both connections.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::exchange::bus::{BusTotals, Channel, Connection};

/// State and sums of both connections. The bus is up while both are.
#[derive(Debug)]
pub(super) struct State {
    /// Whether each connection is up. Locked around a change of `connection`, so that both agree.
    up: Mutex<[bool; 2]>,
    connection: watch::Sender<Connection>,
    sent: Sum,
    received: Sum,
    unsent: AtomicU64,
    overflowed: AtomicU64,
    slow: AtomicU64,
}

/// A number of messages, and the bytes of their payloads.
#[derive(Debug, Default)]
struct Sum {
    messages: AtomicU64,
    bytes: AtomicU64,
}

// === impl State ===

impl State {
    pub(super) fn new() -> Self {
        Self {
            up: Mutex::default(),
            connection: watch::Sender::new(Connection::AwaySince(Instant::now())),
            sent: Sum::default(),
            received: Sum::default(),
            unsent: AtomicU64::default(),
            overflowed: AtomicU64::default(),
            slow: AtomicU64::default(),
        }
    }

    /// Sets whether the connection of a channel is up.
    pub(super) fn set_up(&self, channel: Channel, is_up: bool) {
        let mut up = self.up.lock();
        up[usize::from(channel == Channel::Control)] = is_up;
        let are_up = up.iter().all(|is_up| *is_up);
        self.connection.send_if_modified(|connection| {
            let was_up = *connection == Connection::Up;
            if are_up != was_up {
                *connection = if are_up { Connection::Up } else { Connection::AwaySince(Instant::now()) };
            }
            are_up != was_up
        });
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Connection> {
        self.connection.subscribe()
    }

    pub(super) fn count_sent(&self, bytes: usize) {
        self.sent.add(bytes);
    }

    pub(super) fn count_received(&self, bytes: usize) {
        self.received.add(bytes);
    }

    pub(super) fn count_unsent(&self) {
        self.unsent.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_overflowed(&self) {
        self.overflowed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_slow(&self) {
        self.slow.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn totals(&self) -> BusTotals {
        BusTotals {
            sent: self.sent.messages.load(Ordering::Relaxed),
            sent_bytes: self.sent.bytes.load(Ordering::Relaxed),
            received: self.received.messages.load(Ordering::Relaxed),
            received_bytes: self.received.bytes.load(Ordering::Relaxed),
            unsent: self.unsent.load(Ordering::Relaxed),
            overflowed: self.overflowed.load(Ordering::Relaxed),
            slow: self.slow.load(Ordering::Relaxed),
        }
    }
}

// === impl Sum ===

impl Sum {
    fn add(&self, bytes: usize) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bus_is_up_while_both_connections_are() {
        let state = State::new();
        let connection = state.subscribe();
        let is_up = || *connection.borrow() == Connection::Up;
        assert!(!is_up());
        state.set_up(Channel::Frames, true);
        assert!(!is_up());
        state.set_up(Channel::Control, true);
        assert!(is_up());
        state.set_up(Channel::Frames, false);
        let away = *connection.borrow();
        state.set_up(Channel::Control, false);
        assert!(matches!(away, Connection::AwaySince(_)) && *connection.borrow() == away);
    }
}
