//! Which of the provider's own kinds the cluster has. One that it lacks may be installed at any time, so it is looked for now and then.

use std::time::Duration;

use kube::Client;

use super::api::told;
use super::names::{AKASH_GROUP, AKASH_VERSION, HOSTS, LEASED};
use super::start::{ANSWER_MAX, StartWait, no_answer};
use super::store::ObjectKind;
use super::watches;

/// How often it is looked whether the cluster has a kind by now that it lacked: one or two small requests, for as long as it lacks it.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The kinds that there were at the start, by their plurals.
#[derive(Debug)]
pub(super) struct Known(Vec<String>);

/// Asks until it is answered: so what is there at the start is served from the start.
pub(super) async fn known(client: &Client, server: &str) -> Known {
    let mut wait = StartWait::new(server);
    loop {
        match tokio::time::timeout(ANSWER_MAX, look(client)).await {
            Ok(Ok(known)) => return Known(known),
            Ok(Err(error)) => wait.after(&told(&error)).await,
            Err(_) => wait.after(&no_answer()).await,
        }
    }
}

// === impl Known ===

impl Known {
    /// Which there were.
    pub(super) fn all(&self) -> impl Iterator<Item = ObjectKind> {
        self.0.iter().filter_map(|plural| watches::kind_of(plural))
    }

    /// Watches a kind: at once, or as soon as the cluster is seen to have it.
    pub(super) fn once_there<F>(
        &self,
        (kind, plural): (&'static str, &'static str),
        client: &Client,
        watch: F,
    ) -> impl Future<Output = ()> + Send + 'static
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (is_there, client) = (self.0.iter().any(|known| known == plural), client.clone());
        async move {
            if !is_there {
                tracing::warn!(kind, every = ?LOOK_EVERY, "the cluster has no such kind (akash.network) yet; looking for it");
                installed(&client, plural).await;
                tracing::info!(kind, "the cluster has this kind by now");
            }
            watch.await;
        }
    }
}

/// Resolves once the cluster has the kind with this plural.
async fn installed(client: &Client, plural: &str) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match look(client).await {
            Ok(known) if known.iter().any(|known| known == plural) => return,
            Ok(_) => {}
            // The watches tell of it.
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "not answered"),
        }
    }
}

/// Plurals of the kinds that there are now, of those that are asked for.
async fn look(client: &Client) -> kube::Result<Vec<String>> {
    // The list of all groups comes first: of a group that is not there the client itself would complain each time.
    let groups = client.list_api_groups().await?.groups;
    let group = groups.into_iter().find(|group| group.name == AKASH_GROUP);
    if !group.is_some_and(|group| group.versions.iter().any(|known| known.version == AKASH_VERSION)) {
        return Ok(Vec::new());
    }
    let list = client.list_api_group_resources(&format!("{AKASH_GROUP}/{AKASH_VERSION}")).await?;
    let names = list.resources.into_iter().map(|resource| resource.name);
    Ok(names.filter(|name| [HOSTS.1, LEASED.1].contains(&name.as_str())).collect())
}
