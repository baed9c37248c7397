//! Writes lines: selected, with their prefix, as JSON or by a template.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::json::{Object, write_line};
use super::line_filter::{LineFilter, Selected};
use super::line_options::LineOptions;
use super::lines::{LineId, Piece};
use super::live_line::{LiveLine, Row, drop_overwritten};
use super::live_region::Size;
use super::output_style::OutputStyle;
use super::progress_row::ProgressRow;
use super::terminal::{escape_marked, escape_to_line, mark};
use super::{Out, ReplicaKey};
use crate::config::{Field, Format, Part, Template};
use crate::model::line::split_time;
use crate::model::time::LogTime;

/// Output buffer. It is written when full, even without a pause.
const BUFFER_BYTES: usize = 64 * 1024;

/// Form of times in another zone than UTC: RFC 3339 with an offset and as many digits as in UTC.
const LOCAL_TIME: &str = "%Y-%m-%dT%H:%M:%S.%9f%:z";

/// Line between groups that are not adjacent, as of grep.
const SEPARATOR: &str = "--";

/// Colours of prefixes. Red and yellow are reserved for losses and failures.
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

/// Output of lines.
pub(super) struct LineWriter<'a> {
    pub(super) out: BufWriter<Out<'a>>,
    /// For notices and progress.
    pub(super) err: Out<'a>,
    /// Set if progress may be drawn, on the error output.
    pub(super) progress: Option<ProgressRow>,
    pub(super) style: OutputStyle,
    pub(super) replicas: BTreeMap<ReplicaKey, Replica>,
    options: LineOptions,
    /// Number of lines that may still be printed; `None`: any.
    left: Option<u64>,
    /// Cancelled when no more lines may be printed.
    pub(super) complete: CancellationToken,
    /// Line at the end of the output that has no newline yet. Always `None` on a terminal.
    open: Option<LineId>,
    /// Set for text on a terminal.
    live: Option<LiveLine>,
}

/// A replica of which something was printed.
#[derive(Debug, Default)]
pub(super) struct Replica {
    pub(super) instance: String,
    /// Text `service/replica`, with control characters escaped.
    pub(super) name: String,
    style: Style,
    /// Set while its log is reported as unreachable: the time of the report, and for how long it was then.
    pub(super) unreachable: Option<(Instant, Duration)>,
}

// === impl LineWriter ===

impl<'a> LineWriter<'a> {
    pub(super) fn new(out: Out<'a>, err: Out<'a>, style: OutputStyle, options: LineOptions) -> Self {
        let is_live = style.terminal && style.format == Format::Text && options.template.is_none();
        Self {
            out: BufWriter::with_capacity(BUFFER_BYTES, out),
            err,
            progress: options
                .has_progress(style)
                .then(|| ProgressRow::new(|| Some(Size::of_foreground_errors()?.columns))),
            style,
            replicas: BTreeMap::new(),
            left: options.max_lines,
            options,
            complete: CancellationToken::new(),
            open: None,
            live: is_live.then(|| LiveLine::new(|| Size::of_output().columns)),
        }
    }

    /// Removes the drawn progress and the drawn unfinished line from a terminal.
    pub(super) fn erase(&mut self) -> io::Result<()> {
        self.erase_progress()?;
        match &mut self.live {
            Some(live) => live.erase(&mut self.out),
            None => Ok(()),
        }
    }

    fn erase_progress(&mut self) -> io::Result<()> {
        match &mut self.progress {
            Some(progress) => progress.erase(&mut self.err),
            None => Ok(()),
        }
    }

    /// Writes an object of JSON that is not a line.
    pub(super) fn object(&mut self, object: &Object) -> io::Result<()> {
        if self.style.terminal {
            self.erase_progress()?;
        }
        write_line(&mut self.out, object)
    }

    /// Draws the progress, if it is time to.
    pub(super) fn draw_progress(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let Some(progress) = self.progress.as_mut().filter(|progress| progress.is_due(now)) else {
            return Ok(());
        };
        // Both may be the same terminal.
        self.out.flush()?;
        progress.draw(&mut self.err, now)
    }

    /// Draws the unfinished line on a terminal.
    pub(super) fn draw(&mut self) -> io::Result<()> {
        let Self { live: Some(live), out, replicas, options, .. } = self else { return Ok(()) };
        let has_prefix = options.has_prefix;
        live.draw(out, |(key, _)| {
            let replica = replicas.get(key).filter(|_| has_prefix);
            replica.map(Replica::prefix).unwrap_or_default()
        })
    }

