//! Restarts: the part of the call that gRPC and REST share.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::LeaseService;
use crate::access::authenticator::CredentialValidity;
use crate::access::refusal::Refusal;
use crate::edge::audit::AuditRecord;
use crate::edge::errors::CallError;
use crate::restart::{JobRequest, RestartJob};

impl LeaseService {
    /// Starts a restart, or joins the job of an earlier call with the same id. The caller is authorised.
    pub(in crate::edge) async fn restart_job(
        &self,
        request: JobRequest,
        audit: &AuditRecord,
    ) -> Result<Arc<RestartJob>, CallError> {
        // A repeated call joins or completes the first call's job: no lookup, no quota.
        if let Some(job) = self.restarts.find_or_adopt(&request).await? {
            audit.restart(&request.filter, true);
            return Ok(job);
        }
        let view = self.checked_view(&request.lease, &request.filter).await?;
        self.quotas.admit_restart(&request.lease, Instant::now().into_std())?;
        let filter = request.filter.clone();
        let job = self.restarts.begin(request, &view.borrow())?;
        audit.restart(&filter, false);
        Ok(job)
    }

    /// Waits until the job is done, this time has passed, or the credentials end. The job does not depend on
    /// its caller.
    pub(in crate::edge) async fn await_restart(
        &self,
        job: &RestartJob,
        timeout: Duration,
        credentials: &CredentialValidity,
    ) -> Result<(), Refusal> {
        tokio::select! {
            biased;
            refusal = credentials.ended() => Err(refusal),
            () = job.wait(timeout) => Ok(()),
        }
    }
}
