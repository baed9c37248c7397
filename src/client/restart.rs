//! `leasemux restart`: asks for a restart, waits for what comes of it, and shows meanwhile how it goes.
//!
//! A call that is cut is made again under the same request id, so that the gateway knows it for the same one. Ctrl-C ends the
//! waiting and not the restart. That the reader of the output goes ends neither: the exit code is the outcome.

use std::io::{self, Write};
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Request, Status};

use super::clock::ClockOffset;
use super::connect::{Client, Connector};
use super::exit::Exit;
use super::follow::{ANSWER_TIMEOUT, FollowError, Next, ReconnectState};
use super::json::{RestartObject, write_line};
use super::live_region::{LiveRegion, Size};
use super::logs::filters;
use super::status::say;
use super::table::Table;
use crate::config::{Form, RestartConfig};
use crate::model::proto::lease::service_restart_status::State;
use crate::model::proto::lease::{ServiceRestartRequest, ServiceRestartResponse, ServiceStatusRequest};
use crate::model::request_id::RequestId;
use crate::model::time::LogTime;

/// Asks for what `config` describes. What came of it goes to `out`, what is said about it to `err`, and how it goes too, if that
/// is a `terminal`.
pub async fn run<O, E>(config: &RestartConfig, mut out: O, mut err: E, terminal: bool) -> Exit
where
    O: Write + Send,
    E: Write + Send,
{
    let id = config.request_id.clone().unwrap_or_else(RequestId::unique);
    let done = match call(config, &id, &mut err, terminal).await {
        Ok(answer) => conclude(config, &id, &answer, &mut out, &mut err).map_err(FollowError::Sink),
        Err(error) => Err(error),
    };
    match done {
        Ok(exit) => exit,
        Err(error) => {
            // If this fails too there is nobody to tell.
            let _ = say(&mut err, &error.to_string());
            Exit::from(&error)
        }
    }
}

/// Calls until there is an answer, or until it is of no use any more.
async fn call<E: Write + Send>(
    config: &RestartConfig,
    id: &RequestId,
    err: &mut E,
    terminal: bool,
) -> Result<ServiceRestartResponse, FollowError> {
    let connector = Connector::new(&config.target)?;
    let deadline = Instant::now() + config.timeout;
    let mut persistence = ReconnectState::new(true);
    loop {
        let began = Instant::now();
        let left = deadline.saturating_duration_since(began);
        let error = match attempt(config, id, &connector, &mut persistence, left, &mut *err, terminal).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if began >= deadline + ANSWER_TIMEOUT || error.is_lease_gone() {
            return Err(error);
        }
        match persistence.after(error, began)? {
            Next::LeaseEnded => {}
            Next::Again { reason, retry_in } => {
                let again = retry_in.as_secs_f64();
                say(err, &format!("{reason}; asking again in {again:.1} s, as the same request ({id})"))?;
                tokio::time::sleep(retry_in).await;
            }
        }
    }
}

async fn attempt<E: Write + Send>(
    config: &RestartConfig,
    id: &RequestId,
    connector: &Connector,
    persistence: &mut ReconnectState,
    left: Duration,
    err: E,
    terminal: bool,
) -> Result<ServiceRestartResponse, FollowError> {
    let client = Box::pin(connector.connect()).await?;
    persistence.met = true;
    let (filter, filters) = filters(&config.services, &config.replicas);
    let request = ServiceRestartRequest {
        lease_id: Some((&config.lease).into()),
        filter,
        timeout: prost_types::Duration::try_from(left).ok(),
        request_id: id.to_string(),
        filters,
    };
    let progress = terminal && config.form == Form::Table && !left.is_zero();
    let mut screen = LiveRegion::new(err, Size::of_errors);
    let shown = async {
        if progress {
            // Whoever may not see how it goes may still restart.
            let _ = show(config, client.clone(), &mut screen).await;
        }
        std::future::pending::<()>().await;
    };
    let mut calling = client.clone();
    let answer = tokio::time::timeout(left + ANSWER_TIMEOUT, calling.service_restart(Request::new(request)));
    let answer = tokio::select! {
        answer = answer => answer,
        () = shown => Ok(Err(Status::internal("progress does not end"))),
    };
    screen.clear()?;
    let answer = answer.map_err(|_| Status::unavailable("the gateway did not answer in time"))?;
    Ok(answer?.into_inner())
}

/// Draws how the replicas are doing, each time that something changes.
async fn show<E: Write>(
    config: &RestartConfig,
    mut client: Client,
    screen: &mut LiveRegion<E>,
) -> Result<(), FollowError> {
    let (filter, filters) = filters(&config.services, &config.replicas);
    let lease_id = Some((&config.lease).into());
    let request = ServiceStatusRequest { lease_id, filter, follow: true, filters };
    let asked = LogTime::now();
    let answer = client.service_status(request).await?;
    let clock = ClockOffset::of(answer.metadata(), asked);
    let mut answers = answer.into_inner();
    while let Some(answer) = answers.message().await? {
        screen.draw(&Table::of_status(&answer, clock.now()).lines())?;
    }
    Ok(())
}

