//! Prints a follower's entries.
//!
//! Text: `service/replica | line` on the output, notices about lines on the error output. Bytes are those
//! that the container wrote, but on a terminal control characters are escaped; colours pass. JSON: one object
//! a line, everything on the output. The output is buffered and flushed when the stream pauses.
//!
//! A terminal shows an unfinished line at once (`LiveLine`). Otherwise pieces are joined into whole lines,
//! unless a line is very long or stays unfinished (`LineJoiner`). Filters and templates get whole lines, also
//! on a terminal.

use std::io::{self, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ReplicaKey;
use super::follow::{ConnectionChange, Sink};
use super::interrupt::erase_on_interrupt;
use super::json::Object;
use super::line_options::LineOptions;
use super::line_writer::{LineWriter, Replica};
use super::lines::{LineId, LineJoiner, PartialLines};
use super::output_style::OutputStyle;
use super::progress_row::ProgressRow;
use super::reconnect::ReconnectMessages;
use super::terminal::escape_to_line;
use crate::config::Format;
use crate::model::limits::STREAM_REPLICAS_MAX;
use crate::model::proto::lease::gap::Cause;
use crate::model::proto::lease::replica_event::Kind;
use crate::model::proto::lease::source_state::State as SourceStateKind;
use crate::model::proto::lease::{Gap, ReplicaEvent, ServiceLogs};
use crate::model::time::LogTime;

/// A log that cannot be read for longer is reported. Most interruptions, as by a kubelet that restarts its
/// connections, are shorter.
pub(super) const UNREACHABLE_AFTER: Duration = Duration::from_secs(5);

/// Sink that prints entries. [`Printer::finish`] ends the output.
pub(crate) struct Printer<'a> {
    out: LineWriter<'a>,
    joiner: LineJoiner,
    gaps: u64,
    reconnects: ReconnectMessages,
}

// === impl Printer ===

impl<'a> Printer<'a> {
    /// Creates a printer of all entries to `out` and of notices to `err`.
    pub(crate) fn new(out: impl Write + Send + 'a, err: impl Write + Send + 'a, style: OutputStyle) -> Self {
        Self::with_lines(out, err, style, LineOptions::default())
    }

    /// Creates a printer of the lines that `options` selects, in the form that it describes.
    pub(crate) fn with_lines(
        out: impl Write + Send + 'a,
        err: impl Write + Send + 'a,
        style: OutputStyle,
        options: LineOptions,
    ) -> Self {
        let partial = match (options.needs_whole_lines(), style.terminal && style.format == Format::Text) {
            (true, _) => PartialLines::HoldAll,
            (false, true) => PartialLines::PassOn,
            (false, false) => PartialLines::Hold,
        };
        let out = LineWriter::new(Box::new(out), Box::new(err), style, options);
        let (joiner, reconnects) = (LineJoiner::new(partial), ReconnectMessages::default());
        Self { out, joiner, gaps: 0, reconnects }
    }

    /// Erases drawn progress on Ctrl-C from now on, if progress may be drawn. Returns the owner of the task,
    /// which has to live as long as the command.
    pub(super) fn erase_on_interrupt(&self) -> Option<JoinSet<()>> {
        let progress = self.out.progress.as_ref()?;
        Some(erase_on_interrupt(progress.drawn(), ProgressRow::erasure))
    }

    /// Returns a token that is cancelled when the maximum number of lines is printed.
    pub(super) fn complete(&self) -> CancellationToken {
        self.out.complete.clone()
    }

    /// Returns the number of printed gaps.
    pub(super) fn gaps(&self) -> u64 {
        self.gaps
    }

