//! What a gateway of a fleet has once: its part on the bus, the gateways that it hears, and the limit of its
//! direct tails.
//!
//! One task per gateway sends and receives alive messages. The drivers of replicas read its state, and call the
//! bus by themselves.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::bus::{Bus, BusTotals, Channel, Connection};
use super::codec;
use super::direct_tails::DirectTails;
use super::gateway_id::GatewayId;
use super::liveness::{Liveness, LivenessInput, LivenessOutput};
use super::messages::{Envelope, Message};
use super::rank;
use super::share::QuotaShare;
use super::subjects::Subjects;
use crate::model::id::{LeaseId, Replica};
use crate::model::metrics::{FleetRejection, Metrics};
use crate::model::quota::QuotaDivisor;

/// News that wait for the driver of one replica. It reads them within milliseconds. A driver that misses some
/// hears again of gateways that stay silent, and of others by their announcements.
const NEWS_MAX: usize = 1_024;

/// Time for the last messages of a gateway. They take milliseconds on a bus that works; on one that hangs,
/// the others find out by themselves.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// Mixes the number of a participant into its weight. Odd, so different numbers give different weights.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// The settings of a gateway in a fleet.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// This gateway.
    pub gateway: GatewayId,
    /// The subjects of its fleet.
    pub subjects: Subjects,
    /// How long the bus may be away before gateways tail for themselves.
    pub grace: Duration,
    /// Maximum tails of replicas that this gateway does not publish.
    pub direct_tails: usize,
    /// Maximum members of a replica that this gateway publishes.
    pub members_max: usize,
    /// Whether quotas of owners are divided by the number of gateways that serve followers.
    pub shares_quotas: bool,
    /// Whether this gateway serves no followers, and publishes what other gateways ask for.
    pub is_source: bool,
}

/// A gateway's part in its fleet. Dropping the last clone ends its task. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fleet(Arc<Running>);

#[derive(Debug)]
struct Running {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    config: FleetConfig,
    bus: Arc<dyn Bus>,
    metrics: Metrics,
    started: Instant,
    /// Messages that were encoded.
    messages: AtomicU64,
    /// Participants that were created.
    participants: AtomicU64,
    /// Gateways that are heard.
    gateways: AtomicUsize,
    /// Stays 1 if quotas are not shared.
    quota_divisor: QuotaDivisor,
    state: watch::Sender<FleetState>,
    news: broadcast::Sender<FleetNews>,
    direct_tails: DirectTails,
}

/// The present state of a gateway in its fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FleetState {
    /// The bus can be used.
    pub usable: bool,
    /// The gateway is shutting down: it publishes nothing any more.
    pub draining: bool,
}

/// News of another gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FleetNews {
    /// It sends no alive messages, or is shutting down. Repeated while that lasts.
    Silent(GatewayId),
    /// Its alive messages come, and did not before.
    Appeared,
}

// === impl Fleet ===

impl Fleet {
    /// Joins a fleet: starts to send alive messages. Must be called within a runtime.
    pub fn start(bus: Arc<dyn Bus>, config: FleetConfig, metrics: Metrics) -> Self {
        let shared = Arc::new(Shared {
            direct_tails: DirectTails::new(config.direct_tails),
            config,
            bus,
            metrics,
            started: Instant::now(),
            messages: AtomicU64::new(0),
            participants: AtomicU64::new(0),
            gateways: AtomicUsize::new(1),
            quota_divisor: QuotaDivisor::default(),
            state: watch::Sender::default(),
            news: broadcast::Sender::new(NEWS_MAX),
        });
        tracing::info!(gateway = %shared.config.gateway, "joined fleet");
        #[expect(clippy::disallowed_methods, reason = "owned: the handle aborts it")]
        let task = tokio::spawn(Arc::clone(&shared).run());
        Self(Arc::new(Running { shared, _task: AbortOnDropHandle::new(task) }))
    }

    /// Publishes nothing any more: releases all replicas, so that others take them over. The followers of this
    /// gateway are served on. Later calls have no effect.
    pub fn drain(&self) {
        self.0.shared.state.send_if_modified(|state| !std::mem::replace(&mut state.draining, true));
    }

    /// Waits until the last messages are sent, for a bounded time. Called after all replicas were left.
    /// Cancel safe.
    pub async fn flush(&self) {
        let flush = self.0.shared.bus.flush();
        if tokio::time::timeout(FLUSH_MAX, flush).await.is_err() {
            tracing::warn!(timeout = ?FLUSH_MAX, "failed to send last messages to the fleet");
        }
    }

    /// Returns this gateway.
    pub fn gateway(&self) -> GatewayId {
        self.0.shared.config.gateway
    }

    /// Returns its state, and news of it.
    pub fn state(&self) -> watch::Receiver<FleetState> {
        self.0.shared.state.subscribe()
    }

    /// Returns the number of gateways that are heard, this one included.
    pub fn gateways(&self) -> usize {
        self.0.shared.gateways.load(Ordering::Relaxed)
    }

    /// Returns the number of gateways that share quotas of owners.
    pub(crate) fn quota_divisor(&self) -> QuotaDivisor {
        self.0.shared.quota_divisor.clone()
    }

    pub(crate) fn bus(&self) -> &dyn Bus {
        &*self.0.shared.bus
    }

    pub(crate) fn subjects(&self) -> &Subjects {
        &self.0.shared.config.subjects
    }

    /// Whether this gateway serves no followers.
    pub(crate) fn is_source(&self) -> bool {
        self.0.shared.config.is_source
    }

    pub(crate) fn news(&self) -> broadcast::Receiver<FleetNews> {
        self.0.shared.news.subscribe()
    }

