//! Reading values and collecting what is wrong with them.

use std::fmt;

use clap::ArgMatches;
use clap::parser::ValueSource;

/// Everything wrong with one configuration; never empty where it is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults {
    /// The command whose help tells more, as one types it.
    command: String,
    all: Vec<String>,
}

/// Reads the values of one subcommand. A fault names the flag, and the environment variable if the value came from there.
///
/// Values are asked for by the id that clap knows them by: `admin_listen` is `--admin-listen` and `LEASEMUX_ADMIN_LISTEN`.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    definitions: &'a clap::Command,
    matches: &'a ArgMatches,
    faults: Faults,
}

// === impl Faults ===

impl Faults {
    /// The faults, one sentence each.
    pub fn all(&self) -> &[String] {
        &self.all
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.all {
            writeln!(f, "error: {fault}")?;
        }
        write!(f, "\nFor more information, try '{} --help'.", self.command)
    }
}

impl std::error::Error for Faults {}

// === impl Reader ===

impl<'a> Reader<'a> {
    pub(super) fn new(command: String, definitions: &'a clap::Command, matches: &'a ArgMatches) -> Self {
        let faults = Faults { command, all: Vec::new() };
        Self { definitions, matches, faults }
    }

    /// One value, if there is one and it is right.
    pub(super) fn one<T>(
        &mut self,
        id: &str,
        given: Option<&String>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.or_default(id, given?)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(right) => {
                self.wrong(id, &text, &right);
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
        let value = given.and_then(|text| self.or_default(id, text));
        if value.is_none() {
            self.missing(id, what);
        }
        self.one(id, value.as_ref(), parse)
    }

    /// Any number of values. In the environment they stand separated by commas.
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
        let variable = if self.is_from_environment(id) {
            self.variable(id).map(|name| format!(" (from {name})"))
        } else {
            None
        };
        let fault = format!("{} {text:?}{}: {right}", self.flag(id), variable.unwrap_or_default());
        self.faults.all.push(fault);
    }

    /// Notes that `id` was not given; `what` says what it is.
    pub(super) fn missing(&mut self, id: &str, what: &str) {
        let variable = self.variable(id).map(|name| format!(" (or {name})"));
        let fault = format!("{}{} is missing: {what}", self.flag(id), variable.unwrap_or_default());
        self.faults.all.push(fault);
    }

    /// Notes that values do not fit together; `fault` names the flags.
    pub(super) fn unfit(&mut self, fault: &str) {
        self.faults.all.push(fault.to_owned());
    }

    /// `value` as a whole, unless something was wrong. `None` without a fault cannot be, but is no configuration either.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, Faults> {
        match value {
            Some(value) if self.faults.all.is_empty() => Ok(value),
            _ => Err(self.faults),
        }
    }

    /// A variable that is set and empty counts as not set, as in unit files and manifests that list all of them.
    fn or_default(&self, id: &str, given: &str) -> Option<String> {
        if !given.is_empty() || !self.is_from_environment(id) {
            return Some(given.to_owned());
        }
        let default = self.definition(id)?.get_default_values().first()?;
        Some(default.to_string_lossy().into_owned())
    }

    fn is_from_environment(&self, id: &str) -> bool {
        self.matches.value_source(id) == Some(ValueSource::EnvVariable)
    }

    fn definition(&self, id: &str) -> Option<&'a clap::Arg> {
        self.definitions.get_arguments().find(|arg| arg.get_id() == id)
    }

    /// How one types it.
    fn flag(&self, id: &str) -> String {
        match self.definition(id) {
            Some(arg) if arg.is_positional() => id.to_uppercase(),
            _ => format!("--{}", id.replace('_', "-")),
        }
    }

    fn variable(&self, id: &str) -> Option<String> {
        Some(self.definition(id)?.get_env()?.to_string_lossy().into_owned())
    }
}
