//! Which pod is which replica. Pure.
//!
//! A pod of a stateful set has its ordinal. Kubernetes numbers no other pods, so they are numbered here: within each replica set a pod
//! takes the lowest free index in the order of (creation, name) and keeps it while it lives; one that is being deleted, has failed
//! or has succeeded frees its index at once. The index is written on the pod, and what is written counts: so that every gateway, now
//! and after a restart, sees the same number.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::time::LogTime;

/// What counts of a pod that Kubernetes does not number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbered<'a> {
    /// Uid of its replica set.
    pub(super) set: &'a str,
    /// When it was made.
    pub(super) created: LogTime,
    /// Its name.
    pub(super) name: &'a str,
    /// Its uid.
    pub(super) uid: &'a str,
    /// Whether it lives.
    pub(super) lives: bool,
    /// The index that is written on it, or that it was seen to have.
    pub(super) claim: Option<u32>,
}

/// The index of each pod, by uid. One that does not live and has no claim has none.
pub(super) fn assign<'a>(pods: impl IntoIterator<Item = Numbered<'a>>) -> BTreeMap<&'a str, u32> {
    let mut pods: Vec<Numbered<'a>> = pods.into_iter().collect();
    pods.sort_by_key(|pod| (pod.set, pod.created, pod.name));
    let mut given = BTreeMap::new();
    for set in pods.chunk_by(|one, other| one.set == other.set) {
        let mut taken = BTreeSet::new();
        for pod in set {
            match pod.claim {
                // Its log is read to its end in that slot, whoever has it now.
                Some(claim) if !pod.lives => {
                    given.insert(pod.uid, claim);
                }
                // Of two that claim the same, the older one keeps it.
                Some(claim) if taken.insert(claim) => {
                    given.insert(pod.uid, claim);
                }
                _ => {}
            }
        }
        for pod in set.iter().filter(|pod| pod.lives) {
            if !given.contains_key(pod.uid)
                && let Some(free) = (0..=u32::MAX).find(|index| !taken.contains(index))
            {
                taken.insert(free);
                given.insert(pod.uid, free);
            }
        }
    }
    given
}

