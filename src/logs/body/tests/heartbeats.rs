//! Heartbeats of silent replicas.

use prost::Message as _;

use super::*;
use crate::model::proto::PREFIX_BYTES;
use crate::model::proto::lease::source_state::State;
use crate::model::proto::lease::{Cursor, ServiceLogs, ServiceLogsResponse, SourceState};

const INTERVAL: Duration = Duration::from_secs(5);

const FOLLOW: ReadRange = ReadRange::Follow(BackfillFilter { last: None, since: None });

/// A follower of one log or several, and what it has received.
struct Follower {
    polled: Polled,
    began: Instant,
    /// Bytes of a message that has not come whole.
    partial: Vec<u8>,
    lines: String,
    gaps: usize,
    /// The newest cursors of lines and gaps, by replica.
    cursors: HashMap<u32, Cursor>,
    /// Heartbeats, with the second in which they came.
    heartbeats: Vec<(u64, ServiceLogs)>,
}

impl Follower {
    fn new(
        platform: Arc<dyn Platform>,
        view: watch::Receiver<Arc<LeaseView>>,
        range: ReadRange,
        heartbeat: Option<Duration>,
    ) -> Self {
        let (representation, on_lag) = (Representation::Plain, LagPolicy::Refill);
        let polled = Polled::with_heartbeats(platform, view, 1_024, range, representation, on_lag, heartbeat);
        Self {
            polled,
            began: Instant::now(),
            partial: Vec::new(),
            lines: String::new(),
            gaps: 0,
            cursors: HashMap::new(),
            heartbeats: Vec::new(),
        }
    }

    /// Receives for this time. Returns the heartbeats that came: second, replica, state.
    async fn receive(&mut self, time: Duration) -> Vec<(u64, u32, State)> {
        let before = self.heartbeats.len();
        let end = tokio::time::sleep(time);
        tokio::pin!(end);
        loop {
            let frame = poll_fn(|cx| Pin::new(&mut self.polled.body).poll_frame(cx));
            tokio::select! {
                biased;
                frame = frame => self.take(frame.expect("it follows").unwrap().into_data().unwrap()),
                () = &mut end => break,
            }
        }
        let heartbeats = self.heartbeats[before..].iter();
        heartbeats.map(|(second, entry)| (*second, entry.replica, source(entry).state())).collect()
    }

    fn take(&mut self, mut messages: Messages) {
        self.partial.extend(messages.copy_to_bytes(messages.remaining()));
        while let Some(prefix) = self.partial.first_chunk::<PREFIX_BYTES>() {
            let length = PREFIX_BYTES + u32::from_be_bytes(*prefix.last_chunk().unwrap()) as usize;
            if self.partial.len() < length {
                return;
            }
            let message: Vec<u8> = self.partial.drain(..length).collect();
            let mut response = ServiceLogsResponse::decode(&message[PREFIX_BYTES..]).unwrap();
            assert_eq!(response.services.len(), 1);
            let entry = response.services.remove(0);
            if entry.source.is_some() {
                assert!(entry.logs.is_empty() && entry.event.is_none() && entry.gap.is_none());
                assert_eq!(entry.cursor.as_ref(), self.cursors.get(&entry.replica), "the last position");
                self.heartbeats.push((self.began.elapsed().as_secs(), entry));
                continue;
            }
            match entry.gap {
                Some(_) => self.gaps += 1,
                None => self.lines.push_str(std::str::from_utf8(&entry.logs).unwrap()),
            }
            self.cursors.extend(entry.cursor.map(|cursor| (entry.replica, cursor)));
        }
    }

    fn last(&self) -> &SourceState {
        source(&self.heartbeats.last().unwrap().1)
    }

    /// The loss check: the lines are numbered from `first` to `end`, in order.
    #[track_caller]
    fn check_loss(&self, first: u64, end: u64) {
        let numbers: Vec<u64> =
            self.lines.lines().map(|line| line.strip_prefix("line ").unwrap().parse().unwrap()).collect();
        assert_eq!(numbers, (first..end).collect::<Vec<_>>());
        assert_eq!(self.gaps, 0);
    }
}

fn source(entry: &ServiceLogs) -> &SourceState {
    entry.source.as_ref().unwrap()
}

