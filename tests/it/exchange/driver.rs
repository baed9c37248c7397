//! The driver of a participant, and messages between gateways.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use leasemux::exchange::codec;
use leasemux::exchange::gateway_id::GatewayId;
use leasemux::exchange::kept::KEPT_MAX_BYTES;
use leasemux::exchange::liveness::{LivenessInput, LivenessOutput};
use leasemux::exchange::messages::{Envelope, Fetched, Message, PublishRequest};
use leasemux::exchange::participant::{Input, Output, RingEvent, Subject, TailEvent};
use leasemux::model::id::Replica;
use leasemux::model::position::{Place, Position};
use leasemux::platform::{ReadFrom, TailItem};
use rand::RngExt as _;

use super::bus::Channel;
use super::gateway::Actor;
use super::source::Reader;
use super::world::{ACTOR_IDLE, Event, Token, World};

/// A gateway opens fewer tails than this within a second: more is a loop.
const OPENED_MAX: usize = 20;

const LEASE: &str =
    "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev/1/1/1/akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";

// === impl World: the driver of a participant ===

impl World {
    pub(crate) fn liveness(&mut self, g: usize, input: LivenessInput) {
        let outputs = self.gateways[g].liveness.handle(input, self.now);
        for output in outputs {
            match output {
                LivenessOutput::Send(alive) => {
                    self.send(g, Channel::Alive, Message::Alive(alive), Token::None);
                }
                LivenessOutput::Silent(gateway) => self.input(g, Input::Silent(gateway)),
                LivenessOutput::Appeared(_) => self.input(g, Input::Appeared),
                LivenessOutput::Stale => {}
                LivenessOutput::Usable(usable) => {
                    self.log(g, || format!("usable: {usable}"));
                    self.input(g, Input::Usable(usable));
                }
            }
        }
        self.schedule_tick(g);
    }

    pub(super) fn schedule_tick(&mut self, g: usize) {
        let gateway = &mut self.gateways[g];
        let deadline = gateway.participant.deadline();
        let deadline = deadline.map_or(gateway.liveness.deadline(), |at| at.min(gateway.liveness.deadline()));
        if gateway.tick_at.is_none_or(|at| deadline < at) {
            gateway.tick_at = Some(deadline);
            self.at(deadline.saturating_sub(self.now), Event::Tick(g));
        }
    }

