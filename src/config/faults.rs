//! Reading values and collecting what is wrong with them.

use std::fmt;

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::file::File;

/// Everything wrong with one configuration; never empty where it is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The command whose help tells more, as one types it.
    command: String,
    all: Vec<String>,
}

/// Reads the values of one subcommand. A fault names the flag, and where the value came from if not from there: the environment
/// variable, or the file and its line.
///
/// Values are asked for by the id that clap knows them by: `admin_listen` is `--admin-listen`, `LEASEMUX_ADMIN_LISTEN` and, in
/// the file, `admin-listen`.
#[derive(Debug)]
pub(super) struct Resolver<'a> {
    definitions: &'a clap::Command,
    matches: &'a ArgMatches,
    file: &'a File,
    faults: ConfigErrors,
    notes: Vec<String>,
}

// === impl Faults ===

impl ConfigErrors {
    /// The faults, one sentence each.
    pub fn all(&self) -> &[String] {
        &self.all
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.all {
            writeln!(f, "error: {fault}")?;
        }
        write!(f, "\nFor more information, try '{} --help'.", self.command)
    }
}

impl std::error::Error for ConfigErrors {}

// === impl Reader ===

impl<'a> Resolver<'a> {
    /// A reader of what `matches` holds. What is wrong with `file` itself is among the faults already.
    pub(super) fn new(
        command: String,
        definitions: &'a clap::Command,
        matches: &'a ArgMatches,
        file: &'a File,
    ) -> Self {
        let faults = ConfigErrors { command, all: file.faults().to_vec() };
        let mut reader = Self { definitions, matches, file, faults, notes: Vec::new() };
        if let Some((name, right)) = file.name().zip(file.unreadable()) {
            reader.wrong("config", name, right);
        }
        reader
    }

