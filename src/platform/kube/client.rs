//! The connection to the API server.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::{Connection, HttpConnector};
use hyper_util::client::legacy::{Client as HttpClient, ResponseFuture};
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, Service, ServiceBuilder, service_fn};

use super::{ClusterAccess, permissions};
use crate::platform::Error;

/// Longest time to connect: name resolution, TCP and TLS.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Silence after which TCP keepalive probes the peer: a log has no heartbeat, so a dead connection would
/// otherwise be read forever.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Keepalive probes without a response before the connection counts as dead.
const KEEPALIVE_PROBES: u32 = 3;

/// Time without acknowledgement of sent bytes before the connection ends. Longer than the restart of a
/// network device.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest time until the API server accepts a watch, which it does before the first event. Detects a server
/// that takes requests and never responds.
const WATCH_MAX: Duration = Duration::from_secs(30);

/// Longest wait of `--check` for the API server, which may be unreachable from the machine where a
/// configuration is checked.
const CHECK_MAX: Duration = Duration::from_secs(5);

/// What a gateway does in the cluster, which decides its permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckScope {
    /// It serves leases.
    Leases,
    /// It only watches the pods of its node.
    NodePods,
}

/// Returns the connector of TCP connections.
pub(super) fn tcp() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    // Shared by all addresses of a name.
    connector.set_connect_timeout(Some(CONNECT_MAX));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE));
    connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    connector.set_tcp_user_timeout(Some(USER_TIMEOUT));
    connector
}

/// Creates a client, without connecting, and returns it with the API server's address, without credentials.
/// The client calls `accepted` for each watch that the API server accepts.
///
/// # Errors
/// [`Error::Broken`] if the kubeconfig or the service account cannot be read or used.
pub(super) async fn connect<C>(
    cluster: &ClusterAccess,
    connector: C,
    accepted: impl Fn(&str) + Send + Sync + 'static,
) -> Result<(Client, String), Error>
where
    C: Service<Uri, Error: Into<BoxError>, Future: Send> + Clone + Send + Sync + 'static,
    C::Response: Read + Write + Connection + Send + Unpin + 'static,
{
    let mut cluster = read(cluster).await?;
    let url = &cluster.cluster_url;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let server =
        format!("{}://{}{port}", url.scheme_str().unwrap_or("https"), url.host().unwrap_or_default());
    // A follow is silent while the container is, so only the limits of the connection itself apply.
    (cluster.read_timeout, cluster.write_timeout) = (None, None);
    let unusable =
        |error: kube::Error| Error::Broken(format!("the cluster's configuration cannot be used: {error}"));
    let connector = cluster.rustls_https_connector_with_connector(connector).map_err(unusable)?;
    let connector = service_fn(move |address: Uri| {
        let connecting = tokio::time::timeout(CONNECT_MAX, connector.clone().call(address));
        let late = || BoxError::from(format!("no connection within {CONNECT_MAX:?}"));
        Box::pin(async move { connecting.await.unwrap_or_else(|_| Err(late())) })
    });
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
    let accepted = Arc::new(accepted);
    let send = move |request: Request<Body>| {
        let watched = watched(request.uri());
        observe(http.request(request), watched, Arc::clone(&accepted))
    };
    let service = ServiceBuilder::new()
        .layer(cluster.base_uri_layer())
        .option_layer(cluster.auth_layer().map_err(unusable)?)
        .layer(cluster.extra_headers_layer().map_err(unusable)?)
        .service_fn(send);
    Ok((ClientBuilder::new(service, cluster.default_namespace).build(), server))
}

/// Checks that a configuration can be used and, if the API server can be reached, that all permissions are
/// granted. Returns why permissions were not checked, if so.
///
/// # Errors
/// Those of [`KubePlatform::start`](super::KubePlatform::start).
pub async fn check(cluster: &ClusterAccess, scope: CheckScope) -> Result<Option<String>, Error> {
    let (client, server) = connect(cluster, tcp(), |_| {}).await?;
    let own = cluster.coordination_namespace.as_deref().unwrap_or(client.default_namespace());
    let checking = async {
        match scope {
            CheckScope::Leases => permissions::check(&client, &cluster.manifest_namespace, own).await,
            CheckScope::NodePods => permissions::check_node(&client).await,
        }
    };
    let why = match tokio::time::timeout(CHECK_MAX, checking).await {
        Ok(Ok(())) => return Ok(None),
        Ok(Err(Error::Unavailable(why))) => why,
        Ok(Err(error)) => return Err(error),
        Err(_) => format!("no response within {CHECK_MAX:?}"),
    };
    Ok(Some(format!("permissions were not checked, because the API server {server} does not respond: {why}")))
}

