//! Indices in rollouts, restarts and collisions, and their agreement among gateways.

use proptest::prelude::*;

use super::*;

/// Replicas of the service, which has no surge.
const COUNT: u32 = 3;

fn service() -> ServiceName {
    "web".parse().unwrap()
}

/// A pod in the cluster.
#[derive(Clone, Debug)]
struct Pod {
    created: i64,
    name: String,
    lives: bool,
    has_run: bool,
    written: Option<u32>,
    /// Incremented by each change: a precondition of writes.
    version: usize,
}

/// A gateway and its view of the cluster.
#[derive(Debug, Default)]
struct Gateway {
    pods: BTreeMap<String, Pod>,
    seen: BTreeMap<String, u32>,
}

impl Gateway {
    /// Reads the cluster and numbers its pods.
    fn look(&mut self, cluster: &BTreeMap<String, Pod>) {
        self.pods.clone_from(cluster);
        let service = service();
        let numbered = self.pods.values().map(|pod| Numbered {
            service: &service,
            pods_max: COUNT,
            created: LogTime::from_nanos(pod.created),
            name: &pod.name,
            uid: &pod.name,
            lives: pod.lives,
            is_dying: !pod.lives,
            has_run: pod.has_run,
            ordinal: None,
            claim: pod.written.or(self.seen.get(&pod.name).copied()),
        });
        self.seen = assign(numbered).into_iter().map(|(uid, index)| (uid.to_owned(), index)).collect();
    }

    /// Writes indices on pods that have not changed since it saw them.
    fn write(&self, cluster: &mut BTreeMap<String, Pod>) {
        for (name, index) in &self.seen {
            let seen = &self.pods[name];
            if let Some(pod) = cluster.get_mut(name)
                && pod.version == seen.version
                && seen.lives
                && seen.written != Some(*index)
            {
                (pod.written, pod.version) = (Some(*index), pod.version + 1);
            }
        }
    }

