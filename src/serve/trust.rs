//! The sources of trust that a configuration names.

use std::sync::Arc;

use super::ServeError;
use crate::access::chain::{ChainConfig, ChainTrust};
use crate::access::dir::DirTrust;
use crate::access::trust::{AnyOf, Trust};
use crate::config::ServeConfig;
use crate::model::metrics::Metrics;
use crate::sys::notify::Notifier;

/// Where in the data directory the chain's answers are kept.
const CHAIN_DIR: &str = "chain";

/// The directory and the chain, in this order: what is in the directory costs no question.
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
                "no tenant is trusted yet: put certificates (*.pem) or account keys (*.pub) there"
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
