//! From the command line, the environment and a file to typed configurations.
//!
//! clap takes every value as text (`cli`): a flag wins over its variable, that over the file (`file`), and that over the default.
//! One pass per subcommand turns all of them into a configuration and collects every fault on its way, so that nobody has to
//! run a program five times to learn of five mistakes. What comes out is valid: a file that is named could be opened, a bound
//! lies within its range. `reference` makes docs/CONFIG.md of the same definitions, and `shell` completions and man pages.
//!
//! **To add a flag**: a field with its help in `cli/`, whose variable is `LEASEMUX_` and the flag's name in capitals (a test
//! holds that; the key in the file comes by itself); one line in the `resolve` beside it that asks the `Reader` for the value
//! under the field's name; a field of the configuration. A switch takes the attributes that other switches have. What only
//! the gateway's own code can say of a value is a field of [`Probes`]. Then `UPDATE_DOCS=1 cargo test made_from_the_code`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::{env, fmt};

use clap::builder::Resettable;
use clap::{Arg, ArgMatches, CommandFactory as _, FromArgMatches as _, ValueHint};

use self::cli::{Cli, CliCommand, IdentityCommand, TokenCommand};
use self::faults::{ConfigErrors, Resolver};
use self::file::File;

mod access;
mod cli;
mod client;
mod faults;
mod file;
mod limits;
mod moment;
mod probes;
mod reference;
mod secret;
mod serve;
mod shell;
mod tenant;
mod token;
mod value;

pub use self::access::{AccessConfig, ChainSource};
pub use self::client::{Form, LogsConfig, Output, RestartConfig, ServerTrust, StatusConfig, Target};
pub use self::faults::ConfigErrors as ConfigFaults;
pub use self::moment::Moment;

pub use self::probes::{ClusterProbe, Probes};
pub use self::reference::reference;
pub use self::secret::TokenSource;
use self::serve::Resolved;
pub use self::serve::{KubeOptions, LogFormat, NodeOptions, PlatformKind, ServeConfig};
pub use self::shell::{Shell, completions, man, man_pages};
pub use self::tenant::{DemoConfig, IdentityConfig, ImportConfig, MnemonicSource};
pub use self::token::{Keys, TokenCheckConfig, TokenNewConfig};

/// The subcommand that a file is for.
const SERVE: &str = "serve";

/// What the program was asked to do, with everything that it takes.
#[derive(Debug)]
pub enum Command {
    /// Be a gateway.
    Serve(Box<ServeConfig>),
    /// Say that nothing is wrong with a gateway's configuration, which was looked into; and what could not be checked.
    Checked(Vec<String>),
    /// Print a lease's logs.
    Logs(Box<LogsConfig>),
    /// Print how a lease's services are doing.
    Status(Box<StatusConfig>),
    /// Restart a lease's services.
    Restart(Box<RestartConfig>),
    /// Make a tenant's identity.
    IdentityNew(IdentityConfig),
    /// Import a tenant's identity.
    IdentityImport(ImportConfig),
    /// Sign a token.
    TokenNew(TokenNewConfig),
    /// Judge a token.
    TokenCheck(TokenCheckConfig),
    /// Show the main job on this machine.
    Demo(DemoConfig),
    /// Print a shell's completions.
    Completions(Shell),
    /// Print the program's man page, or write those of all commands into a directory.
    Man(Option<PathBuf>),
}

/// Why there is nothing to do.
#[derive(Debug)]
pub enum LoadError {
    /// Help or version was asked for, or the arguments do not form a command; clap's own text, which knows its exit code.
    Clap(clap::Error),
    /// Values are missing or wrong.
    Faults(ConfigErrors),
}

