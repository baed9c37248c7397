//! Selects the lines to print (`--include`, `--exclude`, and the lines around a match).
//!
//! Works as grep: lines around a match are printed once, and a separator stands between groups that are not
//! adjacent in the log of their replica. A line that `--exclude` matches counts as not written.
//!
//! A line longer than the joiner holds arrives in pieces. Its first piece decides, and the others follow it.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use super::ReplicaKey;
use super::lines::{LineId, Piece};
use crate::config::{Pattern, SelectionConfig};
use crate::model::line::split_time;

/// Most bytes held of lines before a possible match, for all replicas. Beyond it, the replica that writes
/// forgets its oldest lines.
const HELD_MAX_BYTES: usize = 16 * 1024 * 1024;

/// Memory of a held line besides its bytes, about: without it, empty lines would be free.
const LINE_OVERHEAD_BYTES: usize = size_of::<HeldLine>() + 32;

/// Takes the lines that are selected.
pub(super) type Select<'a> = dyn FnMut(Selected<'_>) -> io::Result<()> + 'a;

/// A part of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Selected<'a> {
    /// The next line does not follow the last printed one of its replica.
    Separator,
    /// A line or a piece of one.
    Piece(&'a LineId, Piece<'a>),
}

/// Filter for the lines of all replicas.
#[derive(Debug)]
pub(super) struct LineFilter {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
    before: usize,
    after: usize,
    /// Whether lines begin with their time.
    timestamps: bool,
    replicas: BTreeMap<ReplicaKey, Context>,
    /// Whether the pieces of an unfinished long line are printed.
    unfinished: BTreeMap<LineId, bool>,
    /// Bytes held for all replicas, with the overhead of each line.
    held: usize,
    has_printed: bool,
}

/// A whole line, and its stream.
type HeldLine = (i32, Vec<u8>);

/// The lines around a match in one replica's log.
#[derive(Debug, Default)]
struct Context {
    /// The newest lines that were not printed.
    held: VecDeque<HeldLine>,
    /// Number of lines that are still to be printed after the last match.
    after: usize,
    /// Whether lines were left out after the last printed one.
    has_skipped: bool,
}

// === impl LineFilter ===

impl LineFilter {
    /// Creates the filter that `selection` describes, unless it selects all lines.
    pub(super) fn new(selection: &SelectionConfig, timestamps: bool) -> Option<Self> {
        let (before, after) = selection.context();
        selection.has_filter().then(|| Self {
            include: selection.include.clone(),
            exclude: selection.exclude.clone(),
            before,
            after,
            timestamps,
            replicas: BTreeMap::new(),
            unfinished: BTreeMap::new(),
            held: 0,
            has_printed: false,
        })
    }

    /// Takes a line or a piece of one, and passes what is to be printed now to `emit`.
    pub(super) fn push(&mut self, id: &LineId, piece: Piece<'_>, emit: &mut Select<'_>) -> io::Result<()> {
        if !piece.first {
            let is_printed = if piece.last {
                self.unfinished.remove(id).unwrap_or_default()
            } else {
                self.unfinished.get(id).copied().unwrap_or_default()
            };
            return if is_printed { emit(Selected::Piece(id, piece)) } else { Ok(()) };
        }
        let text = self.text(piece.bytes);
        let is_excluded = self.exclude.iter().any(|pattern| pattern.is_match(text));
        let is_match =
            !is_excluded && (self.include.is_empty() || self.include.iter().any(|one| one.is_match(text)));
        let context = self.replicas.entry(id.0.clone()).or_default();
        let is_printed = is_match || (!is_excluded && context.after > 0);
        if !piece.last {
            self.unfinished.insert(id.clone(), is_printed);
        }
        if is_printed {
            context.after = if is_match { self.after } else { context.after - 1 };
            let has_context = self.before > 0 || self.after > 0;
            if std::mem::take(&mut context.has_skipped) && self.has_printed && has_context {
                emit(Selected::Separator)?;
            }
            self.has_printed = true;
            for (stream, line) in std::mem::take(&mut context.held) {
                self.held -= cost(&line);
                let id = (id.0.clone(), stream);
                emit(Selected::Piece(&id, Piece { bytes: &line, first: true, last: true }))?;
            }
            return emit(Selected::Piece(id, piece));
        }
        if !is_excluded {
            self.hold(id, piece);
        }
        Ok(())
    }