    /// Ends unfinished lines and flushes.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        for id in self.joiner.unfinished() {
            self.end_line(&id)?;
        }
        self.out.erase()?;
        self.out.progress = None;
        self.out.out.flush()
    }

    /// Writes `text` unchanged to the output, after everything printed so far.
    pub(crate) fn print(&mut self, text: &str) -> io::Result<()> {
        self.finish()?;
        self.out.out.write_all(text.as_bytes())?;
        self.out.out.flush()
    }

    /// Writes a message of the program, which may have several lines, to the error output.
    pub(crate) fn message(&mut self, text: &str) -> io::Result<()> {
        // The message may report that this very output fails, so it is written even then.
        let flushed = self.out.flush_for_stderr();
        write!(self.out.err, "leasemux: ")?;
        for line in text.lines() {
            writeln!(self.out.err, "{}", escape_to_line(line))?;
        }
        self.out.err.flush()?;
        flushed
    }

    /// Forgets a replica before `key` is added: a gateway may name any number of replicas over time.
    fn make_room(&mut self, key: &ReplicaKey) -> io::Result<()> {
        let replicas = &self.out.replicas;
        if replicas.len() < STREAM_REPLICAS_MAX || replicas.contains_key(key) {
            return Ok(());
        }
        if let Some(first) = replicas.keys().next().cloned() {
            self.end_lines(&first)?;
            self.out.remove(&first);
        }
        Ok(())
    }

    /// Ends the unfinished lines of a replica.
    fn end_lines(&mut self, key: &ReplicaKey) -> io::Result<()> {
        for id in self.joiner.unfinished_of(key) {
            self.end_line(&id)?;
        }
        Ok(())
    }

    fn end_line(&mut self, id: &LineId) -> io::Result<()> {
        self.joiner.end(id, &mut |id, piece| self.out.piece(id, piece))
    }

    fn gap(&mut self, key: &ReplicaKey, gap: &Gap) -> io::Result<()> {
        self.gaps += 1;
        if self.out.style.format == Format::Json {
            let replica = self.out.replicas.get(key);
            let instance = replica.map(|replica| replica.instance.clone()).unwrap_or_default();
            return self.out.object(&Object::gap(key, &instance, gap));
        }
        self.notice(key, '!', AnsiColor::Red.on_default().bold(), &gap_text(gap))
    }

    fn event(&mut self, key: &ReplicaKey, event: &ReplicaEvent) -> io::Result<()> {
        if self.out.style.format == Format::Json {
            return self.out.object(&Object::event(key, event));
        }
        let is_failure = event.kind() == Kind::Ended && event.exit_code != Some(0);
        let style = if is_failure { AnsiColor::Yellow.on_default() } else { Style::new().dimmed() };
        self.notice(key, '*', style, &event_text(event))
    }

    /// Reports that the log of a replica can be read again, if it was reported as unreachable.
    fn reachable(&mut self, key: &ReplicaKey) -> io::Result<()> {
        let replica = self.out.replicas.get_mut(key);
        let Some((reported, before)) = replica.and_then(|replica| replica.unreachable.take()) else {
            return Ok(());
        };
        let seconds = (before + reported.elapsed()).as_secs();
        self.notice(key, '*', Style::new().dimmed(), &format!("log reachable again after {seconds} s"))
    }

    /// Writes a line about a replica to the error output.
    fn notice(&mut self, key: &ReplicaKey, mark: char, style: Style, text: &str) -> io::Result<()> {
        self.out.flush_for_stderr()?;
        let LineWriter { replicas, err, style: output, .. } = &mut self.out;
        let Some(replica) = replicas.get(key) else {
            return Ok(());
        };
        let style = if output.colour_errors { style } else { Style::new() };
        writeln!(err, "{style}{} {mark} {}{style:#}", replica.name, escape_to_line(text))
    }
}

