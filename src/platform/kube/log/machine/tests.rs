//! The machine reads a log that rotates, whose clock is set back, and whose kubelet fails in every way.

use std::collections::VecDeque;
use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::model::limits::LINE_HELD_MAX_BYTES;
use crate::platform::kube::log::overlap::WINDOW_LINES;

mod outages;
mod polling;
mod rotations;

/// When the container was started. The first lines follow soon enough to show that nothing was rotated.
const STARTED: i64 = 1_001_000_000_000;

/// Message of a kubelet without inotify instances, at the end of a follow.
const CANNOT_FOLLOW: &[u8] = b"failed to create fsnotify watcher: too many open files";

impl LogQuery {
    /// The last lines and all that follow.
    const FOLLOW: Self = Self { follow: true, ..Self::last(WINDOW_LINES as u64) };
}

/// A log as the API serves it: only the newest file, interrupted at any moment.
#[derive(Debug, Default)]
struct Server {
    log: Vec<(i64, String)>,
    /// Index of the first line of the newest file.
    file: usize,
    ended: bool,
    /// The last line has no newline.
    unfinished: bool,
    asked: Vec<LogQuery>,
    open: Option<Open>,
    /// Parts that a lagging kubelet sends first, and whether each was sent before.
    parts: VecDeque<(Range<usize>, bool)>,
    /// Lines of files that such a kubelet left out, and whether it has repeated lines since.
    left_out: Vec<(Range<usize>, bool)>,
    /// The kubelet has no inotify instances.
    exhausted: bool,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    ask: LogQuery,
    /// The next line to be sent.
    next: usize,
}

/// Delivered lines and events.
#[derive(Debug, Default)]
struct Received {
    lines: Vec<String>,
    gaps_before: Vec<usize>,
    last: Option<Position>,
    partial: String,
    /// Number of reports that the log cannot be followed.
    unavailable: usize,
}

/// One step of a random test.
#[derive(Clone, Debug)]
enum Op {
    /// Prints this number of lines, each this many nanoseconds after the previous one.
    Print(usize, i64),
    Rotate,
    /// The response breaks off: whether within a line, and whether the beginning of that line is delivered
    /// first.
    Break(bool, bool),
    /// The response completes, although the run continues.
    Complete,
    /// The kubelet sends a message instead of the lines of the next response.
    Foreign,
    /// Sends all existing lines.
    Send,
    /// The kubelet lags: lines of the present file, of each file that it leaves out, and of the newest one,
    /// and the nanoseconds from each line to the next.
    FallBehind(usize, Vec<usize>, usize, i64),
    /// The node's inotify instances are used up, or available again.
    Exhaust(bool),
}

impl Server {
    fn print(&mut self, count: usize, step: i64) {
        for _ in 0..count {
            let time = self.log.last().map_or(1_000_000_000_000, |(time, _)| *time) + step;
            // Of one width, so that a number that is cut off is not an earlier one.
            self.log.push((time, format!("line {:06}", self.log.len())));
        }
    }

    /// The stream is not read for a while. Then the kubelet opens the newest file once for each rotation.
    fn fall_behind(&mut self, rest: usize, left_out: &[usize], newest: usize, step: i64) {
        let Some(next) = self.open.as_ref().filter(|open| open.ask.follow).map(|open| open.next) else {
            return;
        };
        self.print(rest, step);
        let end = self.log.len();
        for lines in left_out {
            self.print(*lines, step);
        }
        self.file = self.log.len();
        self.print(newest, step);
        self.parts.push_back((next..end, false));
        self.parts.push_back((self.file..self.log.len(), false));
        if !left_out.is_empty() {
            self.left_out.push((end..self.file, false));
            self.parts.extend(left_out.iter().map(|_| (self.file..self.log.len(), true)));
        }
        if let Some(open) = &mut self.open {
            open.next = self.log.len();
        }
    }

    fn open(&mut self, ask: LogQuery) {
        self.asked.push(ask);
        self.parts.clear();
        let last = |lines| self.log.len().saturating_sub(usize::try_from(lines).unwrap());
        let next = ask.tail_lines.map_or(self.file, last).max(self.file);
        self.open = Some(Open { ask, next });
    }

    /// The bytes to send; with `cut`, up to the middle of the last line.
    fn bytes(&mut self, cut: bool) -> Vec<u8> {
        let open = self.open.as_mut().unwrap();
        let mut out = Vec::new();
        let part = self.parts.pop_front();
        if let (Some((_, true)), Some(last)) = (&part, self.left_out.last_mut()) {
            last.1 = true;
        }
        let is_part = part.is_some();
        let lines = part.map_or(open.next..self.log.len(), |(lines, _)| lines);
        for (index, (time, text)) in self.log.iter().enumerate().take(lines.end).skip(lines.start) {
            if open.ask.since_second.is_some_and(|second| *time < second * 1_000_000_000) {
                continue;
            }
            out.extend(format!("{} {text}", LogTime::from_nanos(*time)).bytes());
            if !self.unfinished || index + 1 < self.log.len() {
                out.push(b'\n');
            }
        }
        if !is_part {
            open.next = self.log.len();
        }
        if cut {
            out.pop();
            out.pop();
        }
        out
    }
}

