//! The connection to the API server.

use std::time::Duration;

use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::ServiceBuilder;

use super::config::{KubeConfig, KubeSource};
use crate::platform::Error;

/// A connection must be there within this.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// After so long a silence the other side's kernel is asked whether it is still there: logs have no sign of life of their own, and
/// a dead connection would be waited on for ever.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How often it is asked before the connection counts as dead.
const KEEPALIVE_PROBES: u32 = 3;

/// Sent bytes that nobody confirms for so long end the connection. Longer than a restart of a network device takes.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// A client as `config` says. Nothing is connected yet.
///
/// # Errors
/// [`Error::Broken`] if the kubeconfig or the service account cannot be read or used, and why.
pub(super) async fn connect(config: &KubeConfig) -> Result<Client, Error> {
    let mut cluster = read(&config.source).await?;
    // A follow is silent for as long as the container is: no time limit but those of the connection itself.
    (cluster.read_timeout, cluster.write_timeout) = (None, None);
    let unusable =
        |error: kube::Error| Error::Broken(format!("the cluster's configuration cannot be used: {error}"));
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_MAX));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE));
    connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    connector.set_tcp_user_timeout(Some(USER_TIMEOUT));
    let connector = cluster.rustls_https_connector_with_connector(connector).map_err(unusable)?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(cluster.base_uri_layer())
        .option_layer(cluster.auth_layer().map_err(unusable)?)
        .layer(cluster.extra_headers_layer().map_err(unusable)?)
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, cluster.default_namespace).build())
}

/// Whether a configuration can be read from `source`. Nobody is asked whether it is valid.
///
/// # Errors
/// As when it is used.
pub async fn check(source: &KubeSource) -> Result<(), Error> {
    read(source).await.map(drop)
}

async fn read(source: &KubeSource) -> Result<Config, Error> {
    let unreadable = |what: &str, error: String| Error::Broken(format!("{what}: {error}"));
    let (file, context) = match source {
        KubeSource::InCluster => {
            return Config::incluster().map_err(|error| {
                unreadable("not in a cluster, and no --kubeconfig given", error.to_string())
            });
        }
        KubeSource::File { file, context } => (file, context),
    };
    let kubeconfig = Kubeconfig::read_from(file)
        .map_err(|error| unreadable(&format!("--kubeconfig {}", file.display()), error.to_string()))?;
    let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
    Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|error| unreadable("--kubeconfig or --kube-context", error.to_string()))
}
