//! What a tenant's calls run with.

use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

use super::cli::{ChoiceArgs, LogsArgs, RestartArgs, StatusArgs, TargetArgs};
use super::faults::{ConfigErrors, Resolver};
use super::moment::Moment;
use super::secret::TokenSource;
use super::value::{LEASE, directory, duration, file, gateway, lease, number, parsed, tail};
use crate::model::id::{LeaseId, ServiceName};
use crate::model::limits::{FILTER_REPLICAS_MAX, FILTERS_MAX, RESTART_TIMEOUT_MAX};
use crate::model::proto::lease::OnLag;
use crate::model::request_id::RequestId;

/// What `logs` asks for, and of whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogsConfig {
    /// The lease.
    pub lease: LeaseId,
    /// The gateway, and who asks it.
    pub target: Target,
    /// The services; empty = all.
    pub services: Vec<ServiceName>,
    /// The replicas of each of the services; empty = all. Not without services.
    pub replicas: Vec<u32>,
    /// Whether to stay.
    pub follow: bool,
    /// History limited to the last so many lines of each replica.
    pub tail: Option<u64>,
    /// History from this instant on.
    pub since: Option<Moment>,
    /// History up to this instant; neither with follow nor with tail.
    pub until: Option<Moment>,
    /// Whether lines begin with their time.
    pub timestamps: bool,
    /// The run before the present one; not with follow.
    pub previous: bool,
    /// What is to happen if this side cannot keep up.
    pub on_lag: OnLag,
    /// Form of the output.
    pub output: Output,
}

/// What `status` asks for, and of whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusConfig {
    /// The lease.
    pub lease: LeaseId,
    /// The gateway, and who asks it.
    pub target: Target,
    /// The services; empty = all.
    pub services: Vec<ServiceName>,
    /// The replicas of each of the services; empty = all. Not without services.
    pub replicas: Vec<u32>,
    /// Whether to stay.
    pub follow: bool,
    /// Form of the output.
    pub form: Form,
}

/// What `restart` asks for, and of whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartConfig {
    /// The lease.
    pub lease: LeaseId,
    /// The gateway, and who asks it.
    pub target: Target,
    /// The services; empty = all, which was asked for in as many words.
    pub services: Vec<ServiceName>,
    /// The replicas of each of the services; empty = all. Not without services.
    pub replicas: Vec<u32>,
    /// How long to wait; zero = not at all.
    pub timeout: Duration,
    /// The restart's name, if it was given one.
    pub request_id: Option<RequestId>,
    /// Form of the output.
    pub form: Form,
}

/// Form of an output that is no log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A table, for people.
    Table,
    /// One JSON object a line.
    Json,
}

/// A gateway, and how to meet it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `https://host:port`.
    pub gateway: Uri,
    /// Directory with `cert.pem` and `key.pem`.
    pub identity: Option<PathBuf>,
    /// A token to act by; not with an identity.
    pub token: Option<TokenSource>,
    /// Which gateway is believed to be the gateway.
    pub trust: ServerTrust,
}

/// Which gateway is believed to be the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerTrust {
    /// One whose certificate the system's authorities vouch for.
    System,
    /// One whose certificate is in this file, or is signed by one that is.
    File(PathBuf),
    /// Any.
    Anyone,
}

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Lines with a prefix, for people.
    Text,
    /// One JSON object a line.
    Json,
}

pub(super) fn resolve_logs(args: &LogsArgs, mut read: Resolver<'_>) -> Result<LogsConfig, ConfigErrors> {
    let lease = read.required("lease", args.lease.as_ref(), LEASE, lease);
    let target = target(&args.target, &mut read);
    let (services, replicas) = chosen(&args.choice, &mut read);
    let follow = read.switch("follow", args.follow.as_ref());
    let previous = read.switch("previous", args.previous.as_ref());
    if follow && previous {
        read.unfit(
            "--previous and --follow do not go together: a run that has ended has nothing yet to come",
        );
    }
    let tail = read.one("tail", args.tail.as_ref(), tail).flatten();
    let since = read.one("since", args.since.as_ref(), Moment::parse_local);
    let until = read.one("until", args.until.as_ref(), Moment::parse_local);
    if until.is_some() && follow {
        read.unfit("--until and --follow do not go together: a follow reads what is still to come");
    }
    if until.is_some() && tail.is_some() {
        read.unfit(
            "--until and --tail do not go together: the gateway counts the last lines from the newest",
        );
    }
    let is_before = |until: Moment, since: Moment| match (until, since) {
        (Moment::At(until), Moment::At(since)) => until < since,
        (Moment::Ago(until), Moment::Ago(since)) => until > since,
        // Known once the gateway's clock is.
        _ => false,
    };
    if until.zip(since).is_some_and(|(until, since)| is_before(until, since)) {
        read.unfit("--until is before --since: no line is in between");
    }
    let timestamps = read.switch("timestamps", args.timestamps.as_ref());
    let on_lag = read.one("on_lag", args.on_lag.as_ref(), |text| match text {
        "drop" => Ok(OnLag::Drop),
        "close" => Ok(OnLag::Close),
        _ => Err("must be drop or close".to_owned()),
    });
    let output = read.one("output", args.output.as_ref(), |text| match text {
        "text" | "table" => Ok(Output::Text),
        "json" => Ok(Output::Json),
        _ => Err("must be text or json".to_owned()),
    });
    let whole = || {
        Some(LogsConfig {
            lease: lease?,
            target: target?,
            services,
            replicas,
            follow,
            tail,
            since,
            until,
            timestamps,
            previous,
            on_lag: on_lag?,
            output: output?,
        })
    };
    let config = whole();
    read.finish(config)
}