impl Received {
    fn take(&mut self, items: Vec<TailItem>) {
        for item in items {
            match item {
                TailItem::Gap(_) => self.gaps_before.push(self.lines.len()),
                TailItem::FollowUnavailable => self.unavailable += 1,
                TailItem::Interrupted(_) | TailItem::Resumed => panic!("made by no machine"),
                TailItem::Lines(batch) => {
                    for (index, line) in batch.lines.iter().enumerate() {
                        assert!(Some(line.after) > self.last, "positions grow");
                        self.last = Some(line.after);
                        self.partial.push_str(std::str::from_utf8(batch.bytes(index)).unwrap());
                        if line.ends {
                            self.lines.push(std::mem::take(&mut self.partial).trim_end().to_owned());
                        }
                    }
                }
            }
        }
    }

    /// Checks that delivered and lost lines together are the printed ones, in order and without a repeat.
    fn check(&self, printed: &[(i64, String)]) {
        self.check_except(printed, &[]);
    }

    /// The same, except for lines that the kubelet left out: a gap reports them later, once lines were
    /// repeated.
    fn check_except(&self, printed: &[(i64, String)], left_out: &[(Range<usize>, bool)]) {
        let mut expected = 0;
        for (index, line) in self.lines.iter().enumerate() {
            // The rest of a line that was delivered in part may be lost: then a gap follows.
            let is_cut = self.gaps_before.contains(&(index + 1))
                && printed.get(expected).is_some_and(|(_, text)| text != line && text.starts_with(line));
            if is_cut {
                expected += 1;
                continue;
            }
            let at = line.strip_prefix("line ").and_then(|number| number.parse().ok());
            let at: usize = at.unwrap_or_else(|| panic!("{line} is no line: {self:?}"));
            // Between two gaps, the number itself may be cut off.
            let is_between_gaps =
                self.gaps_before.contains(&index) && self.gaps_before.contains(&(index + 1));
            let is_cut_of = |text: &str| line.len() < text.len() && text.starts_with(line);
            let cut = || (expected..printed.len()).find(|at| is_cut_of(&printed[*at].1));
            if at < expected
                && is_between_gaps
                && let Some(cut) = cut()
            {
                expected = cut + 1;
                continue;
            }
            assert!(at < printed.len(), "a line that was printed");
            assert!(at >= expected, "{line} again or out of order, expected {expected}");
            let is_reported_later = |at: usize| {
                left_out.iter().any(|(lines, repeated)| {
                    lines.contains(&at) && (!repeated || self.gaps_before.iter().any(|gap| *gap >= index))
                })
            };
            assert!(
                at == expected || self.gaps_before.contains(&index) || (expected..at).all(is_reported_later),
                "lines {expected} to {at} are missing without a gap (before {index}): {:?}",
                self.gaps_before
            );
            expected = at + 1;
        }
        assert!(
            expected == printed.len() || self.gaps_before.contains(&self.lines.len()),
            "the last {} lines are missing",
            printed.len() - expected
        );
    }
}

/// A machine and the log that it reads.
struct Scenario {
    server: Server,
    machine: Machine,
    next: Action,
    received: Received,
}

impl Scenario {
    fn new(server: Server, from: ReadFrom, follow: bool) -> Self {
        let machine = Machine::new(from, follow, LogTime::from_nanos(STARTED));
        let next = Action::Open(machine.query());
        Self { server, machine, next, received: Received::default() }
    }

    fn on(&mut self, event: Event<'_>) {
        self.next = self.machine.on(event);
        let items = self.machine.take();
        self.received.take(items);
    }

