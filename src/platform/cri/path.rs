//! Layout of container logs: `ROOT/NAMESPACE_POD_UID/CONTAINER/RESTARTS.log`, as under `/var/log/pods`.
//!
//! When a log is rotated, `0.log` becomes `0.log.20261123-120000`, in the local time of the process that
//! renames it (kubelet: `pkg/kubelet/logs/container_log_manager.go`), and later perhaps
//! `0.log.20261123-120000.gz`. Our own log writer appends nine digits of a second, so that it can rotate
//! several times a second. `.tmp` files are unfinished compressions.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::model::time::LogTime;

const LOG: &str = ".log";

const GZ: &str = ".gz";

/// The name of a pod's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodDir<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) pod: &'a str,
    /// The pod's uid (for a static pod, the hash of its configuration).
    pub(crate) uid: &'a str,
}

/// The name of one file of a container's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogName {
    /// Number of the run: the container's restart count.
    pub run_number: u32,
    /// Time of rotation (`20261123-120000`, perhaps with `.123456789`), which orders rotated files as text.
    /// `None` for the active file.
    pub rotated: Option<String>,
    /// Whether it is compressed.
    pub gz: bool,
}

/// Returns the suffix of a file rotated at `time`: UTC, with nanoseconds. The caller must pass growing times,
/// even if the clock goes back.
pub(crate) fn rotation_suffix(time: LogTime) -> String {
    let (seconds, nanos) = time.parts();
    jiff::Timestamp::from_second(seconds)
        .map(|stamp| format!("{}.{nanos:09}", stamp.strftime("%Y%m%d-%H%M%S")))
        .unwrap_or_default()
}

// === impl PodDir ===

impl<'a> PodDir<'a> {
    pub(crate) fn parse(name: &'a str) -> Option<Self> {
        let mut parts = name.split('_');
        let (namespace, pod, uid) = (parts.next()?, parts.next()?, parts.next()?);
        let whole = parts.next().is_none() && !namespace.is_empty() && !pod.is_empty() && !uid.is_empty();
        whole.then_some(Self { namespace, pod, uid })
    }

    /// Returns the directory with the logs of one of the pod's containers.
    pub(crate) fn container(&self, root: &Path, container: &str) -> PathBuf {
        root.join(self.to_string()).join(container)
    }
}

impl fmt::Display for PodDir<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}_{}", self.namespace, self.pod, self.uid)
    }
}

// === impl LogName ===

impl LogName {
    /// The active file of run `run_number`.
    pub fn active(run_number: u32) -> Self {
        Self { run_number, rotated: None, gz: false }
    }

    /// Parses a file name. Returns `None` if it is not that of a log.
    pub fn parse(name: &str) -> Option<Self> {
        let (number, rest) = name.split_once(LOG)?;
        let run_number: u32 = number.parse().ok()?;
        // The number parser also accepts `+1` and `01`.
        if run_number.to_string() != number {
            return None;
        }
        if rest.is_empty() {
            return Some(Self::active(run_number));
        }
        let rest = rest.strip_prefix('.')?;
        let (suffix, gz) = rest.strip_suffix(GZ).map_or((rest, false), |suffix| (suffix, true));
        is_rotation_suffix(suffix).then(|| Self { run_number, rotated: Some(suffix.to_owned()), gz })
    }

    /// A key that sorts files by age: rotated before active, by suffix, and a log before its compressed copy.
    pub(crate) fn age_order(&self) -> (bool, Option<&str>, bool) {
        (self.rotated.is_none(), self.rotated.as_deref(), self.gz)
    }
}

impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{LOG}", self.run_number)?;
        if let Some(suffix) = &self.rotated {
            write!(f, ".{suffix}")?;
        }
        f.write_str(if self.gz { GZ } else { "" })
    }
}

/// `20261123-120000` or `20261123-120000.123456789`.
fn is_rotation_suffix(suffix: &str) -> bool {
    let (stamp, fraction) = suffix.split_once('.').unwrap_or((suffix, "000000000"));
    let digits = |text: &str, len: usize| text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit());
    stamp.split_once('-').is_some_and(|(date, time)| digits(date, 8) && digits(time, 6))
        && digits(fraction, 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_directory_is_parsed_and_joined() {
        let dir = PodDir::parse("ns_web-0_5f3c").unwrap();
        assert_eq!((dir.namespace, dir.pod, dir.uid), ("ns", "web-0", "5f3c"));
        assert_eq!(
            dir.container(Path::new("/var/log/pods"), "web"),
            Path::new("/var/log/pods/ns_web-0_5f3c/web")
        );
        for name in ["", "ns", "ns_pod", "_pod_uid", "ns__uid", "ns_pod_", "ns_pod_uid_more"] {
            assert_eq!(PodDir::parse(name), None, "{name}");
        }
    }

    #[test]
    fn file_names_round_trip() {
        for (name, run_number, rotated, gz) in [
            ("0.log", 0, None, false),
            ("12.log", 12, None, false),
            ("0.log.20261123-120000", 0, Some("20261123-120000"), false),
            ("0.log.20261123-120000.gz", 0, Some("20261123-120000"), true),
            ("3.log.20261123-120000.000000007", 3, Some("20261123-120000.000000007"), false),
            ("3.log.20261123-120000.000000007.gz", 3, Some("20261123-120000.000000007"), true),
        ] {
            let parsed = LogName::parse(name).unwrap();
            assert_eq!(parsed.to_string(), name);
            assert_eq!(
                (parsed.run_number, parsed.rotated.as_deref(), parsed.gz),
                (run_number, rotated, gz),
                "{name}"
            );
        }
        for name in [
            "",
            "log",
            ".log",
            "a.log",
            "+0.log",
            "01.log",
            "99999999999.log",
            "0.logs",
            "0.log.gz",
            "0.log.20261123-120000.tmp",
            "0.log.20261123-120000.7",
            "0.log.20261123-120000.000000007.tmp",
            "0.log.20261123-120000.gz.gz",
            "0.log.20261123120000",
        ] {
            assert_eq!(LogName::parse(name), None, "{name}");
        }
    }

    #[test]
    fn rotation_suffixes_are_parsed_and_sorted() {
        let suffixes = [0, 1, 999_999_999, 1_000_000_000, 1_795_435_200_000_000_000].map(|nanos| {
            let suffix = rotation_suffix(LogTime::from_nanos(nanos));
            assert!(is_rotation_suffix(&suffix), "{suffix}");
            suffix
        });
        assert!(suffixes.is_sorted(), "{suffixes:?}");
        assert_eq!(suffixes[4], "20261123-120000.000000000");
        // The kubelet's suffixes have no fraction and sort before ours of the same second.
        assert!("20261123-120000" < suffixes[4].as_str());
    }
}
