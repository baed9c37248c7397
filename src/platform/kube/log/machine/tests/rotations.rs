//! A kubelet that lags: it leaves files out and sends the beginning of the newest one again.

use super::*;

/// Lines of a file that the window does not hold at one line per millisecond.
const LONG: usize = 3 * WINDOW_LINES;

/// A millisecond.
const STEP: i64 = 1_000_000;

/// A kubelet that lags by some rotations. A newest file of a single line, sent twice, looks like two equal
/// lines.
pub(super) fn fall_behind() -> impl Strategy<Value = Op> {
    let lines = || prop_oneof![3 => 2_usize..50, 1 => WINDOW_LINES..LONG];
    let step = prop_oneof![Just(1_i64), Just(STEP), Just(2_000_000_000)];
    (0_usize..50, proptest::collection::vec(lines(), 0..3), lines(), step)
        .prop_map(|(rest, left_out, newest, step)| Op::FallBehind(rest, left_out, newest, step))
}

/// A follower that has 100 lines.
fn follower() -> Scenario {
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(100, STEP);
    scenario.run_until_idle(false);
    scenario
}

#[test]
fn kubelet_two_rotations_behind_repeats_nothing() {
    // Remembered and larger files, one or several left out.
    for (newest, left_out) in
        [(100, vec![50]), (LONG, vec![50]), (LONG, vec![LONG, 7]), (3 * LONG, vec![LONG])]
    {
        let mut scenario = follower();
        scenario.server.fall_behind(20, &left_out, newest, STEP);
        scenario.run_until_idle(false);
        assert_eq!(
            (scenario.received.lines.len(), scenario.received.gaps_before.len()),
            (120 + newest, 1),
            "{left_out:?}"
        );
        scenario.server.print(10, STEP);
        scenario.run_until_idle(false);
        scenario.end();
        scenario.received.check_except(&scenario.server.log, &scenario.server.left_out);
        assert_eq!(
            (scenario.received.lines.len(), scenario.received.gaps_before.len()),
            (130 + newest, 1),
            "{left_out:?}"
        );
    }
}

#[test]
fn repeated_lines_one_by_one_are_one_gap() {
    let mut scenario = follower();
    // Two files are left out, so the newest one comes three times.
    scenario.server.fall_behind(20, &[50, 50], 100, STEP);
    while !scenario.server.parts.is_empty() {
        let bytes = scenario.server.bytes(false);
        bytes.split_inclusive(|byte| *byte == b'\n').for_each(|line| scenario.on(Event::Data(line)));
    }
    scenario.end();
    scenario.received.check_except(&scenario.server.log, &scenario.server.left_out);
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (220, 1));
}

#[test]
fn file_rotated_before_recovery_is_one_gap() {
    let mut scenario = follower();
    scenario.server.fall_behind(20, &[50], LONG, STEP);
    while !matches!(scenario.machine.stage, Stage::FindResumePoint { .. }) {
        assert!(matches!(scenario.next, Action::Read), "{:?}", scenario.next);
        scenario.send(false);
    }
    scenario.server.file = scenario.server.log.len();
    scenario.server.print(30, STEP);
    scenario.end();
    scenario.received.check_except(&scenario.server.log, &scenario.server.left_out);
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (150 + LONG, 1));
}

#[test]
fn reordered_lines_cost_no_recovery() {
    let mut scenario = follower();
    scenario.server.print(2 * WINDOW_LINES, STEP);
    scenario.run_until_idle(false);
    let asked = scenario.server.asked.len();
    for _ in 0..500 {
        scenario.server.print(3, STEP);
        // A line of stderr was stamped earlier and written later.
        scenario.server.print(1, -900 * STEP);
        scenario.server.print(1, 900 * STEP);
        scenario.run_until_idle(false);
    }
    assert_eq!((scenario.server.asked.len(), scenario.received.gaps_before.len()), (asked, 0));
    scenario.end();
    scenario.received.check(&scenario.server.log);
}

#[test]
fn clock_set_back_on_a_long_log_costs_one_recovery() {
    let mut scenario = follower();
    scenario.server.print(2 * WINDOW_LINES, STEP);
    scenario.run_until_idle(false);
    let asked = scenario.server.asked.len();
    scenario.server.print(1, -3_600_000 * STEP);
    scenario.server.print(100, STEP);
    scenario.run_until_idle(false);
    assert_eq!(scenario.server.asked[asked..], [LogQuery::WHOLE, LogQuery::FOLLOW]);
    scenario.server.print(3 * WINDOW_LINES, STEP);
    scenario.run_until_idle(false);
    assert_eq!(scenario.server.asked.len(), asked + 2);
    scenario.end();
    scenario.received.check(&scenario.server.log);
    assert_eq!(scenario.received.gaps_before.len(), 0);
}

#[test]
fn busy_log_is_followed_after_a_few_requests() {
    // 21,000 lines/s, and a second from each request to the next.
    let (step, between) = (47_619, 21_000);
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Last(0), true);
    scenario.server.print(3 * between, step);
    for _ in 0..20 {
        match &scenario.next {
            Action::Open(ask) => {
                let ask = *ask;
                scenario.server.print(between, step);
                scenario.server.open(ask);
                scenario.on(Event::Opened { ended: false });
            }
            Action::Read => {
                let bytes = scenario.server.bytes(false);
                scenario.on(if bytes.is_empty() {
                    Event::Complete { ended: false }
                } else {
                    Event::Data(&bytes)
                });
            }
            other => panic!("{other:?}"),
        }
        if scenario.machine.idle_verdict() == IdleVerdict::Quiet && matches!(scenario.next, Action::Read) {
            break;
        }
    }
    assert!(scenario.server.open.is_some_and(|open| open.ask.follow), "{:?}", scenario.server.asked);
    assert!(scenario.server.asked.len() <= 4, "{:?}", scenario.server.asked);
    assert_eq!(scenario.received.gaps_before.len(), 0);
}