    /// Performs actions until the machine waits for more lines of a follow. Returns `false` once it has
    /// finished.
    fn run_until_idle(&mut self, mut foreign: bool) -> bool {
        let mut polls = 0;
        for _ in 0..100 {
            match &self.next {
                Action::Open(ask) => {
                    let ask = *ask;
                    if ask.previous {
                        self.on(Event::Gone("there was none".into()));
                        continue;
                    }
                    self.server.open(ask);
                    let ended = self.server.ended;
                    self.on(Event::Opened { ended });
                }
                Action::AwaitPoll if polls == 2 => return true,
                Action::Pause(_) | Action::AwaitPoll => {
                    polls += u32::from(matches!(self.next, Action::AwaitPoll));
                    let ended = self.server.ended;
                    self.on(Event::Resumed { ended });
                }
                Action::Finish => return false,
                Action::Fail(error) => panic!("{error}"),
                Action::Read => {
                    let ask = self.server.open.unwrap().ask;
                    if std::mem::take(&mut foreign) {
                        self.on(Event::Data(b"unable to retrieve container logs for containerd://x"));
                        let ended = self.server.ended;
                        self.on(Event::Complete { ended });
                        continue;
                    }
                    let bytes = self.server.bytes(false);
                    if !bytes.is_empty() {
                        self.on(Event::Data(&bytes));
                        continue;
                    }
                    if ask.follow && self.server.exhausted {
                        self.on(Event::Data(CANNOT_FOLLOW));
                    }
                    if !ask.follow || self.server.ended || self.server.exhausted {
                        let ended = self.server.ended;
                        self.on(Event::Complete { ended });
                    } else if matches!(
                        self.machine.idle_verdict(),
                        IdleVerdict::Unplaced | IdleVerdict::Trial
                    ) {
                        self.on(Event::Idle);
                    } else {
                        return true;
                    }
                }
            }
        }
        panic!("no end: {:?} {:?}", self.machine.stage, self.next);
    }

    /// Sends all existing lines, if a response is open.
    fn send(&mut self, cut: bool) {
        if matches!(self.next, Action::Read) {
            let bytes = self.server.bytes(cut);
            if !bytes.is_empty() {
                self.on(Event::Data(&bytes));
            }
        }
    }

    fn op(&mut self, op: &Op) {
        match op {
            Op::Print(count, step) => self.server.print(*count, *step),
            Op::Rotate => {
                // A connected follower loses nothing. And a loss before the first line that is read cannot be
                // noticed.
                let follows =
                    matches!(self.next, Action::Read) && self.server.open.is_some_and(|open| open.ask.follow);
                if follows || self.received.lines.is_empty() {
                    self.run_until_idle(false);
                }
                self.server.file = self.server.log.len();
            }
            Op::Break(cut, waits) => {
                self.send(*cut);
                if *waits && matches!(self.next, Action::Read) && self.machine.holds_unfinished() {
                    self.on(Event::Unfinished);
                }
                if matches!(self.next, Action::Read) {
                    self.on(Event::Broken("cut off".into()));
                }
            }
            Op::Complete => {
                self.send(false);
                if matches!(self.next, Action::Read) && self.server.open.unwrap().ask.follow {
                    self.on(Event::Complete { ended: false });
                }
            }
            Op::Foreign => {
                if matches!(self.next, Action::Read) {
                    self.on(Event::Broken("cut off".into()));
                }
                if matches!(self.next, Action::Open(_) | Action::Pause(_)) && self.machine.start().is_some() {
                    self.run_until_idle(true);
                }
            }
            Op::Send => {
                self.run_until_idle(false);
            }
            Op::FallBehind(rest, left_out, newest, step) => {
                // Only a kubelet that watches the file can lag. And a loss before the first line cannot be
                // noticed.
                if self.run_until_idle(false)
                    && matches!(self.next, Action::Read)
                    && !self.received.lines.is_empty()
                {
                    self.server.fall_behind(*rest, left_out, *newest, *step);
                }
            }
            Op::Exhaust(exhausted) => self.server.exhausted = *exhausted,
        }
    }

    fn end(&mut self) {
        self.server.ended = true;
        if matches!(self.next, Action::Read) {
            self.run_until_idle(false);
        }
        while self.run_until_idle(false) {}
    }
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0_usize..40, prop_oneof![Just(0_i64), 1_i64..5, Just(2_000_000_000), Just(-3_600_000_000_000_i64)])
            .prop_map(|(count, step)| Op::Print(count, step)),
        1 => (1_usize..4).prop_map(|times| Op::Print(times * WINDOW_LINES / 2, 1)),
        1 => Just(Op::Rotate),
        2 => any::<(bool, bool)>().prop_map(|(cut, waits)| Op::Break(cut, waits)),
        1 => Just(Op::Complete),
        1 => Just(Op::Foreign),
        4 => Just(Op::Send),
        2 => rotations::fall_behind(),
        1 => any::<bool>().prop_map(Op::Exhaust),
    ]
}

