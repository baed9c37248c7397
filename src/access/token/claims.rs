//! What a token claims: its issuer, its time, and what it grants.
//!
//! The rules are those of AEP-64 and its schema, with one addition: times may be quoted, as Akash's own tools take
//! them; and one exception: a service's name may be any text, since one that no service can have grants nothing anyway. What
//! AEP-64 grants of one deployment it grants by service: there is no word for all of them.

use std::collections::{BTreeMap, BTreeSet};

use super::Fault;
use super::json::{Json, Members, Path};
use crate::access::grants::{Access, Deployment, ProviderAccess, Scopes, TokenScope};
use crate::access::refusal::Refusal;
use crate::model::id::{Address, Owner};

/// Characters of the address of a key: the schema has no others (`^akash1[a-z0-9]{38}$`).
const ADDRESS_CHARS: usize = 44;

/// The one version of the claims.
pub(super) const VERSION: &str = "v1";

const CLAIMS: [&str; 7] = ["iss", "iat", "nbf", "exp", "jti", "version", "leases"];
const LEASES: [&str; 3] = ["access", "scope", "permissions"];
const PERMISSION: [&str; 4] = ["provider", "access", "scope", "deployments"];
const DEPLOYMENT: [&str; 5] = ["dseq", "gseq", "oseq", "scope", "services"];

/// The claims of a token that keep all rules by themselves. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// `iss`: whose leases it is about, and who signed it.
    pub issuer: Owner,
    /// `iat`: when it was made. Nothing follows from it.
    pub issued: u64,
    /// `nbf`: the first second at which it is valid.
    pub not_before: u64,
    /// `exp`: the first second at which it no longer is.
    pub expires: u64,
    /// `jti`: its name, if it has one. Nothing follows from it.
    pub id: Option<String>,
    /// `leases`: what it grants.
    pub access: Access,
}

/// The three words of `access`.
enum Level {
    Full,
    Scoped,
    Granular,
}

// === impl Claims ===

impl Claims {
    /// Reads and checks the claims.
    ///
    /// # Errors
    /// The first rule that is broken, and where.
    pub(super) fn parse(payload: &[u8]) -> Result<Self, Fault> {
        let root = Path::Root;
        let json = Json::parse(payload).filter(|json| matches!(json, Json::Object(_)));
        let json = json.ok_or_else(|| root.fault(Refusal::TokenClaims))?;
        let claims = Members::of(&json, &root, &CLAIMS)?;
        let version = root.member("version");
        if claims.required("version")?.text(&version)? != VERSION {
            return Err(version.fault(Refusal::TokenVersion));
        }
        let id = claims.get("jti").map(|id| name(id, &root.member("jti"))).transpose()?;
        let time = |name| seconds(claims.required(name)?, &root.member(name));
        Ok(Self {
            issuer: address(claims.required("iss")?, &root.member("iss"), Refusal::TokenIssuer)?,
            issued: time("iat")?,
            not_before: time("nbf")?,
            expires: time("exp")?,
            id,
            access: leases(claims.required("leases")?, &root.member("leases"))?,
        })
    }
}

fn name(json: &Json, path: &Path<'_>) -> Result<String, Fault> {
    let name = json.text(path)?;
    if name.is_empty() { Err(path.fault(Refusal::TokenId)) } else { Ok(name.to_owned()) }
}

/// Whole seconds, quoted or not; quoted ones have no leading zero.
fn seconds(json: &Json, path: &Path<'_>) -> Result<u64, Fault> {
    match json {
        Json::Number(number) => Ok(*number),
        Json::Text(text) => {
            let number = text.parse().ok().filter(|number: &u64| number.to_string() == *text);
            number.ok_or_else(|| path.fault(Refusal::TokenTime))
        }
        Json::Other => Err(path.fault(Refusal::TokenTime)),
        _ => Err(path.fault(Refusal::TokenMemberType)),
    }
}

fn address(json: &Json, path: &Path<'_>, refusal: Refusal) -> Result<Address, Fault> {
    let text = json.text(path)?;
    let address = text.parse().ok().filter(|_| text.len() == ADDRESS_CHARS);
    address.ok_or_else(|| path.fault(refusal))
}

fn leases(json: &Json, path: &Path<'_>) -> Result<Access, Fault> {
    let leases = Members::of(json, path, &LEASES)?;
    match level(&leases, path)? {
        Level::Full => {
            leases.without(&["scope", "permissions"])?;
            Ok(Access::Full)
        }
        Level::Scoped => {
            leases.without(&["permissions"])?;
            Ok(Access::Scoped(scopes(leases.required("scope")?, &path.member("scope"))?))
        }
        Level::Granular => {
            leases.without(&["scope"])?;
            let path = path.member("permissions");
            permissions(leases.required("permissions")?, &path).map(Access::Granular)
        }
    }
}

