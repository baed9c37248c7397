use std::collections::BTreeMap;
use std::time::Duration;

use leasemux::exchange::participant::RoleName;
use rand::RngExt as _;

use super::scenario;
use super::world::World;
use crate::support::seeds::{number, seeds};

/// Random scenarios of `cargo test`.
const SEEDS: u64 = 200;

/// Scenarios of each measured time.
const TIMED_SEEDS: u64 = 5;

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Starts gateways that follow a replica, and runs until one publishes.
fn fleet(seed: u64, gateways: usize) -> World {
    let mut world = World::new(seed);
    for _ in 0..gateways {
        let gateway = world.start_gateway();
        world.join_follower(gateway);
    }
    let _ = run(&mut world, ms(4_000));
    assert_eq!((world.in_role(RoleName::Publisher).len(), world.tails()), (1, 1), "seed {seed}");
    world
}

fn publisher(world: &World) -> usize {
    world.in_role(RoleName::Publisher)[0]
}

/// Runs for a time, in which a line is printed every 10 ms. Returns the longest time for which a gateway that
/// follows got nothing.
fn run(world: &mut World, time: Duration) -> Duration {
    let mut longest = Duration::ZERO;
    let end = world.now + time;
    while world.now < end {
        let now = world.now;
        world.source.current().print(now, &mut world.random);
        world.run_for(ms(10));
        assert_eq!(world.error, None);
        for g in world.active() {
            let actor = world.gateways[g].actor.as_ref().unwrap();
            longest = longest.max(world.now.saturating_sub(actor.newest_at));
        }
    }
    longest
}

/// Runs for a random time, so that an event comes at any moment of the intervals.
fn run_a_while(world: &mut World) {
    let time = world.random.random_range(0..1_000);
    let _ = run(world, ms(time));
}

#[test]
fn random_faults_lose_and_repeat_nothing() {
    // The same each time, so that a change is tested, and not chance. `.ci/full` tries others.
    let first = number("LEASEMUX_TEST_SEED").unwrap_or(0);
    let all: Vec<u64> = (first..first + number("LEASEMUX_TEST_SEEDS").unwrap_or(SEEDS)).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let outcomes = std::thread::scope(|scope| {
        let parts = all.chunks(all.len().div_ceil(threads));
        let running: Vec<_> = parts
            .map(|part| scope.spawn(|| part.iter().map(|seed| scenario::run(*seed)).collect::<Vec<_>>()))
            .collect();
        running.into_iter().flat_map(|one| one.join().unwrap()).collect::<Vec<_>>()
    });
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for outcome in &outcomes {
        assert_eq!(outcome.error, None, "LEASEMUX_TEST_SEED={}", outcome.seed);
        for (name, count) in &outcome.counts {
            *counts.entry(name).or_default() += count;
        }
    }
    println!("{counts:?}");
    if outcomes.len() as u64 == SEEDS {
        let needed = ["exact gaps", "inexact gaps", "gaps with the publisher's size", "refused fetches"];
        for name in needed {
            assert!(counts.contains_key(name), "no scenario had {name}");
        }
    }
}

#[test]
fn seed_reproduces_all_events() {
    for seed in seeds(3) {
        assert_eq!(scenario::run(seed), scenario::run(seed), "seed {seed}");
    }
}

#[test]
fn killed_publisher_is_replaced_within_two_seconds() {
    for seed in 0..TIMED_SEEDS {
        let mut world = fleet(seed, if seed == 0 { 50 } else { 3 });
        run_a_while(&mut world);
        let publisher = publisher(&world);
        world.kill(publisher);
        let longest = run(&mut world, ms(3_000));
        assert!(longest <= ms(2_000), "seed {seed}: {longest:?}");
        assert_eq!(world.tails(), 1, "seed {seed}");
    }
}

