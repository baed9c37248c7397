//! Trust from a node over real sockets.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use leasemux::access::chain::{ChainConfig, ChainTrust};
use leasemux::access::grants::Access;
use leasemux::access::identity::IdentityFiles;
use leasemux::access::token::{Algorithm, Claims};
use leasemux::edge::tls;
use leasemux::model::id::{LeaseId, Owner};
use leasemux::model::limits::Limits;
use leasemux::model::metrics::Metrics;
use leasemux::model::proto::cert::State;
use leasemux::model::proto::lease::ServiceLogsRequest;
use leasemux::model::time::LogTime;
use rustix::process::Signal;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tonic::Code;

use crate::support::chain::Chain;
use crate::support::gateway::{Gateway, proto_lease};
use crate::support::process::Workspace;
use crate::support::{account, reason};

/// A tenant with its credentials and a lease.
struct Tenant {
    owner: Owner,
    pem: String,
    der: Vec<u8>,
    token: String,
    lease: LeaseId,
}

fn tenant(dir: &Path) -> Tenant {
    let owner = IdentityFiles::create(dir, LogTime::now()).unwrap();
    let wallet = IdentityFiles::load_wallet(dir).unwrap();
    let now = u64::try_from(LogTime::now().parts().0).unwrap();
    let claims = Claims {
        issuer: owner.clone(),
        issued: now,
        not_before: now,
        expires: now + 600,
        id: None,
        access: Access::Full,
    };
    let (chain, _) = IdentityFiles::load(dir).unwrap().into_parts();
    Tenant {
        pem: fs::read_to_string(dir.join("cert.pem")).unwrap(),
        der: chain[0].to_vec(),
        token: wallet.sign(Algorithm::Es256k, &claims).unwrap(),
        lease: LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap(),
        owner,
    }
}

fn gateway(node: &str, authorities: Option<&Path>, dir: &Path, tenants: &[&Tenant]) -> Gateway {
    let config = ChainConfig {
        node: node.parse().unwrap(),
        authorities: authorities.map(Path::to_owned),
        dir: dir.to_owned(),
        grace: Duration::from_secs(3600),
        queries_per_second: 100,
    };
    let metrics = Metrics::register(&metrics::NoopRecorder);
    let gateway =
        Gateway::believing(Arc::new(ChainTrust::open(&config, metrics).unwrap()), Limits::default());
    for tenant in tenants {
        gateway.platform.add_lease(&tenant.lease, &[("web", 1)]);
    }
    gateway
}

/// Returns the outcome of a call with the certificate and of one with the token: a reason code, or `fine`.
async fn calls(gateway: &Gateway, tenant: &Tenant) -> [String; 2] {
    let request =
        ServiceLogsRequest { lease_id: Some(proto_lease(&tenant.lease)), ..ServiceLogsRequest::default() };
    let by_certificate = gateway.client(&tenant.der).await.service_logs(request.clone()).await;
    let by_token = gateway.client_with_token(&tenant.token).await.service_logs(request).await;
    [by_certificate, by_token].map(|answer| answer.err().map_or("fine".to_owned(), |status| reason(&status)))
}

