use std::time::Duration;

use super::*;
use crate::exchange::gateway_id::GatewayId;
use crate::exchange::lines::Lines;
use crate::exchange::messages::{Content, Fetch, FetchFrom, Fetched, Frame, Head, Message, RingEnd, Totals};
use crate::model::line::{GapCause, Line, LineBatch, SourceGap};
use crate::model::metrics::FleetElection;
use crate::model::position::Position;
use crate::platform::{ReadFrom, TailItem};

const ME: GatewayId = GatewayId([1; 16]);
const OTHER: GatewayId = GatewayId([2; 16]);

const CONFIG: Config = Config {
    gateway: ME,
    weight: 5,
    is_home: false,
    asks_node: false,
    is_source: false,
    members_max: 2,
    seed: 1,
};

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn run() -> Instance {
    Instance::new("uid", "web", 0).unwrap()
}

fn participant(asks_node: bool) -> (Participant, Vec<Output>) {
    let config = Config { asks_node, ..CONFIG };
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
fn member_that_starts_after_a_gap_has_the_gap() {
    for after_gap in [false, true] {
        let (mut one, out) = participant(false);
        let mut head = head(false);
        head.end.after_gap = after_gap;
        let out = one.handle(Input::Answered(request(&out), OTHER, Message::Joined(head)), ms(1));
        let gap = |output: &Output| matches!(output, Output::Deliver(TailItem::Gap(gap)) if !gap.exact);
        assert_eq!(out.iter().any(gap), after_gap, "{out:?}");
    }
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

fn at(nanos: i64) -> Position {
    Position { time: LogTime::from_nanos(nanos), ordinal: 1, offset: 0 }
}

/// A frame with lines of one byte, of these times, after the line with the time before the first.
fn frame(number: u64, times: std::ops::Range<i64>, ambiguous: bool) -> Frame {
    let start = at(times.start - 1);
    let mut batch = LineBatch::default();
    for (index, nanos) in times.enumerate() {
        batch.lines.push(Line::whole(index + 1, LogTime::from_nanos(nanos), at(nanos)));
    }
    batch.data = vec![b'\n'; batch.lines.len()].into();
    let mut lines = Lines::new(start, batch).unwrap();
    lines.ambiguous = ambiguous;
    let content = Content::Lines { instance: run(), lines };
    Frame { rank: Rank { term: 1, weight: 9 }, number, totals: Totals::default(), content }
}

/// Returns a member whose actor was given the lines up to time 7, and the outputs of its join.
fn member_behind() -> (Participant, Vec<Output>) {
    let mut one = Participant::new(CONFIG, true);
    let out = one.handle(Input::Open { instance: run(), from: ReadFrom::After(at(7)) }, ms(0));
    let place = Some(Place { instance: run(), position: at(9) });
    let head = Head { end: RingEnd { number: 4, place, ..RingEnd::default() }, ..head(false) };
    let out = one.handle(Input::Answered(request(&out), OTHER, Message::Joined(head)), ms(1));
    assert_eq!(one.role(), RoleName::Member);
    (one, out)
}

#[test]
fn fetched_frames_that_do_not_help_are_fetched_once() {
    for frames in [vec![frame(3, 5..10, true)], vec![frame(3, 9..10, false)], vec![frame(3, 2..5, false)]] {
        let (mut one, out) = member_behind();
        let rank = frames[0].rank;
        let fetched = Message::Fetched(Fetched::Frames { rank, frames });
        let out = one.handle(Input::Answered(request(&out), OTHER, fetched), ms(2));
        assert!(matches!(out[..], [Output::OpenTail { .. }]), "{out:?}");
    }
    // The answer that helps.
    let (mut one, out) = member_behind();
    let frames = vec![frame(3, 5..10, false)];
    let fetched = Message::Fetched(Fetched::Frames { rank: frames[0].rank, frames });
    let out = one.handle(Input::Answered(request(&out), OTHER, fetched), ms(2));
    assert!(
        matches!(&out[..], [Output::Deliver(TailItem::Lines(batch))] if batch.lines.len() == 2),
        "{out:?}"
    );
}

/// The place that it had attached at is followed by frames that nobody has any more.
#[test]
fn frames_that_are_gone_are_fetched_once() {
    let (mut one, out) = participant(false);
    one.handle(Input::Answered(request(&out), OTHER, Message::Joined(head(false))), ms(1));
    let out = one.handle(Input::Received(OTHER, Message::Frame(frame(3, 5..8, false))), ms(2));
    let not_held = Fetched::NotHeld { rank: head(false).rank, oldest: None };
    let out = one.handle(Input::Answered(request(&out), OTHER, Message::Fetched(not_held)), ms(3));
    let [Output::OpenTail { from: ReadFrom::After(Position::START), .. }] = &out[..] else {
        panic!("{out:?}")
    };
    one.handle(Input::Tail(1, TailEvent::Opened { start: Position::START, unfinished: [false; 2] }), ms(4));
    let mut batch = LineBatch::default();
    batch.lines.push(Line::whole(1, LogTime::from_nanos(4), at(4)));
    batch.data = vec![b'\n'].into();
    let out = one.handle(Input::Tail(1, TailEvent::Item(TailItem::Lines(batch))), ms(5));
    let delivered = |output: &Output| matches!(output, Output::Deliver(TailItem::Lines(_)));
    assert_eq!(out.iter().filter(|output| delivered(output)).count(), 2, "{out:?}");
    assert!(out.contains(&Output::CloseTail), "{out:?}");
}

#[test]
fn answers_of_another_rank_do_not_repeat_a_fetch_without_end() {
    let (mut one, mut out) = member_behind();
    for _ in 0..super::following::UNANSWERED_MAX {
        let frames = vec![Frame { rank: Rank::default(), ..frame(3, 5..10, false) }];
        let fetched = Message::Fetched(Fetched::Frames { rank: Rank::default(), frames });
        out = one.handle(Input::Answered(request(&out), OTHER, fetched), ms(2));
    }
    assert!(matches!(out[..], [Output::OpenTail { .. }]), "{out:?}");
}

#[test]
fn endless_claims_of_others_make_a_gateway_direct() {
    let (mut one, mut out) = participant(false);
    let mut now = ms(0);
    for term in 1..50 {
        let claim = Claim { rank: Rank { term, weight: 9 }, home: true, place: None };
        one.handle(Input::Received(OTHER, Message::Claim(claim)), now);
        if out.iter().any(|output| matches!(output, Output::Request(..))) {
            one.handle(Input::NoResponders(request(&out)), now);
        }
        if one.role() == RoleName::Direct {
            return;
        }
        now = one.deadline().unwrap();
        out = one.handle(Input::Tick, now);
    }
    panic!("still {:?} after {now:?}", one.role());
}

/// Returns a publisher whose ring is read, and its rank.
fn publisher() -> (Participant, Rank) {
    let (mut one, out) = participant(false);
    let out = one.handle(Input::NoResponders(request(&out)), ms(0));
    let [Output::Publish(Subject::Claims, Message::Claim(claim))] = &out[..] else { panic!("{out:?}") };
    one.handle(Input::Received(ME, Message::Claim(claim.clone())), ms(1));
    let out = one.handle(Input::Tick, ms(100));
    assert!(out.contains(&Output::ReadRing(true)), "{out:?}");
    one.handle(Input::Ring(RingEvent::At(RingEnd::default())), ms(101));
    (one, claim.rank)
}

#[test]
fn election_after_a_conflict_has_its_cause() {
    let (mut one, _) = member_behind();
    let (rank, better) = (Rank { term: 1, weight: 9 }, Rank { term: 2, weight: 1 });
    // Its publisher has stopped for another one, which does not answer.
    let release = Message::Release { rank, successor: Some(better) };
    let out = one.handle(Input::Received(OTHER, release), ms(10));
    let out = one.handle(Input::NoResponders(request(&out)), ms(11));
    let claim = out.iter().find_map(|output| match output {
        Output::Publish(Subject::Claims, Message::Claim(claim)) => Some(claim.clone()),
        _ => None,
    });
    one.handle(Input::Received(ME, Message::Claim(claim.unwrap())), ms(12));
    one.handle(Input::Tick, ms(200));
    assert_eq!(one.role(), RoleName::Publisher);
    assert_eq!(one.notes(), [Note::Elected(FleetElection::Conflict)]);
    one.handle(Input::Tick, ms(201));
    assert_eq!(one.notes(), []);
}

#[test]
fn old_and_repeated_frames_are_noted() {
    let (mut one, _) = member_behind();
    let received = |one: &mut Participant, frame, now| {
        one.handle(Input::Received(OTHER, Message::Frame(frame)), ms(now));
        one.notes().to_vec()
    };
    assert_eq!(received(&mut one, frame(4, 10..12, false), 10), []);
    assert_eq!(received(&mut one, frame(4, 10..12, false), 11), [Note::Duplicate]);
    let next = |rank| Frame { rank, ..frame(5, 12..13, false) };
    let better = Rank { term: 3, weight: 1 };
    // The new publisher's frame also shows that frames before it are missing.
    assert_eq!(received(&mut one, next(better), 210)[0], Note::TakenOver(ms(200)));
    assert_eq!(received(&mut one, next(Rank { term: 1, weight: 9 }), 211), [Note::Stale]);
    // A log without lines is no slow takeover.
    let last = Frame { rank: Rank { term: 4, weight: 1 }, ..frame(6, 13..14, false) };
    let notes = received(&mut one, last, 60_000);
    assert!(!notes.iter().any(|note| matches!(note, Note::TakenOver(_))), "{notes:?}");
}

#[test]
fn publisher_refuses_members_above_the_limit() {
    let (mut one, rank) = publisher();
    let gateway = |number| GatewayId([number; 16]);
    let join = |one: &mut Participant, number| {
        let out = one.handle(Input::Asked(gateway(number), Message::Join, 1), ms(200));
        out.into_iter().find_map(|output| match output {
            Output::Reply(1, message) => Some(message),
            _ => None,
        })
    };
    for member in [2, 3, 2] {
        assert!(matches!(join(&mut one, member), Some(Message::Joined(_))), "{member}");
    }
    assert_eq!(join(&mut one, 4), Some(Message::Refused));
    let fetch = Message::Fetch(Fetch { rank, from: FetchFrom::Number(0), until: None });
    let out = one.handle(Input::Asked(gateway(4), fetch, 2), ms(201));
    assert_eq!(out, [Output::Reply(2, Message::Refused)]);
    one.handle(Input::Received(gateway(2), Message::Leave), ms(202));
    assert!(matches!(join(&mut one, 4), Some(Message::Joined(_))));
}

#[test]
fn refused_gateway_tails_and_asks_again() {
    let (mut one, out) = participant(false);
    let out = one.handle(Input::Answered(request(&out), OTHER, Message::Refused), ms(1));
    assert_eq!(one.role(), RoleName::Direct);
    assert!(out.contains(&Output::Subscribe(Subject::Frames, false)), "{out:?}");
    assert!(out.iter().any(|output| matches!(output, Output::OpenTail { .. })), "{out:?}");
    // The publisher announces itself at intervals.
    let announcement = Message::Announcement { head: head(false), home: false };
    one.handle(Input::Received(OTHER, announcement), ms(2));
    assert_eq!(one.role(), RoleName::Direct);
    let again = one.deadline().unwrap();
    assert!((ms(25_000)..ms(35_002)).contains(&again), "{again:?}");
    let out = one.handle(Input::Tick, again);
    assert_eq!(one.role(), RoleName::Finding);
    one.handle(Input::Answered(request(&out), OTHER, Message::Joined(head(false))), again);
    assert_eq!(one.role(), RoleName::Member);
}

#[test]
fn member_whose_place_was_taken_tails() {
    let (mut one, out) = member_behind();
    one.handle(Input::Answered(request(&out), OTHER, Message::Refused), ms(2));
    assert_eq!(one.role(), RoleName::Direct);
}

#[test]
fn fetch_of_an_expired_member_keeps_the_actor() {
    let (mut one, rank) = publisher();
    let fetch = |sender| {
        let fetch = Fetch { rank, from: FetchFrom::Number(0), until: None };
        Input::Asked(sender, Message::Fetch(fetch), 1)
    };
    assert_eq!(one.handle(fetch(ME), ms(102)), []);
    let out = one.handle(fetch(OTHER), ms(102));
    assert!(matches!(out[..], [Output::KeepActor(true), Output::ServeFetch(..)]), "{out:?}");
    let out = one.handle(fetch(OTHER), ms(103));
    assert!(matches!(out[..], [Output::ServeFetch(..)]), "{out:?}");
    let out = one.handle(Input::Received(OTHER, Message::Leave), ms(104));
    assert_eq!(out, [Output::KeepActor(false)]);
}

#[test]
fn gateways_that_appear_together_get_few_announcements() {
    let (mut one, _) = publisher();
    let mut count = 0;
    for now in 102..2_102 {
        let out = one.handle(Input::Appeared, ms(now));
        let is_announcement = |output: &&Output| {
            matches!(output, Output::Publish(Subject::Claims, Message::Announcement { .. }))
        };
        count += out.iter().filter(is_announcement).count();
    }
    assert!((3..=5).contains(&count), "{count}");
}

/// The tail fails, and the actor opens it again. Returns the new role.
fn fail_tail(one: &mut Participant, now: u64, opens: bool) -> RoleName {
    let failed = TailEvent::Failed { is_retryable: true };
    one.handle(Input::Tail(one.tail.generation, failed), ms(now));
    one.handle(Input::Open { instance: run(), from: ReadFrom::Last(0) }, ms(now + 1));
    if opens {
        let opened = TailEvent::Opened { start: Position::START, unfinished: [false; 2] };
        one.handle(Input::Tail(one.tail.generation, opened), ms(now + 2));
    }
    one.role()
}

#[test]
fn rare_failures_of_a_quiet_log_do_not_stop_its_publisher() {
    let (mut one, _) = publisher();
    let join = |now: u64, one: &mut Participant| one.handle(Input::Asked(OTHER, Message::Join, 1), ms(now));
    for now in [1_000, 9_000, 17_000] {
        join(now, &mut one);
        assert_eq!(fail_tail(&mut one, now, true), RoleName::Publisher);
    }
    join(25_000, &mut one);
    assert_eq!(fail_tail(&mut one, 25_000, false), RoleName::Publisher);
    // It did not open in between.
    assert_eq!(fail_tail(&mut one, 31_000, false), RoleName::Finding);
}

#[test]
fn member_that_opens_its_log_elsewhere_is_not_attached() {
    let (mut one, out) = member_behind();
    let frames = vec![frame(3, 5..10, false)];
    let fetched = Message::Fetched(Fetched::Frames { rank: frames[0].rank, frames });
    one.handle(Input::Answered(request(&out), OTHER, fetched), ms(2));
    // It is at time 9. Lines from 6 on are missing again, and no frame will show that.
    let out = one.handle(Input::Open { instance: run(), from: ReadFrom::After(at(5)) }, ms(3));
    let is_fetch = |output: &Output| {
        matches!(output, Output::Request(_, Message::Fetch(Fetch { from: FetchFrom::After(place), .. }))
            if place.position == at(5))
    };
    assert!(out.iter().any(is_fetch), "{out:?}");
}

#[test]
fn member_reads_the_source_to_find_a_time() {
    let mut one = Participant::new(CONFIG, true);
    let from = ReadFrom::Last(7);
    let out = one.handle(Input::Open { instance: run(), from }, ms(0));
    let out = one.handle(Input::Answered(request(&out), OTHER, Message::Joined(head(false))), ms(1));
    assert_eq!(one.role(), RoleName::Member);
    assert!(out.iter().any(|output| matches!(output, Output::OpenTail { .. })), "{out:?}");
}

#[test]
fn log_is_complete_once_its_last_gap_is_published() {
    let (mut one, _) = publisher();
    one.handle(Input::Asked(OTHER, Message::Join, 1), ms(200));
    let opened = TailEvent::Opened { start: at(9), unfinished: [false; 2] };
    one.handle(Input::Tail(one.tail.generation, opened), ms(201));
    let place = Some(Place { instance: run(), position: at(9) });
    let end = RingEnd { place, ..RingEnd::default() };
    one.handle(Input::Ring(RingEvent::At(end.clone())), ms(202));
    let gap = SourceGap { cause: GapCause::Rotated, lines: 0, bytes: 0, exact: false, after: at(9) };
    one.handle(Input::Tail(one.tail.generation, TailEvent::Item(TailItem::Gap(gap))), ms(203));
    let is_complete = |out: &[Output]| {
        let is_sync = |output: &Output| matches!(output, Output::Publish(_, Message::Sync(head)) if head.source.complete);
        out.iter().any(is_sync)
    };
    let out = one.handle(Input::Tail(one.tail.generation, TailEvent::Ended), ms(203));
    assert!(out.contains(&Output::Ended) && !is_complete(&out), "{out:?}");
    // The actor pushes the gap.
    let content = Content::Gap { instance: run(), start: at(9), gap };
    let end = RingEnd { number: 1, after_gap: true, ..end };
    let out = one.handle(Input::Ring(RingEvent::Entry { totals: Totals::default(), content, end }), ms(204));
    assert!(is_complete(&out), "{out:?}");
}

#[test]
fn member_gives_the_permit_of_its_tail_to_others() {
    let (mut one, out) = member_behind();
    let rank = Rank { term: 1, weight: 9 };
    let not_held = Message::Fetched(Fetched::NotHeld { rank, oldest: None });
    let out = one.handle(Input::Answered(request(&out), OTHER, not_held), ms(2));
    assert!(matches!(out[..], [Output::OpenTail { generation: 1, .. }]), "{out:?}");
    let opened = TailEvent::Opened { start: at(7), unfinished: [false; 2] };
    one.handle(Input::Tail(1, opened), ms(3));
    let out = one.handle(Input::Tail(1, TailEvent::TurnEnded), ms(30_003));
    let [Output::CloseTail, Output::OpenTail { generation: 2, from, .. }, ..] = &out[..] else {
        panic!("{out:?}");
    };
    assert_eq!(*from, ReadFrom::After(at(7)));
}

#[test]
fn member_whose_log_is_gone_goes_on_with_the_next_run() {
    let (mut one, out) = member_behind();
    let rank = Rank { term: 1, weight: 9 };
    let not_held = Message::Fetched(Fetched::NotHeld { rank, oldest: None });
    one.handle(Input::Answered(request(&out), OTHER, not_held), ms(2));
    let gone = |one: &mut Participant, now: u64| {
        let failed = TailEvent::Failed { is_retryable: false };
        one.handle(Input::Tail(one.tail.generation, failed), ms(now))
    };
    // The publisher may still have lines of this run.
    let out = gone(&mut one, 3);
    assert!(!out.contains(&Output::FailTail), "{out:?}");
    let out = one.handle(Input::Tick, ms(103));
    assert!(out.iter().any(|output| matches!(output, Output::OpenTail { .. })), "{out:?}");
    let next = Instance::new("uid", "web", 1).unwrap();
    let place = Some(Place { instance: next, position: Position::START });
    let head = Head { end: RingEnd { number: 5, place, ..RingEnd::default() }, ..head(false) };
    one.handle(Input::Received(OTHER, Message::Sync(head)), ms(104));
    let out = gone(&mut one, 105);
    assert!(out.contains(&Output::FailTail), "{out:?}");
    assert!(!out.iter().any(|output| matches!(output, Output::OpenTail { .. })), "{out:?}");
}

fn source() -> Participant {
    let config = Config { is_home: true, is_source: true, ..CONFIG };
    Participant::new(config, true)
}

fn ask(reply: ReplyId, place: Option<Place>) -> Input {
    Input::PublishRequested { sender: OTHER, reply, place, term: 7 }
}

#[test]
fn source_opens_the_log_then_claims_and_answers() {
    let open = Input::Open { instance: run(), from: ReadFrom::Last(0) };
    for asks_first in [true, false] {
        let mut one = source();
        let place = Some(Place { instance: run(), position: at(5) });
        let mut inputs = [ask(3, place.clone()), open.clone()];
        if !asks_first {
            inputs.reverse();
        }
        let out: Vec<Output> = inputs.into_iter().flat_map(|input| one.handle(input, ms(0))).collect();
        let opened = out.iter().find_map(|output| match output {
            Output::OpenTail { generation, from, .. } => Some((*generation, *from)),
            _ => None,
        });
        let (generation, from) = opened.unwrap();
        assert_eq!(from, ReadFrom::After(at(5)));
        assert!(!out.iter().any(|output| matches!(output, Output::Request(..))), "{out:?}");
        let opened = TailEvent::Opened { start: at(5), unfinished: [false; 2] };
        let out = one.handle(Input::Tail(generation, opened), ms(1));
        let [Output::Opened { .. }, Output::Publish(Subject::Claims, Message::Claim(claim))] = &out[..]
        else {
            panic!("{out:?}")
        };
        assert_eq!((claim.rank.term, claim.home), (8, true));
        one.handle(Input::Received(ME, Message::Claim(claim.clone())), ms(2));
        one.handle(Input::Tick, ms(101));
        assert_eq!(one.role(), RoleName::Publisher);
        let end = RingEnd { place, ..RingEnd::default() };
        let out = one.handle(Input::Ring(RingEvent::At(end)), ms(102));
        let is_answer = |output: &Output| matches!(output, Output::Reply(3, Message::Joined(_)));
        assert!(out.iter().any(is_answer), "{out:?}");
        assert_eq!(one.status().members, 1);
        // A better publisher: it stops, and does not follow.
        let head = Head { rank: Rank { term: 9, weight: 0 }, ..head(false) };
        let out = one.handle(Input::Received(OTHER, Message::Announcement { head, home: false }), ms(200));
        assert!(out.contains(&Output::CloseTail) && out.contains(&Output::KeepActor(false)), "{out:?}");
        assert_eq!(one.role(), RoleName::Idle);
    }
}

#[test]
fn source_that_cannot_open_the_log_refuses() {
    let mut one = source();
    one.handle(Input::Open { instance: run(), from: ReadFrom::Last(0) }, ms(0));
    one.handle(ask(3, None), ms(0));
    let failed = TailEvent::Failed { is_retryable: true };
    let out = one.handle(Input::Tail(one.tail.generation, failed), ms(1));
    assert!(out.contains(&Output::Reply(3, Message::Refused)), "{out:?}");
    assert!(!out.iter().any(|output| matches!(output, Output::Publish(..))), "{out:?}");
    // Nor does it publish while it shuts down.
    one.handle(Input::Drain, ms(2));
    assert_eq!(one.handle(ask(4, None), ms(3)), [Output::Reply(4, Message::Refused)]);
}
