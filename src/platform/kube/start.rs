//! Requests to the API server at the start: they wait for it, and log why. And the search for the provider's
//! own kinds, which a cluster may lack: a missing one may be installed at any time.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_core::future::BoxFuture;
use kube::Client;
use tokio::sync::watch;
use tokio::time::Instant;

use super::api::error_chain;
use super::names::{AKASH_GROUP, AKASH_VERSION};
use crate::model::label::LabelValue as _;
use crate::model::metrics::labels::Watched;
use crate::platform::Error;

/// Pause before the next attempt. Short, so that a gateway is ready soon after the API server.
const RETRY_DELAY: Duration = Duration::from_secs(2);

/// Longest wait for a response at the start. The requests are small, and a server that accepts connections
/// and never responds would otherwise be waited for silently.
const RESPONSE_MAX: Duration = Duration::from_secs(30);

/// Interval of log messages that name the kinds still being listed: soon enough for a person who waits.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Interval of checks for a missing kind: one or two small requests.
const KIND_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Repeats a request until the API server responds. Logs the failures 1, 2, 4, 8 and so on.
///
/// # Errors
/// Those of `request` that a retry does not change.
pub(super) async fn retry<T, F>(server: &str, request: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut failures = 0_u32;
    loop {
        match request().await {
            Err(error) if error.is_retryable() => {
                failures = failures.saturating_add(1);
                if failures.is_power_of_two() {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(server, failures, error, "failed to reach the API server, retrying");
                }
            }
            result => return result,
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

/// Waits for the response to a request, for [`RESPONSE_MAX`] at most.
///
/// # Errors
/// [`Error::Unavailable`]: the gateway failed to do `action`.
pub(super) async fn response<T>(
    action: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, Error> {
    let why = match tokio::time::timeout(RESPONSE_MAX, request).await {
        Ok(Ok(response)) => return Ok(response),
        Ok(Err(error)) => error_chain(&error),
        Err(_) => format!("no response within {RESPONSE_MAX:?}"),
    };
    Err(Error::Unavailable(format!("failed to {action}: {why}")))
}

/// Waits until all of `needed` are listed.
///
/// # Errors
/// [`Error::Broken`] if the watches have ended.
pub(super) async fn listed(
    listed: &mut watch::Receiver<BTreeSet<Watched>>,
    needed: &BTreeSet<Watched>,
) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        let all = async { listed.wait_for(|listed| needed.is_subset(listed)).await.map(drop) };
        if let Ok(ended) = tokio::time::timeout(PROGRESS_INTERVAL, all).await {
            return ended.map_err(|_| Error::Broken("the watches ended".to_owned()));
        }
        let listed = listed.borrow().clone();
        let missing: Vec<&str> = needed.difference(&listed).map(|kind| kind.label()).collect();
        tracing::info!(
            waiting_for = missing.join(", "),
            waited = ?began.elapsed(),
            "still listing the cluster"
        );
    }
}

/// Runs the watch of a kind once the cluster has it.
pub(super) async fn once_installed(
    client: Client,
    kind: Watched,
    is_installed: bool,
    watch: BoxFuture<'static, ()>,
) {
    if !is_installed {
        let label = kind.label();
        tracing::warn!(kind = label, every = ?KIND_CHECK_INTERVAL, "kind of group akash.network is not installed, checking again");
        loop {
            tokio::time::sleep(KIND_CHECK_INTERVAL).await;
            match installed(&client).await {
                Ok(installed) if installed.contains(&kind) => break,
                Ok(_) => {}
                // The watches log failures of the API server.
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "failed to check for kinds");
                }
            }
        }
        tracing::info!(kind = label, "kind was installed");
    }
    watch.await;
}

/// Returns the provider's kinds that are installed.
pub(super) async fn installed(client: &Client) -> kube::Result<Vec<Watched>> {
    // The list of all groups comes first, because the client logs an error for a missing group.
    let groups = client.list_api_groups().await?.groups;
    let group = groups.into_iter().find(|group| group.name == AKASH_GROUP);
    if !group.is_some_and(|group| group.versions.iter().any(|known| known.version == AKASH_VERSION)) {
        return Ok(Vec::new());
    }
    let list = client.list_api_group_resources(&format!("{AKASH_GROUP}/{AKASH_VERSION}")).await?;
    let is_listed = |kind: &Watched| list.resources.iter().any(|resource| resource.name == kind.label());
    Ok([Watched::Hosts, Watched::LeasedIps].into_iter().filter(is_listed).collect())
}