/// Reads the program's arguments (the first is its own name), the `LEASEMUX_…` environment, and the file that these may name.
/// `probes` are asked if the configuration is only to be checked.
///
/// # Errors
/// [`Stop`], with every fault in it.
pub fn read<I, T>(args: I, probes: &Probes) -> Result<Command, LoadError>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString>,
{
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let mut command = without_empty_variables(definition());
    let mut matches = command.clone().try_get_matches_from(&args)?;
    let mut file = File::default();
    if let (Some(path), Some(serve)) = (file_named(&matches), command.find_subcommand(SERVE)) {
        file = File::read(&path, serve);
        command = command.mut_subcommand(SERVE, |serve| file.beneath(serve));
        matches = command.clone().try_get_matches_from(&args)?;
    }
    let reader = reader(&command, &matches, &file);
    let task = match Cli::from_arg_matches(&matches)?.command {
        CliCommand::Serve(args) => match serve::resolve(&args, probes, reader)? {
            Resolved::Serve(config) => Command::Serve(config),
            Resolved::Checked(notes) => Command::Checked(notes),
        },
        CliCommand::Logs(args) => Command::Logs(Box::new(client::resolve_logs(&args, reader)?)),
        CliCommand::Status(args) => Command::Status(Box::new(client::resolve_status(&args, reader)?)),
        CliCommand::Restart(args) => Command::Restart(Box::new(client::resolve_restart(&args, reader)?)),
        CliCommand::Identity(args) => match args.command {
            IdentityCommand::New(args) => Command::IdentityNew(tenant::resolve_identity(&args, reader)?),
            IdentityCommand::Import(args) => Command::IdentityImport(tenant::resolve_import(&args, reader)?),
        },
        CliCommand::Token(args) => match args.command {
            TokenCommand::New(args) => Command::TokenNew(token::resolve_new(&args, reader)?),
            TokenCommand::Check(args) => Command::TokenCheck(token::resolve_check(&args, reader)?),
        },
        CliCommand::Demo(args) => Command::Demo(tenant::resolve_demo(&args, reader)?),
        CliCommand::Completions(args) => Command::Completions(shell::resolve_completions(&args, reader)?),
        CliCommand::Man(args) => Command::Man(shell::resolve_man(&args, reader)?),
    };
    Ok(task)
}

/// The program's commands and flags, as help, completions and pages show them.
fn definition() -> clap::Command {
    fn hinted(command: clap::Command) -> clap::Command {
        command
            .mut_args(|arg| {
                let hint = hint(&arg);
                // So that a value below zero is judged as one, and not taken for a flag that there is not.
                arg.value_hint(hint).allow_negative_numbers(true)
            })
            .mut_subcommands(hinted)
    }
    hinted(Cli::command())
}

/// What a shell should offer for a value.
fn hint(arg: &Arg) -> ValueHint {
    let name = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
    match name {
        "FILE" => ValueHint::FilePath,
        "DIR" => ValueHint::DirPath,
        "LEASE=SDLFILE" => ValueHint::Unknown,
        _ => ValueHint::Other,
    }
}

/// A variable that is set and empty counts as not set, as in unit files and manifests that list all of them.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |arg: &Arg| arg.get_env().and_then(env::var_os).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|arg| if is_empty(&arg) { arg.env(Resettable::Reset) } else { arg });
    command.mut_subcommands(without_empty_variables)
}

/// The file that flag or variable names.
fn file_named(matches: &ArgMatches) -> Option<String> {
    matches.subcommand_matches(SERVE)?.get_one::<String>("config").cloned()
}

/// A reader for the subcommand that was given.
fn reader<'a>(command: &'a clap::Command, matches: &'a ArgMatches, file: &'a File) -> Resolver<'a> {
    let mut path = vec![command.get_name()];
    let (mut command, mut matches) = (command, matches);
    while let Some((name, inner)) = matches.subcommand() {
        let Some(found) = command.find_subcommand(name) else {
            break;
        };
        path.push(found.get_name());
        (command, matches) = (found, inner);
    }
    Resolver::new(path.join(" "), command, matches, file)
}

// === impl Stop ===

impl From<clap::Error> for LoadError {
    fn from(error: clap::Error) -> Self {
        Self::Clap(error)
    }
}