#[test]
fn halted_publisher_is_replaced_within_two_seconds() {
    for seed in 0..TIMED_SEEDS {
        let mut world = fleet(seed, 3);
        run_a_while(&mut world);
        let publisher = publisher(&world);
        world.gateways[publisher].halted = true;
        world.gateways[publisher].draining = true; // Not counted as one that follows.
        let longest = run(&mut world, ms(4_000));
        assert!(longest <= ms(2_000), "seed {seed}: {longest:?}");
        world.gateways[publisher].draining = false;
        world.continue_gateway(publisher);
        let _ = run(&mut world, ms(1_000));
        assert_eq!((world.in_role(RoleName::Publisher).len(), world.tails()), (1, 1), "seed {seed}");
    }
}

#[test]
fn drained_publisher_is_replaced_within_a_fifth_of_a_second() {
    for seed in 0..TIMED_SEEDS {
        let mut world = fleet(seed, 3);
        run_a_while(&mut world);
        let publisher = publisher(&world);
        world.drain(publisher);
        let longest = run(&mut world, ms(3_000));
        assert!(longest <= ms(200), "seed {seed}: {longest:?}");
        // The gateway that drains is a member until its followers have gone.
        assert_eq!(world.gateways[publisher].participant.role(), RoleName::Member, "seed {seed}");
        assert_eq!(world.tails(), 1, "seed {seed}");
    }
}

#[test]
fn gateways_tail_directly_while_the_bus_is_away() {
    for seed in 0..TIMED_SEEDS {
        let mut world = fleet(seed, 4);
        run_a_while(&mut world);
        let hangs = seed % 2 == 0;
        if hangs {
            world.bus.faults.hung = true;
        } else {
            world.set_connected(false);
        }
        let longest = run(&mut world, ms(1_500));
        assert_eq!(world.in_role(RoleName::Direct).len(), 3, "seed {seed}");
        let later = run(&mut world, ms(3_000));
        assert!(longest.max(later) <= ms(1_600), "seed {seed}: {longest:?}, {later:?}");
        assert_eq!(world.tails(), 4, "seed {seed}");
        world.bus.faults.hung = false;
        if !hangs {
            world.set_connected(true);
        }
        let _ = run(&mut world, ms(2_000));
        assert_eq!((world.in_role(RoleName::Publisher).len(), world.tails()), (1, 1), "seed {seed}");
    }
}

#[test]
fn two_publishers_are_one_a_second_after_they_hear_each_other() {
    for seed in 0..TIMED_SEEDS {
        let mut world = fleet(seed, 4);
        for g in 0..4 {
            world.bus.faults.sides.insert(g, u8::from(g < 2));
        }
        let _ = run(&mut world, ms(6_000));
        assert_eq!(world.in_role(RoleName::Publisher).len(), 2, "seed {seed}");
        world.bus.faults.sides.clear();
        // Alive messages come every half second.
        let _ = run(&mut world, ms(1_500));
        assert_eq!((world.in_role(RoleName::Publisher).len(), world.tails()), (1, 1), "seed {seed}");
    }
}

#[test]
fn large_fleet_opens_few_tails_while_the_bus_is_away() {
    let mut world = fleet(1, 40);
    // Members learn their number when they renew.
    let _ = run(&mut world, ms(6_000));
    world.set_connected(false);
    for _ in 0..300 {
        world.run_for(ms(10));
    }
    let (tails, waiting) = (world.tails(), world.in_role(RoleName::Waiting).len());
    assert!((5..30).contains(&tails), "{tails}");
    assert_eq!(tails + waiting, 40);
    world.set_connected(true);
    let _ = run(&mut world, ms(3_000));
    assert_eq!(world.tails(), 1);
}

#[test]
fn lone_gateway_sends_no_frames() {
    let mut world = fleet(1, 1);
    let _ = run(&mut world, ms(30_000));
    assert_eq!((world.counts.get("frames"), world.counts["claims"]), (None, 1));
}

#[test]
fn last_member_lets_the_idle_publisher_end() {
    let mut world = fleet(1, 2);
    let publisher = publisher(&world);
    world.leave_follower(publisher);
    let _ = run(&mut world, ms(12_000));
    // It has no followers of its own, but a member.
    assert_eq!(world.in_role(RoleName::Publisher), [publisher]);
    world.leave_follower(1 - publisher);
    let _ = run(&mut world, ms(30_000));
    assert_eq!((world.active(), world.tails()), (vec![], 0));
}