    pub(crate) fn input(&mut self, g: usize, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let before = self.gateways[g].participant.role();
            self.log(g, || format!("{before:?} <- {input:?}"));
            let is_lines = matches!(input, Input::Tail(_, TailEvent::Item(TailItem::Lines(_))));
            let outputs = self.gateways[g].participant.handle(input, self.now);
            for output in outputs {
                self.log(g, || format!("    -> {output:?}"));
                if is_lines && matches!(&output, Output::Deliver(TailItem::Gap(gap)) if gap.exact) {
                    self.count("gaps with the publisher's size");
                }
                self.output(g, output, &mut inputs);
            }
            let kept = self.gateways[g].participant.kept_bytes();
            if kept > KEPT_MAX_BYTES {
                self.violate(g, format!("{kept} bytes are kept"));
            }
        }
        self.schedule_tick(g);
    }

    pub(super) fn output(&mut self, g: usize, output: Output, inputs: &mut VecDeque<Input>) {
        match output {
            Output::Subscribe(subject, wanted) => self.bus.subscribe(g, channel(subject), wanted),
            Output::Publish(subject, message) => {
                if let Message::Claim(_) = &message {
                    self.count("claims");
                }
                self.send(g, channel(subject), message, Token::None);
            }
            Output::Request(request, message) => {
                if let Message::Fetch(_) = &message {
                    self.count("fetches");
                }
                self.request(g, request, message);
            }
            Output::AskNode { request, place, term } => self.ask_node(g, request, place, term),
            Output::Reply(reply, message) => self.reply(g, reply, message),
            Output::ServeFetch(reply, fetch) => {
                let Some(actor) = &self.gateways[g].actor else { return };
                let fetched = actor.ring.serve(&fetch);
                if let Fetched::NotHeld { .. } = &fetched {
                    self.count("refused fetches");
                }
                self.reply(g, reply, Message::Fetched(fetched));
            }
            Output::ReadRing(wanted) => {
                self.gateways[g].publishes = wanted;
                if let (true, Some(actor)) = (wanted, &self.gateways[g].actor) {
                    inputs.push_back(Input::Ring(RingEvent::At(actor.ring.end())));
                    self.count("publishers");
                }
            }
            Output::OpenTail { generation, instance, from, .. } => {
                self.count(if self.gateways[g].node.is_some() { "tails of nodes" } else { "tails" });
                self.gateways[g].tail = Some((generation, None));
                self.check_opened(g);
                let reader = Reader::open(&self.source, &instance, from);
                let delay = Duration::from_millis(self.random.random_range(1..60));
                if !self.gateways[g].source_fails {
                    self.gateways[g].tail = Some((generation, Some(reader)));
                }
                self.at(delay, Event::Tail(g, generation));
            }
            Output::CloseTail => self.gateways[g].tail = None,
            Output::KeepActor(kept) => {
                self.gateways[g].kept = kept;
                if !kept {
                    self.at(ACTOR_IDLE, Event::Idle(g));
                }
            }
            Output::Opened { .. } | Output::Deliver(_) | Output::Ended | Output::FailTail => {
                self.pass_to_actor(g, output, inputs);
            }
        }
    }

    /// Checks that a gateway does not open its tail again and again.
    fn check_opened(&mut self, g: usize) {
        let now = self.now;
        let opened = &mut self.gateways[g].opened;
        opened.push_back(now);
        while opened.front().is_some_and(|at| *at + Duration::from_secs(1) < now) {
            opened.pop_front();
        }
        let count = opened.len();
        if count == OPENED_MAX {
            self.violate(g, format!("{count} tails were opened within a second"));
        }
    }

    pub(super) fn pass_to_actor(&mut self, g: usize, output: Output, inputs: &mut VecDeque<Input>) {
        let source = &self.source;
        let Some(actor) = &mut self.gateways[g].actor else { return };
        let instance = actor.instance(source);
        let mut events = Vec::new();
        match output {
            Output::Opened { .. } if actor.began => {}
            Output::Opened { start, unfinished } => {
                actor.began = true;
                actor.ring.begin_log(&instance, start, unfinished);
                events.push(RingEvent::At(actor.ring.end()));
            }
            Output::Deliver(TailItem::Lines(batch)) => {
                events = actor.ring.push_lines(&instance, &batch);
                let run = actor.run;
                let all = actor.followers.iter_mut();
                let found: Vec<String> = all.filter_map(|one| one.lines(source, run, &batch).err()).collect();
                actor.newest_at = self.now;
                for text in found {
                    self.violate(g, text);
                }
            }
            Output::Deliver(TailItem::Gap(gap)) => {
                events.push(actor.ring.push_gap(&instance, gap));
                let run = actor.run;
                let all = actor.followers.iter_mut();
                let found: Vec<String> = all.filter_map(|one| one.gap(source, run, &gap).err()).collect();
                for text in found {
                    self.violate(g, text);
                }
                self.count(if gap.exact { "exact gaps" } else { "inexact gaps" });
            }
            Output::FailTail => {
                let delay = Duration::from_millis(self.random.random_range(100..500));
                self.at(delay, Event::Reopen(g));
            }
            Output::Ended => {
                actor.reads = false;
                self.open_next(g);
                return;
            }
            _ => {}
        }
        if self.gateways[g].publishes {
            inputs.extend(events.into_iter().map(Input::Ring));
        }
    }

    /// Opens the next run, if the log has ended and the view has one.
    pub(super) fn open_next(&mut self, g: usize) {
        let gateway = &mut self.gateways[g];
        let Some(actor) = &mut gateway.actor else { return };
        if actor.reads || gateway.known_runs <= actor.run + 1 {
            return;
        }
        if gateway.node.is_some() && self.source.pod(actor.run) != self.source.pod(actor.run + 1) {
            let delay = Duration::from_millis(self.random.random_range(50..1_000));
            return self.at(delay, Event::Gone(g));
        }
        actor.run += 1;
        (actor.reads, actor.began) = (true, true);
        let instance = self.source.runs[actor.run].instance.clone();
        let event = actor.ring.begin_run(&instance);
        if gateway.publishes {
            self.input(g, Input::Ring(event));
        }
        self.input(g, Input::Open { instance, from: ReadFrom::Start });
    }

    /// Ends the actor of a gateway without followers if its pod is gone.
    pub(super) fn check_gone(&mut self, g: usize) {
        let gateway = &self.gateways[g];
        let next = |actor: &Actor| gateway.known_runs > actor.run + 1 && !actor.reads;
        let is_gone = gateway
            .actor
            .as_ref()
            .is_some_and(|actor| next(actor) && self.source.pod(actor.run) != self.source.pod(actor.run + 1));
        if is_gone {
            self.input(g, Input::Stop);
            self.gateways[g].actor = None;
        }
    }

    /// Opens the log again after an error.
    pub(super) fn reopen(&mut self, g: usize) {
        let Some(actor) = &self.gateways[g].actor else { return };
        if !actor.reads {
            return;
        }
        let instance = actor.instance(&self.source);
        let place = actor.ring.end().place.filter(|place| place.instance == instance);
        let from = match place {
            Some(place) if place.position == Position::START => ReadFrom::Start,
            Some(place) => ReadFrom::After(place.position),
            None => ReadFrom::Last(0),
        };
        self.input(g, Input::Open { instance, from });
    }

    pub(super) fn tail(&mut self, g: usize, generation: u64) {
        let gateway = &mut self.gateways[g];
        let Some((current, reader)) = &mut gateway.tail else { return };
        if *current != generation {
            return;
        }
        let Some(reader) = reader else {
            gateway.tail = None;
            return self.input(g, Input::Tail(generation, TailEvent::Failed { is_retryable: true }));
        };
        if gateway.source_fails {
            gateway.tail = None;
            return self.input(g, Input::Tail(generation, TailEvent::Failed { is_retryable: true }));
        }
        let event = reader.next(&self.source, &mut self.random);
        let delay = if event.is_some() { 1 } else { self.random.random_range(4..25) };
        if event == Some(TailEvent::Ended) {
            gateway.tail = None;
        } else {
            self.at(Duration::from_millis(delay), Event::Tail(g, generation));
        }
        if let Some(event) = event {
            self.input(g, Input::Tail(generation, event));
        }
    }
}

