//! Error responses: status, content type and text of each.
//!
//! Faults of credentials have the texts of the Akash provider, which clients show and compare. All other
//! texts come from the table of `edge::errors`, which has nothing internal.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Response, StatusCode};
use serde::Serialize;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::status_json::APPLICATION_JSON;
use crate::access::refusal::{Refusal, RefusalKind};
use crate::edge::errors::CallError;
use crate::edge::websocket::handshake::HandshakeError;
use crate::model::id::IdError;

/// The reason code of a refusal, as in gRPC's `ErrorInfo`. A header, because the body is that of the Akash
/// provider.
const REASON_HEADER: &str = "leasemux-reason";

/// The reason of an invalid request, as in gRPC.
const INVALID: &str = "INVALID_REQUEST";

/// An error response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RestError {
    status: StatusCode,
    body: Body,
    /// For programs: that of gRPC. Errors of the Akash provider's form send it for refusals only.
    reason: Cow<'static, str>,
    /// The method that a route has.
    allow: Option<Method>,
    retry_after: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Body {
    Empty,
    /// `{"message":"…"}`
    Json(Cow<'static, str>),
    /// The text and a newline.
    Text(Cow<'static, str>),
    /// `{"reason":"…","message":"…"}`
    Object(Cow<'static, str>),
}

#[derive(Serialize)]
struct ErrorObject<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    message: &'a str,
}

// === impl RestError ===

impl RestError {
    pub(crate) fn text(status: StatusCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self { status, body: Body::Text(text.into()), reason: "".into(), allow: None, retry_after: None }
    }

    fn with_reason(self, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: reason.into(), ..self }
    }

    /// Returns the same error with an object as its body, for routes that the Akash provider does not have.
    pub(crate) fn with_object(self) -> Self {
        let body = match self.body {
            Body::Json(text) | Body::Text(text) => Body::Object(text),
            other @ (Body::Empty | Body::Object(_)) => other,
        };
        Self { body, ..self }
    }

    /// The response to an unknown path.
    pub(crate) fn not_found() -> Self {
        Self::text(StatusCode::NOT_FOUND, "404 page not found")
    }

    /// The response to a method that a native route does not have. It has the method `allow`.
    pub(crate) fn method_not_allowed(allow: Method) -> Self {
        Self { body: Body::Empty, allow: Some(allow), ..Self::text(StatusCode::METHOD_NOT_ALLOWED, "") }
    }

    /// The response to a request that a page of another origin sends.
    pub(crate) fn other_origin() -> Self {
        let error = HandshakeError::Origin;
        Self::text(error.status(), error.to_string()).with_reason("OTHER_ORIGIN")
    }

    /// The response to a service that the lease does not have.
    pub(crate) fn no_service() -> Self {
        Self::text(StatusCode::NOT_FOUND, "the lease has no such service").with_reason("SERVICE_NOT_FOUND")
    }

    /// The response to an invalid lease id in the path.
    pub(crate) fn lease_id(error: &IdError) -> Self {
        Self::text(StatusCode::BAD_REQUEST, format!("invalid lease id: {error}")).with_reason(INVALID)
    }

    /// The response to an invalid query, with the text of its parser.
    pub(crate) fn query(text: String) -> Self {
        Self::text(StatusCode::BAD_REQUEST, text).with_reason(INVALID)
    }

    /// The response to a caller with a certificate only, on a route that is forwarded.
    pub(crate) fn needs_token() -> Self {
        Self::text(StatusCode::NOT_IMPLEMENTED, "this route needs a token on this gateway")
    }

    #[cfg(test)]
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn into_response(self) -> Response<Bytes> {
        let has_reason = matches!(self.body, Body::Json(_) | Body::Object(_)) && !self.reason.is_empty();
        let (content_type, body) = match self.body {
            Body::Empty => (None, Bytes::new()),
            Body::Json(message) => {
                let json = serde_json::json!({ "message": message }).to_string();
                (Some(APPLICATION_JSON_ERROR), json.into())
            }
            Body::Text(text) => (Some("text/plain; charset=utf-8"), format!("{text}\n").into()),
            Body::Object(message) => {
                let object = ErrorObject { reason: &self.reason, message: &message };
                (Some(APPLICATION_JSON), serde_json::to_vec(&object).unwrap_or_default().into())
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if let Some(content_type) = content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        if has_reason && let Ok(reason) = HeaderValue::from_str(&self.reason) {
            headers.insert(REASON_HEADER, reason);
        }
        if let Some(after) = self.retry_after {
            // In whole seconds, rounded up.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Some(Ok(allow)) = self.allow.map(|method| HeaderValue::from_str(method.as_str())) {
            headers.insert(ALLOW, allow);
        }
        response
    }
}

impl From<&CallError> for RestError {
    fn from(error: &CallError) -> Self {
        match error {
            CallError::Refused(refusal) => (*refusal).into(),
            CallError::NoCredentialsBy(_) => Refusal::NoCredentials.into(),
            other => (&other.to_status()).into(),
        }
    }
}

impl From<Refusal> for RestError {
    fn from(refusal: Refusal) -> Self {
        let (status, text) = refusal_text(refusal);
        let retry_after = match refusal.kind() {
            RefusalKind::Unavailable | RefusalKind::Exhausted => Some(Duration::from_secs(1)),
            RefusalKind::Unauthenticated | RefusalKind::PermissionDenied => None,
        };
        Self { body: Body::Json(text), retry_after, ..Self::text(status, "") }.with_reason(refusal.reason())
    }
}

/// Converts an error of the one table.
impl From<&Status> for RestError {
    fn from(status: &Status) -> Self {
        let code = match status.code() {
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            Code::Unauthenticated | Code::PermissionDenied => StatusCode::UNAUTHORIZED,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::DeadlineExceeded => StatusCode::REQUEST_TIMEOUT,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
        let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        Self { retry_after, ..Self::text(code, status.message().to_owned()) }.with_reason(reason)
    }
}

/// Content type of the errors of credentials.
const APPLICATION_JSON_ERROR: &str = "application/json";

/// Returns status and text of a refusal. The texts do not differ by lease or service: an answer must not
/// reveal whether they exist.
fn refusal_text(refusal: Refusal) -> (StatusCode, Cow<'static, str>) {
    let subject = refusal.reason().split('_').next();
    match refusal {
        Refusal::AuthorizationMalformed => (StatusCode::BAD_REQUEST, "invalid authorization header".into()),
        Refusal::Ambiguous => {
            let text = "auth: ambiguous authentication. may not use mTLS and JWT at the same time";
            (StatusCode::BAD_REQUEST, text.into())
        }
        Refusal::TokenExpired => (StatusCode::UNAUTHORIZED, "JWT is expired".into()),
        Refusal::TokenTooLong
        | Refusal::TokenMalformed
        | Refusal::TokenHeader
        | Refusal::TokenAlgorithm
        | Refusal::TokenSignatureForm
        | Refusal::TokenSignatureHigh
        | Refusal::TokenSignature
        | Refusal::TokenNotYetValid => (StatusCode::UNAUTHORIZED, "JWT is invalid".into()),
        Refusal::TrustUnavailable => (StatusCode::SERVICE_UNAVAILABLE, refusal.to_string().into()),
        Refusal::TrustBusy => (StatusCode::TOO_MANY_REQUESTS, refusal.to_string().into()),
        // Every other fault of a token lies in its claims.
        _ if subject == Some("TOKEN") => (StatusCode::BAD_REQUEST, "JWT has invalid claims".into()),
        _ if subject == Some("ACCOUNT") => (StatusCode::UNAUTHORIZED, "JWT is invalid".into()),
        _ => (StatusCode::UNAUTHORIZED, "unauthorized access".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::quota::{Exceeded, Quota, Subject};
    use crate::model::view::Missing;
    use crate::platform;

    /// Returns status, content type and body.
    fn sent(error: RestError) -> (u16, String, String) {
        let response = error.into_response();
        let content_type =
            response.headers().get(CONTENT_TYPE).map(|value| value.to_str().unwrap().to_owned());
        let body = String::from_utf8(response.body().to_vec()).unwrap();
        (response.status().as_u16(), content_type.unwrap_or_default(), body)
    }

    fn refused(refusal: Refusal) -> (u16, String) {
        let (status, content_type, body) = sent((&CallError::Refused(refusal)).into());
        assert_eq!(content_type, "application/json");
        let json: serde_json::Value = serde_json::from_str(&body).unwrap();
        (status, json["message"].as_str().unwrap().to_owned())
    }

    #[test]
    fn credential_faults_have_the_texts_of_the_provider() {
        let ambiguous = "auth: ambiguous authentication. may not use mTLS and JWT at the same time";
        for (refusal, status, text) in [
            (Refusal::AuthorizationMalformed, 400, "invalid authorization header"),
            (Refusal::Ambiguous, 400, ambiguous),
            (Refusal::TokenIssuer, 400, "JWT has invalid claims"),
            (Refusal::TokenScopeUnknown, 400, "JWT has invalid claims"),
            (Refusal::TokenSignature, 401, "JWT is invalid"),
            (Refusal::TokenMalformed, 401, "JWT is invalid"),
            (Refusal::TokenNotYetValid, 401, "JWT is invalid"),
            (Refusal::AccountUnknown, 401, "JWT is invalid"),
            (Refusal::TokenExpired, 401, "JWT is expired"),
            (Refusal::NoCredentials, 401, "unauthorized access"),
            (Refusal::NotYours, 401, "unauthorized access"),
            (Refusal::ScopeNotGranted, 401, "unauthorized access"),
            (Refusal::ServiceNotGranted, 401, "unauthorized access"),
            (Refusal::CertificateExpired, 401, "unauthorized access"),
        ] {
            assert_eq!(refused(refusal), (status, text.to_owned()), "{refusal:?}");
        }
        let expected = r#"{"message":"unauthorized access"}"#;
        assert_eq!(sent(Refusal::NoCredentials.into()).2, expected);
        let host = CallError::NoCredentialsBy("provider.example".into());
        assert_eq!(sent((&host).into()).2, expected);
    }

    #[test]
    fn refusal_has_its_reason_as_a_header() {
        for refusal in Refusal::ALL {
            let response = RestError::from(refusal).into_response();
            assert_eq!(response.headers()[REASON_HEADER], refusal.reason());
            assert!(response.status().is_client_error() || refusal.kind() == RefusalKind::Unavailable);
        }
        assert_eq!(RestError::from(Refusal::TrustUnavailable).status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn routing_errors_are_those_of_the_provider() {
        let plain = "text/plain; charset=utf-8".to_owned();
        assert_eq!(sent(RestError::not_found()), (404, plain.clone(), "404 page not found\n".into()));
        let not_allowed = RestError::method_not_allowed(Method::POST);
        assert_eq!(sent(not_allowed.clone()), (405, String::new(), String::new()));
        assert_eq!(not_allowed.with_object().into_response().headers()[ALLOW], "POST");
        let error = IdError::LeasePart { part: "dseq", reason: "must be a positive decimal number" };
        let text = "invalid lease id: dseq must be a positive decimal number\n";
        assert_eq!(sent(RestError::lease_id(&error)), (400, plain, text.into()));
        assert_eq!(sent(RestError::needs_token()).0, 501);
    }

    #[test]
    fn call_errors_have_no_internals() {
        let status = |error: CallError| {
            let (status, _, body) = sent((&error).into());
            assert!(!body.contains("10.0.0.1"), "{body}");
            status
        };
        let detail = || "dial tcp 10.0.0.1: refused".to_owned();
        assert_eq!(status(CallError::Platform(platform::Error::Unavailable(detail()))), 503);
        assert_eq!(status(CallError::Platform(platform::Error::Broken(detail()))), 500);
        assert_eq!(status(CallError::Platform(platform::Error::NotFound(detail()))), 404);
        assert_eq!(status(CallError::NoLease), 404);
        assert_eq!(status(CallError::Missing(Missing::Service("web".parse().unwrap()))), 404);
        assert_eq!(status(CallError::Draining), 503);
        assert_eq!(status(CallError::field("x", "y")), 400);
        assert_eq!(status(CallError::RequestTimeout), 408);
        assert_eq!(status(CallError::Unimplemented("no")), 501);
    }

    #[test]
    fn object_has_reason_and_message() {
        let object = |error: RestError| {
            let reason = error.clone().with_object().into_response().headers()[REASON_HEADER].clone();
            (sent(error.with_object()), reason)
        };
        let json = || APPLICATION_JSON.to_owned();
        let body = r#"{"reason":"NOT_YOURS","message":"unauthorized access"}"#;
        let reason = Refusal::NotYours.reason();
        let body = body.replace("NOT_YOURS", reason);
        assert_eq!(object(Refusal::NotYours.into()), ((401, json(), body), reason.parse().unwrap()));
        let body = r#"{"reason":"LEASE_NOT_FOUND","message":"the lease does not exist on this gateway"}"#;
        let expected = ((404, json(), body.to_owned()), "LEASE_NOT_FOUND".parse().unwrap());
        assert_eq!(object((&CallError::NoLease).into()), expected);
        // Texts of the Akash provider's form have no reason.
        assert!(!RestError::from(&CallError::NoLease).into_response().headers().contains_key(REASON_HEADER));
    }

    #[test]
    fn quota_error_says_when_to_retry() {
        let retry_after = Some(Duration::from_millis(1_200));
        let exceeded =
            Exceeded { quota: Quota::RequestsPerOwner, subject: Subject::Gateway, limit: 7, retry_after };
        let response = RestError::from(&CallError::Quota(exceeded)).into_response();
        assert_eq!(
            (response.status().as_u16(), &response.headers()[RETRY_AFTER]),
            (429, &"2".parse().unwrap())
        );
        assert!(response.body().starts_with(b"requests_per_owner: "));
    }
}
