//! The driver of a participant: carries out its outputs, and passes it what happens on the bus, in the ring
//! and in the own tail.
//!
//! The task awaits nothing outside of its `select!`, and all calls to the bus return at once. So the bus delays
//! nothing: neither the actor, which has its own task and ring, nor this task.
//!
//! **Bounds.** While lines wait for the actor, this task reads neither frames nor answers nor the own tail.
//! Frames then wait in the subscription, which drops what does not fit: the numbers show that.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use metrics::Gauge;
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;

use super::outbox::{OpenReply, Outbox};
use super::own_tail::{OwnTail, OwnTailEvent};
use super::requests::Requests;
use super::slot::{Slot, role_label};
use super::subscriptions::{Subscriptions, channel};
use super::{AttachedActor, KeepGuard, PublishAsk, Users};
use crate::exchange::bus::{BusMessage, Channel, RequestError};
use crate::exchange::fleet::{Fleet, FleetNews, FleetState};
use crate::exchange::messages::{Fetch, Fetched, Message, PublishRequest};
use crate::exchange::participant::{
    ANSWER_MAX, Config, Input, Note, Output, Participant, ReplyId, RequestId, RingEvent, RoleName, Status,
    Subject, TailEvent,
};
use crate::logs::ring::{FrameReader, Ring};
use crate::model::id::{LeaseId, Replica};
use crate::model::metrics::{
    FleetDirection, FleetRejection, FleetRepair, GaugeGuard, Metrics, PlatformName, ReadKind,
};
use crate::model::position::Place;
use crate::platform::{self, Placement, Platform, ReadFrom, TailRequest};

/// Time for which a publisher with members stays after its actor has ended. Its last frames and its release go by
/// different connections, and a member that is told of the release first reads the rest of the log by itself:
/// but then the log may be gone. Lost frames are fetched meanwhile, too.
const LINGER: Duration = Duration::from_millis(50);

/// Requests to publish that may still be answered. An older one than these has waited for too long.
const ASKS_MAX: usize = 256;

/// The driver of one replica's participant.
#[derive(Debug)]
pub(super) struct Driver {
    fleet: Fleet,
    metrics: Metrics,
    platform: PlatformName,
    source: Arc<dyn Platform>,
    lease: LeaseId,
    replica: Replica,
    participant: Participant,
    subscriptions: Subscriptions,
    requests: Requests,
    /// The request that is handled, and the subject of its answer.
    asked: Option<(ReplyId, String)>,
    /// Requests to publish that may still be answered, and the subjects of the answers.
    asks: VecDeque<(ReplyId, String)>,
    next_reply: ReplyId,
    /// The actor's newest request.
    request: Option<TailRequest>,
    tail: OwnTail,
    /// The newest error of the tail that the actor does not know.
    error: Option<platform::Error>,
    outbox: Outbox,
    ring: Arc<Ring>,
    /// Reads the ring, if this gateway publishes.
    reader: Option<FrameReader>,
    users: Arc<dyn Users>,
    /// Kept while there are members. Without them the ring is not read: its end suffices.
    kept: Option<KeepGuard>,
    slot: Arc<Slot>,
    role: Option<GaugeGuard>,
    /// This replica's part of the number of members.
    members: Part,
}

/// A tail that the actor wants.
pub(super) struct Open {
    pub(super) request: TailRequest,
    pub(super) reply: OpenReply,
}

/// A part of a gauge, which ends with its owner.
#[derive(Debug)]
struct Part {
    gauge: Gauge,
    value: u32,
}

enum Event {
    Open(Open),
    ActorEnded,
    /// The time after the actor's end has passed, or the fleet is gone.
    Stop,
    /// The state of the fleet has changed.
    State,
    News(FleetNews),
    Due,
    Message(Subject, BusMessage),
    Ask(PublishAsk),
    Answer(RequestId, Result<Bytes, RequestError>),
    Ring(Vec<RingEvent>),
    Tail(u64, OwnTailEvent),
    /// Nothing to handle.
    None,
}

