use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::loss_checker::{LossChecker, Order, Start};
use crate::model::proto::lease::{Cursor, LinePart, ReplicaEvent};

/// Time in every line.
const PRINTED: i64 = 1_796_027_775;

fn entry(instance: &str, logs: &str) -> ServiceLogs {
    let cursor = Cursor { service: "counter".into(), instance: instance.into(), ..Default::default() };
    let logs = logs.as_bytes().to_vec().into();
    ServiceLogs { name: "counter".into(), logs, cursor: Some(cursor), ..Default::default() }
}

fn line(run: &str, number: u64) -> String {
    format!("leasemux-canary run={run} n={number} at={PRINTED}\n")
}

fn gap(instance: &str, lines: u64, exact: bool, cause: Cause) -> ServiceLogs {
    let gap = Gap { lines, exact, cause: cause.into(), ..Default::default() };
    ServiceLogs { gap: Some(gap), ..entry(instance, "") }
}

/// An account with a clock and its reports.
struct Checked {
    account: Account,
    now: Now,
    events: Vec<String>,
}

impl Checked {
    fn new() -> Self {
        let started = LogTime::from_parts(PRINTED, 0).unwrap();
        let now = Now { wall: started, instant: Instant::now() };
        Self { account: Account::new(started), now, events: Vec::new() }
    }

    fn feed(&mut self, entry: &ServiceLogs) {
        let events = &mut self.events;
        self.account.entry(entry, self.now, &mut |_, event| events.push(format!("{event:?}")));
    }

    fn wait(&mut self, duration: Duration) {
        self.now.instant += duration;
        let events = &mut self.events;
        self.account.settle(self.now.instant, &mut |_, event| events.push(format!("{event:?}")));
    }

    fn finish(mut self) -> Totals {
        self.account.finish(&mut |_, _| {});
        self.account.totals()
    }
}

/// Runs a script: `A1 A2 g3 A6` are lines of run A and an exact gap of three; `i2` is an inexact gap, `x`
/// another line, `m` a malformed one. A new letter is a new instance with a new identifier.
fn totals(script: &str) -> Totals {
    let mut checked = Checked::new();
    let mut run = "A";
    for word in script.split_whitespace() {
        let (kind, rest) = word.split_at(1);
        let number = || rest.parse().unwrap();
        checked.feed(&match kind {
            "g" => gap(run, number(), true, Cause::Lag),
            "i" => gap(run, number(), false, Cause::Rotated),
            "x" => entry(run, "hello\n"),
            "m" => entry(run, "leasemux-canary run=\x1b[2J n=1 at=1\n"),
            _ => {
                run = kind;
                entry(run, &line(kind, number()))
            }
        });
    }
    checked.finish()
}

#[test]
fn each_fault_is_counted_as_its_kind() {
    // Delivered, reported, unreported, repeated, out of order, overreported.
    for (script, expected) in [
        ("A1 A2 A3", [3, 0, 0, 0, 0, 0]),
        // The canary starts anywhere.
        ("A7 A8", [2, 0, 0, 0, 0, 0]),
        ("g5 A7 A8", [2, 5, 0, 0, 0, 0]),
        ("A1 A4", [2, 0, 2, 0, 0, 0]),
        ("A1 g2 A4", [2, 2, 0, 0, 0, 0]),
        ("A1 g1 g1 A4", [2, 2, 0, 0, 0, 0]),
        ("A1 g1 A4", [2, 1, 1, 0, 0, 0]),
        ("A1 g3 A4", [2, 3, 0, 0, 0, 1]),
        ("A1 g2", [1, 2, 0, 0, 0, 0]),
        // An inexact gap covers what is missing.
        ("A1 i2 A4", [2, 2, 0, 0, 0, 0]),
        ("A1 i0 A4", [2, 2, 0, 0, 0, 0]),
        ("A1 i0 A2", [2, 0, 0, 0, 0, 0]),
        ("A1 i3 A4", [2, 3, 0, 0, 0, 1]),
        ("A1 g1 i1 A9", [2, 7, 0, 0, 0, 0]),
        ("A1 A1 A2 A1", [2, 0, 0, 2, 0, 0]),
        ("A1 A3 A2 A4", [4, 0, 0, 0, 1, 0]),
        ("A1 A3 A2 A2", [3, 0, 0, 1, 1, 0]),
        ("A1 A5 A3", [3, 0, 2, 0, 1, 0]),
        ("A7 A6 A8", [3, 0, 0, 0, 1, 0]),
        // One of the lines was reported, and came.
        ("A1 g1 A4 A2 A3", [4, 1, 0, 0, 2, 1]),
        ("A1 g2 A4 A2", [3, 2, 0, 0, 1, 1]),
        // The other one was reported.
        ("A1 g1 A5 A3 A4", [4, 1, 0, 0, 2, 0]),
        ("A1 g1 A5 A3 A3", [3, 1, 1, 1, 1, 0]),
        // Runs.
        ("A1 A2 B1 B2", [4, 0, 0, 0, 0, 0]),
        ("A1 A2 B3", [3, 0, 2, 0, 0, 0]),
        ("A1 g4 B1", [2, 4, 0, 0, 0, 0]),
        ("A1 g4 B3", [2, 4, 0, 0, 0, 0]),
        ("A1 g1 B4", [2, 1, 2, 0, 0, 0]),
        ("A1 i0 B4", [2, 3, 0, 0, 0, 0]),
        ("A1 A2 B1 A1 A2 B2", [4, 0, 0, 2, 0, 0]),
        ("A1 A2 B1 A3 B2", [5, 0, 0, 0, 1, 0]),
        ("A1 A3 B1 A2 B2", [5, 0, 0, 0, 1, 0]),
        // A gap may include lines without a number.
        ("A1 x g2 A3", [2, 2, 0, 0, 0, 0]),
        ("A1 x m A2", [2, 0, 0, 0, 0, 0]),
    ] {
        let found = totals(script);
        let Totals { delivered, unreported, repeated, out_of_order, overreported, .. } = found;
        let found = [delivered, found.all_lost(), unreported, repeated, out_of_order, overreported];
        assert_eq!(found, expected, "{script}");
    }
}

