//! Printing what a follower receives.
//!
//! Text: `service/replica | line` on the output, byte for byte what the container wrote (but on a terminal nothing in it can steer that; colours pass); what
//! there is to say about lines goes to the error output. A line in pieces gets its prefix once. JSON: one object a line,
//! everything on the output. The output is buffered and flushed when the stream pauses.
//!
//! A terminal shows an unfinished line at once (`LiveLine`). Otherwise, and as JSON, pieces are joined to whole lines; a line that is
//! unfinished for long, or very long, comes in pieces (`Lines`).

use std::collections::BTreeMap;
use std::io::{self, BufWriter, IsTerminal as _, Write};

use anstyle::{AnsiColor, Style};
use tokio::time::Instant;

use super::follow::{ConnectionChange, Sink};
use super::json::{Object, write_line};
use super::lines::{Key, LineId, Lines, Piece, Unfinished};
use super::live_line::LiveLine;
use super::live_region::Size;
use super::terminal::neutralise;
use crate::config::Output;
use crate::model::limits::STREAM_REPLICAS_MAX;
use crate::model::proto::lease::gap::Cause;
use crate::model::proto::lease::replica_event::Kind;
use crate::model::proto::lease::{Gap, ReplicaEvent, ServiceLogs};

/// Bytes gathered before they are written, when there is no pause.
const BUFFER_BYTES: usize = 64 * 1024;

/// Colours of prefixes. Red and yellow are kept for losses.
const PALETTE: [AnsiColor; 8] = [
    AnsiColor::Cyan,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::BrightCyan,
    AnsiColor::BrightGreen,
    AnsiColor::BrightMagenta,
    AnsiColor::BrightBlue,
];

/// How things look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about an output")]
pub struct OutputStyle {
    /// Text or JSON.
    pub output: Output,
    /// Whether the output is coloured.
    pub colour: bool,
    /// Whether the error output is coloured.
    pub colour_errors: bool,
    /// Whether the output is a terminal, which lines must not steer.
    pub terminal: bool,
    /// Whether lines begin with their time.
    pub timestamps: bool,
}

#[cfg(test)]
impl OutputStyle {
    /// Nothing but the lines.
    pub(super) const PLAIN: Self = Self {
        output: Output::Text,
        colour: false,
        colour_errors: false,
        terminal: false,
        timestamps: false,
    };
}

/// Prints entries. Call [`Printer::finish`] when no more come.
pub struct Printer<O: Write, E> {
    out: BufWriter<O>,
    err: E,
    look: OutputStyle,
    replicas: BTreeMap<Key, Replica>,
    lines: Lines,
    /// The line that the output ends with, unfinished.
    open: Option<LineId>,
    /// Set on a terminal, where no line is left unfinished but this one.
    live: Option<LiveLine>,
    scratch: Vec<u8>,
    gaps: u64,
}

#[derive(Debug, Default)]
struct Replica {
    instance: String,
    /// `service/replica`, safe to show.
    name: String,
    style: Style,
}

// === impl Look ===

impl OutputStyle {
    /// As fits this process's outputs and environment: colours on terminals, unless `NO_COLOR` is set.
    pub fn of_process(output: Output, timestamps: bool) -> Self {
        let colours = |choice| choice != anstream::ColorChoice::Never;
        Self {
            output,
            colour: colours(anstream::AutoStream::choice(&io::stdout())),
            colour_errors: colours(anstream::AutoStream::choice(&io::stderr())),
            terminal: io::stdout().is_terminal(),
            timestamps,
        }
    }
}

// === impl Printer ===

impl<O: Write + Send, E: Write + Send> Printer<O, E> {
    /// A printer to `out`, and to `err` for what is said about lines.
    pub fn new(out: O, err: E, look: OutputStyle) -> Self {
        let is_live = look.terminal && look.output == Output::Text;
        Self {
            out: BufWriter::with_capacity(BUFFER_BYTES, out),
            err,
            look,
            replicas: BTreeMap::new(),
            lines: Lines::new(if is_live { Unfinished::AtOnce } else { Unfinished::Held }),
            open: None,
            live: is_live.then(|| LiveLine::new(|| Size::of_output().columns)),
            scratch: Vec::new(),
            gaps: 0,
        }
    }

    /// How many gaps were printed.
    pub fn gaps(&self) -> u64 {
        self.gaps
    }

