//! The program's log: lines on standard error, written by a separate thread.
//!
//! A pager, a paused terminal or a slow collector may stop reading standard error, and a pipe holds only a
//! few hundred lines. No task may block on it. Lines wait in a bounded queue; further lines are dropped and
//! counted.

use std::convert::Infallible;
use std::io::Write;
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::config::Format;

/// Queued lines: a few seconds of heavy logging, a few MiB at most.
const QUEUE_MAX_LINES: usize = 4_096;

/// Interval between reports of dropped lines.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Libraries that parse input of unknown peers log errors only. Their warnings are about single frames and
/// handshakes, so a peer could cause thousands of lines per second. `kube_runtime` warns of each denied watch
/// request, and this program reports a denial once. `async_nats` logs each failed attempt to connect and each
/// dropped message, and `exchange::nats` reports the same less often. `--log-filter` can override each
/// library by name.
const LIBRARIES: &str = "rustls=error,h2=error,hyper=error,kube_runtime=error,async_nats=off";

/// The log of a gateway or a canary. Drop waits up to one second for queued lines.
#[derive(Debug)]
pub(crate) struct Log {
    dropped: ErrorCounter,
    _writer: WorkerGuard,
}

// === impl Log ===

impl Log {
    /// Starts to log to standard error. `directives` are valid filter directives.
    pub(crate) fn start(format: Format, directives: &str) -> Self {
        let (log, queue) = Self::over(std::io::stderr());
        let filter = filter(directives);
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(queue);
        // The formatter would report its own errors with `eprintln!`, which panics if standard error is
        // closed.
        let lines = lines.log_internal_errors(false);
        let colours = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
        // Fails only if another subscriber is installed; that one stays in use.
        let _ = match format {
            Format::Json => lines.json().try_init(),
            Format::Text => lines.with_ansi(colours).try_init(),
        };
        log
    }

    fn over(out: impl Write + Send + 'static) -> (Self, NonBlocking) {
        let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(QUEUE_MAX_LINES);
        let (queue, writer) = builder.thread_name("log").finish(out);
        (Self { dropped: queue.error_counter(), _writer: writer }, queue)
    }

    /// Logs the number of dropped lines periodically. Never returns. Cancel safe.
    pub(crate) async fn report_losses(&self) -> Infallible {
        let mut reported = 0;
        loop {
            tokio::time::sleep(REPORT_INTERVAL).await;
            let dropped = self.dropped.dropped_lines();
            if dropped > reported {
                tracing::warn!(lines = dropped - reported, "dropped log lines; standard error was not read");
                reported = dropped;
            }
        }
    }
}

/// Builds the filter. `directives` were validated with the configuration, and override [`LIBRARIES`] because
/// later directives for a target replace earlier ones.
fn filter(directives: &str) -> EnvFilter {
    EnvFilter::try_new(format!("{LIBRARIES},{directives}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// Blocks each write until the test permits it.
    struct Gated(Receiver<()>);

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // A closed channel permits all writes.
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Logs sample lines about peers' input with these directives. Returns the targets that were logged.
    fn logged(directives: &str) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines = tracing_subscriber::fmt().with_env_filter(filter(directives));
        let subscriber = lines.with_ansi(false).without_time().with_writer(file.reopen().unwrap()).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "rustls::msgs::handshake", "server name is an address");
            tracing::warn!(target: "h2::proto::ping_pong", "acknowledged a ping that was never sent");
            tracing::warn!(target: "hyper::proto::h2::server", "connect request with a body");
            tracing::warn!(target: "kube_runtime::watcher", "watch list error with 403");
            tracing::error!(target: "h2::proto", "error");
            tracing::warn!(target: "leasemux::edge", "warning");
        });
        let text = std::fs::read_to_string(file.path()).unwrap();
        text.lines().map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect()
    }

    #[test]
    fn libraries_that_parse_peer_input_log_errors_only() {
        for directives in ["info", "", "debug", "warn,leasemux=debug"] {
            let ours: &[&str] = if directives.is_empty() { &[] } else { &["leasemux::edge:"] };
            let expected = [&["h2::proto:"], ours].concat();
            assert_eq!(logged(directives), expected, "{directives}");
        }
        assert_eq!(
            logged("info,rustls=warn,h2::proto::ping_pong=warn"),
            ["rustls::msgs::handshake:", "h2::proto::ping_pong:", "h2::proto:", "leasemux::edge:"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn unread_log_drops_lines_and_reports_the_number() {
        let report = tempfile::NamedTempFile::new().unwrap();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(report.reopen().unwrap());
        let subscriber = subscriber.finish();
        let _listening = tracing::subscriber::set_default(subscriber);
        let (open, gate) = channel();
        let (log, mut queue) = Log::over(Gated(gate));
        // The writer thread may have taken one line from the queue.
        for _ in 0..QUEUE_MAX_LINES + 11 {
            queue.write_all(b"line\n").unwrap();
        }
        let dropped = log.dropped.dropped_lines();
        assert!((10..=11).contains(&dropped), "{dropped}");
        tokio::time::timeout(10 * REPORT_INTERVAL, log.report_losses()).await.unwrap_err();
        drop(open);
        let report = std::fs::read_to_string(report.path()).unwrap();
        assert_eq!(report.lines().count(), 1, "{report}");
        assert!(
            report.contains(&format!("dropped log lines; standard error was not read lines={dropped}")),
            "{report}"
        );
    }
}