#[test]
fn causes_runs_and_unknown_lines_are_counted() {
    let found = totals("A1 g2 A4 i1 A7 x m m B1");
    assert_eq!((found.exact_gaps, found.inexact_gaps, found.runs), (1, 1, 2));
    assert_eq!((found.foreign, found.malformed), (1, 2));
    let lost = |cause: CanaryLossCause| found.lost[cause.index()];
    assert_eq!((lost(CanaryLossCause::Lag), lost(CanaryLossCause::Rotated)), (2, 2));
    assert!(found.is_sound() && !totals("A1 A3").is_sound());
}

#[test]
fn replicas_and_instances_are_separate() {
    let mut checked = Checked::new();
    let mut other = entry("q", &line("B", 1));
    other.replica = 1;
    for one in [entry("p", &line("A", 1)), other.clone(), entry("p", &line("A", 2))] {
        checked.feed(&one);
    }
    // The identifier is the same, and the container another one.
    checked.feed(&entry("p2", &line("A", 1)));
    let event = ServiceLogs { event: Some(ReplicaEvent::default()), ..entry("p", "") };
    checked.feed(&event);
    assert_eq!(checked.account.replicas(), 2);
    let found = checked.finish();
    assert_eq!((found.delivered, found.runs, found.repeated), (4, 3, 0));
}

#[test]
fn missing_line_counts_after_ten_seconds() {
    let mut checked = Checked::new();
    checked.feed(&entry("p", &(line("A", 1) + &line("A", 3))));
    let due = checked.account.due().unwrap();
    assert_eq!(due, checked.now.instant + SETTLE_AFTER);
    checked.wait(Duration::from_millis(9_999));
    assert_eq!(checked.account.totals().unreported, 0);
    checked.wait(Duration::from_millis(1));
    assert_eq!((checked.account.totals().unreported, checked.account.due()), (1, None));
    assert_eq!(checked.events.last().unwrap(), "Unreported { from: 2, to: 2, lines: 1 }");
    assert_eq!(checked.finish().unreported, 1);
}

#[test]
fn missing_line_counts_while_lines_arrive_all_the_time() {
    let mut checked = Checked::new();
    checked.feed(&entry("p", &(line("A", 1) + &line("A", 3))));
    checked.now.instant += SETTLE_AFTER;
    // `settle` is not called, because the stream is never idle.
    checked.feed(&entry("p", &line("A", 4)));
    assert_eq!(checked.account.totals().unreported, 1);
}