impl Sink for Printer<'_> {
    fn entry(&mut self, entry: &ServiceLogs) -> io::Result<()> {
        if self.out.complete.is_cancelled() {
            return Ok(());
        }
        if entry.name.is_empty() && self.out.style.format == Format::Text {
            // An entry without a service concerns the whole lease.
            return self.message("nothing is deployed under this lease");
        }
        let key = (entry.name.clone(), entry.replica);
        let instance = entry.cursor.as_ref().map(|cursor| cursor.instance.as_str());
        self.make_room(&key)?;
        let colour = self.out.style.colour;
        let replica = self.out.replicas.entry(key.clone()).or_insert_with(|| Replica::new(&key, colour));
        let is_other_run = instance.is_some_and(|instance| instance != replica.instance);
        // The entry does not continue the unfinished line, which lacks its newline.
        if is_other_run || entry.gap.is_some() || entry.event.is_some() {
            self.end_lines(&key)?;
        }
        // Lines after it are no context of lines before it.
        if is_other_run || entry.gap.is_some() {
            self.out.end_group(&key);
        }
        if let (Some(instance), Some(replica)) = (instance, self.out.replicas.get_mut(&key)) {
            instance.clone_into(&mut replica.instance);
        }
        if let Some(gap) = &entry.gap {
            // The notice in `logs` is for clients that do not know gap entries.
            return self.gap(&key, gap);
        }
        if let Some(event) = &entry.event {
            return self.event(&key, event);
        }
        if entry.logs.is_empty() && entry.part.is_none() {
            return Ok(());
        }
        self.reachable(&key)?;
        let out = &mut self.out;
        if let Some(progress) = &mut out.progress {
            progress.count(&entry.logs);
        }
        self.joiner.push(&key, entry.part.as_ref(), &entry.logs, &mut |id, piece| out.piece(id, piece))?;
        self.out.draw_progress()
    }

    fn heartbeat(&mut self, heartbeat: &ServiceLogs, now: LogTime) -> io::Result<()> {
        let key = (heartbeat.name.clone(), heartbeat.replica);
        let Some(source) = heartbeat.source.as_ref().filter(|_| self.out.style.format == Format::Text) else {
            return Ok(());
        };
        if source.state() != SourceStateKind::Reconnecting {
            return self.reachable(&key);
        }
        let since = source.since.as_ref().and_then(LogTime::from_proto);
        let nanos = since.map_or(0, |since| now.as_nanos().saturating_sub(since.as_nanos()));
        let duration = Duration::from_nanos(nanos.try_into().unwrap_or_default());
        if duration < UNREACHABLE_AFTER {
            return Ok(());
        }
        self.make_room(&key)?;
        let colour = self.out.style.colour;
        let replica = self.out.replicas.entry(key.clone()).or_insert_with(|| Replica::new(&key, colour));
        if replica.unreachable.is_some() {
            return Ok(());
        }
        replica.unreachable = Some((Instant::now(), duration));
        let reason = if source.reason.is_empty() { String::new() } else { format!(" ({})", source.reason) };
        let text = format!("log unreachable for {} s{reason}, retrying", duration.as_secs());
        self.notice(&key, '*', AnsiColor::Yellow.on_default(), &text)
    }

    fn pause(&mut self) -> io::Result<()> {
        self.out.draw()?;
        self.out.draw_progress()?;
        self.out.out.flush()
    }

    fn due(&self) -> Option<Instant> {
        let progress = self.out.progress.as_ref().map(ProgressRow::due);
        self.joiner.due().into_iter().chain(progress).min()
    }

    fn on_due(&mut self) -> io::Result<()> {
        self.joiner.emit_overdue(Instant::now(), &mut |id, piece| self.out.piece(id, piece))?;
        self.out.draw_progress()?;
        self.out.out.flush()
    }

    fn connection(&mut self, change: &ConnectionChange<'_>) -> io::Result<()> {
        match change {
            ConnectionChange::Lost { error, retry_in } => {
                self.reconnects.of_failure(error, *retry_in).map_or(Ok(()), |text| self.message(&text))
            }
            ConnectionChange::Resumed => {
                self.reconnects.reset();
                self.message("reconnected, resuming where the stream ended")
            }
            ConnectionChange::WithoutRefill => self.message(
                "this gateway cannot read lines again (on_lag = REFILL); if this side is too slow, lines are \
                 skipped and reported",
            ),
        }
    }
}

