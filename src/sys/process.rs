//! Resource usage of this process, from `/proc/self`.
//!
//! The smaller crates for this report CPU time in whole seconds, and `procfs` is large; three files are
//! parsed here instead.

use std::fs;
use std::io;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// Resource usage of the process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// CPU time of all threads, user and system, in seconds.
    pub(crate) cpu_seconds: f64,
    /// Resident memory in bytes.
    pub(crate) resident_bytes: u64,
    /// Address space in bytes.
    pub(crate) virtual_bytes: u64,
    /// Number of threads.
    pub threads: u64,
    pub(crate) open_files: u64,
    /// Limit of open file descriptors; `None` if unlimited.
    pub(crate) max_files: Option<u64>,
    /// Start time of the process in Unix seconds.
    pub(crate) started_seconds: f64,
}

/// The fields of `/proc/self/stat` from [`FIRST_FIELD`] on, by their numbers in proc(5).
struct Stat<'a>(Vec<&'a str>);

/// The first field after the program's name, which may contain spaces and parentheses.
const FIRST_FIELD: usize = 3;

const UTIME: usize = 14;
const STIME: usize = 15;
const NUM_THREADS: usize = 20;
const STARTTIME: usize = 22;
const VSIZE: usize = 23;
const RSS: usize = 24;

/// Reads the usage of this process.
///
/// # Errors
/// `/proc` cannot be read, or has another format than proc(5) describes.
pub fn usage() -> io::Result<Usage> {
    let text = fs::read_to_string("/proc/self/stat")?;
    let stat = Stat::of(&text).ok_or_else(invalid_format)?;
    let ticks = |field| Some(seconds(stat.number(field)?));
    let open = fs::read_dir("/proc/self/fd")?.count() as u64;
    let usage = || {
        Some(Usage {
            cpu_seconds: ticks(UTIME)? + ticks(STIME)?,
            resident_bytes: stat.number(RSS)? * page_size() as u64,
            virtual_bytes: stat.number(VSIZE)?,
            threads: stat.number(NUM_THREADS)?,
            // Without the descriptor of this directory.
            open_files: open.saturating_sub(1),
            max_files: getrlimit(Resource::Nofile).current,
            started_seconds: boot_seconds()? + ticks(STARTTIME)?,
        })
    };
    usage().ok_or_else(invalid_format)
}

/// Returns whether this process ignores the signal with this number. `nohup` makes its child ignore SIGHUP.
///
/// # Errors
/// As for [`usage`].
pub fn ignores(signal: u32) -> io::Result<bool> {
    ignored(&fs::read_to_string("/proc/self/status")?, signal).ok_or_else(invalid_format)
}

/// Reads the mask of ignored signals. Bit 0 is signal 1.
fn ignored(status: &str, signal: u32) -> Option<bool> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    Some(mask.checked_shr(signal.checked_sub(1)?)? & 1 == 1)
}

/// Returns the system's start time in Unix seconds.
fn boot_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / clock_ticks_per_second() as f64
}

fn invalid_format() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "unexpected format of /proc")
}

// === impl Stat ===

impl<'a> Stat<'a> {
    fn of(text: &'a str) -> Option<Self> {
        let (_, fields) = text.rsplit_once(')')?;
        Some(Self(fields.split_whitespace().collect()))
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
    fn fields_are_found_after_any_program_name() {
        let fields: Vec<_> = (4..=52).map(|field| field.to_string()).collect();
        let text = format!("1 (a) b (c) S {}", fields.join(" "));
        let stat = Stat::of(&text).unwrap();
        for field in [UTIME, STIME, NUM_THREADS, STARTTIME, VSIZE, RSS, 52] {
            assert_eq!(stat.number(field), Some(field as u64));
        }
        assert_eq!(stat.number(53), None);
    }

    #[test]
    fn ignored_signals_are_found() {
        let status =
            "Name:\ta\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n";
        for (signal, expected) in [(1, true), (2, false), (12, false), (13, true), (64, false)] {
            assert_eq!(ignored(status, signal), Some(expected), "{signal}");
        }
        assert_eq!((ignored(status, 0), ignored(status, 65), ignored("", 1)), (None, None, None));
        // Rust programs ignore SIGPIPE.
        assert!(ignores(13).unwrap());
    }

    #[test]
    fn usage_is_plausible() {
        let before = usage().unwrap();
        let file = fs::File::open("/proc/self/stat").unwrap();
        let block = vec![1_u8; 64 << 20];
        let after = usage().unwrap();
        // Other tests open and close files at the same time, so only bounds can be checked.
        assert!(after.open_files >= 4 && before.max_files.is_none_or(|max| after.open_files < max));
        assert!(after.resident_bytes >= block.iter().map(|byte| u64::from(*byte)).sum());
        assert!(after.virtual_bytes > after.resident_bytes);
        assert!(after.cpu_seconds > 0.0 && after.threads >= 2);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(after.started_seconds <= now + 1.0 && after.started_seconds > now - 24.0 * 3600.0);
        drop(file);
    }
}