#[test]
fn silence_of_one_replica_is_noticed() {
    let mut checked = Checked::new();
    let start = checked.now.wall;
    assert_eq!((checked.account.last_line(), checked.account.replicas()), (start, 0));
    let of = |replica, entry| ServiceLogs { replica, ..entry };
    let later = |checked: &mut Checked| {
        checked.now.wall = checked.now.wall.saturating_add_nanos(1_000);
        checked.now.wall
    };
    // The position at which a replica is followed.
    let followed = later(&mut checked);
    checked.feed(&of(1, entry("q", "")));
    for number in 1..3 {
        later(&mut checked);
        checked.feed(&of(0, entry("p", &line("A", number))));
    }
    assert_eq!((checked.account.last_line(), checked.account.replicas()), (followed, 2));
    // Neither a gap nor other output is a line.
    checked.feed(&of(1, gap("q", 1, true, Cause::Lag)));
    checked.feed(&of(1, entry("q", "hello\n")));
    assert_eq!(checked.account.last_line(), followed);
    let newest = checked.now.wall;
    let event = |kind: Kind| {
        let event = ReplicaEvent { kind: kind.into(), ..Default::default() };
        ServiceLogs { event: Some(event), ..entry("", "") }
    };
    // It is down, and expected to return.
    checked.feed(&of(1, event(Kind::Ended)));
    checked.feed(&of(1, event(Kind::Waiting)));
    assert_eq!((checked.account.last_line(), checked.account.replicas()), (followed, 2));
    checked.feed(&of(1, event(Kind::Gone)));
    checked.feed(&of(7, event(Kind::Gone)));
    assert_eq!((checked.account.last_line(), checked.account.replicas()), (newest, 1));
    later(&mut checked);
    checked.feed(&of(1, entry("q2", &line("B", 1))));
    assert_eq!((checked.account.last_line(), checked.account.replicas()), (newest, 2));
}

#[test]
fn clock_lead_is_that_of_the_newest_lines() {
    let mut checked = Checked::new();
    let lines = |replica, text: String| ServiceLogs { replica, ..entry("p", &text) };
    let at = |number, at: i64| format!("leasemux-canary run=A n={number} at={at}\n");
    checked.feed(&lines(0, at(1, PRINTED + 9)));
    checked.feed(&lines(1, at(1, PRINTED + 1)));
    assert_eq!(checked.account.clock_ahead(), 9_000_000_000);
    // The clock was set.
    checked.feed(&lines(0, at(2, PRINTED - 1)));
    assert_eq!(checked.account.clock_ahead(), 1_000_000_000);
    checked.feed(&lines(1, at(2, PRINTED - 1)));
    assert_eq!(checked.account.clock_ahead(), 0);
}

#[test]
fn delay_is_measured_for_new_lines_only() {
    let mut checked = Checked::new();
    checked.now.wall = checked.now.wall.saturating_add_nanos(250);
    checked.feed(&entry("p", &(line("A", 1) + &line("A", 1))));
    // From before the start.
    checked.feed(&entry("p", &format!("leasemux-canary run=A n=2 at={}\n", PRINTED - 1)));
    checked.feed(&entry("p", &format!("leasemux-canary run=A n=3 at={}\n", PRINTED + 1)));
    let delays: Vec<_> = checked.events.iter().filter(|event| event.starts_with("Delay")).collect();
    assert_eq!(delays, ["Delay(250)", "Delay(-999999750)"]);
}

#[test]
fn pieces_of_a_line_count_once() {
    let mut checked = Checked::new();
    let piece = |text: &str, continues, more| {
        let part = LinePart { stream: 1, continues, more };
        ServiceLogs { part: Some(part), ..entry("p", text) }
    };
    checked.feed(&piece("leasemux-canary run=A n", false, true));
    checked.feed(&piece("=1 at=1796027775 ", true, true));
    checked.feed(&piece(&"x".repeat(100_000), true, true));
    checked.feed(&piece("\n", true, false));
    checked.feed(&piece("leasemux-canary run=A n=2 at=1", false, true));
    // The end of the line was lost.
    checked.feed(&gap("p", 1, true, Cause::Lag));
    checked.feed(&entry("p", &line("A", 3)));
    // The run ends within its last line.
    checked.feed(&piece("leasemux-canary run=A n=4 at=1", false, true));
    checked.feed(&entry("p2", &line("B", 1)));
    let found = checked.finish();
    assert_eq!((found.delivered, found.malformed, found.all_lost(), found.is_sound()), (4, 0, 1, true));
}

#[test]
fn state_is_bounded_whatever_arrives() {
    let mut checked = Checked::new();
    for number in 0..1_000 {
        checked.feed(&entry("p", &line("A", 2 * number + 1)));
    }
    assert_eq!(checked.account.holes().count(), HOLES_MAX);
    for run in 0..100 {
        checked.feed(&entry(&run.to_string(), &line("B", 3)));
    }
    let runs = |checked: &Checked| {
        checked.account.replicas.values().map(|replica| replica.runs.len()).sum::<usize>()
    };
    assert_eq!(runs(&checked), EARLIER_RUNS_MAX + 1);
    for replica in 0..2_000 {
        checked.feed(&ServiceLogs { replica, ..entry("p", &line("A", 1)) });
    }
    assert_eq!(checked.account.replicas(), STREAM_REPLICAS_MAX);
    assert_eq!(checked.finish().unreported, 999 + 200);
    let huge = totals("A1 g18446744073709551615 g5 A18446744073709551615");
    assert_eq!((huge.all_lost(), huge.overreported), (u64::MAX, 2));
}

