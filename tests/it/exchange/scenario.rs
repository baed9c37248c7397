//! Random scenarios: everything fails, then nothing does, and then one gateway publishes.

use std::collections::BTreeMap;
use std::time::Duration;

use leasemux::exchange::participant::RoleName;
use rand::RngExt as _;

use super::bus::{Channel, Faults};
use super::gateway::Gateway;
use super::world::{Event, World};

/// Most gateways at once.
const GATEWAYS_MAX: usize = 6;

/// Nodes of the scenarios that have gateways on them: each second one.
const NODES: usize = 2;

/// Time after the last fault in which one publisher is left.
const SETTLE: Duration = Duration::from_secs(5);

/// A loss that only a renewal shows is noticed after five seconds. Then the member reads the source for a
/// moment: [`REPAIR_STEPS`] of this time, a second.
const REPAIR_STEP: Duration = Duration::from_millis(100);

/// See [`REPAIR_STEP`].
const REPAIR_STEPS: usize = 10;

/// The same after faults that only long intervals show: a forgotten subscription (announcements, and frames
/// that do not arrive), and a failing source (a minute without claims).
const SETTLE_LONG: Duration = Duration::from_secs(100);

/// The result of one scenario.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    /// The first error.
    pub(crate) error: Option<String>,
    /// Lines printed, and received by all followers at the end.
    pub(crate) printed: u64,
    pub(crate) received: u64,
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
enum Undo {
    Lossless,
    Hung,
    Down,
    Split,
    Forgotten,
    Halt(usize),
    Drain(usize),
    Restart,
    /// The gateway on this node starts again.
    Node(usize),
    Source(usize),
}

struct Scenario {
    seed: u64,
    world: World,
    undo: Vec<(Duration, Undo)>,
    needs_long: bool,
    faulty: bool,
}

/// Runs one scenario.
pub(crate) fn run(seed: u64) -> Outcome {
    let mut scenario =
        Scenario { seed, world: World::new(seed), undo: Vec::new(), needs_long: false, faulty: true };
    let error = scenario.run().err();
    let world = scenario.world;
    let followers = world.gateways.iter().filter_map(|gateway| gateway.actor.as_ref());
    Outcome {
        seed,
        error,
        printed: world.source.runs.iter().map(super::source::Run::newest).sum(),
        received: followers.flat_map(|actor| &actor.followers).map(|follower| follower.lines).sum(),
        counts: world.counts,
    }
}

impl Scenario {
    fn run(&mut self) -> Result<(), String> {
        if self.seed % 2 == 1 {
            self.world.nodes = NODES;
            for node in 0..NODES {
                if self.world.random.random_ratio(3, 4) {
                    self.world.start_source(node);
                } else {
                    self.later(100, 9_000, Undo::Node(node));
                }
            }
        }
        for _ in 0..self.world.random.random_range(2..=4) {
            let gateway = self.world.start_gateway();
            self.world.join_follower(gateway);
        }
        let faulty = Duration::from_secs(self.world.random.random_range(4..12));
        self.steps(faulty, 40)?;
        self.end_faults();
        let settle = if self.needs_long { SETTLE_LONG } else { SETTLE };
        self.steps(settle, if self.needs_long { 1_500 } else { 150 })?;
        self.check_roles(false)?;
        for _ in 0..REPAIR_STEPS {
            if self.check_roles(true).is_err() {
                self.steps(REPAIR_STEP, 10)?;
            }
        }
        self.check_roles(true)?;
        // A last line, which nobody else can hide.
        self.world.source.current().finish_line();
        let now = self.world.now;
        let World { source, random, .. } = &mut self.world;
        source.current().print(now, random);
        source.current().finish_line();
        self.world.run_for(Duration::from_secs(2));
        self.check_error()?;
        self.check_followers()
    }

    fn check_error(&mut self) -> Result<(), String> {
        self.world.error.take().map_or(Ok(()), Err)
    }

