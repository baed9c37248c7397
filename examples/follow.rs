//! Follows the logs of a service over gRPC, and resumes from cursors after a disconnect.
//!
//! ```sh
//! cargo run --example follow -- https://127.0.0.1:8446 tenant .leasemux/server.pem "$LEASE" web
//! ```

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Write as _};
use std::time::Duration;

use leasemux::client::connect::Connector;
use leasemux::client::error::ConnectError;
use leasemux::client::escape_terminal;
use leasemux::config::Target;
use leasemux::model::id::LeaseId;
use leasemux::model::proto::lease::{Cursor, ServiceFilter, ServiceLogsRequest};
use tonic::{Code, Status};

const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// The newest cursor of each replica, and the back-off, which the next received entry resets.
struct Progress {
    cursors: HashMap<u32, Cursor>,
    backoff: Duration,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [gateway, identity, ca, lease, service] = args.as_slice() else {
        return Err("usage: follow GATEWAY IDENTITY_DIR CA_FILE LEASE SERVICE".into());
    };
    let connector = Connector::new(&Target {
        gateway: gateway.parse()?,
        identity: Some(identity.into()),
        token: None,
        ca: Some(ca.into()),
        insecure: false,
    })?;
    let mut request = ServiceLogsRequest {
        lease_id: Some((&lease.parse::<LeaseId>()?).into()),
        filter: Some(ServiceFilter { name: service.clone(), replicas: Vec::new() }),
        follow: true,
        tail_lines: Some(10),
        ..ServiceLogsRequest::default()
    };
    let mut progress = Progress { cursors: HashMap::new(), backoff: BACKOFF_MIN };
    while let Err(error) = follow(&connector, request.clone(), &mut progress).await {
        if !is_retryable(&*error) {
            return Err(error);
        }
        // The random part keeps the clients of a gateway from reconnecting at the same time.
        let delay = progress.backoff.mul_f64(rand::random_range(0.5..=1.0));
        progress.backoff = (progress.backoff * 2).min(BACKOFF_MAX);
        writeln!(io::stderr(), "{}; reconnecting in {delay:.1?}", escape_terminal(&error.to_string()))?;
        tokio::time::sleep(delay).await;
        request.resume = progress.cursors.values().cloned().collect();
        // `resume` and `tail_lines` exclude each other.
        request.tail_lines = request.tail_lines.filter(|_| request.resume.is_empty());
    }
    Ok(())
}

/// Prints the lines of one stream to standard output, and its gaps to standard error.
async fn follow(
    connector: &Connector,
    request: ServiceLogsRequest,
    progress: &mut Progress,
) -> Result<(), Box<dyn Error>> {
    let mut client = connector.connect().await?;
    let mut stream = client.service_logs(request).await?.into_inner();
    while let Some(response) = stream.message().await? {
        for entry in response.services {
            // A container's output must not control the terminal. Events have no text; a piece of a line is
            // printed as a line.
            for line in escape_terminal(&String::from_utf8_lossy(&entry.logs)).lines() {
                if entry.gap.is_some() {
                    writeln!(io::stderr(), "{}/{}: {line}", entry.name, entry.replica)?;
                } else {
                    writeln!(io::stdout(), "{}/{} | {line}", entry.name, entry.replica)?;
                }
            }
            // Stored after printing, because a resumed stream begins after the cursor.
            progress.cursors.extend(entry.cursor.map(|cursor| (entry.replica, cursor)));
            progress.backoff = BACKOFF_MIN;
        }
    }
    Ok(())
}

/// Returns whether the same call may succeed later: the gateway is unreachable, shuts down, or the connection
/// broke.
fn is_retryable(error: &(dyn Error + 'static)) -> bool {
    // A status that the gateway sent has no source; a broken connection has one.
    let status = |status: &Status| status.code() == Code::Unavailable || status.source().is_some();
    error.downcast_ref().is_some_and(status) || error.downcast_ref().is_some_and(ConnectError::is_retryable)
}
