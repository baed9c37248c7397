//! The followers' credentials and request.

use std::path::Path;
use std::sync::Arc;

use leasemux::access::identity::IdentityFiles;
use leasemux::edge::tls::generate::CERTIFICATE_FILE;
use leasemux::model::proto::lease::{ServiceFilter, ServiceLogsRequest};
use leasemux::model::proto::market;
use prost::Message as _;
use rustls::client::WantsClientCert;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

use super::http2;
use crate::Result;
use crate::plan::Security;
use crate::server::{SERVICE, TENANT_DIR, source};

const PATH: &str = "/akash.provider.lease.v1.LeaseRPC/ServiceLogs";

/// The tenant of all followers, and its request.
pub(crate) struct Login {
    /// `None`: no TLS.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// `None` for servers without tenants.
    request: Option<ServiceLogsRequest>,
}

impl Login {
    /// Loads the tenant that a server has created in `dir`.
    pub(crate) fn load(security: Security, dir: &Path) -> Result<Self> {
        Self::of_tenant(security, dir, TENANT_DIR)
    }

    /// Loads the tenant with this directory within `dir`.
    pub(crate) fn of_tenant(security: Security, dir: &Path, tenant_dir: &str) -> Result<Self> {
        if !dir.join(tenant_dir).exists() {
            return Ok(Self { tls: None, request: None });
        }
        let tenant = IdentityFiles::load(&dir.join(tenant_dir))?;
        let request = ServiceLogsRequest {
            lease_id: Some(market::LeaseId::from(&source::lease(tenant.address())?)),
            follow: true,
            tail_lines: Some(0),
            ..ServiceLogsRequest::default()
        };
        let request = Some(request);
        if security == Security::Plain {
            return Ok(Self { tls: None, request });
        }
        let (chain, key) = tenant.into_parts();
        let mut tls = Self::builder(dir)?.with_client_auth_cert(chain, key)?;
        // The server knows one of them.
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { tls: Some(Arc::new(tls)), request })
    }

    /// Returns the TLS configuration of a client without a certificate, for the server with files in `dir`.
    pub(crate) fn unauthenticated(dir: &Path) -> Result<Arc<ClientConfig>> {
        let mut tls = Self::builder(dir)?.with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(tls))
    }

    fn builder(dir: &Path) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(dir.join(CERTIFICATE_FILE))?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        Ok(builder.with_protocol_versions(&[&rustls::version::TLS13])?.with_root_certificates(roots))
    }

    /// Returns the bytes that open an HTTP/2 connection and follow on `streams` streams. With `replica`, the
    /// first stream follows only that replica, and each further stream the next one.
    pub(crate) fn request(&self, streams: u32, replica: Option<u32>) -> Vec<u8> {
        let mut bytes = http2::preface();
        for index in 0..streams {
            let mut request = self.request.clone().unwrap_or_default();
            if let Some(first) = replica {
                let filter = ServiceFilter { name: SERVICE.to_owned(), replicas: vec![first + index] };
                request.filters = vec![filter];
            }
            http2::call(&mut bytes, 1 + 2 * index, PATH, &request.encode_to_vec());
        }
        bytes
    }
}