// === impl World: messages ===

impl World {
    /// Encodes and decodes a message: all receivers read the same.
    pub(super) fn encode(&mut self, g: usize, message: Message) -> Arc<Envelope> {
        let gateway = &mut self.gateways[g];
        gateway.counter += 1;
        let bytes = codec::encode(&Envelope { sender: gateway.id, counter: gateway.counter, message });
        Arc::new(codec::decode(bytes).unwrap())
    }

    pub(super) fn send(&mut self, g: usize, channel: Channel, message: Message, token: Token) {
        let listeners = self.bus.listeners(g, channel);
        if listeners.is_empty() {
            return;
        }
        if let Message::Frame(_) = &message {
            self.count("frames");
        }
        let envelope = self.encode(g, message);
        for to in listeners {
            self.deliver(g, to, channel, &envelope, token);
        }
    }

    pub(super) fn deliver(
        &mut self,
        g: usize,
        to: usize,
        channel: Channel,
        envelope: &Arc<Envelope>,
        token: Token,
    ) {
        let arrivals = self.bus.arrivals(g, to, channel, self.now, &mut self.random);
        if arrivals.is_empty() {
            self.count("lost messages");
        }
        for at in arrivals {
            self.at(at.saturating_sub(self.now), Event::Arrives(to, channel, Arc::clone(envelope), token));
        }
    }