    /// Checks that no two living pods share an index, and that each one that has run has one.
    fn check(&self) {
        let mut taken = BTreeSet::new();
        for pod in self.pods.values().filter(|pod| pod.lives) {
            match self.seen.get(&pod.name) {
                Some(index) => assert!(taken.insert(*index), "index {index} twice: {self:?}"),
                None => assert!(!pod.has_run, "{} has no index: {self:?}", pod.name),
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// A new pod, perhaps with an index that another pod has too, written by an older gateway.
    Create(Option<u32>),
    Run(proptest::sample::Index),
    Die(proptest::sample::Index),
    Remove(proptest::sample::Index),
    Look(bool),
    Write(bool),
    Restart(bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => proptest::option::weighted(0.2, 0..COUNT).prop_map(Op::Create),
        3 => any::<proptest::sample::Index>().prop_map(Op::Run),
        2 => any::<proptest::sample::Index>().prop_map(Op::Die),
        2 => any::<proptest::sample::Index>().prop_map(Op::Remove),
        3 => any::<bool>().prop_map(Op::Look),
        3 => any::<bool>().prop_map(Op::Write),
        1 => any::<bool>().prop_map(Op::Restart),
    ]
}

proptest! {
    /// Two gateways that read, write and restart at any time never give one index to two living pods, and
    /// finally agree.
    #[test]
    fn gateways_agree(ops in proptest::collection::vec(op(), 1..60)) {
        let mut cluster: BTreeMap<String, Pod> = BTreeMap::new();
        let mut gateways = [Gateway::default(), Gateway::default()];
        let pick = |cluster: &BTreeMap<String, Pod>, index: &proptest::sample::Index| {
            (!cluster.is_empty()).then(|| cluster.keys().nth(index.index(cluster.len())).unwrap().clone())
        };
        for (now, op) in (0..).zip(&ops) {
            let mut change = |index, change: &dyn Fn(&mut Pod)| {
                if let Some(name) = pick(&cluster, index) {
                    let pod = cluster.get_mut(&name).unwrap();
                    change(pod);
                    pod.version += 1;
                }
            };
            match op {
                Op::Create(written) => {
                    let name = format!("pod-{now}");
                    let (created, lives, has_run) = (now / 3, true, false);
                    cluster.insert(name.clone(), Pod { created, name, lives, has_run, written: *written, version: 0 });
                }
                Op::Run(index) => change(index, &|pod| pod.has_run = true),
                Op::Die(index) => change(index, &|pod| pod.lives = false),
                Op::Remove(index) => if let Some(name) = pick(&cluster, index) {
                    cluster.remove(&name);
                },
                Op::Look(first) => gateways[usize::from(*first)].look(&cluster),
                Op::Write(first) => gateways[usize::from(*first)].write(&mut cluster),
                Op::Restart(first) => gateways[usize::from(*first)] = Gateway::default(),
            }
            gateways.iter().for_each(Gateway::check);
        }
        for _ in 0..2 {
            for gateway in &mut gateways {
                gateway.look(&cluster);
                gateway.write(&mut cluster);
                gateway.look(&cluster);
            }
        }
        let living = |gateway: &Gateway| -> Vec<(String, u32)> {
            let lives = |name: &String| cluster.get(name).is_some_and(|pod| pod.lives);
            gateway.seen.iter().filter(|(name, _)| lives(name)).map(|(n, i)| (n.clone(), *i)).collect()
        };
        prop_assert_eq!(living(&gateways[0]), living(&gateways[1]));
        gateways.iter().for_each(Gateway::check);
        for (name, index) in living(&gateways[0]) {
            prop_assert_eq!(cluster[&name].written, Some(index), "{} is written", name);
        }
    }
}

/// Assigns indices to pods given by name, creation, whether they live and have run, and claim.
fn assigned(pods_max: u32, pods: &[(&str, i64, bool, bool, Option<u32>)]) -> BTreeMap<String, u32> {
    let service = service();
    let pods = pods.iter().map(|&(name, created, lives, has_run, claim)| Numbered {
        service: &service,
        pods_max,
        created: LogTime::from_nanos(created),
        name,
        uid: name,
        lives,
        is_dying: !lives,
        has_run,
        ordinal: None,
        claim,
    });
    assign(pods).into_iter().map(|(uid, index)| (uid.to_owned(), index)).collect()
}

fn indices<const N: usize>(expected: [(&str, u32); N]) -> BTreeMap<String, u32> {
    expected.into_iter().map(|(name, index)| (name.to_owned(), index)).collect()
}

#[test]
fn replacement_takes_the_index_of_a_dying_pod() {
    let given = assigned(
        3,
        &[("a", 1, true, true, Some(0)), ("b", 2, false, true, Some(1)), ("c", 3, true, false, None)],
    );
    assert_eq!(given, indices([("a", 0), ("b", 1), ("c", 1)]));
    let given = assigned(
        3,
        &[("late", 1, true, false, None), ("early", 1, true, false, None), ("dead", 0, false, false, None)],
    );
    assert_eq!(given, indices([("early", 0), ("late", 1)]));
}

#[test]
fn new_pod_waits_for_the_deletion_that_makes_room() {
    let old = |second_lives| {
        [
            ("old-0", 1, true, true, Some(0)),
            ("old-1", 1, second_lives, true, Some(1)),
            ("old-2", 1, true, true, Some(2)),
        ]
    };
    let with = |lives, has_run, pods_max| {
        assigned(pods_max, &[old(lives).as_slice(), &[("new", 9, true, has_run, None)]].concat())
    };
    let all_old = [("old-0", 0), ("old-1", 1), ("old-2", 2)];
    // The new pod is seen before the deletion: it gets the index of the deleted pod, not the next higher one.
    assert_eq!(with(true, false, 3), indices(all_old));
    assert_eq!(with(false, false, 3)["new"], 1);
    // It runs beside all others, or the surge permits it: it has an index at once.
    assert_eq!(with(true, true, 3)["new"], 3);
    assert_eq!(with(true, false, 4)["new"], 3);
}

#[test]
fn pod_first_seen_running_while_deleted_has_its_own_index() {
    let given = assigned(
        2,
        &[
            ("a", 1, true, true, Some(0)),
            ("b", 2, false, true, Some(2)),
            ("first", 3, false, true, None),
            ("second", 4, false, true, None),
            ("never ran", 5, false, false, None),
            ("new", 6, true, false, None),
        ],
    );
    assert_eq!(given, indices([("a", 0), ("b", 2), ("new", 1), ("first", 3), ("second", 4)]));
}

#[test]
fn older_pod_keeps_an_index_that_is_written_twice() {
    let given = assigned(
        3,
        &[
            ("old-0", 1, true, true, Some(0)),
            ("old-1", 1, true, true, Some(1)),
            ("old-2", 1, false, true, Some(2)),
            ("new", 2, true, true, Some(0)),
        ],
    );
    assert_eq!(given, indices([("old-0", 0), ("old-1", 1), ("old-2", 2), ("new", 2)]));
}

#[test]
fn ordinal_is_not_given_to_another_pod() {
    let service = service();
    let pod = |name, ordinal, claim| Numbered {
        service: &service,
        pods_max: 2,
        created: LogTime::MIN,
        name,
        uid: name,
        lives: true,
        is_dying: false,
        has_run: true,
        ordinal,
        claim,
    };
    let given = assign([pod("web-0", Some(0), None), pod("old", None, Some(0))]);
    assert_eq!(given, BTreeMap::from([("old", 1)]));
}

#[test]
fn missing_pods_keep_replicas_unless_scaled_down() {
    let indices = |held: &[u32], count| {
        of_service(&held.iter().copied().collect(), count).into_iter().collect::<Vec<_>>()
    };
    assert_eq!(indices(&[0, 2], 3), [0, 1, 2]);
    assert_eq!(indices(&[0, 2], 2), [0, 2]);
    assert_eq!(indices(&[], 2), [0, 1]);
    assert_eq!(indices(&[0, 1, 2], 1), [0, 1, 2]);
}