    /// Runs for a time, with steps of at most so many milliseconds.
    fn steps(&mut self, time: Duration, most: u64) -> Result<(), String> {
        let faults = self.faulty;
        let end = self.world.now + time;
        self.world.at(Duration::ZERO, Event::Step);
        while let Some(event) = self.world.next_event(end) {
            if let Event::Step = event {
                self.step(faults);
                let delay = Duration::from_millis(self.world.random.random_range(1..most));
                self.world.at(delay, Event::Step);
            } else {
                self.world.happen(event);
            }
            self.check_error()?;
        }
        Ok(())
    }

    fn step(&mut self, faults: bool) {
        let now = self.world.now;
        let World { source, random, .. } = &mut self.world;
        let lines = if random.random_ratio(1, 80) { 25 } else { random.random_range(0..3) };
        for _ in 0..lines {
            source.current().print(now, random);
        }
        if faults {
            let due: Vec<Undo> =
                self.undo.extract_if(.., |(at, _)| *at <= now).map(|(_, undo)| undo).collect();
            for undo in due {
                self.undo(undo);
            }
            if self.world.random.random_ratio(1, 12) {
                self.random_event();
            }
        }
    }

    fn later(&mut self, least: u64, most: u64, undo: Undo) {
        let delay = Duration::from_millis(self.world.random.random_range(least..most));
        self.undo.push((self.world.now + delay, undo));
    }

    /// Returns how a gateway that ends is replaced.
    fn restart_of(&self, g: usize) -> Undo {
        self.world.gateways[g].node.map_or(Undo::Restart, Undo::Node)
    }

    fn any_gateway(&mut self) -> Option<usize> {
        let all = 0..self.world.gateways.len();
        let alive: Vec<usize> = all.filter(|g| self.world.gateways[*g].alive).collect();
        let publisher = self.world.in_role(RoleName::Publisher);
        let random = &mut self.world.random;
        let from = if publisher.is_empty() || random.random_ratio(1, 2) { &alive } else { &publisher };
        (!from.is_empty()).then(|| from[random.random_range(0..from.len())])
    }

    fn random_event(&mut self) {
        let Some(g) = self.any_gateway() else { return self.undo(Undo::Restart) };
        let now = self.world.now;
        let kind = self.world.random.random_range(0..34);
        match kind {
            0..4 => {
                let thousandths = self.world.random.random_range(5..200);
                let faults = &mut self.world.bus.faults;
                match kind {
                    0 => faults.repeated = thousandths,
                    1 => faults.late = thousandths,
                    _ => faults.lost = thousandths,
                }
                self.later(500, 4_000, Undo::Lossless);
            }
            4 => {
                self.world.bus.faults.hung = true;
                self.later(100, 5_000, Undo::Hung);
            }
            5 => {
                self.world.set_connected(false);
                self.later(100, 5_000, Undo::Down);
            }
            6 | 7 => {
                for g in 0..self.world.gateways.len() {
                    let side = self.world.random.random_range(0..2);
                    self.world.bus.faults.sides.insert(g, side);
                }
                self.later(200, 6_000, Undo::Split);
            }
            8 if self.world.random.random_ratio(1, 3) => {
                let channels = [Channel::Frames, Channel::Claims, Channel::Requests];
                let channel = channels[self.world.random.random_range(0..3)];
                self.world.bus.faults.forgotten.insert((g, channel));
                self.needs_long = true;
                self.later(2_000, 9_000, Undo::Forgotten);
            }
            9 | 10 => {
                self.world.gateways[g].halted = true;
                self.later(200, 5_000, Undo::Halt(g));
            }
            11 | 12 => {
                self.world.kill(g);
                self.later(100, 3_000, self.restart_of(g));
            }
            13 => {
                self.world.drain(g);
                self.later(1_000, 4_000, Undo::Drain(g));
            }
            14 => self.undo(Undo::Restart),
            15..18 if !self.world.gateways[g].halted && self.world.gateways[g].node.is_none() => {
                self.world.join_follower(g);
            }
            18 | 19 if !self.world.gateways[g].halted && self.world.gateways[g].node.is_none() => {
                self.world.leave_follower(g);
            }
            20 | 21 => {
                let new_pod = self.world.random.random_ratio(1, 3);
                self.world.next_run(new_pod);
            }
            22..26 => {
                let exact = self.world.random.random_ratio(2, 3);
                let World { source, random, .. } = &mut self.world;
                source.current().rotate(exact, random);
            }
            26..29 => {
                let World { source, random, .. } = &mut self.world;
                source.current().lose(now, random);
            }
            29 if self.world.random.random_ratio(1, 3) => {
                self.world.gateways[g].source_fails = true;
                self.needs_long = true;
                self.later(200, 8_000, Undo::Source(g));
            }
            _ => {}
        }
    }

