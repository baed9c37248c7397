//! Queries, caching and outages, with a fake node. The node in `tests/it` speaks gRPC.

use std::sync::atomic::AtomicUsize;

use futures_core::future::BoxFuture;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::time::advance;

use super::node::QueryError;
use super::*;
use crate::access::testing::{NOW, Tenant};
use crate::access::wallet::Mnemonic;

const GRACE: Duration = Duration::from_secs(3600);

/// Longer than an answer is used, and than it takes to confirm it.
const LATER: Duration = Duration::from_secs(70);

/// The state of the chain, and a count of queries.
struct FakeNode {
    answers: Mutex<HashMap<TrustId, Answer<TrustValue>>>,
    down: AtomicBool,
    /// The time until an answer or a failure.
    delay: Mutex<Duration>,
    asked: AtomicUsize,
    /// Each query takes one.
    permits: Semaphore,
}

struct Handle(Arc<FakeNode>);

impl ChainClient for Handle {
    fn query<'a>(&'a self, key: &'a TrustId) -> BoxFuture<'a, Result<Answer<TrustValue>, QueryError>> {
        Box::pin(async move {
            self.0.asked.fetch_add(1, Ordering::SeqCst);
            self.0.permits.acquire().await.unwrap().forget();
            let delay = *self.0.delay.lock();
            if !delay.is_zero() {
                sleep(delay).await;
            }
            if self.0.down.load(Ordering::SeqCst) {
                return Err(QueryError::Timeout);
            }
            Ok(self.0.answers.lock().get(key).cloned().unwrap_or(Answer::Unknown))
        })
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    chain: Arc<FakeNode>,
    trust: ChainTrust,
    metrics: Metrics,
    exporter: PrometheusHandle,
}

impl Fixture {
    fn new() -> Self {
        Self::with_rate(1_000)
    }

    fn with_rate(rate: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let chain = Arc::new(FakeNode {
            answers: Mutex::default(),
            down: AtomicBool::new(false),
            delay: Mutex::default(),
            asked: AtomicUsize::new(0),
            permits: Semaphore::new(100_000),
        });
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = Metrics::register(&recorder);
        let trust = open(&chain, dir.path(), rate, &metrics, || NOW);
        Self { dir, chain, trust, metrics, exporter: recorder.handle() }
    }

    /// Replaces the source, as a restart does.
    fn restart(&mut self, clock: fn() -> LogTime) {
        self.trust = open(&self.chain, self.dir.path(), 1_000, &self.metrics, clock);
    }

    fn set(&self, key: &AccountKey, answer: Option<Answer<TrustValue>>) {
        let mut answers = self.chain.answers.lock();
        match answer {
            Some(answer) => answers.insert(TrustId::Account(key.address()), answer),
            None => answers.remove(&TrustId::Account(key.address())),
        };
    }

    fn account(&self) -> AccountKey {
        let key = fresh();
        self.set(&key, Some(found(&key)));
        key
    }

    /// Returns the value of a series.
    fn metric(&self, series: &str) -> String {
        let text = self.exporter.render();
        let line =
            text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("no {series} in\n{text}")).rsplit(' ').next().unwrap().to_owned()
    }

    /// Returns `accounts` trusted items, held as running calls do.
    async fn hold_many(&self, accounts: u16) -> Vec<TrustedItem<AccountKey>> {
        let key = fresh();
        let mut all = Vec::new();
        for number in 0..accounts {
            let mut bytes = [0; 20];
            bytes[..2].copy_from_slice(&number.to_be_bytes());
            let owner = Owner::from_account(bytes);
            self.chain.answers.lock().insert(TrustId::Account(owner.clone()), found(&key));
            match self.trust.account_key(&owner).await {
                Ok(TrustAnswer::Trusted(trusted)) => all.push(trusted),
                other => panic!("{other:?}"),
            }
        }
        all
    }

    fn set_delay(&self, delay: Duration) {
        *self.chain.delay.lock() = delay;
    }

    fn set_down(&self, down: bool) {
        self.chain.down.store(down, Ordering::SeqCst);
    }

    fn asked(&self) -> usize {
        self.chain.asked.load(Ordering::SeqCst)
    }

    async fn ask(&self, key: &AccountKey) -> Result<TrustAnswer<AccountKey>, Unavailable> {
        self.trust.account_key(&key.address()).await
    }

    async fn trusted(&self, key: &AccountKey) -> TrustedItem<AccountKey> {
        match self.ask(key).await {
            Ok(TrustAnswer::Trusted(trusted)) => trusted,
            other => panic!("{other:?}"),
        }
    }
}

fn open(
    chain: &Arc<FakeNode>,
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
    ChainTrust::with_client(Box::new(Handle(Arc::clone(chain))), &config, metrics.clone(), clock).unwrap()
}

