//! What is asked, how often, and what comes of silence. The node is a double; that of `tests/it` speaks gRPC.

use std::sync::atomic::AtomicUsize;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::sync::Semaphore;
use tokio::time::{advance, sleep};

use super::node::{Answer, QueryError};
use super::*;
use crate::access::testing::{NOW, Tenant};
use crate::access::wallet::Words;

const GRACE: Duration = Duration::from_secs(3600);

/// Longer than an answer counts, and than it takes to notice that.
const LATER: Duration = Duration::from_secs(70);

/// What the chain has, and how often it was asked.
struct Double {
    answers: Mutex<HashMap<TrustKey, Answer>>,
    silent: AtomicBool,
    /// How long it takes to answer, or to be given up.
    pace: Mutex<Duration>,
    asked: AtomicUsize,
    /// A question waits for one of these.
    turns: Semaphore,
}

struct Handle(Arc<Double>);

impl ChainClient for Handle {
    fn ask<'a>(&'a self, name: &'a TrustKey) -> BoxFuture<'a, Result<Answer, QueryError>> {
        Box::pin(async move {
            self.0.asked.fetch_add(1, Ordering::SeqCst);
            self.0.turns.acquire().await.unwrap().forget();
            let pace = *lock(&self.0.pace);
            if !pace.is_zero() {
                sleep(pace).await;
            }
            if self.0.silent.load(Ordering::SeqCst) {
                return Err(QueryError::Late);
            }
            Ok(self.0.answers.lock().unwrap().get(name).cloned().unwrap_or(Answer::Unknown))
        })
    }
}

struct World {
    dir: tempfile::TempDir,
    chain: Arc<Double>,
    trust: ChainTrust,
    metrics: Metrics,
    told: PrometheusHandle,
}

impl World {
    fn new() -> Self {
        Self::with_rate(1_000)
    }

    fn with_rate(rate: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let chain = Arc::new(Double {
            answers: Mutex::default(),
            silent: AtomicBool::new(false),
            pace: Mutex::default(),
            asked: AtomicUsize::new(0),
            turns: Semaphore::new(100_000),
        });
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = Metrics::register(&recorder);
        let trust = open(&chain, dir.path(), rate, &metrics, || NOW);
        Self { dir, chain, trust, metrics, told: recorder.handle() }
    }

    /// Another process takes over.
    fn restart(&mut self, clock: fn() -> LogTime) {
        self.trust = open(&self.chain, self.dir.path(), 1_000, &self.metrics, clock);
    }

    fn set(&self, key: &AccountKey, answer: Option<Answer>) {
        let mut answers = self.chain.answers.lock().unwrap();
        match answer {
            Some(answer) => answers.insert(TrustKey::Account(key.address()), answer),
            None => answers.remove(&TrustKey::Account(key.address())),
        };
    }

    fn account(&self) -> AccountKey {
        let key = fresh();
        self.set(&key, Some(found(&key)));
        key
    }

    /// The value of a series.
    fn metric(&self, series: &str) -> String {
        let text = self.told.render();
        let line =
            text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("no {series} in\n{text}")).rsplit(' ').next().unwrap().to_owned()
    }

    /// So many accounts, each with somebody who stands on it.
    async fn crowd(&self, accounts: u16) -> Vec<TrustedItem<AccountKey>> {
        let key = fresh();
        let mut all = Vec::new();
        for number in 0..accounts {
            let mut bytes = [0; 20];
            bytes[..2].copy_from_slice(&number.to_be_bytes());
            let owner = Owner::from_account(bytes);
            lock(&self.chain.answers).insert(TrustKey::Account(owner.clone()), found(&key));
            match self.trust.account(&owner).await {
                Ok(TrustAnswer::Trusted(trusted)) => all.push(trusted),
                other => panic!("{other:?}"),
            }
        }
        all
    }

    fn pace(&self, pace: Duration) {
        *lock(&self.chain.pace) = pace;
    }

    fn silence(&self, silent: bool) {
        self.chain.silent.store(silent, Ordering::SeqCst);
    }

    fn asked(&self) -> usize {
        self.chain.asked.load(Ordering::SeqCst)
    }

    async fn ask(&self, key: &AccountKey) -> Result<TrustAnswer<AccountKey>, Unavailable> {
        self.trust.account(&key.address()).await
    }

    async fn trusted(&self, key: &AccountKey) -> TrustedItem<AccountKey> {
        match self.ask(key).await {
            Ok(TrustAnswer::Trusted(trusted)) => trusted,
            other => panic!("{other:?}"),
        }
    }
}