pub(super) fn resolve_status(
    args: &StatusArgs,
    mut read: Resolver<'_>,
) -> Result<StatusConfig, ConfigErrors> {
    let lease = read.required("lease", args.lease.as_ref(), LEASE, lease);
    let target = target(&args.target, &mut read);
    let (services, replicas) = chosen(&args.choice, &mut read);
    let follow = read.switch("follow", args.follow.as_ref());
    let form = form(args.output.as_ref(), &mut read);
    let whole =
        || Some(StatusConfig { lease: lease?, target: target?, services, replicas, follow, form: form? });
    let config = whole();
    read.finish(config)
}

pub(super) fn resolve_restart(
    args: &RestartArgs,
    mut read: Resolver<'_>,
) -> Result<RestartConfig, ConfigErrors> {
    let lease = read.required("lease", args.lease.as_ref(), LEASE, lease);
    let target = target(&args.target, &mut read);
    let (services, replicas) = chosen(&args.choice, &mut read);
    let all = read.switch("all", args.all.as_ref());
    let given = !args.choice.service.is_empty();
    if all && given {
        read.unfit("--all and --service do not go together: restart everything or some of it");
    }
    // Of replicas without a service that was said already.
    if !all && !given && args.choice.replica.is_empty() {
        read.missing("service", "the one to restart; everything under the lease is --all");
    }
    let timeout = read.one("timeout", args.timeout.as_ref(), duration(Duration::ZERO..=RESTART_TIMEOUT_MAX));
    let request_id = read.one("request_id", args.request_id.as_ref(), parsed::<RequestId>);
    let form = form(args.output.as_ref(), &mut read);
    let whole = || {
        let (lease, target) = (lease?, target?);
        Some(RestartConfig { lease, target, services, replicas, timeout: timeout?, request_id, form: form? })
    };
    let config = whole();
    read.finish(config)
}

fn form(given: Option<&String>, read: &mut Resolver<'_>) -> Option<Form> {
    read.one("output", given, |text| match text {
        "table" | "text" => Ok(Form::Table),
        "json" => Ok(Form::Json),
        _ => Err("must be table or json".to_owned()),
    })
}

fn target(args: &TargetArgs, read: &mut Resolver<'_>) -> Option<Target> {
    let uri = read.one("gateway", args.gateway.as_ref(), gateway);
    let [identity, token] =
        read.meant([("identity", args.identity.as_ref()), ("token", args.token.as_ref())]);
    if identity.is_some() && token.is_some() {
        read.unfit("--identity and --token do not go together: a gateway takes one of them");
    }
    let identity = read.one("identity", identity, |text| {
        let dir = directory(text)?;
        for name in ["cert.pem", "key.pem"] {
            let inside = dir.join(name);
            file(&inside.to_string_lossy()).map_err(|right| format!("its {name} {right}"))?;
        }
        Ok(dir)
    });
    let token = read.secret("token", token, TokenSource::parse);
    let ca = read.one("ca", args.ca.as_ref(), file);
    let insecure = read.switch("insecure", args.insecure.as_ref());
    let trust = match (ca, insecure) {
        (Some(_), true) => {
            read.unfit("--ca and --insecure do not go together: trust one certificate or any");
            ServerTrust::Anyone
        }
        (Some(path), false) => ServerTrust::File(path),
        (None, true) => ServerTrust::Anyone,
        (None, false) => ServerTrust::System,
    };
    Some(Target { gateway: uri?, identity, token, trust })
}

fn chosen(args: &ChoiceArgs, read: &mut Resolver<'_>) -> (Vec<ServiceName>, Vec<u32>) {
    let services = read.list("service", &args.service, parsed::<ServiceName>);
    let replicas = read.list("replica", &args.replica, number(0..=u32::MAX));
    if services.len() > FILTERS_MAX {
        read.unfit(&format!("--service is given {} times: at most {FILTERS_MAX}", services.len()));
    }
    if replicas.len() * services.len() > FILTER_REPLICAS_MAX {
        let asked = replicas.len() * services.len();
        read.unfit(&format!(
            "--service and --replica choose {asked} replicas: at most {FILTER_REPLICAS_MAX}"
        ));
    }
    if !replicas.is_empty() && args.service.is_empty() {
        read.missing("service", "the service whose --replica is meant");
    }
    (services, replicas)
}