    fn undo(&mut self, undo: Undo) {
        let faults = &mut self.world.bus.faults;
        match undo {
            Undo::Lossless => (faults.lost, faults.repeated, faults.late) = (0, 0, 0),
            Undo::Hung => faults.hung = false,
            Undo::Down => self.world.set_connected(true),
            Undo::Split => faults.sides.clear(),
            Undo::Forgotten => faults.forgotten.clear(),
            Undo::Halt(g) => {
                if self.world.gateways[g].alive {
                    self.world.continue_gateway(g);
                }
            }
            Undo::Drain(g) => {
                let restart = self.restart_of(g);
                self.world.kill(g);
                if let Undo::Node(node) = restart {
                    self.undo(Undo::Node(node));
                }
            }
            Undo::Node(node) => {
                let is_there = |gateway: &Gateway| gateway.alive && gateway.node == Some(node);
                if !self.world.gateways.iter().any(is_there) {
                    self.world.start_source(node);
                }
            }
            Undo::Restart => {
                let has_followers = |gateway: &&Gateway| gateway.alive && gateway.node.is_none();
                if self.world.gateways.iter().filter(has_followers).count() < GATEWAYS_MAX {
                    let g = self.world.start_gateway();
                    self.world.join_follower(g);
                }
            }
            Undo::Source(g) => self.world.gateways[g].source_fails = false,
        }
    }

    fn end_faults(&mut self) {
        for (_, undo) in std::mem::take(&mut self.undo) {
            self.undo(undo);
        }
        self.world.bus.faults = Faults::default();
        self.faulty = false;
        if self.world.active().is_empty() {
            let g = self.world.start_gateway();
            self.world.join_follower(g);
        }
    }

    /// Checks that one gateway publishes, and that it alone has a tail if `has_repaired`.
    fn check_roles(&self, has_repaired: bool) -> Result<(), String> {
        let world = &self.world;
        let publishers = world.in_role(RoleName::Publisher);
        let (active, tails) = (world.active(), world.tails());
        // All followers have left: a gateway on the node publishes until its actor ends.
        if active.is_empty() && publishers.iter().all(|g| !world.gateways[*g].kept) {
            return Ok(());
        }
        let expected = usize::from(!active.is_empty());
        if publishers.len() == expected && (tails == expected || !has_repaired) {
            return Ok(());
        }
        let roles: Vec<_> = active.iter().map(|g| (g, world.gateways[*g].participant.role())).collect();
        Err(format!("{tails} tails and publishers {publishers:?} of {roles:?}"))
    }

    fn check_followers(&self) -> Result<(), String> {
        for g in self.world.active() {
            let actor = self.world.gateways[g].actor.as_ref();
            let followers = actor.into_iter().flat_map(|actor| &actor.followers);
            if let Some(late) = followers.into_iter().find(|follower| !follower.is_at_end(&self.world.source))
            {
                let newest = self.world.source.runs.len() - 1;
                let slots = self.world.source.runs[newest].slots.len();
                let place = late.place();
                let role = self.world.gateways[g].participant.role();
                return Err(format!(
                    "a follower of gateway {g} ({role:?}) is at {place:?}, the log at ({newest}, {slots})"
                ));
            }
        }
        Ok(())
    }
}
