//! Gateways, the bus between them and their source, in virtual time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use leasemux::exchange::liveness::LivenessInput;
use leasemux::exchange::messages::Envelope;
use leasemux::exchange::participant::{Input, RoleName};
use leasemux::platform::ReadFrom;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::bus::{Bus, Channel};
use super::follower::Follower;
use super::gateway::{Actor, Gateway};
use super::source::Source;

/// Time without followers after which an actor ends.
pub(super) const ACTOR_IDLE: Duration = Duration::from_secs(10);

/// Most messages that wait for a halted gateway, as for a subscription of the real bus.
const WAITING_MAX: usize = 200;

/// Something that happens at a time.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A message arrives at a gateway.
    Arrives(usize, Channel, Arc<Envelope>, Token),
    NoResponders(usize, u64),
    Tick(usize),
    /// The tail of a gateway may have something.
    Tail(usize, u64),
    /// The actor opens its log again.
    Reopen(usize),
    /// A gateway's view has one run more.
    View(usize),
    /// The actor may be idle.
    Idle(usize),
    /// The pod of a gateway's node may be gone.
    Gone(usize),
    /// A step of the scenario.
    Step,
}

/// Which request a message belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Token {
    None,
    /// A request of a gateway, by its number.
    Request(usize, u64),
    /// The answer to one's own request.
    Answer(u64),
}

/// Everything.
pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) random: StdRng,
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) bus: Bus,
    pub(crate) source: Source,
    pub(crate) ring_entries: usize,
    /// Nodes that may have a gateway without followers.
    pub(crate) nodes: usize,
    pub(crate) error: Option<String>,
    pub(crate) trace: bool,
    /// Outputs and messages by name, to see that a scenario does what it is for.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    queue: BTreeMap<(Duration, u64), Event>,
    sequence: u64,
    seed: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let ring_entries = if random.random_ratio(1, 2) { 400 } else { random.random_range(3..40) };
        Self {
            now: Duration::ZERO,
            random,
            gateways: Vec::new(),
            bus: Bus::default(),
            source: Source::new(),
            ring_entries,
            nodes: 0,
            error: None,
            trace: std::env::var_os("LEASEMUX_SIMULATION_TRACE").is_some(),
            counts: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            seed,
        }
    }

    pub(crate) fn at(&mut self, delay: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), event);
    }

    /// Returns the next event before `end`, at its time.
    pub(crate) fn next_event(&mut self, end: Duration) -> Option<Event> {
        let entry = self.queue.first_entry().filter(|entry| entry.key().0 <= end);
        let Some(entry) = entry else {
            self.now = end;
            return None;
        };
        let ((at, _), event) = entry.remove_entry();
        self.now = self.now.max(at);
        Some(event)
    }

    /// Runs without further steps of a scenario.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.error.is_none() {
            let Some(event) = self.next_event(end) else { return };
            self.happen(event);
        }
    }

    pub(crate) fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    #[expect(clippy::print_stdout, reason = "a trace, on request")]
    pub(super) fn log(&self, g: usize, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>10.3} ms  {g}  {}", self.now.as_secs_f64() * 1_000.0, text());
        }
    }

    pub(crate) fn happen(&mut self, event: Event) {
        let gateway = match &event {
            Event::Arrives(g, ..)
            | Event::NoResponders(g, _)
            | Event::Tick(g)
            | Event::Tail(g, _)
            | Event::Reopen(g)
            | Event::View(g)
            | Event::Idle(g)
            | Event::Gone(g) => *g,
            Event::Step => return,
        };
        let one = &mut self.gateways[gateway];
        if !one.alive {
            return;
        }
        if one.halted {
            one.waiting.push_back(event);
            let is_frame = |event: &Event| matches!(event, Event::Arrives(_, Channel::Frames, ..));
            if one.waiting.iter().filter(|event| is_frame(event)).count() > WAITING_MAX {
                // The newest one is dropped, as the client does.
                one.waiting.pop_back();
            }
            return;
        }
        match event {
            Event::Arrives(g, _, envelope, token) => self.arrives(g, &envelope, token),
            Event::NoResponders(g, request) => self.input(g, Input::NoResponders(request)),
            Event::Tick(g) => {
                self.gateways[g].tick_at = None;
                self.liveness(g, LivenessInput::Tick);
                self.input(g, Input::Tick);
            }
            Event::Tail(g, generation) => self.tail(g, generation),
            Event::Reopen(g) => self.reopen(g),
            Event::View(g) => {
                self.gateways[g].known_runs += 1;
                self.open_next(g);
            }
            Event::Idle(g) => self.check_idle(g),
            Event::Gone(g) => self.check_gone(g),
            Event::Step => {}
        }
    }
}