fn fresh() -> AccountKey {
    Mnemonic::generate().unwrap().wallet().unwrap().key()
}

fn found(key: &AccountKey) -> Answer<TrustValue> {
    Answer::Trusted(TrustValue::Account(key.clone()))
}

#[tokio::test(start_paused = true)]
async fn answer_is_used_until_it_must_be_confirmed() {
    let fixture = Fixture::new();
    let key = fixture.account();
    for _ in 0..3 {
        assert_eq!(fixture.trusted(&key).await.value, key);
    }
    assert_eq!(fixture.asked(), 1);
    advance(CONFIRMED_FOR).await;
    fixture.trusted(&key).await;
    assert_eq!(fixture.asked(), 2);
    // No running call depends on it, so it is not confirmed.
    sleep(10 * CONFIRMED_FOR).await;
    assert_eq!(fixture.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn unknown_item_is_queried_again_soon() {
    let fixture = Fixture::new();
    let key = fresh();
    for _ in 0..2 {
        assert!(matches!(fixture.ask(&key).await, Ok(TrustAnswer::Unknown)));
    }
    assert_eq!(fixture.asked(), 1);
    fixture.set(&key, Some(Answer::Refused(Refusal::AccountMultisig)));
    advance(REFUSED_FOR).await;
    assert!(matches!(fixture.ask(&key).await, Ok(TrustAnswer::Refused(Refusal::AccountMultisig))));
    fixture.set(&key, Some(found(&key)));
    advance(REFUSED_FOR).await;
    fixture.trusted(&key).await;
}

#[tokio::test(start_paused = true)]
async fn revoked_item_ends_running_calls_in_time() {
    let fixture = Fixture::new();
    let (key, kept) = (fixture.account(), fixture.account());
    let (running, other) = (fixture.trusted(&key).await, fixture.trusted(&kept).await);
    sleep(5 * CONFIRMED_FOR).await;
    assert!(!running.revocation.is_ended() && !other.revocation.is_ended());
    fixture.set(&key, None);
    let begun = Instant::now();
    assert_eq!(running.revocation.ended(Refusal::AccountWithdrawn).await, Refusal::AccountWithdrawn);
    assert!(begun.elapsed() <= LATER, "{:?}", begun.elapsed());
    assert!(matches!(fixture.ask(&key).await, Ok(TrustAnswer::Unknown)));
    assert!(!other.revocation.is_ended());
}

#[tokio::test(start_paused = true)]
async fn many_items_are_confirmed_in_time_by_a_slow_node() {
    let fixture = Fixture::with_rate(10_000);
    let held = fixture.hold_many(1_000).await;
    fixture.set_delay(Duration::from_secs(1));
    sleep(5 * CONFIRMED_FOR).await;
    assert!(held.iter().all(|one| !one.revocation.is_ended()));
    fixture.chain.answers.lock().clear();
    let all = futures_util::future::join_all(
        held.iter().map(|one| one.revocation.ended(Refusal::AccountWithdrawn)),
    );
    tokio::time::timeout(LATER, all).await.expect("all are revoked");
}

#[tokio::test(start_paused = true)]
async fn grace_of_many_items_ends_in_time_while_node_hangs() {
    let fixture = Fixture::with_rate(10_000);
    let held = fixture.hold_many(1_000).await;
    fixture.set_down(true);
    fixture.set_delay(Duration::from_secs(5));
    sleep(GRACE * 9 / 10).await;
    assert!(held.iter().all(|one| !one.revocation.is_ended()));
    assert_ne!(fixture.metric("leasemux_chain_on_grace"), "0");
    let ends = held.iter().map(|one| one.revocation.ended(Refusal::AccountWithdrawn));
    let ends = tokio::time::timeout(GRACE / 10 + LATER, futures_util::future::join_all(ends)).await;
    assert!(ends.expect("all are ended").iter().all(|end| *end == Refusal::TrustUnavailable));
    sleep(2 * TICK).await;
    assert_eq!(fixture.metric("leasemux_chain_on_grace"), "0");
}

#[tokio::test(start_paused = true)]
async fn known_items_do_not_block_queries_for_unknown_ones() {
    let fixture = Fixture::with_rate(10_000);
    let held = fixture.hold_many(200).await;
    advance(CONFIRMED_FOR).await;
    // All of them are queried again, without an answer.
    fixture.chain.permits.forget_permits(usize::MAX);
    let owners: Vec<Owner> = fixture
        .chain
        .answers
        .lock()
        .keys()
        .map(|name| match name {
            TrustId::Account(owner) | TrustId::Certificate(owner, _) => owner.clone(),
        })
        .collect();
    let all = futures_util::future::join_all(owners.iter().map(|owner| fixture.trust.account_key(owner)));
    assert!(tokio::time::timeout(TICK, all).await.is_err());
    assert!(fixture.asked() >= 2 * held.len());
    let key = fixture.account();
    fixture.chain.permits.add_permits(1_000);
    fixture.trusted(&key).await;
}

#[tokio::test(start_paused = true)]
async fn revoked_certificate_has_its_own_reason_and_ends_calls() {
    let fixture = Fixture::new();
    let certificate = Tenant::new(1, 7).issue().0;
    let key = TrustId::Certificate(certificate.owner().clone(), certificate.serial().clone());
    let answer = Answer::Trusted(TrustValue::Certificate(Arc::clone(certificate.der())));
    fixture.chain.answers.lock().insert(key.clone(), answer);
    let ask = || fixture.trust.certificate(certificate.owner(), certificate.serial());
    let Ok(TrustAnswer::Trusted(running)) = ask().await else { panic!() };
    assert_eq!(running.value, *certificate.der());
    fixture.chain.answers.lock().insert(key, Answer::Refused(Refusal::CertificateRevoked));
    tokio::time::timeout(LATER, running.revocation.ended(Refusal::CertificateWithdrawn)).await.unwrap();
    assert!(matches!(ask().await, Ok(TrustAnswer::Refused(Refusal::CertificateRevoked))));
}

#[tokio::test(start_paused = true)]
async fn outage_keeps_known_items_for_grace_and_refuses_unknown() {
    let fixture = Fixture::new();
    let (key, stranger) = (fixture.account(), fixture.account());
    let running = fixture.trusted(&key).await;
    fixture.set_down(true);
    sleep(GRACE / 2).await;
    fixture.trusted(&key).await;
    assert!(matches!(fixture.ask(&stranger).await, Err(Unavailable)));
    assert!(!running.revocation.is_ended());
    // Not every call causes a query.
    let asked = fixture.asked();
    for _ in 0..10 {
        fixture.trusted(&key).await;
    }
    assert!(fixture.asked() <= asked + 1);
    fixture.set_down(false);
    sleep(LATER).await;
    fixture.set_down(true);
    // The grace period starts again.
    sleep(GRACE * 3 / 4).await;
    fixture.trusted(&key).await;
    let begun = Instant::now();
    assert_eq!(running.revocation.ended(Refusal::AccountWithdrawn).await, Refusal::TrustUnavailable);
    assert!(begun.elapsed() <= GRACE / 4 + LATER);
    assert!(matches!(fixture.ask(&key).await, Err(Unavailable)));
    fixture.set_down(false);
    fixture.trusted(&key).await;
}

#[tokio::test(start_paused = true)]
async fn one_query_serves_all_callers_and_outlives_them() {
    let fixture = Fixture::new();
    let key = fixture.account();
    let permits = fixture.chain.permits.forget_permits(usize::MAX);
    {
        // The first caller leaves.
        let ask = fixture.ask(&key);
        assert!(tokio::time::timeout(TICK, ask).await.is_err());
    }
    let all = futures_util::future::join_all((0..100).map(|_| fixture.trusted(&key)));
    let (all, ()) = tokio::join!(all, async {
        sleep(TICK).await;
        fixture.chain.permits.add_permits(permits);
    });
    assert_eq!((all.len(), fixture.asked()), (100, 1));
}

#[tokio::test(start_paused = true)]
async fn flood_of_unknown_callers_is_limited_and_spares_known() {
    let fixture = Fixture::with_rate(10);
    let key = fixture.account();
    fixture.trusted(&key).await;
    advance(CONFIRMED_FOR).await;
    let mut busy = 0;
    for number in 0..100 {
        let owner = Owner::from_account([number; 20]);
        match fixture.trust.account_key(&owner).await {
            Ok(TrustAnswer::Refused(Refusal::TrustBusy)) => busy += 1,
            Ok(TrustAnswer::Unknown) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!((85..=90).contains(&busy), "{busy}");
    assert_eq!(fixture.metric("leasemux_chain_answers_total{from=\"busy\"}"), busy.to_string());
    fixture.trusted(&key).await;
    // Concurrent queries are limited whatever the rate.
    let fixture = Fixture::new();
    fixture.chain.permits.forget_permits(usize::MAX);
    let owners: Vec<Owner> = (0..100).map(|number| Owner::from_account([number; 20])).collect();
    let each = owners.iter().map(|owner| tokio::time::timeout(TICK, fixture.trust.account_key(owner)));
    let answers = futures_util::future::join_all(each).await;
    let held =
        answers.iter().filter(|answer| matches!(answer, Ok(Ok(TrustAnswer::Refused(Refusal::TrustBusy)))));
    assert_eq!((held.count(), fixture.asked()), (100 - UNKNOWN_QUERIES_MAX, UNKNOWN_QUERIES_MAX));
}

#[tokio::test(start_paused = true)]
async fn stored_items_work_after_restart_during_outage() {
    let mut fixture = Fixture::new();
    let key = fixture.account();
    fixture.trusted(&key).await;
    let asked = fixture.asked();
    fixture.set_down(true);
    fixture.restart(|| NOW.saturating_add_nanos(60_000_000_000));
    fixture.trusted(&key).await;
    assert!(fixture.asked() > asked, "it must be confirmed at once");
    // A restart does not extend the grace period.
    sleep(GRACE).await;
    assert!(matches!(fixture.ask(&key).await, Err(Unavailable)));
    fixture.set_down(false);
    fixture.trusted(&key).await;
    fixture.set_down(true);
    fixture.restart(|| NOW.saturating_add_nanos(2 * 3600 * 1_000_000_000));
    assert!(matches!(fixture.ask(&key).await, Err(Unavailable)));
}

#[tokio::test(start_paused = true)]
async fn revoked_item_is_not_restored_after_restart() {
    let mut fixture = Fixture::new();
    let key = fixture.account();
    fixture.trusted(&key).await;
    fixture.set(&key, None);
    advance(CONFIRMED_FOR).await;
    assert!(matches!(fixture.ask(&key).await, Ok(TrustAnswer::Unknown)));
    fixture.set_down(true);
    fixture.restart(|| NOW);
    assert!(matches!(fixture.ask(&key).await, Err(Unavailable)));
}

#[tokio::test(start_paused = true)]
async fn cached_items_are_bounded() {
    let mut cache = Cache::new(GRACE);
    let key = fresh();
    let name = |number: usize| {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        TrustId::Account(Owner::from_account(bytes))
    };
    let mut held = None;
    for number in 0..ENTRIES_MAX {
        let (outcome, _) = cache.apply(&name(number), Ok(found(&key)), Instant::now());
        if number == 0 {
            held = Some(outcome);
        }
        advance(Duration::from_millis(1)).await;
    }
    let (_, change) = cache.apply(&name(ENTRIES_MAX), Ok(found(&key)), Instant::now());
    // The first is in use.
    let replaced = Some(name(1));
    assert_eq!(change, DiskChange::Write { value: TrustValue::Account(key.clone()), replaced });
    assert_eq!(cache.len(), ENTRIES_MAX);
    drop(held);
    for number in 0..2 * NEGATIVE_ENTRIES_MAX {
        let _ = cache.apply(&name(ENTRIES_MAX + 1 + number), Ok(Answer::Unknown), Instant::now());
    }
    assert!(matches!(
        cache.lookup(&name(ENTRIES_MAX + 2 * NEGATIVE_ENTRIES_MAX), Instant::now()),
        Lookup::Query { is_known: false }
    ));
}

#[tokio::test(start_paused = true)]
async fn queries_and_answers_are_counted() {
    let fixture = Fixture::new();
    let queries = |kind: &str, result: &str| {
        fixture.metric(&format!("leasemux_chain_queries_total{{kind=\"{kind}\",result=\"{result}\"}}"))
    };
    let answers = |from: &str| fixture.metric(&format!("leasemux_chain_answers_total{{from=\"{from}\"}}"));
    let key = fixture.account();
    let running = fixture.trusted(&key).await;
    fixture.trusted(&key).await;
    assert!(matches!(fixture.ask(&fresh()).await, Ok(TrustAnswer::Unknown)));
    let certificate = Tenant::new(1, 7).issue().0;
    let asked = fixture.trust.certificate(certificate.owner(), certificate.serial()).await;
    assert!(matches!(asked, Ok(TrustAnswer::Unknown)));
    assert_eq!(["found", "unknown", "failed"].map(|result| queries("account", result)), ["1", "1", "0"]);
    assert_eq!(queries("certificate", "unknown"), "1");
    assert_eq!(["cache", "query", "busy", "grace"].map(answers), ["1", "3", "0", "0"]);
    assert_eq!(fixture.metric("leasemux_chain_query_seconds_count"), "3");
    // During an outage, running and new calls of known callers work.
    fixture.set_down(true);
    // The query failed, and is not yet repeated.
    sleep(CONFIRMED_FOR + RETRY_AFTER + RETRY_AFTER / 2).await;
    assert_eq!(fixture.metric("leasemux_chain_on_grace"), "1");
    fixture.trusted(&key).await;
    assert_eq!(answers("grace"), "1");
    assert_ne!(queries("account", "failed"), "0");
    fixture.set_down(false);
    sleep(LATER).await;
    assert_eq!(fixture.metric("leasemux_chain_on_grace"), "0");
    drop(running);
}
