//! Where the logs of containers lie: `ROOT/NAMESPACE_POD_UID/CONTAINER/RESTARTS.log`, as under `/var/log/pods`.
//!
//! When a log is rotated, `0.log` becomes `0.log.20261123-120000`, in the local time of whoever renames it (kubelet:
//! `pkg/kubelet/logs/container_log_manager.go`), and later perhaps `0.log.20261123-120000.gz`. Our own log writer adds nine digits
//! of a second to the suffix, so that it can rotate several times a second. `.tmp` files are compressions under way.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::model::time::LogTime;

/// Ends the name of the log that is being written.
const LOG: &str = ".log";

/// Ends the name of a compressed log.
const GZ: &str = ".gz";

/// The directory of one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodDir<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's name.
    pub pod: &'a str,
    /// The pod's uid (of a static pod: the hash of its configuration).
    pub uid: &'a str,
}

/// The name of one file of a container's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogName {
    /// How many times the container had been restarted: which run it is.
    pub restarts: u32,
    /// When it was rotated (`20261123-120000`, perhaps with `.123456789`); orders rotated files as text. `None` for the file that
    /// is being written.
    pub rotated: Option<String>,
    /// Whether it is compressed.
    pub gz: bool,
}

/// The suffix for a file that is rotated at `time`, in UTC and with nanoseconds. Whoever rotates must see to it that suffixes
/// grow, even if the clock goes back.
pub fn rotation_suffix(time: LogTime) -> String {
    let (seconds, nanos) = time.parts();
    jiff::Timestamp::from_second(seconds)
        .map(|stamp| format!("{}.{nanos:09}", stamp.strftime("%Y%m%d-%H%M%S")))
        .unwrap_or_default()
}

// === impl PodDir ===

impl<'a> PodDir<'a> {
    /// Reads the name of a pod's directory; `None` if it is not one.
    pub fn parse(name: &'a str) -> Option<Self> {
        let mut parts = name.split('_');
        let (namespace, pod, uid) = (parts.next()?, parts.next()?, parts.next()?);
        let whole = parts.next().is_none() && !namespace.is_empty() && !pod.is_empty() && !uid.is_empty();
        whole.then_some(Self { namespace, pod, uid })
    }

    /// The directory with the logs of one of the pod's containers.
    pub fn container(&self, root: &Path, container: &str) -> PathBuf {
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
    /// The file of run `restarts` that is being written.
    pub fn active(restarts: u32) -> Self {
        Self { restarts, rotated: None, gz: false }
    }

    /// Reads the name of a file; `None` if it is none of a log's.
    pub fn parse(name: &str) -> Option<Self> {
        let (restarts, rest) = name.split_once(LOG)?;
        let number: u32 = restarts.parse().ok()?;
        // `+1` and `01` are numbers to the parser, but no restart counts.
        if number.to_string() != restarts {
            return None;
        }
        if rest.is_empty() {
            return Some(Self::active(number));
        }
        let rest = rest.strip_prefix('.')?;
        let (suffix, gz) = rest.strip_suffix(GZ).map_or((rest, false), |suffix| (suffix, true));
        is_rotation_suffix(suffix).then(|| Self { restarts: number, rotated: Some(suffix.to_owned()), gz })
    }
}

impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{LOG}", self.restarts)?;
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
    fn pod_directories() {
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
    fn file_names() {
        for (name, restarts, rotated, gz) in [
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
                (parsed.restarts, parsed.rotated.as_deref(), parsed.gz),
                (restarts, rotated, gz),
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
    fn our_suffixes_are_rotations_and_grow() {
        let suffixes = [0, 1, 999_999_999, 1_000_000_000, 1_795_435_200_000_000_000].map(|nanos| {
            let suffix = rotation_suffix(LogTime::from_nanos(nanos));
            assert!(is_rotation_suffix(&suffix), "{suffix}");
            suffix
        });
        assert!(suffixes.is_sorted(), "{suffixes:?}");
        assert_eq!(suffixes[4], "20261123-120000.000000000");
        // The kubelet's own, without a fraction, comes before ours of the same second.
        assert!("20261123-120000" < suffixes[4].as_str());
    }
}
