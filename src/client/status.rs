//! `leasemux status`: prints replica states, once or on every change.
//!
//! A follow reconnects by itself: the first response of the new stream is the current state. On a terminal
//! the table is redrawn in place; otherwise changed lines are printed one after another, as by `kubectl get
//! --watch`.

use std::io::{self, Write};
use std::time::Duration;

use tokio::time::Instant;

use super::clock::ClockOffset;
use super::connect::Connector;
use super::error::CallError;
use super::exit::Exit;
use super::json::Object;
use super::live_region::{LiveRegion, Size};
use super::reconnect::{ReconnectMessages, ReconnectState, Retries};
use super::request;
use super::services::{expand, explain};
use super::table::{Table, stale_line, summaries};
use super::terminal::write_message;
use crate::config::{Format, StatusConfig};
use crate::model::proto::lease::ServiceStatusResponse;

/// Interval of redrawing ages on a terminal.
const TICK: Duration = Duration::from_secs(1);

struct StatusPrinter<'a> {
    region: LiveRegion<'a>,
    format: Format,
    follow: bool,
    /// Whether the output is a terminal. Together with `follow`, the table is redrawn in place.
    terminal: bool,
    newest: Option<ServiceStatusResponse>,
    /// State of the lines printed so far.
    printed: Option<Table>,
    /// For ages, which are by the gateway's clock.
    clock: ClockOffset,
    /// Last printed line about a stale response.
    stale: Option<String>,
    reconnects: ReconnectMessages,
}

/// Prints the status that `config` requests to `out`, and messages to `err`. `terminal` is set if `out` is
/// one.
pub async fn run(
    config: &StatusConfig,
    out: impl Write + Send,
    mut err: impl Write + Send,
    terminal: bool,
) -> Exit {
    let mut printer = StatusPrinter::new(config.output, config.follow, out, terminal);
    let error = match watch(config, &mut printer, &mut err).await {
        Ok(()) => return Exit::Done,
        Err(error) => error,
    };
    // The reader has all it wanted.
    if matches!(&error, CallError::Sink(error) if error.kind() == io::ErrorKind::BrokenPipe) {
        return Exit::Done;
    }
    // If the error output fails as well, there is no way to report it.
    let _ = write_message(&mut err, &explain(&error, &config.call).await);
    Exit::from(&error)
}

async fn watch(
    config: &StatusConfig,
    printer: &mut StatusPrinter<'_>,
    err: &mut (dyn Write + Send),
) -> Result<(), CallError> {
    let connector = Connector::new(&config.call.target)?;
    let config = &StatusConfig { call: expand(&config.call, &connector).await?, ..config.clone() };
    let retries = if config.follow { Retries::Unlimited } else { Retries::Left(0) };
    let mut reconnect = ReconnectState::new(retries);
    loop {
        let started = Instant::now();
        let Err(error) = stream(config, &connector, &mut reconnect, printer, err).await else {
            return Ok(());
        };
        printer.region.keep();
        let announce = |error: &CallError, delay: Duration| {
            let text = printer.reconnects.of_failure(error, delay);
            text.map_or(Ok(()), |text| write_message(err, &text))
        };
        if !reconnect.wait(error, started, announce).await? {
            return Ok(write_message(err, "the lease has ended")?);
        }
    }
}

async fn stream(
    config: &StatusConfig,
    connector: &Connector,
    reconnect: &mut ReconnectState,
    printer: &mut StatusPrinter<'_>,
    err: &mut (dyn Write + Send),
) -> Result<(), CallError> {
    let mut client = Box::pin(connector.connect()).await?;
    let (mut responses, clock) = request::status(&mut client, &config.call, config.follow).await?;
    printer.clock = clock;
    if std::mem::replace(&mut reconnect.was_connected, true) {
        printer.reconnects.reset();
        write_message(err, "reconnected")?;
    }
    loop {
        // `message` is cancel safe.
        tokio::select! {
            biased;
            response = responses.message() => match response? {
                Some(response) => printer.print(response)?,
                None => return Ok(()),
            },
            () = tokio::time::sleep(TICK), if printer.terminal && printer.follow => printer.redraw()?,
        }
    }
}