fn gap_text(gap: &Gap) -> String {
    let cause = match gap.cause() {
        Cause::Lag => "this side fell behind",
        Cause::Rotated => "they were rotated away before they could be read",
        Cause::Source => "the log has lost them",
        Cause::Limit => "a limit of the gateway cut them",
        Cause::Unspecified => "the gateway does not say why",
    };
    let unit = if gap.lines == 1 { "line" } else { "lines" };
    match (gap.exact, gap.lines, gap.bytes) {
        (true, lines, bytes) => format!("{lines} {unit} ({bytes} bytes) lost: {cause}"),
        (false, 0, 0) => format!("lines may be lost: {cause}"),
        (false, lines, bytes) => format!("at least {lines} {unit} ({bytes} bytes) lost: {cause}"),
    }
}

fn event_text(event: &ReplicaEvent) -> String {
    let what = match (event.kind(), event.exit_code, event.signal) {
        (Kind::Started, ..) => "started".to_owned(),
        (Kind::Ended, _, Some(signal)) => format!("ended by signal {signal}"),
        (Kind::Ended, Some(code), None) => format!("exited with code {code}"),
        (Kind::Ended, None, None) => "ended".to_owned(),
        (Kind::Waiting, ..) => "waiting".to_owned(),
        (Kind::Gone, ..) => "gone: no longer part of the lease".to_owned(),
        (Kind::Unspecified, ..) => "changed".to_owned(),
    };
    let reason = if event.reason.is_empty() { String::new() } else { format!(" ({})", event.reason) };
    let message = if event.message.is_empty() { String::new() } else { format!(": {}", event.message) };
    format!("{what}{reason}{message}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::proto::lease::{Cursor, LinePart, SourceState, line_part};

    const PLAIN: OutputStyle = OutputStyle::PLAIN;

    fn entry(service: &str, run: &str, logs: &[u8]) -> ServiceLogs {
        let cursor = Cursor { service: service.into(), instance: run.into(), ..Default::default() };
        let logs = logs.to_vec().into();
        ServiceLogs { name: service.into(), logs, cursor: Some(cursor), ..Default::default() }
    }

    fn event(service: &str, kind: Kind, exit_code: Option<i32>, reason: &str) -> ServiceLogs {
        let event =
            ReplicaEvent { kind: kind.into(), exit_code, reason: reason.into(), ..Default::default() };
        ServiceLogs { name: service.into(), event: Some(event), ..Default::default() }
    }

    fn gap(service: &str, gap: Gap) -> ServiceLogs {
        ServiceLogs { gap: Some(gap), logs: b"a notice\n".to_vec().into(), ..entry(service, "1", b"") }
    }

    fn printed(style: OutputStyle, entries: &[ServiceLogs]) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut printer = Printer::new(&mut out, &mut err, style);
        for entry in entries {
            printer.entry(entry).unwrap();
        }
        printer.finish().unwrap();
        drop(printer);
        (String::from_utf8_lossy(&out).into_owned(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn line_in_pieces_gets_one_prefix_and_a_newline() {
        let (out, err) = printed(
            PLAIN,
            &[
                entry("a", "1", b"one\ntwo, "),
                entry("b", "1", b"other\n"),
                entry("a", "1", b"goes on\n"),
                entry("a", "1", b"dies"),
                entry("a", "2", b"next run\n\n"),
                entry("b", "1", b"no end"),
            ],
        );
        assert_eq!(
            out,
            "a/0 | one\nb/0 | other\na/0 | two, goes on\na/0 | dies\na/0 | next run\na/0 | \nb/0 | no end\n"
        );
        assert_eq!(err, "");
    }

    #[test]
    fn overlong_line_is_printed_in_pieces() {
        let long = vec![b'x'; 2 << 20];
        let (out, _) = printed(
            PLAIN,
            &[
                entry("a", "1", &long),
                entry("a", "1", b"y"),
                entry("b", "1", b"b\n"),
                entry("a", "1", b"z\n"),
            ],
        );
        let long = String::from_utf8(long).unwrap();
        assert_eq!(out, format!("a/0 | {long}y\nb/0 | b\na/0 | z\n"));
    }

    #[test]
    fn bytes_are_unchanged_unless_output_is_a_terminal() {
        let lines = [entry("a", "1", b"\x1b[2J\xff\r\n")];
        assert_eq!(printed(PLAIN, &lines).0, "a/0 | \x1b[2J\u{fffd}\r\n");
        let terminal = OutputStyle { terminal: true, ..PLAIN };
        assert_eq!(printed(terminal, &lines).0, "a/0 | ^[[2J\u{fffd}\r\n");
        let (out, err) = printed(terminal, &[event("a", Kind::Waiting, None, "\x1b]0;x\x07")]);
        assert_eq!((out.as_str(), err.as_str()), ("", "a/0 * waiting (^[]0;x^G)\n"));
    }

    fn part(
        service: &str,
        stream: line_part::Stream,
        continues: bool,
        more: bool,
        logs: &[u8],
    ) -> ServiceLogs {
        let part = LinePart { stream: stream.into(), continues, more };
        ServiceLogs { part: Some(part), ..entry(service, "1", logs) }
    }

    #[test]
    fn unfinished_line_is_shown_at_once_on_a_terminal() {
        use line_part::Stream::{Stderr, Stdout};
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut printer = Printer::new(&mut out, &mut err, OutputStyle { terminal: true, ..PLAIN });
        for entry in [
            part("a", Stderr, false, true, b"\r 1 %"),
            part("a", Stderr, true, true, b"\r 2 %"),
            entry("a", "1", b"app line\n"),
            part("a", Stdout, false, true, b"Password: "),
            part("a", Stdout, true, false, b"\n"),
            part("a", Stderr, true, false, b"\r100 %\n"),
        ] {
            printer.entry(&entry).unwrap();
            printer.pause().unwrap();
        }
        printer.finish().unwrap();
        drop(printer);
        let erase = "\r\x1b[K";
        let shown = [
            "a/0 |  1 %",
            "a/0 |  2 %",
            "a/0 | app line\na/0 |  2 %",
            "a/0 | Password: ",
            "a/0 | Password: \na/0 |  2 %",
            "a/0 | 100 %\n",
        ];
        assert_eq!(String::from_utf8(out).unwrap(), shown.join(erase));
        assert_eq!(err, b"");
    }

    #[tokio::test(start_paused = true)]
    async fn unfinished_line_is_printed_whole_within_five_seconds() {
        use line_part::Stream::{Stderr, Stdout};
        for format in [Format::Text, Format::Json] {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let mut printer = Printer::new(&mut out, &mut err, OutputStyle { format, ..PLAIN });
            printer.entry(&part("a", Stderr, false, true, b"be\r 1 %")).unwrap();
            printer.entry(&entry("a", "1", b"app line\n")).unwrap();
            printer.entry(&part("a", Stdout, false, true, b"g")).unwrap();
            tokio::time::advance(std::time::Duration::from_secs(4)).await;
            printer.entry(&part("a", Stdout, true, true, b"i")).unwrap();
            assert_eq!(printer.due().unwrap() - Instant::now(), std::time::Duration::from_secs(1));
            tokio::time::advance(std::time::Duration::from_millis(999)).await;
            printer.on_due().unwrap();
            printer.entry(&part("a", Stdout, true, false, b"n\n")).unwrap();
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
            printer.on_due().unwrap();
            printer.entry(&part("a", Stderr, true, true, b"\r 2 %")).unwrap();
            printer.entry(&part("a", Stderr, true, false, b"\r 3 %\n")).unwrap();
            assert_eq!(printer.due(), None);
            drop(printer);
            let out = String::from_utf8(out).unwrap();
            let line = |text: &str| out.contains(text);
            match format {
                Format::Text => assert_eq!(out, "a/0 | app line\na/0 | gin\na/0 | be\r 1 %\r 2 %\r 3 %\n"),
                Format::Json => assert!(
                    line(r#""line":"gin""#)
                        && line(r#""line":"be\r 1 %","partial":true"#)
                        && line(r#""line":"\r 3 %"}"#),
                    "{out}"
                ),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn unreachable_log_is_reported_once_until_it_is_back() {
        let at = |seconds: i64| LogTime::from_nanos(seconds * 1_000_000_000);
        let heartbeat = |name: &str, state: SourceStateKind, since: Option<i64>| {
            let (since, reason) = (since.map(|since| at(since).into()), "LogUnavailable".to_owned());
            let source = SourceState { state: state.into(), since, reason, lines_left: None };
            ServiceLogs { name: name.into(), source: Some(source), ..Default::default() }
        };
        let reconnecting = |since| heartbeat("a", SourceStateKind::Reconnecting, Some(since));
        let live = heartbeat("a", SourceStateKind::Live, None);
        for format in [Format::Text, Format::Json] {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let mut printer = Printer::new(&mut out, &mut err, OutputStyle { format, ..PLAIN });
            // Too short to report.
            printer.heartbeat(&reconnecting(100), at(104)).unwrap();
            printer.heartbeat(&live, at(106)).unwrap();
            // Without a time, and of a clock that was set back.
            printer.heartbeat(&heartbeat("a", SourceStateKind::Reconnecting, None), at(110)).unwrap();
            printer.heartbeat(&reconnecting(200), at(110)).unwrap();
            for now in [205, 207, 209] {
                printer.heartbeat(&reconnecting(200), at(now)).unwrap();
            }
            printer.heartbeat(&heartbeat("b", SourceStateKind::Waiting, None), at(210)).unwrap();
            for (state, now) in [(SourceStateKind::Reconnecting, 210), (SourceStateKind::Waiting, 211)] {
                printer.heartbeat(&heartbeat("", state, Some(200)), at(now)).unwrap();
            }
            tokio::time::advance(Duration::from_secs(10)).await;
            // A gap and an event do not show that the log can be read.
            printer.entry(&gap("a", Gap::default())).unwrap();
            printer.entry(&event("a", Kind::Waiting, None, "x")).unwrap();
            printer.entry(&entry("a", "1", b"line\n")).unwrap();
            printer.heartbeat(&live, at(216)).unwrap();
            // A heartbeat shows it, too.
            printer.heartbeat(&reconnecting(300), at(360)).unwrap();
            printer.heartbeat(&live, at(361)).unwrap();
            printer.finish().unwrap();
            drop(printer);
            let (out, err) = (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap());
            if format == Format::Json {
                assert_eq!((out.lines().count(), err.as_str()), (3, ""), "{out}");
                continue;
            }
            assert_eq!(out, "a/0 | line\n");
            let lines: Vec<&str> = err.lines().filter(|line| line.contains("reachable")).collect();
            let expected = [
                "a/0 * log unreachable for 5 s (LogUnavailable), retrying",
                "lease * log unreachable for 10 s (LogUnavailable), retrying",
                "lease * log reachable again after 10 s",
                "a/0 * log reachable again after 15 s",
                "a/0 * log unreachable for 60 s (LogUnavailable), retrying",
                "a/0 * log reachable again after 60 s",
            ];
            assert_eq!(lines, expected);
        }
    }

    #[test]
    fn replicas_have_distinct_stable_colours() {
        let style = OutputStyle { colour: true, ..PLAIN };
        let other = ServiceLogs { replica: 1, ..entry("a", "1", b"x\n") };
        let (out, _) = printed(style, &[entry("a", "1", b"x\n"), other.clone()]);
        let lines: Vec<&str> = out.lines().collect();
        let colour = |line: &str| line.split('a').next().unwrap().to_owned();
        assert!(lines[0].starts_with("\x1b[") && lines[0].ends_with("a/0 |\x1b[0m x"), "{out:?}");
        assert_ne!(colour(lines[0]), colour(lines[1]));
        assert!(printed(style, &[other]).0.starts_with(&colour(lines[1])));
    }

    #[test]
    fn gaps_and_events_are_printed_as_notices() {
        let lag = Gap { lines: 1, bytes: 9, exact: true, cause: Cause::Lag.into(), ..Default::default() };
        let rotated =
            Gap { lines: 3, bytes: 30, exact: false, cause: Cause::Rotated.into(), ..Default::default() };
        let source = Gap { cause: Cause::Source.into(), ..Default::default() };
        let (out, err) = printed(
            PLAIN,
            &[
                event("a", Kind::Started, None, ""),
                entry("a", "1", b"half"),
                gap("a", lag),
                gap("a", rotated),
                gap("a", source),
                event("a", Kind::Ended, Some(1), "Error"),
                event("a", Kind::Gone, None, ""),
            ],
        );
        assert_eq!(out, "a/0 | half\n");
        let expected = [
            "a/0 * started",
            "a/0 ! 1 line (9 bytes) lost: this side fell behind",
            "a/0 ! at least 3 lines (30 bytes) lost: they were rotated away before they could be read",
            "a/0 ! lines may be lost: the log has lost them",
            "a/0 * exited with code 1 (Error)",
            "a/0 * gone: no longer part of the lease",
        ];
        assert_eq!(err.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn json_has_one_object_per_entry() {
        let style = OutputStyle { format: Format::Json, timestamps: true, ..PLAIN };
        let lag = Gap { lines: 1, bytes: 9, exact: true, cause: Cause::Lag.into(), ..Default::default() };
        let (out, err) = printed(
            style,
            &[
                event("a", Kind::Ended, Some(1), "Error"),
                entry("a", "u/a/1", b"2026-01-31T12:00:00.000000001Z a \"b\" c\nno time\n"),
                entry("a", "u/a/1", b"2026-01-31T12:00:00.000000001Z \xff\n"),
                gap("a", lag),
            ],
        );
        assert_eq!(err, "");
        let expected = [
            r#"{"type":"event","service":"a","replica":0,"kind":"ended","exit_code":1,"reason":"Error"}"#,
            r#"{"type":"line","service":"a","replica":0,"instance":"u/a/1","time":"2026-01-31T12:00:00.000000001Z","line":"a \"b\" c"}"#,
            r#"{"type":"line","service":"a","replica":0,"instance":"u/a/1","line":"no time"}"#,
            r#"{"type":"line","service":"a","replica":0,"instance":"u/a/1","time":"2026-01-31T12:00:00.000000001Z","line_base64":"/w=="}"#,
            r#"{"type":"gap","service":"a","replica":0,"instance":"1","lines":1,"bytes":9,"exact":true,"cause":"lag"}"#,
        ];
        assert_eq!(out.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn message_is_written_although_output_fails() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let mut err = Vec::new();
        let mut printer = Printer::new(Full, &mut err, PLAIN);
        assert_eq!(printer.message("cannot write").unwrap_err().kind(), io::ErrorKind::StorageFull);
        drop(printer);
        assert_eq!(err, b"leasemux: cannot write\n");
    }

    #[test]
    fn remembered_replicas_are_bounded() {
        let mut printer = Printer::new(Vec::new(), Vec::new(), PLAIN);
        for n in 0..2 * STREAM_REPLICAS_MAX {
            printer.entry(&entry(&format!("s{n}"), "1", b"half")).unwrap();
        }
        assert_eq!(printer.out.replicas.len(), STREAM_REPLICAS_MAX);
        assert_eq!(printer.joiner.unfinished().len(), STREAM_REPLICAS_MAX);
    }
}