fn open(
    chain: &Arc<Double>,
    dir: &Path,
    queries_per_second: u64,
    metrics: &Metrics,
    clock: fn() -> LogTime,
) -> ChainTrust {
    let config = ChainConfig {
        node: Uri::from_static("http://node"),
        authorities: None,
        dir: dir.join("chain"),
        grace: GRACE,
        queries_per_second,
    };
    ChainTrust::asking(Box::new(Handle(Arc::clone(chain))), &config, metrics.clone(), clock).unwrap()
}

fn fresh() -> AccountKey {
    Words::fresh().unwrap().wallet().unwrap().key()
}

fn found(key: &AccountKey) -> Answer {
    Answer::Found(TrustValue::Account(key.clone()))
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_for_its_time_and_no_longer() {
    let world = World::new();
    let key = world.account();
    for _ in 0..3 {
        assert_eq!(*world.trusted(&key).await.what(), key);
    }
    assert_eq!(world.asked(), 1);
    advance(CONFIRMED_FOR).await;
    world.trusted(&key).await;
    assert_eq!(world.asked(), 2);
    // Nobody stands on it, so nobody asks.
    sleep(10 * CONFIRMED_FOR).await;
    assert_eq!(world.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_asked_for_again_soon() {
    let world = World::new();
    let key = fresh();
    for _ in 0..2 {
        assert!(matches!(world.ask(&key).await, Ok(TrustAnswer::Unknown)));
    }
    assert_eq!(world.asked(), 1);
    world.set(&key, Some(Answer::Refused(Refusal::AccountMultisig)));
    advance(REFUSED_FOR).await;
    assert!(matches!(world.ask(&key).await, Ok(TrustAnswer::Refused(Refusal::AccountMultisig))));
    world.set(&key, Some(found(&key)));
    advance(REFUSED_FOR).await;
    world.trusted(&key).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_withdrawn_stops_working_in_time_streams_included() {
    let world = World::new();
    let (key, kept) = (world.account(), world.account());
    let (running, other) = (world.trusted(&key).await, world.trusted(&kept).await);
    sleep(5 * CONFIRMED_FOR).await;
    assert!(!running.withdrawn().is_cancelled() && !other.withdrawn().is_cancelled());
    world.set(&key, None);
    let begun = Instant::now();
    assert_eq!(running.hold().ended(Refusal::AccountWithdrawn).await, Refusal::AccountWithdrawn);
    assert!(begun.elapsed() <= LATER, "{:?}", begun.elapsed());
    assert!(matches!(world.ask(&key).await, Ok(TrustAnswer::Unknown)));
    assert!(!other.withdrawn().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn what_many_stand_on_is_confirmed_in_time_also_by_a_slow_node() {
    let world = World::with_rate(10_000);
    let crowd = world.crowd(1_000).await;
    world.pace(Duration::from_secs(1));
    sleep(5 * CONFIRMED_FOR).await;
    assert!(crowd.iter().all(|one| !one.withdrawn().is_cancelled()));
    lock(&world.chain.answers).clear();
    let all = futures_util::future::join_all(crowd.iter().map(|one| one.withdrawn().cancelled()));
    tokio::time::timeout(LATER, all).await.expect("all are withdrawn");
}

#[tokio::test(start_paused = true)]
async fn the_grace_of_many_ends_in_time_also_while_a_node_hangs() {
    let world = World::with_rate(10_000);
    let crowd = world.crowd(1_000).await;
    world.silence(true);
    world.pace(Duration::from_secs(5));
    sleep(GRACE * 9 / 10).await;
    assert!(crowd.iter().all(|one| !one.withdrawn().is_cancelled()));
    assert_ne!(world.metric("leasemux_chain_on_grace"), "0");
    let ends = crowd.iter().map(|one| one.hold().ended(Refusal::AccountWithdrawn));
    let ends = tokio::time::timeout(GRACE / 10 + LATER, futures_util::future::join_all(ends)).await;
    assert!(ends.expect("all are told").iter().all(|end| *end == Refusal::TrustUnavailable));
    sleep(2 * TICK).await;
    assert_eq!(world.metric("leasemux_chain_on_grace"), "0");
}

#[tokio::test(start_paused = true)]
async fn who_is_known_keeps_nobody_out_who_is_not() {
    let world = World::with_rate(10_000);
    let crowd = world.crowd(200).await;
    advance(CONFIRMED_FOR).await;
    // All of them are asked for again, and no answer comes.
    world.chain.turns.forget_permits(usize::MAX);
    let owners: Vec<Owner> = lock(&world.chain.answers)
        .keys()
        .map(|name| match name {
            TrustKey::Account(owner) | TrustKey::Certificate(owner, _) => owner.clone(),
        })
        .collect();
    let all = futures_util::future::join_all(owners.iter().map(|owner| world.trust.account(owner)));
    assert!(tokio::time::timeout(TICK, all).await.is_err());
    assert!(world.asked() >= 2 * crowd.len());
    let key = world.account();
    world.chain.turns.add_permits(1_000);
    world.trusted(&key).await;
}

#[tokio::test(start_paused = true)]
async fn a_revoked_certificate_has_its_own_reason_and_its_streams_end() {
    let world = World::new();
    let certificate = Tenant::new(1, 7).issue().0;
    let name = TrustKey::Certificate(certificate.owner().clone(), certificate.serial().clone());
    let answer = Answer::Found(TrustValue::Certificate(Arc::clone(certificate.der())));
    world.chain.answers.lock().unwrap().insert(name.clone(), answer);
    let ask = || world.trust.certificate(certificate.owner(), certificate.serial());
    let Ok(TrustAnswer::Trusted(running)) = ask().await else { panic!() };
    assert_eq!(running.der(), certificate.der());
    world.chain.answers.lock().unwrap().insert(name, Answer::Refused(Refusal::CertificateRevoked));
    tokio::time::timeout(LATER, running.withdrawn().cancelled()).await.unwrap();
    assert!(matches!(ask().await, Ok(TrustAnswer::Refused(Refusal::CertificateRevoked))));
}

#[tokio::test(start_paused = true)]
async fn while_the_chain_is_silent_the_known_go_on_and_the_unknown_must_wait() {
    let world = World::new();
    let (key, stranger) = (world.account(), world.account());
    let running = world.trusted(&key).await;
    world.silence(true);
    sleep(GRACE / 2).await;
    world.trusted(&key).await;
    assert!(matches!(world.ask(&stranger).await, Err(Unavailable)));
    assert!(!running.withdrawn().is_cancelled());
    // It is not asked at every call.
    let asked = world.asked();
    for _ in 0..10 {
        world.trusted(&key).await;
    }
    assert!(world.asked() <= asked + 1);
    world.silence(false);
    sleep(LATER).await;
    world.silence(true);
    // The grace begins anew.
    sleep(GRACE * 3 / 4).await;
    world.trusted(&key).await;
    let begun = Instant::now();
    assert_eq!(running.hold().ended(Refusal::AccountWithdrawn).await, Refusal::TrustUnavailable);
    assert!(begun.elapsed() <= GRACE / 4 + LATER);
    assert!(matches!(world.ask(&key).await, Err(Unavailable)));
    world.silence(false);
    world.trusted(&key).await;
}

#[tokio::test(start_paused = true)]
async fn one_question_serves_all_who_ask_and_outlives_them() {
    let world = World::new();
    let key = world.account();
    let turns = world.chain.turns.forget_permits(usize::MAX);
    {
        // Whoever asked first goes away.
        let ask = world.ask(&key);
        assert!(tokio::time::timeout(TICK, ask).await.is_err());
    }
    let all = futures_util::future::join_all((0..100).map(|_| world.trusted(&key)));
    let (all, ()) = tokio::join!(all, async {
        sleep(TICK).await;
        world.chain.turns.add_permits(turns);
    });
    assert_eq!((all.len(), world.asked()), (100, 1));
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_strangers_is_held_back_and_does_not_touch_the_known() {
    let world = World::with_rate(10);
    let key = world.account();
    world.trusted(&key).await;
    advance(CONFIRMED_FOR).await;
    let mut busy = 0;
    for number in 0..100 {
        let owner = Owner::from_account([number; 20]);
        match world.trust.account(&owner).await {
            Ok(TrustAnswer::Refused(Refusal::TrustBusy)) => busy += 1,
            Ok(TrustAnswer::Unknown) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!((85..=90).contains(&busy), "{busy}");
    assert_eq!(world.metric("leasemux_chain_answers_total{from=\"busy\"}"), busy.to_string());
    world.trusted(&key).await;
    // So many at once and no more, whatever the rate.
    let world = World::new();
    world.chain.turns.forget_permits(usize::MAX);
    let owners: Vec<Owner> = (0..100).map(|number| Owner::from_account([number; 20])).collect();
    let each = owners.iter().map(|owner| tokio::time::timeout(TICK, world.trust.account(owner)));
    let answers = futures_util::future::join_all(each).await;
    let held =
        answers.iter().filter(|answer| matches!(answer, Ok(Ok(TrustAnswer::Refused(Refusal::TrustBusy)))));
    assert_eq!((held.count(), world.asked()), (100 - FLIGHTS_MAX, FLIGHTS_MAX));
}

#[tokio::test(start_paused = true)]
async fn a_restart_while_the_chain_is_silent_locks_nobody_out() {
    let mut world = World::new();
    let key = world.account();
    world.trusted(&key).await;
    let asked = world.asked();
    world.silence(true);
    world.restart(|| NOW.saturating_add_nanos(60_000_000_000));
    world.trusted(&key).await;
    assert!(world.asked() > asked, "it is to be confirmed at once");
    // But not for longer than the grace, whoever restarts.
    sleep(GRACE).await;
    assert!(matches!(world.ask(&key).await, Err(Unavailable)));
    world.silence(false);
    world.trusted(&key).await;
    world.silence(true);
    world.restart(|| NOW.saturating_add_nanos(2 * 3600 * 1_000_000_000));
    assert!(matches!(world.ask(&key).await, Err(Unavailable)));
}

#[tokio::test(start_paused = true)]
async fn what_was_withdrawn_is_not_remembered_over_a_restart() {
    let mut world = World::new();
    let key = world.account();
    world.trusted(&key).await;
    world.set(&key, None);
    advance(CONFIRMED_FOR).await;
    assert!(matches!(world.ask(&key).await, Ok(TrustAnswer::Unknown)));
    world.silence(true);
    world.restart(|| NOW);
    assert!(matches!(world.ask(&key).await, Err(Unavailable)));
}

#[tokio::test(start_paused = true)]
async fn no_more_than_so_much_is_remembered() {
    let mut cache = Cache::new(GRACE);
    let key = fresh();
    let name = |number: usize| {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        TrustKey::Account(Owner::from_account(bytes))
    };
    let mut held = None;
    for number in 0..ENTRIES_MAX {
        let (outcome, _) = cache.take(&name(number), Ok(found(&key)), Instant::now());
        if number == 0 {
            held = Some(outcome);
        }
        advance(Duration::from_millis(1)).await;
    }
    let (_, change) = cache.take(&name(ENTRIES_MAX), Ok(found(&key)), Instant::now());
    // The first is stood on.
    let instead_of = Some(name(1));
    assert_eq!(change, Change::Keep { content: TrustValue::Account(key.clone()), instead_of });
    assert_eq!(cache.len(), ENTRIES_MAX);
    drop(held);
    for number in 0..2 * REFUSALS_MAX {
        cache.take(&name(ENTRIES_MAX + 1 + number), Ok(Answer::Unknown), Instant::now());
    }
    assert!(matches!(
        cache.look(&name(ENTRIES_MAX + 2 * REFUSALS_MAX), Instant::now()),
        Lookup::Ask { known: false }
    ));
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_and_what_calls_stand_on_is_counted() {
    let world = World::new();
    let queries = |kind: &str, result: &str| {
        world.metric(&format!("leasemux_chain_queries_total{{kind=\"{kind}\",result=\"{result}\"}}"))
    };
    let answers = |from: &str| world.metric(&format!("leasemux_chain_answers_total{{from=\"{from}\"}}"));
    let key = world.account();
    let running = world.trusted(&key).await;
    world.trusted(&key).await;
    assert!(matches!(world.ask(&fresh()).await, Ok(TrustAnswer::Unknown)));
    let certificate = Tenant::new(1, 7).issue().0;
    let asked = world.trust.certificate(certificate.owner(), certificate.serial()).await;
    assert!(matches!(asked, Ok(TrustAnswer::Unknown)));
    assert_eq!(["found", "unknown", "failed"].map(|result| queries("account", result)), ["1", "1", "0"]);
    assert_eq!(queries("certificate", "unknown"), "1");
    assert_eq!(["cache", "query", "busy", "grace"].map(answers), ["1", "3", "0", "0"]);
    assert_eq!(world.metric("leasemux_chain_query_seconds_count"), "3");
    // The node is silent: what a stream stands on goes on, and so does a call.
    world.silence(true);
    // Asked in vain, and not yet again.
    sleep(CONFIRMED_FOR + RETRY_AFTER + RETRY_AFTER / 2).await;
    assert_eq!(world.metric("leasemux_chain_on_grace"), "1");
    world.trusted(&key).await;
    assert_eq!(answers("grace"), "1");
    assert_ne!(queries("account", "failed"), "0");
    world.silence(false);
    sleep(LATER).await;
    assert_eq!(world.metric("leasemux_chain_on_grace"), "0");
    drop(running);
}
