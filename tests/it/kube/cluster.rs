//! A Kubernetes API server inside the test: lists, watches, logs, deletions with preconditions, access
//! reviews; and the faults of real ones and of kubelets.

mod coordination;
mod events;
mod rollout;
mod server;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use leasemux::model::id::LeaseId;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::events::EventRequests;
pub(crate) use self::rollout::LogAnswer;
use self::server::Listener;
pub(crate) use self::server::Pipe;

type Body = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

/// Identifies a run: pod uid, container, number.
pub(crate) type RunKey = (String, String, u32);

/// The API server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    state: Arc<Mutex<State>>,
    /// Counts changes.
    changed: watch::Sender<u64>,
    pub(crate) address: SocketAddr,
    listener: Arc<Listener>,
    _server: Arc<AbortOnDropHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    /// Watches of an older version get an error.
    oldest: u64,
    /// Incremented to end all watches.
    age: u64,
    /// Number of requested bookmarks, and the version in the last one.
    bookmark: (u64, u64),
    bookmarks_sent: usize,
    lists: usize,
    lists_of_pods: usize,
    /// Whether lists get no response for now.
    holds_lists: bool,
    objects: BTreeMap<(String, String), Value>,
    /// (version, kind, event, object)
    history: Vec<(u64, String, &'static str, Value)>,
    logs: BTreeMap<RunKey, Log>,
    /// Second in which the first run of a pod begins, by uid, if it is not the usual one.
    starts: BTreeMap<String, i64>,
    denied: BTreeSet<(String, String)>,
    /// Incremented to break or complete all log responses.
    broken: u64,
    completed: u64,
    /// Incremented to silence all log responses or watches: neither data nor an end comes.
    silent: u64,
    silent_watches: u64,
    /// Message of the next log response, in place of lines.
    message: Option<String>,
    follows: usize,
    /// The same per pod, by uid.
    follows_by_pod: BTreeMap<String, usize>,
    /// Responses of kubelets for the logs of pods that are being deleted, by uid.
    answers: BTreeMap<String, LogAnswer>,
    kubelets: Kubelets,
    /// No kubelet has a free inotify instance: follows end with a message.
    exhausted: bool,
    /// Runs that kubelets have not reported, by pod.
    unreported: BTreeMap<String, u64>,
    /// Requests of all kinds, and of logs, successful or not.
    requests: usize,
    log_requests: usize,
    /// Status of refused log requests, if they are refused.
    logs_refused: Option<StatusCode>,
    /// Status of refused patches, if they are refused, and their number.
    patches: Option<StatusCode>,
    patches_refused: usize,
    /// Names of the pods whose logs were opened.
    logs_opened: Vec<String>,
    /// Number of last lines that the requests for opened logs asked for.
    tails_asked: Vec<Option<usize>>,
    deleted: Vec<String>,
    asked_since: usize,
    /// The provider's own kinds that are not installed, by plural.
    missing_kinds: BTreeSet<&'static str>,
    /// Requests for the installed kinds.
    kind_requests: usize,
    events: EventRequests,
}

/// State of the kubelets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kubelets {
    #[default]
    Serve,
    /// They cannot be reached.
    Unreachable,
    /// They have just started and do not know their pods.
    Unaware,
    /// They are halted: requests get no response, and open ones no end.
    Halted,
}

#[derive(Debug, Default)]
struct Log {
    lines: Vec<(i64, String)>,
    /// Index of the first line of the newest file.
    file: usize,
    ended: bool,
    /// How often its kubelet lagged, and the last time.
    lagged: (u64, Lag),
    /// Lines of files that were left out.
    left_out: Vec<Range<usize>>,
}

/// A kubelet that lagged with a log.
#[derive(Clone, Debug, Default)]
struct Lag {
    /// The end of the file that it was reading.
    end: usize,
    /// The newest file at that time.
    newest: Range<usize>,
    /// How often it opens that file again.
    repeats: usize,
}

/// Progress of a log response.
#[derive(Debug)]
struct Sent {
    next: usize,
    /// Sent before `next`.
    parts: VecDeque<Range<usize>>,
    /// How often its kubelet had lagged.
    lagged: u64,
    over: bool,
}

/// Message of a kubelet without inotify instances, at the end of a follow.
const CANNOT_FOLLOW: &str = "failed to create fsnotify watcher: too many open files";

/// Counts an open follow, until it is dropped.
struct Follow(Cluster, String);

impl Cluster {
    pub(crate) async fn start() -> Self {
        let cluster = Self::stopped();
        cluster.resume().await;
        cluster
    }

