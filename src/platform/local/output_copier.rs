//! Carries what a run prints from its pipes into its log.

use std::fs::File;
use std::io::{self, Read as _};
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::process::Outputs;
use super::rotate::LogFs;
use super::writer::Writer;
use crate::model::time::LogTime;
use crate::platform::cri::{DroppedOutput, Stream};

/// Most bytes taken from a pipe at a time: as many as a pipe holds, unless its writer enlarged it.
const READ_BYTES: usize = 64 * 1024;

/// Most bytes taken from a pipe after the last process of the run has gone: as many as a pipe can hold without privilege
/// (`/proc/sys/fs/pipe-max-size`). Were there more, somebody who is not of the run would be writing.
const REST_MAX_BYTES: u64 = 1024 * 1024;

/// How often it is tried to write the notice of a loss while nothing else comes.
const NOTICE_RETRY: Duration = Duration::from_secs(1);

/// How long an unfinished line waits for its end before it is written as a partial record. With the 100 ms that a reader waits
/// ([`tail`](crate::platform::tail)), and the 250 ms after which one without inotify looks again ([`POLL`](crate::sys::notify::POLL)), it is
/// sent within 500 ms.
const UNFINISHED_WAIT: Duration = Duration::from_millis(100);

/// Reads `outputs` and writes the log until `ended`, then what is left in the pipes, and returns when all is written: what is
/// lost and could not be told. Never makes the run wait for more than the disk takes, nor keeps it from ending.
pub(super) async fn pump<D: LogFs>(
    outputs: Outputs,
    mut writer: Writer<D>,
    ended: CancellationToken,
) -> DroppedOutput {
    let mut stdout = Some(outputs.stdout);
    let mut stderr = Some(outputs.stderr);
    // When the unfinished lines are written.
    let mut due: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            () = ended.cancelled() => break,
            () = readable(stdout.as_ref()) => {}
            () = readable(stderr.as_ref()) => {}
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            () = tokio::time::sleep(NOTICE_RETRY), if writer.owes_notice() => {}
        }
        let is_due = due.is_some_and(|due| due <= Instant::now());
        let now = LogTime::now();
        // Where both have something nobody can tell which came first. What is on stderr is often about what was printed before
        // it: read first and put last, it comes behind all of that.
        let errors = take(&mut stderr);
        let batch = [(Stream::Stdout, take(&mut stdout)), (Stream::Stderr, errors)];
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
        for (stream, pipe) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
            let rest = pipe.map(rest).transpose();
            match rest {
                Ok(rest) => writer.append(stream, &rest.unwrap_or_default(), LogTime::now()),
                Err(error) => tracing::error!(%error, "reading the rest of a service's output"),
            }
        }
        writer.finish(LogTime::now())
    })
    .await
}

/// Waits until there is something to read, or the end of it.
async fn readable(pipe: Option<&pipe::Receiver>) {
    match pipe {
        // An error comes again when reading.
        Some(pipe) => drop(pipe.readable().await),
        None => std::future::pending().await,
    }
}

/// What can be read now; lets go of a pipe that has ended.
fn take(pipe: &mut Option<pipe::Receiver>) -> Vec<u8> {
    let mut output = Vec::new();
    if let Some(open) = pipe {
        // Made only once there is something: a quiet service costs no buffer.
        output.reserve_exact(READ_BYTES);
        match open.try_read_buf(&mut output) {
            Ok(0) => *pipe = None,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::error!(%error, "reading a service's output");
                *pipe = None;
            }
        }
    }
    output
}

/// Everything that is left in a pipe, whether or not it has ended.
fn rest(pipe: pipe::Receiver) -> io::Result<Vec<u8>> {
    // Asked of the kernel, not of the runtime: it may not have heard of the last bytes yet.
    let pipe = File::from(pipe.into_nonblocking_fd()?);
    let mut rest = Vec::new();
    match pipe.take(REST_MAX_BYTES).read_to_end(&mut rest) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(rest),
    }
}

/// Does `work` where waiting for a disk hinders nobody.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going away, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::platform::cri;
    use crate::platform::local::rotate::{Files, LogFile, Rotation};
    use crate::platform::local::writer::NOTHING;

    fn pipes() -> (Outputs, io::PipeWriter, io::PipeWriter) {
        let (stdout, stdout_writer) = io::pipe().unwrap();
        let (stderr, stderr_writer) = io::pipe().unwrap();
        let outputs = Outputs {
            stdout: pipe::Receiver::from_owned_fd(stdout.into()).unwrap(),
            stderr: pipe::Receiver::from_owned_fd(stderr.into()).unwrap(),
        };
        (outputs, stdout_writer, stderr_writer)
    }

    #[tokio::test]
    async fn what_is_in_the_pipes_at_the_end_is_written_though_they_stay_open() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let (outputs, mut stdout, mut stderr) = pipes();
            let rotation = Rotation { max_bytes: u64::MAX, files: 1 };
            let writer = Writer::new(LogFile::new(Files, dir.path().to_owned(), round, rotation), NOTHING);
            let ended = CancellationToken::new();
            stdout.write_all(&b"x".repeat(1_000)).unwrap();
            let pump = pump(outputs, writer, ended.clone());
            let end = async {
                tokio::task::yield_now().await;
                stdout.write_all(b"\nlast").unwrap();
                stderr.write_all(b"end\n").unwrap();
                ended.cancel();
            };
            tokio::join!(pump, end);
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
    async fn unfinished_lines_are_written_without_their_end() {
        let dir = tempfile::tempdir().unwrap();
        let (outputs, mut stdout, mut stderr) = pipes();
        let rotation = Rotation { max_bytes: u64::MAX, files: 1 };
        let writer = Writer::new(LogFile::new(Files, dir.path().to_owned(), 0, rotation), NOTHING);
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
        tokio::join!(pump(outputs, writer, ended.clone()), write);
    }

    #[tokio::test]
    async fn pipes_that_end_early_do_not_end_it() {
        let dir = tempfile::tempdir().unwrap();
        let (outputs, stdout, mut stderr) = pipes();
        let rotation = Rotation { max_bytes: u64::MAX, files: 1 };
        let writer = Writer::new(LogFile::new(Files, dir.path().to_owned(), 0, rotation), NOTHING);
        let ended = CancellationToken::new();
        drop(stdout);
        let end = async {
            stderr.write_all(b"still here\n").unwrap();
            drop(stderr);
            ended.cancel();
        };
        tokio::join!(pump(outputs, writer, ended.clone()), end);
        let log = std::fs::read_to_string(dir.path().join("0.log")).unwrap();
        assert!(log.ends_with(" stderr F still here\n"), "{log}");
    }
}
