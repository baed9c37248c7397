//! Random scenarios: overlapping calls, replicas that crash or do not start again, a failing platform.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_core::future::BoxFuture;
use leasemux::edge::admin::Exporter;
use leasemux::model::id::{LeaseId, Replica};
use leasemux::model::metrics::Metrics;
use leasemux::model::view::{Filter, LeaseView};
use leasemux::platform::{Error, Platform, RestartRequest, Tail, TailRequest};
use leasemux::restart::{JobRequest, ReplicaOutcome, RequestError, RestartJob, RestartManager};
use proptest::prelude::*;
use tokio::sync::watch;

use crate::support::fake_platform::{FakePlatform, RestartBehavior};
use crate::support::{lease, replica};

/// Replicas of the only service.
const REPLICAS: u32 = 3;

/// Request ids, which calls reuse.
const IDS: usize = 3;

#[derive(Clone, Debug)]
enum Action {
    /// A call for these replicas (all, if none is given), with an optional request id.
    Call {
        replicas: Vec<u32>,
        id: Option<usize>,
    },
    RestartBehavior {
        replica: u32,
        behavior: RestartBehavior,
    },
    Crash {
        replica: u32,
    },
    Start {
        replica: u32,
    },
    Wait {
        millis: u64,
    },
}

fn action() -> impl Strategy<Value = Action> {
    let one = 0..REPLICAS;
    let behavior = prop_oneof![
        6 => Just(RestartBehavior::Up),
        1 => Just(RestartBehavior::Crash),
        1 => Just(RestartBehavior::Never),
        1 => Just(RestartBehavior::Unavailable),
        1 => Just(RestartBehavior::Broken),
    ];
    prop_oneof![
        4 => (prop::collection::vec(one.clone(), 0..3), prop::option::of(0..IDS))
            .prop_map(|(replicas, id)| Action::Call { replicas, id }),
        2 => (one.clone(), behavior).prop_map(|(replica, behavior)| Action::RestartBehavior { replica, behavior }),
        1 => one.clone().prop_map(|replica| Action::Crash { replica }),
        1 => one.prop_map(|replica| Action::Start { replica }),
        3 => (0_u64..20_000).prop_map(|millis| Action::Wait { millis }),
    ]
}

/// A fake platform that checks that no replica is stopped before the previous one has an outcome.
#[derive(Debug)]
struct CheckedPlatform {
    fake: FakePlatform,
    metrics: Exporter,
    /// Replicas that were stopped.
    stopped: AtomicU64,
    /// The last request, which may be repeated after a failure.
    last: Mutex<Option<RestartRequest>>,
}

impl CheckedPlatform {
    /// Returns the number of replicas with an outcome, without those not attempted.
    fn decided(&self) -> u64 {
        let text = self.metrics.render();
        let of = |result: &str| -> u64 {
            let series = format!("leasemux_restarts_total{{result=\"{result}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
        };
        of("active") + of("failure")
    }
}

impl Platform for CheckedPlatform {
    fn name(&self) -> &'static str {
        "checked"
    }

    fn watch(&self, lease: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        self.fake.watch(lease)
    }

    fn tail(&self, request: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
        self.fake.tail(request)
    }

    fn restart(&self, request: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
        let mut last = self.last.lock().unwrap();
        if self.decided() == self.stopped.load(Ordering::SeqCst) {
            self.stopped.fetch_add(1, Ordering::SeqCst);
        } else {
            assert_eq!(last.as_ref(), Some(&request), "a second replica is stopped");
        }
        *last = Some(request.clone());
        let fake = self.fake.clone();
        Box::pin(async move { fake.restart(request).await })
    }
}

struct Scenario {
    lease: LeaseId,
    platform: FakePlatform,
    restarts: RestartManager,
    jobs: Vec<(JobRequest, Arc<RestartJob>)>,
}

impl Scenario {
    fn view(&self) -> Arc<LeaseView> {
        let watch = futures_util::FutureExt::now_or_never(self.platform.watch(&self.lease)).unwrap();
        Arc::clone(&watch.unwrap().borrow())
    }