// === impl Driver: the loop ===

impl Driver {
    pub(super) fn new(
        fleet: Fleet,
        actor: AttachedActor,
        platform: Arc<dyn Platform>,
        metrics: Metrics,
        slot: Arc<Slot>,
    ) -> Self {
        let AttachedActor { lease, replica, ring, users } = actor;
        let weight = fleet.new_weight(&lease, &replica);
        let gateway = fleet.gateway();
        let members_max = fleet.members_max();
        let is_source = fleet.is_source();
        let config = Config {
            gateway,
            weight,
            is_home: is_source,
            asks_node: !is_source,
            is_source,
            members_max,
            seed: weight,
        };
        let subscriptions = Subscriptions::new(fleet.subjects().replica(&lease, &replica));
        Self {
            platform: PlatformName::of(platform.name()),
            tail: OwnTail::new(Arc::clone(&platform), fleet.direct_tails()),
            source: platform,
            members: Part { gauge: metrics.fleet_members.clone(), value: 0 },
            participant: Participant::new(config, false),
            subscriptions,
            fleet,
            metrics,
            lease,
            replica,
            requests: Requests::default(),
            asked: None,
            asks: VecDeque::new(),
            next_reply: 0,
            request: None,
            error: None,
            outbox: Outbox::default(),
            ring,
            reader: None,
            users,
            kept: None,
            slot,
            role: None,
        }
    }

    /// Runs until the actor has ended.
    pub(super) async fn run(mut self, mut opens: mpsc::Receiver<Open>, mut asks: mpsc::Receiver<PublishAsk>) {
        let (mut state, mut news) = (self.fleet.state(), self.fleet.news());
        let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
        // First, so that no log is opened as if the bus were away.
        let now = *state.borrow_and_update();
        self.state_changed(now);
        let mut stop_at = None;
        loop {
            let deadline = self.participant.deadline().map(|at| self.fleet.instant(at));
            if let Some(at) = deadline.filter(|at| *at != timer.deadline()) {
                timer.as_mut().reset(at);
            }
            let takes_lines = self.outbox.is_empty();
            let publishes = self.kept.is_some();
            let event = tokio::select! {
                open = opens.recv(), if stop_at.is_none() => open.map_or(Event::ActorEnded, Event::Open),
                () = until(stop_at) => Event::Stop,
                changed = state.changed() => if changed.is_ok() { Event::State } else { Event::Stop },
                one = news.recv() => match one {
                    Ok(one) => Event::News(one),
                    Err(broadcast::error::RecvError::Lagged(_)) => Event::None,
                    Err(broadcast::error::RecvError::Closed) => Event::Stop,
                },
                () = &mut timer, if deadline.is_some() => Event::Due,
                (subject, message) = self.subscriptions.next(takes_lines) => Event::Message(subject, message),
                Some(ask) = asks.recv() => Event::Ask(ask),
                (request, answer) = self.requests.next(takes_lines) => Event::Answer(request, answer),
                () = self.outbox.flush(), if !takes_lines => Event::None,
                events = read(&mut self.reader), if publishes => Event::Ring(events),
                (generation, event) = self.tail.next(), if takes_lines => Event::Tail(generation, event),
            };
            match event {
                Event::Stop => return self.handle(Input::Stop),
                Event::ActorEnded => {
                    self.publish_rest();
                    self.tail.close();
                    let linger = if self.kept.is_some() { LINGER } else { Duration::ZERO };
                    stop_at = Some(Instant::now() + linger);
                }
                Event::State => {
                    let state = *state.borrow_and_update();
                    self.state_changed(state);
                }
                other => self.happened(other),
            }
        }
    }

    fn state_changed(&mut self, state: FleetState) {
        if state.usable {
            self.subscriptions.restore(self.fleet.bus());
        }
        self.handle(Input::Usable(state.usable));
        if state.draining {
            self.publish_rest();
            self.handle(Input::Drain);
        }
    }

