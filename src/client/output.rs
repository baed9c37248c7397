//! Whether somebody still reads the standard output.
//!
//! A closed pipe shows at the next write only, and a quiet service may never cause one: in `leasemux logs -f … | grep -q TEXT`
//! the shell would wait forever for a reader that has what it wanted. So commands that stay also watch the output itself.

use std::io::{self, PipeReader};
use std::os::fd::{AsFd as _, OwnedFd};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::oneshot;

use super::exit::Exit;

/// Runs `work` to its end, or until the reader of the standard output has gone. That is no failure, as for a failed write: the
/// reader has what it wanted.
pub async fn until_reader_gone(work: impl Future<Output = Exit>) -> Exit {
    tokio::select! {
        // The result of work that is done counts.
        biased;
        exit = work => exit,
        () = stdout_reader_gone() => Exit::Done,
    }
}

/// Waits until the reader of the standard output has gone. Never returns if the output is a file, which has no reader, or a
/// terminal, whose end is a signal (SIGHUP). Cancel safe.
pub(super) async fn stdout_reader_gone() {
    let stdout = rustix::stdio::stdout();
    match stdout.try_clone_to_owned() {
        Ok(stdout) if !rustix::termios::isatty(&stdout) => reader_gone(stdout).await,
        // Without a descriptor to spare the next write has to show it.
        _ => std::future::pending().await,
    }
}

/// Waits until nobody can read what is written to `output`, a pipe or a socket.
///
/// A thread waits in `poll(2)`: Tokio can watch another's descriptor only if told so in unsafe code, or after making it
/// non-blocking, which everybody who shares the pipe would notice.
async fn reader_gone(output: OwnedFd) {
    // Dropping this future closes `_stop`, which ends the thread.
    let Ok((stopped, _stop)) = io::pipe() else {
        return std::future::pending().await;
    };
    let (sender, gone) = oneshot::channel();
    let watch = move || {
        if poll_until_gone(&output, &stopped).unwrap_or(false) {
            // Nobody may wait any more.
            let _ = sender.send(());
        }
    };
    let watcher = thread::Builder::new().name("output-watch".to_owned()).spawn(watch);
    if watcher.is_err() || gone.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits until `output` has no reader (true), or `stopped` has no writer (false).
fn poll_until_gone(output: &OwnedFd, stopped: &PipeReader) -> nix::Result<bool> {
    // No events are asked for: errors and hang-ups are reported anyway.
    let mut watched = [output.as_fd(), stopped.as_fd()].map(|fd| PollFd::new(fd, PollFlags::empty()));
    loop {
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error),
        }
        let [is_gone, is_stopped] =
            watched.each_ref().map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        if is_gone || is_stopped {
            return Ok(is_gone && !is_stopped);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    /// Whatever takes longer is broken.
    const PATIENCE: Duration = Duration::from_secs(30);

    async fn is_gone_soon(output: impl Into<OwnedFd>) -> bool {
        tokio::time::timeout(PATIENCE, reader_gone(output.into())).await.is_ok()
    }

    #[tokio::test]
    async fn closed_pipe_is_noticed_without_a_write() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        let output = writer.as_fd().try_clone_to_owned().unwrap();
        let use_it = async {
            // Neither what is written nor what is read ends it.
            for _ in 0..100 {
                writer.write_all(b"hello").unwrap();
                tokio::task::yield_now().await;
                reader.read_exact(&mut [0; 5]).unwrap();
                tokio::task::yield_now().await;
            }
        };
        let mut gone = std::pin::pin!(reader_gone(output));
        tokio::select! {
            biased;
            () = &mut gone => panic!("the reader is there"),
            () = use_it => {}
        }
        drop(reader);
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
        assert!(is_gone_soon(writer).await, "one that was closed before");
    }

    #[tokio::test]
    async fn full_pipe_that_closes_is_noticed() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(&vec![0; 64 * 1024]).unwrap();
        drop(reader);
        assert!(is_gone_soon(writer).await);
    }

    #[tokio::test]
    async fn closed_socket_is_noticed() {
        let (reader, writer) = UnixStream::pair().unwrap();
        drop(reader);
        assert!(is_gone_soon(writer).await);
    }

    #[tokio::test]
    async fn file_has_no_reader_that_goes() {
        for file in [tempfile::tempfile().unwrap(), File::create("/dev/null").unwrap()] {
            let output = OwnedFd::from(file);
            let mut watched = [PollFd::new(output.as_fd(), PollFlags::empty())];
            assert_eq!(poll(&mut watched, PollTimeout::ZERO), Ok(0));
            // Ends with its owner.
            let (stopped, stop) = io::pipe().unwrap();
            drop(stop);
            assert_eq!(poll_until_gone(&output, &stopped), Ok(false));
        }
    }
}