    /// Ends lines that are not whole, and flushes.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(&mut self) -> io::Result<()> {
        for id in self.lines.unfinished() {
            self.end_line(&id)?;
        }
        self.erase()?;
        self.out.flush()
    }

    /// Writes `text` as it is to the output, behind everything printed so far.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn print(&mut self, text: &str) -> io::Result<()> {
        self.finish()?;
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Says something that is not about one replica.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        // What is to be said may be that this fails.
        let way = self.make_way();
        write!(self.err, "leasemux: ")?;
        for line in text.lines() {
            let mut safe = Vec::with_capacity(line.len() + 1);
            neutralise(line.as_bytes(), &mut safe);
            safe.push(b'\n');
            self.err.write_all(&safe)?;
        }
        self.err.flush()?;
        way
    }

    /// A gateway may name any number of replicas over time; only so many are remembered.
    fn make_room(&mut self, key: &Key) -> io::Result<()> {
        if self.replicas.len() < STREAM_REPLICAS_MAX || self.replicas.contains_key(key) {
            return Ok(());
        }
        if let Some(first) = self.replicas.keys().next().cloned() {
            self.end_lines(&first)?;
            self.replicas.remove(&first);
        }
        Ok(())
    }

    /// Ends the lines of a replica that are not whole.
    fn end_lines(&mut self, key: &Key) -> io::Result<()> {
        for id in self.lines.unfinished_of(key) {
            self.end_line(&id)?;
        }
        Ok(())
    }

    fn end_line(&mut self, id: &LineId) -> io::Result<()> {
        self.with_lines(|lines, printer| lines.end(id, |id, piece| printer.piece(id, piece)))
    }

    fn with_lines(&mut self, act: impl FnOnce(&mut Lines, &mut Self) -> io::Result<()>) -> io::Result<()> {
        let empty = Lines::new(Unfinished::Held);
        let mut lines = std::mem::replace(&mut self.lines, empty);
        let done = act(&mut lines, self);
        self.lines = lines;
        done
    }

    /// Takes away the unfinished line at the end of a terminal.
    fn erase(&mut self) -> io::Result<()> {
        match &mut self.live {
            Some(live) => live.erase(&mut self.out),
            None => Ok(()),
        }
    }

    /// Shows the unfinished line at the end of a terminal.
    fn draw(&mut self) -> io::Result<()> {
        let Self { live: Some(live), out, replicas, .. } = self else { return Ok(()) };
        live.draw(out, |(key, _)| match replicas.get(key) {
            Some(replica) => replica.prefix(),
            None => Default::default(),
        })
    }

    fn piece(&mut self, id: &LineId, piece: Piece<'_>) -> io::Result<()> {
        let Some(live) = &mut self.live else {
            return self.write_piece(id, piece);
        };
        let Some(text) = live.push(id, piece) else {
            return Ok(());
        };
        live.erase(&mut self.out)?;
        self.write_piece(id, Piece { bytes: &text, first: true, last: true })
    }

    fn write_piece(&mut self, id: &LineId, piece: Piece<'_>) -> io::Result<()> {
        let (key, _) = id;
        let Some(replica) = self.replicas.get(key) else {
            return Ok(());
        };
        if self.look.output == Output::Json {
            let object = Object::line(key, &replica.instance, piece, self.look.timestamps);
            return write_line(&mut self.out, &object);
        }
        if self.open.as_ref() != Some(id) {
            if self.open.take().is_some() {
                self.out.write_all(b"\n")?;
            }
            self.out.write_all(&replica.prefix().0)?;
        }
        if self.look.terminal {
            self.scratch.clear();
            neutralise_piece(piece, &mut self.scratch);
            self.out.write_all(&self.scratch)?;
        } else {
            self.out.write_all(piece.bytes)?;
            if piece.last {
                self.out.write_all(b"\n")?;
            }
        }
        self.open = (!piece.last).then(|| id.clone());
        Ok(())
    }

    fn gap(&mut self, key: &Key, gap: &Gap) -> io::Result<()> {
        self.gaps += 1;
        if self.look.output == Output::Json {
            let instance = self.replicas.get(key).map_or("", |replica| replica.instance.as_str());
            return write_line(&mut self.out, &Object::gap(key, instance, gap));
        }
        self.note(key, '!', AnsiColor::Red.on_default().bold(), &gap_text(gap))
    }

    fn event(&mut self, key: &Key, event: &ReplicaEvent) -> io::Result<()> {
        if self.look.output == Output::Json {
            return write_line(&mut self.out, &Object::event(key, event));
        }
        let bad = event.kind() == Kind::Ended && event.exit_code != Some(0);
        let style = if bad { AnsiColor::Yellow.on_default() } else { Style::new().dimmed() };
        self.note(key, '*', style, &event_text(event))
    }

    /// A line on the error output.
    fn note(&mut self, key: &Key, mark: char, style: Style, text: &str) -> io::Result<()> {
        self.make_way()?;
        let Some(replica) = self.replicas.get(key) else {
            return Ok(());
        };
        let style = if self.look.colour_errors { style } else { Style::new() };
        let mut safe = Vec::with_capacity(text.len());
        neutralise(text.as_bytes(), &mut safe);
        writeln!(self.err, "{style}{} {mark} {}{style:#}", replica.name, String::from_utf8_lossy(&safe))
    }

    /// Makes what was printed visible before the error output is written to, which may be the same terminal.
    fn make_way(&mut self) -> io::Result<()> {
        if self.look.terminal && self.open.take().is_some() {
            self.out.write_all(b"\n")?;
        }
        self.erase()?;
        self.out.flush()
    }
}