    async fn act(&mut self, action: Action) {
        let web = |index| replica("web", index);
        match action {
            Action::Call { replicas, id } => self.call(&replicas, id),
            Action::RestartBehavior { replica, behavior } => {
                self.platform.set_restart_behavior(&web(replica), behavior);
            }
            Action::Crash { replica } => {
                if self.view().replica(&web(replica)).unwrap().current_run().is_some() {
                    self.platform.end(&self.lease, &web(replica), 1);
                }
            }
            Action::Start { replica } => {
                if self.view().replica(&web(replica)).unwrap().current_run().is_none() {
                    self.platform.start(&self.lease, &web(replica));
                }
            }
            Action::Wait { millis } => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
    }

    fn call(&mut self, replicas: &[u32], id: Option<usize>) {
        let mut filter = Filter::everything();
        filter.add("web".parse().unwrap(), replicas);
        let id = id.map(|id| format!("call-{id}").parse().unwrap());
        let request = JobRequest { lease: self.lease.clone(), filter, id };
        let before = self.jobs.iter().find(|(known, _)| request.id.is_some() && known.id == request.id);
        match (self.restarts.begin(request.clone(), &self.view()), before) {
            (Ok(job), Some((known, first))) => {
                assert_eq!(*known, request, "the same id with another request");
                assert!(Arc::ptr_eq(&job, first), "a repeated call created another job");
            }
            (Ok(job), None) => self.jobs.push((request, job)),
            (Err(RequestError::RequestIdReused), Some((known, _))) => assert_ne!(*known, request),
            (Err(rejection), _) => panic!("{rejection:?}"),
        }
    }

    /// Checks that each replica of each call has an outcome, and that no replica was attempted after a
    /// failure.
    async fn finish(self, platform: &CheckedPlatform) {
        for (request, job) in &self.jobs {
            job.wait(Duration::from_secs(1_000_000)).await;
            let outcomes: Vec<(&Replica, &ReplicaOutcome)> = job
                .outcomes()
                .map(|(replica, outcome)| {
                    (replica, outcome.unwrap_or_else(|| panic!("{replica} of {request:?}")))
                })
                .collect();
            let selected = outcomes.iter().all(|(replica, _)| request.filter.selects(replica));
            assert!(selected && outcomes.len() == self.view().select(&request.filter).count());
            for (replica, outcome) in &outcomes {
                match outcome {
                    ReplicaOutcome::Active | ReplicaOutcome::Failed(_) => {}
                    ReplicaOutcome::NotAttempted(why) => {
                        let blames =
                            |other: &Replica| why.contains(&format!("the restart of {other} failed"));
                        assert!(
                            outcomes.iter().any(|(other, _)| other != replica && blames(other)),
                            "{replica}: {why}"
                        );
                    }
                    ReplicaOutcome::Abandoned => panic!("{replica} was abandoned"),
                }
            }
        }
        assert_eq!(platform.decided(), platform.stopped.load(Ordering::SeqCst));
        self.restarts.finish(Duration::ZERO).await;
    }
}

/// Returns the number of scenarios: 200, or `PROPTEST_CASES`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]
    #[test]
    fn replicas_restart_one_at_a_time_with_one_outcome(actions in prop::collection::vec(action(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let fake = FakePlatform::default();
            let lease = lease(1);
            fake.add_lease(&lease, &[("web", REPLICAS)]);
            for index in 0..REPLICAS {
                fake.start(&lease, &replica("web", index));
            }
            let metrics = Exporter::new().unwrap();
            let handles: Metrics = metrics.metrics.clone();
            let platform = Arc::new(CheckedPlatform {
                fake: fake.clone(),
                metrics,
                stopped: AtomicU64::new(0),
                last: Mutex::default(),
            });
            let restarts = RestartManager::new(Arc::clone(&platform) as Arc<dyn Platform>, handles);
            let mut scenario = Scenario { lease, platform: fake, restarts, jobs: Vec::new() };
            for action in actions {
                scenario.act(action).await;
            }
            scenario.finish(&platform).await;
        });
    }
}
