//! The real program as child processes, in a temporary directory, observed through its outputs.
//!
//! No process outlives a [`Workspace`]. Programs are killed on drop, and all processes with the workspace's
//! mark are killed when the workspace is dropped, also if the test fails. The mark is the workspace's
//! directory: programs run through a hard link in it. A shim has no environment and no arguments, and only
//! its path shows its test.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, Once};
use std::time::{Duration, Instant};

use leasemux::loss_checker::{LossChecker, Order, Start, Tally};
use leasemux::model::id::LeaseId;
use leasemux::model::proto::lease::{Cursor, Gap, ServiceLogs};
use leasemux::sys::process::ignores;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::Value;
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use super::account;

/// Deadline for every condition.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Interval of checks for conditions without a notification.
pub(crate) const LOOK: Duration = Duration::from_millis(10);

/// A directory with tenants, SDL files and a gateway's data, and the processes started in it.
pub(crate) struct Workspace {
    dir: TempDir,
    program: PathBuf,
    /// Shell prefix that starts the program, if needed.
    shell: Option<&'static str>,
    /// Whether programs do not receive Ctrl-C of the terminal.
    is_detached: bool,
}

/// A running program. Killed on drop.
pub(crate) struct Program {
    child: Child,
    what: String,
    pub(crate) out: Arc<Text>,
    pub(crate) err: Arc<Text>,
}

/// Output of a program so far.
#[derive(Default)]
pub(crate) struct Text {
    state: Mutex<TextState>,
    changed: Condvar,
}

#[derive(Default)]
struct TextState {
    bytes: Vec<u8>,
    ended: bool,
}

/// Exit status and output of a program.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A `leasemux serve` that is ready.
pub(crate) struct Gateway {
    pub(crate) program: Program,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// With `--rest-listen`.
    pub(crate) rest: Option<SocketAddr>,
}

/// A `leasemux logs -o json`, checked line by line.
pub(crate) struct Judged {
    pub(crate) program: Program,
    /// Bytes of the output that were checked.
    read: usize,
    pub(crate) seen: Seen,
}

/// What a follower has printed.
pub(crate) struct Seen {
    loss_checker: LossChecker,
    pub(crate) events: Vec<Value>,
    /// Lines by `service/replica` and by instance.
    lines: BTreeMap<String, BTreeMap<String, u64>>,
}

// === impl Workspace ===

impl Workspace {
    pub(crate) fn new() -> Self {
        // Beside the program, because a hard link cannot cross file systems.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let program = dir.path().join("leasemux");
        fs::hard_link(env!("CARGO_BIN_EXE_leasemux"), &program).unwrap();
        for name in ["trusted", "tmp", "gates"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir, program, shell: None, is_detached: false }
    }

    /// Creates a workspace whose programs do not receive Ctrl-C of the terminal.
    pub(crate) fn detached() -> Self {
        let mut workspace = Self::new();
        workspace.is_detached = true;
        workspace
    }

    /// Creates a workspace for [`Program::limit_files`]: writes beyond the limit fail instead of killing the
    /// program.
    pub(crate) fn limitable() -> Self {
        Self::started_by("trap '' XFSZ; exec \"$0\" \"$@\"")
    }

    /// Creates a workspace whose gateways cannot write to standard error, as on a full disk.
    pub(crate) fn unheard() -> Self {
        Self::started_by("if [ $1 = serve ]; then exec 2>/dev/full; fi; exec \"$0\" \"$@\"")
    }

    /// Creates a workspace in which nothing reads the gateways' standard error.
    pub(crate) fn unread() -> Self {
        Self::started_by(
            "if [ $1 = serve ]; then
               mkfifo $TMPDIR/log
               sleep 1000 <$TMPDIR/log >/dev/null 2>&1 &
               exec 2>$TMPDIR/log
             fi
             exec \"$0\" \"$@\"",
        )
    }

    /// Creates a workspace whose programs ignore SIGHUP.
    pub(crate) fn nohup() -> Self {
        Self::started_by("trap '' HUP; exec \"$0\" \"$@\"")
    }

