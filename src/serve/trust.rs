//! Opens the configured trust sources.

use std::sync::Arc;

use super::ServeError;
use crate::access::chain::{ChainConfig, ChainTrust};
use crate::access::dir::DirTrust;
use crate::access::trust::{AnyOf, Trust};
use crate::config::ServeConfig;
use crate::model::metrics::Metrics;
use crate::sys::dir_watch::Notifier;

/// Directory of the chain cache, within the data directory.
const CHAIN_DIR: &str = "chain";

/// Opens the trust directory and the chain source. The directory is asked first because it needs no query.
pub(super) async fn open(
    config: &ServeConfig,
    notifier: &Notifier,
    metrics: &Metrics,
) -> Result<Arc<dyn Trust>, ServeError> {
    let mut sources: Vec<Arc<dyn Trust>> = Vec::new();
    if let Some(dir) = &config.access.trust_dir {
        let trust = DirTrust::open(dir, notifier, config.limits.trust_poll).await?;
        if trust.trusted() == 0 && config.access.chain.is_none() {
            tracing::warn!(
                dir = %dir.display(),
                "trust directory is empty; add certificates (*.pem) or account keys (*.pub)"
            );
        }
        sources.push(Arc::new(trust));
    }
    if let Some(chain) = &config.access.chain {
        let chain = ChainConfig {
            node: chain.node.clone(),
            authorities: chain.authorities.clone(),
            dir: config.data_dir.join(CHAIN_DIR),
            grace: chain.grace,
            queries_per_second: config.limits.quota.chain_queries_per_second.into(),
        };
        sources.push(Arc::new(ChainTrust::open(&chain, metrics.clone())?));
    }
    Ok(Arc::new(AnyOf(sources)))
}
