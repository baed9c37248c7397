//! A gateway that serves no tenants: it publishes the logs of its node's pods for the other gateways of a
//! fleet.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;

use super::runtimes::SideRuntime;
use super::setup::{self, required};
use super::{ServeError, bind_for, exporter, fd_limit, internal, listen, memory, serve_admin};
use crate::config::ServeConfig;
use crate::edge::admin::Readiness;
use crate::edge::drain::Drain;
use crate::exchange::fleet::Fleet;
use crate::logs::actor::ActorContext;
use crate::logs::actors::ActorRegistry;
use crate::logs::entry_name::NameStyle;
use crate::logs::memory_budget::MemoryBudget;
use crate::logs::publish_service::PublishService;
use crate::platform::Platform;
use crate::platform::kube::NodePods;
use crate::platform::node_source::NodeSource;
use crate::sys::dir_watch::Notifier;

/// Time in which other gateways take over before the actors end. They need 0.2 s, and may fetch lines from
/// the rings meanwhile.
const HANDOVER: Duration = Duration::from_millis(500);

/// The parts of a running gateway without tenants.
pub(super) struct RunningSource {
    drain: Drain,
    readiness: Readiness,
    fleet: Fleet,
    actors: ActorRegistry,
    _service: AbortOnDropHandle<()>,
    _upkeep: AbortOnDropHandle<()>,
    /// Dropped last, because tasks of `drain` run on it.
    _side: SideRuntime,
}

/// Starts a gateway without tenants. Returns it with the line for standard output.
pub(super) async fn start(mut config: ServeConfig) -> Result<(RunningSource, String), ServeError> {
    fd_limit::apply(&mut config.limits, config.platform);
    memory::apply(&mut config.limits);
    let notifier = Notifier::start();
    let side = SideRuntime::start().map_err(internal)?;
    let exporter = exporter(&side)?;
    let admin_listener = listen("--admin-listen", bind_for("--admin-listen", config.admin_listen)?)?;
    let admin = admin_listener.local_addr().map_err(internal)?;
    let (drain, readiness) = (Drain::default(), Readiness::default());
    serve_admin(admin_listener, exporter.clone(), &readiness, &drain, &side)?;
    let node = required(config.node.node_name.as_ref(), "--node-name")?;
    let pods = NodePods::start(&config.kube.access(), &node, &exporter.metrics).await;
    let pods = pods.map_err(ServeError::Kube)?;
    let source = Arc::new(NodeSource::new(pods, notifier, config.node.pod_logs_dir.clone()));
    let bus = setup::bus(&config).await?;
    let limits = Arc::new(config.limits);
    let context = ActorContext {
        memory: MemoryBudget::new(limits.memory_budget, &exporter.metrics),
        platform: Arc::clone(&source) as Arc<dyn Platform>,
        limits,
        metrics: exporter.metrics.clone(),
        names: NameStyle::Pod,
    };
    let (actors, fleet) = setup::actors(context, bus);
    let fleet = fleet.ok_or_else(|| internal("--nats is missing"))?;
    exporter.followers.set(actors.clone());
    let service = PublishService::new(fleet.clone(), actors.clone(), source, &node);
    #[expect(clippy::disallowed_methods, reason = "owned: the handle aborts it")]
    let service = tokio::spawn(service.run());
    let open = drain.clone();
    #[expect(clippy::disallowed_methods, reason = "owned: the handle aborts it")]
    let upkeep = tokio::spawn(async move { open.while_open(|| exporter.upkeep()).await });
    readiness.set(true);
    tracing::info!(node, %admin, "ready");
    let running = RunningSource {
        drain,
        readiness,
        fleet,
        actors,
        _service: AbortOnDropHandle::new(service),
        _upkeep: AbortOnDropHandle::new(upkeep),
        _side: side,
    };
    Ok((running, format!("leasemux ready: source of node {node} admin http://{admin}")))
}

// === impl RunningSource ===

impl RunningSource {
    /// Shuts down in order. Dropping the future ends everything at once.
    pub(super) async fn stop(self) {
        self.readiness.set(false);
        self.fleet.drain();
        tokio::time::sleep(HANDOVER).await;
        self.actors.stop().await;
        self.fleet.flush().await;
        self.drain.close();
    }
}
