//! Draws the charts of docs/PERFORMANCE.md and prints its tables, from the results of the fan-out bench:
//!
//! ```sh
//! cargo bench --bench fanout -- --peers --json target/fanout.json
//! cargo run --example plot -- target/fanout.json docs/performance
//! ```
//!
//! And the chart of docs/FLEET.md, from the results of the soak of a fleet:
//!
//! ```sh
//! .ci/soak --fleet 1800
//! cargo run --example plot -- target/fleet-soak.json docs/fleet
//! ```

#![allow(clippy::print_stdout, reason = "a program, and its output is the point")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use clap::Parser;
use plotters::prelude::*;
use serde::Deserialize;

/// Draws charts from the JSON of the fan-out bench or of the soak of a fleet. Prints the bench's tables.
#[derive(Debug, Parser)]
struct Args {
    /// JSON file that the bench wrote with `--json`, or the soak.
    json: PathBuf,
    /// Directory for the charts.
    dir: PathBuf,
}

/// The content of the JSON file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Results {
    Bench(Report),
    Soak(Soak),
}

#[derive(Deserialize)]
struct Report {
    rows: Vec<Row>,
    ratios: Vec<Ratio>,
    bounds: Vec<Held>,
}

#[derive(Deserialize)]
struct Row {
    cell: Cell,
    kind: String,
    median: Sample,
    spread: f64,
}

#[derive(Clone, Deserialize, PartialEq)]
struct Cell {
    regime: String,
    size: u64,
    followers: u32,
    security: String,
}

#[derive(Deserialize)]
struct Sample {
    server: f64,
    client: f64,
    sent: f64,
    rate: f64,
    memory: f64,
    p50: f64,
    p99: f64,
}

#[derive(Deserialize)]
struct Ratio {
    cell: Cell,
    kind: String,
    against: String,
    of: String,
    times: f64,
    at_most: f64,
    kept: bool,
}

/// A result of the gateway alone.
#[derive(Deserialize)]
struct Held {
    what: String,
    value: f64,
    at_most: f64,
    unit: String,
}

/// A soak of a fleet. Times are seconds since the start.
#[derive(Deserialize)]
struct Soak {
    seconds: f64,
    gateways: u32,
    replicas: u32,
    /// Numbers of tails, each with the time of the first look at it.
    tails: Vec<(f64, u32)>,
    /// Times without NATS.
    away: Vec<(f64, f64)>,
    /// What was done to gateways and NATS.
    faults: Vec<(f64, String)>,
}

/// One chart: a figure by number of followers, with a curve for each server.
struct Picture {
    file: &'static str,
    title: &'static str,
    unit: &'static str,
    regime: &'static str,
    size: u64,
    /// The figure, in `unit`.
    value: fn(&Row) -> f64,
}

const SIZE: (u32, u32) = (720, 400);

/// A wider one for the soak: it has hundreds of faults.
const SOAK_SIZE: (u32, u32) = (960, 460);

/// Height above the faults for the legend of the soak, in tails.
const SOAK_LEGEND: f64 = 7.0;

const PICTURES: [Picture; 3] = [
    Picture {
        file: "backlog.svg",
        title: "Backlog of 4 KiB messages over TLS",
        unit: "server CPU, s/GB",
        regime: "backlog",
        size: 4_096,
        value: per_gigabyte,
    },
    Picture {
        file: "lone.svg",
        title: "Lone lines of 100 B over TLS",
        unit: "server and client CPU, us/message",
        regime: "lone",
        size: 100,
        value: |row| (row.median.server + row.median.client) * 1e6,
    },
    Picture {
        file: "memory.svg",
        title: "Resident memory of the server, backlog of 4 KiB messages over TLS",
        unit: "MiB",
        regime: "backlog",
        size: 4_096,
        value: mebibytes,
    },
];

#[allow(clippy::cast_precision_loss, reason = "at most 65,536")]
fn bytes(row: &Row) -> f64 {
    row.cell.size as f64
}

fn per_gigabyte(row: &Row) -> f64 {
    row.median.server / bytes(row) * 1e9
}

fn mebibytes(row: &Row) -> f64 {
    row.median.memory / 1024.0 / 1024.0
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let results: Results = serde_json::from_slice(&std::fs::read(&args.json)?)?;
    std::fs::create_dir_all(&args.dir)?;
    let report = match results {
        Results::Bench(report) => report,
        Results::Soak(soak) => return draw_soak(&soak, &args.dir.join("soak.svg")),
    };
    for picture in &PICTURES {
        draw(&report, picture, &args.dir.join(picture.file))?;
    }
    print_rows(&report);
    print_ratios(&report);
    print_bounds(&report);
    Ok(())
}

fn draw(report: &Report, picture: &Picture, path: &Path) -> Result<(), Box<dyn Error>> {
    let mut curves: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for row in &report.rows {
        let Cell { regime, size, followers, security } = &row.cell;
        if regime == picture.regime && *size == picture.size && security == "tls" {
            curves.entry(&row.kind).or_default().push((f64::from(*followers), (picture.value)(row)));
        }
    }
    let points = || curves.values().flatten();
    let end = |pick: fn(f64, f64) -> f64, of: fn(&(f64, f64)) -> f64| points().map(of).reduce(pick);
    let (Some(least), Some(most)) = (end(f64::min, |point| point.0), end(f64::max, |point| point.0)) else {
        return Err(format!("nothing was measured for {}", picture.file).into());
    };
    // Both axes are logarithmic. Otherwise one slow server would flatten all other curves.
    let bottom = end(f64::min, |point| point.1).unwrap_or(1.0) / 1.5;
    let top = end(f64::max, |point| point.1).unwrap_or(1.0) * 1.5;
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(picture.title, ("sans-serif", 18))
        .margin(12)
        .margin_right(28)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d((least..most.max(least * 10.0)).log_scale(), (bottom..top).log_scale())?;
    let mut mesh = chart.configure_mesh();
    mesh.x_label_formatter(&|followers| format!("{followers:.0}"));
    mesh.light_line_style(TRANSPARENT).y_labels(6);
    mesh.x_desc("followers").y_desc(picture.unit).draw()?;
    for (index, (kind, points)) in curves.iter_mut().enumerate() {
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
        let color = Palette99::pick(index).to_rgba();
        chart
            .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)).point_size(3))?
            .label(*kind)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    let mut legend = chart.configure_series_labels();
    legend.position(SeriesLabelPosition::UpperMiddle);
    legend.background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}

