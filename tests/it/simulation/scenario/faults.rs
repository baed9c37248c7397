//! Faults of connections, the API server, kubelets, the node's disk and the bus of a fleet.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt as _;

use super::super::disk::DiskState;
use super::actions::Action;
use super::{SITES, Scenario};
use crate::fleet::bus::Faults;
use crate::kube::cluster::Kubelets;

impl Scenario {
    /// Disturbs connections, the API server or kubelets.
    pub(super) async fn disturb(&mut self, action: Action) {
        let cluster = self.history.cluster.clone();
        self.fault(action);
        match action {
            Action::BreakLogs => cluster.break_logs(),
            Action::CompleteLogs => cluster.complete_logs(),
            Action::SilenceLogs => cluster.silence_logs(),
            Action::SilenceWatches => cluster.silence_watches(),
            Action::SendMessage => {
                cluster.send_message("unable to retrieve container logs for containerd://x");
            }
            Action::ForgetHistory => cluster.forget_history(),
            Action::Compact => cluster.compact(),
            Action::Bookmark => cluster.bookmark(),
            Action::StopApiServer => cluster.stop().await,
            Action::Kubelets => {
                let state = self.one_of(&[Kubelets::Unreachable, Kubelets::Unaware]);
                cluster.kubelets(state);
                if self.random.random() {
                    cluster.complete_logs();
                }
            }
            Action::Exhaust => cluster.exhaust(true),
            Action::RefuseLogs => {
                let code = self.one_of(&[403_u16, 429, 500, 503]);
                cluster.refuse_logs(Some(hyper::StatusCode::from_u16(code).unwrap()));
            }
            Action::HoldLists => cluster.hold_lists(true),
            _ => {}
        }
    }

    pub(super) fn fault(&mut self, action: Action) {
        *self.outcome.faults.entry(format!("{action:?}")).or_default() += 1;
    }

    /// Ends all faults that do not end by themselves.
    pub(super) async fn heal(&mut self) {
        let cluster = &self.history.cluster;
        cluster.resume().await;
        cluster.kubelets(Kubelets::Serve);
        cluster.exhaust(false);
        cluster.refuse_logs(None);
        cluster.hold_lists(false);
        if let Some(files) = &self.history.files {
            files.disk.set(DiskState::Fast);
        }
        self.heal_bus();
    }

    pub(super) fn heal_bus(&self) {
        if let Some(fleet) = self.world.fleet() {
            fleet.hub.set_faults(Faults::default());
            fleet.hub.set_up(true);
        }
    }

    /// Disturbs the bus of the fleet.
    pub(super) fn disturb_bus(&mut self, action: Action) {
        let site = self.random.random_range(0..SITES);
        let faults = match self.random.random_range(0..5) {
            0 => Faults {
                lost: self.random.random_range(1..300),
                repeated: self.random.random_range(0..200),
                delay: Duration::from_millis(self.random.random_range(0..300)),
                ..Faults::default()
            },
            1 => Faults { no_frames: true, ..Faults::default() },
            2 => Faults { hung: true, ..Faults::default() },
            _ => Faults::default(),
        };
        let is_split = self.random.random();
        let Some(fleet) = self.world.fleet() else { return };
        let (hub, number) = (fleet.hub.clone(), fleet.numbers[site]);
        match action {
            Action::CloseBus => hub.set_up(false),
            _ => match number.filter(|_| faults == Faults::default()) {
                Some(number) if is_split => {
                    hub.set_faults(Faults { sides: BTreeMap::from([(number, 1)]), ..faults });
                }
                Some(number) => hub.set_faults(Faults { cut_off: vec![number], ..faults }),
                None => hub.set_faults(faults),
            },
        }
        self.fault(action);
    }

    /// Disturbs the node's files.
    pub(super) fn disturb_files(&mut self, action: Action) {
        let replica = self.replica();
        let Some((_, run)) = self.any_open_run(replica) else { return };
        let state = self.one_of(&[DiskState::Slow, DiskState::Unreliable, DiskState::Broken]);
        let most = self.random.random_range(1..4);
        let Some(files) = self.history.files.as_mut().filter(|files| files.has(&run)) else { return };
        match action {
            Action::RemoveOldFiles => files.remove_oldest(&run, most),
            Action::AddGarbage => files.add_garbage(&run),
            _ => files.disk.set(state),
        }
        self.fault(action);
    }
}