    /// Ends the group of a replica: what follows does not continue its log.
    pub(super) fn reset(&mut self, key: &ReplicaKey) {
        if let Some(context) = self.replicas.get_mut(key) {
            context.after = 0;
            context.has_skipped = true;
            for (_, line) in std::mem::take(&mut context.held) {
                self.held -= cost(&line);
            }
        }
    }

    /// Forgets a replica.
    pub(super) fn remove(&mut self, key: &ReplicaKey) {
        self.reset(key);
        self.replicas.remove(key);
        self.unfinished.retain(|(of, _), _| of != key);
    }

    /// Holds a line that is not printed, in case that it precedes a match.
    fn hold(&mut self, id: &LineId, piece: Piece<'_>) {
        let Some(context) = self.replicas.get_mut(&id.0) else { return };
        if piece.last {
            self.held += cost(piece.bytes);
            context.held.push_back((id.1, piece.bytes.to_vec()));
        }
        // A line that arrives in pieces is too long to hold.
        while context.held.len() > self.before || self.held > HELD_MAX_BYTES || !piece.last {
            let Some((_, line)) = context.held.pop_front() else { break };
            self.held -= cost(&line);
            context.has_skipped = true;
        }
        context.has_skipped |= !piece.last;
    }

    /// Returns the part of a line that expressions are compared with: without time and line end.
    fn text<'b>(&self, line: &'b [u8]) -> &'b [u8] {
        let text = if self.timestamps { split_time(line).map_or(line, |(_, _, text)| text) } else { line };
        text.strip_suffix(b"\r").unwrap_or(text)
    }
}

