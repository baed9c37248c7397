//! The NATS server of a demo with several gateways.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access};
use serde::Deserialize;
use tokio::task::JoinSet;

use super::DemoError;
use super::gateway::Log;
use crate::platform::local::companion::Companion;

const PROGRAM: &str = "nats-server";

/// Limit on the start, on a busy machine.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Interval of looks for the file with the server's address. It starts within some ten milliseconds.
const READY_POLL: Duration = Duration::from_millis(20);

/// Limit on reading the log of a server that has ended.
const LOG_TIMEOUT: Duration = Duration::from_secs(1);

/// The server's time to end. It has no clients by then.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// A running NATS server, which accepts connections of this machine. Dropping it ends it.
#[derive(Debug)]
pub(super) struct NatsServer {
    companion: Companion,
    /// Its address, as `--nats` takes it.
    pub(super) url: String,
    log: Log,
    _readers: JoinSet<()>,
}

/// The file that the server writes when it is ready.
#[derive(Deserialize)]
struct Ports {
    nats: Vec<String>,
}

/// Returns the server's program: `configured`, or the one that is found on the PATH.
pub(super) fn program(configured: Option<&Path>) -> Result<PathBuf, DemoError> {
    let found = configured.map(Path::to_owned).or_else(|| {
        let dirs = env::var_os("PATH")?;
        env::split_paths(&dirs).map(|dir| dir.join(PROGRAM)).find(|file| is_executable(file))
    });
    // It is started in another directory.
    found.and_then(|file| std::path::absolute(file).ok()).ok_or(DemoError::NoNatsServer)
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && access(file, Access::EXEC_OK).is_ok()
}

// === impl NatsServer ===

impl NatsServer {
    /// Starts `program` on a free port, with its files in `dir`, and waits until it is ready. `exe` supervises
    /// it. Copies its log to standard error if `verbose`.
    pub(super) async fn start(
        program: &Path,
        exe: &Path,
        dir: &Path,
        verbose: bool,
    ) -> Result<Self, DemoError> {
        let text = |path: &Path| path.display().to_string();
        let mut command = vec![text(program)];
        command.extend(["--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir"].map(str::to_owned));
        command.push(text(dir));
        let failed = |what: String, log: &Log| DemoError::NatsServer { what, log: log.text() };
        let started = Companion::start(exe, command, dir).await;
        let log = Log::default();
        let (mut companion, outputs) = started.map_err(|error| failed(error.to_string(), &log))?;
        let mut readers = JoinSet::new();
        for output in outputs {
            readers.spawn(log.clone().keep(output, verbose));
        }
        let url = tokio::select! {
            url = tokio::time::timeout(READY_TIMEOUT, address(dir)) => url.map_err(|_| {
                failed(format!("was not ready within {READY_TIMEOUT:?}"), &log)
            })?,
            () = companion.ended() => {
                // The log is complete when the outputs end.
                let complete = async { while readers.join_next().await.is_some() {} };
                let _ = tokio::time::timeout(LOG_TIMEOUT, complete).await;
                return Err(failed("ended before it was ready".to_owned(), &log));
            }
        };
        Ok(Self { companion, url, log, _readers: readers })
    }

    /// Waits until the server ends by itself, which is an error. Cancel safe.
    pub(super) async fn ended(&mut self) -> DemoError {
        self.companion.ended().await;
        DemoError::NatsServer { what: "ended".to_owned(), log: self.log.text() }
    }

    /// Stops the server.
    pub(super) async fn stop(self) {
        self.companion.stop(STOP_GRACE).await;
    }
}

/// Waits until the server has written its address to a file in `dir`.
async fn address(dir: &Path) -> String {
    loop {
        if let Some(url) = written_address(dir) {
            return url;
        }
        tokio::time::sleep(READY_POLL).await;
    }
}

/// Reads the file, whose name has the server's process id. `None` while it is written.
fn written_address(dir: &Path) -> Option<String> {
    let mut files = dir.read_dir().ok()?.flatten().map(|entry| entry.path());
    let file = files.find(|file| file.extension().is_some_and(|extension| extension == "ports"))?;
    let ports: Ports = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    ports.nats.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_read_from_a_complete_file() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(written_address(dir.path()), None);
        let write = |text: &str| std::fs::write(dir.path().join("nats-server_7.ports"), text).unwrap();
        write("{\"nats\":[\"nats://127");
        assert_eq!(written_address(dir.path()), None);
        write("{\"nats\":[\"nats://127.0.0.1:4222\"]}");
        assert_eq!(written_address(dir.path()).as_deref(), Some("nats://127.0.0.1:4222"));
    }

    #[test]
    fn configured_program_is_absolute() {
        let found = program(Some(Path::new("bin/nats-server"))).unwrap();
        assert!(found.is_absolute() && found.ends_with("bin/nats-server"), "{found:?}");
    }
}
