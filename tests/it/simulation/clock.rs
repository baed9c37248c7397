//! The simulated wall clock, and the record of all events of a simulation.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::time::Duration;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

/// 2026-11-25 01:00 UTC, an hour after the first run of the [cluster](crate::kube::cluster) began.
const EPOCH_SECONDS: u64 = 1_795_568_400;

/// Names a file that gets each event of a simulation, to compare two runs of a seed.
const TRACE_FILE: &str = "LEASEMUX_SIMULATION_TRACE";

thread_local! {
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
    /// How much the wall clock is ahead, in seconds.
    static AHEAD: Cell<i64> = const { Cell::new(0) };
    static RECORD: RefCell<Option<Record>> = const { RefCell::new(None) };
}

struct Record {
    hash: Sha256,
    file: Option<BufWriter<File>>,
}

/// Starts the record. In the runtime.
pub(super) fn start() {
    START.set(Some(Instant::now()));
    let file = std::env::var_os(TRACE_FILE).map(|name| BufWriter::new(File::create(name).unwrap()));
    RECORD.set(Some(Record { hash: Sha256::new(), file }));
}

/// Ends the record. Returns the hash of all events.
pub(super) fn finish() -> String {
    let record = RECORD.take().expect("a record was started");
    if let Some(mut file) = record.file {
        file.flush().unwrap();
    }
    START.set(None);
    HEXLOWER.encode(&record.hash.finalize())
}

/// The time since the simulation began.
pub(super) fn elapsed() -> Duration {
    START.get().map_or(Duration::ZERO, |start| start.elapsed())
}

/// The time since the Unix epoch, as the system's clock shows it.
pub(super) fn wall_clock() -> Duration {
    let seconds = EPOCH_SECONDS.checked_add_signed(AHEAD.get()).expect("a time after the epoch");
    Duration::from_secs(seconds) + elapsed()
}

/// Sets the system's clock forward or back.
pub(super) fn jump(seconds: i64) {
    AHEAD.set(AHEAD.get() + seconds);
}

/// Records an event with the simulated time.
pub(super) fn record(event: fmt::Arguments<'_>) {
    let line = format!("{:?} {event}\n", elapsed());
    RECORD.with_borrow_mut(|record| {
        let Some(record) = record else { return };
        record.hash.update(&line);
        if let Some(file) = &mut record.file {
            file.write_all(line.as_bytes()).unwrap();
        }
    });
}
