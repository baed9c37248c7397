//! The environments of the platform tests, and how to control them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use leasemux::model::id::LeaseId;
use leasemux::platform::Platform;
use leasemux::platform::kube::KubePlatform;
use leasemux::platform::local::attached::AttachedPlatform;
use leasemux::platform::local::sdl::Sdl;
use leasemux::platform::local::{Backoff, LocalConfig, LocalOptions, LocalPlatform};
use leasemux::platform::node::NodePlatform;
use leasemux::sys::dir_watch::Notifier;
use tempfile::TempDir;

use super::{SERVICE, STUCK};
use crate::kube::cluster::{self, RunKey};
use crate::kube::connect;

/// A platform with one lease, whose service prints given lines.
pub(super) trait Environment: Sized {
    /// Starts replicas of the service, and a service that cannot start if `stuck`.
    async fn start(lease: &LeaseId, replicas: u32, stuck: bool) -> Self;

    fn platform(&self) -> Arc<dyn Platform>;

    /// The current run of a replica, or the next one after [`Self::crash`], prints these lines.
    fn print(&mut self, index: u32, lines: &[String]);

    /// The current run ends with exit code 3, and the next one begins.
    fn crash(&mut self, index: u32);

    /// Makes all lines printed so far unreadable soon. Returns the lines that were printed to achieve that.
    fn rotate(&mut self, index: u32) -> Vec<String>;

    /// Starts the next run after a restart request, if the platform does not do so itself.
    async fn replace(&mut self, index: u32);

    /// Ends everything under the lease.
    async fn end(&mut self);
}

/// This machine: shells that print the lines of a pipe.
pub(super) struct Machine {
    platform: Arc<LocalPlatform>,
    pipes: Vec<File>,
    dir: TempDir,
}

/// The same, read by a second gateway.
pub(super) struct Attached {
    machine: Machine,
    platform: Arc<AttachedPlatform>,
}

/// An API server within the test.
pub(super) struct Cluster {
    api: cluster::Cluster,
    platform: Arc<KubePlatform>,
    lease: LeaseId,
    /// The current run of each replica.
    runs: BTreeMap<u32, RunKey>,
    _dir: TempDir,
}

/// The same, but the logs are files of this node.
pub(super) struct Node {
    cluster: Cluster,
    platform: Arc<NodePlatform>,
    logs: TempDir,
    /// Number of lines printed so far. Each has a distinct time.
    lines: i64,
}

/// Time of the first line: half a second after the containers' start.
const FIRST_LINE_NANOS: i64 = 1_795_564_800_500_000_000;

/// Size at which the machine's logs are rotated: more than tests print, except to cause a rotation.
const ROTATE_MAX_BYTES: u64 = 16 * 1024;

// === impl Machine ===

impl Environment for Machine {
    async fn start(lease: &LeaseId, replicas: u32, stuck: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script =
            "exec 3<>pipe; while read -r line <&3; do [ \"$line\" = crash ] && exit 3; echo \"$line\"; done";
        let mut services = serde_json::json!({ SERVICE: { "command": ["sh", "-c", script] } });
        let mut deployment = serde_json::json!({ SERVICE: { "here": { "count": replicas } } });
        if stuck {
            services[STUCK] = serde_json::json!({ "command": ["/no/such/program"] });
            deployment[STUCK] = serde_json::json!({ "here": { "count": 1 } });
        }
        // JSON is YAML.
        let sdl = serde_json::json!({ "version": "2.0", "services": services, "deployment": deployment });
        let sdl = Sdl::parse(&sdl.to_string()).unwrap();
        let pipe = |index| {
            let home = dir.path().join(format!("data/home/{}_{SERVICE}-{index}", lease.namespace()));
            std::fs::create_dir_all(&home).unwrap();
            assert!(Command::new("mkfifo").arg(home.join("pipe")).status().unwrap().success());
            // Also open for reading, so that it always has a reader and keeps its content.
            File::options().read(true).write(true).open(home.join("pipe")).unwrap()
        };
        let pipes = (0..replicas).map(pipe).collect();
        // A service that cannot start is not to be restarted repeatedly.
        let first = if stuck { Duration::from_secs(600) } else { Duration::from_millis(10) };
        let config = LocalConfig {
            exe: env!("CARGO_BIN_EXE_leasemux").into(),
            backoff: Backoff { first, longest: first, reset_after: Duration::from_secs(600) },
            options: LocalOptions {
                rotate_max_bytes: ROTATE_MAX_BYTES,
                rotate_files: 2,
                ..LocalOptions::default()
            },
            ..LocalConfig::new(dir.path().join("data"), vec![(lease.clone(), sdl)])
        };
        Self { platform: LocalPlatform::start(config, Notifier::start()).unwrap(), pipes, dir }
    }

    fn platform(&self) -> Arc<dyn Platform> {
        Arc::clone(&self.platform) as Arc<dyn Platform>
    }

    fn print(&mut self, index: u32, lines: &[String]) {
        let text = lines.join("\n") + "\n";
        self.pipes[index as usize].write_all(text.as_bytes()).unwrap();
    }

    fn crash(&mut self, index: u32) {
        self.print(index, &["crash".to_owned()]);
    }

    fn rotate(&mut self, index: u32) -> Vec<String> {
        let filler = "x".repeat(1_000);
        let lines: Vec<String> = (0..3 * ROTATE_MAX_BYTES / 1_000).map(|n| format!("{n} {filler}")).collect();
        self.print(index, &lines);
        lines
    }

    async fn replace(&mut self, _index: u32) {}

    async fn end(&mut self) {
        self.platform.stop(Duration::ZERO).await;
    }
}

// === impl Attached ===

