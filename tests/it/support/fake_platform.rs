//! A fake platform. Tests decide what its services print, and when.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use futures_util::StreamExt as _;
use leasemux::model::id::{Instance, LeaseId, Replica};
use leasemux::model::line::{self, GapCause, Line, LineBatch, SourceGap};
use leasemux::model::position::Position;
use leasemux::model::time::LogTime;
use leasemux::model::view::{LeaseView, ReplicaState, Run, RunEnd};
use leasemux::platform::{Error, Platform, ReadFrom, RestartRequest, Tail, TailItem, TailRequest};
use tokio::sync::watch;

/// Length of each line that the source loses, in bytes.
pub(crate) const LOST_BYTES: u64 = 10;

/// Lines in one batch.
const BATCH_LINES: usize = 1_000;

/// The fake platform. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakePlatform(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    leases: Mutex<HashMap<LeaseId, watch::Sender<Arc<LeaseView>>>>,
    logs: Mutex<HashMap<Instance, Log>>,
    /// Number of calls to `watch`.
    looks: AtomicUsize,
    /// Number of tails opened with `follow`.
    follows: AtomicUsize,
    /// Number of tails that are open now.
    open: Arc<AtomicUsize>,
    /// Makes `watch` fail.
    watch_error: Mutex<Option<fn() -> Error>>,
    /// Ordered restarts, in order, without repeated orders.
    restarts: Mutex<Vec<RestartRequest>>,
    /// Result of a restart, by replica; [`RestartBehavior::Up`] by default.
    restart_behaviors: Mutex<HashMap<Replica, RestartBehavior>>,
}

/// Result of a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RestartBehavior {
    /// A new run that stays.
    #[default]
    Up,
    /// A new run that ends at once.
    Crash,
    /// The old run ends, and no new run starts.
    Never,
    /// The platform is temporarily unavailable.
    Unavailable,
    /// The platform fails, with an error text that callers must not see.
    Broken,
}

/// The log of one run.
#[derive(Clone, Debug)]
struct Log {
    state: watch::Sender<LogState>,
}

#[derive(Clone, Debug, Default)]
struct LogState {
    lines: Vec<(LogTime, Printed)>,
    /// Number of lines that are rotated away.
    rotated: usize,
    ended: bool,
    failing: bool,
    /// Number of tails that were opened.
    tails: usize,
    /// The number of a tail that gets no more lines.
    silent: Option<usize>,
}

#[derive(Clone, Debug)]
enum Printed {
    Line(Bytes),
    /// A part of a line of one stream; `true` if the line continues.
    Piece(line::OutputStream, Bytes, bool),
    /// The source lost this many lines here and recorded it.
    Lost(u64),
}

struct Open(Arc<AtomicUsize>);

impl FakePlatform {
    /// Adds a lease with these services. No replica runs yet.
    pub(crate) fn add_lease(&self, lease: &LeaseId, services: &[(&str, u32)]) {
        let mut view = LeaseView::default();
        for (name, count) in services {
            let service = view.services.entry(name.parse().unwrap()).or_default();
            service.count = *count;
            for index in 0..*count {
                service.replicas.entry(index).or_default();
            }
        }
        self.leases().insert(lease.clone(), watch::Sender::new(Arc::new(view)));
    }

    /// Changes the view of a lease.
    pub(crate) fn change(&self, lease: &LeaseId, change: impl FnOnce(&mut LeaseView)) {
        self.leases()[lease].send_modify(|view| change(Arc::make_mut(view)));
    }

    /// Starts the next run of a replica.
    pub(crate) fn start(&self, lease: &LeaseId, replica: &Replica) -> Instance {
        let number = self.leases()[lease].borrow().replica(replica).map_or(0, |view| view.runs.len());
        let uid = format!("uid-{}-{}", lease.owner(), replica.index);
        self.start_run(lease, replica, &uid, u32::try_from(number).unwrap())
    }

    /// Starts the first run of a replica in a new pod. The view no longer names the runs of the pod before.
    pub(crate) fn replace_pod(&self, lease: &LeaseId, replica: &Replica) -> Instance {
        self.change(lease, |view| {
            let service = view.services.get_mut(&replica.service).unwrap();
            service.replicas.get_mut(&replica.index).unwrap().runs.clear();
        });
        let uid = format!("new-uid-{}-{}", lease.owner(), replica.index);
        self.start_run(lease, replica, &uid, 0)
    }