/// The slots of a service whose pods have the indices `held`, if there ought to be `count`: those, and for as many as are missing the
/// lowest that are free. A pod that is missing is one that comes in a moment; after a scale-down none is missing.
pub(super) fn slots(held: &BTreeSet<u32>, count: u32) -> BTreeSet<u32> {
    let mut slots = held.clone();
    let missing = (count as usize).saturating_sub(held.len());
    slots.extend((0..=u32::MAX).filter(|index| !held.contains(index)).take(missing));
    slots
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A pod as the cluster has it.
    #[derive(Clone, Debug)]
    struct Pod {
        set: &'static str,
        created: i64,
        name: String,
        lives: bool,
        written: Option<u32>,
    }

    /// What one gateway knows.
    #[derive(Debug, Default)]
    struct Gateway {
        pods: BTreeMap<String, Pod>,
        seen: BTreeMap<String, u32>,
    }

    impl Gateway {
        /// Looks at the cluster, and numbers what it sees.
        fn look(&mut self, cluster: &BTreeMap<String, Pod>) {
            self.pods.clone_from(cluster);
            let numbered = self.pods.values().map(|pod| Numbered {
                set: pod.set,
                created: LogTime::from_nanos(pod.created),
                name: &pod.name,
                uid: &pod.name,
                lives: pod.lives,
                claim: pod.written.or(self.seen.get(&pod.name).copied()),
            });
            let given = assign(numbered).into_iter().map(|(uid, index)| (uid.to_owned(), index)).collect();
            self.seen = given;
        }

        /// Writes what it has seen on a pod that is as it was seen: a precondition.
        fn write(&self, cluster: &mut BTreeMap<String, Pod>) {
            for (name, index) in &self.seen {
                let seen = &self.pods[name];
                if let Some(pod) = cluster.get_mut(name)
                    && pod.lives
                    && pod.written.is_none()
                    && seen.written.is_none()
                {
                    pod.written = Some(*index);
                }
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Create(bool),
        Die(proptest::sample::Index),
        Remove(proptest::sample::Index),
        Look(bool),
        Write(bool),
        Restart(bool),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => any::<bool>().prop_map(Op::Create),
            2 => any::<proptest::sample::Index>().prop_map(Op::Die),
            2 => any::<proptest::sample::Index>().prop_map(Op::Remove),
            3 => any::<bool>().prop_map(Op::Look),
            3 => any::<bool>().prop_map(Op::Write),
            1 => any::<bool>().prop_map(Op::Restart),
        ]
    }

    proptest! {
        /// Two gateways that look at any time, write at any time and are restarted at any time agree in the end, no two pods of a set
        /// that live have the same index, and a pod keeps the index that was written on it.
        #[test]
        fn gateways_agree(ops in proptest::collection::vec(op(), 1..60)) {
            let mut cluster: BTreeMap<String, Pod> = BTreeMap::new();
            let mut gateways = [Gateway::default(), Gateway::default()];
            let mut written: BTreeMap<String, u32> = BTreeMap::new();
            let pick = |cluster: &BTreeMap<String, Pod>, index: &proptest::sample::Index| {
                (!cluster.is_empty()).then(|| cluster.keys().nth(index.index(cluster.len())).unwrap().clone())
            };
            for (now, op) in (0..).zip(&ops) {
                match op {
                    Op::Create(first) => {
                        let set = if *first { "a" } else { "b" };
                        let name = format!("pod-{now}");
                        let pod = Pod { set, created: now / 3, name: name.clone(), lives: true, written: None };
                        cluster.insert(name, pod);
                    }
                    Op::Die(index) => if let Some(name) = pick(&cluster, index) {
                        cluster.get_mut(&name).unwrap().lives = false;
                    },
                    Op::Remove(index) => if let Some(name) = pick(&cluster, index) {
                        cluster.remove(&name);
                    },
                    Op::Look(first) => gateways[usize::from(*first)].look(&cluster),
                    Op::Write(first) => {
                        let gateway = &gateways[usize::from(*first)];
                        gateway.write(&mut cluster);
                    }
                    Op::Restart(first) => gateways[usize::from(*first)] = Gateway::default(),
                }
                for (name, pod) in &cluster {
                    if let Some(index) = pod.written {
                        prop_assert_eq!(*written.entry(name.clone()).or_insert(index), index);
                    }
                }
            }
            for _ in 0..2 {
                for gateway in &mut gateways {
                    gateway.look(&cluster);
                    gateway.write(&mut cluster);
                    gateway.look(&cluster);
                }
            }
            let alive = |gateway: &Gateway| -> Vec<(String, u32)> {
                let lives = |name: &String| cluster.get(name).is_some_and(|pod| pod.lives);
                gateway.seen.iter().filter(|(name, _)| lives(name)).map(|(n, i)| (n.clone(), *i)).collect()
            };
            let (one, other) = (alive(&gateways[0]), alive(&gateways[1]));
            prop_assert_eq!(&one, &other);
            let mut taken = BTreeSet::new();
            for (name, index) in &one {
                prop_assert!(taken.insert((cluster[name].set, *index)), "{} twice", index);
            }
            prop_assert_eq!(one.len(), cluster.values().filter(|pod| pod.lives).count());
        }
    }

    fn pod(name: &str, created: i64, lives: bool, claim: Option<u32>) -> Numbered<'_> {
        Numbered { set: "set", created: LogTime::from_nanos(created), name, uid: name, lives, claim }
    }

    #[test]
    fn a_replacement_takes_the_place_that_was_freed() {
        let given =
            assign([pod("a", 1, true, Some(0)), pod("b", 2, false, Some(1)), pod("c", 3, true, None)]);
        assert_eq!(given, BTreeMap::from([("a", 0), ("b", 1), ("c", 1)]));
        let given =
            assign([pod("late", 1, true, None), pod("early", 1, true, None), pod("dead", 0, false, None)]);
        assert_eq!(given, BTreeMap::from([("early", 0), ("late", 1)]));
    }

    #[test]
    fn missing_pods_have_slots_and_holes_after_a_scale_down_have_none() {
        let slots = |held: &[u32], count| {
            slots(&held.iter().copied().collect(), count).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(slots(&[0, 2], 3), [0, 1, 2]);
        assert_eq!(slots(&[0, 2], 2), [0, 2]);
        assert_eq!(slots(&[], 2), [0, 1]);
        assert_eq!(slots(&[0, 1, 2], 1), [0, 1, 2]);
    }
}
