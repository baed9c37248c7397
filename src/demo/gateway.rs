//! A gateway as a child process.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinSet;

use super::DemoError;
use super::workdir::WorkDir;
use crate::model::id::LeaseId;
use crate::model::limits::Limits;
use crate::sys::process;

/// Limit on the start, on a busy machine.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Limit on stopping: the drain, and the services' own time to end. Then the gateway is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// The gateway's drain timeout. No followers remain by then.
const DRAIN_TIMEOUT: &str = "2s";

/// Grace period of services, shorter than by default so that it fits into [`STOP_TIMEOUT`] together with the
/// drain.
const STOP_GRACE: &str = "5s";

/// Bytes of a log that are kept for error messages.
const LOG_KEPT_BYTES: usize = 16 * 1024;

const READY_MAX_BYTES: u64 = 1024;

const ANY_PORT: &str = "127.0.0.1:0";

/// Name of the fleet. The server has no other.
const FLEET: &str = "demo";

/// Connections beside the followers', for a person at another terminal.
const OTHER_CONNECTIONS: usize = 64;

/// A running gateway. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Gateway {
    child: Child,
    /// Its standard input, which ends with this process. Held here because `Child::wait` closes the standard
    /// input that it still owns.
    _lifeline: ChildStdin,
    pid: Pid,
    /// As messages call it.
    name: String,
    /// The address for tenants.
    pub(super) address: Uri,
    /// The address of the admin port.
    pub(super) admin: Uri,
    log: Log,
    /// Readers of the child's outputs.
    _readers: JoinSet<()>,
}

/// Resource usage of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// CPU time of all threads since the start.
    pub(super) cpu: Duration,
    pub(super) peak_memory_bytes: u64,
}

/// End of a process's log.
#[derive(Clone, Debug, Default)]
pub(super) struct Log(Arc<Mutex<VecDeque<u8>>>);

/// What the gateways of one demo have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Common<'a> {
    pub(super) dir: &'a WorkDir,
    /// Followers, which may all be on one gateway.
    pub(super) followers: usize,
    /// The NATS server of a fleet.
    pub(super) nats: Option<&'a str>,
}

// === impl Common ===

impl Common<'_> {
    /// Returns the arguments of the gateway that runs the services.
    pub(super) fn with_services(&self, lease: &LeaseId, sdl: &Path) -> Vec<OsString> {
        let mut lease = OsString::from(format!("{lease}="));
        lease.push(sdl);
        self.arguments(&[
            ("--lease", lease),
            ("--data-dir", self.dir.data_dir().into()),
            ("--stop-grace", STOP_GRACE.into()),
            ("--listen", ANY_PORT.into()),
        ])
    }

    /// Returns the arguments of a gateway that reads the services of the first one. Clients trust the
    /// certificate of the first one.
    pub(super) fn attached(&self, number: usize, listen: &str) -> Vec<OsString> {
        self.arguments(&[
            ("--attach", self.dir.data_dir().into()),
            ("--data-dir", self.dir.attached_data_dir(number).into()),
            ("--tls-cert", self.dir.server_certificate().into()),
            ("--tls-key", self.dir.server_key().into()),
            ("--listen", listen.into()),
        ])
    }

    fn arguments(&self, own: &[(&str, OsString)]) -> Vec<OsString> {
        let limits = Limits::default();
        // All followers share a tenant and an address.
        let needed = self.followers + OTHER_CONNECTIONS;
        let at_least = |limit: usize| OsString::from(limit.max(needed).to_string());
        let mut flags: Vec<(&str, OsString)> = vec![
            ("--platform", "local".into()),
            ("--trust-dir", self.dir.trust_dir().into()),
            ("--admin-listen", ANY_PORT.into()),
            ("--drain-timeout", DRAIN_TIMEOUT.into()),
            ("--max-connections", at_least(limits.connection.max)),
            ("--max-connections-per-peer", at_least(limits.connection.max_per_peer)),
            ("--max-streams", at_least(limits.quota.streams)),
            ("--max-streams-per-owner", at_least(limits.quota.streams_per_owner)),
            ("--log-format", "text".into()),
        ];
        if let Some(nats) = self.nats {
            flags.extend([("--nats", nats.into()), ("--fleet", FLEET.into())]);
        }
        flags.extend_from_slice(own);
        let flags = flags.into_iter().flat_map(|(flag, value)| [flag.into(), value]);
        ["serve".into(), "--lifeline".into()].into_iter().chain(flags).collect()
    }
}

