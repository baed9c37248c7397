//! Copies a run's output from its pipes into its log.

use std::fs::File;
use std::io::{self, Read as _};
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokio::net::unix::pipe;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::rotate::LogFs;
use super::writer::LogWriter;
use crate::model::line::OutputStream;
use crate::model::time::LogTime;
use crate::platform::cri::DroppedOutput;

/// Largest read from a pipe: a pipe's default capacity.
const READ_BYTES: usize = 64 * 1024;

/// Largest read from a pipe after the run's last process is gone: the largest capacity a pipe can have
/// without privileges (`/proc/sys/fs/pipe-max-size`). More could only come from a process that does not
/// belong to the run.
const REST_MAX_BYTES: u64 = 1024 * 1024;

/// Interval of attempts to write the notice of a loss while there is no output.
const NOTICE_RETRY: Duration = Duration::from_secs(1);

/// How long an unfinished line waits for its end before it is written as a partial record. Together with the
/// 100 ms that a reader waits ([`log_files`](crate::platform::log_files)) and the 250 ms polling interval
/// without inotify ([`POLL`](crate::sys::dir_watch::POLL)), it is sent within 500 ms.
const UNFINISHED_WAIT: Duration = Duration::from_millis(100);

/// Writes output from `pipes` (standard output and standard error) to the log until `ended`, then the rest of
/// the pipes. Returns losses that the log could not report.
///
/// A full disk never delays the service: output is dropped. A slow disk does, once the pipe is full. The end
/// of the run is reported after the last write. It does not wait for other processes that hold the pipe open.
pub(super) async fn copy_output<F: LogFs>(
    pipes: [pipe::Receiver; 2],
    mut writer: LogWriter<F>,
    ended: CancellationToken,
) -> DroppedOutput {
    let [mut stdout, mut stderr] = pipes.map(Some);
    // When unfinished lines must be written.
    let mut due: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            () = ended.cancelled() => break,
            // An error is returned again by the read.
            Some(_) = readable(stdout.as_ref()) => {}
            Some(_) = readable(stderr.as_ref()) => {}
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            () = tokio::time::sleep(NOTICE_RETRY), if writer.has_unreported_loss() => {}
        }
        let is_due = due.is_some_and(|due| due <= Instant::now());
        let now = LogTime::now();
        // The order between two readable pipes is unknown. Messages on stderr are often about earlier output
        // on stdout: reading stderr first and writing it last puts them after that output.
        let errors = take(&mut stderr);
        let batch = [(OutputStream::Stdout, take(&mut stdout)), (OutputStream::Stderr, errors)];
        writer = blocking(move || {
            for (stream, output) in &batch {
                writer.append(*stream, output, now);
            }
            if is_due {
                writer.flush_unfinished(now);
            } else {
                writer.flush(now);
            }
            writer
        })
        .await;
        let next = due.filter(|_| !is_due).unwrap_or_else(|| Instant::now() + UNFINISHED_WAIT);
        due = writer.holds_unfinished().then_some(next);
    }
    blocking(move || {
        for (stream, pipe) in [(OutputStream::Stdout, stdout), (OutputStream::Stderr, stderr)] {
            match pipe.map(rest).transpose() {
                Ok(rest) => writer.append(stream, &rest.unwrap_or_default(), LogTime::now()),
                Err(error) => tracing::error!(%error, "failed to read rest of service output"),
            }
        }
        writer.finish(LogTime::now())
    })
    .await
}

/// Waits until a pipe is readable or at its end.
fn readable(pipe: Option<&pipe::Receiver>) -> OptionFuture<impl Future<Output = io::Result<()>>> {
    pipe.map(pipe::Receiver::readable).into()
}

/// Reads what is available. Closes a pipe that has ended.
fn take(pipe: &mut Option<pipe::Receiver>) -> Vec<u8> {
    let mut output = Vec::new();
    if let Some(open) = pipe {
        // Allocated per read, so that an idle service costs no buffer.
        output.reserve_exact(READ_BYTES);
        match open.try_read_buf(&mut output) {
            Ok(0) => *pipe = None,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::error!(%error, "failed to read service output");
                *pipe = None;
            }
        }
    }
    output
}

