//! Detects that the reader of standard output has closed it.
//!
//! Writing shows a closed pipe only at the next write, which a quiet service may never cause: in `leasemux
//! logs -f … | grep -q TEXT` the shell would wait forever. So long-running commands watch the pipe itself.

use std::io::{self, PipeReader};
use std::os::fd::{AsFd as _, OwnedFd};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::oneshot;

use super::exit::Exit;

/// Runs `work` until it ends or standard output is closed. A closed output is a success: the reader has all
/// it wanted.
pub async fn until_stdout_closed(work: impl Future<Output = Exit>) -> Exit {
    tokio::select! {
        // A result that is ready takes precedence.
        biased;
        exit = work => exit,
        () = stdout_closed() => Exit::Done,
    }
}

/// Waits until the reader of standard output has closed it. Never returns for a file, which has no reader, or
/// a terminal, which ends by a signal (SIGHUP). Cancel safe.
pub(crate) async fn stdout_closed() {
    let stdout = rustix::stdio::stdout();
    match stdout.try_clone_to_owned() {
        Ok(stdout) if !rustix::termios::isatty(&stdout) => reader_closed(stdout).await,
        // Without a spare file descriptor, the next write reports the closed pipe.
        _ => std::future::pending().await,
    }
}

/// Waits until `output`, a pipe or a socket, has no reader.
///
/// A thread waits in `poll(2)`. Tokio can watch a foreign descriptor only through unsafe code, or after
/// making it non-blocking, which every process that shares the pipe would notice.
async fn reader_closed(output: OwnedFd) {
    // Dropping this future closes `_stop`, which ends the thread.
    let Ok((stopped, _stop)) = io::pipe() else {
        return std::future::pending().await;
    };
    let (sender, closed) = oneshot::channel();
    let watch = move || {
        if poll_until_closed(&output, &stopped).unwrap_or(false) {
            // The receiver may have been dropped.
            let _ = sender.send(());
        }
    };
    let watcher = thread::Builder::new().name("output-watch".to_owned()).spawn(watch);
    if watcher.is_err() || closed.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits until `output` has no reader (true) or `stopped` has no writer (false).
fn poll_until_closed(output: &OwnedFd, stopped: &PipeReader) -> nix::Result<bool> {
    // No events are requested: errors and hang-ups are always reported.
    let mut watched = [output.as_fd(), stopped.as_fd()].map(|fd| PollFd::new(fd, PollFlags::empty()));
    // Without a timeout, it returns with an event.
    while let Err(error) = poll(&mut watched, PollTimeout::NONE) {
        if error != Errno::EINTR {
            return Err(error);
        }
    }
    let [is_closed, is_stopped] = watched.map(|fd| fd.any().unwrap_or(false));
    Ok(is_closed && !is_stopped)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    /// Limit on every wait of the tests.
    const TEST_TIMEOUT: Duration = Duration::from_secs(30);

    async fn is_closed_soon(output: impl Into<OwnedFd>) -> bool {
        tokio::time::timeout(TEST_TIMEOUT, reader_closed(output.into())).await.is_ok()
    }

    #[tokio::test]
    async fn closed_pipe_is_noticed_without_a_write() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        let output = writer.as_fd().try_clone_to_owned().unwrap();
        let use_it = async {
            // Neither writes nor reads end the wait.
            for _ in 0..100 {
                writer.write_all(b"hello").unwrap();
                tokio::task::yield_now().await;
                reader.read_exact(&mut [0; 5]).unwrap();
                tokio::task::yield_now().await;
            }
        };
        let mut closed = std::pin::pin!(reader_closed(output));
        tokio::select! {
            biased;
            () = &mut closed => panic!("the reader is there"),
            () = use_it => {}
        }
        drop(reader);
        tokio::time::timeout(TEST_TIMEOUT, closed).await.unwrap();
        assert!(is_closed_soon(writer).await, "one that was closed before");
    }

    #[tokio::test]
    async fn full_pipe_that_closes_is_noticed() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(&vec![0; 64 * 1024]).unwrap();
        drop(reader);
        assert!(is_closed_soon(writer).await);
    }

    #[tokio::test]
    async fn closed_socket_is_noticed() {
        let (reader, writer) = UnixStream::pair().unwrap();
        drop(reader);
        assert!(is_closed_soon(writer).await);
    }

    #[tokio::test]
    async fn file_is_never_closed() {
        for file in [tempfile::tempfile().unwrap(), File::create("/dev/null").unwrap()] {
            let output = OwnedFd::from(file);
            let mut watched = [PollFd::new(output.as_fd(), PollFlags::empty())];
            assert_eq!(poll(&mut watched, PollTimeout::ZERO), Ok(0));
            // The thread ends when its owner is dropped.
            let (stopped, stop) = io::pipe().unwrap();
            drop(stop);
            assert_eq!(poll_until_closed(&output, &stopped), Ok(false));
        }
    }
}
