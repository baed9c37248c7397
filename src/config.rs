//! Reads the settings of each command from the command line, the environment and a file.
//!
//! Each flag is defined once, by a field that clap's derive macros read: its help, default and parser. `cli`
//! adds the environment variable, which is `LEASEMUX_` and the flag's name in capitals, and `file` the key of
//! the same name. A flag overrides its variable, the variable overrides the file, and the file overrides the
//! default. For commands of tenants, a context (`contexts`) takes the place of the file.
//!
//! `resolver` parses every value, runs the command's checks of values that depend on each other, and reports
//! all errors at once. A configuration that [`read`] returns is valid: its files were readable, its numbers
//! are in range. docs/CONFIG.md is generated from the same definitions, as are completions and man pages
//! (`shell`).
//!
//! CONTRIBUTING.md describes how to add a flag.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::ArgMatches;
use clap::error::ErrorKind;
use clap::parser::ValueSource;

use self::file::File;
use self::resolver::Resolver;

mod access;
mod canary;
mod cli;
mod client;
mod context;
mod contexts;
mod demo;
mod file;
mod file_lock;
mod fleet;
mod identity;
mod lease_parts;
mod lines;
mod pattern;
pub(crate) mod published;
mod resolver;
mod rest;
mod serve;
mod service_selector;
mod shell;
mod start_checks;
mod template;
mod time_spec;
mod token;
mod token_source;
mod ui;
mod value;

pub use self::canary::CanaryConfig;
pub use self::cli::commands;
pub use self::client::{CallConfig, LogsConfig, RestartConfig, StatusConfig, Target};
pub use self::context::{ContextCommand, ContextSetConfig};
pub use self::contexts::{Context, ContextChange, Contexts, ContextsError};
pub use self::demo::DemoConfig;
pub use self::file::is_file_key;
pub use self::fleet::FleetOptions;
pub(crate) use self::fleet::GatewayRole;
pub use self::identity::{IdentityConfig, ImportConfig, MnemonicSource};
pub use self::lease_parts::LeaseSource;
pub use self::lines::{ColorChoice, FormConfig, LogsOutput, SelectionConfig};
pub use self::pattern::Pattern;
pub use self::resolver::ConfigErrors;
pub(crate) use self::serve::PlatformKind;
pub use self::serve::ServeConfig;
pub use self::service_selector::{ServicePattern, ServiceSelector};
pub use self::shell::{COMPLETE_VARIABLE, Shell, completions, man, man_pages};
pub use self::start_checks::StartChecks;
pub(crate) use self::template::Part;
pub use self::template::{Field, Template};
pub use self::time_spec::TimeSpec;
pub use self::token::{TokenCheckConfig, TokenNewConfig};
pub use self::token_source::TokenSource;
pub use self::ui::UiConfig;
pub use self::value::Format;

/// The command that reads a file.
const SERVE: &str = "serve";

/// The flag that names a context, of the commands that use one.
const CONTEXT: &str = "context";

/// A command with its settings.
#[derive(Debug)]
pub enum Command {
    /// Run a gateway until a signal.
    Serve(Box<ServeConfig>),
    /// Report that a gateway's configuration is valid, with a note if something could not be checked.
    Checked(Option<String>),
    /// Print a lease's logs.
    Logs(Box<LogsConfig>),
    /// Print the status of a lease's services.
    Status(Box<StatusConfig>),
    /// Restart a lease's services.
    Restart(Box<RestartConfig>),
    /// Show a lease in a web page.
    Ui(Box<UiConfig>),
    /// Create a tenant's identity.
    IdentityNew(IdentityConfig),
    /// Import a tenant's identity.
    IdentityImport(ImportConfig),
    /// Sign a token and print it.
    TokenNew(TokenNewConfig),
    /// Report whether a gateway would accept a token.
    TokenCheck(TokenCheckConfig),
    /// Show or change the contexts.
    Context(ContextCommand),
    /// Measure a gateway by following a service that counts.
    Canary(Box<CanaryConfig>),
    /// Run a gateway with sample services and followers.
    Demo(DemoConfig),
    /// Print a shell's completions.
    Completions(Shell),
    /// Print the program's man page, or write those of all commands to a directory.
    Man(Option<PathBuf>),
}