/// Number of random cases: `LEASEMUX_TEST_SEEDS`, or a few.
fn cases() -> u32 {
    std::env::var("LEASEMUX_TEST_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    /// In any sequence of failures, delivered and lost lines add up.
    #[test]
    fn it_adds_up(ops in proptest::collection::vec(op(), 1..30)) {
        let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
        scenario.run_until_idle(false);
        for op in &ops {
            scenario.op(op);
        }
        scenario.end();
        scenario.received.check_except(&scenario.server.log, &scenario.server.left_out);
        if !ops.iter().any(|op| matches!(op, Op::Rotate | Op::FallBehind(..))) {
            prop_assert_eq!(&scenario.received.gaps_before, &Vec::<usize>::new());
        }
    }

    /// Positions depend on the content only, wherever a read begins, and a read resumes exactly after each of
    /// them.
    #[test]
    fn random_start_gives_same_positions(
        steps in proptest::collection::vec(prop_oneof![3 => Just(0_i64), 3 => 1_i64..3, 1 => -3_i64..0], 1..40),
        last in 0_u64..45,
    ) {
        let mut server = Server::default();
        for step in &steps {
            server.print(1, *step);
        }
        let mut at = Position::START;
        let positions: Vec<Position> = server.log.iter().map(|(time, _)| {
            at = at.after_line(LogTime::from_nanos(*time));
            at
        }).collect();
        let log = server.log.clone();
        for (index, position) in positions.iter().enumerate() {
            let server = Server { log: log.clone(), ..Server::default() };
            let mut scenario = Scenario::new(server, ReadFrom::After(*position), false);
            scenario.run_until_idle(false);
            prop_assert_eq!(scenario.machine.start(), Some(*position));
            prop_assert_eq!(scenario.received.lines.len(), log.len() - index - 1);
            prop_assert!(scenario.received.last.is_none() || scenario.received.last == positions.last().copied());
        }
        let mut scenario = Scenario::new(server, ReadFrom::Last(last), false);
        scenario.run_until_idle(false);
        let expected = log.len().saturating_sub(usize::try_from(last).unwrap());
        let start = expected.checked_sub(1).map_or(Position::START, |index| positions[index]);
        prop_assert_eq!((scenario.machine.start(), scenario.received.lines.len()), (Some(start), log.len() - expected));
    }

    /// A position is searched in any number of last lines, some of which are late by less than a second.
    #[test]
    fn search_in_last_lines_finds_exact_position(
        lines in proptest::collection::vec((0_i64..3, 0_i64..3), 1..40),
        last in 1_u64..45,
    ) {
        let mut base = 1_000_000_000_000;
        let log: Vec<(i64, String)> = lines.iter().enumerate().map(|(index, (step, late))| {
            base += step * 400_000_000;
            (base - late * 400_000_000, format!("line {index:06}"))
        }).collect();
        let mut at = Position::START;
        for (index, (time, _)) in log.iter().enumerate() {
            at = at.after_line(LogTime::from_nanos(*time));
            let server = Server { log: log.clone(), ..Server::default() };
            let mut scenario = Scenario::new(server, ReadFrom::After(at), false);
            if let Stage::FindStart { last: searched, .. } = &mut scenario.machine.stage {
                *searched = Some(last);
            }
            scenario.next = Action::Open(scenario.machine.query());
            scenario.run_until_idle(false);
            prop_assert_eq!(scenario.machine.start(), Some(at));
            prop_assert_eq!(scenario.received.lines.len(), log.len() - index - 1);
            prop_assert_eq!(scenario.received.gaps_before.len(), 0);
        }
    }
}

#[test]
fn unfinished_line_is_delivered_once_across_a_cut() {
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(3, 1);
    scenario.run_until_idle(false);
    assert!(!scenario.machine.holds_unfinished());
    scenario.server.print(1, 1);
    scenario.send(true);
    assert!(scenario.machine.holds_unfinished());
    scenario.on(Event::Unfinished);
    // The beginning of "line 000003".
    let at = scenario.received.last.unwrap();
    assert_eq!((scenario.received.lines.len(), at.offset), (3, 10));
    scenario.on(Event::Broken("cut off".into()));
    scenario.end();
    scenario.received.check(&scenario.server.log);
    assert_eq!(scenario.received.gaps_before, Vec::<usize>::new());
}

/// Ways in which a response ends within a line.
const INTERRUPTIONS: [fn(&mut Scenario); 3] = [
    |scenario| scenario.on(Event::Broken("cut off".into())),
    |scenario| scenario.on(Event::Complete { ended: false }),
    |scenario| scenario.on(Event::Unreachable("connection refused".into())),
];

/// A follower that has `known` lines, whose log then rotated. The first line of the new file, `step`
/// nanoseconds later, was delivered in part when the response ended.
fn cut_after_rotation(known: usize, step: i64, interrupt: fn(&mut Scenario)) -> Scenario {
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(known, 0);
    scenario.run_until_idle(false);
    scenario.op(&Op::Rotate);
    scenario.server.print(1, step);
    scenario.send(true);
    scenario.on(Event::Unfinished);
    assert_eq!((scenario.received.lines.len(), scenario.received.partial.as_str()), (known, "line 00000"));
    interrupt(&mut scenario);
    scenario
}

#[test]
fn partial_line_in_new_file_is_continued() {
    for interrupt in INTERRUPTIONS {
        for (known, step, more) in [(1, 0, 0), (1, 1, 0), (3, 0, 4), (3, 1, 4)] {
            let mut scenario = cut_after_rotation(known, step, interrupt);
            scenario.server.print(more, 0);
            scenario.end();
            scenario.received.check(&scenario.server.log);
            // No known line precedes it, so it may be another line with the same time and beginning.
            assert_eq!(
                (scenario.received.lines.len(), scenario.received.gaps_before),
                (known + 1 + more, vec![known])
            );
        }
    }
}

#[test]
fn partial_line_still_unfinished_in_new_file_is_continued() {
    for interrupt in INTERRUPTIONS {
        let mut scenario = cut_after_rotation(1, 0, interrupt);
        scenario.server.unfinished = true;
        scenario.run_until_idle(false);
        assert_eq!(scenario.received.lines.len(), 1);
        scenario.server.unfinished = false;
        scenario.op(&Op::Break(false, false));
        scenario.end();
        scenario.received.check(&scenario.server.log);
        assert_eq!(scenario.received.lines, ["line 000000", "line 000001"]);
    }
}

#[test]
fn partial_line_rotated_away_is_ended_before_gap() {
    for interrupt in INTERRUPTIONS {
        // Another time; the same time and beginning, which cannot be told apart; no line.
        for (printed, step, expected) in [
            (1, 1, &["line 000000", "line 00000", "line 000002"][..]),
            (1, 0, &["line 000000", "line 000002"]),
            (0, 0, &["line 000000", "line 00000"]),
        ] {
            let mut scenario = cut_after_rotation(1, 1, interrupt);
            scenario.server.file = scenario.server.log.len();
            scenario.server.print(printed, step);
            scenario.end();
            scenario.received.check(&scenario.server.log);
            assert_eq!(scenario.received.lines, expected);
        }
        // The same time and another beginning.
        let mut scenario = cut_after_rotation(1, 1, interrupt);
        scenario.server.file = scenario.server.log.len();
        let time = scenario.server.log[1].0;
        scenario.server.log.push((time, "another line".into()));
        scenario.end();
        assert_eq!(
            (scenario.received.lines, scenario.received.gaps_before),
            (vec!["line 000000".into(), "line 00000".into(), "another line".into()], vec![2])
        );
    }
}

#[test]
fn long_partial_line_in_new_file_is_continued() {
    // Longer than the pieces that long lines are delivered in.
    for (len, cut) in
        [(3, 1), (2, 2), (3, 2)].map(|(len, cut)| (len * LINE_HELD_MAX_BYTES + 5, cut * LINE_HELD_MAX_BYTES))
    {
        for other in [false, true] {
            let (mut scenario, time) =
                (Scenario::new(Server::default(), ReadFrom::Start, true), 1_000_000_000_000);
            scenario.server.print(1, 0);
            scenario.run_until_idle(false);
            scenario.op(&Op::Rotate);
            scenario.server.log.push((time, "x".repeat(len)));
            let bytes = scenario.server.bytes(false);
            scenario.on(Event::Data(&bytes[..36 + cut]));
            scenario.on(Event::Unfinished);
            scenario.on(Event::Broken("cut off".into()));
            if other {
                scenario.server.log[1].1.replace_range(..1, "y");
            }
            scenario.end();
            assert_eq!(scenario.received.lines.len(), 2 + usize::from(other));
            assert_eq!(scenario.received.gaps_before, [1 + usize::from(other)]);
            assert!(other || scenario.received.lines[1].len() == len);
        }
    }
}

#[test]
fn clock_set_back_hides_no_lines() {
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(100, 1_000_000);
    scenario.run_until_idle(false);
    for step in [-3_600_000_000_000, 1, 1, -3_600_000_000_000] {
        scenario.server.print(1, step);
        scenario.server.print(10, 1_000_000);
        scenario.op(&Op::Break(true, false));
        scenario.run_until_idle(false);
    }
    scenario.end();
    scenario.received.check(&scenario.server.log);
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (144, 0));
    assert!(scenario.server.asked.iter().all(|ask| ask.since_second.is_none()));
}