    fn started_by(shell: &'static str) -> Self {
        let mut workspace = Self::new();
        workspace.shell = Some(shell);
        workspace
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Creates a trusted tenant and returns a lease of it.
    pub(crate) fn tenant(&self, name: &str) -> LeaseId {
        let lease = self.stranger(name);
        fs::copy(self.path(name).join("cert.pem"), self.path("trusted").join(format!("{name}.pem"))).unwrap();
        lease
    }

    /// Creates a tenant without trust and returns a lease of it.
    pub(crate) fn stranger(&self, name: &str) -> LeaseId {
        let done = self.run(&["identity", "new", "--dir", &self.text(name)]);
        assert!(done.status.success(), "{done:?}");
        LeaseId::new(done.out.trim(), 7, 1, 1, account(200).as_str()).unwrap()
    }

    /// Writes an SDL file of services, each a shell script and a count. `$GATES` is a directory for
    /// [`Workspace::open`].
    pub(crate) fn sdl(&self, name: &str, services: &[(&str, &str, u32)]) -> PathBuf {
        let gates = format!("GATES={}", self.text("gates"));
        let (mut all, mut counts) = (serde_json::Map::new(), serde_json::Map::new());
        for (service, script, count) in services {
            let spec = serde_json::json!({"command": ["sh", "-c", script], "env": [gates]});
            all.insert((*service).to_owned(), spec);
            counts.insert((*service).to_owned(), serde_json::json!({"here": {"count": count}}));
        }
        // JSON is valid YAML.
        let sdl = serde_json::json!({"version": "2.0", "services": all, "deployment": counts});
        let path = self.path(name);
        fs::write(&path, sdl.to_string()).unwrap();
        path
    }

    /// Opens a gate that services wait for.
    pub(crate) fn open(&self, gate: &str) {
        fs::write(self.path("gates").join(gate), "").unwrap();
    }

    /// Returns the number that a service has written to a file in `$GATES`; 0 during the write.
    pub(crate) fn number(&self, name: &str) -> u64 {
        let text = fs::read_to_string(self.path("gates").join(name)).unwrap_or_default();
        text.trim().parse().unwrap_or_default()
    }

    pub(crate) fn until_number(&self, name: &str, at_least: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.number(name) < at_least {
            assert!(Instant::now() < deadline, "{name} is not {at_least}");
            std::thread::sleep(LOOK);
        }
    }

    /// Returns a command for the program, not started.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = match self.shell {
            Some(script) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", script]).arg(&self.program);
                shell
            }
            None => Command::new(&self.program),
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LEASEMUX_") {
                command.env_remove(name);
            }
        }
        if self.is_detached {
            command.process_group(0);
        }
        command.args(args).env("TMPDIR", self.path("tmp")).env("NO_COLOR", "1").stdin(Stdio::null());
        // Contexts of the person who runs the tests have no effect.
        command.env("XDG_CONFIG_HOME", self.path("config"));
        command
    }

    pub(crate) fn start(&self, args: &[&str]) -> Program {
        Program::start(self.command(args), args.join(" "))
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Done {
        self.start(args).done()
    }

    /// Returns the arguments of a gateway with these leases, on free ports.
    pub(crate) fn serve_args(&self, leases: &[(&LeaseId, &Path)]) -> Vec<String> {
        let mut args = vec!["serve".to_owned(), "--platform=local".to_owned()];
        args.extend(leases.iter().map(|(lease, sdl)| format!("--lease={lease}={}", sdl.display())));
        args.push(format!("--trust-dir={}", self.text("trusted")));
        args.push(format!("--data-dir={}", self.text("data")));
        args.extend(["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"].map(str::to_owned));
        args
    }

    /// Starts a gateway and waits until it is ready. The last value of a repeated flag counts.
    pub(crate) fn serve(&self, leases: &[(&LeaseId, &Path)], more: &[&str]) -> Gateway {
        Gateway::ready(self.start_serve(leases, more))
    }

    /// The same, without waiting.
    pub(crate) fn start_serve(&self, leases: &[(&LeaseId, &Path)], more: &[&str]) -> Program {
        let mut args = self.serve_args(leases);
        for flag in more {
            let name = flag.split_once('=').map_or(*flag, |(name, _)| name);
            args.retain(|arg| arg.split_once('=').is_none_or(|(known, _)| known != name));
            args.push((*flag).to_owned());
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.start(&args)
    }

    /// Returns the arguments of `logs` for a lease, as `tenant`.
    pub(crate) fn logs_args(&self, gateway: SocketAddr, tenant: &str, lease: &LeaseId) -> Vec<String> {
        self.call_args("logs", gateway, tenant, lease)
    }

    /// Returns the arguments of a tenant's command.
    pub(crate) fn call_args(
        &self,
        command: &str,
        gateway: SocketAddr,
        tenant: &str,
        lease: &LeaseId,
    ) -> Vec<String> {
        vec![
            command.to_owned(),
            lease.to_string(),
            format!("--gateway=https://{gateway}"),
            format!("--identity={}", self.text(tenant)),
            format!("--ca={}", self.text("data/server.pem")),
        ]
    }

    pub(crate) fn start_logs(
        &self,
        gateway: SocketAddr,
        tenant: &str,
        lease: &LeaseId,
        more: &[&str],
    ) -> Program {
        let args = self.logs_args(gateway, tenant, lease);
        let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        self.start(&args)
    }

    pub(crate) fn logs(&self, gateway: SocketAddr, tenant: &str, lease: &LeaseId, more: &[&str]) -> Done {
        self.start_logs(gateway, tenant, lease, more).done()
    }

    /// Starts a checked follower of the whole lease.
    pub(crate) fn follow(&self, gateway: SocketAddr, tenant: &str, lease: &LeaseId) -> Judged {
        Judged::new(self.start_logs(gateway, tenant, lease, &["-f", "-o", "json"]))
    }

    /// The same, for a follower that is not refilled when it lags.
    pub(crate) fn follow_dropping(&self, gateway: SocketAddr, tenant: &str, lease: &LeaseId) -> Judged {
        Judged::new(self.start_logs(gateway, tenant, lease, &["-f", "-o", "json", "--on-lag=drop"]))
    }

    /// Returns all living processes of this workspace: id and arguments.
    pub(crate) fn processes(&self) -> BTreeMap<i32, String> {
        let mark = self.dir.path().as_os_str().as_bytes();
        let marked = |bytes: &[u8]| memchr::memmem::find(bytes, mark).is_some();
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        // Zombies have neither path nor arguments.
        pids.filter_map(|pid: i32| {
            let read = |file| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            let arguments = read("cmdline");
            let ours = marked(exe.as_os_str().as_bytes()) || marked(&arguments) || marked(&read("environ"));
            ours.then(|| (pid, String::from_utf8_lossy(&arguments).replace('\0', " ")))
        })
        .collect()
    }

    pub(crate) fn until_processes(&self, wanted: impl Fn(&BTreeMap<i32, String>) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.processes();
            if wanted(&found) {
                return;
            }
            assert!(Instant::now() < deadline, "still there: {found:#?}");
            std::thread::sleep(LOOK);
        }
    }

    pub(crate) fn until_nothing_is_left(&self) {
        self.until_processes(BTreeMap::is_empty);
    }
}