/// Why there is no command to run.
#[derive(Debug)]
pub enum LoadError {
    /// The arguments form no command, or ask for help or the version. clap has the text and the exit code.
    Clap(clap::Error),
    /// Values are missing or invalid.
    Invalid(ConfigErrors),
}

/// Reads the command from the program's arguments (the first is its own name), the environment and the file
/// that they may name. Runs `checks` if the configuration is only to be validated.
///
/// # Errors
/// [`LoadError`], with all invalid values.
pub fn read<I, T>(args: I, checks: &StartChecks) -> Result<Command, LoadError>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let matches = cli::commands().try_get_matches_from(args)?;
    let program = cli::program();
    let (mut names, mut command, mut given) = (vec![program.get_name()], &program, &matches);
    while let Some((name, inner)) = given.subcommand() {
        let Some(found) = command.find_subcommand(name) else { break };
        (command, given) = (found, inner);
        names.push(name);
    }
    let file = match file_named(&names, given) {
        Some(path) => File::read(path, command),
        None if command.get_arguments().any(|arg| arg.get_id() == CONTEXT) => context_file(given),
        None => File::default(),
    };
    let path = names.join(" ");
    let mut resolver = Resolver::new(&path, command, given, &file)?;
    Ok(match names.get(1..).unwrap_or_default() {
        [SERVE] => {
            let is_check = resolver.is_on("check");
            let note = serve::check(&mut resolver, if is_check { checks } else { &StartChecks::NONE });
            let config = resolver.finish()?;
            if is_check { Command::Checked(note) } else { Command::Serve(config) }
        }
        ["logs"] => Command::Logs(resolver.checked(client::check_logs)?),
        ["status"] => Command::Status(resolver.checked(client::check_call)?),
        ["restart"] => Command::Restart(resolver.checked(client::check_restart)?),
        ["ui"] => Command::Ui(resolver.checked(ui::check)?),
        ["identity", "new"] => Command::IdentityNew(resolver.checked(identity::check)?),
        ["identity", "import"] => Command::IdentityImport(resolver.checked(identity::check)?),
        ["token", "new"] => Command::TokenNew(resolver.checked(token::check_new)?),
        ["token", "check"] => Command::TokenCheck(resolver.checked(token::check_check)?),
        ["context", "set"] => Command::Context(ContextCommand::Set(resolver.checked(context::check_set)?)),
        ["context", "use"] => {
            let args: context::NamedArgs = resolver.checked(context::check_name)?;
            Command::Context(ContextCommand::Use(args.name))
        }
        ["context", "delete"] => {
            let args: context::NamedArgs = resolver.checked(context::check_name)?;
            Command::Context(ContextCommand::Delete(args.name))
        }
        ["context", "list"] => Command::Context(ContextCommand::List),
        ["context", "show"] => {
            Command::Context(ContextCommand::Show(resolver.finish::<context::ShowArgs>()?.name))
        }
        ["canary"] => Command::Canary(resolver.checked(canary::check)?),
        ["demo"] => Command::Demo(resolver.checked(demo::check)?),
        ["completions"] => Command::Completions(resolver.finish::<cli::CompletionsArgs>()?.shell),
        ["man"] => Command::Man(resolver.finish::<cli::ManArgs>()?.dir),
        _ => return Err(clap::Error::new(ErrorKind::MissingSubcommand).into()),
    })
}

/// Returns the call of a line that is being typed, if it names a lease and a gateway. For completions, so
/// everything that is missing or invalid is ignored.
pub fn call_of(words: &[OsString]) -> Option<CallConfig> {
    let matches = cli::commands().ignore_errors(true).try_get_matches_from(words).ok()?;
    let (name, given) = matches.subcommand()?;
    let program = cli::program();
    let command = program.find_subcommand(name)?;
    let file = context_file(given);
    let mut resolver = Resolver::new(name, command, given, &file).ok()?;
    lease_parts::resolve(&mut resolver);
    resolver.group()
}