#[test]
fn repeats_after_rotation_are_dropped_with_gap() {
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(100, 1_000_000);
    scenario.run_until_idle(false);
    // The stream goes back, as that of a lagging kubelet does.
    scenario.server.open.as_mut().unwrap().next = 70;
    scenario.server.print(5, 1_000_000);
    scenario.run_until_idle(false);
    assert_eq!(scenario.received.lines.len(), 105);
    assert_eq!(scenario.received.gaps_before, [100]);
}

#[test]
fn lines_rotated_away_meanwhile_are_a_gap() {
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(10, 1_000_000);
    scenario.run_until_idle(false);
    scenario.on(Event::Broken("cut off".into()));
    scenario.server.print(10, 1_000_000);
    scenario.server.file = 15;
    scenario.run_until_idle(false);
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.as_slice()), (15, &[10][..]));
    scenario.end();
    scenario.received.check(&scenario.server.log);
}

#[test]
fn last_line_without_newline_comes_at_end_of_run() {
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(3, 1_000_000);
    scenario.server.unfinished = true;
    scenario.run_until_idle(false);
    assert_eq!(scenario.received.lines.len(), 2);
    scenario.end();
    assert_eq!(scenario.received.lines.len(), 3);
}

#[test]
fn kubelet_message_is_not_delivered() {
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(3, 1_000_000);
    scenario.run_until_idle(false);
    scenario.op(&Op::Foreign);
    scenario.server.print(3, 1_000_000);
    scenario.end();
    scenario.received.check(&scenario.server.log);
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (6, 0));
    // A response that has nothing else is a failure.
    let mut machine = Machine::new(ReadFrom::Start, false, LogTime::from_nanos(0));
    machine.on(Event::Opened { ended: true });
    machine.on(Event::Data(b"unable to retrieve container logs for containerd://x"));
    assert!(matches!(machine.on(Event::Complete { ended: true }), Action::Fail(Error::Unavailable(_))));
    assert_eq!(machine.take(), vec![]);
}

