//! A fake node of the chain, which answers the two queries over real sockets.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use leasemux::access::account::AccountKey;
use leasemux::model::id::Owner;
use leasemux::model::proto::auth::query_server as accounts;
use leasemux::model::proto::auth::{BaseAccount, QueryAccountRequest, QueryAccountResponse, Secp256k1PubKey};
use leasemux::model::proto::cert::query_server as certificates;
use leasemux::model::proto::cert::{
    Certificate, CertificateResponse, QueryCertificatesRequest, QueryCertificatesResponse, State,
};
use prost_types::Any;
use rustls::ServerConfig;
use tonic::service::Routes;
use tonic::{Code, Status};

use super::grpc_server::GrpcServer;

/// The state of the chain. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain(Arc<ChainState>);

#[derive(Debug, Default)]
struct ChainState {
    certificates: Mutex<HashMap<String, Vec<CertificateResponse>>>,
    accounts: Mutex<HashMap<String, Any>>,
    queries: AtomicUsize,
}

impl Chain {
    /// Publishes a tenant's certificate (PEM), or revokes it.
    pub(crate) fn publish(&self, owner: &Owner, pem: &str, state: State) {
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let parsed = block.parse_x509().unwrap();
        let key = data_encoding::BASE64.encode(parsed.public_key().raw);
        let pubkey = format!("-----BEGIN EC PUBLIC KEY-----\n{key}\n-----END EC PUBLIC KEY-----\n");
        let certificate =
            Certificate { state: state.into(), cert: pem.as_bytes().to_vec(), pubkey: pubkey.into_bytes() };
        let serial = parsed.serial.to_string();
        let entry = CertificateResponse { certificate: Some(certificate), serial };
        self.0.certificates.lock().unwrap().insert(owner.to_string(), vec![entry]);
    }

    /// Publishes the account's key, as its first transaction does.
    pub(crate) fn sign(&self, key: &AccountKey) {
        let public = Secp256k1PubKey { key: key.to_bytes() };
        let address = key.address().to_string();
        let pub_key = Some(any("/cosmos.crypto.secp256k1.PubKey", &public));
        let account = BaseAccount { address: address.clone(), pub_key };
        let account = any("/cosmos.auth.v1beta1.BaseAccount", &account);
        self.0.accounts.lock().unwrap().insert(address, account);
    }

    pub(crate) fn queries(&self) -> usize {
        self.0.queries.load(Ordering::SeqCst)
    }

    /// Starts a node, with TLS or without.
    pub(crate) async fn node(&self, tls: Option<ServerConfig>) -> GrpcServer {
        let routes = Routes::new(certificates::QueryServer::new(self.clone()))
            .add_service(accounts::QueryServer::new(self.clone()));
        GrpcServer::start(routes, tls).await
    }
}

fn any(url: &str, message: &impl prost::Message) -> Any {
    Any { type_url: url.into(), value: message.encode_to_vec() }
}

#[tonic::async_trait]
impl certificates::Query for Chain {
    async fn certificates(
        &self,
        request: tonic::Request<QueryCertificatesRequest>,
    ) -> Result<tonic::Response<QueryCertificatesResponse>, Status> {
        self.0.queries.fetch_add(1, Ordering::SeqCst);
        let filter = request.into_inner().filter.unwrap();
        let all = self.0.certificates.lock().unwrap();
        // By prefix of the serial number, as Akash's nodes do.
        let matching = all
            .get(&filter.owner)
            .into_iter()
            .flatten()
            .filter(|one| one.serial.starts_with(&filter.serial) && filter.state.is_empty());
        Ok(tonic::Response::new(QueryCertificatesResponse { certificates: matching.cloned().collect() }))
    }
}

#[tonic::async_trait]
impl accounts::Query for Chain {
    async fn account(
        &self,
        request: tonic::Request<QueryAccountRequest>,
    ) -> Result<tonic::Response<QueryAccountResponse>, Status> {
        self.0.queries.fetch_add(1, Ordering::SeqCst);
        let address = request.into_inner().address;
        let account = self.0.accounts.lock().unwrap().get(&address).cloned();
        match account {
            Some(account) => Ok(tonic::Response::new(QueryAccountResponse { account: Some(account) })),
            None => Err(Status::new(Code::NotFound, format!("account {address} not found"))),
        }
    }
}
