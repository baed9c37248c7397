//! The machine against a log that rotates, whose clock goes back, and that is served badly.

use std::collections::VecDeque;
use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::model::limits::LINE_HELD_MAX_BYTES;
use crate::platform::Error;
use crate::platform::kube::log::overlap::WINDOW_LINES;

mod outages;
mod rotations;
mod unfollowed;

/// When the container was started: within the time after it that its first lines show that nothing was rotated.
const STARTED: i64 = 1_001_000_000_000;

/// The end of a follow by a kubelet without inotify instances.
const CANNOT_FOLLOW: &[u8] = b"failed to create fsnotify watcher: too many open files";

/// A log as the API serves it: only the newest file, cut off at any moment.
#[derive(Debug, Default)]
struct Server {
    log: Vec<(i64, String)>,
    /// Where the newest file begins.
    file: usize,
    ended: bool,
    /// The last line has no newline.
    unfinished: bool,
    asked: Vec<LogQuery>,
    open: Option<Open>,
    /// What a kubelet that fell behind sends first, part by part, and whether the part was sent before.
    behind: VecDeque<(Range<usize>, bool)>,
    /// Lines of files that such a kubelet left out, and whether it has sent something again since.
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

/// What the reader was handed.
#[derive(Debug, Default)]
struct Heard {
    lines: Vec<String>,
    gaps_before: Vec<usize>,
    last: Option<Position>,
    partial: String,
    /// How often it was reported that the log cannot be followed.
    unfollowed: usize,
}

/// What happens next.
#[derive(Clone, Debug)]
enum Op {
    /// So many lines, each so many nanoseconds after the one before.
    Print(usize, i64),
    Rotate,
    /// The response at hand breaks off; perhaps within a line.
    /// `cut` within the last line, and whether its beginning is delivered first.
    Break(bool, bool),
    /// The response at hand completes, though the run goes on.
    Complete,
    /// The kubelet says something instead of the lines of the next response.
    Foreign,
    /// Everything that is there is sent.
    Send,
    /// The kubelet falls behind: lines of the present file, of each file that it leaves out, and of the newest one, each so many
    /// nanoseconds after the one before.
    FallBehind(usize, Vec<usize>, usize, i64),
    /// The node's inotify instances are used up, or there are some again.
    Exhaust(bool),
}

impl Server {
    fn print(&mut self, count: usize, step: i64) {
        for _ in 0..count {
            let time = self.log.last().map_or(1_000_000_000_000, |(time, _)| *time) + step;
            self.log.push((time, format!("line {}", self.log.len())));
        }
    }

    /// The stream at hand is not read for a while; then the kubelet opens the newest file once for each rotation.
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
        self.behind.push_back((next..end, false));
        self.behind.push_back((self.file..self.log.len(), false));
        if !left_out.is_empty() {
            self.left_out.push((end..self.file, false));
            self.behind.extend(left_out.iter().map(|_| (self.file..self.log.len(), true)));
        }
        if let Some(open) = &mut self.open {
            open.next = self.log.len();
        }
    }

    fn open(&mut self, ask: LogQuery) {
        self.asked.push(ask);
        self.behind.clear();
        let last = |lines| self.log.len().saturating_sub(usize::try_from(lines).unwrap());
        let next = ask.tail_lines.map_or(self.file, last).max(self.file);
        self.open = Some(Open { ask, next });
    }