// === impl Gateway ===

impl Gateway {
    /// Starts `program` and waits until it is ready. Copies its log to standard error if `verbose`.
    pub(super) async fn start(
        name: String,
        program: &Path,
        arguments: &[OsString],
        verbose: bool,
    ) -> Result<Self, DemoError> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C must reach only this process, which then stops the gateway.
            .process_group(0)
            .kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            // Settings of the user's environment do not apply to the demo.
            if name.to_string_lossy().starts_with("LEASEMUX_") {
                command.env_remove(name);
            }
        }
        let mut child = command.spawn().map_err(DemoError::Start)?;
        let missing = || DemoError::Start(io::Error::from(io::ErrorKind::NotFound));
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let pid = id.and_then(Pid::from_raw).ok_or_else(missing)?;
        let lifeline = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let log = Log::default();
        let mut readers = JoinSet::new();
        readers.spawn(log.clone().keep(stderr, verbose));
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        let mut ready = (&mut stdout).take(READY_MAX_BYTES);
        let read = tokio::time::timeout(READY_TIMEOUT, ready.read_line(&mut line)).await;
        let addresses = read.is_ok_and(|read| read.is_ok()).then(|| ready_line(&line)).flatten();
        let Some((address, admin)) = addresses else {
            let what = match tokio::time::timeout(Duration::from_secs(1), child.wait()).await {
                Ok(Ok(status)) => format!("ended with {status} before it was ready"),
                _ => format!("was not ready within {READY_TIMEOUT:?}"),
            };
            // The log is complete when standard error ends.
            let _ = child.kill().await;
            let _ = tokio::time::timeout(Duration::from_secs(1), readers.join_next()).await;
            return Err(DemoError::Gateway { name, what, log: log.text() });
        };
        readers.spawn(discard(stdout));
        Ok(Self { child, _lifeline: lifeline, pid, name, address, admin, log, _readers: readers })
    }

    /// Returns the usage so far; `None` if `/proc` has no data.
    pub(super) fn usage(&self) -> Option<Usage> {
        Some(Usage {
            cpu: process::cpu_time(self.pid)?,
            peak_memory_bytes: process::peak_memory_bytes(self.pid)?,
        })
    }

    /// Waits until the gateway exits, which is an error. Cancel safe.
    pub(super) async fn exited(&mut self) -> DemoError {
        let status = self.child.wait().await;
        self.failed(&status)
    }

    /// Kills the gateway, and waits until it is gone.
    pub(super) async fn kill(mut self) {
        let _ = self.child.kill().await;
    }

    /// Stops the gateway in order. Kills it when `abort` completes, or after [`STOP_TIMEOUT`].
    pub(super) async fn stop(mut self, abort: impl Future<Output = ()>) -> Result<(), DemoError> {
        // If it has exited already, `wait` returns its status.
        let _ = kill_process(self.pid, Signal::TERM);
        let status = tokio::select! {
            status = tokio::time::timeout(STOP_TIMEOUT, self.child.wait()) => status,
            () = abort => {
                let _ = self.child.kill().await;
                return Ok(());
            }
        };
        match status {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(status) => Err(self.failed(&status)),
            Err(_) => {
                let _ = self.child.kill().await;
                let what = format!("did not stop within {STOP_TIMEOUT:?} and was killed");
                Err(DemoError::Gateway { name: self.name, what, log: self.log.text() })
            }
        }
    }

    fn failed(&self, status: &io::Result<ExitStatus>) -> DemoError {
        let what = match status {
            Ok(status) => format!("ended with {status}"),
            Err(error) => format!("cannot be waited for ({error})"),
        };
        DemoError::Gateway { name: self.name.clone(), what, log: self.log.text() }
    }
}