impl Environment for Attached {
    async fn start(lease: &LeaseId, replicas: u32, stuck: bool) -> Self {
        let machine = Machine::start(lease, replicas, stuck).await;
        let data_dir = machine.dir.path().join("data");
        let platform = AttachedPlatform::start(&data_dir, Notifier::start()).await.unwrap();
        Self { machine, platform }
    }

    fn platform(&self) -> Arc<dyn Platform> {
        Arc::clone(&self.platform) as Arc<dyn Platform>
    }

    fn print(&mut self, index: u32, lines: &[String]) {
        self.machine.print(index, lines);
    }

    fn crash(&mut self, index: u32) {
        self.machine.crash(index);
    }

    fn rotate(&mut self, index: u32) -> Vec<String> {
        self.machine.rotate(index)
    }

    async fn replace(&mut self, _index: u32) {}

    async fn end(&mut self) {
        self.machine.end().await;
    }
}

// === impl Cluster ===

impl Environment for Cluster {
    async fn start(lease: &LeaseId, replicas: u32, stuck: bool) -> Self {
        let (api, dir) = (cluster::Cluster::start().await, tempfile::tempdir().unwrap());
        let platform = connect(&api, &dir).await.unwrap();
        api.lease(lease, SERVICE, replicas);
        // Of equal age, so that names determine the replica numbers.
        let runs = (0..replicas).map(|index| (index, api.run(lease, SERVICE, &format!("pod-{index}"), 0)));
        let runs = runs.collect();
        if stuck {
            api.lease(lease, STUCK, 1);
            api.stuck(lease, STUCK, "pod-stuck");
        }
        Self { api, platform, lease: lease.clone(), runs, _dir: dir }
    }

    fn platform(&self) -> Arc<dyn Platform> {
        Arc::clone(&self.platform) as Arc<dyn Platform>
    }

    fn print(&mut self, index: u32, lines: &[String]) {
        self.api.print_lines(&self.runs[&index], lines, 1_000);
    }

    fn crash(&mut self, index: u32) {
        let run = &self.runs[&index];
        let next = self.api.crash(&self.lease, Self::pod(run), run);
        self.runs.insert(index, next);
    }

    fn rotate(&mut self, index: u32) -> Vec<String> {
        self.api.rotate(&self.runs[&index]);
        Vec::new()
    }

    /// Acts as the deployment controller.
    async fn replace(&mut self, index: u32) {
        let pod = format!("{}-next", Self::pod(&self.runs[&index]));
        let run = self.api.run(&self.lease, SERVICE, &pod, 0);
        self.runs.insert(index, run);
    }

    async fn end(&mut self) {
        let namespace = self.lease.namespace();
        for run in self.runs.values() {
            self.api.end(run);
            self.api.remove("pods", &namespace, Self::pod(run), false);
        }
        self.api.remove("deployments", &namespace, SERVICE, false);
        self.api.remove("namespaces", "", &namespace, false);
    }
}

impl Cluster {
    fn pod(run: &RunKey) -> &str {
        run.0.strip_prefix("uid-").unwrap()
    }
}

// === impl Node ===

impl Environment for Node {
    async fn start(lease: &LeaseId, replicas: u32, stuck: bool) -> Self {
        let (cluster, logs) = (Cluster::start(lease, replicas, stuck).await, tempfile::tempdir().unwrap());
        let kube = Arc::clone(&cluster.platform);
        let platform = NodePlatform::new(kube, Notifier::start(), "node1".into(), logs.path().into());
        let node = Self { cluster, platform: Arc::new(platform), logs, lines: 0 };
        for run in node.cluster.runs.values() {
            node.create(run);
        }
        node
    }

    fn platform(&self) -> Arc<dyn Platform> {
        Arc::clone(&self.platform) as Arc<dyn Platform>
    }

    fn print(&mut self, index: u32, lines: &[String]) {
        let mut text = String::new();
        for line in lines {
            self.lines += 1;
            let time = jiff::Timestamp::from_nanosecond((FIRST_LINE_NANOS + self.lines).into()).unwrap();
            text.extend([&format!("{time:.9}"), " stdout F ", line, "\n"]);
        }
        let file = self.file(&self.cluster.runs[&index]);
        File::options().append(true).open(file).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn crash(&mut self, index: u32) {
        let (uid, container, number) = self.cluster.runs[&index].clone();
        self.create(&(uid, container, number + 1));
        self.cluster.crash(index);
    }

    fn rotate(&mut self, index: u32) -> Vec<String> {
        let file = self.file(&self.cluster.runs[&index]);
        let rotated = file.with_extension("log.20261125-000001");
        std::fs::rename(&file, &rotated).unwrap();
        File::create(&file).unwrap();
        std::fs::remove_file(rotated).unwrap();
        Vec::new()
    }

    async fn replace(&mut self, index: u32) {
        let old = self.file(&self.cluster.runs[&index]);
        self.cluster.replace(index).await;
        self.create(&self.cluster.runs[&index]);
        // The kubelet removes the logs of a pod that is gone.
        std::fs::remove_dir_all(old.parent().unwrap()).unwrap();
    }

    async fn end(&mut self) {
        self.cluster.end().await;
    }
}

impl Node {
    /// Returns the kubelet's log file of a run.
    fn file(&self, run: &RunKey) -> PathBuf {
        let (uid, container, number) = run;
        let pod = format!("{}_{}_{uid}", self.cluster.lease.namespace(), Cluster::pod(run));
        self.logs.path().join(pod).join(container).join(format!("{number}.log"))
    }

    fn create(&self, run: &RunKey) {
        let file = self.file(run);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        File::create(file).unwrap();
    }
}