impl<O: Write + Send, E: Write + Send> Sink for Printer<O, E> {
    fn entry(&mut self, entry: &ServiceLogs) -> io::Result<()> {
        if entry.name.is_empty() && self.look.output == Output::Text {
            // It is about the lease as a whole.
            return self.say("nothing is deployed under this lease");
        }
        let key = (entry.name.clone(), entry.replica);
        let instance = entry.cursor.as_ref().map(|cursor| cursor.instance.as_str());
        self.make_room(&key)?;
        let colour = self.look.colour;
        let replica = self.replicas.entry(key.clone()).or_insert_with(|| Replica::new(&key, colour));
        let other_run = instance.is_some_and(|instance| instance != replica.instance);
        // What comes now does not go on with the line before: a last line without newline gets one here.
        if other_run || entry.gap.is_some() || entry.event.is_some() {
            self.end_lines(&key)?;
        }
        if let (Some(instance), Some(replica)) = (instance, self.replicas.get_mut(&key)) {
            instance.clone_into(&mut replica.instance);
        }
        if let Some(gap) = &entry.gap {
            // The notice in `logs` is for clients that know no gaps.
            return self.gap(&key, gap);
        }
        if let Some(event) = &entry.event {
            return self.event(&key, event);
        }
        if entry.logs.is_empty() && entry.part.is_none() {
            return Ok(());
        }
        let part = entry.part.as_ref();
        self.with_lines(|lines, printer| {
            lines.push(&key, part, &entry.logs, |id, piece| printer.piece(id, piece))
        })
    }

    fn pause(&mut self) -> io::Result<()> {
        self.draw()?;
        self.out.flush()
    }

    fn due(&self) -> Option<Instant> {
        self.lines.due()
    }

    fn on_due(&mut self) -> io::Result<()> {
        self.with_lines(|lines, printer| {
            lines.pass_on(Instant::now(), |id, piece| printer.piece(id, piece))
        })?;
        self.out.flush()
    }

    fn connection(&mut self, turn: &ConnectionChange<'_>) -> io::Result<()> {
        match turn {
            ConnectionChange::Cut { reason, retry_in } => {
                self.say(&format!("{reason}; reconnecting in {:.1} s", retry_in.as_secs_f64()))
            }
            ConnectionChange::Resumed => self.say("connected again, going on where it was cut"),
        }
    }
}

impl<O: Write, E> std::fmt::Debug for Printer<O, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Printer").field("look", &self.look).finish_non_exhaustive()
    }
}

// === impl Replica ===