    /// Creates a server that refuses connections until it is resumed.
    pub(crate) fn stopped() -> Self {
        let tasks = TaskTracker::new();
        let idle = AbortOnDropHandle::new(tasks.spawn(std::future::pending::<()>()));
        let within = Self::on(Listener::tcp(), idle);
        let cluster = within.clone();
        let server = tasks.spawn(async move {
            within.listener.keep(|socket| within.clone().serve(socket)).await;
        });
        Self { _server: Arc::new(AbortOnDropHandle::new(server)), ..cluster }
    }

    /// Creates a server in memory, for [`Cluster::connect`].
    pub(crate) async fn in_memory() -> Self {
        let idle = AbortOnDropHandle::new(TaskTracker::new().spawn(std::future::pending::<()>()));
        let cluster = Self::on(Listener::Memory(std::sync::Mutex::default()), idle);
        cluster.resume().await;
        cluster
    }

    fn on(listener: Listener, server: AbortOnDropHandle<()>) -> Self {
        let state = Arc::new(Mutex::new(State { version: 100, ..State::default() }));
        let address = listener.address();
        let (changed, listener) = (watch::Sender::new(0), Arc::new(listener));
        Self { state, changed, address, listener, _server: Arc::new(server) }
    }

    async fn serve(self, socket: impl AsyncRead + AsyncWrite + Unpin) {
        let service = hyper::service::service_fn(move |request| {
            let cluster = self.clone();
            async move { Ok::<_, Infallible>(cluster.answer(request).await) }
        });
        let server = hyper::server::conn::http1::Builder::new();
        _ = server.serve_connection(TokioIo::new(socket), service).await;
    }

    /// Connects to a server in memory.
    pub(crate) fn connect(&self) -> std::io::Result<Pipe> {
        self.listener.connect(|socket| self.clone().serve(socket))
    }

    /// Cuts all connections and refuses new ones.
    pub(crate) async fn stop(&self) {
        self.listener.set(false).await;
    }

    /// Accepts connections again.
    pub(crate) async fn resume(&self) {
        self.listener.set(true).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_modify(|count| *count += 1);
        result
    }

    /// Creates or replaces an object; `kind` is the plural.
    pub(crate) fn put(&self, kind: &str, object: Value) {
        self.change(|state| state.put(kind, object));
    }

    /// Removes an object; `quietly` without an event.
    pub(crate) fn remove(&self, kind: &str, namespace: &str, name: &str, quietly: bool) {
        self.change(|state| state.remove(kind, namespace, name, quietly));
    }

