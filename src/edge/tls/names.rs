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
        let public = self.public.as_ref().filter(|public| {
            // A name may end in a dot, which is the same one.
            let name = name.map(|name| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase());
            name.is_some_and(|name| public.hosts.contains(&name))
        });
        Arc::clone(public.map_or(&self.other, |public| &public.config))
    }
}

/// The same to everybody.
impl From<Arc<ServerConfig>> for Offers {
    fn from(other: Arc<ServerConfig>) -> Self {
        Self { public: None, other }
    }
}
