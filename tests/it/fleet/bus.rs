//! A bus in memory, which loses, delays and splits as tests want.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use futures_util::StreamExt as _;
use leasemux::exchange::bus::{
    Answers, Bus, BusMessage, BusTotals, Channel, Connection, RequestError, SUBSCRIPTION_MESSAGES,
    Subscription,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Delay of a message.
const DELAY: Duration = Duration::from_millis(1);

/// The bus of a fleet. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Hub(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    random: StdRng,
    faults: Faults,
    subscribers: BTreeMap<u64, Subscriber>,
    next: u64,
    gateways: Vec<(watch::Sender<Connection>, BusTotals)>,
    /// All connections are closed, and cannot be opened.
    closed: bool,
    /// Gateways that were killed.
    killed: BTreeSet<usize>,
}

/// What goes wrong at present.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Messages lost and repeated, in thousandths.
    pub(crate) lost: u32,
    pub(crate) repeated: u32,
    /// Maximum further delay. Messages of one subject stay in order.
    pub(crate) delay: Duration,
    /// Frames are lost, all of them, and nothing else.
    pub(crate) no_frames: bool,
    /// The server does nothing, and connections stay.
    pub(crate) hung: bool,
    /// Gateways that reach nothing, not even themselves.
    pub(crate) cut_off: Vec<usize>,
    /// The side of each gateway, 0 by default; those of different sides do not reach each other.
    pub(crate) sides: BTreeMap<usize, u8>,
}

#[derive(Debug)]
struct Subscriber {
    gateway: usize,
    subject: String,
    sender: mpsc::Sender<(Instant, BusMessage)>,
    /// When the newest message arrives.
    newest: Instant,
    /// Its newest message was dropped.
    is_slow: bool,
}

/// The bus as one gateway uses it.
#[derive(Debug)]
struct MemoryBus {
    hub: Hub,
    gateway: usize,
}

/// Ends a subscription.
struct Unsubscribe(Hub, u64);

// === impl Hub ===

