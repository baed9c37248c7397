//! Finds out which of the provider's own kinds the cluster has. A missing one may be installed at any time,
//! so the gateway checks periodically.

use std::time::Duration;

use kube::Client;

use super::names::{AKASH_GROUP, AKASH_VERSION, HOSTS, LEASED};
use super::start;
use crate::model::label::LabelValue as _;
use crate::model::metrics::labels::Watched;
use crate::platform::Error;

/// Interval of checks for a missing kind: one or two small requests.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// The kinds that the cluster had at the start, by their plurals.
#[derive(Debug)]
pub(super) struct InstalledKinds(Vec<String>);

/// Finds the installed kinds. Retries until the API server responds, so that they are served from the start.
pub(super) async fn installed(client: &Client, server: &str) -> Result<InstalledKinds, Error> {
    let find = || start::response("list the kinds of the cluster", find(client));
    start::retry(server, find).await.map(InstalledKinds)
}

// === impl InstalledKinds ===

impl InstalledKinds {
    pub(super) fn all(&self) -> impl Iterator<Item = Watched> {
        let is_installed = |kind: &Watched| self.0.iter().any(|plural| plural == kind.label());
        Watched::ALL.iter().copied().filter(is_installed)
    }

    /// Runs the watch of a kind once the cluster has it.
    pub(super) fn once_installed<F>(
        &self,
        (kind, plural): (&'static str, &'static str),
        client: &Client,
        watch: F,
    ) -> impl Future<Output = ()> + Send + 'static
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (is_installed, client) = (self.0.iter().any(|known| known == plural), client.clone());
        async move {
            if !is_installed {
                tracing::warn!(kind, every = ?CHECK_INTERVAL, "kind of group akash.network is not installed, checking again");
                wait_until_installed(&client, plural).await;
                tracing::info!(kind, "kind was installed");
            }
            watch.await;
        }
    }
}

async fn wait_until_installed(client: &Client, plural: &str) {
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        match find(client).await {
            Ok(installed) if installed.iter().any(|known| known == plural) => return,
            Ok(_) => {}
            // The watches log failures of the API server.
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "failed to check for kinds");
            }
        }
    }
}

/// Returns the plurals of the provider's kinds that are installed.
async fn find(client: &Client) -> kube::Result<Vec<String>> {
    // The list of all groups comes first, because the client logs an error for a missing group.
    let groups = client.list_api_groups().await?.groups;
    let group = groups.into_iter().find(|group| group.name == AKASH_GROUP);
    if !group.is_some_and(|group| group.versions.iter().any(|known| known.version == AKASH_VERSION)) {
        return Ok(Vec::new());
    }
    let list = client.list_api_group_resources(&format!("{AKASH_GROUP}/{AKASH_VERSION}")).await?;
    let names = list.resources.into_iter().map(|resource| resource.name);
    Ok(names.filter(|name| [HOSTS.1, LEASED.1].contains(&name.as_str())).collect())
}