    /// Creates the namespace of a lease, with a deployment of `count` replicas.
    pub(crate) fn lease(&self, lease: &LeaseId, service: &str, count: u32) -> String {
        let namespace = lease.namespace();
        let labels = json!({
            "akash.network": "true",
            "akash.network/lease.id.owner": lease.owner().as_str(),
            "akash.network/lease.id.dseq": lease.dseq().to_string(),
            "akash.network/lease.id.gseq": lease.gseq().to_string(),
            "akash.network/lease.id.oseq": lease.oseq().to_string(),
            "akash.network/lease.id.provider": lease.provider().as_str(),
        });
        self.put(
            "namespaces",
            json!({ "metadata": { "name": namespace, "uid": format!("uid-{namespace}"), "labels": labels } }),
        );
        self.put(
            "deployments",
            json!({
                "metadata": { "name": service, "namespace": namespace, "generation": 1,
                    "labels": { "akash.network": "true", "akash.network/manifest-service": service } },
                "spec": { "replicas": count, "selector": {}, "template": {},
                    "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 0, "maxUnavailable": 1 } } },
                "status": { "observedGeneration": 1, "replicas": count, "readyReplicas": count,
                    "updatedReplicas": count, "availableReplicas": count },
            }),
        );
        namespace
    }

    /// Creates a running pod on `node1`, or on `node2` if its name begins with "far". Returns its run number
    /// `restarts`.
    pub(crate) fn run(&self, lease: &LeaseId, service: &str, pod: &str, restarts: u32) -> RunKey {
        let uid = format!("uid-{pod}");
        let node = node_of(pod);
        let last = if restarts == 0 { json!({}) } else { terminated(FIRST_START, restarts - 1, 3) };
        self.put(
            "pods",
            json!({
                "metadata": { "name": pod, "namespace": lease.namespace(), "uid": uid, "creationTimestamp": "2026-11-25T00:00:00Z",
                    "labels": { "akash.network": "true", "akash.network/manifest-service": service },
                    "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "set", "uid": "set", "controller": true }] },
                "spec": { "containers": [], "nodeName": node },
                "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }],
                    "containerStatuses": [{ "name": service, "image": "", "imageID": "", "ready": true, "restartCount": restarts,
                        "containerID": format!("containerd://{restarts}"), "lastState": last,
                        "state": running(FIRST_START, restarts) }] },
            }),
        );
        let key = (uid, service.to_owned(), restarts);
        self.change(|state| {
            state.logs.entry(key.clone()).or_default();
        });
        key
    }

    /// Ends a run and starts the next one, without a report of the kubelet.
    pub(crate) fn crash_unreported(&self, run: &RunKey) -> RunKey {
        self.end(run);
        let next = (run.0.clone(), run.1.clone(), run.2 + 1);
        self.change(|state| {
            state.logs.insert(next.clone(), Log::default());
            state.unreported.insert(next.0.clone(), next.2.into());
        });
        next
    }

    /// Number of opened logs of a pod.
    pub(crate) fn logs_opened_of(&self, pod: &str) -> usize {
        self.lock().logs_opened.iter().filter(|opened| *opened == pod).count()
    }

    /// Ends a run and starts the next one.
    pub(crate) fn crash(&self, lease: &LeaseId, pod: &str, run: &RunKey) -> RunKey {
        self.end(run);
        self.run(lease, &run.1, pod, run.2 + 1)
    }

    /// Creates a pod that cannot start.
    pub(crate) fn stuck(&self, lease: &LeaseId, service: &str, pod: &str) {
        let waiting = json!({ "waiting": { "reason": "ImagePullBackOff", "message": "no such image" } });
        self.put(
            "pods",
            json!({
                "metadata": { "name": pod, "namespace": lease.namespace(), "uid": format!("uid-{pod}"),
                    "creationTimestamp": "2026-11-25T00:00:00Z",
                    "labels": { "akash.network": "true", "akash.network/manifest-service": service },
                    "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "other", "uid": "other", "controller": true }] },
                "spec": { "containers": [], "nodeName": "node1" },
                "status": { "phase": "Pending", "containerStatuses": [{ "name": service, "image": "", "imageID": "", "ready": false,
                    "restartCount": 0, "state": waiting }] },
            }),
        );
    }

    /// Prints `lines` lines, each `step` nanoseconds after the previous one.
    pub(crate) fn print(&self, run: &RunKey, lines: usize, step: i64) {
        let from = self.printed(run).len();
        let lines: Vec<String> = (from..from + lines).map(|n| format!("{}/{n}", run.2)).collect();
        self.print_lines(run, &lines, step);
    }

    /// Returns how many last lines each request for an opened log asked for; `None`: the whole file.
    pub(crate) fn tails_asked(&self) -> Vec<Option<usize>> {
        self.lock().tails_asked.clone()
    }

    /// Prints these lines.
    pub(crate) fn print_lines(&self, run: &RunKey, lines: &[String], step: i64) {
        let start = self.first_start(&run.0);
        self.change(|state| {
            let log = &mut state.logs.get_mut(run).unwrap().lines;
            for line in lines {
                // Half a second after the container's start.
                let first = started(start, run.2) * 1_000_000_000 + 500_000_000 + step.max(0);
                let time = log.last().map_or(first, |(time, _)| *time + step);
                log.push((time, line.clone()));
            }
        });
    }

    /// Ends a run.
    pub(crate) fn end(&self, run: &RunKey) {
        self.change(|state| state.logs.get_mut(run).unwrap().ended = true);
    }

    /// All lines of a run.
    pub(crate) fn printed(&self, run: &RunKey) -> Vec<String> {
        self.lock().logs[run].lines.iter().map(|(_, text)| text.clone()).collect()
    }

    /// All lines of a run, as its runtime writes them to a file.
    pub(crate) fn records(&self, run: &RunKey) -> Vec<String> {
        let record = |(time, text): &(i64, String)| {
            let stamp = jiff::Timestamp::from_nanosecond((*time).into()).unwrap();
            format!("{stamp} stdout F {text}\n")
        };
        self.lock().logs[run].lines.iter().map(record).collect()
    }

    /// Returns line `index` of a run, if it was printed.
    pub(crate) fn line(&self, run: &RunKey, index: usize) -> Option<String> {
        self.lock().logs.get(run)?.lines.get(index).map(|(_, text)| text.clone())
    }

    /// Returns time and text of line `index` of a run, as a log file has them.
    pub(crate) fn stamped_line(&self, run: &RunKey, index: usize) -> (String, String) {
        let (time, text) = self.lock().logs[run].lines[index].clone();
        (jiff::Timestamp::from_nanosecond(time.into()).unwrap().to_string(), text)
    }

    /// Returns the number of lines of a run, and the index of the first one in the newest file.
    pub(crate) fn extent(&self, run: &RunKey) -> (usize, usize) {
        let state = self.lock();
        (state.logs[run].lines.len(), state.logs[run].file)
    }

    /// Begins a new file. Older ones can no longer be read.
    pub(crate) fn rotate(&self, run: &RunKey) {
        self.change(|state| {
            let log = state.logs.get_mut(run).unwrap();
            log.file = log.lines.len();
        });
    }

    /// Lets the kubelet lag with this log while the run prints `rest` lines into the present file, some into
    /// each file that is left out, and `newest` into the newest one.
    pub(crate) fn lag(&self, run: &RunKey, rest: usize, left_out: &[usize], newest: usize, step: i64) {
        self.change(|state| {
            let log = state.logs.get_mut(run).unwrap();
            let name = log.lines.last().and_then(|(_, text)| text.split('/').next()).map(str::to_owned);
            let name = name.unwrap_or_else(|| run.2.to_string());
            let mut print = |lines: usize| {
                let from = log.lines.len();
                for n in from..from + lines {
                    let time = log.lines.last().map_or(0, |(time, _)| *time) + step;
                    log.lines.push((time, format!("{name}/{n}")));
                }
                from..log.lines.len()
            };
            let end = print(rest).end;
            let left: Vec<Range<usize>> = left_out.iter().map(|lines| print(*lines)).collect();
            let newest = print(newest);
            log.file = newest.start;
            log.lagged = (log.lagged.0 + 1, Lag { end, newest, repeats: left.len() });
            log.left_out.extend(left);
        });
    }

    /// Lines of a log that kubelets left out.
    pub(crate) fn left_out(&self, run: &RunKey) -> Vec<Range<usize>> {
        self.lock().logs[run].left_out.clone()
    }

    /// Sets whether the inotify instances of all nodes are used up.
    pub(crate) fn exhaust(&self, exhausted: bool) {
        self.change(|state| state.exhausted = exhausted);
    }

    /// Breaks all log responses, as when an API server is killed.
    pub(crate) fn break_logs(&self) {
        self.change(|state| state.broken += 1);
    }

    /// Completes all log responses, as when a kubelet is stopped.
    pub(crate) fn complete_logs(&self) {
        self.change(|state| state.completed += 1);
    }

    /// Sets the state of the kubelets.
    pub(crate) fn kubelets(&self, kubelets: Kubelets) {
        self.change(|state| state.kubelets = kubelets);
    }

    /// Sets whether lists get no response.
    pub(crate) fn hold_lists(&self, holds: bool) {
        self.change(|state| state.holds_lists = holds);
    }

    /// Refuses log requests with this status.
    pub(crate) fn refuse_logs(&self, with: Option<StatusCode>) {
        self.change(|state| state.logs_refused = with);
    }

    /// Refuses patches of pods with this status.
    pub(crate) fn refuse_patches(&self, with: Option<StatusCode>) {
        self.change(|state| state.patches = with);
    }

    /// Number of refused patches.
    pub(crate) fn patches_refused(&self) -> usize {
        self.lock().patches_refused
    }

    /// Number of requests so far.
    pub(crate) fn requests(&self) -> usize {
        self.lock().requests
    }

    /// Number of log requests, successful or not.
    pub(crate) fn log_requests(&self) -> usize {
        self.lock().log_requests
    }

    /// Installs or uninstalls one of the provider's kinds.
    pub(crate) fn set_installed(&self, plural: &'static str, installed: bool) {
        self.change(|state| {
            if installed { state.missing_kinds.remove(plural) } else { state.missing_kinds.insert(plural) }
        });
    }

    /// Number of requests for the installed kinds.
    pub(crate) fn kind_requests(&self) -> usize {
        self.lock().kind_requests
    }

    /// Sends this message in place of the next log response.
    pub(crate) fn send_message(&self, message: &str) {
        self.change(|state| state.message = Some(message.to_owned()));
    }

    /// Whether the message was not sent yet.
    pub(crate) fn has_message(&self) -> bool {
        self.lock().message.is_some()
    }

    /// Ends all watches, whose versions are too old then.
    pub(crate) fn forget_history(&self) {
        self.change(|state| {
            state.history.clear();
            state.version += 1;
            state.oldest = state.version;
            state.age += 1;
        });
    }

    /// Ends all watches. Versions before the present one are too old then.
    pub(crate) fn compact(&self) {
        self.change(|state| {
            state.oldest = state.version;
            state.age += 1;
        });
    }

    /// Sends a bookmark to all watches.
    pub(crate) fn bookmark(&self) {
        self.change(|state| state.bookmark = (state.bookmark.0 + 1, state.version));
    }

    /// Numbers of sent bookmarks and of requested lists.
    pub(crate) fn bookmarks_and_lists(&self) -> (usize, usize) {
        let state = self.lock();
        (state.bookmarks_sent, state.lists)
    }

    /// Number of requested lists of pods.
    pub(crate) fn lists_of_pods(&self) -> usize {
        self.lock().lists_of_pods
    }

    /// Sends neither data nor an end in all open log responses, as over half-open connections.
    pub(crate) fn silence_logs(&self) {
        self.change(|state| state.silent += 1);
    }

    /// The same for watches.
    pub(crate) fn silence_watches(&self) {
        self.change(|state| state.silent_watches += 1);
    }

    /// Denies a permission.
    pub(crate) fn deny(&self, verb: &str, resource: &str) {
        self.change(|state| state.denied.insert((verb.to_owned(), resource.to_owned())));
    }

    /// Follows that are open now.
    pub(crate) fn follows(&self) -> usize {
        self.lock().follows
    }

    /// Uids of the pods that were deleted by a request.
    pub(crate) fn deleted(&self) -> Vec<String> {
        self.lock().deleted.clone()
    }

    /// The replica index that is written on a pod.
    pub(crate) fn annotation(&self, namespace: &str, pod: &str) -> Option<String> {
        let state = self.lock();
        let object = state.objects.get(&("pods".to_owned(), format!("{namespace}/{pod}")))?;
        Some(object["metadata"]["annotations"]["leasemux/replica"].as_str()?.to_owned())
    }

    /// Number of log requests with `sinceTime` that do more than look.
    pub(crate) fn asked_since(&self) -> usize {
        self.lock().asked_since
    }

    pub(crate) async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: hyper::body::Body<Error: std::fmt::Debug>,
    {
        self.lock().requests += 1;
        let path = request.uri().path().to_owned();
        let query: BTreeMap<String, String> = request
            .uri()
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let method = request.method().clone();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match parts.as_slice() {
            ["apis", "coordination.k8s.io", "v1", "namespaces", namespace, "leases", name @ ..] => {
                self.coordination(&method, namespace, name.first().copied(), body)
            }
            ["api", "v1", "namespaces", name] => self.object("namespaces", "", name),
            [.., "selfsubjectaccessreviews"] => self.review(body),
            ["apis"] => {
                let mut state = self.lock();
                state.kind_requests += 1;
                let version = json!({ "groupVersion": "akash.network/v2beta2", "version": "v2beta2" });
                let group =
                    json!({ "name": "akash.network", "versions": [version], "preferredVersion": version });
                let groups: &[Value] = if state.missing_kinds.len() < 2 { &[group] } else { &[] };
                respond(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
            }
            ["apis", "akash.network", "v2beta2"] => {
                let state = self.lock();
                let all = [("providerhosts", "ProviderHost"), ("providerleasedips", "ProviderLeasedIP")];
                let installed = all.into_iter().filter(|(name, _)| !state.missing_kinds.contains(name));
                let resources: Vec<Value> = installed.map(|(name, kind)| {
                    json!({ "name": name, "singularName": "", "namespaced": true, "kind": kind, "verbs": ["list"] })
                }).collect();
                respond(
                    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "akash.network/v2beta2", "resources": resources }),
                )
            }
            ["api", "v1", "namespaces", namespace, "pods", pod, "log"] => {
                if self.lock().kubelets == Kubelets::Halted {
                    std::future::pending::<()>().await;
                }
                let refused = self.lock().logs_refused;
                refused.map_or_else(|| self.log(namespace, pod, &query), |code| refuse(code, "not now"))
            }
            ["api", "v1", "namespaces", namespace, "pods", pod] => self.pod(&method, namespace, pod, &body),
            ["apis", "events.k8s.io", "v1", "namespaces", namespace, "events"] => {
                self.events(namespace, &query).await
            }
            [.., kind] if self.lock().missing_kinds.contains(kind) => {
                refuse(StatusCode::NOT_FOUND, "the server could not find the requested resource")
            }
            [.., kind] if query.get("watch").is_some_and(|watch| watch == "true" || watch == "1") => {
                self.watch(kind, &query)
            }
            [.., kind] => self.list_when_answered(kind).await,
            [] => refuse(StatusCode::NOT_FOUND, "no such path"),
        }
    }

    fn review(&self, mut review: Value) -> Response<Body> {
        let asked = review["spec"]["resourceAttributes"].clone();
        let text = |field: &str| asked[field].as_str().unwrap_or_default().to_owned();
        let resource = match asked["subresource"].as_str() {
            Some(subresource) => format!("{}/{subresource}", text("resource")),
            None => text("resource"),
        };
        let allowed = !self.lock().denied.contains(&(text("verb"), resource));
        review["status"] = json!({ "allowed": allowed });
        respond(review)
    }

    async fn list_when_answered(&self, kind: &str) -> Response<Body> {
        let mut changed = self.changed.subscribe();
        while self.lock().holds_lists {
            changed.changed().await.unwrap();
        }
        self.list(kind)
    }

    fn list(&self, kind: &str) -> Response<Body> {
        let mut state = self.lock();
        state.lists += 1;
        state.lists_of_pods += usize::from(kind == "pods");
        let items: Vec<Value> = state
            .objects
            .iter()
            .filter(|((of, _), _)| of == kind)
            .map(|(_, object)| object.clone())
            .collect();
        respond(json!({ "kind": "List", "apiVersion": "v1", "items": items,
            "metadata": { "resourceVersion": state.version.to_string() } }))
    }

    fn watch(&self, kind: &str, query: &BTreeMap<String, String>) -> Response<Body> {
        let since: u64 = query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or_default();
        let takes_bookmarks = query.get("allowWatchBookmarks").is_some_and(|allowed| allowed == "true");
        let (kind, cluster, changes) = (kind.to_owned(), self.clone(), self.changed.subscribe());
        let (age, silent, marked) = {
            let state = self.lock();
            (state.age, state.silent_watches, state.bookmark.0)
        };
        let events = stream::unfold(
            (since, marked, changes, false),
            move |(seen, marked, mut changes, over)| {
                let (cluster, kind) = (cluster.clone(), kind.clone());
                async move {
                    if over {
                        return None;
                    }
                    loop {
                        if cluster.lock().silent_watches != silent {
                            std::future::pending::<()>().await;
                        }
                        {
                            let mut state = cluster.lock();
                            if seen < state.oldest {
                                let gone = json!({ "type": "ERROR", "object": { "kind": "Status", "apiVersion": "v1", "status": "Failure",
                                "code": 410, "reason": "Expired", "message": "too old resource version", "metadata": {} } });
                                return Some((Ok(line(&gone)), (seen, marked, changes, true)));
                            }
                            let next =
                                state.history.iter().find(|(version, of, ..)| *version > seen && *of == kind);
                            if let Some((version, _, what, object)) = next {
                                let event = json!({ "type": what, "object": object });
                                return Some((Ok(line(&event)), (*version, marked, changes, false)));
                            }
                            let (bookmark, version) = state.bookmark;
                            if takes_bookmarks && bookmark != marked {
                                state.bookmarks_sent += 1;
                                let event = json!({ "type": "BOOKMARK", "object": { "kind": kind, "apiVersion": "v1",
                                "metadata": { "resourceVersion": version.to_string() } } });
                                return Some((
                                    Ok(line(&event)),
                                    (seen.max(version), bookmark, changes, false),
                                ));
                            }
                            if state.age != age {
                                return None;
                            }
                        }
                        changes.changed().await.ok()?;
                    }
                }
            },
        );
        Response::new(BodyExt::boxed(StreamBody::new(events)))
    }

    fn pod(&self, method: &Method, namespace: &str, pod: &str, body: &Value) -> Response<Body> {
        let key = ("pods".to_owned(), format!("{namespace}/{pod}"));
        self.change(|state| {
            let Some(object) = state.objects.get(&key).cloned() else {
                return refuse(StatusCode::NOT_FOUND, "no such pod");
            };
            let uid = object["metadata"]["uid"].as_str().unwrap().to_owned();
            match *method {
                Method::DELETE => {
                    if body["preconditions"]["uid"].as_str().is_some_and(|wanted| wanted != uid) {
                        return refuse(StatusCode::CONFLICT, "another uid");
                    }
                    state.deleted.push(uid.clone());
                    for (_, log) in state.logs.iter_mut().filter(|((of, ..), _)| *of == uid) {
                        log.ended = true;
                    }
                    state.remove("pods", namespace, pod, false);
                }
                Method::PATCH if state.patches.is_some() => {
                    state.patches_refused += 1;
                    return refuse(state.patches.unwrap(), "not now");
                }
                Method::PATCH => {
                    let version = body["metadata"]["resourceVersion"].as_str();
                    if version != object["metadata"]["resourceVersion"].as_str() {
                        return refuse(StatusCode::CONFLICT, "another version");
                    }
                    let mut patched = object.clone();
                    patched["metadata"]["annotations"] = body["metadata"]["annotations"].clone();
                    state.put("pods", patched.clone());
                    return respond(patched);
                }
                _ => {}
            }
            respond(object)
        })
    }

    fn log(&self, namespace: &str, pod: &str, query: &BTreeMap<String, String>) -> Response<Body> {
        let is = |name: &str| query.get(name).is_some_and(|value| value == "true");
        assert!(is("timestamps") && query.contains_key("container"), "{query:?}");
        let (follow, changes) = (is("follow"), self.changed.subscribe());
        let mut state = self.lock();
        state.log_requests += 1;
        match state.kubelets {
            Kubelets::Serve | Kubelets::Halted => {}
            Kubelets::Unreachable => {
                let why = format!(
                    "Get \"https://10.0.0.1:10250/containerLogs/{namespace}/{pod}/x\": dial tcp 10.0.0.1:10250: connect: connection refused"
                );
                return refuse(StatusCode::INTERNAL_SERVER_ERROR, &why);
            }
            Kubelets::Unaware => {
                return refuse(StatusCode::NOT_FOUND, "the server could not find the requested resource");
            }
        }
        let Some(object) = state.objects.get(&("pods".to_owned(), format!("{namespace}/{pod}"))) else {
            return refuse(StatusCode::NOT_FOUND, "no such pod");
        };
        let uid = object["metadata"]["uid"].as_str().unwrap().to_owned();
        let container = &object["status"]["containerStatuses"][0];
        let reported = container["restartCount"].as_u64().unwrap();
        let is_between =
            container["state"]["waiting"].is_object() && container["lastState"]["terminated"].is_object();
        if let Some(answer) = state.answers.get(&uid).and_then(|answer| answer.response(pod)) {
            return answer;
        }
        let restarts = state.unreported.get(&uid).copied().unwrap_or_default().max(reported);
        // Between two runs the kubelet serves the last one as both the present and the previous one.
        let is_between = is_between && restarts == reported;
        let number = u32::try_from(restarts).unwrap().checked_sub(u32::from(is("previous") && !is_between));
        let run = number.map(|number| (uid, query["container"].clone(), number));
        let Some((run, log)) = run.and_then(|run| state.logs.get_key_value(&run)) else {
            if container["state"]["waiting"].is_object() && !is("previous") {
                let why = format!("container in pod \"{pod}\" is waiting to start: ContainerCreating");
                return refuse(StatusCode::BAD_REQUEST, &why);
            }
            return refuse(StatusCode::BAD_REQUEST, "previous terminated container not found");
        };
        let number = |name: &str| query.get(name).map(|value| value.parse::<usize>().unwrap());
        let next =
            number("tailLines").map_or(log.file, |lines| log.lines.len().saturating_sub(lines)).max(log.file);
        let limit = number("limitBytes").filter(|_| !query.contains_key("sinceTime"));
        let limited = limit.map(|bytes| {
            let text: String = log.lines[next..].iter().take(bytes).map(stamped).collect();
            text[..text.len().min(bytes)].to_owned()
        });
        let lagged = log.lagged.0;
        let (run, since) = (run.clone(), query.contains_key("sinceTime"));
        let generation = (state.broken, state.completed, state.silent);
        if let Some(words) = state.message.take() {
            return Response::new(http_body_util::Full::from(words).map_err(|never| match never {}).boxed());
        }
        if let Some(text) = limited {
            return Response::new(http_body_util::Full::from(text).map_err(|never| match never {}).boxed());
        }
        state.logs_opened.push(pod.to_owned());
        state.tails_asked.push(number("tailLines"));
        state.asked_since += usize::from(since && !query.contains_key("limitBytes"));
        let open = follow.then(|| Follow::begin(self, &mut state, &run.0));
        drop(state);
        if since {
            // A newer line exists only if the clock was set back.
            return Response::new(http_body_util::Empty::new().map_err(|never| match never {}).boxed());
        }
        let sent = Sent { next, parts: VecDeque::new(), lagged, over: false };
        self.send_log(run, follow, sent, generation, changes, open)
    }

    /// Sends a log and, if it is followed, new lines, until the response is interrupted.
    fn send_log(
        &self,
        run: RunKey,
        follow: bool,
        sent: Sent,
        generation: (u64, u64, u64),
        changes: watch::Receiver<u64>,
        open: Option<Follow>,
    ) -> Response<Body> {
        let cluster = self.clone();
        let portions = stream::unfold((sent, changes, open), move |(mut sent, mut changes, open)| {
            let (cluster, run) = (cluster.clone(), run.clone());
            async move {
                loop {
                    if sent.over {
                        return None;
                    }
                    if cluster.lock().silent != generation.2 {
                        std::future::pending::<()>().await;
                    }
                    {
                        let state = cluster.lock();
                        if state.broken != generation.0 {
                            let error = std::io::Error::other("the connection is reset");
                            return Some((Err(error), (sent, changes, open)));
                        }
                        let log = &state.logs[&run];
                        if let Some(lines) = sent.part(log, follow) {
                            let portion: String = log.lines[lines].iter().map(stamped).collect();
                            return Some((Ok(Frame::data(portion.into())), (sent, changes, open)));
                        }
                        if !follow || log.ended || state.completed != generation.1 {
                            return None;
                        }
                        if state.exhausted {
                            sent.over = true;
                            return Some((Ok(Frame::data(CANNOT_FOLLOW.into())), (sent, changes, open)));
                        }
                    }
                    changes.changed().await.ok()?;
                }
            }
        });
        Response::new(BodyExt::boxed(StreamBody::new(portions)))
    }
}

impl Sent {
    /// Returns the lines to send next.
    fn part(&mut self, log: &Log, follow: bool) -> Option<Range<usize>> {
        if follow && log.lagged.0 > self.lagged {
            let Lag { end, newest, repeats } = log.lagged.1.clone();
            self.parts.push_back(self.next.min(end)..end);
            self.parts.extend(std::iter::repeat_n(newest.clone(), repeats + 1));
            (self.next, self.lagged) = (newest.end, log.lagged.0);
        }
        while let Some(part) = self.parts.pop_front() {
            if !part.is_empty() {
                return Some(part);
            }
        }
        let lines = self.next..log.lines.len();
        self.next = lines.end;
        (!lines.is_empty()).then_some(lines)
    }
}

impl State {
    fn put(&mut self, kind: &str, mut object: Value) {
        self.version += 1;
        let meta = &object["metadata"];
        let name =
            format!("{}/{}", meta["namespace"].as_str().unwrap_or_default(), meta["name"].as_str().unwrap());
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let known = self.objects.insert((kind.to_owned(), name), object.clone());
        let what = if known.is_some() { "MODIFIED" } else { "ADDED" };
        self.history.push((self.version, kind.to_owned(), what, object));
    }