/// Makes programs end at SIGINT and SIGHUP even if the tests run with these signals ignored (`nohup`,
/// background
/// job): children inherit an ignored signal, but not a handled one.
fn heed_signals() {
    static ONCE: Once = Once::new();
    let heed = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        for kind in [SignalKind::interrupt(), SignalKind::hangup()] {
            if ignores(kind.as_raw_value().unsigned_abs()).unwrap() {
                // The handler stays installed after drop.
                drop(signal(kind).unwrap());
            }
        }
    };
    // On its own thread, because a test may already run inside a runtime.
    ONCE.call_once(|| std::thread::spawn(heed).join().unwrap());
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // A process may start others before it is killed.
        for _ in 0..100 {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            for pid in left.into_keys().filter_map(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(LOOK);
        }
    }
}

// === impl Program ===

impl Program {
    pub(crate) fn start(mut command: Command, what: String) -> Self {
        heed_signals();
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = Text::read(child.stdout.take().unwrap());
        let err = Text::read(child.stderr.take().unwrap());
        Self { child, what, out, err }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Limits the size of files that the program writes; `None`: the limit of this process.
    pub(crate) fn limit_files(&self, bytes: Option<u64>) {
        let maximum = getrlimit(Resource::Fsize).maximum;
        let limit = Rlimit { current: bytes.or(maximum), maximum };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Fsize, limit).unwrap();
    }

    /// Waits until `found` returns a value for standard output.
    pub(crate) fn until_out<T>(&self, what: &str, found: impl FnMut(&str) -> Option<T>) -> T {
        self.out.until(found).unwrap_or_else(|| self.fail(what))
    }

    /// Waits until standard error contains `text`.
    pub(crate) fn until_said(&self, text: &str) {
        self.until_said_times(text, 1);
    }

    /// Waits until standard error contains `text` this many times.
    pub(crate) fn until_said_times(&self, text: &str, times: usize) {
        let said = self.err.until(|err| (err.matches(text).count() >= times).then_some(()));
        said.unwrap_or_else(|| self.fail(text));
    }

    fn fail(&self, what: &str) -> ! {
        let out = self.out.get();
        let end = out.char_indices().rev().nth(2000).map_or(0, |(at, _)| at);
        panic!("`{}` did not give {what}; out: …{}\nerr: {}", self.what, &out[end..], self.err.get());
    }

