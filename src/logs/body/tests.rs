use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_core::future::BoxFuture;
use http_body::Body as _;
use metrics::NoopRecorder;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::mpsc;

use super::*;
use crate::logs::LagPolicy;
use crate::logs::entry_name::NameStyle;
use crate::logs::memory_budget::MemoryBudget;
use crate::logs::notice::Notices;
use crate::logs::websocket::tests::decode;
use crate::model::id::{Address, Instance, LeaseId};
use crate::model::limits::Limits;
use crate::model::line::{GapCause, Line, LineBatch, SourceGap};
use crate::model::metrics::Metrics;
use crate::model::position::Position;
use crate::model::proto::lease::{ServiceLogs, ServiceLogsResponse};
use crate::model::time::LogTime;
use crate::model::view::{Filter, ReplicaState, ReplicaView, Run, RunEnd, ServiceView};
use crate::platform::{Error, Platform, ReadFrom, RestartRequest, Tail, TailItem, TailRequest};

mod heartbeats;

/// Longer than any event in these tests takes.
const QUIET_PERIOD: Duration = Duration::from_secs(1);

/// A platform without leases.
#[derive(Debug)]
struct EmptyPlatform;

impl Platform for EmptyPlatform {
    fn name(&self) -> &'static str {
        "empty"
    }

    fn watch(&self, _: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        Box::pin(async { Err(Error::NotFound("no lease".into())) })
    }

    fn tail(&self, _: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
        Box::pin(async { Err(Error::NotFound("no log".into())) })
    }

    fn restart(&self, _: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Err(Error::NotFound("no replica".into())) })
    }
}

/// A platform with the log of one run.
#[derive(Debug)]
struct OneLog {
    items: Vec<TailItem>,
    /// The position after the items.
    end: Position,
    /// Delay before older lines are opened.
    delay: Duration,
    /// Later items, for the actor.
    live: Mutex<Option<mpsc::Receiver<TailItem>>>,
}

impl Platform for OneLog {
    fn name(&self) -> &'static str {
        "one"
    }

    fn watch(&self, _: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        Box::pin(async { Err(Error::NotFound("no lease".into())) })
    }

    fn tail(&self, request: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
        Box::pin(async move {
            let (start, items) = if matches!(request.from, ReadFrom::Last(0)) {
                (self.end, Vec::new())
            } else {
                tokio::time::sleep(self.delay).await;
                (Position::START, self.items.clone())
            };
            let items = futures_util::stream::iter(items.into_iter().map(Ok));
            let live = if start == self.end { self.live.lock().take() } else { None };
            let items = match live {
                Some(live) => {
                    let live = futures_util::stream::unfold(live, |mut live| async {
                        Some((Ok(live.recv().await?), live))
                    });
                    items.chain(live).chain(futures_util::stream::pending()).boxed()
                }
                None if request.follow => items.chain(futures_util::stream::pending()).boxed(),
                None => items.boxed(),
            };
            Ok(Tail { start, unfinished: [false; 2], items })
        })
    }

    fn restart(&self, _: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Err(Error::NotFound("no replica".into())) })
    }
}

/// Makes a log of the numbered lines in each range, with a gap of the numbers between two ranges.
fn log(ranges: &[std::ops::Range<u64>], width: usize, delay: Duration) -> OneLog {
    let (mut items, mut after, mut next) = (Vec::new(), Position::START, 0);
    for range in ranges {
        if range.start > next {
            let lines = range.start - next;
            for _ in 0..lines {
                after = after.after_line(LogTime::from_nanos(1));
            }
            items.push(TailItem::Gap(SourceGap {
                cause: GapCause::Rotated,
                lines,
                bytes: lines * 9,
                exact: true,
                after,
            }));
        }
        items.push(numbered(range.clone(), width, &mut after));
        next = range.end;
    }
    OneLog { items, end: after, delay, live: Mutex::default() }
}

fn numbered(range: std::ops::Range<u64>, width: usize, after: &mut Position) -> TailItem {
    let (mut data, mut lines) = (Vec::new(), Vec::new());
    for number in range {
        data.extend_from_slice(format!("line {number:0width$}\n").as_bytes());
        *after = after.after_line(LogTime::from_nanos(1));
        lines.push(Line::whole(data.len(), LogTime::from_nanos(1), *after));
    }
    TailItem::Lines(LineBatch { data: data.into(), lines })
}

/// The loss check: lines and gaps are the numbers from zero to `end`, in order. Returns the kinds of the
/// other notices.
fn check_loss(frames: &[Vec<u8>], end: u64) -> Vec<String> {
    let (mut next, mut others) = (0, Vec::new());
    // Each data frame has whole websocket frames.
    for object in frames.iter().flat_map(|frame| decode(frame)) {
        let kind = object["notice"]["kind"].as_str();
        // A wait concerns the stream, and no service was named.
        assert_eq!(object["name"], if kind == Some("wait") { "leasemux" } else { "web-0" });
        match kind {
            None => {
                let number = object["message"].as_str().unwrap().strip_prefix("line ").unwrap();
                assert_eq!(number.parse(), Ok(next));
                next += 1;
            }
            Some("gap") => next += object["notice"]["lines"].as_u64().unwrap(),
            Some(kind) => others.push(kind.to_owned()),
        }
    }
    assert_eq!(next, end);
    others
}

/// A waker that counts its calls.
#[derive(Default)]
struct WakeCounter(AtomicUsize);

impl Wake for WakeCounter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A body polled as by HTTP/2: repeatedly while it is ready, then after each wake.
struct Polled {
    body: LogsBody,
    task: Arc<WakeCounter>,
    /// A closed view would mean that the lease has ended.
    _views: Option<watch::Sender<Arc<LeaseView>>>,
}