// === impl StatusPrinter ===

impl<'a> StatusPrinter<'a> {
    fn new(format: Format, follow: bool, out: impl Write + Send + 'a, terminal: bool) -> Self {
        let region = LiveRegion::new(out, Size::of_output);
        let clock = ClockOffset::default();
        Self {
            region,
            format,
            follow,
            terminal,
            newest: None,
            printed: None,
            clock,
            stale: None,
            reconnects: ReconnectMessages::default(),
        }
    }

    fn print(&mut self, response: ServiceStatusResponse) -> io::Result<()> {
        if self.format == Format::Json {
            return self.region.print_json(&Object::status(&response));
        }
        let table = Table::of_status(&response, self.clock.now());
        if self.terminal && self.follow {
            self.newest = Some(response);
            return self.redraw();
        }
        let mut lines = match &self.printed {
            Some(printed) => table.changed(printed),
            None if self.follow => table.lines(),
            None => page(&table, &response),
        };
        self.printed = Some(table);
        let stale = stale_line(&response);
        if self.follow && stale != self.stale {
            lines.push(stale.clone().unwrap_or_else(|| "current again".to_owned()));
        }
        self.stale = stale;
        self.region.print(&lines)
    }

    fn redraw(&mut self) -> io::Result<()> {
        match &self.newest {
            Some(response) => {
                self.region.draw(&page(&Table::of_status(response, self.clock.now()), response))
            }
            None => Ok(()),
        }
    }
}

/// Returns the table and the lines below it.
fn page(table: &Table, response: &ServiceStatusResponse) -> Vec<String> {
    let mut lines = table.lines();
    lines.push(String::new());
    lines.extend(summaries(response));
    lines.extend(stale_line(response));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::testing::{FakeGateway, LEASE};
    use crate::config::CallConfig;
    use crate::model::time::LogTime;

    #[tokio::test]
    async fn ages_use_the_clock_of_the_gateway() {
        let mut gateway = FakeGateway::start(Vec::new()).await;
        // Half an hour more, so that rounding does not show.
        gateway.set_date(LogTime::from_parts(5 * 1_800, 0).unwrap());
        gateway.set_replicas(&[0]);
        let config = StatusConfig {
            call: CallConfig {
                lease: LEASE.parse().unwrap(),
                source: crate::config::LeaseSource::default(),
                target: gateway.target(),
                services: Vec::new(),
                replicas: Vec::new(),
            },
            follow: false,
            output: Format::Text,
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = run(&config, &mut out, &mut err, false).await;
        let out = String::from_utf8(out).unwrap();
        assert_eq!((exit, err.len()), (Exit::Done, 0), "{out}");
        assert!(out.contains("web/0    running  no     0         2h   -"), "{out}");
    }

    fn printed(format: Format, follow: bool, responses: &[ServiceStatusResponse]) -> String {
        let mut out = Vec::new();
        let mut printer = StatusPrinter::new(format, follow, &mut out, false);
        for response in responses {
            printer.print(response.clone()).unwrap();
        }
        drop(printer);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn stale_responses_are_marked_in_every_form() {
        let current = ServiceStatusResponse::default();
        let stale_since = Some(prost_types::Timestamp { seconds: 60, nanos: 0 });
        let stale = ServiceStatusResponse { stale_since, ..current.clone() };
        let responses = [current.clone(), stale.clone(), stale.clone(), current];
        let followed = printed(Format::Text, true, &responses);
        let lines: Vec<&str> = followed.lines().skip(1).collect();
        let [is_stale, is_current] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(is_stale.starts_with("stale: last known at 1970-01-01T00:01:00"), "{is_stale}");
        assert_eq!(*is_current, "current again");
        let once = printed(Format::Text, false, std::slice::from_ref(&stale));
        assert!(once.lines().last().unwrap().starts_with("stale: last known at "), "{once}");
        let json = printed(Format::Json, false, &[stale]);
        assert_eq!(json, "{\"services\":[],\"stale_since\":\"1970-01-01T00:01:00.000000000Z\"}\n");
    }
}
