//! The program's commands, as help, completions, man pages and docs/CONFIG.md show them.

use std::path::PathBuf;

use clap::builder::{Str, ValueParser};
use clap::{Arg, ArgAction, Args, Command, ValueHint};
use clap_complete::Shell;

use super::canary::CanaryConfig;
use super::client::{EXIT_CODES, LogsConfig, RestartConfig, StatusConfig};
use super::context::{ContextSetConfig, ListArgs, NamedArgs, ShowArgs};
use super::demo::DemoConfig;
use super::identity::{IdentityConfig, ImportConfig};
use super::serve::ServeConfig;
use super::token::{TokenCheckConfig, TokenNewConfig};
use super::ui::UiConfig;
use super::value::{new_directory, switch};

const PROGRAM_EXAMPLES: &str = include_str!("help/program.txt").trim_ascii_end();

const IDENTITY_EXAMPLES: &str = include_str!("help/identity.txt").trim_ascii_end();

const TOKEN_EXAMPLES: &str = include_str!("help/token.txt").trim_ascii_end();

const CONTEXT_EXAMPLES: &str = include_str!("help/context.txt").trim_ascii_end();

const COMPLETIONS_EXAMPLES: &str = include_str!("help/completions.txt").trim_ascii_end();

const MAN_EXAMPLES: &str = include_str!("help/man.txt").trim_ascii_end();

/// Print a script that completes commands, flags, services and contexts in a shell
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub(super) struct CompletionsArgs {
    /// Name of the shell
    #[arg(value_name = "SHELL")]
    pub(super) shell: Shell,
}

/// Print the program's man page, or write those of all commands
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES)]
pub(super) struct ManArgs {
    /// Directory to write the pages of all commands to; created if it does not exist
    #[arg(long, value_name = "DIR", value_parser = new_directory)]
    pub(super) dir: Option<PathBuf>,
}

/// Returns the commands, with typed values.
pub(super) fn program() -> Command {
    let identity = group("identity", "Create or import a tenant's identity", IDENTITY_EXAMPLES)
        .subcommands([command::<IdentityConfig>("new"), command::<ImportConfig>("import")]);
    let token = group("token", "Create or check tokens (AEP-64)", TOKEN_EXAMPLES)
        .subcommands([command::<TokenNewConfig>("new"), command::<TokenCheckConfig>("check")]);
    let about = "Follow the logs of Akash leases: a gateway that reads each log once, however many follow it";
    let named = |name, about| command::<NamedArgs>(name).about(about);
    let context = group("context", "Store gateways, credentials and leases under names", CONTEXT_EXAMPLES)
        .subcommands([
            command::<ContextSetConfig>("set"),
            named("use", "Make a context the current one"),
            command::<ListArgs>("list"),
            command::<ShowArgs>("show").about("Print a context"),
            named("delete", "Delete a context"),
        ]);
    let program = group("leasemux", about, PROGRAM_EXAMPLES)
        .version(env!("LEASEMUX_VERSION"))
        .after_long_help(format!("{PROGRAM_EXAMPLES}\n\n{EXIT_CODES}"))
        .subcommands([
            command::<ServeConfig>("serve"),
            command::<LogsConfig>("logs"),
            command::<StatusConfig>("status"),
            command::<RestartConfig>("restart"),
            command::<UiConfig>("ui"),
            identity,
            token,
            context,
            command::<CanaryConfig>("canary"),
            command::<DemoConfig>("demo"),
            command::<CompletionsArgs>("completions"),
            command::<ManArgs>("man"),
        ]);
    each_arg(program, with_derived_properties)
}

/// Returns the commands with all values as text. The resolver parses them, because clap would stop at the
/// first invalid one. Values of which clap lists the possible ones stay typed.
pub fn commands() -> Command {
    each_arg(program(), |arg| {
        if arg.get_possible_values().is_empty() { arg.value_parser(ValueParser::string()) } else { arg }
    })
}

fn group(name: &'static str, about: &'static str, examples: &'static str) -> Command {
    Command::new(name)
        .about(about)
        .after_help(examples)
        .arg_required_else_help(true)
        .subcommand_required(true)
        .disable_help_subcommand(true)
}

fn command<A: Args>(name: &'static str) -> Command {
    A::augment_args(Command::new(name))
}

fn each_arg(command: Command, change: fn(Arg) -> Arg) -> Command {
    command.mut_args(change).mut_subcommands(|inner| each_arg(inner, change))
}

/// Adds the properties that follow from others: the variable, the hint for shells, and the form of switches,
/// which take a value too, so that `--follow=false` can override the variable.
fn with_derived_properties(arg: Arg) -> Arg {
    let arg = if matches!(arg.get_action(), ArgAction::SetTrue) {
        arg.action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .default_value("false")
            .hide_default_value(true)
            .value_name("BOOL")
            .value_parser(switch)
    } else {
        arg
    };
    let hint = match arg.get_value_names().and_then(|names| names.first()).map(Str::as_str) {
        Some("FILE") => ValueHint::FilePath,
        Some("DIR") => ValueHint::DirPath,
        Some("LEASE=SDLFILE") => ValueHint::Unknown,
        _ => ValueHint::Other,
    };
    // Negative numbers are values, so that the flag's parser reports them, and not unknown flags.
    let arg = arg.value_hint(hint).allow_negative_numbers(true);
    match arg.get_long() {
        Some(long) => {
            let variable = format!("LEASEMUX_{}", long.to_uppercase().replace('-', "_"));
            arg.env(variable)
        }
        None => arg,
    }
}
