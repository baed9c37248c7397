//! Prints medians and ratios with their goals, and writes them as JSON.

use std::path::Path;

use serde::Serialize;

use crate::Result;
use crate::contender::Kind;
use crate::goals::{Bound, Figure, Goal, verdict};
use crate::measure::Sample;
use crate::plan::Cell;

/// The results of one run. Field names are the keys of the JSON file.
#[derive(Serialize)]
pub(crate) struct Report {
    machine: Machine,
    seconds: f64,
    repetitions: usize,
    rows: Vec<Row>,
    ratios: Vec<Ratio>,
    bounds: Vec<Held>,
}

/// One contender in one cell.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) cell: Cell,
    pub(crate) kind: Kind,
    pub(crate) samples: Vec<Sample>,
    /// Median of each figure on its own.
    median: Sample,
    /// Range of the server's CPU, divided by its median.
    spread: f64,
}

/// The gateway's figure divided by a contender's, in the same cell of the same run.
#[derive(Serialize)]
pub(crate) struct Ratio {
    cell: Cell,
    kind: Kind,
    against: Kind,
    of: &'static str,
    times: f64,
    at_most: f64,
    pub(crate) kept: bool,
}

/// A figure of the gateway with its bound.
#[derive(Serialize)]
struct Held {
    what: &'static str,
    value: f64,
    at_most: f64,
    unit: &'static str,
}

/// The hardware and kernel, without the host name.
#[derive(Serialize)]
struct Machine {
    processor: String,
    cores: usize,
    kernel: String,
}

// === impl Report ===

impl Report {
    pub(crate) fn new(seconds: f64, repetitions: usize) -> Self {
        let machine = Machine::detect();
        Self { machine, seconds, repetitions, rows: Vec::new(), ratios: Vec::new(), bounds: Vec::new() }
    }

    /// Adds the rows of one cell, and prints them with `goals`. Returns whether all goals were met.
    pub(crate) fn add(&mut self, cell: &Cell, rows: Vec<Row>, goals: &[Goal]) -> bool {
        print(cell, &rows);
        let ratios: Vec<_> = goals.iter().filter_map(|goal| Ratio::of(cell, &rows, goal)).collect();
        for Ratio { kind, against, of, times, at_most, .. } in &ratios {
            let verdict = verdict(*times, *at_most);
            println!("  {kind} {times:.2}x {against} ({of}), goal at most {at_most}x: {verdict}");
        }
        let kept = ratios.iter().all(|ratio| ratio.kept);
        self.rows.extend(rows);
        self.ratios.extend(ratios);
        kept
    }

    /// Prints whether each bound whose cells were measured was met.
    pub(crate) fn conclude(&mut self, bounds: &[Bound]) {
        let median = |cell: &Cell, figure| {
            let row = self.rows.iter().find(|row| row.cell == *cell && row.kind == Kind::Gateway)?;
            Some(median(&row.samples, figure))
        };
        let held = bounds.iter().filter_map(|&Bound { what, of, over, figure, at_most, unit }| {
            let divisor = over.map_or(Some(1.0), |over| median(&over, figure))?;
            Some(Held { what, value: median(&of, figure)? / divisor, at_most, unit })
        });
        self.bounds = held.collect();
        if !self.bounds.is_empty() {
            println!("\nthe gateway by itself");
        }
        for Held { what, value, at_most, unit } in &self.bounds {
            println!("  {what}: {value:.2} {unit}, goal at most {at_most}: {}", verdict(*value, *at_most));
        }
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        Ok(std::fs::write(path, serde_json::to_vec_pretty(self)?)?)
    }
}

// === impl Row ===

impl Row {
    pub(crate) fn new(cell: Cell, kind: Kind, samples: Vec<Sample>) -> Self {
        let of = |value: fn(&Sample) -> f64| median(&samples, value);
        let median = Sample {
            server: of(|sample| sample.server),
            client: of(|sample| sample.client),
            sent: of(|sample| sample.sent),
            rate: of(|sample| sample.rate),
            memory: of(|sample| sample.memory),
            p50: of(|sample| sample.p50),
            p99: of(|sample| sample.p99),
        };
        let end = |pick: fn(f64, f64) -> f64| samples.iter().map(|sample| sample.server).reduce(pick);
        let range = end(f64::max).unwrap_or(0.0) - end(f64::min).unwrap_or(0.0);
        Self { cell, kind, spread: range / median.server, median, samples }
    }
}

// === impl Ratio ===

impl Ratio {
    fn of(cell: &Cell, rows: &[Row], goal: &Goal) -> Option<Self> {
        let Goal { kind, against, figure, at_most } = *goal;
        let times = ratio(rows, kind, against, figure)?;
        Some(Self { cell: *cell, kind, against, of: figure.words(), times, at_most, kept: times <= at_most })
    }
}

// === impl Machine ===

impl Machine {
    fn detect() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find_map(|line| line.strip_prefix("model name"));
        let processor = model.unwrap_or_default().trim_start_matches([' ', '\t', ':']).to_owned();
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        Self { processor, cores, kernel: read("/proc/sys/kernel/osrelease").trim().to_owned() }
    }
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn print(cell: &Cell, rows: &[Row]) {
    println!("\n{cell}");
    println!(
        "{:16} {:>9} {:>7} {:>7} {:>9} {:>9} {:>8} {:>8} {:>8} {:>7} {:>7} {:>8} {:>7} {:>7}",
        "",
        "us/msg",
        "s/GB",
        "B sent",
        "s/GB sent",
        "client us",
        "MB/s",
        "p50 ms",
        "p99 ms",
        "MiB",
        "x raw",
        "x naive",
        "x grpc",
        "spread"
    );
    let size = cell.size as f64;
    for Row { kind, median, spread, .. } in rows {
        let times = |other| ratio(rows, *kind, other, Figure::Server);
        let times = |other| times(other).map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        println!(
            "{:16} {:9.3} {:7.3} {:7.1} {:9.3} {:9.2} {:8.0} {:8.2} {:8.2} {:7.1} {:>7} {:>8} {:>7} {:6.0}%",
            kind.to_string(),
            median.server * 1e6,
            median.server / size * 1e9,
            median.sent,
            median.server / median.sent * 1e9,
            median.client * 1e6,
            median.rate * size / 1e6,
            median.p50 * 1e3,
            median.p99 * 1e3,
            median.memory / 1024.0 / 1024.0,
            times(Kind::Raw),
            times(Kind::Naive),
            times(Kind::Gateway),
            spread * 100.0,
        );
    }
}

/// Returns the ratio of two medians.
fn ratio(rows: &[Row], of: Kind, to: Kind, figure: Figure) -> Option<f64> {
    let median_of = |kind| {
        let row = rows.iter().find(|row| row.kind == kind)?;
        Some(median(&row.samples, |sample| figure.of(sample)))
    };
    Some(median_of(of)? / median_of(to)?)
}

pub(crate) fn median(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
