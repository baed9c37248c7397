//! A kubelet that falls behind: it leaves files out and sends the beginning of the newest one again.

use super::*;

/// Lines of a file that the window does not hold at a line in a millisecond.
const LONG: usize = 3 * WINDOW_LINES;

/// A millisecond.
const STEP: i64 = 1_000_000;

/// A kubelet that falls behind by some rotations. A newest file of one line only, sent twice, cannot be told from two equal lines.
pub(super) fn fall_behind() -> impl Strategy<Value = Op> {
    let lines = || prop_oneof![3 => 2_usize..50, 1 => WINDOW_LINES..LONG];
    let step = prop_oneof![Just(1_i64), Just(STEP), Just(2_000_000_000)];
    (0_usize..50, proptest::collection::vec(lines(), 0..3), lines(), step)
        .prop_map(|(rest, left_out, newest, step)| Op::FallBehind(rest, left_out, newest, step))
}

/// A reader of a log of some lines.
fn play() -> Play {
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(100, STEP);
    play.settle(false);
    play
}

#[test]
fn kubelet_two_rotations_behind_repeats_nothing() {
    // Files that are remembered and files that are not, one left out or several.
    for (newest, left_out) in
        [(100, vec![50]), (LONG, vec![50]), (LONG, vec![LONG, 7]), (3 * LONG, vec![LONG])]
    {
        let mut play = play();
        play.server.fall_behind(20, &left_out, newest, STEP);
        play.settle(false);
        assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (120 + newest, 1), "{left_out:?}");
        play.server.print(10, STEP);
        play.settle(false);
        play.end();
        play.heard.check_but(&play.server.log, &play.server.left_out);
        assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (130 + newest, 1), "{left_out:?}");
    }
}

#[test]
fn repeated_lines_that_come_one_by_one_are_one_gap() {
    let mut play = play();
    // Two files are left out, so the newest one comes three times.
    play.server.fall_behind(20, &[50, 50], 100, STEP);
    while !play.server.behind.is_empty() {
        let bytes = play.server.bytes(false);
        bytes.split_inclusive(|byte| *byte == b'\n').for_each(|line| play.on(Event::Data(line)));
    }
    play.end();
    play.heard.check_but(&play.server.log, &play.server.left_out);
    assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (220, 1));
}

#[test]
fn file_that_is_rotated_before_recovery_is_one_gap() {
    let mut play = play();
    play.server.fall_behind(20, &[50], LONG, STEP);
    while !matches!(play.machine.stage, Stage::Recover(_)) {
        assert!(matches!(play.next, Action::Read), "{:?}", play.next);
        play.send(false);
    }
    play.server.file = play.server.log.len();
    play.server.print(30, STEP);
    play.end();
    play.heard.check_but(&play.server.log, &play.server.left_out);
    assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (150 + LONG, 1));
}

#[test]
fn reordered_lines_cost_no_recovery() {
    let mut play = play();
    play.server.print(2 * WINDOW_LINES, STEP);
    play.settle(false);
    let asked = play.server.asked.len();
    for _ in 0..500 {
        play.server.print(3, STEP);
        // stderr was stamped earlier, and written later.
        play.server.print(1, -900 * STEP);
        play.server.print(1, 900 * STEP);
        play.settle(false);
    }
    assert_eq!((play.server.asked.len(), play.heard.gaps_before.len()), (asked, 0));
    play.end();
    play.heard.check(&play.server.log);
}

#[test]
fn clock_set_back_on_a_long_log_costs_one_recovery() {
    let mut play = play();
    play.server.print(2 * WINDOW_LINES, STEP);
    play.settle(false);
    let asked = play.server.asked.len();
    play.server.print(1, -3_600_000 * STEP);
    play.server.print(100, STEP);
    play.settle(false);
    assert_eq!(play.server.asked[asked..], [LogQuery::WHOLE, LogQuery::FOLLOW]);
    play.server.print(3 * WINDOW_LINES, STEP);
    play.settle(false);
    assert_eq!(play.server.asked.len(), asked + 2);
    play.end();
    play.heard.check(&play.server.log);
    assert_eq!(play.heard.gaps_before.len(), 0);
}

#[test]
fn loud_log_is_followed_after_a_few_requests() {
    // 21,000 lines/s, and a second from one request to the next.
    let (step, between) = (47_619, 21_000);
    let mut play = Play::new(Server::default(), ReadFrom::Last(0), true);
    play.server.print(3 * between, step);
    for _ in 0..20 {
        match &play.next {
            Action::Ask(ask) => {
                let ask = *ask;
                play.server.print(between, step);
                play.server.open(ask);
                play.on(Event::Opened { ended: false });
            }
            Action::Read => {
                let bytes = play.server.bytes(false);
                play.on(if bytes.is_empty() {
                    Event::Complete { ended: false }
                } else {
                    Event::Data(&bytes)
                });
            }
            other => panic!("{other:?}"),
        }
        if play.machine.silence() == IdleVerdict::Quiet && matches!(play.next, Action::Read) {
            break;
        }
    }
    assert!(play.server.open.is_some_and(|open| open.ask.follow), "{:?}", play.server.asked);
    assert!(play.server.asked.len() <= 4, "{:?}", play.server.asked);
    assert_eq!(play.heard.gaps_before.len(), 0);
}