/// Waits for the response to a request. If that watches the kind with the plural `watched`, reports that the
/// API server accepts it: a watch itself is silent until something changes.
///
/// Also turns a watch that is cut off into an error without a source. kube treats the cause `UnexpectedEof`
/// as a regular end and watches again at once: without back-off, and without a failure that makes views
/// stale.
async fn observe(
    response: ResponseFuture,
    watched: Option<String>,
    accepted: Arc<impl Fn(&str)>,
) -> Result<Response<UnsyncBoxBody<Bytes, BoxError>>, BoxError> {
    let Some(plural) = watched else {
        return Ok(response.await?.map(|body| body.map_err(BoxError::from).boxed_unsync()));
    };
    let response = tokio::time::timeout(WATCH_MAX, response).await;
    let response = response.map_err(|_| format!("no response to a watch within {WATCH_MAX:?}"))??;
    if response.status().is_success() {
        accepted(&plural);
    }
    let cut_off = |error| BoxError::from(format!("watch cut off: {error}"));
    Ok(response.map(|body| body.map_err(cut_off).boxed_unsync()))
}

/// Returns the plural of the kind that a request watches, if it is a watch.
fn watched(uri: &Uri) -> Option<String> {
    uri.query()?.split('&').find(|parameter| *parameter == "watch=true")?;
    uri.path().rsplit('/').next().map(str::to_owned)
}

async fn read(cluster: &ClusterAccess) -> Result<Config, Error> {
    let broken = |what: &str, error: &dyn std::error::Error| Error::Broken(format!("{what}: {error}"));
    let Some(file) = &cluster.kubeconfig else {
        return Config::incluster()
            .map_err(|error| broken("not in a cluster, and no --kubeconfig given", &error));
    };
    let kubeconfig = Kubeconfig::read_from(file)
        .map_err(|error| broken(&format!("--kubeconfig {}", file.display()), &error))?;
    let options = KubeConfigOptions { context: cluster.context.clone(), ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    config.map_err(|error| broken("--kubeconfig or --kube-context", &error))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;

    use futures_util::StreamExt as _;
    use k8s_openapi::api::core::v1::Pod;
    use kube::Api;
    use kube::api::WatchParams;

    use super::*;

    /// Answers one request with the head of a chunked response, and closes the connection.
    fn cut_off_one_response(listener: TcpListener) {
        let (mut socket, _) = listener.accept().unwrap();
        let mut request = BufReader::new(socket.try_clone().unwrap());
        let mut line = String::new();
        while request.read_line(&mut line).unwrap() > "\r\n".len() {
            line.clear();
        }
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        socket.write_all(head.as_bytes()).unwrap();
    }

    #[tokio::test]
    async fn watch_that_is_cut_off_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(|| cut_off_one_response(listener));
        let client = client_of(&url).await;
        let events = Api::<Pod>::all(client).watch(&WatchParams::default(), "0").await.unwrap();
        let event = std::pin::pin!(events).next().await.expect("an error, and not a regular end");
        assert!(event.unwrap_err().to_string().contains("watch cut off"));
        server.join().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn tls_handshake_without_response_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = client_of(&format!("https://{}", listener.local_addr().unwrap())).await;
        let error = client.apiserver_version().await.unwrap_err();
        let error = crate::platform::kube::api::error_chain(&error);
        assert!(error.contains("no connection within 10s"), "{error}");
    }

    async fn client_of(url: &str) -> Client {
        let file = tempfile::NamedTempFile::new().unwrap();
        let kubeconfig = serde_json::json!({
            "clusters": [{ "name": "a", "cluster": { "server": url } }],
            "users": [{ "name": "a", "user": {} }],
            "contexts": [{ "name": "a", "context": { "cluster": "a", "user": "a" } }],
            "current-context": "a",
        });
        serde_json::to_writer(file.as_file(), &kubeconfig).unwrap();
        let cluster = ClusterAccess {
            kubeconfig: Some(file.path().to_owned()),
            context: None,
            manifest_namespace: "lease".to_owned(),
            coordination_namespace: None,
        };
        connect(&cluster, tcp(), |_| {}).await.unwrap().0
    }
}