    /// Publishes the entries that are in the ring: the source may not have their lines for much longer.
    fn publish_rest(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        while let (Some(reader), Some(_)) = (&mut self.reader, &self.kept)
            && let Poll::Ready(events) = reader.poll_read(&mut cx)
        {
            for event in events {
                self.handle(Input::Ring(event));
            }
        }
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Open(Open { request, reply }) => {
                let (instance, from) = (request.instance.clone(), request.from);
                if !self.fleet.is_source() {
                    let placement = self.source.placement(&self.lease, &instance);
                    self.participant.set_home(placement.is_some_and(|placement| placement.is_here));
                }
                self.request = Some(request);
                self.outbox.begin(reply);
                self.handle(Input::Open { instance, from });
            }
            Event::News(FleetNews::Silent(gateway)) => self.handle(Input::Silent(gateway)),
            Event::News(FleetNews::Appeared) => self.handle(Input::Appeared),
            Event::Due => {
                self.refresh_end();
                self.handle(Input::Tick);
            }
            Event::Message(subject, message) => self.received(subject, message),
            Event::Ask(ask) => self.publish_requested(ask),
            Event::Answer(request, answer) => self.answered(request, answer),
            Event::Ring(events) => {
                for event in events {
                    self.handle(Input::Ring(event));
                }
            }
            Event::Tail(generation, event) => self.tail_event(generation, event),
            Event::ActorEnded | Event::Stop | Event::State | Event::None => {}
        }
    }

    /// Passes an input to the participant, and what follows from it.
    fn handle(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let outputs = self.participant.handle(input, self.fleet.now());
            self.count();
            for output in outputs {
                self.carry_out(output, &mut inputs);
            }
        }
        self.store_status();
    }

    /// Counts what the participant has noted.
    fn count(&self) {
        let metrics = &self.metrics;
        for note in self.participant.notes() {
            match *note {
                Note::Elected(cause) => metrics.fleet_elections.of(cause).increment(1),
                Note::Missed(noticed) => metrics.fleet_missed.of(noticed).increment(1),
                Note::Duplicate => metrics.fleet_duplicates.increment(1),
                Note::Stale => metrics.fleet_rejected.of(FleetRejection::Stale).increment(1),
                Note::TakenOver(time) => metrics.fleet_takeover.record(time),
            }
        }
    }

    fn store_status(&mut self) {
        let status = self.participant.status();
        let before = self.slot.store(status);
        if status.role != before.role {
            self.role_changed(status, before.role);
        }
        let is_publisher = status.role == RoleName::Publisher;
        self.members.set(if is_publisher { status.members } else { 0 });
    }

    fn role_changed(&mut self, status: Status, before: RoleName) {
        self.role = role_label(status.role).map(|role| GaugeGuard::new(self.metrics.fleet_replicas.of(role)));
        let (lease, replica, role, publisher) = (&self.lease, &self.replica, status.role, status.publisher);
        tracing::debug!(%lease, %replica, ?role, ?before, ?publisher, "role in fleet changed");
    }
}

// === impl Driver: what happens ===

impl Driver {
    /// Without members the ring is not read. Passes its end before something may be said about it.
    fn refresh_end(&mut self) {
        if let (Some(reader), None) = (&mut self.reader, &self.kept) {
            let end = reader.skip_to_end();
            self.handle(Input::Ring(RingEvent::At(end)));
        }
    }

    fn received(&mut self, subject: Subject, message: BusMessage) {
        if subject == Subject::Frames {
            self.metrics.fleet_frames.of(FleetDirection::In).increment(1);
            self.metrics.fleet_bytes.of(FleetDirection::In).increment(message.payload.len() as u64);
        }
        let Some(envelope) = self.fleet.decode(message.payload) else { return };
        let Some(reply) = message.reply else {
            return self.handle(Input::Received(envelope.sender, envelope.message));
        };
        if subject != Subject::Requests {
            return;
        }
        self.refresh_end();
        self.next_reply += 1;
        self.asked = Some((self.next_reply, reply));
        self.handle(Input::Asked(envelope.sender, envelope.message, self.next_reply));
        // It was answered at once, or is not.
        self.asked = None;
    }