fn permissions(json: &Json, path: &Path<'_>) -> Result<BTreeMap<Address, ProviderAccess>, Fault> {
    let list = json.list(path)?;
    if list.is_empty() {
        return Err(path.fault(Refusal::TokenPermissionsEmpty));
    }
    let mut permissions = BTreeMap::new();
    for (index, json) in list.iter().enumerate() {
        let path = path.item(index);
        let (provider, access) = permission(json, &path)?;
        if permissions.insert(provider, access).is_some() {
            return Err(path.member("provider").fault(Refusal::TokenProviderTwice));
        }
    }
    Ok(permissions)
}

fn permission(json: &Json, path: &Path<'_>) -> Result<(Address, ProviderAccess), Fault> {
    let entry = Members::of(json, path, &PERMISSION)?;
    let provider = path.member("provider");
    let provider = address(entry.required("provider")?, &provider, Refusal::TokenProvider)?;
    let access = match level(&entry, path)? {
        Level::Full => {
            entry.without(&["scope", "deployments"])?;
            ProviderAccess::Full
        }
        Level::Scoped => {
            entry.without(&["deployments"])?;
            ProviderAccess::Scoped(scopes(entry.required("scope")?, &path.member("scope"))?)
        }
        Level::Granular => {
            entry.without(&["scope"])?;
            let path = path.member("deployments");
            let list = entry.required("deployments")?.list(&path)?;
            if list.is_empty() {
                return Err(path.fault(Refusal::TokenDeploymentsEmpty));
            }
            let each = list.iter().enumerate().map(|(index, json)| deployment(json, &path.item(index)));
            ProviderAccess::Granular(each.collect::<Result<_, _>>()?)
        }
    };
    Ok((provider, access))
}

fn deployment(json: &Json, path: &Path<'_>) -> Result<Deployment, Fault> {
    let entry = Members::of(json, path, &DEPLOYMENT)?;
    let dseq = match entry.required("dseq")? {
        Json::Number(dseq) if *dseq > 0 => *dseq,
        Json::Number(_) | Json::Other => return Err(path.member("dseq").fault(Refusal::TokenDseq)),
        _ => return Err(path.member("dseq").fault(Refusal::TokenMemberType)),
    };
    let (gseq, oseq) = (sequence(&entry, path, "gseq")?, sequence(&entry, path, "oseq")?);
    let is_alone = entry.get("oseq").is_some() && entry.get("gseq").is_none();
    if is_alone || (oseq.is_some() && gseq.is_none()) {
        return Err(path.member("oseq").fault(Refusal::TokenOseq));
    }
    let scopes = scopes(entry.required("scope")?, &path.member("scope"))?;
    let services = services(entry.required("services")?, &path.member("services"))?;
    Ok(Deployment { dseq, gseq, oseq, scopes, services })
}

/// `None` if it is absent or zero: any.
fn sequence(entry: &Members<'_>, path: &Path<'_>, name: &str) -> Result<Option<u32>, Fault> {
    let fault = |refusal| Err(path.member(name).fault(refusal));
    match entry.get(name) {
        None => Ok(None),
        Some(Json::Number(number)) => match u32::try_from(*number) {
            Ok(number) => Ok(Some(number).filter(|number| *number > 0)),
            Err(_) => fault(Refusal::TokenSequence),
        },
        Some(Json::Other) => fault(Refusal::TokenSequence),
        Some(_) => fault(Refusal::TokenMemberType),
    }
}

fn services(json: &Json, path: &Path<'_>) -> Result<BTreeSet<String>, Fault> {
    let list = json.list(path)?;
    if list.is_empty() {
        return Err(path.fault(Refusal::TokenServicesEmpty));
    }
    let mut services = BTreeSet::new();
    for (index, json) in list.iter().enumerate() {
        let path = path.item(index);
        if !services.insert(json.text(&path)?.to_owned()) {
            return Err(path.fault(Refusal::TokenServiceTwice));
        }
    }
    Ok(services)
}

fn scopes(json: &Json, path: &Path<'_>) -> Result<Scopes, Fault> {
    let list = json.list(path)?;
    if list.is_empty() {
        return Err(path.fault(Refusal::TokenScopeEmpty));
    }
    let mut scopes = Scopes::default();
    for (index, json) in list.iter().enumerate() {
        let path = path.item(index);
        let scope = TokenScope::of_word(json.text(&path)?);
        let scope = scope.ok_or_else(|| path.fault(Refusal::TokenScopeUnknown))?;
        if !scopes.insert(scope) {
            return Err(path.fault(Refusal::TokenScopeTwice));
        }
    }
    Ok(scopes)
}

fn level(members: &Members<'_>, path: &Path<'_>) -> Result<Level, Fault> {
    let path = path.member("access");
    match members.required("access")?.text(&path)? {
        "full" => Ok(Level::Full),
        "scoped" => Ok(Level::Scoped),
        "granular" => Ok(Level::Granular),
        _ => Err(path.fault(Refusal::TokenAccess)),
    }
}