/// Returns the path of the file that `serve` is to read. An empty variable counts as not set.
fn file_named<'a>(names: &[&str], given: &'a ArgMatches) -> Option<&'a str> {
    let name = given.try_get_one::<String>("config").ok().flatten()?;
    let is_typed = || given.value_source("config") == Some(ValueSource::CommandLine);
    (names.last() == Some(&SERVE) && (!name.is_empty() || is_typed())).then_some(name)
}

/// Returns the values of the context that a command uses. Without a name, that is the current one, if there
/// is one.
fn context_file(given: &ArgMatches) -> File {
    let name = given.try_get_one::<String>(CONTEXT).ok().flatten().filter(|name| !name.is_empty());
    if name.is_some_and(|name| contexts::name(name).is_err()) {
        // The flag's parser reports it.
        return File::unusable(None);
    }
    let contexts = match Contexts::read() {
        Err(ContextsError::NoPlace) if name.is_none() => return File::default(),
        Err(error) => return File::unusable(Some(error.to_string())),
        Ok(contexts) => contexts,
    };
    if name.is_none() && contexts.current().is_none() {
        return File::default();
    }
    match contexts.get(name.map(String::as_str)) {
        Ok((_, context)) => contexts.file_of(context),
        Err(error) => File::unusable(Some(error.to_string())),
    }
}

// === impl LoadError ===

