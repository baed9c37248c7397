//! `leasemux logs`: one request, printed, and how it ended as an exit code.
//!
//! Ctrl-C is left to the system: nothing here needs cleaning up, and a process that waits for a stalled pipe could not hear
//! a handler anyway.

use std::io::{self, Write};

use prost_types::Timestamp;

use super::connect::Connector;
use super::exit::Exit;
use super::follow::{Ended, FollowError, Follower};
use super::print::{Look, Printer};
use crate::config::LogsConfig;
use crate::model::id::LeaseId;
use crate::model::proto::lease::{ServiceFilter, ServiceLogsRequest};
use crate::model::proto::market::LeaseId as WireLeaseId;
use crate::model::time::LogTime;

/// Prints what `config` asks for to `out`, and what is said about it to `err`.
pub async fn run<O, E>(config: &LogsConfig, out: O, err: E, look: Look) -> Exit
where
    O: Write + Send,
    E: Write + Send,
{
    let mut printer = Printer::new(out, err, look);
    let ended = match Connector::new(&config.target) {
        Ok(connector) => Follower::new(connector, request(config)).run(&mut printer).await,
        Err(error) => Err(error.into()),
    };
    // Text that nobody takes any more is nobody's fault: `… | head` has what it wanted.
    match conclude(&ended, &mut printer) {
        Ok(exit) => exit,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => {
            // The output failed, so this may fail too, and then there is nobody to tell.
            let _ = printer.say(&format!("cannot write: {error}"));
            Exit::Failed
        }
    }
}

fn conclude<O, E>(ended: &Result<Ended, FollowError>, printer: &mut Printer<O, E>) -> io::Result<Exit>
where
    O: Write + Send,
    E: Write + Send,
{
    if let Err(FollowError::Sink(error)) = ended {
        return Err(io::Error::new(error.kind(), error.to_string()));
    }
    printer.finish()?;
    match ended {
        Ok(Ended::LeaseEnded) => printer.say("the lease has ended")?,
        Ok(Ended::Complete) => {}
        Err(error) => {
            printer.say(&error.to_string())?;
            return Ok(Exit::from(error));
        }
    }
    Ok(if printer.gaps() > 0 {
        Exit::LinesLost
    } else {
        Exit::Done
    })
}

/// The request that asks for what `config` describes.
pub fn request(config: &LogsConfig) -> ServiceLogsRequest {
    let filter = |service: &crate::model::id::ServiceName| ServiceFilter {
        name: service.to_string(),
        replicas: config.replicas.clone(),
    };
    ServiceLogsRequest {
        lease_id: Some(wire_lease(&config.lease)),
        // The draft's own field as long as it will do, so that any gateway understands it.
        filter: match config.services.as_slice() {
            [service] => Some(filter(service)),
            _ => None,
        },
        filters: match config.services.as_slice() {
            [] | [_] => Vec::new(),
            services => services.iter().map(filter).collect(),
        },
        follow: config.follow,
        tail_lines: config.tail,
        since: config.since.map(wire_time),
        timestamps: config.timestamps,
        previous: config.previous,
        resume: Vec::new(),
        on_lag: config.on_lag.into(),
    }
}

/// A lease as requests name it.
pub fn wire_lease(lease: &LeaseId) -> WireLeaseId {
    WireLeaseId {
        owner: lease.owner().to_string(),
        dseq: lease.dseq(),
        gseq: lease.gseq(),
        oseq: lease.oseq(),
        provider: lease.provider().to_string(),
        bseq: 0,
    }
}

fn wire_time(time: LogTime) -> Timestamp {
    let (seconds, nanos) = time.parts();
    Timestamp { seconds, nanos }
}

// === impl Exit ===

impl From<&FollowError> for Exit {
    fn from(error: &FollowError) -> Self {
        match error {
            FollowError::Connect(error) => Self::from(error),
            FollowError::Status(status) => Self::from(&**status),
            FollowError::Sink(_) => Self::Failed,
            FollowError::Unresumable => Self::Unavailable,
        }
    }
}