    /// What there is to send, `cut` within the last line.
    fn bytes(&mut self, cut: bool) -> Vec<u8> {
        let open = self.open.as_mut().unwrap();
        let mut out = Vec::new();
        let part = self.behind.pop_front();
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

impl Heard {
    fn take(&mut self, items: Vec<TailItem>) {
        for item in items {
            match item {
                TailItem::Gap(_) => self.gaps_before.push(self.lines.len()),
                TailItem::FollowUnavailable => self.unfollowed += 1,
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

    /// Delivered and reported as missing together are what was printed from the first line on, in order, without a repeat.
    fn check(&self, printed: &[(i64, String)]) {
        self.check_but(printed, &[]);
    }

    /// The same, but for lines that the kubelet left out in silence: a gap reports them later, once something was sent again.
    fn check_but(&self, printed: &[(i64, String)], left_out: &[(Range<usize>, bool)]) {
        let mut expected = 0;
        for (index, line) in self.lines.iter().enumerate() {
            // Of a line that was delivered as far as it came the rest may be lost, and a gap follows.
            let is_cut = self.gaps_before.contains(&(index + 1))
                && printed.get(expected).is_some_and(|(_, text)| text != line && text.starts_with(line));
            if is_cut {
                expected += 1;
                continue;
            }
            let at = line.strip_prefix("line ").and_then(|number| number.parse().ok());
            let at: usize = at.unwrap_or_else(|| panic!("{line} is no line: {self:?}"));
            assert!(at < printed.len(), "a line that was printed");
            assert!(at >= expected, "{line} again or out of order, expected {expected}");
            let is_told_later = |at: usize| {
                left_out.iter().any(|(lines, repeated)| {
                    lines.contains(&at) && (!repeated || self.gaps_before.iter().any(|gap| *gap >= index))
                })
            };
            assert!(
                at == expected || self.gaps_before.contains(&index) || (expected..at).all(is_told_later),
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

/// A reader and what it reads.
struct Play {
    server: Server,
    machine: Machine,
    next: Action,
    heard: Heard,
}

impl Play {
    fn new(server: Server, from: ReadFrom, follow: bool) -> Self {
        let machine = Machine::new(from, follow, LogTime::from_nanos(STARTED));
        let next = Action::Ask(machine.ask());
        Self { server, machine, next, heard: Heard::default() }
    }

    fn on(&mut self, event: Event<'_>) {
        self.next = self.machine.on(event);
        let items = self.machine.take();
        self.heard.take(items);
    }

    /// Lets the reader do what it wants to, until it waits for more of a follow or is done.
    fn settle(&mut self, mut foreign: bool) -> bool {
        let mut polls = 0;
        for _ in 0..100 {
            match &self.next {
                Action::Ask(ask) => {
                    let ask = *ask;
                    if ask.before {
                        self.on(Event::Gone("there was none".into()));
                        continue;
                    }
                    self.server.open(ask);
                    let ended = self.server.ended;
                    self.on(Event::Opened { ended });
                }
                Action::Pause(POLL_EVERY) if polls == 2 => return true,
                Action::Pause(pause) => {
                    polls += u32::from(*pause == POLL_EVERY);
                    let ended = self.server.ended;
                    self.on(Event::Woken { ended });
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
                    } else if matches!(self.machine.silence(), IdleVerdict::Unplaced | IdleVerdict::Trial) {
                        self.on(Event::Silent);
                    } else {
                        return true;
                    }
                }
            }
        }
        panic!("does not settle: {:?} {:?}", self.machine.stage, self.next);
    }

    /// What there is, if a response is open.
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
                // A connected follower loses nothing, and what is gone of a log is unknown while no line of it was read.
                let follows =
                    matches!(self.next, Action::Read) && self.server.open.is_some_and(|open| open.ask.follow);
                if follows || self.heard.lines.is_empty() {
                    self.settle(false);
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
                if matches!(self.next, Action::Ask(_) | Action::Pause(_)) && self.machine.start().is_some() {
                    self.settle(true);
                }
            }
            Op::Send => {
                self.settle(false);
            }
            Op::FallBehind(rest, left_out, newest, step) => {
                // One that has come so far as to watch the file. What is gone of a log is unknown while no line of it was read.
                if self.settle(false) && matches!(self.next, Action::Read) && !self.heard.lines.is_empty() {
                    self.server.fall_behind(*rest, left_out, *newest, *step);
                }
            }
            Op::Exhaust(exhausted) => self.server.exhausted = *exhausted,
        }
    }

    fn end(&mut self) {
        self.server.ended = true;
        if matches!(self.next, Action::Read) {
            self.settle(false);
        }
        while self.settle(false) {}
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

/// How many random lives: a few by default, more if `LEASEMUX_TEST_SEEDS` says so.
fn cases() -> u32 {
    std::env::var("LEASEMUX_TEST_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    /// Whatever happens: what is delivered and what is reported as missing add up.
    #[test]
    fn it_adds_up(ops in proptest::collection::vec(op(), 1..30)) {
        let mut play = Play::new(Server::default(), ReadFrom::Start, true);
        play.settle(false);
        for op in &ops {
            play.op(op);
        }
        play.end();
        play.heard.check_but(&play.server.log, &play.server.left_out);
        if !ops.iter().any(|op| matches!(op, Op::Rotate | Op::FallBehind(..))) {
            prop_assert_eq!(&play.heard.gaps_before, &Vec::<usize>::new());
        }
    }

    /// Positions are those that the content gives, wherever a reading begins, and one goes on behind each of them exactly.
    #[test]
    fn positions_do_not_depend_on_where_a_reading_begins(
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
            let mut play = Play::new(server, ReadFrom::After(*position), false);
            play.settle(false);
            prop_assert_eq!(play.machine.start(), Some(*position));
            prop_assert_eq!(play.heard.lines.len(), log.len() - index - 1);
            prop_assert!(play.heard.last.is_none() || play.heard.last == positions.last().copied());
        }
        let mut play = Play::new(server, ReadFrom::Last(last), false);
        play.settle(false);
        let expected = log.len().saturating_sub(usize::try_from(last).unwrap());
        let start = expected.checked_sub(1).map_or(Position::START, |index| positions[index]);
        prop_assert_eq!((play.machine.start(), play.heard.lines.len()), (Some(start), log.len() - expected));
    }
}

#[test]
fn unfinished_line_is_delivered_once_across_a_cut() {
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(3, 1);
    play.settle(false);
    assert!(!play.machine.holds_unfinished());
    play.server.print(1, 1);
    play.send(true);
    assert!(play.machine.holds_unfinished());
    play.on(Event::Unfinished);
    // "line" of "line 3": its end is not there yet.
    let at = play.heard.last.unwrap();
    assert_eq!((play.heard.lines.len(), at.offset), (3, 5));
    play.on(Event::Broken("cut off".into()));
    play.end();
    play.heard.check(&play.server.log);
    assert_eq!(play.heard.gaps_before, Vec::<usize>::new());
}

/// Ways in which a response ends within a line, of which a piece was delivered.
const INTERRUPTIONS: [fn(&mut Play); 3] = [
    |play| play.on(Event::Broken("cut off".into())),
    |play| play.on(Event::Complete { ended: false }),
    |play| play.on(Event::Away("connection refused".into())),
];

/// A follower that got `lines 0..known`, whose log then rotated; the first line of the new file, `step` nanoseconds later, was
/// delivered in part when the response ended.
fn cut_after_rotation(known: usize, step: i64, interrupt: fn(&mut Play)) -> Play {
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(known, 0);
    play.settle(false);
    play.op(&Op::Rotate);
    play.server.print(1, step);
    play.send(true);
    play.on(Event::Unfinished);
    assert_eq!((play.heard.lines.len(), play.heard.partial.as_str()), (known, "line "));
    interrupt(&mut play);
    play
}

#[test]
fn partial_line_in_new_file_is_continued() {
    for interrupt in INTERRUPTIONS {
        for (known, step, more) in [(1, 0, 0), (1, 1, 0), (3, 0, 4), (3, 1, 4)] {
            let mut play = cut_after_rotation(known, step, interrupt);
            play.server.print(more, 0);
            play.end();
            play.heard.check(&play.server.log);
            // No known line precedes it, so that a line of the same time and beginning could stand in its place.
            assert_eq!((play.heard.lines.len(), play.heard.gaps_before), (known + 1 + more, vec![known]));
        }
    }
}

#[test]
fn partial_line_still_unfinished_in_new_file_is_continued() {
    for interrupt in INTERRUPTIONS {
        let mut play = cut_after_rotation(1, 0, interrupt);
        play.server.unfinished = true;
        play.settle(false);
        assert_eq!(play.heard.lines.len(), 1);
        play.server.unfinished = false;
        play.op(&Op::Break(false, false));
        play.end();
        play.heard.check(&play.server.log);
        assert_eq!(play.heard.lines, ["line 0", "line 1"]);
    }
}

#[test]
fn partial_line_rotated_away_is_ended_before_gap() {
    for interrupt in INTERRUPTIONS {
        // Another time; the same time and beginning, which nothing tells from the line itself; no line.
        for (printed, step, expected) in [
            (1, 1, &["line 0", "line", "line 2"][..]),
            (1, 0, &["line 0", "line 2"]),
            (0, 0, &["line 0", "line"]),
        ] {
            let mut play = cut_after_rotation(1, 1, interrupt);
            play.server.file = play.server.log.len();
            play.server.print(printed, step);
            play.end();
            play.heard.check(&play.server.log);
            assert_eq!(play.heard.lines, expected);
        }
        // The same time and another beginning.
        let mut play = cut_after_rotation(1, 1, interrupt);
        play.server.file = play.server.log.len();
        let time = play.server.log[1].0;
        play.server.log.push((time, "another line".into()));
        play.end();
        assert_eq!(
            (play.heard.lines, play.heard.gaps_before),
            (vec!["line 0".into(), "line".into(), "another line".into()], vec![2])
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
            let (mut play, time) = (Play::new(Server::default(), ReadFrom::Start, true), 1_000_000_000_000);
            play.server.print(1, 0);
            play.settle(false);
            play.op(&Op::Rotate);
            play.server.log.push((time, "x".repeat(len)));
            let bytes = play.server.bytes(false);
            play.on(Event::Data(&bytes[..36 + cut]));
            play.on(Event::Unfinished);
            play.on(Event::Broken("cut off".into()));
            if other {
                play.server.log[1].1.replace_range(..1, "y");
            }
            play.end();
            assert_eq!(play.heard.lines.len(), 2 + usize::from(other));
            assert_eq!(play.heard.gaps_before, [1 + usize::from(other)]);
            assert!(other || play.heard.lines[1].len() == len);
        }
    }
}

#[test]
fn a_clock_set_back_an_hour_silences_nothing() {
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(100, 1_000_000);
    play.settle(false);
    for step in [-3_600_000_000_000, 1, 1, -3_600_000_000_000] {
        play.server.print(1, step);
        play.server.print(10, 1_000_000);
        play.op(&Op::Break(true, false));
        play.settle(false);
    }
    play.end();
    play.heard.check(&play.server.log);
    assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (144, 0));
    assert!(play.server.asked.iter().all(|ask| ask.since_second.is_none()));
}

#[test]
fn repeats_after_a_rotation_are_dropped_and_told_of() {
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(100, 1_000_000);
    play.settle(false);
    // The stream goes back, as a kubelet's does that was read too slowly.
    play.server.open.as_mut().unwrap().next = 70;
    play.server.print(5, 1_000_000);
    play.settle(false);
    assert_eq!(play.heard.lines.len(), 105);
    assert_eq!(play.heard.gaps_before, [100]);
}

#[test]
fn what_was_rotated_away_meanwhile_is_a_gap() {
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(10, 1_000_000);
    play.settle(false);
    play.on(Event::Broken("cut off".into()));
    play.server.print(10, 1_000_000);
    play.server.file = 15;
    play.settle(false);
    assert_eq!((play.heard.lines.len(), play.heard.gaps_before.as_slice()), (15, &[10][..]));
    play.end();
    play.heard.check(&play.server.log);
}

#[test]
fn a_last_line_without_a_newline_comes_when_the_run_has_ended() {
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(3, 1_000_000);
    play.server.unfinished = true;
    play.settle(false);
    assert_eq!(play.heard.lines.len(), 2);
    play.end();
    assert_eq!(play.heard.lines.len(), 3);
}

#[test]
fn a_kubelets_words_are_nobodys_output() {
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(3, 1_000_000);
    play.settle(false);
    play.op(&Op::Foreign);
    play.server.print(3, 1_000_000);
    play.end();
    play.heard.check(&play.server.log);
    assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (6, 0));
    // If nothing else can be had, it is a failure and not a log.
    let mut machine = Machine::new(ReadFrom::Start, false, LogTime::from_nanos(0));
    machine.on(Event::Opened { ended: true });
    machine.on(Event::Data(b"unable to retrieve container logs for containerd://x"));
    assert!(matches!(machine.on(Event::Complete { ended: true }), Action::Fail(Error::Unavailable(_))));
    assert_eq!(machine.take(), vec![]);
}

#[test]
fn the_last_lines_of_a_long_log_are_found_without_reading_all_of_it() {
    let mut play = Play::new(Server::default(), ReadFrom::Last(5), true);
    play.server.print(3 * WINDOW_LINES, 1_000_000);
    play.settle(false);
    assert_eq!(play.heard.lines.len(), 5);
    assert!(!play.server.asked.contains(&LogQuery::WHOLE), "{:?}", play.server.asked);
    // Unless the clock went back: then positions count from further up.
    let mut server = Server::default();
    server.print(10, 1_000_000);
    server.print(1, -5_000_000_000);
    server.print(3 * WINDOW_LINES, 1_000);
    let mut play = Play::new(server, ReadFrom::Last(5), true);
    play.settle(false);
    assert_eq!(play.heard.lines.len(), 5);
    let at = Position { time: LogTime::from_nanos(1_000_010_000_000), ordinal: 0, offset: 0 };
    let behind = play.heard.last.unwrap();
    assert_eq!((behind.time, behind.ordinal), (at.time, 2 + 3 * WINDOW_LINES as u64));
}

#[test]
fn silence_is_believed_only_if_the_last_line_is_the_one_that_was_read() {
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(3, 1_000_000);
    play.settle(false);
    assert_eq!(play.machine.silence(), IdleVerdict::Quiet);
    let same = probe(&play.server);
    play.on(Event::Probed(same.as_bytes()));
    assert!(matches!(play.next, Action::Read));
    play.server.print(1, 1_000_000);
    let newer = probe(&play.server);
    play.on(Event::Probed(newer.as_bytes()));
    assert!(matches!(play.next, Action::Ask(LogQuery { follow: true, .. })));
    play.settle(false);
    assert_eq!(play.heard.lines.len(), 4);
}

#[test]
fn a_log_that_vanishes_after_its_end_was_seen_is_no_loss() {
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(3, 1_000_000);
    play.settle(false);
    play.on(Event::Complete { ended: false });
    play.on(Event::Woken { ended: true });
    play.on(Event::Gone("pod not found".into()));
    assert!(matches!(play.next, Action::Finish));
    assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (3, 0));
    // Nor if the kubelet removed it before the pod had gone, and said so, whether the run was known to have ended or not.
    for told in [false, true] {
        let mut play = Play::new(Server::default(), ReadFrom::Start, true);
        play.server.print(3, 1_000_000);
        play.settle(false);
        play.on(Event::Complete { ended: false });
        for ended in [false, told] {
            play.on(Event::Woken { ended });
            play.on(Event::Opened { ended });
            play.on(Event::Data(b"unable to retrieve container logs for containerd://x"));
            play.on(Event::Complete { ended });
        }
        play.on(Event::Woken { ended: told });
        play.on(Event::Gone("pod not found".into()));
        assert!(matches!(play.next, Action::Finish));
        assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (3, 0));
    }
    // But after a connection that broke nobody knows, nor while a kubelet was away.
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(3, 1_000_000);
    play.settle(false);
    play.on(Event::Complete { ended: false });
    play.on(Event::Woken { ended: false });
    play.on(Event::Away("nobody is there".into()));
    play.on(Event::Woken { ended: false });
    play.on(Event::Opened { ended: false });
    play.on(Event::Data(b"unable to retrieve container logs for containerd://x"));
    play.on(Event::Complete { ended: false });
    play.on(Event::Woken { ended: true });
    play.on(Event::Gone("pod not found".into()));
    assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (3, 1));
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(3, 1_000_000);
    play.settle(false);
    play.on(Event::Broken("reset".into()));
    play.on(Event::Woken { ended: true });
    play.on(Event::Gone("pod not found".into()));
    assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (3, 1));
    // Nor if an earlier response was complete: the one at hand was left in silence.
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(3, 1_000_000);
    play.settle(false);
    play.op(&Op::Complete);
    play.settle(false);
    play.on(Event::Woken { ended: true });
    play.on(Event::Gone("pod not found".into()));
    assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (3, 1));
}

/// What there is to see beside a silent stream.
fn probe(server: &Server) -> String {
    let (time, text) = server.log.last().unwrap();
    format!("{} {text}\n", LogTime::from_nanos(*time))
}

#[test]
fn a_log_of_which_no_line_was_read_is_read_from_its_first_one() {
    // The stream is left in silence, or with the end of the run.
    for probes in [true, false] {
        let mut play = Play::new(Server::default(), ReadFrom::Start, true);
        play.settle(false);
        play.server.print(3 * WINDOW_LINES, 1_000);
        let last = probe(&play.server);
        play.server.ended = !probes;
        play.on(if probes { Event::Probed(last.as_bytes()) } else { Event::Woken { ended: true } });
        play.settle(false);
        assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (3 * WINDOW_LINES, 0));
    }
    // The same behind a rotation, when nothing is remembered: what there was before the next one is gone.
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(10, 1_000);
    play.settle(false);
    play.op(&Op::Break(false, false));
    play.server.file = 10;
    play.settle(false);
    assert_eq!(play.heard.gaps_before, [10]);
    play.server.print(10, 1_000);
    play.server.file = 15;
    let last = probe(&play.server);
    play.on(Event::Probed(last.as_bytes()));
    play.settle(false);
    play.end();
    play.heard.check(&play.server.log);
    assert_eq!(play.heard.gaps_before, [10, 10]);
}

#[test]
fn a_response_that_breaks_off_before_its_first_line_changes_nothing() {
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(10, 1_000);
    play.settle(false);
    // The clock is set back, and then lines that were read stand in another order than they were read in.
    play.op(&Op::Break(false, false));
    play.server.log.swap(3, 9);
    play.server.print(5, -3_600_000_000_000);
    while !matches!(play.machine.stage, Stage::SkipKnown { gap: RotationGap::Unopened, .. }) {
        match &play.next {
            Action::Ask(ask) => {
                let ask = *ask;
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
            Action::Pause(_) => play.on(Event::Woken { ended: false }),
            Action::Finish | Action::Fail(_) => panic!(),
        }
    }
    play.on(Event::Opened { ended: false });
    play.on(Event::Broken("cut off".into()));
    play.settle(false);
    assert_eq!((play.heard.lines.len(), play.heard.gaps_before.as_slice()), (15, &[10][..]));
}