/// A view of this number of replicas that run.
fn running(replicas: u32) -> watch::Sender<Arc<LeaseView>> {
    let entry = |index: u32| {
        let instance = Instance::new(&format!("uid{index}"), "web", 0).unwrap();
        let run = Run {
            instance,
            started: LogTime::from_nanos(1),
            end: None,
            log_is_gone: false,
            later_unknown: false,
        };
        (index, ReplicaView { state: ReplicaState::Running, runs: vec![run], ..ReplicaView::default() })
    };
    let service = ServiceView { replicas: (0..replicas).map(entry).collect(), ..ServiceView::default() };
    let services = [("web".parse().unwrap(), service)].into();
    watch::Sender::new(Arc::new(LeaseView { services, ..LeaseView::default() }))
}

#[tokio::test(start_paused = true)]
async fn silent_replica_gets_a_heartbeat_per_interval() {
    for heartbeat in [Some(INTERVAL), None] {
        let views = running(1);
        let log = log(&[0..5, 5..10], 1, Duration::ZERO);
        let mut follower = Follower::new(Arc::new(log), views.subscribe(), FOLLOW, heartbeat);
        let sent = follower.receive(Duration::from_secs(21)).await;
        let expected: &[u64] = if heartbeat.is_some() { &[5, 10, 15, 20] } else { &[] };
        assert_eq!(sent, expected.iter().map(|second| (*second, 0, State::Live)).collect::<Vec<_>>());
        follower.check_loss(0, 10);
    }
}

#[tokio::test(start_paused = true)]
async fn busy_replica_does_not_hide_a_silent_one() {
    let views = running(2);
    let mut log = log(&[0..5, 5..10], 1, Duration::ZERO);
    let (live, items) = mpsc::channel(100);
    log.live = Mutex::new(Some(items));
    let mut after = log.end;
    let mut follower = Follower::new(Arc::new(log), views.subscribe(), FOLLOW, Some(INTERVAL));
    let mut sent = Vec::new();
    for second in 0..21 {
        sent.extend(follower.receive(Duration::from_secs(1)).await);
        live.send(numbered(10 + second..11 + second, 1, &mut after)).await.unwrap();
    }
    // One of the two actors got the live lines.
    let silent = sent[0].1;
    assert_eq!(sent, [5, 10, 15, 20].map(|second| (second, silent, State::Live)));
    // It becomes silent too, a second after the last heartbeat of the other.
    drop(follower.receive(Duration::from_millis(1_500)).await);
    let sent = follower.receive(Duration::from_secs(5)).await;
    assert_eq!(sent, [(25, silent, State::Live), (26, 1 - silent, State::Live)]);
    assert_eq!(follower.lines.lines().count(), 2 * 10 + 21);
}

/// A platform with a log for each replica.
#[derive(Debug)]
struct PerReplica(Vec<OneLog>);

impl Platform for PerReplica {
    fn name(&self) -> &'static str {
        "many"
    }

    fn watch(&self, _: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        Box::pin(async { Err(Error::NotFound("no lease".into())) })
    }

    fn tail(&self, request: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
        self.0[request.replica.index as usize].tail(request)
    }

    fn restart(&self, _: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Err(Error::NotFound("no replica".into())) })
    }
}