    /// One value, if there is one and it is right.
    pub(super) fn one<T>(
        &mut self,
        id: &str,
        given: Option<&String>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = given?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(right) => {
                self.wrong(id, text, &right);
                None
            }
        }
    }

    /// One value that may be secret, and is not repeated if it is wrong.
    pub(super) fn secret<T>(
        &mut self,
        id: &str,
        given: Option<&String>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = given?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(right) => {
                let origin = self.origin(id, text).map(|origin| format!(" (from {origin})"));
                let fault = format!("{} (not shown){}: {right}", self.flag(id), origin.unwrap_or_default());
                self.faults.all.push(fault);
                None
            }
        }
    }

    /// One value that must be there; `what` says what it is.
    pub(super) fn required<T>(
        &mut self,
        id: &str,
        given: Option<&String>,
        what: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        if given.is_none() {
            self.missing(id, what);
        }
        self.one(id, given, parse)
    }

    /// Of two values that do not go together the one that is typed, if the other only stands in the environment; otherwise both.
    pub(super) fn meant<'v>(&self, two: [(&str, Option<&'v String>); 2]) -> [Option<&'v String>; 2] {
        let is_typed = |id| self.matches.value_source(id) == Some(ValueSource::CommandLine);
        let [(one, first), (other, second)] = two;
        if is_typed(one) && self.is_from_environment(other) {
            [first, None]
        } else if is_typed(other) && self.is_from_environment(one) {
            [None, second]
        } else {
            [first, second]
        }
    }

    /// Any number of values. In the environment they are separated by commas, and empty ones are skipped. A variable that holds
    /// nothing but commas is wrong: without a value a list often means everything.
    pub(super) fn list<T>(
        &mut self,
        id: &str,
        given: &[String],
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let texts: Vec<&str> = if self.is_from_environment(id) {
            let parts = given.iter().flat_map(|text| text.split(','));
            parts.map(str::trim).filter(|text| !text.is_empty()).collect()
        } else {
            given.iter().map(String::as_str).collect()
        };
        if let ([], [text, ..]) = (texts.as_slice(), given) {
            self.wrong(id, text, "holds no value: unset it, or name something");
        }
        let mut values = Vec::with_capacity(texts.len());
        for text in texts {
            match parse(text) {
                Ok(value) => values.push(value),
                Err(right) => self.wrong(id, text, &right),
            }
        }
        values
    }

    /// A switch: off unless given, and off if given as `false`.
    pub(super) fn switch(&mut self, id: &str, given: Option<&String>) -> bool {
        self.one(id, given, |text| match text {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err("must be true or false".to_owned()),
        })
        .unwrap_or(false)
    }

    /// Notes that the value `text` of `id` is wrong; `right` says what would be right.
    pub(super) fn wrong(&mut self, id: &str, text: &str, right: &str) {
        let origin = self.origin(id, text).map(|origin| format!(" (from {origin})"));
        let fault = format!("{} {text:?}{}: {right}", self.flag(id), origin.unwrap_or_default());
        self.faults.all.push(fault);
    }

    /// Notes that `id` was not given; `what` says what it is. Of a file that is not whole nobody knows what it would have given, and
    /// what it gives in vain is told there.
    pub(super) fn missing(&mut self, id: &str, what: &str) {
        if self.file.is_broken() || self.file.spoils(id) {
            return;
        }
        let mut others = Vec::from_iter(self.variable(id));
        others.extend(self.file.name().map(|name| format!("{} in {name}", key(id))));
        let others =
            if others.is_empty() { String::new() } else { format!(" (or {})", others.join(", or ")) };
        self.faults.all.push(format!("{}{others} is missing: {what}", self.flag(id)));
    }

    /// Notes that values do not fit together; `fault` names the flags.
    pub(super) fn unfit(&mut self, fault: &str) {
        let flag = |word: &str| {
            let name = word.strip_prefix("--")?.trim_end_matches(|c: char| !c.is_alphanumeric());
            let id = name.replace('-', "_");
            self.definition(&id)?;
            Some(format!("--{name} is from {}", self.origin(&id, "")?))
        };
        let mut origins: Vec<String> = fault.split(' ').filter_map(flag).collect();
        origins.dedup();
        let origins = if origins.is_empty() { String::new() } else { format!(" ({})", origins.join(", ")) };
        self.faults.all.push(format!("{fault}{origins}"));
    }

    /// Notes what could not be checked, if there is something.
    pub(super) fn note(&mut self, note: Option<String>) {
        self.notes.extend(note);
    }

    /// What could not be checked.
    pub(super) fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// `value` as a whole, unless something was wrong. `None` without a fault cannot be, but is no configuration either.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, ConfigErrors> {
        match value {
            Some(value) if self.faults.all.is_empty() => Ok(value),
            _ => Err(self.faults),
        }
    }

    fn is_from_environment(&self, id: &str) -> bool {
        self.matches.value_source(id) == Some(ValueSource::EnvVariable)
    }

    /// Where the value `text` of `id` came from, if not from the command line.
    fn origin(&self, id: &str, text: &str) -> Option<String> {
        match self.matches.value_source(id)? {
            ValueSource::EnvVariable => self.variable(id),
            ValueSource::DefaultValue => self.file.place(id, text),
            _ => None,
        }
    }

    fn definition(&self, id: &str) -> Option<&'a clap::Arg> {
        self.definitions.get_arguments().find(|arg| arg.get_id() == id)
    }

    /// How one types it.
    fn flag(&self, id: &str) -> String {
        match self.definition(id) {
            Some(arg) if arg.is_positional() => id.to_uppercase(),
            _ => format!("--{}", key(id)),
        }
    }

    fn variable(&self, id: &str) -> Option<String> {
        let positional = self.definition(id)?.is_positional();
        (!positional).then(|| format!("LEASEMUX_{}", id.to_uppercase()))
    }
}

/// Name of a flag without its dashes, and its key in the file.
fn key(id: &str) -> String {
    id.replace('_', "-")
}
