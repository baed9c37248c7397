//! The configuration file: TOML whose keys are the names of `serve`'s flags.
//!
//! The file gives no value a meaning. It turns the value of each key into the text that a command line would
//! hold. The resolver uses it if neither a flag nor a variable is given, and reports invalid values with file
//! and line.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use clap::{Arg, ArgAction, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::sys::read::read_bounded;

/// Maximum size of the file. A thousand leases take about 200 kB, so a larger file is the wrong one.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// Flags about the file itself, which it cannot hold.
const NOT_IN_FILE: [&str; 2] = ["config", "check"];

/// Minimum similarity (1 = equal) to an unknown key for a suggestion.
const SIMILARITY_MIN: f64 = 0.6;

/// The content of the file. The default is no file.
#[derive(Debug, Default)]
pub(super) struct File {
    /// The path as given, if there is a file.
    pub(super) name: Option<String>,
    /// By the flag's id.
    entries: BTreeMap<String, Entry>,
    /// Errors of syntax, keys and types.
    pub(super) errors: Vec<String>,
    /// Why the file could not be read.
    pub(super) unreadable: Option<String>,
    /// Whether only a part could be parsed.
    pub(super) is_broken: bool,
    /// Whether it is a context, which has values of few flags.
    pub(super) is_context: bool,
}

/// The values of one key.
#[derive(Debug)]
struct Entry {
    /// Line of the key, counted from 1.
    line: usize,
    /// The values with their lines. One, unless the flag is repeatable.
    values: Vec<(String, usize)>,
    /// Whether a value was left out because its type is wrong.
    has_invalid: bool,
}

struct Parser<'a> {
    text: &'a str,
    file: File,
}

/// Returns whether the file may hold `arg`.
pub fn is_file_key(arg: &Arg) -> bool {
    let is_about = |id: &str| NOT_IN_FILE.contains(&id) || matches!(id, "help" | "version");
    arg.get_long().is_some() && !is_about(arg.get_id().as_str())
}

// === impl File ===

impl File {
    /// Reads the file at `path` for `command`. The result includes the errors.
    pub(super) fn read(path: &str, command: &Command) -> Self {
        match text(path) {
            Ok(text) => Self::parse(path, &text, command),
            Err(reason) => Self {
                name: Some(path.to_owned()),
                unreadable: Some(reason),
                is_broken: true,
                ..Self::default()
            },
        }
    }

    /// Returns the values of a context as a file: each with the id of its flag, and its line in the file at
    /// `path`.
    pub(super) fn of_context(
        path: &str,
        values: impl Iterator<Item = (&'static str, String, usize)>,
    ) -> Self {
        let entry = |(id, text, line): (&str, _, _)| {
            (id.to_owned(), Entry { line, values: vec![(text, line)], has_invalid: false })
        };
        let entries = values.map(entry).collect();
        Self { name: Some(path.to_owned()), entries, is_context: true, ..Self::default() }
    }

    /// Returns a file of which only this is known: it cannot be used.
    pub(super) fn unusable(error: Option<String>) -> Self {
        Self { errors: error.into_iter().collect(), is_broken: true, is_context: true, ..Self::default() }
    }

    fn parse(name: &str, text: &str, command: &Command) -> Self {
        let mut parser = Parser { text, file: Self { name: Some(name.to_owned()), ..Self::default() } };
        let (table, errors) = DeTable::parse_recoverable(text);
        parser.file.is_broken = !errors.is_empty();
        for error in errors {
            let message = error.message().lines().collect::<Vec<_>>().join(", ");
            parser.error(error.span().map_or(0, |span| span.start), &message);
        }
        let mut entries: Vec<_> = table.get_ref().iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            parser.entry(key, value.get_ref(), command);
        }
        parser.file
    }

    /// Returns whether a value of the flag was left out because its type is wrong.
    pub(super) fn has_invalid(&self, id: &str) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.has_invalid)
    }

    /// Returns the values of a flag, as a command line would hold them.
    pub(super) fn values(&self, id: &str) -> impl Iterator<Item = &str> {
        self.entries.get(id).into_iter().flat_map(|entry| &entry.values).map(|(text, _)| text.as_str())
    }

    /// Returns file and line of the value `text` of a flag, or of its key if there is no such value.
    pub(super) fn place(&self, id: &str, text: &str) -> Option<String> {
        let entry = self.entries.get(id)?;
        let line = entry.values.iter().find(|(value, _)| value == text).map_or(entry.line, |(_, line)| *line);
        Some(format!("{}, line {line}", self.name.as_deref()?))
    }
}