    fn start_run(&self, lease: &LeaseId, replica: &Replica, uid: &str, number: u32) -> Instance {
        let instance = Instance::new(uid, replica.service.as_str(), number).unwrap();
        self.logs().insert(instance.clone(), Log { state: watch::Sender::new(LogState::default()) });
        self.change(lease, |view| {
            let service = view.services.entry(replica.service.clone()).or_default();
            let slot = service.replicas.entry(replica.index).or_default();
            let started = LogTime::from_nanos(1);
            slot.runs.push(Run {
                instance: instance.clone(),
                started,
                end: None,
                log_is_gone: false,
                later_unknown: false,
            });
            (slot.state, slot.ready, slot.restarts) = (ReplicaState::Running, true, number);
        });
        instance
    }

    /// Ends the current run of a replica.
    pub(crate) fn end(&self, lease: &LeaseId, replica: &Replica, exit_code: i32) {
        self.end_because(lease, replica, exit_code, "Error", "CrashLoopBackOff");
    }

    /// Ends a run that need not be the newest one of its replica, as in a rollout.
    pub(crate) fn end_run(&self, lease: &LeaseId, replica: &Replica, instance: &Instance) {
        self.logs()[instance].state.send_modify(|log| log.ended = true);
        self.change(lease, |view| {
            let slot =
                view.services.get_mut(&replica.service).unwrap().replicas.get_mut(&replica.index).unwrap();
            let run = slot.runs.iter_mut().find(|run| run.instance == *instance).unwrap();
            let (time, reason) = (LogTime::from_nanos(1_000_000), "Error".to_owned());
            run.end = Some(RunEnd { time, exit_code: Some(143), signal: None, reason });
        });
    }

    /// Sets whether tails of a log end after its last line, whatever the view states of its run.
    pub(crate) fn set_log_ends(&self, instance: &Instance, ends: bool) {
        self.logs()[instance].state.send_modify(|log| log.ended = ends);
    }

    /// Ends the current run of a replica with this reason. The replica then waits for the reason `waits`.
    fn end_because(&self, lease: &LeaseId, replica: &Replica, exit_code: i32, reason: &str, waits: &str) {
        let instance =
            self.leases()[lease].borrow().replica(replica).unwrap().newest().unwrap().instance.clone();
        self.logs()[&instance].state.send_modify(|log| log.ended = true);
        self.change(lease, |view| {
            let slot =
                view.services.get_mut(&replica.service).unwrap().replicas.get_mut(&replica.index).unwrap();
            let time = LogTime::from_nanos(1_000_000);
            slot.runs.last_mut().unwrap().end =
                Some(RunEnd { time, exit_code: Some(exit_code), signal: None, reason: reason.into() });
            slot.ready = false;
            slot.state = ReplicaState::Waiting { reason: waits.into(), message: String::new() };
        });
    }

    /// Prints these lines at once.
    pub(crate) fn print(&self, instance: &Instance, lines: impl IntoIterator<Item = impl Into<Bytes>>) {
        self.logs()[instance].state.send_modify(|log| {
            for line in lines {
                log.push(Printed::Line(line.into()));
            }
        });
    }

    /// Prints a line with this time.
    pub(crate) fn print_at(&self, instance: &Instance, nanos: i64, line: &'static str) {
        let printed = Printed::Line(Bytes::from_static(line.as_bytes()));
        self.logs()[instance].state.send_modify(|log| log.lines.push((LogTime::from_nanos(nanos), printed)));
    }

    /// Prints a line with the time of the line before.
    pub(crate) fn print_again(&self, instance: &Instance, line: &'static str) {
        self.logs()[instance].state.send_modify(|log| {
            let time = log.lines.last().unwrap().0;
            log.lines.push((time, Printed::Line(Bytes::from_static(line.as_bytes()))));
        });
    }

    /// Prints a part of a line to one stream. The line ends if the part ends with a newline.
    pub(crate) fn print_piece(&self, instance: &Instance, stream: line::OutputStream, piece: &str) {
        let more = !piece.ends_with('\n');
        let printed = Printed::Piece(stream, Bytes::copy_from_slice(piece.as_bytes()), more);
        self.logs()[instance].state.send_modify(|log| log.push(printed));
    }