#[tokio::test(start_paused = true)]
async fn replica_that_fills_every_frame_does_not_hide_a_silent_one() {
    let views = running(2);
    let batches: Vec<_> = (0..80).map(|batch| batch * 500..(batch + 1) * 500).collect();
    let logs = vec![log(&batches, 200, Duration::ZERO), log(&[0..5, 5..10], 200, Duration::ZERO)];
    let on = Arc::new(PerReplica(logs));
    let mut follower = Follower::new(on, views.subscribe(), FOLLOW, Some(INTERVAL));
    // The peer is slower than the log of one replica can be read.
    for frames in 0..45 {
        let frame = poll_fn(|cx| Pin::new(&mut follower.polled.body).poll_frame(cx)).await;
        let messages = frame.unwrap().unwrap().into_data().unwrap();
        assert!(frames < 2 || messages.remaining() > STREAM_SEND_MAX_BYTES / 2);
        follower.take(messages);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let heartbeats: Vec<_> =
        follower.heartbeats.iter().map(|(second, entry)| (*second, entry.replica)).collect();
    assert_eq!(heartbeats, [5, 10, 15, 20].map(|second| (second, 1)));
    follower.receive(Duration::from_secs(1)).await;
    assert_eq!(follower.lines.lines().count(), 40_010);
}

#[tokio::test(start_paused = true)]
async fn slow_peer_gets_lines_and_heartbeats_of_all_replicas() {
    const REPLICAS: u32 = 1_000;
    let views = running(1);
    views.send_modify(|view| {
        let state = ReplicaState::Waiting { reason: "x".repeat(200), message: String::new() };
        let waits = ReplicaView { state, ..ReplicaView::default() };
        let service = Arc::make_mut(view).services.values_mut().next().unwrap();
        service.replicas.extend((1..=REPLICAS).map(|index| (index, waits.clone())));
    });
    let batches: Vec<_> = (0..80).map(|batch| batch * 500..(batch + 1) * 500).collect();
    let log = Arc::new(log(&batches, 200, Duration::ZERO));
    let mut follower = Follower::new(log, views.subscribe(), FOLLOW, Some(INTERVAL));
    // It takes a frame per interval. The heartbeats alone are five.
    for _ in 0..100 {
        let frame = poll_fn(|cx| Pin::new(&mut follower.polled.body).poll_frame(cx)).await;
        follower.take(frame.unwrap().unwrap().into_data().unwrap());
        tokio::time::sleep(INTERVAL).await;
    }
    let lines = follower.lines.lines().count();
    assert!(lines > 8_000, "{lines}");
    let mut heartbeats = vec![0; REPLICAS as usize];
    for (_, entry) in follower.heartbeats.iter().filter(|(_, entry)| entry.replica > 0) {
        heartbeats[entry.replica as usize - 1] += 1;
    }
    let (least, most) = (heartbeats.iter().min().unwrap(), heartbeats.iter().max().unwrap());
    assert!(*least >= 5 && most - least <= 2, "{least} to {most}");
}

#[tokio::test(start_paused = true)]
async fn replica_whose_lines_wait_for_the_peer_is_backfilling() {
    const REPLICAS: u32 = 5;
    let views = running(REPLICAS);
    let (mut senders, mut logs) = (Vec::new(), Vec::new());
    for _ in 0..REPLICAS {
        let (live, items) = mpsc::channel(1);
        let log = log(&[0..2, 2..5], 200, Duration::ZERO);
        senders.push((live, log.end));
        logs.push(OneLog { live: Mutex::new(Some(items)), ..log });
    }
    let on = Arc::new(PerReplica(logs));
    let mut follower = Follower::new(on, views.subscribe(), FOLLOW, Some(INTERVAL));
    assert_eq!(follower.receive(Duration::from_secs(1)).await, []);
    for (live, mut after) in senders {
        live.send(numbered(5..205, 200, &mut after)).await.unwrap();
    }
    // All become due while the peer takes nothing. The first frames have lines of some of them.
    tokio::time::sleep(2 * INTERVAL).await;
    while follower.heartbeats.is_empty() {
        let frame = poll_fn(|cx| Pin::new(&mut follower.polled.body).poll_frame(cx)).await;
        follower.take(frame.unwrap().unwrap().into_data().unwrap());
    }
    for (_, entry) in &follower.heartbeats {
        assert_eq!((source(entry).state(), source(entry).lines_left), (State::Backfilling, Some(200)));
    }
    let sent = follower.receive(2 * INTERVAL).await;
    assert!(sent.iter().all(|(_, _, state)| *state == State::Live), "{sent:?}");
    assert_eq!(follower.lines.lines().count(), REPLICAS as usize * 205);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_do_not_accumulate_for_a_peer_that_takes_nothing() {
    const REPLICAS: u32 = 1_000;
    let (_views, view) = watch::channel(waiting(&(0..REPLICAS).collect::<Vec<_>>()));
    let mut follower = Follower::new(Arc::new(EmptyPlatform), view, FOLLOW, Some(INTERVAL));
    assert_eq!(follower.receive(Duration::from_secs(1)).await, []);
    // Nothing polls the body.
    tokio::time::sleep(Duration::from_secs(59)).await;
    // They need several frames.
    let sent = follower.receive(Duration::from_secs(4)).await;
    assert_eq!(sent, (0..REPLICAS).map(|index| (60, index, State::Waiting)).collect::<Vec<_>>());
    let reasons = follower.heartbeats.iter().map(|(_, entry)| source(entry).reason.clone());
    assert!(reasons.eq((0..REPLICAS).map(|index| format!("Reason{index}"))));
    assert_eq!(follower.receive(INTERVAL).await.len(), REPLICAS as usize);
}

#[tokio::test(start_paused = true)]
async fn silent_follower_wakes_once_per_interval() {
    let views = running(1);
    let log = log(&[0..5, 5..10], 1, Duration::ZERO);
    let polled = |heartbeat| {
        let (representation, on_lag) = (Representation::Plain, LagPolicy::Drop);
        let view = views.subscribe();
        let log = Arc::new(OneLog { items: log.items.clone(), live: Mutex::default(), ..log });
        Polled::with_heartbeats(log, view, 1, FOLLOW, representation, on_lag, heartbeat)
    };
    for (heartbeat, wakes) in [(Some(Duration::from_secs(10)), 6), (None, 0)] {
        let mut polled = polled(heartbeat);
        polled.sent().await;
        let before = polled.task.0.load(Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&polled.task));
        for _ in 0..600 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            // As HTTP/2 does, only after a wake.
            while polled.task.0.load(Ordering::SeqCst) > before
                && Pin::new(&mut polled.body).poll_frame(&mut Context::from_waker(&waker)).is_ready()
            {
            }
        }
        assert_eq!(polled.task.0.load(Ordering::SeqCst) - before, wakes, "{heartbeat:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn many_replicas_share_wakes() {
    let views = running(0);
    let mut follower = Follower::new(Arc::new(EmptyPlatform), views.subscribe(), FOLLOW, Some(INTERVAL));
    // They appear one after the other, each a little later.
    for replicas in 1..=50 {
        views.send_replace(waiting(&(0..replicas).collect::<Vec<_>>()));
        follower.receive(Duration::from_millis(90)).await;
    }
    let sent = follower.receive(Duration::from_secs(60)).await;
    assert!(sent.len() >= 50 * 12, "{}", sent.len());
    let seen =
        follower.heartbeats.iter().map(|(second, _)| second).collect::<std::collections::BTreeSet<_>>();
    assert!(seen.len() <= 60, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn interrupted_log_is_reconnecting_since_it_broke() {
    let views = running(1);
    let mut log = log(&[0..5, 5..10], 1, Duration::ZERO);
    let (live, items) = mpsc::channel(100);
    log.live = Mutex::new(Some(items));
    let mut after = log.end;
    let mut follower = Follower::new(Arc::new(log), views.subscribe(), FOLLOW, Some(INTERVAL));
    follower.receive(Duration::from_secs(1)).await;
    let broke = LogTime::from_nanos(7_000_000_000);
    live.send(TailItem::Interrupted(broke)).await.unwrap();
    // It wakes no follower: the next heartbeat shows it.
    let sent = follower.receive(Duration::from_secs(10)).await;
    assert_eq!(sent, [5, 10].map(|second| (second, 0, State::Reconnecting)));
    let source = follower.last().clone();
    assert_eq!((source.since, &*source.reason), (Some(broke.into()), "LogUnavailable"));
    views.send_modify(|view| Arc::make_mut(view).stale_since = Some(broke));
    follower.receive(INTERVAL).await;
    assert_eq!(follower.last().reason, "PlatformUnreachable");
    live.send(TailItem::Resumed).await.unwrap();
    assert_eq!(follower.receive(INTERVAL).await, [(20, 0, State::Live)]);
    assert_eq!((follower.last().since, &*follower.last().reason), (None, ""));
    live.send(numbered(10..12, 1, &mut after)).await.unwrap();
    assert_eq!(follower.receive(Duration::from_secs(4)).await, []);
    follower.check_loss(0, 12);
}

#[tokio::test(start_paused = true)]
async fn slow_source_is_backfilling() {
    for range in [FOLLOW, UNTIL_NOW] {
        let views = running(1);
        let log = log(&[0..5, 5..10], 1, Duration::from_secs(22));
        let mut follower = Follower::new(Arc::new(log), views.subscribe(), range, Some(INTERVAL));
        let sent = follower.receive(Duration::from_secs(21)).await;
        assert_eq!(sent, [5, 10, 15, 20].map(|second| (second, 0, State::Backfilling)), "{range:?}");
        assert_eq!(follower.last().lines_left, None);
        if range.follows() {
            assert_eq!(follower.receive(Duration::from_secs(7)).await, [(27, 0, State::Live)]);
            follower.check_loss(0, 10);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn refill_states_the_lines_left() {
    let platform = Arc::new(TwoRuns {
        logs: [(0..10, false), (0..0, false)].map(watch::Sender::new),
        opened: Mutex::default(),
        delay: Duration::from_secs(12),
    });
    let (_views, view) = watch::channel(runs(1, false));
    let range = ReadRange::Follow(BackfillFilter { last: Some(0), since: None });
    let on = Arc::clone(&platform) as Arc<dyn Platform>;
    let mut follower = Follower::new(on, view, range, Some(INTERVAL));
    assert_eq!(follower.receive(Duration::from_secs(6)).await, [(5, 0, State::Live)]);
    for end in 1..=40 {
        // Not polled meanwhile: the ring evicts most of them.
        platform.logs[0].send_modify(|log| log.0.end = 10 + 50 * end);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let sent = follower.receive(Duration::from_secs(11)).await;
    assert_eq!(sent.iter().map(|(_, _, state)| *state).collect::<Vec<_>>(), [State::Backfilling; 3]);
    assert_eq!(follower.last().lines_left, Some(2_000));
    let sent = follower.receive(Duration::from_secs(7)).await;
    assert_eq!(sent.iter().map(|(_, _, state)| *state).collect::<Vec<_>>(), [State::Live]);
    follower.check_loss(10, 2_010);
}

#[tokio::test(start_paused = true)]
async fn backfill_at_the_head_is_live() {
    // After a gap of unknown size a backfill cannot join the ring. It reads on until the next line.
    let views = running(1);
    let mut log = log(&[0..5, 5..10], 1, Duration::ZERO);
    let TailItem::Lines(first) = &log.items[0] else { panic!() };
    let after = first.lines[4].after;
    let gap = SourceGap { cause: GapCause::Source, lines: 0, bytes: 0, exact: false, after };
    log.items.insert(1, TailItem::Gap(gap));
    let mut follower = Follower::new(Arc::new(log), views.subscribe(), FOLLOW, Some(INTERVAL));
    assert_eq!(follower.receive(Duration::from_secs(6)).await, [(5, 0, State::Live)]);
    assert!(!follower.polled.body.streams[0].is_live());
    assert_eq!((follower.gaps, follower.lines.lines().count()), (1, 10));
}

#[tokio::test(start_paused = true)]
async fn lease_without_replicas_is_waiting() {
    let views = running(0);
    let mut follower = Follower::new(Arc::new(EmptyPlatform), views.subscribe(), FOLLOW, Some(INTERVAL));
    let sent = follower.receive(Duration::from_secs(11)).await;
    assert_eq!(sent, [5, 10].map(|second| (second, 0, State::Waiting)));
    let (_, entry) = follower.heartbeats.last().unwrap();
    assert_eq!((&*entry.name, &*source(entry).reason), ("", "NothingDeployed"));
    // Nothing is known while the platform cannot be reached.
    views.send_modify(|view| Arc::make_mut(view).stale_since = Some(LogTime::from_nanos(7_000_000_000)));
    assert_eq!(follower.receive(INTERVAL).await, [(15, 0, State::Reconnecting)]);
    assert_eq!(follower.last().reason, "PlatformUnreachable");
}

#[tokio::test(start_paused = true)]
async fn removed_replica_gets_heartbeats_until_its_log_ends() {
    let views = running(1);
    let log = log(&[0..5, 5..10], 1, Duration::from_secs(12));
    let mut follower = Follower::new(Arc::new(log), views.subscribe(), FOLLOW, Some(INTERVAL));
    follower.receive(Duration::from_secs(1)).await;
    views.send_replace(Arc::default());
    follower.receive(Duration::from_secs(20)).await;
    let names: Vec<_> = follower.heartbeats.iter().map(|(at, entry)| (*at, &*entry.name)).collect();
    assert_eq!(names, [(5, "web"), (10, "web"), (17, "web")]);
    follower.check_loss(0, 10);
}
