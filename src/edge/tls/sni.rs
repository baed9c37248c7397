//! Which certificate is presented, by the name that the client asks for (SNI), as Akash providers have it.
//!
//! With a certificate that an authority signed, exactly the public host names get that one, and no client certificate is asked
//! for: who comes by them brings a token. Every other name, and none at all, gets the gateway's own certificate, with a client
//! certificate that is asked for and may be absent.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::ServerConfig;

/// What is offered to whom. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Offers {
    public: Option<Arc<Public>>,
    other: Arc<ServerConfig>,
}

#[derive(Debug)]
struct Public {
    hosts: BTreeSet<String>,
    config: Arc<ServerConfig>,
}

// === impl Offers ===

impl Offers {
    /// The same, but for clients that ask for one of `hosts`, which get `config`.
    #[must_use]
    pub fn with_public(mut self, hosts: &[String], config: Arc<ServerConfig>) -> Self {
        let hosts = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        self.public = Some(Arc::new(Public { hosts, config }));
        self
    }

    /// Whether the name matters.
    pub(super) fn differ(&self) -> bool {
        self.public.is_some()
    }

    /// For a client that asks for `name`, or for none.
    pub(super) fn of(&self, name: Option<&str>) -> Arc<ServerConfig> {
        let public = self.public.as_ref().filter(|public| name.and_then(|name| public.host(name)).is_some());
        Arc::clone(public.map_or(&self.other, |public| &public.config))
    }

    /// Returns the public host that `name` means, if clients that ask for it are not asked for a certificate.
    pub(in crate::edge) fn public_name(&self, name: &str) -> Option<Arc<str>> {
        self.public.as_ref()?.host(name).map(Arc::from)
    }
}

// === impl Public ===

impl Public {
    fn host(&self, name: &str) -> Option<&str> {
        // A name may end in a dot, which is the same one.
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        self.hosts.get(&name).map(String::as_str)
    }
}

/// The same to everybody.
impl From<Arc<ServerConfig>> for Offers {
    fn from(other: Arc<ServerConfig>) -> Self {
        Self { public: None, other }
    }
}
