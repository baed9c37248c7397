//! Usage and limits of this process, and the usage of its children.
//!
//! The smaller crates for this report CPU time in whole seconds, and `procfs` is large. A few files of
//! `/proc` are parsed here instead.

use std::fs;
use std::io;
use std::time::Duration;

use futures_util::future::select_all;
use memchr::memrchr;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::Signal;

/// Resource usage of this process.
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

/// The fields of `/proc/PID/stat` from [`FIRST_FIELD`] on, by their numbers in proc(5).
struct Stat(String);

/// The first field after the program's name in parentheses, which may contain any bytes.
const FIRST_FIELD: usize = 3;

const PPID: usize = 4;
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
    let stat = Stat::parse(&fs::read("/proc/self/stat")?).ok_or_else(invalid_format)?;
    let open = fs::read_dir("/proc/self/fd")?.count() as u64;
    let usage = || {
        Some(Usage {
            cpu_seconds: stat.cpu_seconds()?,
            resident_bytes: stat.number(RSS)? * page_size() as u64,
            virtual_bytes: stat.number(VSIZE)?,
            threads: stat.number(NUM_THREADS)?,
            // Without the descriptor of this directory.
            open_files: open.saturating_sub(1),
            max_files: getrlimit(Resource::Nofile).current,
            started_seconds: boot_seconds()? + stat.seconds(STARTTIME)?,
        })
    };
    usage().ok_or_else(invalid_format)
}

/// Raises the limit of open files of this process and its children to `needed`, or as far as the system
/// permits. Returns the limit, which may be higher.
pub fn raise_fd_limit(needed: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let current = current.unwrap_or(u64::MAX);
    let raised = needed.min(maximum.unwrap_or(u64::MAX));
    if current >= raised || setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }).is_err() {
        return current;
    }
    raised
}

/// Returns the CPU time of all threads of `pid` since its start; `None` if the process is gone.
pub(crate) fn cpu_time(pid: Pid) -> Option<Duration> {
    Duration::try_from_secs_f64(Stat::of(pid)?.cpu_seconds()?).ok()
}

/// Returns the largest amount of resident memory that `pid` has had, in bytes; `None` if the process is gone.
pub(crate) fn peak_memory_bytes(pid: Pid) -> Option<u64> {
    peak_memory(&fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid())).ok()?)
}

fn peak_memory(status: &str) -> Option<u64> {
    let kibibytes: u64 = status_field(status, "VmHWM:")?.strip_suffix("kB")?.trim_end().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Returns the parent of `pid`; `None` if the process is gone.
pub(crate) fn parent(pid: Pid) -> Option<Pid> {
    Stat::of(pid)?.parent()
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
    let mask = u64::from_str_radix(status_field(status, "SigIgn:")?, 16).ok()?;
    Some(mask.checked_shr(signal.checked_sub(1)?)? & 1 == 1)
}

/// Returns the value of a line of `/proc/PID/status`.
fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Waits for any of `signals`. Cancel safe.
pub(crate) async fn any_signal(signals: &mut [Signal]) {
    select_all(signals.iter_mut().map(|signal| Box::pin(signal.recv()))).await;
}

/// Returns the system's start time in Unix seconds.
fn boot_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn invalid_format() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "unexpected format of /proc")
}

// === impl Stat ===

impl Stat {
    fn of(pid: Pid) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?)
    }

    fn parse(stat: &[u8]) -> Option<Self> {
        let fields = stat.get(memrchr(b')', stat)? + 1..)?;
        Some(Self(str::from_utf8(fields).ok()?.to_owned()))
    }

    fn number(&self, field: usize) -> Option<u64> {
        self.0.split_ascii_whitespace().nth(field - FIRST_FIELD)?.parse().ok()
    }

    /// Converts a number of clock ticks.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn seconds(&self, field: usize) -> Option<f64> {
        Some(self.number(field)? as f64 / clock_ticks_per_second() as f64)
    }

    fn cpu_seconds(&self) -> Option<f64> {
        Some(self.seconds(UTIME)? + self.seconds(STIME)?)
    }

    fn parent(&self) -> Option<Pid> {
        Pid::from_raw(self.number(PPID)?.try_into().ok()?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn fields_are_found_after_any_program_name() {
        let fields: Vec<_> = (4..=52).map(|field| field.to_string()).collect();
        let text = format!("1 (a) b (c)) S {}", fields.join(" "));
        let stat = Stat::parse(text.as_bytes()).unwrap();
        for field in [PPID, UTIME, STIME, NUM_THREADS, STARTTIME, VSIZE, RSS, 52] {
            assert_eq!(stat.number(field), Some(field as u64));
        }
        assert_eq!(stat.number(53), None);
    }

    #[test]
    fn parent_is_parsed_after_any_name() {
        let check = |stat: &[u8], expected: Option<i32>| {
            let parent = Stat::parse(stat).and_then(|stat| stat.parent());
            assert_eq!(parent, expected.and_then(Pid::from_raw), "{}", stat.escape_ascii());
        };
        check(b"12 (sh) S 7 12 12 0 -1", Some(7));
        check(b"12 (a) S 1 (b) c) Z 31 12", Some(31));
        check(b"12 (\xff) S 7 12", Some(7));
        check(b"1 (init) S 0 1 1", None);
        check(b"12 (sh", None);
        check(b"", None);
    }

    #[test]
    fn own_parent_is_found() {
        assert_eq!(parent(rustix::process::getpid()), rustix::process::getppid());
    }

    #[test]
    fn usage_of_a_process_is_parsed() {
        let ticks = clock_ticks_per_second();
        let stat = format!("42 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 {} {} 0 0 20 0", 3 * ticks, ticks / 2);
        let cpu = Stat::parse(stat.as_bytes()).and_then(|stat| stat.cpu_seconds());
        assert_eq!(cpu, Some(3.5));
        assert_eq!(Stat::parse(b"42 (a) S 1").and_then(|stat| stat.cpu_seconds()), None);
        assert_eq!(peak_memory("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"), Some(2 << 20));
        assert_eq!(peak_memory(""), None);
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
    fn fd_limit_is_never_lowered_and_raised_up_to_the_maximum() {
        let limit = || getrlimit(Resource::Nofile);
        let before = limit().current;
        assert_eq!(raise_fd_limit(1), before.unwrap_or(u64::MAX));
        assert_eq!(limit().current, before);
        if let Some(most) = limit().maximum {
            assert_eq!(raise_fd_limit(most + 1), most);
            assert_eq!(limit().current, Some(most));
            setrlimit(Resource::Nofile, Rlimit { current: before, maximum: Some(most) }).unwrap();
        }
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