/// What happens to a line on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Arrives,
    IsReported,
    IsLost,
    IsRepeated,
    /// Arrives after this many later lines.
    IsLate(usize),
}

/// What a canary receives: a number of a run, or an exact gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Received {
    Line(usize, u64),
    Gap(usize, u64),
}

fn fates() -> impl Strategy<Value = Vec<Vec<Fate>>> {
    let fate = prop_oneof![
        6 => Just(Fate::Arrives),
        2 => Just(Fate::IsReported),
        1 => Just(Fate::IsLost),
        1 => Just(Fate::IsRepeated),
        1 => (1..4_usize).prop_map(Fate::IsLate),
    ];
    proptest::collection::vec(proptest::collection::vec(fate, 0..30), 1..4)
}

/// Returns what arrives of runs whose first and last lines arrive. Other missing lines cannot be
/// noticed.
fn received(runs: &[Vec<Fate>]) -> Vec<Received> {
    let mut all = Vec::new();
    for (run, fates) in runs.iter().enumerate() {
        let mut now: Vec<Received> = vec![Received::Line(run, 1)];
        let mut late: Vec<(usize, u64)> = Vec::new();
        let mut reported = 0;
        let ends = [Fate::Arrives];
        for (number, fate) in (2..).zip(fates.iter().chain(&ends)) {
            let line = Received::Line(run, number);
            match fate {
                Fate::IsReported => reported += 1,
                Fate::IsLost => {}
                Fate::IsLate(lines) => late.push((*lines, number)),
                Fate::Arrives | Fate::IsRepeated => {
                    if reported > 0 {
                        now.push(Received::Gap(run, std::mem::take(&mut reported)));
                    }
                    now.push(line);
                    now.extend((*fate == Fate::IsRepeated).then_some(line));
                    late.retain_mut(|(lines, number)| {
                        *lines -= 1;
                        if *lines == 0 {
                            now.push(Received::Line(run, *number));
                        }
                        *lines > 0
                    });
                }
            }
        }
        now.extend(late.into_iter().map(|(_, number)| Received::Line(run, number)));
        all.extend(now);
    }
    all
}

/// The model: sets of numbers.
fn expected(all: &[Received]) -> Totals {
    let mut expected = Totals::default();
    let runs = all.iter().map(|one| match one {
        Received::Line(run, _) | Received::Gap(run, _) => *run,
    });
    for run in runs.collect::<BTreeSet<_>>() {
        expected.runs += 1;
        let (mut seen, mut reported) = (BTreeSet::new(), 0);
        for one in all {
            match *one {
                Received::Line(of, number) if of == run => {
                    let last = seen.last().copied().unwrap_or_default();
                    if !seen.insert(number) {
                        expected.repeated += 1;
                    } else if number < last {
                        expected.out_of_order += 1;
                    }
                }
                Received::Gap(of, lines) if of == run => {
                    expected.exact_gaps += 1;
                    reported += lines;
                }
                _ => {}
            }
        }
        expected.delivered += seen.len() as u64;
        expected.lost[CanaryLossCause::Lag.index()] += reported;
        expected.unreported += seen.last().unwrap() - seen.len() as u64 - reported;
    }
    expected
}

proptest! {
    /// The account agrees with sets of numbers, and finds a fault exactly if the loss checker does.
    #[test]
    fn account_agrees_with_model_and_loss_checker(runs in fates()) {
        let all = received(&runs);
        let mut checked = Checked::new();
        let mut checker = LossChecker::new(Start::First, Order::Exact);
        for one in &all {
            match *one {
                Received::Line(run, number) => {
                    let instance = format!("p/c/{run}");
                    checked.feed(&entry(&instance, &line(&format!("run-{run}"), number)));
                    checker.feed(&entry(&instance, &format!("{number} text\n")));
                }
                Received::Gap(run, lines) => {
                    let gap = gap(&format!("p/c/{run}"), lines, true, Cause::Lag);
                    checked.feed(&gap);
                    checker.feed(&gap);
                }
            }
        }
        let found = checked.finish();
        prop_assert_eq!(found, expected(&all), "{:?}", all);
        prop_assert_eq!(found.is_sound(), checker.verdict().is_ok(), "{:?}", all);
    }
}
