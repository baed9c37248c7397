//! `leasemux demo`: the main job on one machine, for real, checked, and thrown away.
//!
//! A gateway is started as a process of its own, exactly as an operator would, with a sample lease and one trusted tenant.
//! As that tenant, over mutual TLS, one follower prints the lease's logs and any number of others count and check them. At
//! the end nothing is left: the followers go first, then the gateway is told to stop and takes its services with it. Should
//! this process be killed, the gateway sees its lifeline (standard input) end, and stops as well.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::followers::Crowd;
use self::gateway::Gateway;
use self::platform::Place;
use self::summary::Summary;
use super::connect::{ConnectError, Connector};
use super::exit::Exit;
use super::follow::FollowError;
use super::output::stdout_reader_gone;
use super::print::{OutputStyle, Printer};
use crate::config::{DemoConfig, ServerTrust, Target};
use crate::model::id::{Address, IdError, LeaseId, Owner};
use crate::model::proto::lease::ServiceLogsRequest;
use crate::sys::fd_limit::{self, FdLimitExceeded};

mod followers;
mod gateway;
mod platform;
mod summary;

/// Files that a process has open for other ends than followers: listeners, logs, pipes, the runtime's own.
const FILES_BESIDE: u64 = 256;

/// The account hash of the demo's provider: any account that is not the tenant.
const PROVIDER: [u8; 20] = *b"leasemux demonstrate";

/// What a demo is made of.
pub struct Parts<'a> {
    /// This program.
    pub program: PathBuf,
    /// The sample SDL.
    pub sample: &'a str,
    /// Makes a tenant's identity in a directory, as `identity new` does.
    pub new_identity: &'a (dyn Fn(&Path) -> Result<Owner, String> + Sync),
}