/// Returns the memory of a held line, about.
fn cost(line: &[u8]) -> usize {
    line.len() + LINE_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Command, LogsConfig, StartChecks, read};

    const LEASE: &str = crate::client::testing::LEASE;

    fn filter(flags: &str, timestamps: bool) -> LineFilter {
        let args = ["leasemux", "logs", LEASE].into_iter().chain(flags.split(' '));
        let Ok(Command::Logs(config)) = read(args, &StartChecks::NONE) else { panic!("{flags}") };
        let LogsConfig { selection, .. } = *config;
        LineFilter::new(&selection, timestamps).unwrap()
    }

    fn id(service: &str) -> LineId {
        ((service.to_owned(), 0), 0)
    }

    fn push(filter: &mut LineFilter, id: &LineId, piece: Piece<'_>) -> String {
        let mut out = String::new();
        let mut emit = |selected: Selected<'_>| {
            out += &match selected {
                Selected::Separator => "--".into(),
                Selected::Piece(_, piece) => String::from_utf8_lossy(piece.bytes).into_owned(),
            };
            out.push(' ');
            Ok(())
        };
        filter.push(id, piece, &mut emit).unwrap();
        out
    }

    fn line(bytes: &[u8]) -> Piece<'_> {
        Piece { bytes, first: true, last: true }
    }

    /// Returns the words of `text`, as lines of the replica `a`, that a filter selects.
    fn selected(flags: &str, text: &str) -> String {
        let mut filter = filter(flags, false);
        let lines = text.split(' ').map(|word| push(&mut filter, &id("a"), line(word.as_bytes())));
        lines.collect::<String>().trim_end().to_owned()
    }

    #[test]
    fn lines_around_matches_are_those_of_grep() {
        let text = "1 2 x3 4 5 6 7 x8 9 x10 11 12 13 14 15 x16";
        for (flags, expected) in [
            ("--include x", "x3 x8 x10 x16"),
            ("--include 4 --include x8", "4 x8 14"),
            ("--include x -A1", "x3 4 -- x8 9 x10 11 -- x16"),
            ("--include x -B1", "2 x3 -- 7 x8 9 x10 -- 15 x16"),
            ("--include x -C1", "2 x3 4 -- 7 x8 9 x10 11 -- 15 x16"),
            ("--include x -C2", "1 2 x3 4 5 6 7 x8 9 x10 11 12 -- 14 15 x16"),
            ("--include x -C2 -A0", "1 2 x3 -- 6 7 x8 9 x10 -- 14 15 x16"),
            ("--include x -B9 -A9", text),
            ("--exclude x --exclude 1", "2 4 5 6 7 9"),
            // An excluded line is no context, and does not separate.
            ("--include x --exclude 2|16 -B2", "1 x3 -- 6 7 x8 9 x10"),
            ("--include ^x --exclude 9 -B1", "2 x3 -- 7 x8 x10 -- 15 x16"),
        ] {
            assert_eq!(selected(flags, text), expected, "{flags}");
        }
    }

    #[test]
    fn context_is_separate_for_each_replica() {
        let mut filter = filter("--include x -C1", false);
        let mut out = String::new();
        for word in ["a1", "b1", "ax", "b2", "b3", "a2", "bx", "a3", "b4", "a4", "ax"] {
            out += &push(&mut filter, &id(&word[..1]), line(word.as_bytes()));
        }
        assert_eq!(out, "a1 ax a2 -- b3 bx b4 -- a4 ax ");
    }

    #[test]
    fn gap_or_new_run_ends_a_group() {
        let mut filter = filter("--include x -C2", false);
        let mut out = push(&mut filter, &id("a"), line(b"1"));
        filter.reset(&id("a").0);
        assert_eq!(filter.held, 0);
        out += &push(&mut filter, &id("a"), line(b"x"));
        filter.reset(&id("a").0);
        out += &push(&mut filter, &id("a"), line(b"2"));
        out += &push(&mut filter, &id("a"), line(b"x"));
        assert_eq!(out, "x -- 2 x ");
        filter.remove(&id("a").0);
        assert!(filter.replicas.is_empty());
    }

    #[test]
    fn time_and_line_end_are_not_compared() {
        let mut filter = filter("--include ^a.*z$ --exclude 2026", true);
        let out = push(&mut filter, &id("a"), line(b"2026-01-31T12:00:00Z a z\r"));
        assert_eq!(out, "2026-01-31T12:00:00Z a z\r ");
        assert_eq!(push(&mut filter, &id("a"), line(b"2026-01-31T12:00:00Z a 2026 z")), "");
        assert_eq!(push(&mut filter, &id("a"), line(b"a without time z")), "a without time z ");
    }

    #[test]
    fn first_piece_decides_for_a_long_line() {
        let mut filter = filter("--include x -B1", false);
        let piece = |bytes, first, last| Piece { bytes, first, last };
        let mut out = String::new();
        for (bytes, first, last) in [
            (&b"before"[..], true, true),
            // Not selected although a later piece matches, and too long to be context.
            (b"aaa", true, false),
            (b"x", false, false),
            (b"x", false, true),
            (b"xaa", true, false),
            (b"bbb", false, false),
            (b"ccc", false, true),
        ] {
            out += &push(&mut filter, &id("a"), piece(bytes, first, last));
        }
        assert_eq!(out, "xaa bbb ccc ");
        assert!(filter.unfinished.is_empty());
    }

    #[test]
    fn held_lines_are_bounded_in_number_and_bytes() {
        let mut filter = filter("--include x -B100", false);
        let long = vec![b'a'; 1 << 20];
        for n in 0..400 {
            push(&mut filter, &id(&(n % 4).to_string()), line(&long));
            assert!(filter.held <= HELD_MAX_BYTES);
        }
        for _ in 0..1_000 {
            push(&mut filter, &id("short"), line(b"a"));
        }
        assert!(filter.replicas[&id("short").0].held.len() <= 100);
    }

    #[test]
    fn held_empty_lines_are_bounded() {
        let mut filter = filter("--include x -B10000", false);
        for replica in 0..30 {
            for _ in 0..10_000 {
                push(&mut filter, &id(&replica.to_string()), line(b""));
            }
        }
        let lines: usize = filter.replicas.values().map(|context| context.held.len()).sum();
        assert!((200_000..300_000).contains(&lines) && filter.held <= HELD_MAX_BYTES, "{lines}");
        for replica in 0..30 {
            filter.reset(&id(&replica.to_string()).0);
        }
        assert_eq!(filter.held, 0);
    }
}
