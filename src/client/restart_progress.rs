//! Progress of a restart on a terminal: the states of the replicas, and the one in progress.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, interval, sleep_until};

use super::clock::ClockOffset;
use super::connect::Client;
use super::error::CallError;
use super::live_region::{LiveRegion, Size};
use super::progress_row::SHOWN_AFTER;
use super::request::status;
use super::table::Table;
use super::terminal::escape_to_line;
use crate::config::CallConfig;
use crate::model::proto::lease::{ReplicaStatus, ServiceStatusResponse};
use crate::model::time::LogTime;

/// Interval in which ages and the duration are drawn again.
const TICK: Duration = Duration::from_secs(1);

/// Draws the states of the replicas that `call` selects on every change and every second, after
/// [`SHOWN_AFTER`]. Ends with the status.
pub(super) async fn show_progress(
    call: &CallConfig,
    mut client: Client,
    region: &mut LiveRegion<'_>,
) -> Result<(), CallError> {
    let started = Instant::now();
    let (mut responses, clock) = status(&mut client, call, true).await?;
    let mut newest = None;
    let mut ticks = interval(TICK);
    sleep_until(started + SHOWN_AFTER).await;
    loop {
        // `message` is cancel safe.
        tokio::select! {
            response = responses.message() => match response? {
                Some(response) => newest = Some(response),
                None => return Ok(()),
            },
            _ = ticks.tick() => {}
        }
        if let Some(response) = newest.as_ref().filter(|_| Size::of_foreground_errors().is_some()) {
            draw(response, clock, started, region)?;
        }
    }
}

fn draw(
    response: &ServiceStatusResponse,
    clock: ClockOffset,
    started: Instant,
    region: &mut LiveRegion<'_>,
) -> io::Result<()> {
    let mut lines = Table::of_status(response, clock.now()).lines();
    lines.extend(
        in_progress(response)
            .map(|name| format!("{} in progress, {} s", escape_to_line(&name), started.elapsed().as_secs())),
    );
    region.draw(&lines)
}

/// Returns the name of the replica that is being restarted: the first one that is not ready, else the one
/// that was started last, which is watched until it is stable.
fn in_progress(response: &ServiceStatusResponse) -> Option<String> {
    let replicas = || {
        response.services.iter().flat_map(|service| {
            service
                .replica_status
                .iter()
                .map(move |replica| (format!("{}/{}", service.name, replica.replica), replica))
        })
    };
    let started = |replica: &ReplicaStatus| replica.started_at.as_ref().and_then(LogTime::from_proto);
    let unready = replicas().find(|(_, replica)| !replica.ready);
    unready.or_else(|| replicas().max_by_key(|(_, replica)| started(replica))).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;
    use crate::model::proto::lease::ServiceStatus;

    #[test]
    fn replica_in_progress_is_unready_or_newest() {
        let response = |replicas: &[(bool, i64)]| {
            let replica_status = (0..).zip(replicas).map(|(replica, (ready, started))| ReplicaStatus {
                replica,
                ready: *ready,
                started_at: Some(Timestamp { seconds: *started, nanos: 0 }),
                ..Default::default()
            });
            let replica_status = replica_status.collect();
            let service = ServiceStatus { name: "web".into(), replica_status, ..Default::default() };
            ServiceStatusResponse { services: vec![service], ..Default::default() }
        };
        assert_eq!(in_progress(&response(&[])), None);
        assert_eq!(in_progress(&response(&[(true, 9), (false, 1), (false, 2)])).as_deref(), Some("web/1"));
        assert_eq!(in_progress(&response(&[(true, 5), (true, 9), (true, 1)])).as_deref(), Some("web/1"));
    }
}