    /// Makes the output visible before something is written to the error output, which may be the same
    /// terminal.
    pub(super) fn flush_for_stderr(&mut self) -> io::Result<()> {
        self.erase()?;
        self.out.flush()
    }

    /// Takes a line or a piece of one, and writes what is selected.
    pub(super) fn piece(&mut self, id: &LineId, piece: Piece<'_>) -> io::Result<()> {
        // Taken out, because writing needs the rest.
        let Some(mut filter) = self.options.filter.take() else {
            return self.write(id, piece);
        };
        let result = filter.push(id, piece, &mut |selected| match selected {
            Selected::Separator => self.separator(),
            Selected::Piece(id, piece) => self.write(id, piece),
        });
        self.options.filter = Some(filter);
        result
    }

    /// Ends the group of lines of a replica: those that follow do not continue its log.
    pub(super) fn end_group(&mut self, key: &ReplicaKey) {
        if let Some(filter) = &mut self.options.filter {
            filter.reset(key);
        }
    }

    /// Forgets a replica, which has no unfinished lines.
    pub(super) fn remove(&mut self, key: &ReplicaKey) {
        self.replicas.remove(key);
        if let Some(filter) = &mut self.options.filter {
            LineFilter::remove(filter, key);
        }
    }

    fn separator(&mut self) -> io::Result<()> {
        if self.style.format == Format::Json || self.left == Some(0) {
            return Ok(());
        }
        self.erase()?;
        if self.open.take().is_some() {
            self.out.write_all(b"\n")?;
        }
        let style = if self.style.colour { Style::new().dimmed() } else { Style::new() };
        writeln!(self.out, "{style}{SEPARATOR}{style:#}")
    }

    fn write(&mut self, id: &LineId, piece: Piece<'_>) -> io::Result<()> {
        if self.left == Some(0) {
            return Ok(());
        }
        if self.style.terminal {
            self.erase_progress()?;
        }
        self.write_piece(id, piece)?;
        if let Some(left) = self.left.as_mut().filter(|_| piece.last) {
            *left -= 1;
            if *left == 0 {
                self.complete.cancel();
            }
        }
        Ok(())
    }

    fn write_piece(&mut self, id: &LineId, piece: Piece<'_>) -> io::Result<()> {
        let Self { out, style, replicas, options, open, live, .. } = self;
        let Some(replica) = replicas.get(&id.0) else {
            return Ok(());
        };
        if let Some(live) = live {
            let (time, text) = split(piece.bytes, piece.first, *style);
            let time = time.map(|(written, time)| format!("{} ", time_text(written, time, options)));
            let Some(Row { time, mut text }) = live.push(id, time, Piece { bytes: text, ..piece }) else {
                return Ok(());
            };
            live.erase(out)?;
            // With the newline, so that a preceding carriage return counts as part of the line's end.
            text.push(b'\n');
            let mut row = if options.has_prefix { replica.prefix().0 } else { Vec::new() };
            row.extend_from_slice(time.as_bytes());
            marked(&text, *style, options, &mut row);
            return out.write_all(&row);
        }
        if style.format == Format::Json {
            return write_line(out, &Object::line(&id.0, &replica.instance, piece, style.timestamps));
        }
        if options.template.is_some() {
            return out.write_all(&record(&id.0, replica, piece, *style, options));
        }
        if open.as_ref() != Some(id) {
            if open.take().is_some() {
                out.write_all(b"\n")?;
            }
            if options.has_prefix {
                out.write_all(&replica.prefix().0)?;
            }
        }
        if options.changes_text(*style) {
            let mut row = Vec::with_capacity(piece.bytes.len());
            content(piece.bytes, piece.first, *style, options, &mut row);
            out.write_all(&row)?;
        } else {
            out.write_all(piece.bytes)?;
        }
        if piece.last {
            out.write_all(b"\n")?;
        }
        *open = (!piece.last).then(|| id.clone());
        Ok(())
    }
}

/// Appends a line, or a piece of one, as text: with its time, if lines have them.
fn content(line: &[u8], first: bool, style: OutputStyle, options: &LineOptions, out: &mut Vec<u8>) {
    let (time, text) = split(line, first, style);
    if let Some((written, time)) = time {
        out.extend_from_slice(time_text(written, time, options).as_bytes());
        out.push(b' ');
    }
    marked(text, style, options, out);
}

