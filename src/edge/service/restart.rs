//! `ServiceRestart`: replicas make way for new runs, one after the other.

use bytes::Bytes;
use http::Response;
use tokio::time::Instant;

use super::LeaseService;
use crate::access::authenticator::Admission;
use crate::access::grants::TokenScope;
use crate::edge::audit::AuditRecord;
use crate::edge::errors::CallError;
use crate::edge::request;
use crate::edge::response::{self, ResponseBody};
use crate::edge::stream_supervisor::Watched;
use crate::platform::Error;
use crate::restart::Rejection;

impl LeaseService {
    /// Waits as long as the caller wants, is there, and may. The restart itself needs nobody to wait for it.
    pub(super) async fn restart(
        &self,
        message: &Bytes,
        admission: Admission,
        watched: &Watched,
        case: &AuditRecord,
    ) -> Result<Response<ResponseBody>, CallError> {
        let (mut request, timeout) =
            request::restart(&request::decode(message)?, self.bounds().filters_per_request)?;
        case.about(&request.lease);
        admission.identity.authorize(&request.lease, TokenScope::Restart)?.narrow(&mut request.filter)?;
        // What was asked for before is not looked up, and nothing begins.
        let known = match self.restarts.find(&request)? {
            Some(round) => Some(round),
            None => self.restarts.adopt_remote(&request).await?,
        };
        let round = if let Some(round) = known {
            case.restarts(&request.filter, true);
            round
        } else {
            let view = self.chosen(&request.lease, &request.filter).await?;
            self.quotas.restart(&request.lease, Instant::now().into_std())?;
            let filter = request.filter.clone();
            let round = self.restarts.begin(request, &view.borrow())?;
            case.restarts(&filter, false);
            round
        };
        tokio::select! {
            biased;
            refusal = admission.validity.ended() => return Err(refusal.into()),
            () = round.wait(timeout) => {}
        }
        // From here on nobody need be waited for but the peer, who is to take it.
        let state = self.open(&admission, watched, case);
        Ok(response::of_message(&round.response(), state))
    }
}

impl From<Rejection> for CallError {
    fn from(refused: Rejection) -> Self {
        match refused {
            Rejection::IdReused => {
                Self::field("request_id", "was used within the last hour for another lease or other replicas")
            }
            Rejection::Full(exceeded) => exceeded.into(),
            Rejection::Alone(why) => {
                Self::Platform(Error::Unavailable(format!("whose turn it is to restart: {why}")))
            }
            Rejection::Stopped => Self::Draining,
        }
    }
}