// === impl Parser ===

impl Parser<'_> {
    fn entry(&mut self, key: &Spanned<Cow<'_, str>>, value: &DeValue<'_>, command: &Command) {
        let (at, name) = (key.span().start, key.get_ref());
        let known = || command.get_arguments().filter(|arg| is_file_key(arg));
        let Some(arg) = known().find(|arg| arg.get_long() == Some(name)) else {
            let nearest = nearest(name, known().filter_map(Arg::get_long));
            let hint = match (nearest, value) {
                (Some(nearest), _) => Some(format!("; did you mean `{nearest}`?")),
                (None, DeValue::Table(_)) => Some("; the file has no sections".to_owned()),
                _ => None,
            };
            self.error(at, &format!("there is no key `{name}`{}", hint.unwrap_or_default()));
            return;
        };
        let mut values = Vec::new();
        let errors = self.file.errors.len();
        let repeatable = matches!(arg.get_action(), ArgAction::Append);
        match value {
            DeValue::Array(items) if repeatable => {
                for item in items {
                    values.extend(self.value(item.span().start, name, item.get_ref()));
                }
            }
            DeValue::Table(pairs) if repeatable && is_pair(arg) => {
                for (left, right) in pairs {
                    let at = left.span().start;
                    let right = self.value(at, name, right.get_ref());
                    values.extend(right.map(|(right, line)| (format!("{}={right}", left.get_ref()), line)));
                }
            }
            one => values.extend(self.value(at, name, one)),
        }
        let has_invalid = self.file.errors.len() > errors;
        let entry = Entry { line: self.line(at), values, has_invalid };
        self.file.entries.insert(arg.get_id().to_string(), entry);
    }

    /// Returns the text and the line of one value.
    fn value(&mut self, at: usize, key: &str, value: &DeValue<'_>) -> Option<(String, usize)> {
        let text = match value {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Boolean(switch) => switch.to_string(),
            other => {
                let kind = other.type_str();
                let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
                self.error(
                    at,
                    &format!(
                        "`{key}` takes a string, a whole number or a boolean here, not {article} {kind}"
                    ),
                );
                return None;
            }
        };
        Some((text, self.line(at)))
    }

    fn error(&mut self, at: usize, what: &str) {
        let name = self.file.name.as_deref().unwrap_or_default();
        let error = format!("{name}, line {}: {what}", self.line(at));
        self.file.errors.push(error);
    }

    fn line(&self, at: usize) -> usize {
        line_of(self.text, at)
    }
}

/// Returns the line of the byte at `at`, counted from 1.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    1 + memchr::memchr_iter(b'\n', before).count()
}

fn text(path: &str) -> Result<String, String> {
    let bytes = read_bounded(Path::new(path), FILE_MAX_BYTES).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => format!("must be a file of at most {FILE_MAX_BYTES} bytes"),
        _ => format!("must be a readable file: {error}"),
    })?;
    String::from_utf8(bytes).map_err(|_| "must be a TOML file, and is not UTF-8 text".to_owned())
}

/// Returns whether the values have the form `LEFT=RIGHT`, which may also be a table.
fn is_pair(arg: &Arg) -> bool {
    arg.get_value_names().is_some_and(|names| names.iter().any(|name| name.contains('=')))
}