/// Returns a line, or a piece of one, as the template says.
fn record(
    key: &ReplicaKey,
    replica: &Replica,
    piece: Piece<'_>,
    style: OutputStyle,
    options: &LineOptions,
) -> Vec<u8> {
    let (time, text) = split(piece.bytes, piece.first, style);
    let mut text = Cow::Borrowed(text.strip_suffix(b"\r").unwrap_or(text));
    if style.terminal && text.contains(&b'\r') {
        drop_overwritten(text.to_mut());
    }
    let mut out = Vec::with_capacity(piece.bytes.len() + 80);
    for part in options.template.iter().flat_map(Template::parts) {
        match part {
            Part::Text(text) => out.extend_from_slice(text.as_bytes()),
            Part::Field(Field::Service) => {
                let name = escape_to_line(&key.0);
                let (on, off) = (replica.style, format!("{:#}", replica.style));
                out.extend_from_slice(format!("{on}{name}{off}").as_bytes());
            }
            Part::Field(Field::Replica) => {
                let (on, off) = (replica.style, format!("{:#}", replica.style));
                out.extend_from_slice(format!("{on}{}{off}", key.1).as_bytes());
            }
            Part::Field(Field::Instance) => {
                out.extend_from_slice(escape_to_line(&replica.instance).as_bytes());
            }
            Part::Field(Field::Time) => {
                let time = time.map(|(written, time)| time_text(written, time, options));
                out.extend_from_slice(time.unwrap_or_default().as_bytes());
            }
            Part::Field(Field::Line) => marked(&text, style, options, &mut out),
        }
    }
    out.push(b'\n');
    out
}

/// Splits the time from the start of a line, if lines have times.
fn split(line: &[u8], first: bool, style: OutputStyle) -> (Option<(&str, LogTime)>, &[u8]) {
    let split = if style.timestamps && first { split_time(line) } else { None };
    split.map_or((None, line), |(written, time, text)| (Some((written, time)), text))
}

/// Returns a time in the zone of the output.
fn time_text<'t>(written: &'t str, time: LogTime, options: &LineOptions) -> Cow<'t, str> {
    let zoned = options
        .zone
        .clone()
        .and_then(|zone| Some(Timestamp::from_nanosecond(time.as_nanos().into()).ok()?.to_zoned(zone)));
    zoned.map_or(Cow::Borrowed(written), |zoned| Cow::Owned(zoned.strftime(LOCAL_TIME).to_string()))
}

/// Appends the text of a line with its matches highlighted, and escaped if the output is a terminal.
fn marked(text: &[u8], style: OutputStyle, options: &LineOptions, out: &mut Vec<u8>) {
    let spans = if style.colour {
        let shown = text.strip_suffix(b"\n").unwrap_or(text);
        options.highlighter.spans(shown.strip_suffix(b"\r").unwrap_or(shown))
    } else {
        Vec::new()
    };
    match (style.terminal, spans.is_empty()) {
        (true, _) => escape_marked(text, &spans, out),
        (false, true) => out.extend_from_slice(text),
        (false, false) => mark(text, &spans, out),
    }
}

// === impl Replica ===