impl Hub {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: StdRng::seed_from_u64(seed),
            faults: Faults::default(),
            subscribers: BTreeMap::new(),
            next: 0,
            gateways: Vec::new(),
            closed: false,
            killed: BTreeSet::new(),
        })))
    }

    /// Connects a gateway; they are numbered from 0.
    pub(crate) fn connect(&self) -> Arc<dyn Bus> {
        let mut state = self.state();
        let connection = connection(!state.closed);
        state.gateways.push((watch::Sender::new(connection), BusTotals::default()));
        Arc::new(MemoryBus { hub: self.clone(), gateway: state.gateways.len() - 1 })
    }

    /// Number of gateways that were connected.
    pub(crate) fn gateways(&self) -> usize {
        self.state().gateways.len()
    }

    /// The process of a gateway has ended: it sends and receives nothing any more, whatever its tasks do.
    pub(crate) fn kill(&self, gateway: usize) {
        let mut state = self.state();
        state.killed.insert(gateway);
        state.subscribers.retain(|_, one| one.gateway != gateway);
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Closes all connections, or opens them.
    pub(crate) fn set_up(&self, up: bool) {
        let mut state = self.state();
        state.closed = !up;
        for (gateway, _) in &state.gateways {
            gateway.send_replace(connection(up));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn subscribe(
        &self,
        gateway: usize,
        subject: &str,
    ) -> impl futures_core::Stream<Item = BusMessage> + use<> {
        let (sender, receiver) = mpsc::channel(SUBSCRIPTION_MESSAGES);
        let mut state = self.state();
        let (key, newest) = (state.next, Instant::now());
        state.next += 1;
        if !state.killed.contains(&gateway) {
            let subject = subject.to_owned();
            state.subscribers.insert(key, Subscriber { gateway, subject, sender, newest, is_slow: false });
        }
        let unsubscribe = Unsubscribe(self.clone(), key);
        futures_util::stream::unfold((receiver, unsubscribe), |(mut receiver, unsubscribe)| async {
            let (at, message): (Instant, BusMessage) = receiver.recv().await?;
            tokio::time::sleep_until(at).await;
            Some((message, (receiver, unsubscribe)))
        })
    }
}

// === impl State ===

impl State {
    fn is_up(&self, gateway: usize) -> bool {
        *self.gateways[gateway].0.borrow() == Connection::Up && !self.killed.contains(&gateway)
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        let faults = &self.faults;
        let is_cut = |gateway: usize| faults.cut_off.contains(&gateway);
        let side = |gateway: usize| faults.sides.get(&gateway).copied().unwrap_or_default();
        self.is_up(from) && !faults.hung && !is_cut(from) && !is_cut(to) && side(from) == side(to)
    }

    fn subscribers(&self, from: usize, subject: &str) -> Vec<u64> {
        let all = self.subscribers.iter();
        let all = all.filter(|(_, one)| matches(&one.subject, subject) && self.reaches(from, one.gateway));
        all.map(|(key, _)| *key).collect()
    }

    fn publish(&mut self, from: usize, channel: Channel, subject: &str, message: &BusMessage) {
        if !self.is_up(from) {
            self.gateways[from].1.unsent += 1;
            return;
        }
        self.gateways[from].1.sent += 1;
        for key in self.subscribers(from, subject) {
            let is_lost = channel == Channel::Frames && self.faults.no_frames;
            if is_lost || self.random.random_ratio(self.faults.lost, 1000) {
                continue;
            }
            let copies = 1 + usize::from(self.random.random_ratio(self.faults.repeated, 1000));
            for _ in 0..copies {
                let delay = DELAY + self.faults.delay.mul_f64(self.random.random_range(0.0..1.0));
                let Some(one) = self.subscribers.get_mut(&key) else { continue };
                one.newest = one.newest.max(Instant::now() + delay);
                let totals = &mut self.gateways[one.gateway].1;
                if one.sender.try_send((one.newest, message.clone())).is_ok() {
                    totals.received += 1;
                    one.is_slow = false;
                } else {
                    totals.overflowed += 1;
                    totals.slow += u64::from(!std::mem::replace(&mut one.is_slow, true));
                }
            }
        }
    }
}

fn connection(up: bool) -> Connection {
    if up { Connection::Up } else { Connection::AwaySince(Instant::now()) }
}

/// Whether a subscription's subject includes this one.
fn matches(pattern: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    pattern.split('.').all(|token| tokens.next().is_some_and(|other| token == "*" || token == other))
        && tokens.next().is_none()
}

// === impl MemoryBus ===

impl Bus for MemoryBus {
    fn publish(&self, channel: Channel, subject: &str, reply: Option<&str>, payload: Bytes) {
        let message = BusMessage { reply: reply.map(str::to_owned), payload };
        self.hub.state().publish(self.gateway, channel, subject, &message);
    }

    fn subscribe(&self, _: Channel, subject: &str) -> Subscription {
        Subscription::new(self.hub.subscribe(self.gateway, subject))
    }

    fn request(&self, subject: &str, payload: Bytes, timeout: Duration) -> Answers {
        let failed = |error| {
            let later = async move {
                tokio::time::sleep(DELAY).await;
                Err(error)
            };
            Answers::new(futures_util::stream::once(later))
        };
        let inbox = {
            let mut state = self.hub.state();
            if !state.is_up(self.gateway) {
                return failed(RequestError::Unavailable);
            }
            let is_served = !state.faults.hung && !state.faults.cut_off.contains(&self.gateway);
            if is_served && state.subscribers(self.gateway, subject).is_empty() {
                return failed(RequestError::NoResponders);
            }
            state.next += 1;
            format!("inbox.{}", state.next)
        };
        let answers = Box::pin(self.hub.subscribe(self.gateway, &inbox));
        self.publish(Channel::Control, subject, Some(&inbox), payload);
        let end = Instant::now() + timeout;
        Answers::new(futures_util::stream::unfold(Some((answers, false)), move |state| async move {
            let (mut answers, is_answered) = state?;
            match tokio::time::timeout_at(end, answers.next()).await {
                Ok(Some(message)) => Some((Ok(message.payload), Some((answers, true)))),
                Ok(None) => None,
                Err(_) => (!is_answered).then_some((Err(RequestError::Timeout), None)),
            }
        }))
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        let is_hung = self.hub.state().faults.hung;
        Box::pin(async move {
            if is_hung {
                std::future::pending::<()>().await;
            }
        })
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.hub.state().gateways[self.gateway].0.subscribe()
    }

    fn totals(&self) -> BusTotals {
        self.hub.state().gateways[self.gateway].1
    }
}

impl Drop for Unsubscribe {
    fn drop(&mut self) {
        self.0.state().subscribers.remove(&self.1);
    }
}
