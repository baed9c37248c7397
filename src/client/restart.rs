//! `leasemux restart`: requests a restart, shows its progress and reports its outcome.
//!
//! A call that is lost is made again under the same request id, which identifies it to the gateway. Ctrl-C
//! ends the wait, erases the drawn progress, and does not end the restart. A closed output ends neither: the
//! exit code still reports the outcome.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;

use super::Out;
use super::connect::Connector;
use super::error::CallError;
use super::exit::Exit;
use super::interrupt::erase_on_interrupt;
use super::json::Object;
use super::live_region::{LiveRegion, Size};
use super::reconnect::{ReconnectState, Retries};
use super::request::{ANSWER_TIMEOUT, filters, response};
use super::restart_progress::show_progress;
use super::services::{expand, explain};
use super::table::Table;
use super::terminal::write_message;
use crate::config::{CallConfig, Format, RestartConfig};
use crate::model::id::RequestId;
use crate::model::proto::lease::service_restart_status::State;
use crate::model::proto::lease::{ServiceRestartRequest, ServiceRestartResponse};

/// One restart request, which may take several calls, and the outputs of the command.
struct Restart<'a> {
    config: &'a RestartConfig,
    /// Identifies the request to the gateway in all its calls.
    id: RequestId,
    out: Out<'a>,
    err: Out<'a>,
    /// Whether progress is drawn on `err`.
    has_progress: bool,
    /// Number of its lines that are drawn.
    drawn: Arc<Mutex<usize>>,
}

/// Requests the restart that `config` describes. Prints the outcome to `out` and messages to `err`, as well
/// as the progress if that is a `terminal`.
pub async fn run(
    config: &RestartConfig,
    out: impl Write + Send,
    err: impl Write + Send,
    terminal: bool,
) -> Exit {
    let id = config.request_id.clone().unwrap_or_else(RequestId::unique);
    let (has_progress, drawn) = (terminal && !config.quiet, Arc::default());
    let _interrupts = has_progress.then(|| erase_on_interrupt(Arc::clone(&drawn), LiveRegion::erasure));
    let mut restart = Restart { config, id, out: Box::new(out), err: Box::new(err), has_progress, drawn };
    let done = match restart.call().await {
        Ok(response) => restart.conclude(&response).map_err(CallError::Sink),
        Err(error) => Err(error),
    };
    match done {
        Ok(exit) => exit,
        Err(error) => {
            // If the error output fails as well, there is no way to report it.
            let _ = write_message(&mut restart.err, &explain(&error, &config.call).await);
            Exit::from(&error)
        }
    }
}

// === impl Restart ===

