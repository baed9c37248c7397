//! The log: lines on standard error, written by a thread of their own.
//!
//! Whoever reads standard error may stand still (a pager, a terminal that is held, a collector in trouble), and a pipe holds some
//! hundred lines. Whoever logs must not wait for them: that could be any task, and the operator's port with it. So what cannot be
//! written yet waits, up to a bound; beyond it lines are lost, and counted.

use std::convert::Infallible;
use std::io::Write;
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, ServeConfig};

/// Most lines that wait to be written: a few seconds of a flood, and some MiB at most.
const WAITING_MAX_LINES: usize = 4_096;

/// How often it is looked whether lines were lost: soon enough for whoever reads the log again, and no load.
const LOOK: Duration = Duration::from_secs(10);

/// Of libraries that handle what strangers send, only errors are logged: they warn about single frames and handshakes, so a
/// stranger could write thousands of lines a second. `--log-filter` shows more of a library if it names it.
const LIBRARIES: &str = "rustls=error,h2=error,hyper=error";

/// The log of a gateway. Dropping it waits until what is left is written, a second at most.
#[derive(Debug)]
pub(super) struct Log {
    lost: ErrorCounter,
    _writer: WorkerGuard,
}

// === impl Log ===

impl Log {
    /// Begins to write to standard error what `config` has logged.
    pub(super) fn start(config: &ServeConfig) -> Self {
        let (log, queue) = Self::over(std::io::stderr());
        let filter = filter(&config.log_filter);
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(queue);
        // What is wrong with a line would be said on standard error by a macro that panics if that cannot be written.
        let lines = lines.log_internal_errors(false);
        let colours = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
        // Fails only if there is a log already, which then goes on.
        let _ = match config.log_format {
            LogFormat::Json => lines.json().try_init(),
            LogFormat::Text => lines.with_ansi(colours).try_init(),
        };
        log
    }

    fn over(out: impl Write + Send + 'static) -> (Self, NonBlocking) {
        let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING_MAX_LINES);
        let (queue, writer) = builder.thread_name("log").finish(out);
        (Self { lost: queue.error_counter(), _writer: writer }, queue)
    }

    /// Tells in the log, now and then, how many lines of it were lost.
    pub(super) async fn tell_losses(&self) -> Infallible {
        let mut told = 0;
        loop {
            tokio::time::sleep(LOOK).await;
            let lost = self.lost.dropped_lines();
            if lost > told {
                tracing::warn!(
                    lines = lost - told,
                    "lines of the log were lost: standard error was not read"
                );
                told = lost;
            }
        }
    }
}

/// The filter of these directives, which were checked when the configuration was read. Later directives for a target replace
/// earlier ones, so these override [`LIBRARIES`] where they name a library.
fn filter(directives: &str) -> EnvFilter {
    EnvFilter::try_new(format!("{LIBRARIES},{directives}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// Takes what is written only when it is let.
    struct Gated(Receiver<()>);

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Whoever lets it through for good hangs up.
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Targets of the lines that a log with these directives has, of lines about what a stranger sent.
    fn logged(directives: &str) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines = tracing_subscriber::fmt().with_env_filter(filter(directives));
        let subscriber = lines.with_ansi(false).without_time().with_writer(file.reopen().unwrap()).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "rustls::msgs::handshake", "server name is an address");
            tracing::warn!(target: "h2::proto::ping_pong", "acknowledged a ping that was never sent");
            tracing::warn!(target: "hyper::proto::h2::server", "connect request with a body");
            tracing::error!(target: "h2::proto", "error");
            tracing::warn!(target: "leasemux::edge", "warning");
        });
        let text = std::fs::read_to_string(file.path()).unwrap();
        text.lines().map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect()
    }

    #[test]
    fn libraries_that_read_strangers_log_errors_only() {
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
    async fn a_reader_who_stands_still_holds_nobody_up_and_what_is_lost_is_told() {
        let told = tempfile::NamedTempFile::new().unwrap();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(told.reopen().unwrap());
        let subscriber = subscriber.finish();
        let _listening = tracing::subscriber::set_default(subscriber);
        let (open, gate) = channel();
        let (log, mut queue) = Log::over(Gated(gate));
        // One may be on its way, besides those that wait.
        for _ in 0..WAITING_MAX_LINES + 11 {
            queue.write_all(b"line\n").unwrap();
        }
        let lost = log.lost.dropped_lines();
        assert!((10..=11).contains(&lost), "{lost}");
        tokio::time::timeout(10 * LOOK, log.tell_losses()).await.unwrap_err();
        drop(open);
        let told = std::fs::read_to_string(told.path()).unwrap();
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(
            told.contains(&format!("lines of the log were lost: standard error was not read lines={lost}")),
            "{told}"
        );
    }
}