    fn publish_requested(&mut self, ask: PublishAsk) {
        let PublishAsk { sender, place, term, reply: subject } = ask;
        self.refresh_end();
        self.next_reply += 1;
        let reply = self.next_reply;
        if self.asks.len() == ASKS_MAX {
            self.asks.pop_front();
        }
        self.asks.push_back((reply, subject));
        self.handle(Input::PublishRequested { sender, reply, place, term });
    }

    fn answered(&mut self, request: RequestId, answer: Result<Bytes, RequestError>) {
        match answer {
            Ok(payload) => {
                let Some(envelope) = self.fleet.decode(payload) else { return };
                if let Message::Fetched(Fetched::Frames { frames, .. }) = &envelope.message {
                    self.metrics.fleet_repairs.of(FleetRepair::Ring).increment(1);
                    self.metrics.fleet_frames.of(FleetDirection::In).increment(frames.len() as u64);
                }
                self.handle(Input::Answered(request, envelope.sender, envelope.message));
            }
            Err(RequestError::NoResponders) => self.handle(Input::NoResponders(request)),
            // The participant has its own deadline.
            Err(RequestError::Timeout | RequestError::Unavailable) => {}
        }
    }

    fn tail_event(&mut self, generation: u64, event: OwnTailEvent) {
        let event = match event {
            OwnTailEvent::Opened(start, unfinished) => TailEvent::Opened { start, unfinished },
            OwnTailEvent::Item(item) => TailEvent::Item(item),
            OwnTailEvent::TurnEnded => TailEvent::TurnEnded,
            OwnTailEvent::Ended => TailEvent::Ended,
            OwnTailEvent::Failed(error) => {
                let is_retryable = error.is_retryable();
                self.error = Some(error);
                TailEvent::Failed { is_retryable }
            }
        };
        self.handle(Input::Tail(generation, event));
        if let Some(error) = self.error.take() {
            // The actor need not know, so it does not count and log it.
            self.metrics.source_errors.of((error.kind(), self.platform)).increment(1);
            let (lease, replica) = (&self.lease, &self.replica);
            tracing::warn!(%lease, %replica, error = &error as &dyn std::error::Error, "failed to read log, retrying");
        }
    }
}

// === impl Driver: outputs ===

impl Driver {
    fn carry_out(&mut self, output: Output, inputs: &mut VecDeque<Input>) {
        match output {
            Output::Subscribe(subject, wanted) => {
                self.subscriptions.set(self.fleet.bus(), subject, wanted);
            }
            Output::Publish(subject, message) => self.publish(subject, message),
            Output::Request(request, message) => self.ask(request, message),
            Output::AskNode { request, place, term } => {
                if !self.ask_node(request, place, term) {
                    inputs.push_back(Input::NoResponders(request));
                }
            }
            Output::Reply(reply, message) => self.reply(reply, message),
            Output::ServeFetch(reply, fetch) => self.serve_fetch(reply, &fetch),
            Output::ReadRing(true) => {
                let mut reader = FrameReader::new(Arc::clone(&self.ring));
                inputs.push_back(Input::Ring(RingEvent::At(reader.skip_to_end())));
                self.reader = Some(reader);
                self.tail.release_permit();
            }
            Output::ReadRing(false) => {
                self.reader = None;
                self.tail.take_permit();
            }
            Output::OpenTail { generation, instance, from, is_publisher } => {
                let Some(request) = &self.request else { return };
                let request = TailRequest {
                    oldest_read: self.ring.oldest_read(&instance),
                    is_next_run: from == ReadFrom::Start,
                    instance,
                    from,
                    ..request.clone()
                };
                self.metrics.source_opens.of(ReadKind::Live).increment(1);
                if self.participant.role() == RoleName::Member {
                    self.metrics.fleet_repairs.of(FleetRepair::Source).increment(1);
                }
                self.tail.open(generation, request, is_publisher);
            }
            Output::CloseTail => self.tail.close(),
            Output::Opened { start, unfinished } => self.outbox.opened(start, unfinished),
            Output::Deliver(item) => self.outbox.deliver(item),
            Output::Ended => self.outbox.end(),
            Output::FailTail => {
                let unknown = || platform::Error::Unavailable("log cannot be read".into());
                self.outbox.fail(self.error.take().unwrap_or_else(unknown));
            }
            Output::KeepActor(kept) => {
                self.kept = kept.then(|| KeepGuard::new(Arc::clone(&self.users)));
            }
        }
    }

