//! Writing claims, the way back from reading them.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use super::{Algorithm, Claims};
use crate::access::grants::{Access, Deployment, ProviderAccess, Scopes, TokenScope};

// === impl Claims ===

impl Claims {
    /// The claims as JSON, in the members of AEP-64.
    pub fn to_json(&self) -> Value {
        let mut claims = json!({
            "iss": self.issuer.as_str(),
            "iat": self.issued,
            "nbf": self.not_before,
            "exp": self.expires,
            "version": super::claims::VERSION,
            "leases": access(&self.access),
        });
        if let Some(id) = &self.id {
            claims["jti"] = id.as_str().into();
        }
        claims
    }

    /// A token without its signature: what is signed.
    pub(in crate::access) fn unsigned(&self, algorithm: Algorithm) -> String {
        let header = json!({"alg": algorithm.name(), "typ": "JWT"}).to_string();
        let claims = self.to_json().to_string();
        format!("{}.{}", BASE64URL_NOPAD.encode(header.as_bytes()), BASE64URL_NOPAD.encode(claims.as_bytes()))
    }
}

fn access(access: &Access) -> Value {
    match access {
        Access::Full => json!({"access": "full"}),
        Access::Scoped(scopes) => json!({"access": "scoped", "scope": words(*scopes)}),
        Access::Granular(providers) => {
            let entries: Vec<Value> = providers
                .iter()
                .map(|(provider, access)| match access {
                    ProviderAccess::Full => json!({"provider": provider.as_str(), "access": "full"}),
                    ProviderAccess::Scoped(scopes) => {
                        json!({"provider": provider.as_str(), "access": "scoped", "scope": words(*scopes)})
                    }
                    ProviderAccess::Granular(deployments) => {
                        let deployments: Vec<Value> = deployments.iter().map(deployment).collect();
                        json!({"provider": provider.as_str(), "access": "granular", "deployments": deployments})
                    }
                })
                .collect();
            json!({"access": "granular", "permissions": entries})
        }
    }
}

fn deployment(deployment: &Deployment) -> Value {
    let mut entry = json!({
        "dseq": deployment.dseq,
        "scope": words(deployment.scopes),
        "services": deployment.services,
    });
    if let Some(gseq) = deployment.gseq {
        entry["gseq"] = gseq.into();
    }
    if let Some(oseq) = deployment.oseq {
        entry["oseq"] = oseq.into();
    }
    entry
}

fn words(scopes: Scopes) -> Vec<&'static str> {
    scopes.iter().map(TokenScope::word).collect()
}