    pub(crate) fn members_max(&self) -> usize {
        self.0.shared.config.members_max
    }

    /// Returns the permits for tails of replicas that this gateway does not publish.
    pub(crate) fn direct_tails(&self) -> DirectTails {
        self.0.shared.direct_tails.clone()
    }

    /// Returns the time since the start.
    pub(crate) fn now(&self) -> Duration {
        self.0.shared.now()
    }

    /// Returns the moment that is this time after the start.
    pub(crate) fn instant(&self, time: Duration) -> Instant {
        self.0.shared.started + time
    }

    /// Returns the weight of a new participant. No two have the same for one replica: the sequence numbers of
    /// its actor's ring begin at zero again, so it must not use a rank of an earlier one.
    pub(crate) fn new_weight(&self, lease: &LeaseId, replica: &Replica) -> u64 {
        let number = self.0.shared.participants.fetch_add(1, Ordering::Relaxed);
        rank::weight(self.gateway(), lease, replica) ^ number.wrapping_mul(MIX)
    }

    pub(crate) fn encode(&self, message: Message) -> Bytes {
        self.0.shared.encode(message)
    }

    /// Decodes a message. Counts it if it cannot be read.
    pub(crate) fn decode(&self, payload: Bytes) -> Option<Envelope> {
        self.0.shared.decode(payload)
    }
}

// === impl Shared ===

impl Shared {
    /// Sends and receives alive messages, until it is dropped.
    async fn run(self: Arc<Self>) {
        let mut liveness =
            Liveness::new(self.config.gateway, self.config.is_source, self.config.grace, self.now());
        let mut connection = self.bus.connection();
        let mut state = self.state.subscribe();
        let all = self.config.subjects.all_alive();
        let mut messages = self.bus.subscribe(Channel::Control, &all);
        let (mut totals, mut share) = (BusTotals::default(), QuotaShare::default());
        let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
        connection.mark_changed();
        loop {
            timer.as_mut().reset(self.started + liveness.deadline());
            let input = tokio::select! {
                message = messages.next() => match message.map(|message| self.decode(message.payload)) {
                    Some(Some(Envelope { sender, counter, message: Message::Alive(alive) })) => {
                        LivenessInput::Alive(sender, counter, alive)
                    }
                    Some(_) => continue,
                    None => {
                        // The bus has given it up. The pause keeps this from running without end.
                        tokio::time::sleep(self.config.grace).await;
                        messages = self.bus.subscribe(Channel::Control, &all);
                        LivenessInput::Tick
                    }
                },
                changed = connection.changed() => {
                    if changed.is_err() {
                        return self.set_usable(false);
                    }
                    LivenessInput::Connected(*connection.borrow_and_update() == Connection::Up)
                }
                () = until_draining(&mut state), if !liveness.is_draining() => LivenessInput::Drain,
                () = &mut timer => LivenessInput::Tick,
            };
            for output in liveness.handle(input, self.now()) {
                self.carry_out(output);
            }
            self.report(&liveness, &mut totals);
            if self.config.shares_quotas {
                let gateways = share.update(liveness.serving(), liveness.is_usable(), self.now());
                self.quota_divisor.set(gateways);
            }
        }
    }

    fn carry_out(&self, output: LivenessOutput) {
        // Without drivers nothing receives news.
        match output {
            LivenessOutput::Send(alive) => {
                let subject = self.config.subjects.alive(self.config.gateway);
                let payload = self.encode(Message::Alive(alive));
                self.bus.publish(Channel::Control, &subject, None, payload);
            }
            LivenessOutput::Silent(gateway) => _ = self.news.send(FleetNews::Silent(gateway)),
            LivenessOutput::Appeared(_) => _ = self.news.send(FleetNews::Appeared),
            LivenessOutput::Usable(usable) => self.set_usable(usable),
            LivenessOutput::Stale => self.metrics.fleet_rejected.of(FleetRejection::Stale).increment(1),
        }
    }

    fn set_usable(&self, usable: bool) {
        if usable {
            tracing::info!("bus can be used; sharing live tails");
        } else {
            tracing::warn!("bus cannot be used; tailing directly");
        }
        self.metrics.fleet_bus_usable.set(f64::from(u8::from(usable)));
        self.state.send_modify(|state| state.usable = usable);
    }

    /// Updates the metrics of the gateway.
    fn report(&self, liveness: &Liveness, before: &mut BusTotals) {
        let gateways = liveness.gateways();
        self.gateways.store(gateways, Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        self.metrics.fleet_gateways.set(gateways as f64);
        let now = self.bus.totals();
        self.metrics.fleet_unsent.increment(now.unsent.saturating_sub(before.unsent));
        self.metrics.fleet_overflowed.increment(now.overflowed.saturating_sub(before.overflowed));
        self.metrics.fleet_slow.increment(now.slow.saturating_sub(before.slow));
        *before = now;
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn encode(&self, message: Message) -> Bytes {
        let counter = self.messages.fetch_add(1, Ordering::Relaxed) + 1;
        codec::encode(&Envelope { sender: self.config.gateway, counter, message })
    }

    fn decode(&self, payload: Bytes) -> Option<Envelope> {
        match codec::decode(payload) {
            Ok(envelope) => Some(envelope),
            Err(error) => {
                self.metrics.fleet_rejected.of(FleetRejection::Decode).increment(1);
                tracing::debug!(%error, "failed to read message of the fleet");
                None
            }
        }
    }
}

/// Waits until the gateway shuts down. Cancel safe.
async fn until_draining(state: &mut watch::Receiver<FleetState>) {
    // The sender lives as long as the task.
    _ = state.wait_for(|state| state.draining).await;
}
