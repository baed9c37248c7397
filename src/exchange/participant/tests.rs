use std::time::Duration;

use super::*;
use crate::exchange::gateway_id::GatewayId;
use crate::exchange::messages::{Head, Message, RingEnd};
use crate::model::position::Position;

const ME: GatewayId = GatewayId([1; 16]);
const OTHER: GatewayId = GatewayId([2; 16]);

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn run() -> Instance {
    Instance::new("uid", "web", 0).unwrap()
}

fn participant(asks_node: bool) -> (Participant, Vec<Output>) {
    let config = Config { gateway: ME, weight: 5, is_home: false, asks_node, seed: 1 };
    let mut one = Participant::new(config, true);
    let out = one.handle(Input::Open { instance: run(), from: ReadFrom::Last(0) }, ms(0));
    (one, out)
}

fn request(out: &[Output]) -> RequestId {
    let requests = out.iter().filter_map(|output| match output {
        Output::Request(request, _) | Output::AskNode { request, .. } => Some(*request),
        _ => None,
    });
    requests.last().unwrap()
}

fn head(polled: bool) -> Head {
    let place = Some(Place { instance: run(), position: Position::START });
    Head {
        rank: Rank { term: 1, weight: 9 },
        end: RingEnd { place, ..RingEnd::default() },
        source: SourceState { polled, ..SourceState::default() },
        members: 1,
    }
}

#[test]
fn member_is_told_that_the_log_is_polled() {
    let (mut one, out) = participant(false);
    let joined = Input::Answered(request(&out), OTHER, Message::Joined(head(true)));
    let out = one.handle(joined, ms(1));
    assert_eq!(one.role(), RoleName::Member);
    let start = Position::START;
    assert!(out.contains(&Output::Opened { start, unfinished: [false; 2] }), "{out:?}");
    assert!(out.contains(&Output::Deliver(TailItem::FollowUnavailable)), "{out:?}");
    // Once for each open.
    let out = one.handle(Input::Received(OTHER, Message::Sync(head(true))), ms(2));
    assert_eq!(out, []);
}

#[test]
fn gateway_on_the_node_is_asked_before_a_claim() {
    let (mut one, out) = participant(true);
    let out = one.handle(Input::NoResponders(request(&out)), ms(1));
    assert!(matches!(out[..], [Output::AskNode { .. }]), "{out:?}");
    let answered = Input::Answered(request(&out), OTHER, Message::Joined(head(false)));
    one.handle(answered, ms(2));
    assert_eq!(one.role(), RoleName::Member);

    let (mut one, out) = participant(true);
    let out = one.handle(Input::NoResponders(request(&out)), ms(1));
    let out = one.handle(Input::Answered(request(&out), OTHER, Message::Refused), ms(2));
    assert!(matches!(out[..], [Output::Publish(Subject::Claims, Message::Claim(_))]), "{out:?}");
}

#[test]
fn silent_bus_makes_a_claimant_direct() {
    let (mut one, out) = participant(false);
    one.handle(Input::NoResponders(request(&out)), ms(1));
    // Its claim does not come back.
    let mut now = ms(1);
    while one.role() == RoleName::Finding {
        now = one.deadline().unwrap();
        one.handle(Input::Tick, now);
    }
    assert_eq!((one.role(), now), (RoleName::Direct, ms(401)));
}