/// Parses `leasemux ready: gateway https://… admin http://…`, which other addresses may follow.
fn ready_line(line: &str) -> Option<(Uri, Uri)> {
    let rest = line.trim_end().strip_prefix("leasemux ready: gateway ")?;
    let (gateway, others) = rest.split_once(" admin ")?;
    let admin = others.split(' ').next()?;
    Some((gateway.parse().ok()?, admin.parse().ok()?))
}

/// Reads and discards, so that the writer never blocks.
async fn discard(mut from: impl AsyncRead + Unpin) {
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
}

// === impl Log ===

impl Log {
    pub(super) async fn keep(self, mut from: impl AsyncRead + Unpin, show: bool) {
        let mut buffer = vec![0; 8 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let new = buffer.get(..read).unwrap_or_default();
            {
                let mut kept = self.0.lock();
                kept.extend(new);
                let surplus = kept.len().saturating_sub(LOG_KEPT_BYTES);
                kept.drain(..surplus);
            }
            if show {
                let _ = io::stderr().write_all(new);
            }
        }
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(self.0.lock().make_contiguous()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: &str = "echo leasemux ready: gateway https://127.0.0.1:1 admin http://127.0.0.1:2";

    async fn shell(script: &str) -> Result<Gateway, DemoError> {
        let arguments = ["-c".into(), script.into()];
        Gateway::start("the gateway".into(), Path::new("/bin/sh"), &arguments, false).await
    }

    #[tokio::test]
    async fn gateway_is_started_measured_and_stopped() {
        let gateway = shell(&format!("{READY}; read line; exit 7")).await.unwrap();
        assert_eq!(gateway.address.to_string(), "https://127.0.0.1:1/");
        assert_eq!(gateway.admin.to_string(), "http://127.0.0.1:2/");
        assert!(gateway.usage().unwrap().peak_memory_bytes > 0);
        let killed = gateway.stop(std::future::pending()).await.unwrap_err();
        assert!(killed.to_string().contains("signal: 15"), "{killed}");

        let gateway = shell(&format!("trap 'exit 0' TERM; {READY}; read line")).await.unwrap();
        gateway.stop(std::future::pending()).await.unwrap();
    }

    #[tokio::test]
    async fn second_signal_kills_the_gateway() {
        let gateway = shell(&format!("trap '' TERM; {READY}; read line")).await.unwrap();
        gateway.stop(std::future::ready(())).await.unwrap();
    }

    #[tokio::test]
    async fn failed_gateway_shows_its_log() {
        let error = shell("echo broken >&2; exit 3").await.unwrap_err().to_string();
        assert!(
            error.contains("exit status: 3 before it was ready") && error.ends_with("broken\n"),
            "{error}"
        );
        let error = shell("echo hello").await.unwrap_err().to_string();
        assert!(error.contains("before it was ready"), "{error}");
        let mut gateway = shell(&format!("{READY}; exit 4")).await.unwrap();
        assert!(gateway.exited().await.to_string().contains("exit status: 4"));
    }

    #[test]
    fn only_a_complete_ready_line_is_parsed() {
        for others in ["", " rest https://h:3 published https://h:4"] {
            let line = format!("leasemux ready: gateway https://h:1 admin http://h:2{others}\n");
            assert!(ready_line(&line).is_some(), "{line}");
        }
        for line in
            ["", "leasemux ready: gateway https://h:1\n", "ready", "leasemux ready: gateway a b admin c"]
        {
            assert_eq!(ready_line(line), None, "{line}");
        }
    }
}
