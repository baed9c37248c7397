//! The claims of a token: its issuer, its times and its grants, read and written.
//!
//! The rules are those of AEP-64 and its schema, with one addition and one exception. Times may be quoted, as
//! Akash's own tools accept them. The name of a service may be any text: akt writes `*` for all services, and
//! any other name that no service can have grants nothing.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use super::json::{Json, Members, Path};
use super::{Algorithm, TokenError};
use crate::access::grants::{Access, Deployment, Grant, ProviderAccess, Scopes, TokenScope};
use crate::access::refusal::Refusal;
use crate::model::id::{Address, Owner};

/// Characters of the address of a key: the schema allows no others (`^akash1[a-z0-9]{38}$`).
const ADDRESS_CHARS: usize = 44;

/// The only version of the claims.
const VERSION: &str = "v1";

const CLAIMS: [&str; 7] = ["iss", "iat", "nbf", "exp", "jti", "version", "leases"];
const LEASES: [&str; 3] = ["access", "scope", PERMISSIONS];
const PERMISSION: [&str; 4] = ["provider", "access", "scope", DEPLOYMENTS];
const DEPLOYMENT: [&str; 5] = ["dseq", "gseq", "oseq", "scope", "services"];

const PERMISSIONS: &str = "permissions";
const DEPLOYMENTS: &str = "deployments";

/// The claims of a token, which satisfy the schema. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// `iss`: the owner of the leases, and signer of the token.
    pub issuer: Owner,
    /// `iat`: when the token was made. Not evaluated.
    pub issued: u64,
    /// `nbf`: the first second at which the token is valid.
    pub not_before: u64,
    /// `exp`: the first second at which it no longer is.
    pub expires: u64,
    /// `jti`: the optional name of the token. Not evaluated.
    pub id: Option<String>,
    /// `leases`: the grants.
    pub access: Access,
}

// === reading ===

impl Claims {
    /// Reads and checks the claims. Fails with the first rule that is broken, and its place.
    pub(super) fn parse(payload: &[u8]) -> Result<Self, TokenError> {
        let root = Path::Root;
        let json = Json::parse(payload).filter(|json| matches!(json, Json::Object(_)));
        let json = json.ok_or_else(|| root.error(Refusal::TokenClaims))?;
        let claims = Members::of(&json, &root, &CLAIMS)?;
        let version = root.member("version");
        if claims.required("version")?.text(&version)? != VERSION {
            return Err(version.error(Refusal::TokenVersion));
        }
        let id = claims.get("jti").map(|id| token_id(id, &root.member("jti"))).transpose()?;
        let time = |name| seconds(claims.required(name)?, &root.member(name));
        let leases = root.member("leases");
        Ok(Self {
            issuer: address(claims.required("iss")?, &root.member("iss"), Refusal::TokenIssuer)?,
            issued: time("iat")?,
            not_before: time("nbf")?,
            expires: time("exp")?,
            id,
            access: {
                let members = Members::of(claims.required("leases")?, &leases, &LEASES)?;
                grant(&members, &leases, PERMISSIONS, permissions)?
            },
        })
    }
}

fn token_id(json: &Json, path: &Path<'_>) -> Result<String, TokenError> {
    let id = json.text(path)?;
    if id.is_empty() { Err(path.error(Refusal::TokenId)) } else { Ok(id.to_owned()) }
}

/// Reads whole seconds, quoted or not. Quoted ones have no leading zero.
fn seconds(json: &Json, path: &Path<'_>) -> Result<u64, TokenError> {
    match json {
        Json::Number(number) => Ok(*number),
        Json::Text(text) => {
            let number = text.parse().ok().filter(|number: &u64| number.to_string() == *text);
            number.ok_or_else(|| path.error(Refusal::TokenTime))
        }
        Json::Other => Err(path.error(Refusal::TokenTime)),
        _ => Err(path.error(Refusal::TokenMemberType)),
    }
}

fn address(json: &Json, path: &Path<'_>, refusal: Refusal) -> Result<Address, TokenError> {
    let text = json.text(path)?;
    let address = text.parse().ok().filter(|_| text.len() == ADDRESS_CHARS);
    address.ok_or_else(|| path.error(refusal))
}