    /// Loses this many lines before the next one.
    pub(crate) fn lose(&self, instance: &Instance, lines: u64) {
        self.logs()[instance].state.send_modify(|log| log.push(Printed::Lost(lines)));
    }

    /// Rotates away all but the last `keep` lines.
    pub(crate) fn rotate(&self, instance: &Instance, keep: usize) {
        self.logs()[instance].state.send_modify(|log| log.rotated = log.lines.len().saturating_sub(keep));
    }

    /// Makes reads of the log fail, or succeed again.
    pub(crate) fn fail(&self, instance: &Instance, failing: bool) {
        self.logs()[instance].state.send_modify(|log| log.failing = failing);
    }

    /// Sends nothing more in the tail of the log that was opened last, as over a half-open connection.
    pub(crate) fn silence_newest_tail(&self, instance: &Instance) {
        self.logs()[instance].state.send_modify(|log| log.silent = Some(log.tails));
    }

    /// Returns the produced lines of a run; `None` for a lost line of [`LOST_BYTES`].
    pub(crate) fn produced(&self, instance: &Instance) -> Vec<Option<Bytes>> {
        let log = self.logs()[instance].state.borrow().clone();
        let lines = log.lines.into_iter().flat_map(|(_, printed)| match printed {
            Printed::Line(line) => vec![Some(line)],
            Printed::Piece(..) => panic!("use the loss checker for parts of lines"),
            Printed::Lost(count) => vec![None; usize::try_from(count).unwrap()],
        });
        lines.collect()
    }

    /// Returns the printed lines of a run.
    pub(crate) fn printed(&self, instance: &Instance) -> Vec<Bytes> {
        self.produced(instance).into_iter().flatten().collect()
    }

    /// Makes `watch` fail with this error, or succeed again.
    pub(crate) fn set_watch_error(&self, error: Option<fn() -> Error>) {
        *self.0.watch_error.lock().unwrap() = error;
    }

    /// Returns the number of calls to `watch`.
    pub(crate) fn looks(&self) -> usize {
        self.0.looks.load(Ordering::SeqCst)
    }

    /// Returns the number of tails that were opened with `follow`.
    pub(crate) fn follows(&self) -> usize {
        self.0.follows.load(Ordering::SeqCst)
    }

    /// Returns the restarted replicas, in order, without repeated orders.
    pub(crate) fn restarted(&self) -> Vec<String> {
        let restarts = self.0.restarts.lock().unwrap();
        restarts.iter().map(|request| request.replica.to_string()).collect()
    }

    /// Sets the result of restarts of a replica.
    pub(crate) fn set_restart_behavior(&self, replica: &Replica, behavior: RestartBehavior) {
        self.0.restart_behaviors.lock().unwrap().insert(replica.clone(), behavior);
    }

    fn order_restart(&self, request: RestartRequest) -> Result<(), Error> {
        let RestartRequest { lease, replica, instance } = &request;
        let newest = {
            let leases = self.leases();
            let view = leases.get(lease).ok_or_else(|| Error::NotFound("no such lease".into()))?.borrow();
            let slot = view.replica(replica).ok_or_else(|| Error::NotFound("no such replica".into()))?;
            slot.newest().cloned()
        };
        if newest.as_ref().map(|run| &run.instance) != instance.as_ref() {
            return Err(Error::Conflict("another run has begun".into()));
        }
        let behavior = self.0.restart_behaviors.lock().unwrap().get(replica).copied().unwrap_or_default();
        match behavior {
            RestartBehavior::Unavailable => return Err(Error::Unavailable("marker: not now".into())),
            RestartBehavior::Broken => return Err(Error::Broken("marker: no".into())),
            RestartBehavior::Up | RestartBehavior::Crash | RestartBehavior::Never => {}
        }
        let mut restarts = self.0.restarts.lock().unwrap();
        if restarts.contains(&request) {
            return Ok(());
        }
        if newest.is_some_and(|run| run.end.is_none()) {
            self.end_because(lease, replica, 143, "Restarted", "ContainerCreating");
        }
        if behavior != RestartBehavior::Never {
            self.start(lease, replica);
        }
        if behavior == RestartBehavior::Crash {
            self.end(lease, replica, 1);
        }
        restarts.push(request);
        Ok(())
    }