impl Polled {
    /// Follows the replicas of `view`, at most `replicas` at a time.
    fn new(view: watch::Receiver<Arc<LeaseView>>, replicas: usize) -> Self {
        let range = ReadRange::Follow(BackfillFilter::default());
        Self::of(Arc::new(EmptyPlatform), view, replicas, range, Representation::Plain, LagPolicy::Drop)
    }

    /// Reads the one log of `platform`.
    fn one_log(platform: OneLog, range: ReadRange, representation: Representation) -> Self {
        let instance = Instance::new("uid", "web", 0).unwrap();
        let run = Run {
            instance,
            started: LogTime::from_nanos(1),
            end: None,
            log_is_gone: false,
            later_unknown: false,
        };
        let replica = ReplicaView { state: ReplicaState::Running, runs: vec![run], ..ReplicaView::default() };
        let service = ServiceView { replicas: [(0, replica)].into(), ..ServiceView::default() };
        let services = [("web".parse().unwrap(), service)].into();
        let (views, view) = watch::channel(Arc::new(LeaseView { services, ..LeaseView::default() }));
        let polled = Self::of(Arc::new(platform), view, 1, range, representation, LagPolicy::Drop);
        Self { _views: Some(views), ..polled }
    }

    fn of(
        platform: Arc<dyn Platform>,
        view: watch::Receiver<Arc<LeaseView>>,
        replicas: usize,
        range: ReadRange,
        representation: Representation,
        on_lag: LagPolicy,
    ) -> Self {
        Self::with_heartbeats(platform, view, replicas, range, representation, on_lag, None)
    }

    fn with_heartbeats(
        platform: Arc<dyn Platform>,
        view: watch::Receiver<Arc<LeaseView>>,
        replicas: usize,
        range: ReadRange,
        representation: Representation,
        on_lag: LagPolicy,
        heartbeat: Option<Duration>,
    ) -> Self {
        let request = Self::request(range, representation, on_lag, heartbeat);
        Self::serving(platform, view, replicas, request)
    }

    fn request(
        range: ReadRange,
        representation: Representation,
        on_lag: LagPolicy,
        heartbeat: Option<Duration>,
    ) -> LogsRequest {
        let [owner, provider] = [1, 2].map(|number| Address::from_account([number; 20]));
        LogsRequest {
            lease: LeaseId::new(owner.as_str(), 7, 1, 1, provider.as_str()).unwrap(),
            filter: Filter::everything(),
            range,
            representation,
            on_lag,
            heartbeat,
            resume: HashMap::new(),
        }
    }

    fn serving(
        platform: Arc<dyn Platform>,
        view: watch::Receiver<Arc<LeaseView>>,
        replicas: usize,
        request: LogsRequest,
    ) -> Self {
        let mut limits = Limits::default();
        limits.quota.replicas_per_request = replicas;
        limits.ring_max_bytes = 64 * 1024;
        let memory = MemoryBudget::default();
        let limiter = BackfillLimiter::new(&limits.quota, memory.clone());
        let metrics = Metrics::register(&NoopRecorder);
        let names = NameStyle::default();
        let context = ActorContext { platform, limits: Arc::new(limits), metrics, names, memory };
        let trailers: Trailers = Box::new(|_| HeaderMap::new());
        let body = LogsBody::new(
            request,
            ActorRegistry::new(context),
            limiter,
            view,
            StreamControl::new(),
            trailers,
        );
        Self { body, task: Arc::default(), _views: None }
    }

    /// Returns the data frames until the end, each with the time since the start.
    async fn frames_to_end(&mut self) -> Vec<(Duration, Vec<u8>)> {
        let began = Instant::now();
        let mut frames = Vec::new();
        loop {
            let frame = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await.unwrap().unwrap();
            let Ok(mut messages) = frame.into_data() else { return frames };
            assert!(messages.has_remaining(), "an empty frame");
            frames.push((began.elapsed(), messages.copy_to_bytes(messages.remaining()).to_vec()));
        }
    }

    /// Returns the text that it sends until it stays pending.
    async fn sent(&mut self) -> String {
        String::from_utf8_lossy(&self.sent_bytes().await).into_owned()
    }

    async fn sent_bytes(&mut self) -> Vec<u8> {
        let waker = Waker::from(Arc::clone(&self.task));
        let mut cx = Context::from_waker(&waker);
        let mut sent = Vec::new();
        loop {
            let woken = self.task.0.load(Ordering::SeqCst);
            match Pin::new(&mut self.body).poll_frame(&mut cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let mut messages = frame.into_data().unwrap();
                    sent.extend(messages.copy_to_bytes(messages.remaining()));
                }
                Poll::Ready(other) => panic!("body has ended: {other:?}"),
                Poll::Pending => {
                    tokio::time::sleep(QUIET_PERIOD).await;
                    if self.task.0.load(Ordering::SeqCst) == woken {
                        return sent;
                    }
                }
            }
        }
    }

    /// Fills a batch that has room for one message. Returns the messages that were added.
    fn fill_one_message(&mut self) -> Vec<Bytes> {
        let waker = Waker::from(Arc::clone(&self.task));
        let full = vec![0; STREAM_SEND_MAX_BYTES - 1];
        let mut batch = Batch::beginning_with(Some(full.into()));
        assert!(self.body.fill(&mut Context::from_waker(&waker), &mut batch).is_none());
        batch.parts.into_iter().skip(1).collect()
    }
}

/// A view of these replicas of `web`, each waiting for its own reason.
fn waiting(indices: &[u32]) -> Arc<LeaseView> {
    let entry = |index: &u32| {
        let state = ReplicaState::Waiting { reason: format!("Reason{index}"), message: String::new() };
        (*index, ReplicaView { state, ..ReplicaView::default() })
    };
    let replicas = indices.iter().map(entry).collect();
    let service = ServiceView { replicas, ..ServiceView::default() };
    Arc::new(LeaseView { services: [("web".parse().unwrap(), service)].into(), ..LeaseView::default() })
}

