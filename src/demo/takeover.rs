//! Shows how a fleet of gateways goes on when one is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::future::pending;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::DemoError;
use super::followers::LineTimes;
use super::gateways::{FIRST, Gateways};
use super::notes::Notes;
use super::overview::Tails;
use crate::model::time::LogTime;

/// Time from the first lines until a gateway is killed, in which a person reads who publishes.
const KILL_AFTER: Duration = Duration::from_secs(3);

/// Limit on waiting for new lines. A takeover takes two seconds; services may print rarely.
const LINES_TIMEOUT: Duration = Duration::from_secs(15);

/// What was seen of the takeover, for the summary.
#[derive(Debug, Default)]
pub(super) struct Takeover {
    before: Option<Tails>,
    /// The killed gateway, and the number of replicas that it published.
    killed: Option<(usize, usize)>,
    /// Time from the kill until the followers of all other gateways had new lines.
    lines_after: Option<Duration>,
    after: Option<Tails>,
}

/// Followers of the demo, as their fleet needs them.
#[derive(Debug)]
pub(super) struct Watched {
    /// Replicas of the lease.
    pub(super) replicas: usize,
    /// The lines of one follower of each gateway, by the gateway's number.
    pub(super) line_times: BTreeMap<usize, watch::Receiver<LineTimes>>,
}

// === impl Takeover ===

impl Takeover {
    /// Kills the gateway that publishes most, but not the one that runs the services, and starts it again.
    /// Then waits for the end of a process, which is an error.
    pub(super) async fn show(
        &mut self,
        gateways: &mut Gateways<'_>,
        watched: &mut Watched,
        notes: &Notes,
    ) -> Result<Infallible, DemoError> {
        let all = gateways.overview_of(|_| true);
        let overview = gateways.while_running(all.settled(watched.replicas)).await?;
        self.before = Some(overview.tails());
        notes.add(&overview.to_string()).await;
        gateways.while_running(tokio::time::sleep(KILL_AFTER)).await?;
        let overview = gateways.while_running(all.read()).await?;
        let Some((killed, replicas)) = overview.publisher(|number| number != FIRST) else {
            notes.add("no takeover: gateway 1 publishes all replicas, and runs the services").await;
            return gateways.while_running(pending()).await;
        };
        self.killed = Some((killed, replicas.len()));
        let published: Vec<&str> = replicas.iter().map(String::as_str).collect();
        let killed_at = Instant::now();
        let Some(address) = gateways.kill(killed).await else {
            return gateways.while_running(pending()).await;
        };
        // The killed gateway has not read lines after this time.
        let dead_since = LogTime::now();
        notes.add(&format!("killed gateway {killed}, which published {}", published.join(", "))).await;
        let lines = tokio::time::timeout(LINES_TIMEOUT, watched.new_lines(killed, &replicas, dead_since));
        if gateways.while_running(lines).await?.is_ok() {
            let after = killed_at.elapsed();
            self.lines_after = Some(after);
            notes
                .add(&format!("new lines of these at all other gateways {:.1} s later", after.as_secs_f64()))
                .await;
        }
        let others = gateways.overview_of(|_| true);
        let overview = gateways.while_running(others.settled(watched.replicas)).await?;
        self.after = Some(overview.tails());
        notes.add(&overview.to_string()).await;
        gateways.restart(killed, &address).await?;
        notes
            .add(&format!("started gateway {killed} again: its followers continue after their last lines"))
            .await;
        let all = gateways.overview_of(|_| true);
        let overview = gateways.while_running(all.settled(watched.replicas)).await?;
        self.after = Some(overview.tails());
        notes.add(&overview.to_string()).await;
        gateways.while_running(pending()).await
    }
}

impl fmt::Display for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(before) = self.before {
            write!(f, "  log tails        {} for {} replicas", before.open, before.replicas)?;
            match self.after {
                Some(after) => writeln!(f, " before the takeover, {} after it", after.open)?,
                None => writeln!(f)?,
            }
        }
        match (self.killed, self.lines_after) {
            (None, _) => writeln!(f, "  takeover         none was shown"),
            (Some((killed, replicas)), Some(after)) => writeln!(
                f,
                "  takeover         gateway {killed} killed, new lines of its {replicas} replicas after {:.1} s",
                after.as_secs_f64()
            ),
            (Some((killed, replicas)), None) => writeln!(
                f,
                "  takeover         gateway {killed} killed, no new lines of all its {replicas} replicas until the end"
            ),
        }
    }
}

// === impl Watched ===

impl Watched {
    /// Waits until a follower of each gateway but `killed` has lines that were written after a time, of each of
    /// `replicas` that had lines before.
    async fn new_lines(&mut self, killed: usize, replicas: &BTreeSet<String>, after: LogTime) {
        for (number, line_times) in &mut self.line_times {
            if *number == killed {
                continue;
            }
            let is_new = |times: &LineTimes| {
                replicas.iter().filter_map(|replica| times.get(replica)).all(|time| *time > after)
            };
            // A follower that ended is reported by itself.
            let _ = line_times.wait_for(is_new).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takeover_is_summed_up() {
        let tails = |open| Some(Tails { open, replicas: 3 });
        let mut seen = Takeover::default();
        assert_eq!(seen.to_string(), "  takeover         none was shown\n");
        seen.before = tails(3);
        seen.killed = Some((2, 3));
        assert_eq!(
            seen.to_string(),
            "  log tails        3 for 3 replicas\n  takeover         gateway 2 killed, no new lines of all \
             its 3 replicas until the end\n"
        );
        seen.after = tails(4);
        seen.lines_after = Some(Duration::from_millis(1340));
        assert_eq!(
            seen.to_string(),
            "  log tails        3 for 3 replicas before the takeover, 4 after it\n  takeover         \
             gateway 2 killed, new lines of its 3 replicas after 1.3 s\n"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn new_lines_are_awaited_at_all_other_gateways() {
        let time = LogTime::from_nanos;
        let replicas = BTreeSet::from(["web/0".to_owned(), "silent/0".to_owned()]);
        let of =
            |nanos| LineTimes::from([("web/0".to_owned(), time(nanos)), ("other/0".to_owned(), time(1))]);
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| watch::channel(of(1))).unzip();
        let mut watched = Watched { replicas: 2, line_times: (1..).zip(receivers).collect() };
        for (gateway, nanos, is_enough) in [(0, 6, false), (2, 5, false), (2, 6, true)] {
            senders[gateway].send_replace(of(nanos));
            let lines = tokio::time::timeout(LINES_TIMEOUT, watched.new_lines(2, &replicas, time(5)));
            assert_eq!(lines.await.is_ok(), is_enough, "{gateway} {nanos}");
        }
    }
}