/// Draws the number of tails over time, with the times without NATS and the faults of gateways.
fn draw_soak(soak: &Soak, path: &Path) -> Result<(), Box<dyn Error>> {
    let minutes = |seconds: f64| seconds / 60.0;
    let end = minutes(soak.seconds);
    let without_fleet = f64::from(soak.gateways * soak.replicas);
    // Room for the faults above the curve.
    let (fault_from, fault_to) = (without_fleet + 1.0, without_fleet + 2.0);
    let area = SVGBackend::new(path, SOAK_SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let title = format!("Log tails of {} gateways that follow {} replicas", soak.gateways, soak.replicas);
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .margin_right(28)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..end, 0.0..fault_to + SOAK_LEGEND)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_label_formatter(&|minutes| format!("{minutes:.0}"))
        .y_label_formatter(&|tails| format!("{tails:.0}"));
    mesh.light_line_style(TRANSPARENT).disable_x_mesh().y_labels(8);
    mesh.x_desc("minutes").y_desc("log tails").draw()?;
    let shade = RGBColor(150, 150, 150).mix(0.35);
    let away = soak.away.iter().map(|(from, to)| {
        Rectangle::new([(minutes(*from), 0.0), (minutes(*to), without_fleet)], shade.filled())
    });
    chart
        .draw_series(away)?
        .label("NATS killed or halted")
        .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 16, y + 4)], shade.filled()));
    for (index, kind) in ["killed", "halted", "shut down"].into_iter().enumerate() {
        let color = Palette99::pick(index + 1).to_rgba();
        let of_gateways = soak.faults.iter().filter(|(_, fault)| !fault.starts_with("NATS"));
        let marks = of_gateways.filter(|(_, fault)| fault.ends_with(kind)).map(|(at, _)| {
            PathElement::new([(minutes(*at), fault_from), (minutes(*at), fault_to)], color.stroke_width(1))
        });
        chart
            .draw_series(marks)?
            .label(format!("gateway {kind}"))
            .legend(move |(x, y)| PathElement::new([(x + 8, y - 5), (x + 8, y + 5)], color.stroke_width(2)));
    }
    let color = Palette99::pick(0).to_rgba();
    let levels = soak.tails.iter().map(|(at, tails)| (minutes(*at), f64::from(*tails)));
    let mut steps: Vec<(f64, f64)> = Vec::new();
    for (at, tails) in levels {
        steps.extend(steps.last().map(|(_, before)| (at, *before)));
        steps.push((at, tails));
    }
    steps.extend(steps.last().map(|(_, last)| (end, *last)));
    chart
        .draw_series(LineSeries::new(steps, color.stroke_width(1)))?
        .label("log tails")
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    let mut legend = chart.configure_series_labels();
    legend.position(SeriesLabelPosition::UpperRight);
    legend.background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}

fn print_rows(report: &Report) {
    println!(
        "| | server us/message | server s/GB | B sent/message | server s/GB sent | client us/message | MB/s | p50 ms | p99 ms | MiB | spread |\n|---|---|---|---|---|---|---|---|---|---|---|"
    );
    let mut shown = None;
    for row in &report.rows {
        if shown != Some(&row.cell) {
            println!("| **{}** | | | | | | | | | | |", words(&row.cell));
            shown = Some(&row.cell);
        }
        let Sample { server, client, sent, rate, p50, p99, .. } = row.median;
        println!(
            "| {} | {:.3} | {:.3} | {:.1} | {:.3} | {:.2} | {:.0} | {:.2} | {:.2} | {:.0} | {:.0} % |",
            row.kind,
            server * 1e6,
            per_gigabyte(row),
            sent,
            server / sent * 1e9,
            client * 1e6,
            rate * bytes(row) / 1e6,
            p50 * 1e3,
            p99 * 1e3,
            mebibytes(row),
            row.spread * 100.0,
        );
    }
}

fn print_ratios(report: &Report) {
    println!("\n| of | against | ratio | goal | |\n|---|---|---|---|---|");
    for Ratio { cell, kind, against, of, times, at_most, kept } in &report.ratios {
        println!(
            "| {kind}: {of}, {} | {against} | {times:.2} | {at_most} | {} |",
            words(cell),
            verdict(*kept)
        );
    }
}

fn print_bounds(report: &Report) {
    println!("\n| the gateway by itself | measured | goal | |\n|---|---|---|---|");
    for Held { what, value, at_most, unit } in &report.bounds {
        println!("| {what} | {value:.2} {unit} | {at_most} | {} |", verdict(value <= at_most));
    }
}

fn verdict(kept: bool) -> &'static str {
    if kept { "met" } else { "**missed**" }
}

fn words(cell: &Cell) -> String {
    let Cell { regime, size, followers, security } = cell;
    format!("{security}, {regime}, {size} B, {followers} followers")
}
