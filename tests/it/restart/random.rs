//! Random lives: calls that overlap, replicas that crash by themselves or do not come back, a platform that fails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_core::future::BoxFuture;
use leasemux::edge::admin::Exporter;
use leasemux::model::id::{LeaseId, Replica};
use leasemux::model::metrics::Metrics;
use leasemux::model::view::{Filter, LeaseView};
use leasemux::platform::{Error, Platform, RestartRequest, Tail, TailRequest};
use leasemux::restart::{Rejection, ReplicaOutcome, Request, RestartJob, RestartManager};
use proptest::prelude::*;
use tokio::sync::watch;

use crate::support::world::{Comeback, World};
use crate::support::{lease, replica};

/// Replicas of the one service.
const REPLICAS: u32 = 3;

/// Request ids that are used again and again.
const IDS: usize = 3;

#[derive(Clone, Debug)]
enum Action {
    /// A call for these replicas, all if there is none, perhaps by a name.
    Call {
        replicas: Vec<u32>,
        id: Option<usize>,
    },
    Comeback {
        replica: u32,
        comeback: Comeback,
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
    let comeback = prop_oneof![
        6 => Just(Comeback::Up),
        1 => Just(Comeback::Crash),
        1 => Just(Comeback::Never),
        1 => Just(Comeback::Unavailable),
        1 => Just(Comeback::Broken),
    ];
    prop_oneof![
        4 => (prop::collection::vec(one.clone(), 0..3), prop::option::of(0..IDS))
            .prop_map(|(replicas, id)| Action::Call { replicas, id }),
        2 => (one.clone(), comeback).prop_map(|(replica, comeback)| Action::Comeback { replica, comeback }),
        1 => one.clone().prop_map(|replica| Action::Crash { replica }),
        1 => one.prop_map(|replica| Action::Start { replica }),
        3 => (0_u64..20_000).prop_map(|millis| Action::Wait { millis }),
    ]
}

/// The fake world, behind a witness that no replica is taken down before there is a verdict on the one before.
#[derive(Debug)]
struct Witnessed {
    world: World,
    metrics: Exporter,
    taken: AtomicU64,
    /// The order that the platform could not take, and may be given again.
    retried: Mutex<Option<RestartRequest>>,
}

impl Witnessed {
    /// How many replicas that were not left alone have a verdict.
    fn judged(&self) -> u64 {
        let text = self.metrics.render();
        let of = |result: &str| -> u64 {
            let series = format!("leasemux_restarts_total{{result=\"{result}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
        };
        of("active") + of("failure")
    }
}

impl Platform for Witnessed {
    fn name(&self) -> &'static str {
        "witnessed"
    }

    fn watch(&self, lease: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        self.world.watch(lease)
    }

    fn tail(&self, request: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
        self.world.tail(request)
    }

    fn restart(&self, request: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
        let mut retried = self.retried.lock().unwrap();
        if self.judged() == self.taken.load(Ordering::SeqCst) {
            self.taken.fetch_add(1, Ordering::SeqCst);
        } else {
            assert_eq!(retried.as_ref(), Some(&request), "a second replica is taken down");
        }
        let (order, world) = (request.clone(), self.world.clone());
        let answer = Box::pin(async move { world.restart(request).await });
        *retried = Some(order);
        answer
    }
}

struct Life {
    lease: LeaseId,
    world: World,
    restarts: RestartManager,
    rounds: Vec<(Request, Arc<RestartJob>)>,
}

impl Life {
    fn view(&self) -> Arc<LeaseView> {
        let watch = futures_util::FutureExt::now_or_never(self.world.watch(&self.lease)).unwrap();
        Arc::clone(&watch.unwrap().borrow())
    }

    async fn act(&mut self, action: Action) {
        let slot = |index| replica("web", index);
        match action {
            Action::Call { replicas, id } => self.call(&replicas, id),
            Action::Comeback { replica, comeback } => self.world.set_comeback(&slot(replica), comeback),
            Action::Crash { replica } => {
                if self.view().replica(&slot(replica)).unwrap().present().is_some() {
                    self.world.end(&self.lease, &slot(replica), 1);
                }
            }
            Action::Start { replica } => {
                if self.view().replica(&slot(replica)).unwrap().present().is_none() {
                    self.world.start(&self.lease, &slot(replica));
                }
            }
            Action::Wait { millis } => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
    }

    fn call(&mut self, replicas: &[u32], id: Option<usize>) {
        let mut filter = Filter::everything();
        filter.add("web".parse().unwrap(), replicas);
        let id = id.map(|id| format!("call-{id}").parse().unwrap());
        let request = Request { lease: self.lease.clone(), filter, id };
        let before = self.rounds.iter().find(|(known, _)| request.id.is_some() && known.id == request.id);
        match (self.restarts.begin(request.clone(), &self.view()), before) {
            (Ok(round), Some((known, first))) => {
                assert_eq!(*known, request, "another request by the same name");
                assert!(Arc::ptr_eq(&round, first), "the same call twice");
            }
            (Ok(round), None) => self.rounds.push((request, round)),
            (Err(Rejection::IdReused), Some((known, _))) => assert_ne!(*known, request),
            (Err(refused), _) => panic!("{refused:?}"),
        }
    }

    /// Each replica of each call has one verdict at last, and behind a failure nothing was touched.
    async fn finish(self, witness: &Witnessed) {
        for (request, round) in &self.rounds {
            round.wait(Duration::from_secs(1_000_000)).await;
            let verdicts: Vec<(&Replica, &ReplicaOutcome)> = round
                .outcomes()
                .map(|(replica, verdict)| {
                    (replica, verdict.unwrap_or_else(|| panic!("{replica} of {request:?}")))
                })
                .collect();
            let asked = verdicts.iter().all(|(replica, _)| request.filter.wants(replica));
            assert!(asked && verdicts.len() == self.view().select(&request.filter).count());
            for (replica, verdict) in &verdicts {
                match verdict {
                    ReplicaOutcome::Active | ReplicaOutcome::Failed(_) => {}
                    ReplicaOutcome::NotAttempted(why) => {
                        let blames =
                            |other: &Replica| why.contains(&format!("the restart of {other} failed"));
                        assert!(
                            verdicts.iter().any(|(other, _)| other != replica && blames(other)),
                            "{replica}: {why}"
                        );
                    }
                    ReplicaOutcome::Abandoned => panic!("{replica} was given up"),
                }
            }
        }
        assert_eq!(witness.judged(), witness.taken.load(Ordering::SeqCst));
        self.restarts.finish(Duration::ZERO).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]
    #[test]
    fn one_at_a_time_and_one_verdict_each(actions in prop::collection::vec(action(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let world = World::default();
            let lease = lease(1);
            world.add_lease(&lease, &[("web", REPLICAS)]);
            for index in 0..REPLICAS {
                world.start(&lease, &replica("web", index));
            }
            let metrics = Exporter::new().unwrap();
            let handles: Metrics = metrics.metrics.clone();
            let witness = Arc::new(Witnessed {
                world: world.clone(),
                metrics,
                taken: AtomicU64::new(0),
                retried: Mutex::default(),
            });
            let restarts = RestartManager::new(Arc::clone(&witness) as Arc<dyn Platform>, handles);
            let mut life = Life { lease, world, restarts, rounds: Vec::new() };
            for action in actions {
                life.act(action).await;
            }
            life.finish(&witness).await;
        });
    }
}