impl From<clap::Error> for LoadError {
    fn from(error: clap::Error) -> Self {
        Self::Clap(error)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::time::Duration;

    use super::cli::{commands, program};
    use super::*;
    use crate::model::label::LabelValue as _;
    use crate::model::proto::lease::OnLag;
    use crate::model::quota::Quota;

    const LEASE: &str = "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev/6194991/1/1/akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";

    fn errors(args: &[&str]) -> Vec<String> {
        match read(std::iter::once(&"leasemux").chain(args), &StartChecks::NONE) {
            Err(LoadError::Invalid(errors)) => errors.all,
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
        walk(&[], &program(), check);
    }

    #[test]
    fn definitions_are_consistent() {
        program().debug_assert();
        commands().debug_assert();
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
                assert!(arg.get_help().is_some(), "{path:?} --{long}");
                seen += 1;
            }
        });
        assert!(seen > 40, "{seen}");
    }

    #[test]
    fn every_command_has_examples_in_its_help() {
        each_command(&mut |path, command| {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Examples:"), "{path:?}");
        });
    }

    /// Help and man pages do not wrap these lines. A wrapped example could not be copied.
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

    /// Gives each flag alone a value that no flag accepts.
    #[test]
    fn invalid_value_is_reported_for_its_own_flag() {
        each_command(&mut |path, command| {
            for arg in command.get_arguments() {
                let Some(long) = arg.get_long() else { continue };
                if matches!(long, "help" | "version") {
                    continue;
                }
                let given = format!("--{long}=\0\u{1}=");
                let found = errors(&[path, &[given.as_str()]].concat());
                // Secrets are not shown.
                let shown = if long == "token" { " (not shown)" } else { " \"\\0" };
                let named = found.iter().filter(|error| error.starts_with(&format!("--{long}{shown}")));
                assert_eq!(named.count(), 1, "{path:?} --{long}: {found:#?}");
            }
        });
    }

    #[test]
    fn all_errors_are_reported_in_the_order_of_flags() {
        let found = errors(&["serve", "--listen", "x", "--tls-cert", "/none/cert.pem", "--pace", "5"]);
        let names: Vec<&str> = found.iter().filter_map(|error| error.split(' ').next()).collect();
        assert_eq!(
            names,
            ["--platform", "--lease", "--listen", "--tls-cert", "--tls-key", "--trust-dir", "--pace"]
        );
        let found = errors(&["logs", "--follow", "--previous", "--ca", "/none", "--replica", "1"]);
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(found[0].starts_with("LEASE is missing"), "{found:#?}");
    }

    /// `docs/LIMITS.md` has a row for each flag that limits something, with its default, and names each
    /// quota.
    #[test]
    fn docs_limits_lists_every_limit_with_its_default() {
        let page = include_str!("../docs/LIMITS.md");
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
            assert!(page.contains(&name), "{name} is missing");
        }
    }

    #[test]
    fn fleet_needs_servers_a_name_and_one_user() {
        let has = |args: &[&str], text: &str| {
            let found = errors(&[&["serve"], args].concat());
            found.iter().any(|error| error.contains(text))
        };
        let missing = "--nats (or LEASEMUX_NATS) is missing: the NATS servers that --fleet is about";
        assert!(has(&["--fleet=east"], missing));
        let servers = "--nats=nats://127.0.0.1:4222";
        assert!(has(&[servers], "--fleet (or LEASEMUX_FLEET) is missing"));
        let users = ["--nats-creds=/dev/null", "--nats-nkey=/dev/null"];
        let is_one = has(&[&[servers], &users[..]].concat(), "a gateway is one user");
        assert!(is_one);
        let without = "this program was built without the feature `nats`";
        assert_eq!(has(&[servers], without), !cfg!(feature = "nats"));
    }

    #[test]
    fn serve_config_has_defaults_and_given_leases() {
        let dir = tempfile::tempdir().unwrap();
        let sdl = dir.path().join("a.yaml");
        fs::write(&sdl, "").unwrap();
        let lease = format!("{LEASE}={}", sdl.display());
        let trust = dir.path().to_str().unwrap();
        let args = ["leasemux", "serve", "--platform", "local", "--lease", &lease, "--trust-dir", trust];
        let Ok(Command::Serve(config)) = read(args, &StartChecks::NONE) else { panic!() };
        let limits = &config.limits;
        assert_eq!((limits.connection.max, limits.connection.max_per_peer), (16_384, 1_024));
        assert_eq!(limits.quota.auth_failures_per_minute, 60);
        assert_eq!(limits.token_lifetime, Duration::from_secs(3_600));
        assert_eq!(limits.ring_max_bytes, 4 << 20);
        assert_eq!(limits.lame_duck, None);
        assert_eq!(config.leases, [(LEASE.parse().unwrap(), sdl)]);
        assert_eq!(config.listen, "127.0.0.1:8446".parse().unwrap());
        assert_eq!(config.admin_listen, "127.0.0.1:9446".parse().unwrap());
        assert_eq!(config.data_dir.to_str(), Some(".leasemux"));
        let store = (config.local.rotate_max_bytes, config.local.rotate_files, config.local.kept_runs);
        assert_eq!(store, (10 << 20, 5, 10));
        assert_eq!(config.local.stop_grace, Duration::from_secs(10));
        assert!(!config.lifeline && config.tls_cert.is_none());
        let twice =
            ["serve", "--platform", "local", "--lease", &lease, "--lease", &lease, "--trust-dir", trust];
        assert!(errors(&twice)[0].ends_with("must be given once only"));
    }

    #[test]
    fn attach_takes_the_leases_of_another_gateway() {
        let dir = tempfile::tempdir().unwrap();
        let sdl = dir.path().join("a.yaml");
        fs::write(&sdl, "").unwrap();
        let (lease, dir) = (format!("{LEASE}={}", sdl.display()), dir.path().to_str().unwrap());
        let words = |platform: &'static str, more: &[&'static str]| {
            [&["serve", "--platform", platform, "--attach", dir, "--trust-dir", dir], more].concat()
        };
        let local = words("local", &[]);
        let args = std::iter::once("leasemux").chain(local.iter().copied());
        let Ok(Command::Serve(config)) = read(args, &StartChecks::NONE) else { panic!() };
        assert_eq!((config.attach, config.leases), (Some(dir.into()), vec![]));
        assert_eq!(
            errors(&[&local, &["--lease", &lease][..]].concat()),
            ["--attach and --lease do not go together: the other gateway has the leases"]
        );
        assert_eq!(
            errors(&[&local, &["--data-dir", dir][..]].concat()),
            ["--attach is the --data-dir: they must differ"]
        );
        let provider = LEASE.rsplit('/').next().unwrap();
        assert_eq!(
            errors(&words("kube", &["--provider", provider])),
            ["--attach goes with --platform local"]
        );
    }

    #[test]
    fn canary_needs_a_service_and_has_defaults() {
        let missing = |more: &[&str]| errors(&[&["canary", LEASE, "--token", "a.b.c"], more].concat());
        assert_eq!(missing(&[]), ["--service (or LEASEMUX_SERVICE) is missing: the service that counts"]);
        let found = missing(&["--replica", "1"]);
        assert!(found.len() == 1 && found[0].contains("--service"), "{found:?}");
        let args = ["leasemux", "canary", LEASE, "--token", "a.b.c", "--service", "counter", "--for", "1m"];
        let Ok(Command::Canary(config)) = read(args, &StartChecks::NONE) else { panic!() };
        assert_eq!(config.metrics_listen, "127.0.0.1:9447".parse().unwrap());
        assert_eq!((config.on_lag, config.log_format), (OnLag::Refill, Format::Text));
        assert_eq!(config.duration, Some(Duration::from_secs(60)));
    }

    #[test]
    fn logs_flags_select_services_and_output() {
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
        let Ok(Command::Logs(config)) = read(args, &StartChecks::NONE) else { panic!() };
        assert_eq!(config.call.services.iter().map(ToString::to_string).collect::<Vec<_>>(), ["web", "api"]);
        assert_eq!((config.call.replicas, config.follow, config.tail), (vec![1], true, Some(0)));
        assert_eq!((config.call.target.ca, config.call.target.insecure), (None, false));
        let Ok(Command::Logs(config)) =
            read(["leasemux", "logs", LEASE, "--follow=false", "-o", "json"], &StartChecks::NONE)
        else {
            panic!()
        };
        assert_eq!((config.follow, config.output), (false, LogsOutput::Json));
        let many: Vec<String> = (0..=1024).map(|n| format!("--replica={n}")).collect();
        let args: Vec<&str> =
            ["logs", LEASE, "--service=web"].into_iter().chain(many.iter().map(String::as_str)).collect();
        assert!(errors(&args)[0].contains("at most 1024"));
        let below = errors(&["logs", LEASE, "--tail", "-2"]);
        assert!(below[0].starts_with("--tail \"-2\": must be a number of lines, or all"), "{below:?}");
    }

    fn logs(args: &[&str]) -> LogsConfig {
        let args = ["leasemux", "logs", LEASE].into_iter().chain(args.iter().copied());
        match read(args, &StartChecks::NONE) {
            Ok(Command::Logs(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn common_formats_of_tail_and_times_are_accepted() {
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
        assert_eq!(config.since, Some(TimeSpec::Ago(Duration::from_secs(36 * 3_600))));
        assert!(matches!(config.until, Some(TimeSpec::At(_))));
    }

    #[test]
    fn until_with_contradicting_flags_is_rejected() {
        for (args, expected) in [
            (&["-f", "--until", "1h"][..], "--until and --follow do not go together"),
            (&["-n", "5", "--until", "1h"], "--until and --tail do not go together"),
            (&["--since", "1h", "--until", "2h"], "--until is before --since"),
            (&["--since", "2026-01-31", "--until", "2026-01-30"], "--until is before --since"),
        ] {
            let args = [&["logs", LEASE], args].concat();
            let found = errors(&args);
            assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
        }
        assert_eq!(logs(&["-n", "all", "--until", "1h"]).tail, None);
    }
}
