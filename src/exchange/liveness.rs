//! Which gateways are alive, and whether the bus can be used. Pure.
//!
//! Each gateway sends an alive message at intervals, and receives those of all. **The bus can be used while a
//! gateway's own messages come back.** A gateway whose messages stop is not dead yet: its members ask whether
//! it still publishes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::gateway_id::GatewayId;
use super::messages::Alive;

/// Minimum interval of alive messages: a publisher that was killed is replaced within two seconds.
pub const ALIVE_MIN: Duration = Duration::from_millis(500);

/// Interval per gateway, above some 125 of them: the number of deliveries grows with the square of theirs.
const ALIVE_PER_GATEWAY: Duration = Duration::from_millis(4);

/// Maximum interval that another gateway may state.
const ALIVE_MAX: Duration = Duration::from_secs(60);

/// Intervals without a message after which a gateway is silent, in halves: one message may be late.
const SILENT_HALVES: u32 = 3;

/// A silent gateway is forgotten after this time. Its members have another publisher by then.
const FORGET_AFTER: Duration = Duration::from_secs(15);

/// Maximum gateways that are remembered: more than one bus serves.
pub const GATEWAYS_MAX: usize = 4_096;

/// Default time for which the bus may be away before gateways tail for themselves.
pub const GRACE: Duration = Duration::from_secs(1);