/// Reads the grant of one level by its `access`. `next` names the member with the entries of the next level.
fn grant<T>(
    members: &Members<'_>,
    path: &Path<'_>,
    next: &str,
    read_next: impl FnOnce(&Json, &Path<'_>) -> Result<T, TokenError>,
) -> Result<Grant<T>, TokenError> {
    let access = path.member("access");
    match members.required("access")?.text(&access)? {
        "full" => {
            members.without(&["scope", next])?;
            Ok(Grant::Full)
        }
        "scoped" => {
            members.without(&[next])?;
            Ok(Grant::Scoped(scopes(members.required("scope")?, &path.member("scope"))?))
        }
        "granular" => {
            members.without(&["scope"])?;
            Ok(Grant::Granular(read_next(members.required(next)?, &path.member(next))?))
        }
        _ => Err(access.error(Refusal::TokenAccess)),
    }
}

fn permissions(json: &Json, path: &Path<'_>) -> Result<BTreeMap<Address, ProviderAccess>, TokenError> {
    let mut permissions = BTreeMap::new();
    for (index, json) in json.items(path, Refusal::TokenPermissionsEmpty)?.iter().enumerate() {
        let path = path.item(index);
        let entry = Members::of(json, &path, &PERMISSION)?;
        let provider_path = path.member("provider");
        let provider = address(entry.required("provider")?, &provider_path, Refusal::TokenProvider)?;
        let access = grant(&entry, &path, DEPLOYMENTS, deployments)?;
        if permissions.insert(provider, access).is_some() {
            return Err(provider_path.error(Refusal::TokenProviderTwice));
        }
    }
    Ok(permissions)
}

fn deployments(json: &Json, path: &Path<'_>) -> Result<Vec<Deployment>, TokenError> {
    let entries = json.items(path, Refusal::TokenDeploymentsEmpty)?.iter().enumerate();
    entries.map(|(index, json)| deployment(json, &path.item(index))).collect()
}

fn deployment(json: &Json, path: &Path<'_>) -> Result<Deployment, TokenError> {
    let entry = Members::of(json, path, &DEPLOYMENT)?;
    let dseq = match entry.required("dseq")? {
        Json::Number(dseq) if *dseq > 0 => *dseq,
        Json::Number(_) | Json::Other => return Err(path.member("dseq").error(Refusal::TokenDseq)),
        _ => return Err(path.member("dseq").error(Refusal::TokenMemberType)),
    };
    let (gseq, oseq) = (sequence(&entry, path, "gseq")?, sequence(&entry, path, "oseq")?);
    let is_alone = entry.get("oseq").is_some() && entry.get("gseq").is_none();
    if is_alone || (oseq.is_some() && gseq.is_none()) {
        return Err(path.member("oseq").error(Refusal::TokenOseq));
    }
    let scopes = scopes(entry.required("scope")?, &path.member("scope"))?;
    let services = services(entry.required("services")?, &path.member("services"))?;
    Ok(Deployment { dseq, gseq, oseq, scopes, services })
}

/// Reads a number that is optional; zero counts as absent.
fn sequence(entry: &Members<'_>, path: &Path<'_>, name: &str) -> Result<Option<u32>, TokenError> {
    let error = |refusal| Err(path.member(name).error(refusal));
    match entry.get(name) {
        None => Ok(None),
        Some(Json::Number(number)) => match u32::try_from(*number) {
            Ok(number) => Ok(Some(number).filter(|number| *number > 0)),
            Err(_) => error(Refusal::TokenSequence),
        },
        Some(Json::Other) => error(Refusal::TokenSequence),
        Some(_) => error(Refusal::TokenMemberType),
    }
}

fn services(json: &Json, path: &Path<'_>) -> Result<BTreeSet<String>, TokenError> {
    let mut services = BTreeSet::new();
    for (index, json) in json.items(path, Refusal::TokenServicesEmpty)?.iter().enumerate() {
        let path = path.item(index);
        if !services.insert(json.text(&path)?.to_owned()) {
            return Err(path.error(Refusal::TokenServiceTwice));
        }
    }
    Ok(services)
}

fn scopes(json: &Json, path: &Path<'_>) -> Result<Scopes, TokenError> {
    let mut scopes = Scopes::new();
    for (index, json) in json.items(path, Refusal::TokenScopeEmpty)?.iter().enumerate() {
        let path = path.item(index);
        let scope = TokenScope::from_name(json.text(&path)?);
        if !scopes.insert(scope.ok_or_else(|| path.error(Refusal::TokenScopeUnknown))?) {
            return Err(path.error(Refusal::TokenScopeTwice));
        }
    }
    Ok(scopes)
}

// === writing ===

impl Claims {
    /// Returns the claims as JSON, with the members of AEP-64.
    pub fn to_json(&self) -> Value {
        let permissions = |providers: &BTreeMap<Address, ProviderAccess>| {
            let entry = |(provider, access): (&Address, &ProviderAccess)| {
                let deployments = |list: &Vec<Deployment>| list.iter().map(deployment_json).collect();
                let mut entry = grant_json(access, DEPLOYMENTS, deployments);
                entry["provider"] = provider.as_str().into();
                entry
            };
            providers.iter().map(entry).collect()
        };
        let mut claims = json!({
            "iss": self.issuer.as_str(),
            "iat": self.issued,
            "nbf": self.not_before,
            "exp": self.expires,
            "version": VERSION,
            "leases": grant_json(&self.access, PERMISSIONS, permissions),
        });
        if let Some(id) = &self.id {
            claims["jti"] = id.as_str().into();
        }
        claims
    }

    /// Returns the text to sign: a token without its signature.
    pub(in crate::access) fn unsigned(&self, algorithm: Algorithm) -> String {
        let header = json!({"alg": algorithm.name(), "typ": "JWT"}).to_string();
        let claims = self.to_json().to_string();
        format!("{}.{}", BASE64URL_NOPAD.encode(header.as_bytes()), BASE64URL_NOPAD.encode(claims.as_bytes()))
    }
}

fn grant_json<T>(grant: &Grant<T>, next: &str, entries: impl FnOnce(&T) -> Vec<Value>) -> Value {
    match grant {
        Grant::Full => json!({"access": "full"}),
        Grant::Scoped(scopes) => json!({"access": "scoped", "scope": scope_names(scopes)}),
        Grant::Granular(list) => json!({"access": "granular", next: entries(list)}),
    }
}

fn deployment_json(deployment: &Deployment) -> Value {
    let mut entry = json!({
        "dseq": deployment.dseq,
        "scope": scope_names(&deployment.scopes),
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

fn scope_names(scopes: &Scopes) -> Vec<&'static str> {
    scopes.iter().map(|scope| scope.name()).collect()
}