impl Replica {
    fn new(key: &Key, colour: bool) -> Self {
        let (service, index) = key;
        let mut name = Vec::new();
        neutralise(format!("{service}/{index}").as_bytes(), &mut name);
        // The same replica has the same colour in every run, and neighbours have different ones.
        let hash =
            service.bytes().fold(0_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let at = hash.wrapping_add(*index as usize) % PALETTE.len();
        let style = PALETTE.get(at).filter(|_| colour).map(|colour| colour.on_default());
        Self {
            instance: String::new(),
            name: String::from_utf8_lossy(&name).into_owned(),
            style: style.unwrap_or_default(),
        }
    }
}

impl Replica {
    /// The text before each of its lines, and how many columns it takes at most.
    fn prefix(&self) -> (Vec<u8>, usize) {
        let Self { style, name, .. } = self;
        (format!("{style}{name} |{style:#} ").into_bytes(), name.len() + 3)
    }
}

fn neutralise_piece(piece: Piece<'_>, out: &mut Vec<u8>) {
    if piece.last {
        // With the newline, so that a carriage return before it is known as part of the line's end.
        neutralise(&[piece.bytes, b"\n"].concat(), out);
    } else {
        neutralise(piece.bytes, out);
    }
}

fn gap_text(gap: &Gap) -> String {
    let cause = match gap.cause() {
        Cause::Lag => "this side fell behind",
        Cause::Rotated => "they were rotated away before they could be read",
        Cause::Source => "the place they come from lost them",
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
    use crate::model::proto::lease::{Cursor, LinePart, line_part};

    const PLAIN: OutputStyle = OutputStyle {
        output: Output::Text,
        colour: false,
        colour_errors: false,
        terminal: false,
        timestamps: false,
    };

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

    fn printed(look: OutputStyle, entries: &[ServiceLogs]) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut printer = Printer::new(&mut out, &mut err, look);
        for entry in entries {
            printer.entry(entry).unwrap();
        }
        printer.finish().unwrap();
        drop(printer);
        (String::from_utf8_lossy(&out).into_owned(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn pieces_get_one_prefix_and_the_last_line_a_newline() {
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
    fn a_line_too_long_to_hold_flows_and_gives_way() {
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
    fn bytes_are_those_of_the_container_unless_a_terminal_reads_them() {
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
    async fn unfinished_line_comes_whole_unless_it_lasts_long() {
        use line_part::Stream::{Stderr, Stdout};
        for output in [Output::Text, Output::Json] {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let mut printer = Printer::new(&mut out, &mut err, OutputStyle { output, ..PLAIN });
            printer.entry(&part("a", Stderr, false, true, b"be\r 1 %")).unwrap();
            printer.entry(&entry("a", "1", b"app line\n")).unwrap();
            printer.entry(&part("a", Stdout, false, true, b"g")).unwrap();
            tokio::time::advance(std::time::Duration::from_secs(4)).await;
            // This one is joined.
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
            match output {
                Output::Text => assert_eq!(out, "a/0 | app line\na/0 | gin\na/0 | be\r 1 %\r 2 %\r 3 %\n"),
                Output::Json => assert!(
                    line(r#""line":"gin""#)
                        && line(r#""line":"be\r 1 %","partial":true"#)
                        && line(r#""line":"\r 3 %"}"#),
                    "{out}"
                ),
            }
        }
    }

    #[test]
    fn replicas_differ_in_colour_and_keep_theirs() {
        let look = OutputStyle { colour: true, ..PLAIN };
        let other = ServiceLogs { replica: 1, ..entry("a", "1", b"x\n") };
        let (out, _) = printed(look, &[entry("a", "1", b"x\n"), other.clone()]);
        let lines: Vec<&str> = out.lines().collect();
        let colour = |line: &str| line.split('a').next().unwrap().to_owned();
        assert!(lines[0].starts_with("\x1b[") && lines[0].ends_with("a/0 |\x1b[0m x"), "{out:?}");
        assert_ne!(colour(lines[0]), colour(lines[1]));
        assert!(printed(look, &[other]).0.starts_with(&colour(lines[1])));
    }

    #[test]
    fn news_stands_out() {
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
            "a/0 ! lines may be lost: the place they come from lost them",
            "a/0 * exited with code 1 (Error)",
            "a/0 * gone: no longer part of the lease",
        ];
        assert_eq!(err.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn json_is_one_object_a_line_and_loses_nothing() {
        let look = OutputStyle { output: Output::Json, timestamps: true, ..PLAIN };
        let lag = Gap { lines: 1, bytes: 9, exact: true, cause: Cause::Lag.into(), ..Default::default() };
        let (out, err) = printed(
            look,
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
    fn what_is_said_gets_out_though_the_output_fails() {
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
        assert_eq!(printer.say("cannot write").unwrap_err().kind(), io::ErrorKind::StorageFull);
        drop(printer);
        assert_eq!(err, b"leasemux: cannot write\n");
    }

    #[test]
    fn replicas_without_number_are_not_all_remembered() {
        let mut printer = Printer::new(Vec::new(), Vec::new(), PLAIN);
        for n in 0..2 * STREAM_REPLICAS_MAX {
            printer.entry(&entry(&format!("s{n}"), "1", b"half")).unwrap();
        }
        assert_eq!(printer.replicas.len(), STREAM_REPLICAS_MAX);
        assert_eq!(printer.lines.unfinished().len(), STREAM_REPLICAS_MAX);
    }
}