impl Replica {
    pub(super) fn new(key: &ReplicaKey, colour: bool) -> Self {
        let (service, index) = key;
        // Depends on the name alone: a replica keeps its colour in every run, and neighbours differ.
        let hash =
            service.bytes().fold(0_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let at = hash.wrapping_add(*index as usize) % PALETTE.len();
        let style = PALETTE.get(at).filter(|_| colour).map(|colour| colour.on_default());
        // A heartbeat without a service concerns the whole lease.
        let name = if service.is_empty() { "lease".to_owned() } else { format!("{service}/{index}") };
        Self {
            instance: String::new(),
            name: escape_to_line(&name),
            style: style.unwrap_or_default(),
            unreachable: None,
        }
    }

    /// Returns the text before each of its lines, and an upper bound of its width in columns.
    fn prefix(&self) -> (Vec<u8>, usize) {
        let Self { style, name, .. } = self;
        (format!("{style}{name} |{style:#} ").into_bytes(), name.len() + 3)
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::{Offset, TimeZone};

    use super::*;
    use crate::config::{Command, StartChecks, read};
    use crate::model::proto::lease::ReplicaEvent;

    const PLAIN: OutputStyle = OutputStyle::PLAIN;

    const TIMES: OutputStyle = OutputStyle { timestamps: true, ..PLAIN };

    const TERMINAL: OutputStyle = OutputStyle { terminal: true, ..PLAIN };

    const COLOURED: OutputStyle = OutputStyle { colour: true, ..PLAIN };

    fn options(flags: &[&str]) -> LineOptions {
        let args = ["leasemux", "logs", crate::client::testing::LEASE];
        let read = read(args.iter().chain(flags), &StartChecks::NONE);
        let Ok(Command::Logs(config)) = read else { panic!("{flags:?}") };
        LineOptions::new(&config)
    }

    /// Returns the output for these lines of the replica `web/1`.
    fn written(style: OutputStyle, options: LineOptions, lines: &[&[u8]]) -> (String, bool) {
        let mut out = Vec::new();
        let mut writer = LineWriter::new(Box::new(&mut out), Box::new(io::sink()), style, options);
        let id = (("web".to_owned(), 1), 0);
        let mut replica = Replica::new(&id.0, style.colour);
        "run-1".clone_into(&mut replica.instance);
        writer.replicas.insert(id.0.clone(), replica);
        for bytes in lines {
            writer.piece(&id, Piece { bytes, first: true, last: true }).unwrap();
        }
        let is_complete = writer.complete.is_cancelled();
        writer.out.flush().unwrap();
        drop(writer);
        (String::from_utf8(out).unwrap(), is_complete)
    }

    #[test]
    fn separator_stands_between_groups_of_text() {
        let lines: [&[u8]; 5] = [b"a x", b"b", b"c", b"d", b"e x"];
        let flags = ["--include", "x", "-A1"];
        let grouped = "web/1 | a x\nweb/1 | b\n--\nweb/1 | e x\n";
        assert_eq!(written(PLAIN, options(&flags), &lines).0, grouped);
        assert_eq!(written(TERMINAL, options(&flags), &lines).0, grouped);
        let json = OutputStyle { format: Format::Json, ..PLAIN };
        let (out, _) = written(json, options(&flags), &lines);
        let found: Vec<serde_json::Value> = out.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(
            found.iter().map(|line| line["line"].as_str().unwrap()).collect::<Vec<_>>(),
            ["a x", "b", "e x"]
        );
    }

    #[test]
    fn output_ends_after_the_maximum_of_lines() {
        let lines: [&[u8]; 4] = [b"1 x", b"2", b"3 x", b"4 x"];
        for (flags, expected, is_complete) in [
            (&["--max-lines", "2"][..], "1 x,2", true),
            (&["--max-lines", "4"], "1 x,2,3 x,4 x", true),
            (&["--max-lines", "5"], "1 x,2,3 x,4 x", false),
            (&["--max-lines", "2", "--include", "x"], "1 x,3 x", true),
            (&["--max-lines", "2", "--include", "3", "-C1"], "2,3 x", true),
        ] {
            let (out, ended) = written(PLAIN, options(&[&["--no-prefix"], flags].concat()), &lines);
            assert_eq!(
                (out.trim_end().replace('\n', ","), ended),
                (expected.to_owned(), is_complete),
                "{flags:?}"
            );
        }
    }

    #[test]
    fn template_has_all_fields() {
        let template = "template={time} {service}/{replica} [{instance}] {line}!";
        let line: &[u8] = b"2026-01-31T12:00:00.000000001Z a \x1b[2J\r";
        let with = || options(&["-o", template]);
        let expected = "2026-01-31T12:00:00.000000001Z web/1 [run-1] a ";
        assert_eq!(written(TIMES, with(), &[line]).0, format!("{expected}\x1b[2J!\n"));
        let terminal = OutputStyle { terminal: true, ..TIMES };
        assert_eq!(written(terminal, with(), &[line]).0, format!("{expected}^[[2J!\n"));
        // A line without a time, and a progress bar.
        assert_eq!(written(TIMES, with(), &[b"b"]).0, " web/1 [run-1] b!\n");
        let bar = options(&["-o", "template={line}"]);
        assert_eq!(written(TERMINAL, bar, &[b" 1 %\r 2 %\r"]).0, " 2 %\n");
        let forged: [&[u8]; 1] = [b"2026-01-31T12:00:00Z 1 %\r2020-01-01T00:00:00Z 2 %"];
        let with_time = options(&["-o", "template={time}|{line}"]);
        assert_eq!(
            written(terminal, with_time, &forged).0,
            "2026-01-31T12:00:00Z|2020-01-01T00:00:00Z 2 %\n"
        );
        let named = options(&["-o", "template={service}|{line}"]);
        let (out, _) = written(COLOURED, named, &[b"c"]);
        assert!(out.starts_with("\x1b[") && out.ends_with("web\x1b[0m|c\n"), "{out:?}");
    }

    #[test]
    fn times_are_printed_in_the_given_zone() {
        let zone = TimeZone::fixed(Offset::from_seconds(5 * 3_600 + 1_800).unwrap());
        let local = |flags: &[&str]| LineOptions { zone: Some(zone.clone()), ..options(flags) };
        let lines: [&[u8]; 2] = [b"2026-01-31T12:00:00.000000001Z a", b"no time"];
        let expected = "2026-01-31T17:30:00.000000001+05:30 a\n";
        for terminal in [false, true] {
            let style = OutputStyle { terminal, ..TIMES };
            let (out, _) = written(style, local(&["-t"]), &lines);
            assert_eq!(out, format!("web/1 | {expected}web/1 | no time\n"));
        }
        let (out, _) = written(TIMES, local(&["-o", "template={time} {line}"]), &lines);
        assert_eq!(out, format!("{expected} no time\n"));
        assert!(options(&["--local"]).zone.is_some() && options(&["--utc"]).zone.is_none());
        let json = OutputStyle { format: Format::Json, ..TIMES };
        assert!(written(json, local(&["-t"]), &lines).0.contains("\"2026-01-31T12:00:00.000000001Z\""));
    }

    #[tokio::test(start_paused = true)]
    async fn object_on_a_terminal_erases_the_progress() {
        for (terminal, expected) in
            [(true, "\r\x1b[K0 lines, 0 B, 0 B/s\r\x1b[K"), (false, "\r\x1b[K0 lines, 0 B, 0 B/s")]
        {
            let mut err = Vec::new();
            let style = OutputStyle { format: Format::Json, terminal, terminal_errors: true, ..PLAIN };
            let options = options(&["-o", "json", "--include", "x"]);
            let mut writer = LineWriter::new(Box::new(io::sink()), Box::new(&mut err), style, options);
            tokio::time::advance(Duration::from_secs(1)).await;
            writer.draw_progress().unwrap();
            writer.object(&Object::event(&("web".to_owned(), 0), &ReplicaEvent::default())).unwrap();
            drop(writer);
            assert_eq!(String::from_utf8(err).unwrap(), expected);
        }
    }

    #[test]
    fn time_of_a_line_in_pieces_is_in_the_zone() {
        let zone = TimeZone::fixed(Offset::from_seconds(3_600).unwrap());
        let options = LineOptions { zone: Some(zone), ..options(&["-t", "--no-prefix"]) };
        let mut out = Vec::new();
        let style = OutputStyle { terminal: true, ..TIMES };
        let mut writer = LineWriter::new(Box::new(&mut out), Box::new(io::sink()), style, options);
        let id = (("web".to_owned(), 1), 0);
        writer.replicas.insert(id.0.clone(), Replica::new(&id.0, false));
        let pieces: [(&[u8], bool, bool); 2] =
            [(b"2026-01-31T12:00:00Z 1 %", true, false), (b"\r2020-01-01T00:00:00Z 2 %", false, true)];
        for (bytes, first, last) in pieces {
            writer.piece(&id, Piece { bytes, first, last }).unwrap();
            writer.draw().unwrap();
        }
        writer.out.flush().unwrap();
        drop(writer);
        let time = "2026-01-31T13:00:00.000000000+01:00";
        let expected = format!("{time} 1 %\r\x1b[K{time} 2020-01-01T00:00:00Z 2 %\n");
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn matches_are_marked_in_coloured_output_only() {
        let flags = ["--no-prefix", "--include", "[0-9]+", "--highlight", "ab"];
        let line: &[u8] = b"2026-01-31T12:00:00Z xab12\x07 7";
        let marked = "x<ab12>\x07 <7>\n".replace('<', "\x1b[7m").replace('>', "\x1b[27m");
        let time = "2026-01-31T12:00:00Z ";
        let coloured = OutputStyle { colour: true, ..TIMES };
        assert_eq!(written(coloured, options(&flags), &[line]).0, format!("{time}{marked}"));
        let terminal = OutputStyle { terminal: true, ..coloured };
        let escaped = marked.replace('\x07', "^G");
        assert_eq!(written(terminal, options(&flags), &[line]).0, format!("{time}{escaped}"));
        let plain = format!("{time}xab12\x07 7\n");
        assert_eq!(written(TIMES, options(&flags), &[line]).0, plain);
    }

    #[test]
    fn filtered_output_keeps_bytes_unless_it_is_a_terminal() {
        let line: &[u8] = b"x \x1b]0;title\x07\r";
        let flags = ["--include", "x"];
        assert_eq!(written(PLAIN, options(&flags), &[line]).0, "web/1 | x \x1b]0;title\x07\r\n");
        assert_eq!(written(TERMINAL, options(&flags), &[line]).0, "web/1 | x ^[]0;title^G\r\n");
    }
}