/// Reads everything left in a pipe, whether or not it has ended.
fn rest(pipe: pipe::Receiver) -> io::Result<Vec<u8>> {
    // Read from the kernel directly: the runtime may not know of the last bytes yet.
    let pipe = File::from(pipe.into_nonblocking_fd()?);
    let mut rest = Vec::new();
    match pipe.take(REST_MAX_BYTES).read_to_end(&mut rest) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(rest),
    }
}

/// Runs `work`, which may wait for a disk, on the blocking pool.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::platform::cri;
    use crate::platform::local::rotate::{RealFs, RotatingLog, Rotation};
    use crate::platform::local::writer::NO_LOSS;

    fn pipes() -> ([pipe::Receiver; 2], io::PipeWriter, io::PipeWriter) {
        let (stdout, stdout_writer) = io::pipe().unwrap();
        let (stderr, stderr_writer) = io::pipe().unwrap();
        let outputs = [stdout, stderr].map(|pipe| pipe::Receiver::from_owned_fd(pipe.into()).unwrap());
        (outputs, stdout_writer, stderr_writer)
    }

    #[tokio::test]
    async fn rest_of_open_pipes_is_written_at_end() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let (outputs, mut stdout, mut stderr) = pipes();
            let rotation = Rotation { max_bytes: u64::MAX, files: 1 };
            let writer =
                LogWriter::new(RotatingLog::new(RealFs, dir.path().to_owned(), round, rotation), NO_LOSS);
            let ended = CancellationToken::new();
            stdout.write_all(&b"x".repeat(1_000)).unwrap();
            let copy = copy_output(outputs, writer, ended.clone());
            let end = async {
                tokio::task::yield_now().await;
                stdout.write_all(b"\nlast").unwrap();
                stderr.write_all(b"end\n").unwrap();
                ended.cancel();
            };
            tokio::join!(copy, end);
            let log = std::fs::read(dir.path().join(format!("{round}.log"))).unwrap();
            let mut contents: Vec<_> = log
                .strip_suffix(b"\n")
                .unwrap()
                .split(|byte| *byte == b'\n')
                .map(|line| cri::parse(line).unwrap().content.to_vec())
                .collect();
            contents.sort();
            assert_eq!(contents, [b"end".to_vec(), b"last".to_vec(), b"x".repeat(1_000)]);
        }
    }

    #[tokio::test]
    async fn unfinished_line_is_written_after_wait() {
        let dir = tempfile::tempdir().unwrap();
        let (outputs, mut stdout, mut stderr) = pipes();
        let rotation = Rotation { max_bytes: u64::MAX, files: 1 };
        let writer = LogWriter::new(RotatingLog::new(RealFs, dir.path().to_owned(), 0, rotation), NO_LOSS);
        let ended = CancellationToken::new();
        let log = dir.path().join("0.log");
        let written = async |tags: &[&str]| {
            let all_written = async {
                loop {
                    let log = std::fs::read_to_string(&log).unwrap_or_default();
                    let records: Vec<_> = log.lines().map(|line| line.split_once(' ').unwrap().1).collect();
                    if records == tags {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), all_written).await.unwrap();
        };
        let write = async {
            stdout.write_all(b"Password: ").unwrap();
            written(&["stdout P Password: "]).await;
            stderr.write_all(b"whole\n\r 1 %").unwrap();
            written(&["stdout P Password: ", "stderr F whole", "stderr P \r 1 %"]).await;
            stdout.write_all(b"\n").unwrap();
            written(&["stdout P Password: ", "stderr F whole", "stderr P \r 1 %", "stdout F "]).await;
            ended.cancel();
        };
        tokio::join!(copy_output(outputs, writer, ended.clone()), write);
    }

    #[tokio::test]
    async fn closed_pipe_does_not_end_copying() {
        let dir = tempfile::tempdir().unwrap();
        let (outputs, stdout, mut stderr) = pipes();
        let rotation = Rotation { max_bytes: u64::MAX, files: 1 };
        let writer = LogWriter::new(RotatingLog::new(RealFs, dir.path().to_owned(), 0, rotation), NO_LOSS);
        let ended = CancellationToken::new();
        drop(stdout);
        let end = async {
            stderr.write_all(b"still here\n").unwrap();
            drop(stderr);
            ended.cancel();
        };
        tokio::join!(copy_output(outputs, writer, ended.clone()), end);
        let log = std::fs::read_to_string(dir.path().join("0.log")).unwrap();
        assert!(log.ends_with(" stderr F still here\n"), "{log}");
    }
}