/// The part of the grace period that is left for opening the log.
const OPENING: Duration = Duration::from_millis(100);

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LivenessInput {
    /// The connection to the bus is up or down.
    Connected(bool),
    /// A gateway's alive message; also this gateway's own.
    Alive(GatewayId, u64, Alive),
    /// This gateway is shutting down.
    Drain,
    /// The deadline has passed.
    Tick,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LivenessOutput {
    /// Sends an alive message.
    Send(Alive),
    /// Passes [`Input::Silent`](super::participant::Input::Silent) to all participants.
    Silent(GatewayId),
    /// Passes [`Input::Appeared`](super::participant::Input::Appeared) to all participants.
    Appeared(GatewayId),
    /// Passes [`Input::Usable`](super::participant::Input::Usable) to all participants.
    Usable(bool),
    /// Counts a message that is older than another one of its sender.
    Stale,
}

/// The gateways of a fleet, as one of them hears them.
#[derive(Debug)]
pub struct Liveness {
    gateway: GatewayId,
    is_source: bool,
    grace: Duration,
    draining: bool,
    /// The others.
    gateways: BTreeMap<GatewayId, Heard>,
    connection: Connection,
    /// When the own message came back last.
    echoed_at: Duration,
    usable: bool,
    send_at: Duration,
    /// The interval that the newest own message has stated: the next one is sent after it, even if many
    /// gateways are forgotten meanwhile.
    sent_interval: Duration,
    handled_at: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Connection {
    Up,
    DownSince(Duration),
}

/// The newest message of a gateway.
#[derive(Clone, Copy, Debug)]
struct Heard {
    counter: u64,
    at: Duration,
    interval: Duration,
    draining: bool,
    is_source: bool,
    /// When members are told again that it is silent; `None` while it is not.
    silent_again_at: Option<Duration>,
}

// === impl Liveness ===

impl Liveness {
    /// Creates the state of a gateway that is not connected yet. `is_source`: it serves no followers.
    pub fn new(gateway: GatewayId, is_source: bool, grace: Duration, now: Duration) -> Self {
        Self {
            gateway,
            is_source,
            grace,
            draining: false,
            gateways: BTreeMap::new(),
            connection: Connection::DownSince(now),
            echoed_at: now,
            usable: false,
            send_at: now,
            sent_interval: ALIVE_MIN,
            handled_at: now,
        }
    }

    /// Handles an input. Returns what follows.
    pub fn handle(&mut self, input: LivenessInput, now: Duration) -> Vec<LivenessOutput> {
        let mut out = Vec::new();
        self.forgive_halt(now);
        match input {
            LivenessInput::Connected(true) => {
                self.connection = Connection::Up;
                self.send_at = now;
            }
            LivenessInput::Connected(false) => {
                if let Connection::Up = self.connection {
                    self.connection = Connection::DownSince(now);
                }
            }
            LivenessInput::Alive(sender, counter, alive) => {
                self.receive(sender, counter, alive, now, &mut out);
            }
            LivenessInput::Drain => (self.draining, self.send_at) = (true, now),
            LivenessInput::Tick => {}
        }
        self.due(now, &mut out);
        out
    }

    /// Returns when the next [`LivenessInput::Tick`] is due.
    pub fn deadline(&self) -> Duration {
        let silent = self.gateways.values().map(Heard::deadline).min();
        let away = self.usable.then(|| self.away_at());
        [silent, away].into_iter().flatten().fold(self.send_at, Duration::min)
    }

    /// Returns whether the bus can be used.
    pub fn is_usable(&self) -> bool {
        self.usable
    }

    /// Returns whether this gateway is shutting down.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Returns the number of gateways that are heard, this one included.
    pub fn gateways(&self) -> usize {
        1 + self.heard().count()
    }

    /// Returns the number of those that serve followers.
    pub fn serving(&self) -> usize {
        usize::from(!self.is_source) + self.heard().filter(|heard| !heard.is_source).count()
    }

    fn heard(&self) -> impl Iterator<Item = &Heard> {
        self.gateways.values().filter(|heard| heard.silent_again_at.is_none())
    }

    /// A process that was halted heard no gateway meanwhile: the messages wait. So the time of the halt does not
    /// count as silence.
    fn forgive_halt(&mut self, now: Duration) {
        let halted = now.saturating_sub(self.handled_at);
        self.handled_at = now;
        if halted > self.sent_interval + OPENING {
            self.echoed_at += halted;
            self.gateways.values_mut().for_each(|heard| heard.at = now);
        }
    }

    /// Returns the interval of a message that is sent now.
    fn interval(&self) -> Duration {
        let gateways = u32::try_from(self.gateways.len()).unwrap_or(u32::MAX);
        ALIVE_MIN.max(ALIVE_PER_GATEWAY.saturating_mul(gateways))
    }

    /// When the bus counts as away, unless something changes.
    fn away_at(&self) -> Duration {
        let silent = self.echoed_at + self.sent_interval + self.grace.saturating_sub(OPENING);
        match self.connection {
            Connection::Up => silent,
            Connection::DownSince(at) => silent.min(at + self.grace),
        }
    }

    fn receive(
        &mut self,
        sender: GatewayId,
        counter: u64,
        alive: Alive,
        now: Duration,
        out: &mut Vec<LivenessOutput>,
    ) {
        if sender == self.gateway {
            self.echoed_at = now;
            if let Connection::Up = self.connection
                && !std::mem::replace(&mut self.usable, true)
            {
                out.push(LivenessOutput::Usable(true));
            }
            return;
        }
        let known = self.gateways.get(&sender);
        if known.is_some_and(|known| counter <= known.counter) {
            return out.push(LivenessOutput::Stale);
        }
        if known.is_none() && self.gateways.len() == GATEWAYS_MAX {
            return;
        }
        if known.is_none_or(|known| known.silent_again_at.is_some() && !known.draining) {
            out.push(LivenessOutput::Appeared(sender));
        }
        let interval = Duration::from_millis(alive.interval_ms.into()).clamp(ALIVE_MIN, ALIVE_MAX);
        if alive.draining && known.is_none_or(|known| !known.draining) {
            out.push(LivenessOutput::Silent(sender));
        }
        let Alive { draining, is_source, .. } = alive;
        let heard = Heard { counter, at: now, interval, draining, is_source, silent_again_at: None };
        self.gateways.insert(sender, heard);
    }

    fn due(&mut self, now: Duration, out: &mut Vec<LivenessOutput>) {
        if self.usable && self.away_at() <= now {
            self.usable = false;
            out.push(LivenessOutput::Usable(false));
        }
        for (id, heard) in &mut self.gateways {
            if heard.deadline() <= now {
                heard.silent_again_at = Some(now + heard.interval);
                out.push(LivenessOutput::Silent(*id));
            }
        }
        self.gateways.retain(|_, heard| heard.at + FORGET_AFTER.max(4 * heard.interval) > now);
        if self.send_at <= now {
            let interval = self.interval();
            (self.send_at, self.sent_interval) = (now + interval, interval);
            let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
            out.push(LivenessOutput::Send(Alive {
                interval_ms,
                draining: self.draining,
                is_source: self.is_source,
            }));
        }
    }
}

// === impl Heard ===

impl Heard {
    /// When members are told, or told again, that it is silent.
    fn deadline(&self) -> Duration {
        self.silent_again_at.unwrap_or(self.at + self.interval * SILENT_HALVES / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: GatewayId = GatewayId([1; 16]);
    const OTHER: GatewayId = GatewayId([2; 16]);

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn alive(gateway: GatewayId, counter: u64) -> LivenessInput {
        LivenessInput::Alive(gateway, counter, Alive { interval_ms: 500, draining: false, is_source: false })
    }

    /// Ticks until `end`; the bus returns own messages while `echoes`. Returns outputs with their times.
    fn run(one: &mut Liveness, from: u64, end: u64, echoes: bool) -> Vec<(u64, LivenessOutput)> {
        let mut all = Vec::new();
        for now in from..end {
            let mut out = one.handle(LivenessInput::Tick, ms(now));
            if echoes && out.iter().any(|output| matches!(output, LivenessOutput::Send(_))) {
                out.extend(one.handle(alive(ME, now), ms(now)));
            }
            out.retain(|output| !matches!(output, LivenessOutput::Send(_)));
            all.extend(out.into_iter().map(|output| (now, output)));
        }
        all
    }

    fn usable() -> Liveness {
        let mut one = Liveness::new(ME, false, GRACE, ms(0));
        one.handle(LivenessInput::Connected(true), ms(0));
        assert_eq!(run(&mut one, 0, 501, true), [(500, LivenessOutput::Usable(true))]);
        one
    }

    #[test]
    fn silent_bus_is_away_within_the_grace_period() {
        let mut one = usable();
        // The last message came back at 500 ms.
        assert_eq!(run(&mut one, 501, 3_000, false), [(1_900, LivenessOutput::Usable(false))]);
        assert_eq!(run(&mut one, 3_000, 3_600, true), [(3_000, LivenessOutput::Usable(true))]);
    }

    #[test]
    fn lost_connection_is_away_after_the_grace_period() {
        let mut one = usable();
        assert_eq!(run(&mut one, 501, 600, false), []);
        one.handle(LivenessInput::Connected(false), ms(600));
        assert_eq!(run(&mut one, 601, 3_000, false), [(1_600, LivenessOutput::Usable(false))]);
        let out = one.handle(LivenessInput::Connected(true), ms(3_000));
        assert!(matches!(out[..], [LivenessOutput::Send(_)]), "{out:?}");
        assert_eq!(one.handle(alive(ME, 9), ms(3_001)), [LivenessOutput::Usable(true)]);
    }

    #[test]
    fn gateway_is_silent_after_one_and_a_half_intervals() {
        let mut one = usable();
        assert_eq!(one.handle(alive(OTHER, 1), ms(501)), [LivenessOutput::Appeared(OTHER)]);
        let silent = |at| (at, LivenessOutput::Silent(OTHER));
        assert_eq!(run(&mut one, 502, 2_002, true), [silent(1_251), silent(1_751)]);
        assert_eq!(one.gateways(), 1);
        // An older message is a repeated one.
        assert_eq!(one.handle(alive(OTHER, 1), ms(2_002)), [LivenessOutput::Stale]);
        assert_eq!(one.handle(alive(OTHER, 2), ms(2_003)), [LivenessOutput::Appeared(OTHER)]);
        assert_eq!(one.gateways(), 2);
        run(&mut one, 2_003, 18_000, true);
        assert!(one.gateways.is_empty());
    }

    #[test]
    fn draining_gateway_is_silent_at_once() {
        let mut one = usable();
        one.handle(alive(OTHER, 1), ms(501));
        let draining =
            LivenessInput::Alive(OTHER, 2, Alive { interval_ms: 500, draining: true, is_source: false });
        assert_eq!(one.handle(draining, ms(502)), [LivenessOutput::Silent(OTHER)]);
    }

    #[test]
    fn sources_do_not_share_quotas() {
        let mut one = usable();
        one.handle(alive(OTHER, 1), ms(501));
        let source = Alive { interval_ms: 500, draining: false, is_source: true };
        one.handle(LivenessInput::Alive(GatewayId([3; 16]), 1, source), ms(502));
        assert_eq!((one.gateways(), one.serving()), (3, 2));
        let mut source = Liveness::new(ME, true, GRACE, ms(0));
        source.handle(alive(OTHER, 1), ms(1));
        assert_eq!((source.gateways(), source.serving()), (2, 1));
    }

    #[test]
    fn time_of_a_halt_is_no_silence() {
        let mut one = usable();
        one.handle(alive(OTHER, 1), ms(501));
        let out = one.handle(LivenessInput::Tick, ms(9_000));
        assert!(matches!(out[..], [LivenessOutput::Send(_)]), "{out:?}");
        assert!(one.is_usable());
    }

    #[test]
    fn gateways_that_vanish_at_once_do_not_make_the_bus_away() {
        let mut one = usable();
        for index in 0..500_u32 {
            let mut id = [3; 16];
            id[..4].copy_from_slice(&index.to_be_bytes());
            one.handle(alive(GatewayId(id), 1), ms(501));
        }
        // Its messages now come every two seconds. The others are forgotten in between.
        let out = run(&mut one, 502, 25_000, true);
        assert!(one.gateways.is_empty());
        assert!(out.iter().all(|(_, output)| matches!(output, LivenessOutput::Silent(_))));
    }
}
