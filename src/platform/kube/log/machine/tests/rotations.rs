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

/// The lines with these numbers. Line 5 is longer than the pieces that long lines are delivered in.
fn numbered(numbers: impl IntoIterator<Item = usize>, long: bool) -> String {
    let line = |n: usize| {
        let time = LogTime::from_nanos(1_000_000_000_000 + i64::try_from(n).unwrap() * STEP);
        let rest = if long && n == 5 { "x".repeat(3 * LINE_HELD_MAX_BYTES) } else { String::new() };
        format!("{time} line {n:06}{rest}\n")
    };
    numbers.into_iter().map(line).collect()
}

/// A follower of lines 0 to 14 whose stream left out line 10. So the whole file does not have the newest
/// remembered lines in their order, and all of its lines but the known ones are requested.
fn follower_of_incomplete_stream(long: bool) -> Scenario {
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.on(Event::Opened { ended: false });
    scenario.on(Event::Data(numbered(0..10, long).as_bytes()));
    scenario.on(Event::Complete { ended: false });
    scenario.on(Event::Opened { ended: false });
    scenario.on(Event::Data(numbered((0..10).chain(11..15), long).as_bytes()));
    scenario.on(Event::Broken("cut off".into()));
    // The last lines and the whole file.
    for _ in 0..2 {
        scenario.on(Event::Opened { ended: false });
        scenario.on(Event::Data(numbered(0..15, long).as_bytes()));
    }
    scenario.on(Event::Complete { ended: false });
    scenario.on(Event::Gone("there was no previous run".into()));
    assert!(matches!(scenario.machine.stage, Stage::SkipKnown { .. }), "{:?}", scenario.machine.stage);
    scenario.on(Event::Opened { ended: false });
    scenario
}

impl Scenario {
    /// Answers all requests with `file` until it is followed.
    fn read_file(&mut self, file: &str) {
        for _ in 0..20 {
            match &self.next {
                Action::Open(ask) if ask.previous => self.on(Event::Gone("there was none".into())),
                Action::Open(_) => self.on(Event::Opened { ended: false }),
                Action::Pause(_) => self.on(Event::Resumed { ended: false }),
                Action::Read => {
                    for data in file.as_bytes().chunks(LINE_HELD_MAX_BYTES) {
                        if matches!(self.next, Action::Read) {
                            self.on(Event::Data(data));
                        }
                    }
                    if self.machine.stage.is_live() {
                        return;
                    }
                    if matches!(self.next, Action::Read) {
                        self.on(Event::Complete { ended: false });
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("no end: {:?} {:?}", self.machine.stage, self.next);
    }

    fn numbers(&self) -> Vec<usize> {
        self.received.lines.iter().map(|line| line[5..11].parse().unwrap()).collect()
    }
}

#[test]
fn interrupted_known_lines_are_not_repeated() {
    let before = || (0..10).chain(11..15);
    for interrupted in 0..=15 {
        for again in [None, Some(0), Some(3), Some(12)] {
            for cut in [0, 5] {
                // No line is rotated away; all; all but the last known ones.
                for (first, more) in [(0, 20), (16, 20), (12, 20)] {
                    let mut scenario = follower_of_incomplete_stream(false);
                    for lines in [Some(interrupted), again].into_iter().flatten() {
                        let sent = numbered(0..15, false);
                        let end = sent.split_inclusive('\n').take(lines).map(str::len).sum::<usize>();
                        scenario.on(Event::Data(&sent.as_bytes()[..(end + cut).min(sent.len())]));
                        scenario.on(Event::Broken("cut off".into()));
                        scenario.on(Event::Resumed { ended: false });
                        scenario.on(Event::Opened { ended: false });
                    }
                    scenario.read_file(&numbered(first..more, false));
                    let case = (interrupted, again, first);
                    let read = interrupted.max(again.unwrap_or(0));
                    let took = first <= 10 || read > 10;
                    let expected = before().chain(took.then_some(10)).chain(first.max(15)..more);
                    assert_eq!(scenario.numbers(), expected.collect::<Vec<_>>(), "{case:?}");
                    // One gap before line 10, and one more if the resume point after it was rotated away.
                    let mut gaps = scenario.received.gaps_before.clone();
                    gaps.dedup();
                    let expected = if read > 10 && first >= read { vec![14, 15] } else { vec![14] };
                    assert_eq!(gaps, expected, "{case:?}");
                }
            }
        }
    }
}

#[test]
fn known_line_in_pieces_does_not_join_the_next() {
    let mut scenario = follower_of_incomplete_stream(true);
    scenario.read_file(&numbered(0..20, true));
    // Its pieces cannot be compared, so it comes again.
    let expected = (0..10).chain(11..15).chain([5, 10]).chain(15..20);
    assert_eq!(scenario.numbers(), expected.collect::<Vec<_>>());
}