    fn remove(&mut self, kind: &str, namespace: &str, name: &str, quietly: bool) {
        let mut object = self.objects.remove(&(kind.to_owned(), format!("{namespace}/{name}"))).unwrap();
        self.version += 1;
        // The version of the deletion, from which a watch continues.
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if !quietly {
            self.history.push((self.version, kind.to_owned(), "DELETED", object));
        }
    }
}

impl Follow {
    fn begin(cluster: &Cluster, state: &mut State, uid: &str) -> Self {
        state.follows += 1;
        *state.follows_by_pod.entry(uid.to_owned()).or_default() += 1;
        Self(cluster.clone(), uid.to_owned())
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        if let Ok(mut state) = self.0.state.lock() {
            state.follows -= 1;
            *state.follows_by_pod.get_mut(&self.1).unwrap() -= 1;
        }
    }
}

/// Second in which the first run of a pod begins.
const FIRST_START: i64 = 1_795_564_800;

/// Second in which a run with this number begins, if the first one begins at `first`. Runs are far enough
/// apart for the clock changes of tests.
fn started(first: i64, number: u32) -> i64 {
    const APART: i64 = 400 * 86_400;
    first + APART * i64::from(number)
}

/// The state of a container in its run with this number.
fn running(first: i64, run: u32) -> Value {
    json!({ "running": { "startedAt": at(started(first, run)) } })
}

/// The state of a container after its run with this number, which ended a second before the next one begins.
fn terminated(first: i64, run: u32, code: i32) -> Value {
    json!({ "terminated": { "containerID": format!("containerd://{run}"), "exitCode": code, "reason": "Error",
        "startedAt": at(started(first, run)), "finishedAt": at(started(first, run + 1) - 1) } })
}

/// The node of a pod.
fn node_of(pod: &str) -> &'static str {
    if pod.starts_with("far") { "node2" } else { "node1" }
}

/// Formats a second as the API does.
fn at(second: i64) -> String {
    jiff::Timestamp::from_second(second).unwrap().to_string()
}

fn line(event: &Value) -> Frame<Bytes> {
    Frame::data(format!("{event}\n").into())
}

fn stamped((time, text): &(i64, String)) -> String {
    let stamp = jiff::Timestamp::from_nanosecond((*time).into()).unwrap();
    format!("{stamp} {text}\n")
}

fn respond(body: Value) -> Response<Body> {
    Response::new(http_body_util::Full::from(body.to_string()).map_err(|never| match never {}).boxed())
}

fn refuse(code: StatusCode, message: &str) -> Response<Body> {
    let reason = if code == StatusCode::NOT_FOUND { "NotFound" } else { "Because" };
    let mut response =
        respond(json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
        "reason": reason, "message": message, "metadata": {} }));
    *response.status_mut() = code;
    response
}