impl Restart<'_> {
    /// Calls until there is a response or a final error.
    async fn call(&mut self) -> Result<ServiceRestartResponse, CallError> {
        let connector = Connector::new(&self.config.call.target)?;
        // Once, so that all attempts make the same request.
        let call = expand(&self.config.call, &connector).await?;
        let deadline = Instant::now() + self.config.timeout;
        let mut reconnect = ReconnectState::new(Retries::Unlimited);
        loop {
            let started = Instant::now();
            let left = deadline.saturating_duration_since(started);
            let error = match self.attempt(&connector, &call, &mut reconnect, left).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            if started >= deadline + ANSWER_TIMEOUT || error.is_lease_gone() {
                return Err(error);
            }
            let announce = |error: &CallError, delay: Duration| {
                let (seconds, id) = (delay.as_secs_f64(), &self.id);
                let text = format!("{error}; retrying in {seconds:.1} s with the same request id ({id})");
                write_message(&mut self.err, &text)
            };
            reconnect.wait(error, started, announce).await?;
        }
    }

    async fn attempt(
        &mut self,
        connector: &Connector,
        call: &CallConfig,
        reconnect: &mut ReconnectState,
        left: Duration,
    ) -> Result<ServiceRestartResponse, CallError> {
        let mut client = Box::pin(connector.connect()).await?;
        reconnect.was_connected = true;
        let (filter, filters) = filters(call);
        let request = ServiceRestartRequest {
            lease_id: Some((&call.lease).into()),
            filter,
            timeout: prost_types::Duration::try_from(left).ok(),
            request_id: self.id.to_string(),
            filters,
        };
        let has_progress = self.has_progress && !left.is_zero();
        let mut region = LiveRegion::new(&mut self.err, Size::of_errors).counted_in(&self.drawn);
        let progress_client = client.clone();
        let progress = async {
            if has_progress {
                // Progress is optional: a caller without permission for the status may still restart.
                let _ = show_progress(call, progress_client, &mut region).await;
            }
            std::future::pending::<()>().await;
        };
        let answer = tokio::select! {
            answer = response(left + ANSWER_TIMEOUT, client.service_restart(request)) => answer,
            () = progress => Err(Status::internal("progress does not end").into()),
        };
        region.clear()?;
        Ok(answer?.into_inner())
    }

    /// Prints the outcome, and returns it as an exit code.
    fn conclude(&mut self, response: &ServiceRestartResponse) -> io::Result<Exit> {
        match self.print(response) {
            // The exit code still reports the outcome.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            printed => printed?,
        }
        let any = |state: State| response.status.iter().any(|one| one.state() == state);
        if any(State::Failure) {
            return Ok(Exit::NotRestarted);
        }
        if any(State::Pending) {
            let text = format!(
                "the restart is still in progress and continues; to get its outcome, \
                 repeat the command with --request-id {}",
                self.id
            );
            write_message(&mut self.err, &text)?;
            return Ok(Exit::Pending);
        }
        Ok(Exit::Done)
    }

    fn print(&mut self, response: &ServiceRestartResponse) -> io::Result<()> {
        let mut out = LiveRegion::new(&mut self.out, Size::of_output);
        match self.config.output {
            Format::Json => out.print_json(&Object::restart(&self.id, response)),
            Format::Text => out.print(&Table::of_restart(&response.status).lines()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::client::testing::{ClosedOutput, FakeGateway, LEASE, RestartStep};
    use crate::model::proto::lease::ServiceRestartStatus;

    fn answer(each: &[(State, Option<&str>)]) -> RestartStep {
        let status = each.iter().enumerate().map(|(index, (state, message))| ServiceRestartStatus {
            service: "web".into(),
            replica: index.to_string(),
            state: (*state).into(),
            message: message.map(str::to_owned),
        });
        RestartStep::Answer(ServiceRestartResponse { status: status.collect() })
    }

    fn config(gateway: &FakeGateway, format: Format, request_id: Option<&str>) -> RestartConfig {
        RestartConfig {
            call: CallConfig {
                lease: LEASE.parse().unwrap(),
                source: crate::config::LeaseSource::default(),
                target: gateway.target(),
                services: vec!["web".parse().unwrap()],
                replicas: vec![0, 1],
            },
            all: false,
            timeout: Duration::from_secs(60),
            quiet: false,
            request_id: request_id.map(|id| id.parse().unwrap()),
            output: format,
        }
    }

    async fn restart(
        gateway: &FakeGateway,
        format: Format,
        request_id: Option<&str>,
    ) -> (Exit, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = run(&config(gateway, format, request_id), &mut out, &mut err, false).await;
        (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[tokio::test]
    async fn outcome_is_printed_and_sets_the_exit_code() {
        let active = (State::Active, None);
        let left = (State::Failure, Some("not attempted: why"));
        let gateway = FakeGateway::with_restarts(vec![
            answer(&[active, active]),
            answer(&[active, (State::Pending, None)]),
            answer(&[(State::Failure, Some("crashed")), left]),
            answer(&[(State::Pending, None), left]),
            answer(&[active, (State::Failure, Some(""))]),
        ])
        .await;
        let (exit, out, err) = restart(&gateway, Format::Text, None).await;
        assert_eq!((exit, err.as_str()), (Exit::Done, ""));
        assert_eq!(out, "REPLICA  STATE   MESSAGE\nweb/0    active\nweb/1    active\n");
        let (exit, _, err) = restart(&gateway, Format::Text, Some("deploy-7")).await;
        assert_eq!(exit, Exit::Pending);
        assert!(err.contains("--request-id deploy-7"), "{err}");
        let (exit, out, _) = restart(&gateway, Format::Text, None).await;
        assert_eq!(exit, Exit::NotRestarted);
        assert!(out.ends_with("web/0    failure  crashed\nweb/1    failure  not attempted: why\n"), "{out}");
        assert_eq!(restart(&gateway, Format::Text, None).await.0, Exit::NotRestarted);
        let (_, out, _) = restart(&gateway, Format::Json, Some("deploy-8")).await;
        let expected = r#"{"request_id":"deploy-8","status":[{"service":"web","replica":"0","state":"active"},{"service":"web","replica":"1","state":"failure","message":""}]}"#;
        assert_eq!(out, format!("{expected}\n"), "an absent message is left out, an empty one is not");
        let request = &gateway.restarts()[0];
        assert_eq!(request.filter.as_ref().unwrap().replicas, [0, 1]);
        assert!((50..=60).contains(&request.timeout.unwrap().seconds), "{request:?}");
    }

    #[tokio::test]
    async fn lost_call_is_repeated_with_the_same_request_id() {
        let away = RestartStep::End(Status::unavailable("going away"));
        let gateway =
            FakeGateway::with_restarts(vec![RestartStep::Disconnect, away, answer(&[(State::Active, None)])])
                .await;
        let (exit, _, err) = restart(&gateway, Format::Text, None).await;
        assert_eq!(exit, Exit::Done, "{err}");
        assert_eq!(err.matches("; retrying in ").count(), 2, "{err}");
        let ids: Vec<String> = gateway.restarts().into_iter().map(|request| request.request_id).collect();
        assert_eq!(ids.len(), 3);
        assert!(ids[0].len() > 30 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        let other = FakeGateway::with_restarts(vec![answer(&[])]).await;
        restart(&other, Format::Text, None).await;
        assert_ne!(other.restarts()[0].request_id, ids[0], "another call has another id");
    }

    #[tokio::test]
    async fn exit_code_reports_outcome_although_output_is_closed() {
        let gateway = FakeGateway::with_restarts(vec![
            answer(&[(State::Active, None)]),
            answer(&[(State::Failure, Some("crashed"))]),
        ])
        .await;
        for expected in [Exit::Done, Exit::NotRestarted] {
            let mut err = Vec::new();
            let exit = run(&config(&gateway, Format::Text, None), ClosedOutput, &mut err, false).await;
            assert_eq!((exit, err.len()), (expected, 0));
        }
    }

    #[tokio::test]
    async fn rejection_is_final() {
        for (code, exit) in [
            (Code::PermissionDenied, Exit::Rejected),
            (Code::NotFound, Exit::NotFound),
            (Code::ResourceExhausted, Exit::Rejected),
            (Code::InvalidArgument, Exit::Usage),
        ] {
            let gateway =
                FakeGateway::with_restarts(vec![RestartStep::End(Status::new(code, "because"))]).await;
            let (found, out, err) = restart(&gateway, Format::Text, None).await;
            assert_eq!(
                (found, out.as_str(), err.as_str()),
                (exit, "", "leasemux: the gateway answered: because\n")
            );
        }
    }
}
