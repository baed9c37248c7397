//! The configuration file: TOML whose keys are the names of `serve`'s flags.
//!
//! The file gives no value a meaning. It turns what stands under each key into the texts that a command line would hold, and
//! lays them beneath flags and environment, as the defaults of this one run; the pass that judges all values judges these too.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};

use clap::{Arg, ArgAction, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Largest file that is read: a thousand leases are some 200 kB, and anything beyond this is the wrong file.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// Flags that say how the file is used, and so cannot stand in it.
const NOT_IN_FILE: [&str; 2] = ["config", "check"];

/// A key that is at least so much like an unknown one (1 = the same) is what was meant.
const LIKENESS_MIN: f64 = 0.6;

/// What one file gives; by default, no file and nothing.
#[derive(Debug, Default)]
pub(super) struct File {
    /// The path, as it was given.
    name: Option<String>,
    /// By id of the flag.
    entries: BTreeMap<String, Entry>,
    faults: Vec<String>,
    /// What the path must be, if there is nothing to read.
    unreadable: Option<String>,
    /// Whether there may be more in it than could be read.
    broken: bool,
}

/// The values of one key.
#[derive(Debug)]
struct Entry {
    /// Line of the key, from 1.
    line: usize,
    /// Each value and its line. One, unless the flag is repeatable.
    values: Vec<(String, usize)>,
    /// Whether there would be another value if it were one.
    spoilt: bool,
}

/// Parses one file.
struct Parser<'a> {
    text: &'a str,
    file: File,
}

/// Whether the file may hold this argument: any flag that is not about the file itself, nor help.
pub(super) fn holds(arg: &Arg) -> bool {
    let is_about = |id: &str| NOT_IN_FILE.contains(&id) || matches!(id, "help" | "version");
    arg.get_long().is_some() && !is_about(arg.get_id().as_str())
}

// === impl File ===

impl File {
    /// Reads the file at `path` for `command`. What is wrong with it is in it.
    pub(super) fn read(path: &str, command: &Command) -> Self {
        match text(path) {
            Ok(text) => Self::parse(path, &text, command),
            Err(right) => {
                Self { name: Some(path.to_owned()), unreadable: Some(right), broken: true, ..Self::default() }
            }
        }
    }

