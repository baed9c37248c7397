//! `leasemux status`: what runs, once or as it changes.
//!
//! A follow that is cut reconnects by itself: the first answer of the new stream is the present state, so nothing is missed that
//! still matters. On a terminal the table is redrawn in place; otherwise the lines that changed follow one another, as those of
//! `kubectl get --watch` do.

use std::io::{self, Write};
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior};
use tonic::Status;

use super::clock::ClockOffset;
use super::connect::Connector;
use super::exit::Exit;
use super::follow::{ANSWER_TIMEOUT, FollowError, Next, ReconnectState};
use super::json::StatusObject;
use super::live_region::{LiveRegion, Size};
use super::logs::filters;
use super::table::{Table, stale_line, summaries};
use crate::config::{Form, StatusConfig};
use crate::model::proto::lease::{ServiceStatusRequest, ServiceStatusResponse};
use crate::model::time::LogTime;

/// How often ages on a terminal move on.
const TICK: Duration = Duration::from_secs(1);

/// Where answers go.
struct Shown<O> {
    screen: LiveRegion<O>,
    form: Form,
    follow: bool,
    /// Whether the table is redrawn in place.
    terminal: bool,
    newest: Option<ServiceStatusResponse>,
    /// What the lines printed so far say.
    printed: Option<Table>,
    /// Ages are by the gateway's clock.
    clock: ClockOffset,
    /// The last line of it that says that it may be out of date.
    stale: Option<String>,
}

/// Prints what `config` asks for to `out`, and what is said about it to `err`. `terminal` is set if `out` is one.
pub async fn run<O, E>(config: &StatusConfig, out: O, mut err: E, terminal: bool) -> Exit
where
    O: Write + Send,
    E: Write + Send,
{
    let mut shown = Shown {
        screen: LiveRegion::new(out, Size::of_output),
        form: config.form,
        follow: config.follow,
        terminal,
        newest: None,
        printed: None,
        clock: ClockOffset::default(),
        stale: None,
    };
    let error = match watch(config, &mut shown, &mut err).await {
        Ok(()) => return Exit::Done,
        Err(error) => error,
    };
    // Text that nobody takes any more is nobody's fault.
    if matches!(&error, FollowError::Sink(error) if error.kind() == io::ErrorKind::BrokenPipe) {
        return Exit::Done;
    }
    // If this fails too there is nobody to tell.
    let _ = say(&mut err, &error.to_string());
    Exit::from(&error)
}

/// Stream after stream, as long as it is of use.
async fn watch<O: Write + Send, E: Write + Send>(
    config: &StatusConfig,
    shown: &mut Shown<O>,
    err: &mut E,
) -> Result<(), FollowError> {
    let connector = Connector::new(&config.target)?;
    let (filter, filters) = filters(&config.services, &config.replicas);
    let lease_id = Some((&config.lease).into());
    let request = ServiceStatusRequest { lease_id, filter, follow: config.follow, filters };
    let mut persistence = ReconnectState::new(config.follow);
    loop {
        let began = Instant::now();
        let Err(error) = stream(&connector, request.clone(), &mut persistence, shown, err).await else {
            return Ok(());
        };
        shown.screen.keep();
        match persistence.after(error, began)? {
            Next::LeaseEnded => return Ok(say(err, "the lease has ended")?),
            Next::Again { reason, retry_in } => {
                say(err, &format!("{reason}; reconnecting in {:.1} s", retry_in.as_secs_f64()))?;
                tokio::time::sleep(retry_in).await;
            }
        }
    }
}

async fn stream<O: Write + Send, E: Write + Send>(
    connector: &Connector,
    request: ServiceStatusRequest,
    persistence: &mut ReconnectState,
    shown: &mut Shown<O>,
    err: &mut E,
) -> Result<(), FollowError> {
    let mut client = Box::pin(connector.connect()).await?;
    let asked = LogTime::now();
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.service_status(request)).await;
    let answer = answer.map_err(|_| Status::unavailable("the gateway did not answer in time"))??;
    shown.clock = ClockOffset::of(answer.metadata(), asked);
    let mut answers = answer.into_inner();
    if std::mem::replace(&mut persistence.met, true) {
        say(err, "connected again")?;
    }
    let mut ticks = ticks();
    loop {
        // Receiving is cancel safe: an answer that is not there yet is not lost by asking for it again.
        tokio::select! {
            biased;
            answer = answers.message() => match answer? {
                Some(answer) => shown.answer(answer)?,
                None => return Ok(()),
            },
            _ = ticks.tick(), if shown.terminal && shown.follow => shown.redraw()?,
        }
    }
}