#[tokio::test]
async fn tenants_are_authenticated_by_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let chain = Chain::default();
    let node = chain.node(None).await;
    let [known, revoked, nobody] = ["known", "revoked", "nobody"].map(|name| tenant(&dir.path().join(name)));
    chain.publish(&known.owner, &known.pem, State::Valid);
    chain.sign(&IdentityFiles::load_wallet(&dir.path().join("known")).unwrap().key());
    chain.publish(&revoked.owner, &revoked.pem, State::Revoked);
    let kept = dir.path().join("kept");
    let address = format!("http://{}", node.address);
    let tenants = [&known, &revoked, &nobody];
    let first = gateway(&address, None, &kept, &tenants);
    assert_eq!(calls(&first, &known).await, ["fine", "fine"]);
    assert_eq!(calls(&first, &known).await, ["fine", "fine"]);
    assert_eq!(chain.queries(), 2);
    assert_eq!(calls(&first, &revoked).await, ["CERTIFICATE_REVOKED", "ACCOUNT_UNKNOWN"]);
    assert_eq!(calls(&first, &nobody).await, ["CERTIFICATE_UNKNOWN", "ACCOUNT_UNKNOWN"]);

    // The node stops, and another gateway takes over the stored answers.
    drop((node, first));
    let second = gateway(&address, None, &kept, &tenants);
    assert_eq!(calls(&second, &known).await, ["fine", "fine"]);
    assert_eq!(calls(&second, &nobody).await, ["TRUST_UNAVAILABLE", "TRUST_UNAVAILABLE"]);
    let request =
        ServiceLogsRequest { lease_id: Some(proto_lease(&nobody.lease)), ..ServiceLogsRequest::default() };
    let status = second.client(&nobody.der).await.service_logs(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    // The stored answers form a trust directory.
    let names: Vec<_> = fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

/// The whole program. The node answers on another thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn known_tenants_work_after_restart_while_node_is_down() {
    let (workspace, chain) = (Workspace::new(), Chain::default());
    let [alice, bob] = ["alice", "bob"].map(|name| workspace.stranger(name));
    let pem = fs::read_to_string(workspace.path("alice/cert.pem")).unwrap();
    chain.publish(alice.owner(), &pem, State::Valid);
    chain.sign(&IdentityFiles::load_wallet(&workspace.path("alice")).unwrap().key());
    let sdl = workspace.sdl("shop.yaml", &[("web", "exec sleep 1000", 1)]);
    let node = chain.node(None).await;
    let chain_grpc = format!("--chain-grpc=http://{}", node.address);
    let identity = |name: &str| format!("--identity={}", workspace.path(name).display());
    let token = |name: &str| {
        let done = workspace.run(&["token", "new", "--identity", workspace.path(name).to_str().unwrap()]);
        format!("--token={}", done.out.trim())
    };
    let [alices, bobs] = ["alice", "bob"].map(|name| [identity(name), token(name)]);
    // Exit codes of the calls of both.
    let calls = |address: SocketAddr| {
        let call = |lease: &LeaseId, credentials: &String| {
            let gateway = format!("--gateway=https://{address}");
            let ca = format!("--ca={}", workspace.path("data/server.pem").display());
            workspace.run(&["status", &lease.to_string(), &gateway, &ca, credentials]).status.code().unwrap()
        };
        [alices.each_ref().map(|one| call(&alice, one)), bobs.each_ref().map(|one| call(&bob, one))]
    };
    let gateway = workspace.serve(&[(&alice, &sdl), (&bob, &sdl)], &[&chain_grpc]);
    assert_eq!(calls(gateway.address), [[0, 0], [3, 3]]);
    assert_eq!(calls(gateway.address), [[0, 0], [3, 3]]);
    assert_eq!(gateway.metric("leasemux_chain_queries_total{kind=\"certificate\",result=\"found\"}"), 1);
    gateway.stop(Signal::TERM);
    drop(node);
    let gateway = workspace.serve(&[(&alice, &sdl), (&bob, &sdl)], &[&chain_grpc]);
    assert_eq!(calls(gateway.address), [[0, 0], [5, 5]]);
    let done = gateway.stop(Signal::TERM);
    assert!(done.err.contains("chain query failed"), "{}", done.err);
}

#[tokio::test]
async fn node_with_untrusted_tls_certificate_is_not_queried() {
    let dir = tempfile::tempdir().unwrap();
    let chain = Chain::default();
    let made =
        ["node", "other"].map(|name| tls::ensure(&dir.path().join(name), &[], SystemTime::now()).unwrap());
    let certificate = CertificateDer::from_pem_file(&made[0].certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&made[0].key).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let node = chain.node(Some(config)).await;
    let tenant = tenant(&dir.path().join("tenant"));
    chain.publish(&tenant.owner, &tenant.pem, State::Valid);
    let address = format!("https://localhost:{}", node.address.port());
    let gateway_with = |trusted: usize| {
        let kept = dir.path().join(format!("kept{trusted}"));
        gateway(&address, Some(&made[trusted].certificate), &kept, &[&tenant])
    };
    assert_eq!(calls(&gateway_with(0), &tenant).await, ["fine", "ACCOUNT_UNKNOWN"]);
    let queries = chain.queries();
    assert_eq!(calls(&gateway_with(1), &tenant).await, ["TRUST_UNAVAILABLE", "TRUST_UNAVAILABLE"]);
    assert_eq!(chain.queries(), queries);
}

#[tokio::test]
async fn answer_beyond_size_limit_is_a_failed_query() {
    let dir = tempfile::tempdir().unwrap();
    let chain = Chain::default();
    let node = chain.node(None).await;
    let [small, large] = ["small", "large"].map(|name| tenant(&dir.path().join(name)));
    for (tenant, padding) in [(&small, 100_000), (&large, 300_000)] {
        chain.publish(&tenant.owner, &format!("{}{}", tenant.pem, "\n".repeat(padding)), State::Valid);
    }
    let gateway =
        gateway(&format!("http://{}", node.address), None, &dir.path().join("kept"), &[&small, &large]);
    assert_eq!(calls(&gateway, &small).await[0], "fine");
    assert_eq!(calls(&gateway, &large).await[0], "TRUST_UNAVAILABLE");
}

#[tokio::test(start_paused = true)]
async fn query_to_hanging_node_times_out() {
    let dir = tempfile::tempdir().unwrap();
    // Accepts connections and never answers.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let tenant = tenant(&dir.path().join("tenant"));
    let gateway = gateway(&address, None, &dir.path().join("kept"), &[&tenant]);
    let began = Instant::now();
    assert_eq!(calls(&gateway, &tenant).await, ["TRUST_UNAVAILABLE", "TRUST_UNAVAILABLE"]);
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(9) && took <= Duration::from_secs(11), "two queries: {took:?}");
}