/// Returns the known key that is most similar to `name`.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase().replace('_', "-");
    let similarity = |known: &str| strsim::normalized_damerau_levenshtein(&name, known);
    let best = known.map(|known| (similarity(known), known)).max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(similarity, _)| *similarity >= SIMILARITY_MIN).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::cli::program;
    use super::*;

    fn parse(text: &str) -> File {
        File::parse("gateway.toml", text, program().find_subcommand("serve").unwrap())
    }

    fn values(file: &File, id: &str) -> Vec<(String, usize)> {
        file.entries.get(id).unwrap_or_else(|| panic!("no {id}: {file:?}")).values.clone()
    }

    fn lines(all: &[(&str, usize)]) -> Vec<(String, usize)> {
        all.iter().map(|(text, line)| ((*text).to_owned(), *line)).collect()
    }

    #[test]
    fn values_become_command_line_text() {
        let file = parse(
            "listen = '0.0.0.0:1'\nhistory-reads = 1_000\nlifeline = true\n\
             public-hostname = [\n  'a.example',\n  'b.example',\n]\nlease = { 'a/1' = 'a.yaml' }\n",
        );
        assert_eq!(file.errors, [""; 0]);
        assert_eq!(values(&file, "listen"), lines(&[("0.0.0.0:1", 1)]));
        assert_eq!(values(&file, "history_reads"), lines(&[("1000", 2)]));
        assert_eq!(values(&file, "lifeline"), lines(&[("true", 3)]));
        assert_eq!(values(&file, "public_hostnames"), lines(&[("a.example", 5), ("b.example", 6)]));
        assert_eq!(values(&file, "leases"), lines(&[("a/1=a.yaml", 8)]));
        assert_eq!(file.place("public_hostnames", "b.example").unwrap(), "gateway.toml, line 6");
        assert_eq!(file.place("public_hostnames", "neither").unwrap(), "gateway.toml, line 4");
        assert_eq!(file.place("pace", "5ms"), None);
    }

    #[test]
    fn leases_may_be_an_array_or_a_table() {
        let table = parse("pace = '1ms'\n[lease]\n'a/1' = 'a.yaml'\n'b/1' = 'b.yaml'\n");
        let array = parse("\n\nlease = ['a/1=a.yaml',\n'b/1=b.yaml']\n");
        let leases = lines(&[("a/1=a.yaml", 3), ("b/1=b.yaml", 4)]);
        assert_eq!((values(&table, "leases"), values(&array, "leases")), (leases.clone(), leases));
    }

    #[test]
    fn unknown_key_is_reported_with_nearest() {
        let file = parse("lissten = 1\nadmin_listen = 1\nPACE = 1\n[limits]\nconfig = 1\n[other]\n");
        assert_eq!(
            file.errors,
            [
                "gateway.toml, line 1: there is no key `lissten`; did you mean `listen`?",
                "gateway.toml, line 2: there is no key `admin_listen`; did you mean `admin-listen`?",
                "gateway.toml, line 3: there is no key `PACE`; did you mean `pace`?",
                "gateway.toml, line 4: there is no key `limits`; the file has no sections",
                "gateway.toml, line 6: there is no key `other`; the file has no sections",
            ]
            .map(str::to_owned)
            .as_slice(),
        );
        assert!(parse("config = 'x'\ncheck = true\nhelp = true").errors.len() == 3);
    }

    #[test]
    fn value_of_wrong_type_is_reported() {
        let file = parse("pace = 0.5\nlisten = ['a']\npublic-hostname = ['a', ['b']]\nlease = 2026-01-01\n");
        let kinds: Vec<&str> = file.errors.iter().filter_map(|error| error.rsplit(' ').next()).collect();
        assert_eq!(kinds, ["float", "array", "array", "datetime"], "{:?}", file.errors);
        assert!(!file.is_broken);
        // These are not reported as missing too. An empty list is.
        assert!(["pace", "listen", "public_hostnames", "leases"].iter().all(|id| file.has_invalid(id)));
        assert!(!parse("lease = []").has_invalid("leases"));
    }

    #[test]
    fn syntax_errors_are_reported_and_rest_is_read() {
        let file = parse("listen = \npace = '1ms'\npace = '2ms'\nlifeline = maybe\n");
        assert_eq!(file.errors.len(), 3, "{:?}", file.errors);
        for (error, line) in file.errors.iter().zip([1, 3, 4]) {
            assert!(error.starts_with(&format!("gateway.toml, line {line}: ")), "{error}");
        }
        assert!(file.is_broken);
        assert_eq!(values(&file, "pace")[0].0, "1ms");
    }

    #[test]
    fn unreadable_file_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.toml");
        let path = path.to_str().unwrap();
        let read = || File::read(path, &Command::new("serve"));
        let reason = || read().unreadable.unwrap();
        assert!(reason().contains("must be a readable file") && read().is_broken);
        fs::write(path, b"listen = '\xff'").unwrap();
        assert!(reason().contains("not UTF-8"));
        fs::write(path, vec![b'\n'; 1 + (1 << 20)]).unwrap();
        assert!(reason().contains("at most 1048576 bytes"));
        fs::write(path, "").unwrap();
        assert!(read().unreadable.is_none() && read().errors.is_empty());
    }
}
