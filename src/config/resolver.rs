//! Evaluates the values of one command and collects every error.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::ffi::{OsStr, OsString};
use std::fmt;

use clap::builder::Resettable;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, FromArgMatches};

use super::LoadError;
use super::file::File;
use super::pattern::REGEX;
use super::value::switch;

/// Flags of which a command takes only one. A typed flag overrides the other's variable and file, a variable
/// overrides the other's file.
const ALTERNATIVES: [[&str; 2]; 4] =
    [["identity", "token"], ["key", "trust_dir"], ["utc", "local"], ["ca", "insecure"]];

/// Values of a variable that only one command accepts: the id of the flag, the start of the value, and the
/// command. The others ignore it, because a variable is set for all commands.
const FOR_ONE_COMMAND: (&str, &str, &str) = ("output", "template=", "logs");

/// Everything that is wrong with one configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The command as it is typed, for the hint at its help.
    command: String,
    /// One sentence for each error.
    pub(super) all: Vec<String>,
}

/// The values of one command.
///
/// [`Resolver::new`] parses each value alone, because clap stops at the first invalid one. The command's own
/// checks then compare the valid values, and [`Resolver::finish`] returns the configuration or all errors. An
/// error names the flag, its value and, unless that is the command line, its origin: the environment
/// variable, or the file and line.
///
/// Values are addressed by clap's id, which is the name of the field.
#[derive(Debug)]
pub(super) struct Resolver<'a> {
    /// The command as it is typed: `leasemux token new`.
    path: &'a str,
    command: &'a clap::Command,
    /// The command line and the environment, as text.
    given: &'a ArgMatches,
    file: &'a File,
    /// The valid values as text, by id.
    valid: Vec<(String, String)>,
    /// The same, as typed values.
    values: ArgMatches,
    rejected: BTreeSet<String>,
    /// Each with the position of its flag in the help, which is the order of the report.
    errors: Vec<(usize, String)>,
}

/// Where a value comes from. Earlier ones override later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    CommandLine,
    Environment,
    File,
    Default,
}

// === impl ConfigErrors ===

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.all {
            writeln!(f, "error: {error}")?;
        }
        write!(f, "\nFor more information, try '{} --help'.", self.command)
    }
}

impl std::error::Error for ConfigErrors {}

// === impl Resolver ===

impl<'a> Resolver<'a> {
    /// Evaluates the values that `given` and `file` hold for `command`.
    pub(super) fn new(
        path: &'a str,
        command: &'a clap::Command,
        given: &'a ArgMatches,
        file: &'a File,
    ) -> Result<Self, LoadError> {
        let (valid, values, rejected) = (Vec::new(), ArgMatches::default(), BTreeSet::new());
        let errors = file.errors.iter().map(|error| (0, error.clone())).collect();
        let mut resolver = Self { path, command, given, file, valid, values, rejected, errors };
        if let Some((name, reason)) = file.name.as_deref().zip(file.unreadable.as_deref()) {
            resolver.reject("config", name, reason);
        }
        for arg in command.get_arguments() {
            for text in resolver.texts(arg) {
                match rejection(arg, &text) {
                    Some(reason) => resolver.reject(arg.get_id().as_str(), &text, &reason),
                    None => resolver.valid.push((arg.get_id().to_string(), text)),
                }
            }
        }
        resolver.evaluate()?;
        Ok(resolver)
    }

    /// Parses the valid texts.
    fn evaluate(&mut self) -> Result<(), clap::Error> {
        let (mut options, mut positionals) = (Vec::new(), vec![OsString::from("--")]);
        for (id, text) in &self.valid {
            match self.definition(id) {
                Some(arg) if arg.is_positional() => positionals.push(text.into()),
                Some(arg) => options.push(option(arg, text)),
                None => {}
            }
        }
        options.extend(positionals);
        self.values = explicit(self.command.get_arguments()).try_get_matches_from(options)?;
        Ok(())
    }

    /// Sets the value of `id`, which follows from other values.
    pub(super) fn supply(&mut self, id: &str, text: &str) {
        self.valid.retain(|(known, _)| known != id);
        self.valid.push((id.to_owned(), text.to_owned()));
        if let Err(error) = self.evaluate() {
            self.errors.push((self.position(id), error.to_string()));
        }
    }