/// Starts gateways that follow a replica, and one without followers on its node.
fn fleet_with_source(seed: u64) -> (World, usize) {
    let mut world = World::new(seed);
    world.nodes = 1;
    let source = world.start_source(0);
    let gateways = [(); 3].map(|()| world.start_gateway());
    // Until all can use the bus.
    let _ = run(&mut world, ms(100));
    for gateway in gateways {
        world.join_follower(gateway);
    }
    let _ = run(&mut world, ms(4_000));
    assert_eq!((world.in_role(RoleName::Publisher), world.tails()), (vec![source], 1), "seed {seed}");
    (world, source)
}

#[test]
fn gateway_on_the_node_publishes_while_it_runs() {
    for seed in 0..TIMED_SEEDS {
        let (mut world, source) = fleet_with_source(seed);
        let _ = run(&mut world, ms(60_000));
        assert_eq!((world.in_role(RoleName::Publisher), world.tails()), (vec![source], 1), "seed {seed}");
        assert_eq!(world.counts.get("tails"), None, "seed {seed}: the others open none");
        world.kill(source);
        let longest = run(&mut world, ms(3_000));
        assert!(longest <= ms(2_000), "seed {seed}: {longest:?}");
        assert_eq!((world.in_role(RoleName::Publisher).len(), world.tails()), (1, 1), "seed {seed}");
        // The publisher asks at intervals of 30 s.
        let source = world.start_source(0);
        let longest = run(&mut world, ms(31_000));
        assert!(longest <= ms(300), "seed {seed}: {longest:?}");
        assert_eq!((world.in_role(RoleName::Publisher), world.tails()), (vec![source], 1), "seed {seed}");
        assert_eq!(world.counts["tails"], 1, "seed {seed}");
    }
}

#[test]
fn drained_gateway_on_the_node_is_replaced_within_300_ms() {
    for seed in 0..TIMED_SEEDS {
        let (mut world, source) = fleet_with_source(seed);
        run_a_while(&mut world);
        world.drain(source);
        let longest = run(&mut world, ms(60_000));
        assert!(longest <= ms(300), "seed {seed}: {longest:?}");
        assert_ne!(world.in_role(RoleName::Publisher), [source], "seed {seed}");
        assert_eq!(world.tails(), 1, "seed {seed}");
    }
}

#[test]
fn halted_gateway_on_the_node_is_replaced_within_two_seconds() {
    for seed in 0..TIMED_SEEDS {
        let (mut world, source) = fleet_with_source(seed);
        run_a_while(&mut world);
        world.gateways[source].halted = true;
        let longest = run(&mut world, ms(4_000));
        assert!(longest <= ms(2_000), "seed {seed}: {longest:?}");
        world.continue_gateway(source);
        let _ = run(&mut world, ms(1_000));
        assert_eq!((world.in_role(RoleName::Publisher).len(), world.tails()), (1, 1), "seed {seed}");
        let _ = run(&mut world, ms(31_000));
        assert_eq!((world.in_role(RoleName::Publisher), world.tails()), (vec![source], 1), "seed {seed}");
    }
}

#[test]
fn pod_on_another_node_is_published_there() {
    let mut world = World::new(1);
    world.nodes = 2;
    let sources = [0, 1].map(|node| world.start_source(node));
    let gateway = world.start_gateway();
    world.join_follower(gateway);
    for round in 1..5 {
        let _ = run(&mut world, ms(3_000));
        world.next_run(true);
        // The gateway on the node may hear of the pod after it was asked. It is asked again soon.
        let _ = run(&mut world, ms(8_000));
        let publisher = sources[round % 2];
        assert_eq!((world.in_role(RoleName::Publisher), world.tails()), (vec![publisher], 1), "{round}");
    }
}

#[test]
fn last_member_lets_the_gateway_on_the_node_stop() {
    let (mut world, _) = fleet_with_source(1);
    for g in world.active() {
        world.leave_follower(g);
    }
    let _ = run(&mut world, ms(40_000));
    assert_eq!((world.active(), world.tails()), (vec![], 0));
    assert!(world.in_role(RoleName::Publisher).is_empty());
}