#[test]
fn last_lines_of_long_log_need_no_whole_read() {
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Last(5), true);
    scenario.server.print(3 * WINDOW_LINES, 1_000_000);
    scenario.run_until_idle(false);
    assert_eq!(scenario.received.lines.len(), 5);
    assert!(!scenario.server.asked.contains(&LogQuery::WHOLE), "{:?}", scenario.server.asked);
    // Unless the clock was set back: then positions count from an earlier line.
    let mut server = Server::default();
    server.print(10, 1_000_000);
    server.print(1, -5_000_000_000);
    server.print(3 * WINDOW_LINES, 1_000);
    let mut scenario = Scenario::new(server, ReadFrom::Last(5), true);
    scenario.run_until_idle(false);
    assert_eq!(scenario.received.lines.len(), 5);
    let at = Position { time: LogTime::from_nanos(1_000_010_000_000), ordinal: 0, offset: 0 };
    let behind = scenario.received.last.unwrap();
    assert_eq!((behind.time, behind.ordinal), (at.time, 2 + 3 * WINDOW_LINES as u64));
}

/// A read after line `index` of a log, which knows of the lines that were printed by then. Returns the
/// scenario, idle, and the number of lines after that line.
fn resume_near_end(server: Server, index: usize) -> (Scenario, usize) {
    let mut at = Position::START;
    for (time, _) in &server.log[..=index] {
        at = at.after_line(LogTime::from_nanos(*time));
    }
    let count = server.log.len() - index - 1;
    let until = server.log.iter().map(|(time, _)| LogTime::from_nanos(*time)).max().unwrap();
    let machine = Machine::new(ReadFrom::After(at), true, LogTime::from_nanos(STARTED))
        .with_lines_after(LinesAfter { count: count as u64, until });
    let next = Action::Open(machine.query());
    let mut scenario = Scenario { server, machine, next, received: Received::default() };
    scenario.run_until_idle(false);
    (scenario, count)
}

#[test]
fn position_among_last_lines_needs_no_whole_read() {
    let long = 10 * WINDOW_LINES;
    let mut server = Server::default();
    server.print(long, 1_000_000);
    let (scenario, count) = resume_near_end(server, long - 5_000);
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (count, 0));
    assert_eq!(scenario.received.lines[0], "line 015481");
    let asked = &scenario.server.asked;
    // 4,999 lines in 4,999 ms, so 3,000 for three seconds.
    assert_eq!(asked[0].tail_lines, Some(4_999 + 3_000));
    assert!(asked[0].checks_run && !asked.iter().any(|ask| ask.tail_lines.is_none()), "{asked:?}");
}

#[test]
fn position_not_among_last_lines_is_searched_in_whole_file() {
    let long = 10 * WINDOW_LINES;
    // The lines have grown by more than the margin since they were counted; lines are too close to trust the
    // first one; all have the same time; the clock was set back.
    let print = |steps: &[(usize, i64)]| {
        let mut server = Server::default();
        for (count, step) in steps {
            server.print(*count, *step);
        }
        server
    };
    for (server, index, seen) in [
        (print(&[(long, 1_000_000)]), 1_000, long - WINDOW_LINES),
        (print(&[(long, 1_000)]), long - 100, long),
        (print(&[(1, 1), (long, 0)]), long - 100, long),
        (print(&[(1_000, 1_000_000), (1, -5_000_000_000), (long, 1_000)]), long - 100, long),
    ] {
        let late = server.log[seen..].to_vec();
        let known = Server { log: server.log[..seen].to_vec(), ..Server::default() };
        let mut at = Position::START;
        for (time, _) in &known.log[..=index] {
            at = at.after_line(LogTime::from_nanos(*time));
        }
        let until = LogTime::from_nanos(known.log.iter().map(|(time, _)| *time).max().unwrap());
        // Counted long ago: the response begins after the position.
        let count = if late.is_empty() { (seen - index) as u64 } else { 1 };
        let machine = Machine::new(ReadFrom::After(at), true, LogTime::from_nanos(STARTED))
            .with_lines_after(LinesAfter { count, until });
        let next = Action::Open(machine.query());
        let mut scenario = Scenario { server, machine, next, received: Received::default() };
        scenario.run_until_idle(false);
        let expected = scenario.server.log.len() - index - 1;
        assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (expected, 0));
        assert_eq!(scenario.machine.start(), Some(at));
        assert!(scenario.server.asked[0].tail_lines.is_some());
        assert_eq!(scenario.server.asked[1], LogQuery { checks_run: true, ..LogQuery::WHOLE });
    }
}