/// Why a demo could not be shown.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("cannot make a place for it: {0}")]
    Place(#[source] io::Error),
    #[error("cannot make an identity: {0}")]
    Identity(String),
    #[error("cannot make a lease id: {0}")]
    Lease(#[from] IdError),
    #[error(
        "{followers} followers need {needed} open files, and this user may have {allowed}: raise it (ulimit -Hn) or take fewer"
    )]
    OpenFiles { followers: usize, needed: u64, allowed: u64 },
    #[error("cannot start the gateway: {0}")]
    Start(#[source] io::Error),
    #[error("the gateway {what}; its log ends so:\n{log}")]
    Gateway { what: String, log: String },
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the follower ended: {0}")]
    Follower(#[from] FollowError),
    #[error("the follower ended before its time")]
    EndedEarly,
    #[error("cannot hear signals: {0}")]
    Signals(#[source] io::Error),
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}

/// What a person may use to end the demo.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// Shows the demo; log lines and the summary go to `out`, everything else to `err`. Ends in order when the reader of the standard
/// output has gone.
pub async fn run<O, E>(config: &DemoConfig, parts: &Parts<'_>, out: O, err: E, look: OutputStyle) -> Exit
where
    O: Write + Send + 'static,
    E: Write + Send + 'static,
{
    let over = async {
        tokio::select! {
            () = after(config.duration) => Ok(true),
            // As for a failed write: the gateway is stopped in order.
            () = stdout_reader_gone() => Err(DemoError::Write(io::ErrorKind::BrokenPipe.into())),
        }
    };
    run_until(config, parts, Printer::new(out, err, look), over).await
}

async fn run_until<O, E>(
    config: &DemoConfig,
    parts: &Parts<'_>,
    printer: Printer<O, E>,
    over: impl Future<Output = Result<bool, DemoError>>,
) -> Exit
where
    O: Write + Send + 'static,
    E: Write + Send + 'static,
{
    let mut printer = Some(printer);
    let shown = show(config, parts, &mut printer, over).await;
    let told = match (&shown, &mut printer) {
        // `… | head` has what it wanted.
        (Err(DemoError::Write(error)), _) if error.kind() == io::ErrorKind::BrokenPipe => return Exit::Done,
        (Ok(summary), Some(printer)) => printer.print(&summary.to_string()),
        (Err(error), Some(printer)) => printer.say(&error.to_string()),
        // The output hangs.
        (Ok(summary), None) => write!(io::stderr(), "{summary}"),
        (Err(error), None) => writeln!(io::stderr(), "leasemux: {error}"),
    };
    match shown {
        Ok(summary) if summary.holds() && told.is_ok() => Exit::Done,
        _ => Exit::Failed,
    }
}

/// `printer` is lent, and gone afterwards if it hangs in a write.
async fn show<O, E>(
    config: &DemoConfig,
    parts: &Parts<'_>,
    printer: &mut Option<Printer<O, E>>,
    over: impl Future<Output = Result<bool, DemoError>>,
) -> Result<Summary, DemoError>
where
    O: Write + Send + 'static,
    E: Write + Send + 'static,
{
    let mut signals = Signals::hear().map_err(DemoError::Signals)?;
    let needed = config.followers as u64 + FILES_BESIDE;
    fd_limit::raise_to(needed).map_err(|FdLimitExceeded(allowed)| DemoError::OpenFiles {
        followers: config.followers,
        needed,
        allowed,
    })?;
    let place = Place::make().map_err(DemoError::Place)?;
    let owner = (parts.new_identity)(&place.identity()).map_err(DemoError::Identity)?;
    place.trust(&owner).map_err(DemoError::Place)?;
    let sdl = match &config.sdl {
        Some(path) => path.clone(),
        None => place.write_sdl(parts.sample).map_err(DemoError::Place)?,
    };
    let provider = Address::from_account(PROVIDER);
    let lease = LeaseId::new(owner.as_str(), 1, 1, 1, provider.as_str())?;
    let arguments = gateway::arguments(&lease, &sdl, &place, config.followers);
    let mut gateway = tokio::select! {
        gateway = Gateway::start(&parts.program, &arguments, config.verbose) => gateway?,
        () = signals.any() => return Ok(Summary::default()),
    };
    let shown = follow(config, &mut gateway, &place, &lease, &mut signals, printer, over).await;
    // Whatever happened, the gateway is stopped in order; a second signal ends it at once.
    let stopped = gateway.stop(signals.any()).await;
    let summary = shown?;
    stopped?;
    Ok(summary)
}

async fn follow<O, E>(
    config: &DemoConfig,
    gateway: &mut Gateway,
    place: &Place,
    lease: &LeaseId,
    signals: &mut Signals,
    lent: &mut Option<Printer<O, E>>,
    over: impl Future<Output = Result<bool, DemoError>>,
) -> Result<Summary, DemoError>
where
    O: Write + Send + 'static,
    E: Write + Send + 'static,
{
    let target = Target {
        gateway: gateway.address().clone(),
        identity: Some(place.identity()),
        token: None,
        trust: ServerTrust::File(place.server_certificate()),
    };
    let connector = Connector::new(&target)?;
    let request = ServiceLogsRequest { lease_id: Some(lease.into()), follow: true, ..Default::default() };
    let Some(mut printer) = lent.take() else {
        return Err(DemoError::EndedEarly);
    };
    printer.say(&introduction(gateway, place, lease))?;
    let before = gateway.usage();
    let stop = CancellationToken::new();
    let mut crowd = Crowd::start(&connector, &request, config.followers, printer, &stop);
    let ended = tokio::select! {
        () = signals.any() => Ok(false),
        ended = over => ended,
        gone = gateway.gone() => Err(gone),
        early = crowd.printing_ended() => Err(early),
    };
    let usage = gateway.usage();
    stop.cancel();
    let (outcomes, printer) = crowd.outcomes().await;
    *lent = printer;
    Ok(Summary::of(ended?, outcomes, before, usage))
}

/// What is there, and how to look at it by hand.
fn introduction(gateway: &Gateway, place: &Place, lease: &LeaseId) -> String {
    format!(
        "a gateway runs at {}, its metrics at {}metrics; to follow it from another terminal:\n  \
         leasemux logs {lease} \\\n    --follow --gateway {} --identity {} --ca {}",
        gateway.address(),
        gateway.admin(),
        gateway.address(),
        place.identity().display(),
        place.server_certificate().display()
    )
}

async fn after(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

impl std::fmt::Debug for Parts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("program", &self.program).finish_non_exhaustive()
    }
}

// === impl Signals ===

impl Signals {
    fn hear() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::client::fake::{FakeGateway, Step};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    /// A program that says it is the gateway that listens at `gateway`, and shows its certificate.
    fn program(gateway: &FakeGateway, dir: &Path) -> PathBuf {
        let path = dir.join("program");
        let script = format!(
            "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ $1 = --data-dir ] && data=$2; [ $1 = --trust-dir ] && trusted=$2; shift; done\n\
             ls $trusted/akash1*.pem >/dev/null || exit 9\n\
             mkdir -p $data && cp {}/server.pem $data/server.pem\n\
             trap 'exit 0' TERM\n\
             echo leasemux ready: gateway https://{} admin http://127.0.0.1:2\n\
             read line\n",
            gateway.identity().display(),
            gateway.address
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Shows a demo that is over once `last` was printed.
    async fn shown(answers: Vec<Vec<Step>>, last: &str) -> (Exit, String, String, PathBuf) {
        let gateway = FakeGateway::start(answers).await;
        let dir = tempfile::tempdir().unwrap();
        let place = Mutex::new(PathBuf::new());
        let new_identity = |to: &Path| {
            fs::create_dir(to).unwrap();
            for name in ["cert.pem", "key.pem"] {
                fs::copy(gateway.identity().join(name), to.join(name)).unwrap();
            }
            *place.lock().unwrap() = to.parent().unwrap().to_owned();
            Ok(Address::from_account([1; 20]))
        };
        let program = program(&gateway, dir.path());
        let parts = Parts { program, sample: "", new_identity: &new_identity };
        let config = DemoConfig { duration: None, followers: 0, sdl: None, verbose: false };
        let (out, err) = (Shared::default(), Shared::default());
        let over = async {
            while !out.text().ends_with(last) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(true)
        };
        let printer = Printer::new(out.clone(), err.clone(), OutputStyle::PLAIN);
        let exit = run_until(&config, &parts, printer, over).await;
        let place = place.into_inner().unwrap();
        (exit, out.text(), err.text(), place)
    }

    #[tokio::test]
    async fn a_demo_prints_judges_and_leaves_nothing() {
        let (exit, out, err, place) = shown(vec![vec![Step::lines("1 a\n2 b\n"), Step::Hang]], "2 b\n").await;
        assert_eq!(exit, Exit::Done, "{out}{err}");
        assert!(
            out.starts_with("web/0 | 1 a\nweb/0 | 2 b\n\nsummary\n  followers        1 of 1 attached\n"),
            "{out}"
        );
        assert!(out.contains("holds: 2 lines"), "{out}");
        assert!(err.contains("--follow --gateway https://127.0.0.1:"), "{err}");
        assert!(!place.as_os_str().is_empty() && !place.exists());
    }

    #[tokio::test]
    async fn a_demo_with_a_repeat_fails() {
        let (exit, out, _, place) = shown(vec![vec![Step::lines("1 a\n1 b\n"), Step::Hang]], "1 b\n").await;
        assert_eq!(exit, Exit::Failed);
        assert!(out.contains("BROKEN for 1 of 1") && out.contains("line 1 came after line 1"), "{out}");
        assert!(!place.exists());
    }

    #[tokio::test]
    async fn a_demo_that_is_refused_says_so_at_once() {
        let (exit, out, err, place) = shown(vec![], "never").await;
        assert_eq!((exit, out.as_str()), (Exit::Failed, ""));
        assert!(err.contains("the follower ended: the gateway says: nothing more in the script"), "{err}");
        assert!(!place.exists());
    }
}