    /// Waits until the program and its output end.
    pub(crate) fn done(mut self) -> Done {
        for text in [&self.out, &self.err] {
            if !text.until_end() {
                self.fail("its end");
            }
        }
        Done { status: self.wait(), out: self.out.get(), err: self.err.get() }
    }

    /// Waits until the program ends.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                self.fail("its end");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Whether the program has ended.
    #[cfg(feature = "nats")]
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Kills the program.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Text ===

impl Text {
    pub(crate) fn read(mut from: impl Read + Send + 'static) -> Arc<Self> {
        let text = Arc::new(Self::default());
        let reader = Arc::clone(&text);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                reader.state.lock().unwrap().bytes.extend_from_slice(&buffer[..read]);
                reader.changed.notify_all();
            }
            reader.state.lock().unwrap().ended = true;
            reader.changed.notify_all();
        });
        text
    }

    pub(crate) fn get(&self) -> String {
        String::from_utf8_lossy(&self.state.lock().unwrap().bytes).into_owned()
    }

    /// Returns `None` if the output ends or the deadline passes first.
    pub(crate) fn until<T>(&self, mut found: impl FnMut(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(found) = found(&String::from_utf8_lossy(&state.bytes)) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    pub(crate) fn until_end(&self) -> bool {
        let state = self.state.lock().unwrap();
        let (state, _) = self.changed.wait_timeout_while(state, PATIENCE, |state| !state.ended).unwrap();
        state.ended
    }
}

// === impl Gateway ===

impl Gateway {
    /// Waits until a started gateway is ready.
    pub(crate) fn ready(program: Program) -> Self {
        let (address, admin, rest) = program.until_out("its ready line", |out| {
            let line = out.split_once('\n')?.0.strip_prefix("leasemux ready: gateway https://")?;
            let (gateway, others) = line.split_once(" admin http://")?;
            let admin = others.split(' ').next()?;
            let rest = others.split_once(" rest https://").and_then(|(_, rest)| rest.split(' ').next());
            Some((gateway.parse().unwrap(), admin.parse().unwrap(), rest.map(|rest| rest.parse().unwrap())))
        });
        Self { program, address, admin, rest }
    }

    /// Sends a signal and waits until the gateway has ended.
    pub(crate) fn stop(self, signal: Signal) -> Done {
        self.program.signal(signal);
        self.program.done()
    }

    /// Returns the address of the REST port, which must be open.
    pub(crate) fn rest(&self) -> SocketAddr {
        self.port("rest")
    }

    /// Returns the address of the port for the published proto, which must be open.
    pub(crate) fn published(&self) -> SocketAddr {
        self.port("published")
    }

    /// Returns the address of a port, named as in the ready line, which must be open.
    pub(crate) fn port(&self, name: &str) -> SocketAddr {
        let out = self.program.out.get();
        let (_, address) = out.split_once(&format!(" {name} https://")).expect("an open port");
        address.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Returns head and body of an answer of the admin port.
    pub(crate) fn get(&self, path: &str) -> (String, String) {
        get(self.admin, "HTTP/1.1", path).unwrap()
    }

    /// Waits until a metric has this value.
    pub(crate) fn until_metric(&self, name: &str, wanted: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.metric(name) != wanted {
            assert!(Instant::now() < deadline, "{name} is not {wanted}");
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until followers accept no more data. Services must print meanwhile.
    pub(crate) fn until_nothing_is_taken(&self) {
        /// More bytes than buffers on the way can hold without being counted as delivered.
        const PRINTED_MEANWHILE: u64 = 20_000;
        let deadline = Instant::now() + PATIENCE;
        let (mut delivered, mut printed) = (0, 0);
        loop {
            let now = self.metric("leasemux_lines_delivered_total");
            let read = self.metric("leasemux_lines_in_total");
            if now != delivered {
                (delivered, printed) = (now, read);
            } else if read - printed > PRINTED_MEANWHILE {
                return;
            }
            assert!(Instant::now() < deadline, "somebody still takes lines, or nothing is printed");
            std::thread::sleep(LOOK);
        }
    }

    /// Returns the value of a metric, named with its labels.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let (_, metrics) = self.get("/metrics");
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
    }
}

// === impl Judged ===

impl Judged {
    pub(crate) fn new(program: Program) -> Self {
        Self { program, read: 0, seen: Seen::new() }
    }

    /// Waits until `wanted` holds for what was printed.
    pub(crate) fn until(&mut self, what: &str, wanted: impl Fn(&Seen) -> bool) {
        let (read, seen) = (&mut self.read, &mut self.seen);
        let found = self.program.out.until(|out| {
            let whole = out.rfind('\n').map_or(0, |end| end + 1);
            for object in out[*read..whole].lines() {
                seen.object(object);
            }
            *read = whole;
            wanted(seen).then_some(())
        });
        if found.is_none() {
            let (lines, events) = (&self.seen.lines, &self.seen.events);
            self.program.fail(&format!("{what}, but {lines:?}, {events:?}"));
        }
    }

    /// Ends the program with SIGINT. Returns what it had printed, which is checked and complete so far.
    pub(crate) fn end(mut self) -> (Seen, String) {
        self.program.signal(Signal::INT);
        let done = self.program.done();
        // The last object may be incomplete.
        let whole = done.out.rfind('\n').map_or(0, |end| end + 1);
        for object in done.out[self.read..whole].lines() {
            self.seen.object(object);
        }
        (self.seen, done.err)
    }
}

// === impl Seen ===

impl Seen {
    /// Creates an empty record. All lines were requested, and each service counts on one stream.
    pub(crate) fn new() -> Self {
        let loss_checker = LossChecker::new(Start::First, Order::Exact);
        Self { loss_checker, events: Vec::new(), lines: BTreeMap::new() }
    }

    /// Reads the output of `-o json`.
    pub(crate) fn of(out: &str) -> Self {
        let mut seen = Self::new();
        out.lines().for_each(|object| seen.object(object));
        seen
    }

    fn object(&mut self, object: &str) {
        let (object, entry) = read_object(object);
        let Some(entry) = entry else { return self.events.push(object) };
        self.loss_checker.feed(&entry);
        if entry.gap.is_none() {
            let runs = self.lines.entry(format!("{}/{}", entry.name, entry.replica)).or_default();
            *runs.entry(entry.cursor.unwrap_or_default().instance).or_default() += 1;
        }
    }

    /// Returns the finished lines of a replica (`service/index`) by run, in order.
    pub(crate) fn runs(&self, replica: &str) -> Vec<u64> {
        // An instance ends with its number, and there are fewer than ten.
        self.lines.get(replica).map(|runs| runs.values().copied().collect()).unwrap_or_default()
    }

    /// Returns how often an event of this kind occurred.
    pub(crate) fn events(&self, kind: &str) -> usize {
        self.events.iter().filter(|event| event["kind"] == kind).count()
    }

    pub(crate) fn tally(&self) -> Tally {
        self.loss_checker.tally()
    }

    /// Returns the loss checker's result, and fails on a violation.
    pub(crate) fn verdict(&self) -> Tally {
        self.loss_checker.verdict().unwrap_or_else(|violation| panic!("{violation}"))
    }

    /// Asserts that no line was lost.
    pub(crate) fn is_whole(&self) -> Tally {
        let tally = self.verdict();
        assert_eq!((tally.gaps, tally.lost_lines, tally.checked), (0, 0, tally.lines), "{tally:?}");
        tally
    }
}

/// Reads a line of `-o json`. Also returns the entry that it shows, unless that is an event.
pub(crate) fn read_object(line: &str) -> (Value, Option<ServiceLogs>) {
    let object: Value = serde_json::from_str(line).unwrap();
    let text = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
    let (name, instance) = (text("service"), text("instance"));
    let replica = u32::try_from(object["replica"].as_u64().unwrap()).unwrap();
    let cursor = Some(Cursor { service: name.clone(), replica, instance, ..Cursor::default() });
    let mut entry = ServiceLogs { name, replica, cursor, ..ServiceLogs::default() };
    match object["type"].as_str().unwrap() {
        "event" => return (object, None),
        "gap" => {
            let number = |name: &str| object[name].as_u64().unwrap();
            let exact = object["exact"].as_bool().unwrap();
            entry.gap = Some(Gap { lines: number("lines"), bytes: number("bytes"), exact, ..Gap::default() });
        }
        "line" => {
            let end = if object["partial"] == true { "" } else { "\n" };
            entry.logs = (text("line") + end).into_bytes().into();
        }
        other => panic!("{other} in {object}"),
    }
    (object, Some(entry))
}

/// Sends an HTTP GET. Returns the head in lower case and the body. With `HTTP/1.0` the server does not use
/// chunked
/// encoding.
pub(crate) fn get(address: SocketAddr, version: &str, path: &str) -> std::io::Result<(String, String)> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    write!(socket, "GET {path} {version}\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other("no answer"))?;
    Ok((head.to_lowercase(), body.to_owned()))
}

/// Returns a port outside the ephemeral range, so that it can be bound again after a restart.
pub(crate) fn own_port() -> u16 {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id() % 1_000 * 100;
    for _ in 0..20_000 {
        let port = 10_000 + (begin + TRIED.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let port = u16::try_from(port).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}
