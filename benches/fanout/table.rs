//! What was measured, as a table.

use clap::ValueEnum as _;

use crate::contender::Kind;
use crate::measure::Sample;

/// What the gateway's CPU per message in a backlog of [`CLIFF_BYTES`] is held to, against the others', in the same run. There are
/// two cliffs: sharing a message that was encoded once is a loss unless messages are sent together, and so is TLS unless records
/// are. Off either one, the gateway would cost more than the naive server does; these limits are tighter.
const CLIFFS: [(Kind, f64); 2] = [(Kind::Raw, 1.75), (Kind::Naive, 0.45)];

/// The size of messages at which both show.
pub(crate) const CLIFF_BYTES: usize = 4_096;

/// Samples of each contender.
pub(crate) type Samples = Vec<(Kind, Vec<Sample>)>;

pub(crate) fn print(samples: &Samples) {
    println!(
        "{:8} {:>10} {:>8} {:>8} {:>9} {:>15} {:>8} {:>8}",
        "", "us/message", "s/GB", "x raw", "x naive", "x raw w/client", "MB/s", "spread"
    );
    for (kind, own) in samples {
        let server = median(own, Sample::server);
        let end = |pick: fn(f64, f64) -> f64| own.iter().map(Sample::server).reduce(pick).unwrap_or(server);
        println!(
            "{:8} {:10.2} {:8.3} {:>8} {:>9} {:>15} {:8.0} {:7.0}%",
            kind.to_string(),
            server * 1e6,
            median(own, Sample::server_per_byte) * 1e9,
            times(ratio(samples, *kind, Kind::Raw, Sample::server)),
            times(ratio(samples, *kind, Kind::Naive, Sample::server)),
            times(ratio(samples, *kind, Kind::Raw, Sample::total)),
            median(own, Sample::bytes_per_second) / 1e6,
            (end(f64::max) - end(f64::min)) / server * 100.0,
        );
    }
}

/// Whether the gateway keeps to the limits.
pub(crate) fn print_cliffs(samples: &Samples) {
    for (other, limit) in CLIFFS {
        if let Some(ratio) = ratio(samples, Kind::Gateway, other, Sample::server) {
            let verdict = if ratio <= limit { "kept" } else { "MISSED" };
            println!("limit: gateway {ratio:.2}x {other}, at most {limit}x: {verdict}");
        }
    }
}

/// Of medians.
fn ratio(samples: &Samples, of: Kind, to: Kind, value: fn(&Sample) -> f64) -> Option<f64> {
    let median_of = |wanted| {
        let (_, own) = samples.iter().find(|(kind, _)| *kind == wanted)?;
        Some(median(own, value))
    };
    Some(median_of(of)? / median_of(to)?)
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}x"))
}

fn median(samples: &[Sample], value: fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| f.pad(value.get_name()))
    }
}