#[test]
fn position_in_rotated_file_is_gap_after_search_in_last_lines() {
    let mut server = Server::default();
    server.print(4 * WINDOW_LINES, 1_000_000);
    server.file = 3 * WINDOW_LINES;
    let (scenario, _) = resume_near_end(server, 100);
    assert_eq!(scenario.received.gaps_before, [0]);
    assert_eq!(scenario.received.lines.len(), WINDOW_LINES);
}

#[test]
fn position_at_time_of_rotated_file_is_gap() {
    // Two lines of a container that has just been started, and then lines of one time across a rotation.
    let mut server = Server::default();
    server.print(2, 1);
    server.print(10, 0);
    let [first, second] = [0, 1].map(|index: usize| LogTime::from_nanos(server.log[index].0));
    // In the new file the position is that of another line.
    for (file, position, oldest_read, gaps) in [
        (6, Position { time: second, ordinal: 4, offset: 0 }, Some(first), &[0][..]),
        (1, Position { time: second, ordinal: 1, offset: 0 }, Some(first), &[0]),
        (0, Position { time: first, ordinal: 1, offset: 0 }, Some(first), &[]),
        (0, Position { time: first, ordinal: 1, offset: 0 }, None, &[]),
    ] {
        let server = Server { log: server.log.clone(), file, ..Server::default() };
        let machine = Machine::new(ReadFrom::After(position), true, LogTime::from_nanos(STARTED))
            .with_oldest_read(oldest_read);
        let next = Action::Open(machine.query());
        let mut scenario = Scenario { server, machine, next, received: Received::default() };
        scenario.run_until_idle(false);
        assert_eq!(scenario.received.gaps_before, gaps, "{file} {position:?} {oldest_read:?}");
    }
}

#[test]
fn broken_search_in_last_lines_is_an_error() {
    let mut server = Server::default();
    server.print(4 * WINDOW_LINES, 1_000_000);
    let at = Position { time: LogTime::from_nanos(server.log[100].0), ordinal: 1, offset: 0 };
    let mut machine = Machine::new(ReadFrom::After(at), true, LogTime::from_nanos(STARTED))
        .with_lines_after(LinesAfter { count: 50, until: at.time });
    machine.on(Event::Opened { ended: false });
    server.open(machine.query());
    let bytes = server.bytes(false);
    // Later lines, which are not delivered: the position is searched in the whole file.
    assert!(matches!(machine.on(Event::Data(&bytes)), Action::Open(query) if query.tail_lines.is_none()));
    assert_eq!((machine.start(), machine.take()), (None, vec![]));
    assert!(matches!(machine.on(Event::Broken("cut off".into())), Action::Fail(Error::Unavailable(_))));
}

#[test]
fn silent_stream_with_newer_last_line_is_reopened() {
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(3, 1_000_000);
    scenario.run_until_idle(false);
    assert_eq!(scenario.machine.idle_verdict(), IdleVerdict::Quiet);
    let same = probe(&scenario.server);
    scenario.on(Event::Probed(same.as_bytes()));
    assert!(matches!(scenario.next, Action::Read));
    scenario.server.print(1, 1_000_000);
    let newer = probe(&scenario.server);
    scenario.on(Event::Probed(newer.as_bytes()));
    assert!(matches!(scenario.next, Action::Open(LogQuery { follow: true, .. })));
    scenario.run_until_idle(false);
    assert_eq!(scenario.received.lines.len(), 4);
}