impl From<ConfigErrors> for LoadError {
    fn from(faults: ConfigErrors) -> Self {
        Self::Faults(faults)
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clap(error) => error.fmt(f),
            Self::Faults(faults) => faults.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use std::ffi::OsStr;
    use std::time::Duration;

    use super::*;
    use crate::model::limits::Limits;
    use crate::model::quota::Quota;

    const LEASE: &str = "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev/6194991/1/1/akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";

    fn faults(args: &[&str]) -> Vec<String> {
        match read(std::iter::once(&"leasemux").chain(args), &Probes::NONE) {
            Err(LoadError::Faults(faults)) => faults.all().to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn each_command(check: &mut impl FnMut(&[&str], &clap::Command)) {
        fn walk(path: &[&str], command: &clap::Command, check: &mut impl FnMut(&[&str], &clap::Command)) {
            check(path, command);
            for inner in command.get_subcommands() {
                walk(&[path, &[inner.get_name()]].concat(), inner, check);
            }
        }
        walk(&[], &Cli::command(), check);
    }

    #[test]
    fn definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_its_variable() {
        let mut seen = 0;
        each_command(&mut |path, command| {
            for arg in command.get_arguments().filter(|arg| arg.get_long().is_some()) {
                let long = arg.get_long().unwrap();
                if matches!(long, "help" | "version") {
                    continue;
                }
                let expected = format!("LEASEMUX_{}", long.to_uppercase().replace('-', "_"));
                assert_eq!(arg.get_env(), Some(OsStr::new(&expected)), "{path:?} --{long}");
                assert_eq!(arg.get_id().as_str(), long.replace('-', "_"));
                assert!(arg.get_help().is_some(), "{path:?} --{long}");
                seen += 1;
            }
        });
        assert!(seen > 40, "{seen}");
    }

    #[test]
    fn every_command_teaches_by_example() {
        each_command(&mut |path, command| {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Examples:"), "{path:?}");
        });
    }

    /// Help and man pages show these lines as they are; where a terminal is narrower, an example can no longer be copied.
    #[test]
    fn examples_fit_a_terminal() {
        const COLUMNS: usize = 80;
        each_command(&mut |path, command| {
            let below = [command.get_after_help(), command.get_after_long_help()];
            let below: Vec<String> = below.into_iter().flatten().map(ToString::to_string).collect();
            for line in below.iter().flat_map(|text| text.lines()) {
                assert!(line.chars().count() <= COLUMNS, "{path:?}: {line}");
            }
        });
    }

    /// A value that no flag takes, on each flag alone, is a fault that names this very flag: ids and fields belong together.
    #[test]
    fn every_flag_is_judged_under_its_own_name() {
        each_command(&mut |path, command| {
            for arg in command.get_arguments() {
                let Some(long) = arg.get_long() else { continue };
                if matches!(long, "help" | "version") {
                    continue;
                }
                let given = format!("--{long}=\0\u{1}=");
                let found = faults(&[path, &[given.as_str()]].concat());
                // What may be a secret is not repeated.
                let shown = if long == "token" { " (not shown)" } else { " \"\\0" };
                let named = found.iter().filter(|fault| fault.starts_with(&format!("--{long}{shown}")));
                assert_eq!(named.count(), 1, "{path:?} --{long}: {found:#?}");
            }
        });
    }

    #[test]
    fn faults_come_all_at_once() {
        let found = faults(&["serve", "--listen", "x", "--tls-cert", "/none/cert.pem", "--pace", "5"]);
        let names: Vec<&str> = found.iter().filter_map(|fault| fault.split(' ').next()).collect();
        assert_eq!(
            names,
            ["--platform", "--lease", "--trust-dir", "--listen", "--tls-key", "--tls-cert", "--pace"]
        );
        let found = faults(&["logs", "--follow", "--previous", "--ca", "/none", "--replica", "1"]);
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(found[0].starts_with("LEASE is missing"), "{found:#?}");
    }

    /// `docs/LIMITS.md` has a row for each flag that limits something, with its default, and names each quota.
    #[test]
    fn the_page_of_limits_tells_them_all() {
        let page = include_str!("../../docs/LIMITS.md");
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `--")).collect();
        let mut expected = Vec::new();
        each_command(&mut |path, command| {
            let limits = |arg: &&clap::Arg| {
                matches!(arg.get_help_heading(), Some("Limits" | "Limits of connections" | "Quotas"))
            };
            for arg in command.get_arguments().filter(limits).filter(|_| path == ["serve"]) {
                let default = arg.get_default_values().first().map(|text| format!("`{}`", text.display()));
                let default = default.unwrap_or_else(|| "none".to_owned());
                expected.push(format!("| `--{}` | {default} |", arg.get_long().unwrap()));
            }
        });
        assert!(expected.len() > 25, "{expected:?}");
        for row in &expected {
            assert!(rows.iter().any(|found| found.starts_with(row)), "no row {row}");
        }
        assert_eq!(rows.len(), expected.len(), "a row for a flag that there is not");
        for quota in Quota::ALL {
            let name = format!("`{}`", quota.label());
            assert!(page.contains(&name), "{name} is not told of");
        }
    }

    #[test]
    fn defaults_are_those_of_the_code() {
        let dir = tempfile::tempdir().unwrap();
        let sdl = dir.path().join("a.yaml");
        fs::write(&sdl, "").unwrap();
        let lease = format!("{LEASE}={}", sdl.display());
        let trust = dir.path().to_str().unwrap();
        let args = ["leasemux", "serve", "--platform", "local", "--lease", &lease, "--trust-dir", trust];
        let Ok(Command::Serve(config)) = read(args, &Probes::NONE) else { panic!() };
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.leases, [(LEASE.parse().unwrap(), sdl)]);
        assert_eq!(config.listen, "127.0.0.1:8446".parse().unwrap());
        assert_eq!(config.admin_listen, "127.0.0.1:9446".parse().unwrap());
        assert_eq!(config.data_dir.to_str(), Some(".leasemux"));
        let store = (config.rotate_max_bytes, config.rotate_files, config.kept_runs);
        assert_eq!(store, (10 << 20, 5, 10));
        assert_eq!(config.stop_grace, Duration::from_secs(10));
        assert!(!config.lifeline && config.tls.is_none());
        let twice =
            ["serve", "--platform", "local", "--lease", &lease, "--lease", &lease, "--trust-dir", trust];
        assert!(faults(&twice)[0].ends_with("must be given once only"));
    }

    #[test]
    fn logs_are_chosen() {
        let args = [
            "leasemux",
            "logs",
            LEASE,
            "--service",
            "web",
            "--service",
            "api",
            "--replica",
            "1",
            "-f",
            "--tail",
            "0",
        ];
        let Ok(Command::Logs(config)) = read(args, &Probes::NONE) else { panic!() };
        assert_eq!(config.services.iter().map(ToString::to_string).collect::<Vec<_>>(), ["web", "api"]);
        assert_eq!((config.replicas, config.follow, config.tail), (vec![1], true, Some(0)));
        assert_eq!(config.target.trust, ServerTrust::System);
        let Ok(Command::Logs(config)) =
            read(["leasemux", "logs", LEASE, "--follow=false", "-o", "json"], &Probes::NONE)
        else {
            panic!()
        };
        assert_eq!((config.follow, config.output), (false, Output::Json));
        let many: Vec<String> = (0..=1024).map(|n| format!("--replica={n}")).collect();
        let args: Vec<&str> =
            ["logs", LEASE, "--service=web"].into_iter().chain(many.iter().map(String::as_str)).collect();
        assert!(faults(&args)[0].contains("at most 1024"));
        let below = faults(&["logs", LEASE, "--tail", "-2"]);
        assert!(below[0].starts_with("--tail \"-2\": must be a number of lines, or all"), "{below:?}");
    }

    fn logs(args: &[&str]) -> LogsConfig {
        let args = ["leasemux", "logs", LEASE].into_iter().chain(args.iter().copied());
        match read(args, &Probes::NONE) {
            Ok(Command::Logs(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn common_forms_of_tail_and_times_are_taken() {
        for (args, tail) in [
            (&["--tail=-1"][..], None),
            (&["--tail", "-1"], None),
            (&["--tail", "all"], None),
            (&["-n", "5"], Some(5)),
            (&["-n5"], Some(5)),
            (&["-n", "-1"], None),
        ] {
            assert_eq!(logs(args).tail, tail, "{args:?}");
        }
        assert!(logs(&["-t"]).timestamps && logs(&["-ft"]).follow && !logs(&[]).timestamps);
        let config = logs(&["--since", "1d12h", "--until", "2026-01-31T12:00:00Z"]);
        assert_eq!(config.since, Some(Moment::Ago(Duration::from_secs(36 * 3_600))));
        assert!(matches!(config.until, Some(Moment::At(_))));
    }

    #[test]
    fn until_with_what_contradicts_it_is_refused() {
        for (args, expected) in [
            (&["-f", "--until", "1h"][..], "--until and --follow do not go together"),
            (&["-n", "5", "--until", "1h"], "--until and --tail do not go together"),
            (&["--since", "1h", "--until", "2h"], "--until is before --since"),
            (&["--since", "2026-01-31", "--until", "2026-01-30"], "--until is before --since"),
        ] {
            let args = [&["logs", LEASE], args].concat();
            let found = faults(&args);
            assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
        }
        assert_eq!(logs(&["-n", "all", "--until", "1h"]).tail, None);
    }
}