#[tokio::test(start_paused = true)]
async fn replacement_replica_is_polled_without_wake() {
    let (views, view) = watch::channel(waiting(&[0]));
    let mut polled = Polled::new(view, 1);
    assert!(polled.sent().await.contains("Reason0"));
    views.send_replace(waiting(&[0, 1]));
    assert_eq!(polled.sent().await, "", "the quota is used up");
    views.send_replace(waiting(&[1]));
    tokio::time::sleep(QUIET_PERIOD).await;
    // The last event of the first replica is sent on its own. Its end shows in the next poll, which has
    // nothing to send.
    assert_eq!(polled.fill_one_message().len(), 1);
    assert_eq!(polled.body.streams.len(), 1);
    assert!(polled.sent().await.contains("Reason1"));
}

const UNTIL_NOW: ReadRange = ReadRange::UntilNow(BackfillFilter { last: None, since: None });

#[tokio::test(start_paused = true)]
async fn websocket_gets_every_line_or_its_gap() {
    let log = log(&[0..3_000, 3_007..3_100], 60, Duration::ZERO);
    let mut polled = Polled::one_log(log, UNTIL_NOW, Representation::WebSocket(Notices::All));
    let frames: Vec<_> = polled.frames_to_end().await.into_iter().map(|(_, frame)| frame).collect();
    assert!(frames.len() > 3, "{} portions", frames.len());
    assert_eq!(check_loss(&frames, 3_100), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn omitted_notice_makes_no_frame() {
    // The gap is at the end: nothing goes out with it.
    let log = log(&[0..0, 5..5], 1, Duration::ZERO);
    let mut polled = Polled::one_log(log, UNTIL_NOW, Representation::WebSocket(Notices::None));
    assert!(polled.frames_to_end().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn websocket_without_follow_reports_each_wait() {
    let log = log(&[0..10, 10..20], 1, Duration::from_millis(5_500));
    let mut polled = Polled::one_log(log, UNTIL_NOW, Representation::WebSocket(Notices::All));
    let frames = polled.frames_to_end().await;
    let seconds: Vec<_> = frames.iter().map(|(time, _)| time.as_secs()).collect();
    assert_eq!(seconds, [1, 3, 5, 5]);
    let frames: Vec<_> = frames.into_iter().map(|(_, frame)| frame).collect();
    assert_eq!(check_loss(&frames, 20), ["wait"; 3]);
    // Not if only losses are reported.
    let log = self::log(&[0..10, 10..20], 1, Duration::from_millis(5_500));
    let mut polled = Polled::one_log(log, UNTIL_NOW, Representation::WebSocket(Notices::Loss));
    assert_eq!(polled.frames_to_end().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn websocket_that_follows_reports_one_wait() {
    let log = log(&[0..10, 10..20], 1, Duration::from_millis(5_500));
    let range = ReadRange::Follow(BackfillFilter::default());
    let mut polled = Polled::one_log(log, range, Representation::WebSocket(Notices::All));
    let mut frames = Vec::new();
    let read = async {
        loop {
            let frame = poll_fn(|cx| Pin::new(&mut polled.body).poll_frame(cx)).await.unwrap().unwrap();
            let mut messages = frame.into_data().unwrap();
            frames.push(messages.copy_to_bytes(messages.remaining()).to_vec());
        }
    };
    tokio::time::timeout(Duration::from_secs(60), read).await.unwrap_err();
    assert_eq!(check_loss(&frames, 20), ["wait"]);
}

#[tokio::test(start_paused = true)]
async fn published_notice_ends_an_unfinished_line() {
    let mut log = log(&[], 1, Duration::ZERO);
    let piece =
        Line { ends: false, ..Line::whole(4, LogTime::from_nanos(1), Position::START.after_bytes(4)) };
    log.end = Position::START.after_line(LogTime::from_nanos(1));
    let gap = SourceGap { cause: GapCause::Source, lines: 1, bytes: 5, exact: true, after: log.end };
    log.items = vec![
        TailItem::Lines(LineBatch { data: (&b"open"[..]).into(), lines: vec![piece] }),
        TailItem::Gap(gap),
    ];
    let mut polled = Polled::one_log(log, UNTIL_NOW, Representation::Published(Notices::All));
    let frames = polled.frames_to_end().await;
    let sent: Vec<u8> = frames.into_iter().flat_map(|(_, frame)| frame).collect();
    let sent = String::from_utf8_lossy(&sent);
    assert!(sent.contains("open") && sent.contains("\n[leasemux: 1 line (5 bytes) missing here"), "{sent:?}");
    assert!(sent.contains("web-0") && !sent.contains("uid"), "no cursors: {sent:?}");
}

#[tokio::test(start_paused = true)]
async fn lagging_websocket_gets_exact_gap() {
    for notices in [Notices::All, Notices::Loss, Notices::None] {
        let mut log = log(&[0..10, 10..20], 1, Duration::ZERO);
        let (live, items) = mpsc::channel(100);
        log.live = Mutex::new(Some(items));
        let mut after = log.end;
        let range = ReadRange::Follow(BackfillFilter::default());
        let mut polled = Polled::one_log(log, range, Representation::WebSocket(notices));
        let mut frames = vec![polled.sent_bytes().await];
        for batch in 0..40_u64 {
            // Not polled meanwhile: the ring has room for a few batches.
            live.send(numbered(20 + batch * 50..70 + batch * 50, 200, &mut after)).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        frames.push(polled.sent_bytes().await);
        let lost = polled.body.control.lost_lines();
        assert!(lost > 1_000, "{lost}");
        if notices == Notices::None {
            let lines: usize = frames.iter().map(|frame| decode(frame).len()).sum();
            assert_eq!(lines as u64 + lost, 2_020);
        } else {
            assert_eq!(check_loss(&frames, 2_020), [""; 0]);
        }
    }
}

/// A platform with the growing logs of two runs.
#[derive(Debug)]
struct TwoRuns {
    /// The numbered lines of each log, and whether it has ended.
    logs: [watch::Sender<(std::ops::Range<u64>, bool)>; 2],
    /// Runs whose logs were opened, and where.
    opened: Mutex<Vec<(usize, ReadFrom)>>,
    /// Delay before a log is opened after a position.
    delay: Duration,
}

/// Width of the numbers of these lines: a ring holds a few hundred.
const WIDTH: usize = 200;

impl Platform for TwoRuns {
    fn name(&self) -> &'static str {
        "two"
    }

    fn watch(&self, _: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        Box::pin(async { Err(Error::NotFound("no lease".into())) })
    }

    fn tail(&self, request: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
        let run = request.instance.run_number() as usize;
        self.opened.lock().push((run, request.from));
        let log = self.logs[run].subscribe();
        let lines = log.borrow().0.clone();
        // Each line has its number as time.
        let next = match request.from {
            ReadFrom::Start | ReadFrom::After(Position::START) => lines.start,
            ReadFrom::Last(0) => lines.end,
            ReadFrom::After(position) => u64::try_from(position.time.as_nanos()).unwrap(),
            other => panic!("{other:?}"),
        };
        let start = if next == lines.start { Position::START } else { after(next) };
        let items = futures_util::stream::unfold((log, next), |(mut log, next)| async move {
            loop {
                let (lines, ended) = log.borrow_and_update().clone();
                if next < lines.end {
                    let end = lines.end.min(next + 100);
                    return Some((Ok(timed(next..end)), (log, end)));
                }
                if ended || log.changed().await.is_err() {
                    return None;
                }
            }
        });
        let delay = if let ReadFrom::After(_) = request.from { self.delay } else { Duration::ZERO };
        Box::pin(async move {
            tokio::time::sleep(delay).await;
            Ok(Tail { start, unfinished: [false; 2], items: items.boxed() })
        })
    }

    fn restart(&self, _: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Err(Error::NotFound("no replica".into())) })
    }
}

/// The position before the line with this number.
fn after(number: u64) -> Position {
    Position { time: LogTime::from_nanos(i64::try_from(number).unwrap()), ordinal: 1, offset: 0 }
}

/// Numbered lines; the time of each is the number of the next one.
fn timed(range: std::ops::Range<u64>) -> TailItem {
    let (mut data, mut lines) = (Vec::new(), Vec::new());
    for number in range {
        data.extend_from_slice(format!("line {number:0WIDTH$}\n").as_bytes());
        let after = after(number + 1);
        lines.push(Line::whole(data.len(), after.time, after));
    }
    TailItem::Lines(LineBatch { data: data.into(), lines })
}

/// A view of one replica with this number of runs, of which all but the last one have ended, and also that
/// one with `ended`.
fn runs(count: u32, ended: bool) -> Arc<LeaseView> {
    let runs: Vec<_> = (0..count).map(|number| (number, ended || number + 1 < count)).collect();
    view_of(&runs)
}

/// A view of one replica with these runs, each with whether it has ended.
fn view_of(runs: &[(u32, bool)]) -> Arc<LeaseView> {
    let run = |&(number, ended): &(u32, bool)| {
        let end =
            RunEnd { time: LogTime::from_nanos(2), exit_code: Some(1), signal: None, reason: "Error".into() };
        Run {
            instance: Instance::new("uid", "web", number).unwrap(),
            started: LogTime::from_nanos(1),
            end: ended.then_some(end),
            log_is_gone: false,
            later_unknown: false,
        }
    };
    let replica = ReplicaView {
        state: ReplicaState::Running,
        runs: runs.iter().map(run).collect(),
        ..ReplicaView::default()
    };
    let service = ServiceView { replicas: [(0, replica)].into(), ..ServiceView::default() };
    Arc::new(LeaseView { services: [("web".parse().unwrap(), service)].into(), ..LeaseView::default() })
}

#[tokio::test(start_paused = true)]
async fn refill_continues_after_the_last_event_that_was_sent() {
    for sees_start in [false, true] {
        let platform = Arc::new(TwoRuns {
            logs: [(0..10, false), (10..10, false)].map(watch::Sender::new),
            opened: Mutex::default(),
            delay: Duration::ZERO,
        });
        let (views, view) = watch::channel(runs(1, false));
        let range = ReadRange::Follow(BackfillFilter::default());
        let representation = Representation::WebSocket(Notices::All);
        let on = Arc::clone(&platform) as Arc<dyn Platform>;
        let mut polled = Polled::of(on, view, 1, range, representation, LagPolicy::Refill);
        let mut frames = vec![polled.sent_bytes().await];
        assert_eq!(check_loss(&frames, 10), [""; 0]);
        platform.logs[0].send_modify(|log| log.1 = true);
        views.send_replace(runs(1, true));
        frames.push(polled.sent_bytes().await);
        assert_eq!(check_loss(&frames, 10), ["ended"]);
        if sees_start {
            views.send_replace(runs(2, false));
            frames.push(polled.sent_bytes().await);
        }
        platform.opened.lock().clear();
        // Not polled meanwhile: the ring evicts the start of the run.
        views.send_replace(runs(2, false));
        for end in 1..=40 {
            platform.logs[1].send_modify(|log| log.0.end = 10 + 50 * end);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let before = platform.opened.lock().len();
        frames.push(polled.sent_bytes().await);
        assert_eq!(check_loss(&frames, 2_010), ["ended", "started"], "{sees_start}");
        assert_eq!(polled.body.control.lost_lines(), 0);
        // Neither is the first run read again, nor is the second one begun twice.
        assert_eq!(platform.opened.lock()[before..], [(1, ReadFrom::Start)]);
        // It is live again.
        platform.logs[1].send_modify(|log| log.0.end += 1);
        frames.push(polled.sent_bytes().await);
        assert_eq!(check_loss(&frames, 2_011), ["ended", "started"]);
    }
}

#[tokio::test(start_paused = true)]
async fn refilled_websocket_loses_no_line() {
    let platform = Arc::new(TwoRuns {
        logs: [(0..10, false), (0..0, false)].map(watch::Sender::new),
        opened: Mutex::default(),
        delay: Duration::ZERO,
    });
    let (_views, view) = watch::channel(runs(1, false));
    let range = ReadRange::Follow(BackfillFilter { last: Some(0), since: None });
    let representation = Representation::WebSocket(Notices::All);
    let on = Arc::clone(&platform) as Arc<dyn Platform>;
    let mut polled = Polled::of(on, view, 1, range, representation, LagPolicy::Refill);
    assert!(polled.sent_bytes().await.is_empty(), "no cursors, and no older lines");
    for end in 1..=40 {
        platform.logs[0].send_modify(|log| log.0.end = 10 + 50 * end);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let frames = [polled.sent_bytes().await];
    let texts: Vec<_> = decode(&frames[0]).into_iter().map(|frame| frame["message"].clone()).collect();
    let expected: Vec<_> = (10..2_010).map(|number| format!("line {number:0WIDTH$}")).collect();
    assert_eq!(texts, expected);
    let opened = platform.opened.lock().clone();
    assert_eq!(opened, [(0, ReadFrom::Last(0)), (0, ReadFrom::After(after(10)))]);
}

/// A platform whose logs are scripted, in the order in which they are opened.
#[derive(Debug, Default)]
struct Script {
    /// The run, the position before the first item, if it is not the requested one, and the items.
    tails: Mutex<VecDeque<(u32, Option<Position>, ScriptedItems)>>,
    opened: Mutex<Vec<(u32, ReadFrom)>>,
}

type ScriptedItems = mpsc::Receiver<Result<TailItem, Error>>;

/// The items of a scripted log, which ends with it.
struct ScriptedLog(mpsc::Sender<Result<TailItem, Error>>);

impl Script {
    /// Adds the next log to be opened.
    fn add(&self, run: u32, start: Option<Position>) -> ScriptedLog {
        let (sender, items) = mpsc::channel(50_000);
        self.tails.lock().push_back((run, start, items));
        ScriptedLog(sender)
    }

    /// Returns a follower of its lines from now on, which is refilled, and a sender of views.
    fn follow(self: &Arc<Self>) -> (Polled, watch::Sender<Arc<LeaseView>>) {
        self.follow_as(Representation::WebSocket(Notices::All))
    }

    fn follow_as(
        self: &Arc<Self>,
        representation: Representation,
    ) -> (Polled, watch::Sender<Arc<LeaseView>>) {
        let (views, view) = watch::channel(runs(1, false));
        let range = ReadRange::Follow(BackfillFilter { last: Some(0), since: None });
        let on = Arc::clone(self) as Arc<dyn Platform>;
        (Polled::of(on, view, 1, range, representation, LagPolicy::Refill), views)
    }
}

impl ScriptedLog {
    fn send(&self, item: TailItem) {
        self.0.try_send(Ok(item)).unwrap();
    }

    /// Sends numbered lines slowly, so that the ring evicts them one after the other.
    async fn flood(&self, lines: std::ops::Range<u64>) {
        for start in lines.clone().step_by(50) {
            self.send(timed(start..lines.end.min(start + 50)));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn unknown_gap(&self, after: Position) {
        self.send(TailItem::Gap(SourceGap {
            cause: GapCause::Rotated,
            lines: 0,
            bytes: 0,
            exact: false,
            after,
        }));
    }
}

impl Platform for Script {
    fn name(&self) -> &'static str {
        "script"
    }

    fn watch(&self, _: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        Box::pin(async { Err(Error::NotFound("no lease".into())) })
    }

    fn tail(&self, request: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
        let run = request.instance.run_number();
        self.opened.lock().push((run, request.from));
        let next = self.tails.lock().pop_front();
        Box::pin(async move {
            let (expected, start, items) = next.ok_or_else(|| Error::NotFound("no more logs".into()))?;
            assert_eq!(run, expected);
            let requested = match request.from {
                ReadFrom::After(position) => position,
                _ => Position::START,
            };
            let items =
                futures_util::stream::unfold(items, |mut items| async { Some((items.recv().await?, items)) });
            let start = start.unwrap_or(requested);
            Ok(Tail { start, unfinished: [false; 2], items: items.boxed() })
        })
    }

    fn restart(&self, _: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Err(Error::NotFound("no replica".into())) })
    }
}

/// Numbered lines with these times.
fn at_times(first: u64, times: &[i64], at: &mut Position) -> TailItem {
    let (mut data, mut lines) = (Vec::new(), Vec::new());
    for (number, time) in (first..).zip(times) {
        data.extend_from_slice(format!("line {number}\n").as_bytes());
        let time = LogTime::from_nanos(*time);
        *at = at.after_line(time);
        lines.push(Line::whole(data.len(), time, *at));
    }
    TailItem::Lines(LineBatch { data: data.into(), lines })
}

/// Returns what a follower was sent, with consecutive numbers joined.
fn transcript(frames: &[Vec<u8>]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut numbers: Option<(u64, u64)> = None;
    for object in frames.iter().flat_map(|frame| decode(frame)) {
        let notice = &object["notice"];
        if let Some(number) = object["message"].as_str().unwrap().strip_prefix("line ") {
            let number = number.parse().unwrap();
            match &mut numbers {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => all.extend(numbers.replace((number, number)).map(|(one, two)| format!("{one}-{two}"))),
            }
            continue;
        }
        all.extend(numbers.take().map(|(one, two)| format!("{one}-{two}")));
        all.push(match notice["kind"].as_str().unwrap() {
            "gap" => format!("gap {} {}", notice["lines"], notice["exact"]),
            kind => kind.to_owned(),
        });
    }
    all.extend(numbers.map(|(one, two)| format!("{one}-{two}")));
    all
}

#[tokio::test(start_paused = true)]
async fn follower_that_lags_before_its_first_line_is_refilled() {
    let platform = Arc::new(TwoRuns {
        logs: [(0..10, false), (0..0, false)].map(watch::Sender::new),
        opened: Mutex::default(),
        delay: Duration::ZERO,
    });
    let (_views, view) = watch::channel(runs(1, false));
    let range = ReadRange::Follow(BackfillFilter { last: Some(0), since: None });
    let representation = Representation::WebSocket(Notices::All);
    let on = Arc::clone(&platform) as Arc<dyn Platform>;
    let mut polled = Polled::of(on, view, 1, range, representation, LagPolicy::Refill);
    // It subscribes, and is not polled until the ring has evicted its first lines.
    let waker = Waker::from(Arc::clone(&polled.task));
    assert!(Pin::new(&mut polled.body).poll_frame(&mut Context::from_waker(&waker)).is_pending());
    for end in 1..=40 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        platform.logs[0].send_modify(|log| log.0.end = 10 + 50 * end);
    }
    assert_eq!(transcript(&[polled.sent_bytes().await]), ["10-2009"]);
    let opened = platform.opened.lock().clone();
    assert_eq!(opened, [(0, ReadFrom::Last(0)), (0, ReadFrom::After(after(10)))]);
}

/// Positions count the lines of a time. The log of the second run lacks the first of two lines of one time,
/// and the ring has both, after a gap.
#[tokio::test(start_paused = true)]
async fn refill_after_gap_joins_after_its_time() {
    for fails in [false, true] {
        let script = Arc::new(Script::default());
        let live = script.add(0, None);
        let (mut polled, views) = script.follow();
        assert!(polled.sent_bytes().await.is_empty());
        live.flood(0..2_000).await;
        drop(live);
        // A run in between is missing: the ring has a gap before the first line.
        let live = script.add(2, None);
        views.send_replace(view_of(&[(0, true), (2, false)]));
        live.send(at_times(2_000, &[1, 5, 5, 5, 7], &mut Position::default()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let log = script.add(0, None);
        log.send(timed(0..2_000));
        drop(log);
        let mut log = script.add(2, None);
        let mut at = Position::START;
        log.send(at_times(2_002, &[5], &mut at));
        if fails {
            log.0.try_send(Err(Error::Unavailable("interrupted".into()))).unwrap();
            log = script.add(2, None);
        }
        log.send(at_times(2_003, &[5], &mut at));
        log.send(at_times(2_004, &[7], &mut at));
        let mut frames = vec![polled.sent_bytes().await];
        live.send(at_times(2_005, &[8], &mut at));
        frames.push(polled.sent_bytes().await);
        let gap = "gap 0 false";
        let expected = ["0-1999", "ended", "started", gap, gap, "2002-2005"];
        assert_eq!(transcript(&frames), expected, "{fails}");
        assert_eq!(script.opened.lock().len(), 4 + usize::from(fails));
    }
}

#[tokio::test(start_paused = true)]
async fn rest_of_next_run_is_taken_from_ring_if_its_log_is_gone() {
    let script = Arc::new(Script::default());
    let live = script.add(0, None);
    let (mut polled, views) = script.follow();
    assert!(polled.sent_bytes().await.is_empty());
    live.flood(0..500).await;
    drop(live);
    let live = script.add(1, None);
    views.send_replace(runs(2, false));
    live.flood(500..1_500).await;
    let log = script.add(0, None);
    log.send(timed(0..500));
    drop(log);
    let frames = [polled.sent_bytes().await];
    assert_eq!(check_loss(&frames, 1_500), ["ended", "started"]);
    assert!(transcript(&frames).len() == 5 && polled.body.control.lost_lines() < 1_000);
    assert_eq!(script.opened.lock()[2..], [(0, ReadFrom::After(Position::START)), (1, ReadFrom::Start)]);
}

/// The first line that the ring has of the run is not the run's first line. So a log that begins with it may
/// lack lines, too.
#[tokio::test(start_paused = true)]
async fn refill_of_run_without_its_first_lines_begins_with_gap() {
    let script = Arc::new(Script::default());
    let live = script.add(0, None);
    let (mut polled, views) = script.follow();
    live.send(timed(0..10));
    let mut frames = vec![polled.sent_bytes().await];
    drop(live);
    let live = script.add(1, None);
    views.send_replace(runs(2, false));
    live.unknown_gap(Position::START);
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in ["ended", "started"] {
        frames.extend(polled.fill_one_message().iter().map(|message| message.to_vec()));
    }
    live.flood(500..2_000).await;
    let log = script.add(1, None);
    log.unknown_gap(Position::START);
    log.send(timed(500..2_000));
    frames.push(polled.sent_bytes().await);
    assert_eq!(transcript(&frames), ["0-9", "ended", "started", "gap 0 false", "500-1999"]);
    // A source that is asked for lines after the start reports a gap if the log was rotated.
    assert_eq!(script.opened.lock().last(), Some(&(1, ReadFrom::After(Position::START))));
}

#[tokio::test(start_paused = true)]
async fn refill_without_readable_run_gets_exact_gap() {
    let script = Arc::new(Script::default());
    let live = script.add(0, None);
    let (mut polled, views) = script.follow();
    live.send(timed(0..10));
    let mut frames = vec![polled.sent_bytes().await];
    drop(live);
    let live = script.add(1, None);
    views.send_replace(runs(2, false));
    live.flood(10..1_000).await;
    views.send_replace(view_of(&[]));
    frames.push(polled.sent_bytes().await);
    assert_eq!(check_loss(&frames, 1_000), [""; 0]);
    assert_eq!(script.opened.lock().len(), 2);
    live.flood(1_000..1_010).await;
    frames.push(polled.sent_bytes().await);
    assert_eq!(check_loss(&frames, 1_010), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn follower_that_lags_after_gap_resumes_behind_it() {
    let script = Arc::new(Script::default());
    let live = script.add(0, None);
    let (mut polled, views) = script.follow();
    live.send(timed(0..10));
    // After this gap the log may count positions in another way, so it is not asked.
    live.unknown_gap(after(10));
    let mut frames = vec![polled.sent_bytes().await];
    drop(live);
    let live = script.add(1, None);
    views.send_replace(runs(2, false));
    live.flood(10..1_000).await;
    for kind in ["gap", "started"] {
        let sent = polled.fill_one_message();
        assert!(sent.len() == 1 && decode(&sent[0])[0]["notice"]["kind"] == kind, "{sent:?}");
        frames.extend(sent.iter().map(|message| message.to_vec()));
    }
    live.flood(1_000..2_000).await;
    let log = script.add(1, None);
    frames.push(polled.sent_bytes().await);
    let Some((1, ReadFrom::After(position))) = script.opened.lock().last().copied() else {
        panic!("{:?}", script.opened);
    };
    let next = u64::try_from(position.time.as_nanos()).unwrap();
    log.send(timed(next..2_000));
    frames.push(polled.sent_bytes().await);
    assert_eq!(check_loss(&frames, 2_000), ["started"]);
}

/// The log is opened again, and each time counts from the start of a new file.
#[tokio::test(start_paused = true)]
async fn each_gap_at_the_same_position_is_reported_if_lines_came_between() {
    let script = Arc::new(Script::default());
    let live = script.add(0, None);
    let (mut polled, _views) = script.follow();
    let gap = "gap 0 false";
    for lines in [0..5, 5..10] {
        live.unknown_gap(Position::START);
        live.send(timed(lines));
    }
    let mut frames = vec![polled.sent_bytes().await];
    assert_eq!(transcript(&frames), [gap, "0-4", gap, "5-9"]);
    live.flood(10..1_000).await;
    let log = script.add(0, None);
    for lines in [500..510, 520..530] {
        log.unknown_gap(Position::START);
        log.send(timed(lines));
    }
    log.send(timed(530..1_000));
    frames.push(polled.sent_bytes().await);
    assert_eq!(transcript(&frames)[4..], [gap, "500-509", gap, "520-999"]);
}

/// The gap has no position in the old file, so the ring's lines cannot be compared with it.
#[tokio::test(start_paused = true)]
async fn log_that_is_gone_after_gap_repeats_no_line_of_the_ring() {
    let script = Arc::new(Script::default());
    let live = script.add(0, None);
    let (mut polled, _views) = script.follow();
    live.send(timed(0..10));
    let mut frames = vec![polled.sent_bytes().await];
    live.flood(10..1_000).await;
    live.unknown_gap(after(1_000));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let log = script.add(0, None);
    log.send(timed(10..1_000));
    log.unknown_gap(after(1_000));
    log.0.try_send(Err(Error::Unavailable("interrupted".into()))).unwrap();
    let log = script.add(0, None);
    log.unknown_gap(Position::START);
    log.0.try_send(Err(Error::NotFound("removed".into()))).unwrap();
    for _ in 0..10 {
        frames.push(polled.sent_bytes().await);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(script.opened.lock().len(), 3);
    live.send(timed(1_000..1_010));
    frames.push(polled.sent_bytes().await);
    let gap = "gap 0 false";
    assert_eq!(transcript(&frames), ["0-999", gap, gap, "1000-1009"]);
}

#[tokio::test(start_paused = true)]
async fn gap_in_refill_names_time_of_last_line() {
    let script = Arc::new(Script::default());
    let live = script.add(0, None);
    let (mut polled, _views) = script.follow_as(Representation::Plain);
    polled.sent_bytes().await;
    live.send(timed(0..10));
    polled.sent_bytes().await;
    live.flood(10..1_000).await;
    let log = script.add(0, None);
    log.unknown_gap(after(10));
    log.send(timed(500..1_000));
    let entries = plain_entries(&polled.sent_bytes().await);
    let gaps = entries.into_iter().filter_map(|entry| entry.gap);
    assert_eq!(gaps.map(|gap| gap.from.unwrap().nanos).collect::<Vec<_>>(), [10]);
}

/// The log of this gateway was rotated, so its gap has a position before the one at which the follower came.
/// Another gateway may still have the lines in between, and the follower has them already.
#[tokio::test(start_paused = true)]
async fn gap_of_ring_resumes_not_before_request() {
    let script = Arc::new(Script::default());
    let live = script.add(0, None);
    let (_views, view) = watch::channel(runs(1, false));
    let range = ReadRange::Follow(BackfillFilter::default());
    let mut request = Polled::request(range, Representation::Plain, LagPolicy::Drop, None);
    let mut at = Position::START;
    let lines = at_times(0, &[5, 5, 5], &mut at);
    let web = Replica { service: "web".parse().unwrap(), index: 0 };
    request.resume = [(web, (Instance::new("uid", "web", 0).unwrap(), at))].into();
    let mut polled = Polled::serving(Arc::clone(&script) as Arc<dyn Platform>, view, 1, request);
    live.send(lines);
    assert!(polled.sent_bytes().await.is_empty());
    live.unknown_gap(Position::START);
    let entries = plain_entries(&polled.sent_bytes().await);
    let [ServiceLogs { gap: Some(_), cursor: Some(cursor), .. }] = &entries[..] else {
        panic!("{entries:?}")
    };
    assert_eq!((cursor.time.map(|time| time.nanos), cursor.ordinal), (Some(5), 3));
}

/// The same of a follower that has received lines before the gap.
#[tokio::test(start_paused = true)]
async fn gap_of_ring_resumes_not_before_last_line() {
    let script = Arc::new(Script::default());
    let live = script.add(0, None);
    let (_views, view) = watch::channel(runs(1, false));
    let range = ReadRange::Follow(BackfillFilter::default());
    let request = Polled::request(range, Representation::Plain, LagPolicy::Drop, None);
    let mut polled = Polled::serving(Arc::clone(&script) as Arc<dyn Platform>, view, 1, request);
    polled.sent_bytes().await;
    live.send(at_times(0, &[5, 5, 5], &mut { Position::START }));
    assert_eq!(plain_entries(&polled.sent_bytes().await).len(), 1);
    live.unknown_gap(Position::START);
    let entries = plain_entries(&polled.sent_bytes().await);
    let [ServiceLogs { gap: Some(_), cursor: Some(cursor), .. }] = &entries[..] else {
        panic!("{entries:?}")
    };
    assert_eq!((cursor.time.map(|time| time.nanos), cursor.ordinal), (Some(5), 3));
}

/// The kubelet of this gateway lags, or other gateways are ahead: the actor reads lines that the follower has.
#[tokio::test(start_paused = true)]
async fn resume_in_run_that_view_no_longer_names_repeats_nothing() {
    let script = Arc::new(Script::default());
    let live = script.add(0, None);
    let (views, view) = watch::channel(runs(1, false));
    let range = ReadRange::Follow(BackfillFilter::default());
    let mut request = Polled::request(range, Representation::WebSocket(Notices::All), LagPolicy::Drop, None);
    let web = Replica { service: "web".parse().unwrap(), index: 0 };
    request.resume = [(web, (Instance::new("uid", "web", 0).unwrap(), after(20)))].into();
    let mut polled = Polled::serving(Arc::clone(&script) as Arc<dyn Platform>, view, 1, request);
    tokio::time::sleep(Duration::from_secs(1)).await;
    views.send_replace(view_of(&[]));
    let mut frames = vec![polled.sent_bytes().await];
    // It waits for the pod of its cursor, which may be a new one.
    tokio::time::sleep(Duration::from_secs(20)).await;
    frames.push(polled.sent_bytes().await);
    for lines in [0..10, 10..20, 20..30] {
        live.send(timed(lines));
        frames.push(polled.sent_bytes().await);
    }
    assert_eq!(script.opened.lock().len(), 1);
    assert_eq!(transcript(&frames), ["wait", "gap 0 false", "20-29"]);
}

/// The same if the view has the run, and its log is gone.
#[tokio::test(start_paused = true)]
async fn resume_in_run_whose_log_is_gone_repeats_nothing() {
    let script = Arc::new(Script::default());
    let live = script.add(0, None);
    let (_views, view) = watch::channel(runs(1, false));
    let range = ReadRange::Follow(BackfillFilter::default());
    let mut request = Polled::request(range, Representation::WebSocket(Notices::All), LagPolicy::Drop, None);
    let web = Replica { service: "web".parse().unwrap(), index: 0 };
    request.resume = [(web, (Instance::new("uid", "web", 0).unwrap(), after(20)))].into();
    let mut polled = Polled::serving(Arc::clone(&script) as Arc<dyn Platform>, view, 1, request);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let log = script.add(0, Some(Position::START));
    log.unknown_gap(Position::START);
    drop(log);
    let mut frames = vec![polled.sent_bytes().await];
    for lines in [0..10, 10..20, 20..30] {
        live.send(timed(lines));
        frames.push(polled.sent_bytes().await);
    }
    assert_eq!(script.opened.lock().len(), 2);
    assert_eq!(transcript(&frames), ["wait", "gap 0 false", "20-29"]);
}

/// Returns the entries of gRPC messages.
fn plain_entries(mut messages: &[u8]) -> Vec<ServiceLogs> {
    let mut entries = Vec::new();
    while let Some((prefix, rest)) = messages.split_first_chunk::<5>() {
        let [_, length @ ..] = prefix;
        let (message, next) = rest.split_at(u32::from_be_bytes(*length) as usize);
        entries.extend(ServiceLogsResponse::decode(message).unwrap().services);
        messages = next;
    }
    entries
}

/// The ring's positions have the greatest time that was read. Those of the log do not, because it lost the
/// lines before the clock was set back.
#[tokio::test(start_paused = true)]
async fn refill_after_clock_was_set_back_repeats_nothing() {
    let script = Arc::new(Script::default());
    let live = script.add(0, None);
    let (mut polled, _views) = script.follow();
    assert!(polled.sent_bytes().await.is_empty());
    let time = |number: u64| i64::try_from(if number < 1_000 { number + 1 } else { number / 10 }).unwrap();
    let times = |numbers: std::ops::Range<u64>| numbers.map(time).collect::<Vec<_>>();
    let mut at = Position::START;
    for start in (0..6_000).step_by(100) {
        live.send(at_times(start, &times(start..start + 100), &mut at));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let log = script.add(0, None);
    let mut at = Position::START;
    log.unknown_gap(at);
    log.send(at_times(1_100, &times(1_100..5_000), &mut at));
    log.unknown_gap(at);
    let mut frames = vec![polled.sent_bytes().await];
    log.send(at_times(5_950, &times(5_950..6_000), &mut at));
    frames.push(polled.sent_bytes().await);
    let gap = "gap 0 false";
    assert_eq!(transcript(&frames), [gap, "1100-4999", gap, "5950-5999"]);
}

/// More gaps than the stack has room for, if each was a call.
#[tokio::test(start_paused = true)]
async fn refill_with_many_gaps_uses_little_stack() {
    let script = Arc::new(Script::default());
    let live = script.add(0, None);
    let (mut polled, _views) = script.follow();
    assert!(polled.sent_bytes().await.is_empty());
    live.flood(100_000..101_000).await;
    let log = script.add(0, None);
    for number in 0..20_000 {
        log.unknown_gap(after(number));
        log.send(at_times(number, &[i64::try_from(number + 1).unwrap()], &mut after(number)));
    }
    log.send(timed(100_000..101_000));
    let sent = transcript(&[polled.sent_bytes().await]);
    assert_eq!((sent.len(), sent.last().unwrap().as_str()), (40_001, "100000-100999"));
}