    /// Returns the value of `id`, if there is one and all of them are valid.
    pub(super) fn get<T: Clone + Send + Sync + 'static>(&self, id: &str) -> Option<&T> {
        if self.rejected.contains(id) {
            return None;
        }
        self.values.try_get_one(id).ok().flatten()
    }

    /// Returns the valid values of a list.
    pub(super) fn list<T: Clone + Send + Sync + 'static>(&self, id: &str) -> Vec<&T> {
        self.values.try_get_many(id).ok().flatten().into_iter().flatten().collect()
    }

    /// Returns a group of values, if none that it needs is missing or invalid.
    pub(super) fn group<C: FromArgMatches>(&self) -> Option<C> {
        C::from_arg_matches(&self.values).ok()
    }

    /// Returns whether no error was found until now.
    pub(super) fn is_valid(&self) -> bool {
        self.errors.is_empty()
    }

    /// Returns whether a switch is on.
    pub(super) fn is_on(&self, id: &str) -> bool {
        self.get(id).copied().unwrap_or(false)
    }

    /// Returns whether `id` has a value, valid or not, that is not its default.
    pub(super) fn is_given(&self, id: &str) -> bool {
        self.origin(id) != Origin::Default && !self.is_overridden(id)
    }

    /// Returns whether `id` is on the command line.
    pub(super) fn is_typed(&self, id: &str) -> bool {
        self.origin(id) == Origin::CommandLine
    }

    /// Rejects each value of `id` that `check` returns an error for.
    pub(super) fn verify<T: Clone + Send + Sync + 'static>(
        &mut self,
        id: &str,
        mut check: impl FnMut(&T) -> Result<(), String>,
    ) {
        let texts = self.values.try_get_raw(id).ok().flatten().into_iter().flatten();
        let checked = texts.zip(self.list::<T>(id)).map(|(text, value)| (text.to_owned(), check(value)));
        for (text, result) in checked.collect::<Vec<_>>() {
            if let Err(reason) = result {
                self.reject(id, &text.to_string_lossy(), &reason);
            }
        }
    }

    /// Reports that the value `text` of `id` is invalid; `reason` describes a valid one.
    pub(super) fn reject(&mut self, id: &str, text: &str, reason: &str) {
        let is_secret = self.definition(id).is_some_and(Arg::is_hide_env_values_set);
        let shown = if is_secret { "(not shown)".to_owned() } else { format!("{text:?}") };
        let origin = self.describe_origin(id, text).map(|origin| format!(" (from {origin})"));
        let error = format!("{} {shown}{}: {reason}", self.flag(id), origin.unwrap_or_default());
        self.rejected.insert(id.to_owned());
        self.errors.push((self.position(id), error));
    }

    /// Reports `id` as missing unless it is given; `what` describes it.
    pub(super) fn require(&mut self, id: &str, what: &str) {
        // A file that was read only in part may set the flag in the rest, and an invalid value in it is
        // reported already.
        if self.is_given(id) || self.file.is_broken || self.file.has_invalid(id) {
            return;
        }
        let variable = self.variable(id);
        let key = self
            .file
            .name
            .as_deref()
            .filter(|_| !self.file.is_context)
            .zip(self.key(id))
            .map(|(name, key)| format!("{key} in {name}"));
        let others: Vec<_> = variable.into_iter().chain(key).collect();
        let others =
            if others.is_empty() { String::new() } else { format!(" (or {})", others.join(", or ")) };
        self.errors.push((self.position(id), format!("{}{others} is missing: {what}", self.flag(id))));
    }

    /// Reports that values do not fit together. `error` names the flags, to which the origins of their values
    /// are added.
    pub(super) fn conflict(&mut self, error: &str) {
        let flag = |word: &str| {
            let name = word.strip_prefix("--")?.trim_end_matches(|c: char| !c.is_alphanumeric());
            self.command.get_arguments().find(|arg| arg.get_long() == Some(name))
        };
        let flags: Vec<&str> = error.split(' ').filter_map(flag).map(|arg| arg.get_id().as_str()).collect();
        let origin = |id: &&str| Some(format!("{} is from {}", self.flag(id), self.describe_origin(id, "")?));
        let mut origins: Vec<String> = flags.iter().filter_map(origin).collect();
        origins.dedup();
        let origins = if origins.is_empty() { String::new() } else { format!(" ({})", origins.join(", ")) };
        let position = flags.first().map_or(0, |id| self.position(id));
        self.errors.push((position, format!("{error}{origins}")));
    }

    /// Runs the checks of the command, then returns the configuration or all errors.
    pub(super) fn checked<C: FromArgMatches>(mut self, check: fn(&mut Self)) -> Result<C, LoadError> {
        check(&mut self);
        self.finish()
    }

    /// Returns the configuration, or all errors.
    pub(super) fn finish<C: FromArgMatches>(mut self) -> Result<C, LoadError> {
        if self.errors.is_empty() {
            return Ok(C::from_arg_matches(&self.values)?);
        }
        self.errors.sort_by_key(|(position, _)| *position);
        let all = self.errors.into_iter().map(|(_, error)| error).collect();
        Err(LoadError::Invalid(ConfigErrors { command: self.path.to_owned(), all }))
    }

    /// Returns the values of `arg` as text. In the environment, those of a list are separated by commas
    /// (except regular expressions), and empty ones are skipped. A variable of nothing but commas is an
    /// error, because an empty list often means everything.
    fn texts(&mut self, arg: &Arg) -> Vec<String> {
        let id = arg.get_id().as_str();
        let origin = self.origin(id);
        let given = self.given.try_get_raw(id).ok().flatten().into_iter().flatten();
        let given = given.map(|text| text.to_string_lossy().into_owned());
        match origin {
            _ if self.is_overridden(id) => Vec::new(),
            Origin::Environment if is_comma_list(arg) => {
                let text = given.collect::<Vec<_>>().join(",");
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                let parts: Vec<_> = parts.map(str::to_owned).collect();
                if parts.is_empty() {
                    self.reject(id, &text, "holds no value: unset it, or name something");
                }
                parts
            }
            Origin::CommandLine | Origin::Environment => given.collect(),
            Origin::File => self.file.values(id).map(str::to_owned).collect(),
            Origin::Default => {
                arg.get_default_values().iter().map(|text| text.to_string_lossy().into_owned()).collect()
            }
        }
    }

    /// Returns the origin of the value of `id`. A variable that is empty, or is for another command, counts
    /// as not set.
    fn origin(&self, id: &str) -> Origin {
        // Only one empty text counts as not set. The text `,` of a list is split into two: it is rejected,
        // because it names nothing. If it counted as not set, a token without scopes would have full access.
        let is_empty = |given: &ArgMatches| {
            let mut texts = given.try_get_raw(id).ok().flatten().into_iter().flatten();
            texts.next().is_none_or(OsStr::is_empty) && texts.next().is_none()
        };
        match self.definition(id).and_then(|_| self.given.value_source(id)) {
            Some(ValueSource::CommandLine) => Origin::CommandLine,
            Some(ValueSource::EnvVariable) if !is_empty(self.given) && !self.is_for_another(id) => {
                Origin::Environment
            }
            _ if self.file.values(id).next().is_some() => Origin::File,
            _ => Origin::Default,
        }
    }

    fn is_for_another(&self, id: &str) -> bool {
        let (of, start, command) = FOR_ONE_COMMAND;
        let mut texts = self.given.try_get_raw(id).ok().flatten().into_iter().flatten();
        id == of
            && self.command.get_name() != command
            && texts.any(|text| text.to_string_lossy().starts_with(start))
    }

    /// Returns whether an alternative of `id` has an origin that overrides it. A switch that is off does not.
    fn is_overridden(&self, id: &str) -> bool {
        let origin = self.origin(id);
        let is_over =
            |[one, other]: [&str; 2]| one == id && self.origin(other) < origin && !self.is_off(other);
        origin != Origin::Default
            && ALTERNATIVES.into_iter().any(|[one, other]| is_over([one, other]) || is_over([other, one]))
    }

    /// Returns whether `id` is a switch that is given, and off.
    fn is_off(&self, id: &str) -> bool {
        let is_switch =
            self.definition(id).and_then(Arg::get_num_args).is_some_and(|range| range.min_values() == 0);
        let mut texts = self.given.try_get_raw(id).ok().flatten().into_iter().flatten();
        is_switch && texts.any(|text| switch(&text.to_string_lossy()) == Ok(false))
    }

    /// Describes the origin of the value `text` of `id`, unless it is the command line or a default.
    fn describe_origin(&self, id: &str, text: &str) -> Option<String> {
        match self.origin(id) {
            Origin::Environment => self.variable(id),
            Origin::File => self.file.place(id, text),
            Origin::CommandLine | Origin::Default => None,
        }
    }

    fn definition(&self, id: &str) -> Option<&'a Arg> {
        self.command.get_arguments().find(|arg| arg.get_id() == id)
    }

    fn position(&self, id: &str) -> usize {
        self.command.get_arguments().position(|arg| arg.get_id() == id).unwrap_or_default()
    }

    /// Returns the flag as it is typed.
    fn flag(&self, id: &str) -> String {
        self.key(id).map_or_else(|| id.to_uppercase(), |name| format!("--{name}"))
    }

    /// Returns the name of a flag without its dashes, which is its key in the file.
    fn key(&self, id: &str) -> Option<&'a str> {
        self.definition(id)?.get_long()
    }

    fn variable(&self, id: &str) -> Option<String> {
        self.definition(id)?.get_env().map(|name| name.to_string_lossy().into_owned())
    }
}

/// Returns whether the variable of `arg` holds several values. A regular expression may have commas.
fn is_comma_list(arg: &Arg) -> bool {
    let is_regex = arg.get_value_names().is_some_and(|names| names.iter().any(|name| *name == REGEX));
    matches!(arg.get_action(), ArgAction::Append) && !is_regex
}

/// Returns why the parser of `arg` rejects `text`.
fn rejection(arg: &Arg, text: &str) -> Option<String> {
    let args = if arg.is_positional() { vec!["--".into(), text.into()] } else { vec![option(arg, text)] };
    let error = explicit([arg].into_iter()).try_get_matches_from(args).err()?;
    Some(error.source().map_or_else(|| error.to_string(), ToString::to_string))
}

/// Returns a command that takes `args` from its command line only, without variables and defaults.
fn explicit<'a>(args: impl Iterator<Item = &'a Arg>) -> clap::Command {
    let args =
        args.cloned().map(|arg| arg.env(Resettable::Reset).default_value(Resettable::Reset).required(false));
    clap::Command::new("values").no_binary_name(true).disable_help_flag(true).args(args)
}

fn option(arg: &Arg, text: &str) -> OsString {
    format!("--{}={text}", arg.get_long().unwrap_or_default()).into()
}