    /// Returns the number of open tails.
    pub(crate) fn open(&self) -> usize {
        self.0.open.load(Ordering::SeqCst)
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<LeaseId, watch::Sender<Arc<LeaseView>>>> {
        self.0.leases.lock().unwrap()
    }

    fn logs(&self) -> MutexGuard<'_, HashMap<Instance, Log>> {
        self.0.logs.lock().unwrap()
    }
}

impl Platform for FakePlatform {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn watch(&self, lease: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        self.0.looks.fetch_add(1, Ordering::SeqCst);
        if let Some(error) = *self.0.watch_error.lock().unwrap() {
            return Box::pin(async move { Err(error()) });
        }
        let found = self.leases().get(lease).map(watch::Sender::subscribe);
        Box::pin(async move { found.ok_or_else(|| Error::NotFound("no such lease".into())) })
    }

    fn tail(&self, request: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
        let found = self.logs().get(&request.instance).cloned();
        self.0.follows.fetch_add(usize::from(request.follow), Ordering::SeqCst);
        let open = Arc::clone(&self.0.open);
        Box::pin(async move {
            let log = found.ok_or_else(|| Error::NotFound("no such log".into()))?;
            let reader = Reader::open(&log, request, open)?;
            let unfinished = reader.begun.lines.map(|begun| begun.is_some());
            Ok(Tail { start: reader.at, unfinished, items: reader.into_stream() })
        })
    }

    fn restart(&self, request: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(std::future::ready(self.order_restart(request)))
    }
}

struct Reader {
    log: watch::Receiver<LogState>,
    follow: bool,
    next: usize,
    at: Position,
    gap: Option<SourceGap>,
    /// Bytes of the next line that were already sent.
    cut: usize,
    begun: Begun,
    /// Which tail of the log it is.
    number: usize,
    _open: Open,
}

impl Reader {
    fn open(log: &Log, request: TailRequest, open: Arc<AtomicUsize>) -> Result<Self, Error> {
        open.fetch_add(1, Ordering::SeqCst);
        let open = Open(open);
        log.state.send_modify(|log| log.tails += 1);
        let log = log.state.subscribe();
        let state = log.borrow().clone();
        if state.failing {
            return Err(Error::Unavailable("the fake is told to fail".into()));
        }
        let positions = positions(&state.lines);
        let count = state.lines.len();
        let last = |lines| count.saturating_sub(usize::try_from(lines).unwrap());
        let mut cut = 0;
        let wanted = match request.from {
            ReadFrom::Start => 0,
            ReadFrom::Last(lines) => last(lines),
            ReadFrom::Since(since) => {
                state.lines.iter().position(|(time, _)| *time >= since).unwrap_or(count)
            }
            ReadFrom::After(position) => {
                cut = usize::try_from(position.offset).unwrap();
                let whole = Position { offset: 0, ..position };
                let mut index =
                    positions.iter().position(|at| *at == whole).expect("a position that was given out");
                while let Some((_, Printed::Piece(_, piece, true))) = state.lines.get(index)
                    && cut >= piece.len()
                {
                    (index, cut) = (index + 1, cut - piece.len());
                }
                index
            }
        };
        let next = wanted.max(state.rotated.min(count));
        let must_have_all = matches!(request.from, ReadFrom::After(_)) || request.is_next_run;
        let is_behind = must_have_all && next > wanted;
        let after = positions[next];
        let mut begun = Begun::default();
        for (time, printed) in &state.lines[..next] {
            begun.pass(*time, printed);
        }
        let gap = SourceGap { cause: GapCause::Rotated, lines: 0, bytes: 0, exact: false, after };
        Ok(Self {
            at: positions[next].after_bytes(if is_behind { 0 } else { cut }),
            log,
            follow: request.follow,
            next,
            gap: is_behind.then_some(gap),
            cut: if is_behind { 0 } else { cut },
            begun,
            number: state.tails,
            _open: open,
        })
    }