/// Prints the outcome, and returns it as an exit code.
fn conclude(
    config: &RestartConfig,
    id: &RequestId,
    answer: &ServiceRestartResponse,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Exit> {
    match print(config, id, answer, out) {
        // The reader has what it wanted. The outcome is in the exit code too.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        printed => printed?,
    }
    let is = |state: State| answer.status.iter().any(|one| one.state() == state);
    if is(State::Failure) {
        return Ok(Exit::NotRestarted);
    }
    if is(State::Pending) {
        say(
            err,
            &format!(
                "not over yet, and goes on by itself; to ask again: the same command with --request-id {id}"
            ),
        )?;
        return Ok(Exit::Pending);
    }
    Ok(Exit::Done)
}

fn print(
    config: &RestartConfig,
    id: &RequestId,
    answer: &ServiceRestartResponse,
    out: &mut impl Write,
) -> io::Result<()> {
    match config.form {
        Form::Json => write_line(out, &RestartObject::new(id, answer))?,
        Form::Table => {
            for line in Table::of_restart(&answer.status).lines() {
                writeln!(out, "{line}")?;
            }
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::client::fake::{FakeGateway, RestartStep};
    use crate::model::proto::lease::ServiceRestartStatus;

    const LEASE: &str = "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev/6194991/1/1/akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";

    fn answer(each: &[(State, Option<&str>)]) -> RestartStep {
        let status = each.iter().enumerate().map(|(index, (state, message))| ServiceRestartStatus {
            service: "web".into(),
            replica: index.to_string(),
            state: (*state).into(),
            message: message.map(str::to_owned),
        });
        RestartStep::Answer(ServiceRestartResponse { status: status.collect() })
    }

    fn config(gateway: &FakeGateway, form: Form, request_id: Option<&str>) -> RestartConfig {
        RestartConfig {
            lease: LEASE.parse().unwrap(),
            target: gateway.target(),
            services: vec!["web".parse().unwrap()],
            replicas: vec![0, 1],
            timeout: Duration::from_secs(60),
            request_id: request_id.map(|id| id.parse().unwrap()),
            form,
        }
    }

    async fn restart(gateway: &FakeGateway, form: Form, request_id: Option<&str>) -> (Exit, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = run(&config(gateway, form, request_id), &mut out, &mut err, false).await;
        (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[tokio::test]
    async fn what_came_of_it_is_printed_and_is_the_exit_code() {
        let active = (State::Active, None);
        let left = (State::Failure, Some("not attempted: why"));
        let gateway = FakeGateway::restarting(vec![
            answer(&[active, active]),
            answer(&[active, (State::Pending, None)]),
            answer(&[(State::Failure, Some("crashed")), left]),
            answer(&[(State::Pending, None), left]),
            answer(&[active]),
        ])
        .await;
        let (exit, out, err) = restart(&gateway, Form::Table, None).await;
        assert_eq!((exit, err.as_str()), (Exit::Done, ""));
        assert_eq!(out, "REPLICA  STATE   MESSAGE\nweb/0    active\nweb/1    active\n");
        let (exit, _, err) = restart(&gateway, Form::Table, Some("deploy-7")).await;
        assert_eq!(exit, Exit::Pending);
        assert!(err.contains("--request-id deploy-7"), "{err}");
        let (exit, out, _) = restart(&gateway, Form::Table, None).await;
        assert_eq!(exit, Exit::NotRestarted);
        assert!(out.ends_with("web/0    failure  crashed\nweb/1    failure  not attempted: why\n"), "{out}");
        assert_eq!(restart(&gateway, Form::Table, None).await.0, Exit::NotRestarted);
        let (_, out, _) = restart(&gateway, Form::Json, Some("deploy-8")).await;
        let expected =
            r#"{"request_id":"deploy-8","status":[{"service":"web","replica":"0","state":"active"}]}"#;
        assert_eq!(out, format!("{expected}\n"));
        let request = &gateway.restarts()[0];
        assert_eq!(request.filter.as_ref().unwrap().replicas, [0, 1]);
        assert!((50..=60).contains(&request.timeout.unwrap().seconds), "{request:?}");
    }

    #[tokio::test]
    async fn a_call_that_is_cut_is_made_again_as_the_same_one() {
        let away = RestartStep::End(Status::unavailable("going away"));
        let gateway =
            FakeGateway::restarting(vec![RestartStep::Cut, away, answer(&[(State::Active, None)])]).await;
        let (exit, _, err) = restart(&gateway, Form::Table, None).await;
        assert_eq!(exit, Exit::Done, "{err}");
        assert_eq!(err.matches("; asking again in ").count(), 2, "{err}");
        let ids: Vec<String> = gateway.restarts().into_iter().map(|request| request.request_id).collect();
        assert_eq!(ids.len(), 3);
        assert!(ids[0].len() > 30 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        let other = FakeGateway::restarting(vec![answer(&[])]).await;
        restart(&other, Form::Table, None).await;
        assert_ne!(other.restarts()[0].request_id, ids[0], "another call is another one");
    }

    #[tokio::test]
    async fn closed_output_leaves_the_outcome_as_exit_code() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let gateway = FakeGateway::restarting(vec![
            answer(&[(State::Active, None)]),
            answer(&[(State::Failure, Some("crashed"))]),
        ])
        .await;
        for expected in [Exit::Done, Exit::NotRestarted] {
            let mut err = Vec::new();
            let exit = run(&config(&gateway, Form::Table, None), Closed, &mut err, false).await;
            assert_eq!((exit, err.len()), (expected, 0));
        }
    }

    #[tokio::test]
    async fn a_refusal_is_final() {
        for (code, exit) in [
            (Code::PermissionDenied, Exit::Refused),
            (Code::NotFound, Exit::NotFound),
            (Code::ResourceExhausted, Exit::Refused),
            (Code::InvalidArgument, Exit::Usage),
        ] {
            let gateway = FakeGateway::restarting(vec![RestartStep::End(Status::new(code, "because"))]).await;
            let (found, out, err) = restart(&gateway, Form::Table, None).await;
            assert_eq!(
                (found, out.as_str(), err.as_str()),
                (exit, "", "leasemux: the gateway says: because\n")
            );
        }
    }
}