fn ticks() -> Interval {
    let mut ticks = tokio::time::interval_at(Instant::now() + TICK, TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// A line of the program's own.
pub(super) fn say(err: &mut impl Write, text: &str) -> io::Result<()> {
    let mut safe = Vec::with_capacity(text.len());
    super::terminal::neutralise(text.as_bytes(), &mut safe);
    writeln!(err, "leasemux: {}", String::from_utf8_lossy(&safe))
}

// === impl Shown ===

impl<O: Write> Shown<O> {
    fn answer(&mut self, answer: ServiceStatusResponse) -> io::Result<()> {
        if self.form == Form::Json {
            return self.screen.print_json(&StatusObject::new(&answer));
        }
        let table = Table::of_status(&answer, self.clock.now());
        if self.terminal && self.follow {
            self.newest = Some(answer);
            return self.redraw();
        }
        let mut lines = match &self.printed {
            Some(printed) => table.changed(printed),
            None if self.follow => table.lines(),
            None => whole(&table, &answer),
        };
        self.printed = Some(table);
        let stale = stale_line(&answer);
        if self.follow && stale != self.stale {
            lines.push(stale.clone().unwrap_or_else(|| "current again".to_owned()));
        }
        self.stale = stale;
        self.screen.print(&lines)
    }

    fn redraw(&mut self) -> io::Result<()> {
        match &self.newest {
            Some(answer) => self.screen.draw(&whole(&Table::of_status(answer, self.clock.now()), answer)),
            None => Ok(()),
        }
    }
}

fn whole(table: &Table, answer: &ServiceStatusResponse) -> Vec<String> {
    let mut lines = table.lines();
    lines.push(String::new());
    lines.extend(summaries(answer));
    lines.extend(stale_line(answer));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::fake::FakeGateway;

    const LEASE: &str = "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev/6194991/1/1/akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";

    #[tokio::test]
    async fn ages_follow_the_gateways_clock() {
        let mut gateway = FakeGateway::start(Vec::new()).await;
        // Half an hour more, so that rounding does not show.
        gateway.set_date(LogTime::from_parts(5 * 1_800, 0).unwrap());
        gateway.set_replicas(&[0]);
        let config = StatusConfig {
            lease: LEASE.parse().unwrap(),
            target: gateway.target(),
            services: Vec::new(),
            replicas: Vec::new(),
            follow: false,
            form: Form::Table,
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = run(&config, &mut out, &mut err, false).await;
        let out = String::from_utf8(out).unwrap();
        assert_eq!((exit, err.len()), (Exit::Done, 0), "{out}");
        assert!(out.contains("web/0    running  no     0         2h   -"), "{out}");
    }

    /// What is printed of these answers.
    fn printed(form: Form, follow: bool, answers: &[ServiceStatusResponse]) -> String {
        let mut out = Vec::new();
        let screen = LiveRegion::new(&mut out, Size::of_output);
        let mut shown = Shown {
            screen,
            form,
            follow,
            terminal: false,
            newest: None,
            printed: None,
            clock: ClockOffset::default(),
            stale: None,
        };
        for answer in answers {
            shown.answer(answer.clone()).unwrap();
        }
        drop(shown);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn stale_answers_are_told_apart_in_every_form() {
        let current = ServiceStatusResponse::default();
        let stale_since = Some(prost_types::Timestamp { seconds: 60, nanos: 0 });
        let stale = ServiceStatusResponse { stale_since, ..current.clone() };
        let answers = [current.clone(), stale.clone(), stale.clone(), current];
        let followed = printed(Form::Table, true, &answers);
        let lines: Vec<&str> = followed.lines().skip(1).collect();
        let [is_stale, is_current] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(is_stale.starts_with("stale: last known at 1970-01-01T00:01:00"), "{is_stale}");
        assert_eq!(*is_current, "current again");
        let once = printed(Form::Table, false, std::slice::from_ref(&stale));
        assert!(once.lines().last().unwrap().starts_with("stale: last known at "), "{once}");
        let json = printed(Form::Json, false, &[stale]);
        assert_eq!(json, "{\"services\":[],\"stale_since\":\"1970-01-01T00:01:00.000000000Z\"}\n");
    }
}