    pub(super) fn request(&mut self, g: usize, request: u64, message: Message) {
        if self.bus.listeners(g, Channel::Requests).is_empty() && self.bus.is_up() {
            return self.at(Duration::from_micros(300), Event::NoResponders(g, request));
        }
        self.send(g, Channel::Requests, message, Token::Request(g, request));
    }

    fn ask_node(&mut self, g: usize, request: u64, place: Option<Place>, term: u64) {
        let Some(actor) = &self.gateways[g].actor else { return };
        let channel = Channel::Node(self.source.pod(actor.run) % self.nodes.max(1));
        if self.bus.listeners(g, channel).is_empty() && self.bus.is_up() {
            return self.at(Duration::from_micros(300), Event::NoResponders(g, request));
        }
        self.count("requests to publish");
        let publish = PublishRequest {
            lease: LEASE.parse().unwrap(),
            replica: Replica { service: "web".parse().unwrap(), index: 0 },
            namespace: "namespace".to_owned(),
            pod: "pod".to_owned(),
            place,
            term,
        };
        self.send(g, channel, Message::PublishRequest(Box::new(publish)), Token::Request(g, request));
    }

    /// A gateway without followers is asked to publish.
    fn publish_requested(&mut self, g: usize, sender: GatewayId, asked: &PublishRequest, reply: u64) {
        let run = self.gateways[g].known_runs - 1;
        if self.gateways[g].node != Some(self.source.pod(run) % self.nodes.max(1)) {
            return self.reply(g, reply, Message::Refused);
        }
        let is_new = self.gateways[g].actor.is_none();
        if is_new {
            self.gateways[g].actor = Some(Actor::new(run, self.ring_entries, self.now));
            self.at(ACTOR_IDLE, Event::Idle(g));
        }
        let (place, term) = (asked.place.clone(), asked.term);
        let (ask, instance) =
            (Input::PublishRequested { sender, reply, place, term }, self.source.runs[run].instance.clone());
        let open = Input::Open { instance, from: ReadFrom::Last(0) };
        // The actor opens its log at about the same time.
        let mut inputs = [Some(ask), is_new.then_some(open)];
        if self.random.random() {
            inputs.reverse();
        }
        for input in inputs.into_iter().flatten() {
            self.input(g, input);
        }
    }

    pub(super) fn reply(&mut self, g: usize, reply: u64, message: Message) {
        let Some((to, request)) = self.gateways[g].replies.remove(&reply) else { return };
        let envelope = self.encode(g, message);
        self.deliver(g, to, Channel::Inbox, &envelope, Token::Answer(request));
    }

    pub(super) fn arrives(&mut self, g: usize, envelope: &Envelope, token: Token) {
        let Envelope { sender, counter, ref message } = *envelope;
        match (message.clone(), token) {
            (Message::Alive(alive), _) => self.liveness(g, LivenessInput::Alive(sender, counter, alive)),
            (message, Token::Answer(request)) => self.input(g, Input::Answered(request, sender, message)),
            (message, Token::Request(from, request)) => {
                let gateway = &mut self.gateways[g];
                gateway.next_reply += 1;
                let reply = gateway.next_reply;
                gateway.replies.insert(reply, (from, request));
                if let Message::PublishRequest(asked) = message {
                    return self.publish_requested(g, sender, &asked, reply);
                }
                self.input(g, Input::Asked(sender, message, reply));
                self.gateways[g].replies.remove(&reply);
            }
            (message, Token::None) => self.input(g, Input::Received(sender, message)),
        }
    }
}

fn channel(subject: Subject) -> Channel {
    match subject {
        Subject::Frames => Channel::Frames,
        Subject::Claims => Channel::Claims,
        Subject::Requests => Channel::Requests,
    }
}