    fn publish(&self, subject: Subject, message: Message) {
        if let Message::Release { successor: Some(_), .. } = &message {
            self.metrics.fleet_conflicts.increment(1);
        }
        let payload = self.fleet.encode(message);
        if subject == Subject::Frames {
            self.metrics.fleet_frames.of(FleetDirection::Out).increment(1);
            self.metrics.fleet_bytes.of(FleetDirection::Out).increment(payload.len() as u64);
        }
        self.fleet.bus().publish(channel(subject), self.subscriptions.name(subject), None, payload);
    }

    fn ask(&mut self, request: RequestId, message: Message) {
        let is_fetch = matches!(message, Message::Fetch(_));
        let payload = self.fleet.encode(message);
        let answers =
            self.fleet.bus().request(self.subscriptions.name(Subject::Requests), payload, ANSWER_MAX);
        // Several publishers may answer a join.
        self.requests.add(request, answers, is_fetch);
    }

    /// Asks the gateway on the node of the actor's run to publish. Returns `false` if there is no such node.
    fn ask_node(&mut self, request: RequestId, place: Option<Place>, term: u64) -> bool {
        let run = self.request.as_ref().map(|request| &request.instance);
        let placement = run.and_then(|run| self.source.placement(&self.lease, run));
        let Some(Placement { namespace, pod, node, is_here: false }) = placement else { return false };
        let (lease, replica) = (self.lease.clone(), self.replica.clone());
        let publish = PublishRequest { lease, replica, namespace, pod, place, term };
        let payload = self.fleet.encode(Message::PublishRequest(Box::new(publish)));
        let answers = self.fleet.bus().request(&self.fleet.subjects().node(&node), payload, ANSWER_MAX);
        self.requests.add(request, answers, false);
        true
    }

    fn reply(&mut self, reply: ReplyId, message: Message) {
        let ask = self.asks.iter().position(|(ask, _)| *ask == reply);
        let ask = ask.and_then(|index| self.asks.remove(index));
        if let Some((_, subject)) = self.asked.take_if(|(asked, _)| *asked == reply).or(ask) {
            self.fleet.bus().publish(Channel::Control, &subject, None, self.fleet.encode(message));
        }
    }

    fn serve_fetch(&mut self, reply: ReplyId, fetch: &Fetch) {
        let fetched = self.ring.serve_fetch(fetch);
        self.reply(reply, Message::Fetched(fetched));
    }
}

// === impl Part ===

impl Part {
    fn set(&mut self, value: u32) {
        if value != self.value {
            self.gauge.increment(f64::from(value) - f64::from(self.value));
            self.value = value;
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Waits until this time; for ever without one.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Waits for the next events of the ring; for ever without a reader. Cancel safe.
async fn read(reader: &mut Option<FrameReader>) -> Vec<RingEvent> {
    match reader {
        Some(reader) => poll_fn(|cx| reader.poll_read(cx)).await,
        None => std::future::pending().await,
    }
}
