//! What the system tells of this process: from `/proc/self`, a few small files for each look.
//!
//! By hand, since the crates for it count the processor's time in whole seconds, or bring all of procfs along.

use std::fs;
use std::io;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// What the process uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Processor time of all threads, user and system, in seconds.
    pub cpu_seconds: f64,
    /// Memory that is really there, in bytes.
    pub resident_bytes: u64,
    /// Address space, in bytes.
    pub virtual_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Files that are open, sockets included.
    pub open_files: u64,
    /// Files that may be open; `None` = as many as the system has.
    pub max_files: Option<u64>,
    /// When it was started, in seconds since 1970.
    pub started_seconds: f64,
}

/// The fields that are wanted of `/proc/self/stat` (proc(5)), by their numbers there.
struct Stat<'a>(Vec<&'a str>);

/// The first of the fields that stand behind the program's name, which may hold anything.
const FIRST_FIELD: usize = 3;

const UTIME: usize = 14;
const STIME: usize = 15;
const NUM_THREADS: usize = 20;
const STARTTIME: usize = 22;
const VSIZE: usize = 23;
const RSS: usize = 24;

/// Looks.
///
/// # Errors
/// What the system says, if `/proc` is not there, or not as proc(5) has it.
pub fn usage() -> io::Result<Usage> {
    let text = fs::read_to_string("/proc/self/stat")?;
    let stat = Stat::of(&text).ok_or_else(unlike)?;
    let ticks = |field| Some(seconds(stat.number(field)?));
    let open = fs::read_dir("/proc/self/fd")?.count() as u64;
    let usage = || {
        Some(Usage {
            cpu_seconds: ticks(UTIME)? + ticks(STIME)?,
            resident_bytes: stat.number(RSS)? * page_size() as u64,
            virtual_bytes: stat.number(VSIZE)?,
            threads: stat.number(NUM_THREADS)?,
            // One of them is open only for this.
            open_files: open.saturating_sub(1),
            max_files: getrlimit(Resource::Nofile).current,
            started_seconds: boot_seconds()? + ticks(STARTTIME)?,
        })
    };
    usage().ok_or_else(unlike)
}

/// Whether this process ignores a signal, as whoever started it may have had it (`nohup`); the signal by its number.
///
/// # Errors
/// As of [`usage`].
pub fn ignores(signal: u32) -> io::Result<bool> {
    ignored(&fs::read_to_string("/proc/self/status")?, signal).ok_or_else(unlike)
}

/// Reads the mask of ignored signals: the lowest bit is signal 1.
fn ignored(status: &str, signal: u32) -> Option<bool> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    Some(mask.checked_shr(signal.checked_sub(1)?)? & 1 == 1)
}

/// When the system was started, in seconds since 1970.
fn boot_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / clock_ticks_per_second() as f64
}

fn unlike() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "/proc is not as proc(5) has it")
}

// === impl Stat ===

impl<'a> Stat<'a> {
    fn of(text: &'a str) -> Option<Self> {
        let (_, behind) = text.rsplit_once(')')?;
        Some(Self(behind.split_whitespace().collect()))
    }

    fn number(&self, field: usize) -> Option<u64> {
        self.0.get(field - FIRST_FIELD)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn fields_are_counted_behind_whatever_the_program_is_called() {
        let fields: Vec<_> = (4..=52).map(|field| field.to_string()).collect();
        let text = format!("1 (a) b (c) S {}", fields.join(" "));
        let stat = Stat::of(&text).unwrap();
        for field in [UTIME, STIME, NUM_THREADS, STARTTIME, VSIZE, RSS, 52] {
            assert_eq!(stat.number(field), Some(field as u64));
        }
        assert_eq!(stat.number(53), None);
    }

    #[test]
    fn ignored_signals_are_told_from_others() {
        let status =
            "Name:\ta\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n";
        for (signal, expected) in [(1, true), (2, false), (12, false), (13, true), (64, false)] {
            assert_eq!(ignored(status, signal), Some(expected), "{signal}");
        }
        assert_eq!((ignored(status, 0), ignored(status, 65), ignored("", 1)), (None, None, None));
        // Rust's own start has every program ignore it.
        assert!(ignores(13).unwrap());
    }

    #[test]
    fn usage_is_that_of_this_process() {
        let before = usage().unwrap();
        let file = fs::File::open("/proc/self/stat").unwrap();
        let block = vec![1_u8; 64 << 20];
        let after = usage().unwrap();
        // Other tests of this process open and close files meanwhile, so only bounds hold.
        assert!(after.open_files >= 4 && before.max_files.is_none_or(|max| after.open_files < max));
        assert!(after.resident_bytes >= block.iter().map(|byte| u64::from(*byte)).sum());
        assert!(after.virtual_bytes > after.resident_bytes);
        assert!(after.cpu_seconds > 0.0 && after.threads >= 2);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(after.started_seconds <= now + 1.0 && after.started_seconds > now - 24.0 * 3600.0);
        drop(file);
    }
}
