//! The Tokio runtimes of the program.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// Task polls of a worker thread between two checks of sockets and timers. A busy thread checks them at no
/// other time, so a new event waits for this many polls. A poll under load takes about 50 us: 16 take less
/// than a millisecond, and a check costs less than a microsecond. Tokio's default is 61.
const EVENT_INTERVAL: u32 = 16;

/// A second runtime with one thread, for work that must not wait while the main runtime is busy with
/// connections: the admin port, whose probes decide whether the gateway is restarted, and the output of local
/// services, whose pipes must not fill.
///
/// Drop ends its tasks without waiting, so it may be dropped within another runtime.
///
/// Empty only during drop.
#[derive(Debug)]
pub struct SideRuntime(Option<Runtime>);

/// Creates the main runtime.
///
/// # Errors
/// The system has no thread or descriptor left.
pub fn main_runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().event_interval(EVENT_INTERVAL).build()
}

// === impl SideRuntime ===

impl SideRuntime {
    /// Starts the runtime.
    ///
    /// # Errors
    /// The system has no thread or descriptor left.
    pub fn start() -> io::Result<Self> {
        let runtime =
            Builder::new_multi_thread().worker_threads(1).thread_name("side").enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    /// Returns the handle of the runtime.
    pub(super) fn handle(&self) -> Option<Handle> {
        self.0.as_ref().map(|runtime| runtime.handle().clone())
    }

    /// Calls `start` in the context of this runtime. Tasks and sockets that it creates belong to this
    /// runtime.
    pub fn within<T>(&self, start: impl FnOnce() -> T) -> T {
        let _context = self.0.as_ref().map(Runtime::enter);
        start()
    }
}

impl Drop for SideRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use tokio::net::TcpListener;
    use tokio::sync::oneshot;

    use super::*;
    use crate::edge::admin::{Admin, Exporter, Readiness};
    use crate::edge::drain::Drain;

    /// Returns the name of the thread that runs a task spawned by `spawn`.
    async fn thread_of(spawn: impl FnOnce(oneshot::Sender<Option<String>>)) -> Option<String> {
        let (name, named) = oneshot::channel();
        spawn(name);
        named.await.unwrap()
    }

    fn report(name: oneshot::Sender<Option<String>>) {
        let tasks = tokio_util::task::TaskTracker::new();
        tasks.spawn(async { name.send(std::thread::current().name().map(ToOwned::to_owned)) });
    }

    #[tokio::test]
    async fn side_runtime_runs_its_tasks_on_its_own_thread() {
        let side = SideRuntime::start().unwrap();
        let name = thread_of(|name| side.within(|| report(name))).await;
        assert_eq!(name.as_deref(), Some("side"));
        assert_ne!(thread_of(report).await.as_deref(), Some("side"));
    }

    #[tokio::test]
    async fn side_runtime_dropped_within_another_ends_its_tasks() {
        let side = SideRuntime::start().unwrap();
        let (held, ended) = oneshot::channel::<()>();
        side.within(|| {
            tokio_util::task::TaskTracker::new().spawn(async {
                let _held = held;
                std::future::pending::<()>().await;
            });
        });
        drop(side);
        ended.await.expect_err("the task is dropped and sends nothing");
    }

    #[tokio::test]
    async fn admin_port_answers_while_the_main_runtime_is_busy() {
        let (side, drain, readiness) =
            (SideRuntime::start().unwrap(), Drain::default(), Readiness::default());
        let admin = Admin::new(Exporter::new().unwrap(), readiness.clone(), drain.clone());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        readiness.set(true);
        side.within(|| drain.spawn_background(admin.serve(TcpListener::from_std(listener).unwrap())));
        // This blocks the only thread of the main runtime.
        for _ in 0..3 {
            let mut socket = std::net::TcpStream::connect(address).unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
            socket.write_all(b"GET /ready HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).unwrap();
            assert!(answer.ends_with("\r\n\r\nready\n"), "{answer}");
        }
    }
}