    fn parse(name: &str, text: &str, command: &Command) -> Self {
        let mut parser = Parser { text, file: Self { name: Some(name.to_owned()), ..Self::default() } };
        let (table, errors) = DeTable::parse_recoverable(text);
        parser.file.broken = !errors.is_empty();
        for error in errors {
            let message = error.message().lines().collect::<Vec<_>>().join(", ");
            parser.fault(error.span().map_or(0, |span| span.start), &message);
        }
        let mut entries: Vec<_> = table.get_ref().iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            parser.entry(key, value.get_ref(), command);
        }
        parser.file
    }

    /// The path as it was given, if there is a file.
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// What is wrong with the file, beyond the values.
    pub(super) fn faults(&self) -> &[String] {
        &self.faults
    }

    /// What the path must be, if there was nothing to read.
    pub(super) fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// Whether more may stand in it than could be read.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether the flag would have a value if that were one, which is said already.
    pub(super) fn spoils(&self, id: &str) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.spoilt)
    }

    /// Lays the values beneath those of flags and environment.
    pub(super) fn beneath(&self, command: Command) -> Command {
        command.mut_args(|arg| match self.entries.get(arg.get_id().as_str()) {
            Some(entry) => arg.default_values(entry.values.iter().map(|(text, _)| text.clone())),
            None => arg,
        })
    }

    /// Where the value `text` of a flag stands, if the file holds the flag; if not that value, then the key.
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
        let known = || command.get_arguments().filter(|arg| holds(arg));
        let Some(arg) = known().find(|arg| arg.get_long() == Some(name)) else {
            let nearest = nearest(name, known().filter_map(Arg::get_long));
            let hint = match (nearest, value) {
                (Some(nearest), _) => Some(format!("; did you mean `{nearest}`?")),
                (None, DeValue::Table(_)) => Some("; the file has no sections".to_owned()),
                _ => None,
            };
            self.fault(at, &format!("there is no key `{name}`{}", hint.unwrap_or_default()));
            return;
        };
        let mut values = Vec::new();
        let faults = self.file.faults.len();
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
        let spoilt = self.file.faults.len() > faults;
        let entry = Entry { line: self.line(at), values, spoilt };
        self.file.entries.insert(arg.get_id().to_string(), entry);
    }

    /// One value, as it would stand on a command line, and its line.
    fn value(&mut self, at: usize, key: &str, value: &DeValue<'_>) -> Option<(String, usize)> {
        let text = match value {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Boolean(switch) => switch.to_string(),
            other => {
                let kind = other.type_str();
                let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
                self.fault(
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

    fn fault(&mut self, at: usize, what: &str) {
        let name = self.file.name.as_deref().unwrap_or_default();
        let fault = format!("{name}, line {}: {what}", self.line(at));
        self.file.faults.push(fault);
    }

    /// The line of the byte at `at`, from 1.
    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().get(..at).unwrap_or(self.text.as_bytes());
        1 + memchr::memchr_iter(b'\n', before).count()
    }
}

fn text(path: &str) -> Result<String, String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| format!("must be a readable file: {error}"))?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        return Err(format!("must be a file of at most {FILE_MAX_BYTES} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "must be a TOML file, and is not UTF-8 text".to_owned())
}

/// Whether the values are of the form `LEFT=RIGHT`, which a table holds too.
fn is_pair(arg: &Arg) -> bool {
    arg.get_value_names().is_some_and(|names| names.iter().any(|name| name.contains('=')))
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase().replace('_', "-");
    let likeness = |known: &str| strsim::normalized_damerau_levenshtein(&name, known);
    let best = known.map(|known| (likeness(known), known)).max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(likeness, _)| *likeness >= LIKENESS_MIN).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::super::cli::Cli;
    use super::*;

    fn parse(text: &str) -> File {
        File::parse("gateway.toml", text, Cli::command().find_subcommand("serve").unwrap())
    }

    fn values(file: &File, id: &str) -> Vec<(String, usize)> {
        file.entries.get(id).unwrap_or_else(|| panic!("no {id}: {file:?}")).values.clone()
    }

    fn lines(all: &[(&str, usize)]) -> Vec<(String, usize)> {
        all.iter().map(|(text, line)| ((*text).to_owned(), *line)).collect()
    }

    #[test]
    fn values_become_texts() {
        let file = parse(
            "listen = '0.0.0.0:1'\nhistory-reads = 1_000\nlifeline = true\n\
             public-hostname = [\n  'a.example',\n  'b.example',\n]\nlease = { 'a/1' = 'a.yaml' }\n",
        );
        assert_eq!(file.faults(), [""; 0]);
        assert_eq!(values(&file, "listen"), lines(&[("0.0.0.0:1", 1)]));
        assert_eq!(values(&file, "history_reads"), lines(&[("1000", 2)]));
        assert_eq!(values(&file, "lifeline"), lines(&[("true", 3)]));
        assert_eq!(values(&file, "public_hostname"), lines(&[("a.example", 5), ("b.example", 6)]));
        assert_eq!(values(&file, "lease"), lines(&[("a/1=a.yaml", 8)]));
        assert_eq!(file.place("public_hostname", "b.example").unwrap(), "gateway.toml, line 6");
        assert_eq!(file.place("public_hostname", "neither").unwrap(), "gateway.toml, line 4");
        assert_eq!(file.place("pace", "5ms"), None);
    }

    #[test]
    fn leases_may_be_an_array_or_a_table_of_their_own() {
        let table = parse("pace = '1ms'\n[lease]\n'a/1' = 'a.yaml'\n'b/1' = 'b.yaml'\n");
        let array = parse("\n\nlease = ['a/1=a.yaml',\n'b/1=b.yaml']\n");
        let leases = lines(&[("a/1=a.yaml", 3), ("b/1=b.yaml", 4)]);
        assert_eq!((values(&table, "lease"), values(&array, "lease")), (leases.clone(), leases));
    }

    #[test]
    fn unknown_keys_are_told_with_the_nearest_known() {
        let file = parse("lissten = 1\nadmin_listen = 1\nPACE = 1\n[limits]\nconfig = 1\n[other]\n");
        assert_eq!(
            file.faults(),
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
        assert!(parse("config = 'x'\ncheck = true\nhelp = true").faults().len() == 3);
    }

    #[test]
    fn what_is_no_value_is_told() {
        let file = parse("pace = 0.5\nlisten = ['a']\npublic-hostname = ['a', ['b']]\nlease = 2026-01-01\n");
        let kinds: Vec<&str> = file.faults().iter().filter_map(|fault| fault.rsplit(' ').next()).collect();
        assert_eq!(kinds, ["float", "array", "array", "datetime"], "{:?}", file.faults());
        assert!(!file.is_broken());
        // Of these nobody need be told that they are missing, but of a list with nothing in it.
        assert!(["pace", "listen", "public_hostname", "lease"].iter().all(|id| file.spoils(id)));
        assert!(!parse("lease = []").spoils("lease"));
    }

    #[test]
    fn all_errors_of_form_are_told_and_the_rest_is_read() {
        let file = parse("listen = \npace = '1ms'\npace = '2ms'\nlifeline = maybe\n");
        assert_eq!(file.faults().len(), 3, "{:?}", file.faults());
        for (fault, line) in file.faults().iter().zip([1, 3, 4]) {
            assert!(fault.starts_with(&format!("gateway.toml, line {line}: ")), "{fault}");
        }
        assert!(file.is_broken());
        assert_eq!(values(&file, "pace")[0].0, "1ms");
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.toml");
        let path = path.to_str().unwrap();
        let read = || File::read(path, &Command::new("serve"));
        let right = || read().unreadable().unwrap().to_owned();
        assert!(right().contains("must be a readable file") && read().is_broken());
        fs::write(path, b"listen = '\xff'").unwrap();
        assert!(right().contains("not UTF-8"));
        fs::write(path, vec![b'\n'; 1 + (1 << 20)]).unwrap();
        assert!(right().contains("at most 1048576 bytes"));
        fs::write(path, "").unwrap();
        assert!(read().unreadable().is_none() && read().faults().is_empty());
    }
}
