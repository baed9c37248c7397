//! Answers a shell that completes a command line: with commands, flags, files, contexts and the services of
//! the lease, for which it asks the gateway.
//!
//! The script of `leasemux completions SHELL` calls the program with [`COMPLETE_VARIABLE`]. A failure gives
//! no candidates and no message, which would appear within the line that is being typed.

use std::env;
use std::ffi::{OsStr, OsString};
use std::process::ExitCode;
use std::time::Duration;

use crate::client::exit::Exit;
use crate::client::service_names;
use crate::config::{self, COMPLETE_VARIABLE, Contexts};
use crate::model::id::ServiceName;
use clap::{Arg, Command};
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};

/// Limit on asking the gateway. A person who waits for a completion waits no longer.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Characters at which bash splits words, besides white space.
const BASH_BREAKS: [&str; 2] = [":", "="];

/// Prints the candidates if a shell asks for them. `None` if this is another call of the program.
pub(crate) fn answer(arguments: &[OsString]) -> Option<ExitCode> {
    let dir = env::current_dir().ok();
    let complete = CompleteEnv::with_factory(command).var(COMPLETE_VARIABLE);
    match complete.try_complete(arguments.iter().cloned(), dir.as_deref()) {
        Ok(false) => None,
        Ok(true) => Some(Exit::Done.into()),
        Err(_) => Some(Exit::Failed.into()),
    }
}

/// Returns the commands with completers of their values.
fn command() -> Command {
    fn each(command: Command) -> Command {
        command.mut_args(with_completer).mut_subcommands(each)
    }
    each(config::commands())
}

fn with_completer(arg: Arg) -> Arg {
    match arg.get_id().as_str() {
        "services" => arg.add(ArgValueCompleter::new(services)),
        "context" | "name" => arg.add(ArgValueCompleter::new(contexts)),
        _ => arg,
    }
}

fn contexts(current: &OsStr) -> Vec<CompletionCandidate> {
    let Ok(contexts) = Contexts::read() else { return Vec::new() };
    candidates(contexts.iter().map(|(name, _)| name.to_owned()), current)
}

fn services(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(names().unwrap_or_default().iter().map(ToString::to_string), current)
}

/// Returns the names of the services of the lease on the line that is being typed.
fn names() -> Option<Vec<ServiceName>> {
    let call = config::call_of(&line(env::args_os()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let names = runtime.block_on(async { tokio::time::timeout(ASK_TIMEOUT, service_names(&call)).await });
    // Does not wait for a name lookup that takes longer.
    runtime.shutdown_background();
    names.ok()?.ok()
}

fn candidates(names: impl Iterator<Item = String>, current: &OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    names.filter(|name| name.starts_with(&*current)).map(CompletionCandidate::new).collect()
}

/// Returns the words of the line that is being typed. bash passes `https://host:1` as five words, which are
/// joined again.
fn line(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    let mut joins = false;
    for word in arguments.skip_while(|word| word != "--").skip(1) {
        let is_break = BASH_BREAKS.iter().any(|mark| word == *mark);
        match words.last_mut().filter(|_| is_break || joins) {
            Some(last) => last.push(&word),
            None => words.push(word),
        }
        joins = is_break;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_bash_split_are_joined() {
        let words = [
            "leasemux",
            "--",
            "leasemux",
            "logs",
            "--gateway",
            "https",
            ":",
            "//h",
            ":",
            "1",
            "--ca",
            "=",
            "f",
            "--service",
            "",
        ];
        let joined = line(words.into_iter().map(OsString::from));
        assert_eq!(joined, ["leasemux", "logs", "--gateway", "https://h:1", "--ca=f", "--service", ""]);
    }
}