#[test]
fn log_removed_after_its_end_is_no_loss() {
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(3, 1_000_000);
    scenario.run_until_idle(false);
    scenario.on(Event::Complete { ended: false });
    scenario.on(Event::Resumed { ended: true });
    scenario.on(Event::Gone("pod not found".into()));
    assert!(matches!(scenario.next, Action::Finish));
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (3, 0));
    // Nor if the kubelet removed it before the pod was gone, and said so, whether the run was known to have
    // ended or not.
    for known in [false, true] {
        let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
        scenario.server.print(3, 1_000_000);
        scenario.run_until_idle(false);
        scenario.on(Event::Complete { ended: false });
        for ended in [false, known] {
            scenario.on(Event::Resumed { ended });
            scenario.on(Event::Opened { ended });
            scenario.on(Event::Data(b"unable to retrieve container logs for containerd://x"));
            scenario.on(Event::Complete { ended });
        }
        scenario.on(Event::Resumed { ended: known });
        scenario.on(Event::Gone("pod not found".into()));
        assert!(matches!(scenario.next, Action::Finish));
        assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (3, 0));
    }
    // But the end is unknown after a broken connection, and while a kubelet cannot be reached.
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(3, 1_000_000);
    scenario.run_until_idle(false);
    scenario.on(Event::Complete { ended: false });
    scenario.on(Event::Resumed { ended: false });
    scenario.on(Event::Unreachable("nobody is there".into()));
    scenario.on(Event::Resumed { ended: false });
    scenario.on(Event::Opened { ended: false });
    scenario.on(Event::Data(b"unable to retrieve container logs for containerd://x"));
    scenario.on(Event::Complete { ended: false });
    scenario.on(Event::Resumed { ended: true });
    scenario.on(Event::Gone("pod not found".into()));
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (3, 1));
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(3, 1_000_000);
    scenario.run_until_idle(false);
    scenario.on(Event::Broken("reset".into()));
    scenario.on(Event::Resumed { ended: true });
    scenario.on(Event::Gone("pod not found".into()));
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (3, 1));
    // Also if an earlier response was complete and the current one was left without an end.
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(3, 1_000_000);
    scenario.run_until_idle(false);
    scenario.op(&Op::Complete);
    scenario.run_until_idle(false);
    scenario.on(Event::Resumed { ended: true });
    scenario.on(Event::Gone("pod not found".into()));
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (3, 1));
}

#[test]
fn log_removed_after_its_end_was_read_late_is_a_gap() {
    for is_before in [true, false] {
        let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
        scenario.server.print(3, 1_000_000);
        scenario.run_until_idle(false);
        if is_before {
            scenario.machine.delayed();
        }
        scenario.on(Event::Complete { ended: false });
        if !is_before {
            scenario.machine.delayed();
        }
        scenario.on(Event::Resumed { ended: true });
        scenario.on(Event::Gone("pod not found".into()));
        assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (3, 1));
    }
    // A later response was read in time.
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(3, 1_000_000);
    scenario.run_until_idle(false);
    scenario.machine.delayed();
    scenario.op(&Op::Complete);
    scenario.run_until_idle(false);
    scenario.on(Event::Complete { ended: false });
    scenario.on(Event::Resumed { ended: true });
    scenario.on(Event::Gone("pod not found".into()));
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (3, 0));
}

/// The response to a probe.
fn probe(server: &Server) -> String {
    let (time, text) = server.log.last().unwrap();
    format!("{} {text}\n", LogTime::from_nanos(*time))
}

#[test]
fn unread_log_is_read_from_its_first_line() {
    // The stream is left after a probe, or at the end of the run.
    for probes in [true, false] {
        let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
        scenario.run_until_idle(false);
        scenario.server.print(3 * WINDOW_LINES, 1_000);
        let last = probe(&scenario.server);
        scenario.server.ended = !probes;
        scenario.on(if probes { Event::Probed(last.as_bytes()) } else { Event::Resumed { ended: true } });
        scenario.run_until_idle(false);
        assert_eq!(
            (scenario.received.lines.len(), scenario.received.gaps_before.len()),
            (3 * WINDOW_LINES, 0)
        );
    }
    // The same after a rotation, when no line is remembered: the lines before the next rotation are gone.
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(10, 1_000);
    scenario.run_until_idle(false);
    scenario.op(&Op::Break(false, false));
    scenario.server.file = 10;
    scenario.run_until_idle(false);
    assert_eq!(scenario.received.gaps_before, [10]);
    scenario.server.print(10, 1_000);
    scenario.server.file = 15;
    let last = probe(&scenario.server);
    scenario.on(Event::Probed(last.as_bytes()));
    scenario.run_until_idle(false);
    scenario.end();
    scenario.received.check(&scenario.server.log);
    assert_eq!(scenario.received.gaps_before, [10, 10]);
}

#[test]
fn response_broken_before_first_line_changes_nothing() {
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(10, 1_000);
    scenario.run_until_idle(false);
    // The clock is set back, and the file has lines in another order than they were read in.
    scenario.op(&Op::Break(false, false));
    scenario.server.log.swap(3, 9);
    scenario.server.print(5, -3_600_000_000_000);
    while !matches!(scenario.machine.stage, Stage::SkipKnown { gap: RotationGap::Unopened, .. }) {
        match &scenario.next {
            Action::Open(ask) => {
                let ask = *ask;
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
            Action::Pause(_) | Action::AwaitPoll => scenario.on(Event::Resumed { ended: false }),
            Action::Finish | Action::Fail(_) => panic!(),
        }
    }
    scenario.on(Event::Opened { ended: false });
    scenario.on(Event::Broken("cut off".into()));
    scenario.run_until_idle(false);
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.as_slice()), (15, &[10][..]));
}