    fn into_stream(self) -> futures_core::stream::BoxStream<'static, Result<TailItem, Error>> {
        futures_util::stream::unfold(self, |mut reader| async {
            let item = reader.next().await?;
            Some((item, reader))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<Result<TailItem, Error>> {
        loop {
            if let Some(gap) = self.gap.take() {
                return Some(Ok(TailItem::Gap(gap)));
            }
            if let Poll::Ready(step) = self.look() {
                return step;
            }
            self.log.changed().await.ok()?;
        }
    }

    /// Reads the lines that exist now.
    fn look(&mut self) -> Poll<Option<Result<TailItem, Error>>> {
        let mut log = self.log.clone();
        let state = log.borrow_and_update();
        if state.failing {
            return Poll::Ready(Some(Err(Error::Unavailable("the fake is told to fail".into()))));
        }
        let is_silent = state.silent == Some(self.number);
        let end = if is_silent { self.next } else { state.lines.len().min(self.next + BATCH_LINES) };
        if let Some(batch) = self.batch(&state, end) {
            return Poll::Ready(Some(Ok(batch)));
        }
        if !self.follow || state.ended {
            return Poll::Ready(None);
        }
        drop(state);
        self.log = log;
        Poll::Pending
    }

    fn batch(&mut self, state: &LogState, end: usize) -> Option<TailItem> {
        let (mut data, mut lines) = (Vec::new(), Vec::new());
        while self.next < end {
            let (time, printed) = &state.lines[self.next];
            let after = self.begun.after(self.at, *time, printed, self.cut);
            match printed {
                Printed::Line(line) => {
                    data.extend_from_slice(&line[self.cut..]);
                    let continues = self.cut > 0;
                    lines.push(Line { continues, ..Line::whole(data.len(), *time, after) });
                }
                Printed::Piece(stream, piece, more) => {
                    data.extend_from_slice(&piece[self.cut..]);
                    let begun = self.begun.lines[*stream as usize];
                    let (continues, time) = (begun.is_some() || self.cut > 0, begun.unwrap_or(*time));
                    let whole = Line::whole(data.len(), time, after);
                    lines.push(Line { ends: !more, continues, stream: Some(*stream), ..whole });
                }
                Printed::Lost(_) if !lines.is_empty() => break,
                Printed::Lost(count) => {
                    (self.at, self.next) = (after, self.next + 1);
                    let (lines, bytes) = (*count, LOST_BYTES * count);
                    return Some(TailItem::Gap(SourceGap {
                        cause: GapCause::Source,
                        lines,
                        bytes,
                        exact: true,
                        after,
                    }));
                }
            }
            self.begun.pass(*time, printed);
            (self.at, self.next, self.cut) = (after, self.next + 1, 0);
        }
        (!lines.is_empty()).then(|| TailItem::Lines(LineBatch { data: data.into(), lines }))
    }
}

/// Lines that have begun and are not finished.
#[derive(Debug, Default)]
struct Begun {
    /// Time of the first part of the merged line.
    merged: Option<LogTime>,
    /// Times of the first parts, by stream.
    lines: [Option<LogTime>; 2],
}

impl Begun {
    /// The position after `printed`, of which `cut` bytes lie before `at`.
    fn after(&self, at: Position, time: LogTime, printed: &Printed, cut: usize) -> Position {
        match printed {
            Printed::Piece(_, piece, true) => at.after_bytes(piece.len() - cut),
            _ => at.after_line(self.merged.unwrap_or(time)),
        }
    }

    fn pass(&mut self, time: LogTime, printed: &Printed) {
        match printed {
            Printed::Piece(stream, _, more) => {
                let merged = self.merged.unwrap_or(time);
                self.merged = more.then_some(merged);
                let begun = &mut self.lines[*stream as usize];
                let first = begun.unwrap_or(time);
                *begun = more.then_some(first);
            }
            Printed::Line(_) => self.merged = None,
            Printed::Lost(_) => *self = Self::default(),
        }
    }
}

impl LogState {
    fn push(&mut self, printed: Printed) {
        // Two lines of each time, so that a time alone does not identify a line.
        let time = LogTime::from_nanos(1_000 + i64::try_from(self.lines.len() / 2).unwrap());
        self.lines.push((time, printed));
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Returns the position before each line and after the last one.
fn positions(lines: &[(LogTime, Printed)]) -> Vec<Position> {
    let mut at = Position::START;
    let mut all = vec![at];
    let mut begun = Begun::default();
    for (time, printed) in lines {
        at = begun.after(at, *time, printed, 0);
        begun.pass(*time, printed);
        all.push(at);
    }
    all
}