// === impl World: gateways and followers ===

impl World {
    pub(crate) fn start_gateway(&mut self) -> usize {
        self.start(None)
    }

    /// Starts a gateway without followers on a node.
    pub(crate) fn start_source(&mut self, node: usize) -> usize {
        self.start(Some(node))
    }

    fn start(&mut self, node: Option<usize>) -> usize {
        let index = self.gateways.len();
        let known_runs = self.source.runs.len();
        let gateway = Gateway::new(index, self.seed, node, self.nodes > 0, known_runs, self.now);
        self.gateways.push(gateway);
        self.bus.subscribe(index, Channel::Alive, true);
        if let Some(node) = node {
            self.bus.subscribe(index, Channel::Node(node), true);
        }
        let is_up = !self.bus.faults.down;
        self.liveness(index, LivenessInput::Connected(is_up));
        index
    }

    pub(crate) fn kill(&mut self, g: usize) {
        self.log(g, || "killed".to_owned());
        let gateway = &mut self.gateways[g];
        (gateway.alive, gateway.actor, gateway.tail) = (false, None, None);
        self.bus.remove(g);
    }

    pub(crate) fn drain(&mut self, g: usize) {
        self.log(g, || "drains".to_owned());
        self.gateways[g].draining = true;
        self.liveness(g, LivenessInput::Drain);
        self.input(g, Input::Drain);
    }

    pub(crate) fn continue_gateway(&mut self, g: usize) {
        self.gateways[g].halted = false;
        for event in std::mem::take(&mut self.gateways[g].waiting) {
            self.happen(event);
        }
        self.happen(Event::Tick(g));
    }

    pub(crate) fn set_connected(&mut self, connected: bool) {
        self.bus.faults.down = !connected;
        for g in 0..self.gateways.len() {
            if self.gateways[g].alive {
                // A halted gateway is told late, which is simplified here.
                self.liveness(g, LivenessInput::Connected(connected));
            }
        }
    }

    pub(crate) fn join_follower(&mut self, g: usize) {
        let (now, run, entries) = (self.now, self.gateways[g].known_runs - 1, self.ring_entries);
        if self.gateways[g].actor.is_none() {
            self.gateways[g].actor = Some(Actor::new(run, entries, now));
            let instance = self.source.runs[run].instance.clone();
            self.input(g, Input::Open { instance, from: ReadFrom::Last(0) });
        }
        if let Some(actor) = &mut self.gateways[g].actor {
            actor.followers.push(Follower::new());
        }
    }

    pub(crate) fn leave_follower(&mut self, g: usize) {
        let now = self.now;
        if let Some(actor) = &mut self.gateways[g].actor {
            actor.followers.pop();
            actor.idle_since = now;
        }
        self.at(ACTOR_IDLE, Event::Idle(g));
    }

    pub(super) fn check_idle(&mut self, g: usize) {
        let gateway = &mut self.gateways[g];
        let is_idle = gateway
            .actor
            .as_ref()
            .is_some_and(|actor| actor.followers.is_empty() && self.now >= actor.idle_since + ACTOR_IDLE);
        if is_idle && !gateway.kept {
            self.input(g, Input::Stop);
            self.gateways[g].actor = None;
        }
    }

    /// The next run begins. Gateways learn of it later.
    pub(crate) fn next_run(&mut self, new_pod: bool) {
        self.source.next_run(new_pod);
        for g in 0..self.gateways.len() {
            let most = if self.random.random_ratio(1, 5) { 3_000 } else { 50 };
            let delay = Duration::from_millis(self.random.random_range(0..most));
            self.at(delay, Event::View(g));
        }
    }

    /// Returns the gateways that follow the replica and are not about to end.
    pub(crate) fn active(&self) -> Vec<usize> {
        let is_active = |gateway: &Gateway| {
            gateway.alive && gateway.actor.is_some() && !gateway.draining && gateway.node.is_none()
        };
        (0..self.gateways.len()).filter(|g| is_active(&self.gateways[*g])).collect()
    }

    /// Returns the gateways in this role.
    pub(crate) fn in_role(&self, role: RoleName) -> Vec<usize> {
        let all = 0..self.gateways.len();
        all.filter(|g| self.gateways[*g].alive && self.gateways[*g].participant.role() == role).collect()
    }

    /// Returns the number of open tails.
    pub(crate) fn tails(&self) -> usize {
        self.gateways.iter().filter(|gateway| gateway.alive && gateway.tail.is_some()).count()
    }

    pub(super) fn violate(&mut self, g: usize, text: String) {
        let role = self.gateways[g].participant.role();
        let now = self.now;
        self.error.get_or_insert_with(|| format!("at {now:?}, gateway {g} ({role:?}): {text}"));
    }
}
