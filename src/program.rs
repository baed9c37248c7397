//! The program: parses the command line and runs the command.
//!
//! It is in the library, not in `main.rs`: there, all that it runs would be compiled a second time.
//!
//! [`crate::client::exit::Exit`] lists the exit codes; the help describes them.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use crate::client::exit::Exit;
use crate::client::output_style::OutputStyle;
use crate::client::{escape_json, escape_terminal, logs, restart, status, until_stdout_closed};
use crate::config::{self, ColorChoice, Command, Format, LoadError};
use crate::platform::local::shim;
use crate::{canary, demo, serve, ui};
use tokio::runtime::Runtime;

use self::identity::Failure;

mod complete;
mod context;
mod identity;
mod token;

/// Exit code after Ctrl-C, as shells report it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// The services of the demo.
const SAMPLE: &str = include_str!("../examples/shop.yaml");

/// First argument when the program runs as supervisor of one container process. Internal, so not in the help.
const SHIM: &str = "shim";

/// Runs the program with the arguments of the process, and returns its exit code. Must be called once, before
/// any other thread starts: as a supervisor, it forks.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    if arguments.get(1).is_some_and(|first| first == SHIM) {
        return shim::main(arguments.into_iter().skip(2));
    }
    if let Some(exit) = complete::answer(&arguments) {
        return exit;
    }
    let command = match config::read(arguments, &serve::START_CHECKS) {
        Ok(command) => command,
        Err(error) => return report_load_error(&error),
    };
    let runtime = match serve::main_runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("failed to start: {error}")),
    };
    let exit = run(&runtime, command);
    // Does not wait for threads that block on a write to a pipe without a reader.
    runtime.shutdown_background();
    exit
}

fn run(runtime: &Runtime, command: Command) -> ExitCode {
    match command {
        Command::Serve(config) => match runtime.block_on(serve::run(*config)) {
            Ok(()) => Exit::Done.into(),
            Err(error) => fail(&error.to_string()),
        },
        Command::Checked(note) => {
            if let Some(note) = note {
                // Standard error may be closed.
                let _ = writeln!(io::stderr(), "note: {note}");
            }
            print("the configuration is valid")
        }
        Command::Logs(config) => {
            let style =
                OutputStyle::of_process(config.output.format(), config.has_times(), config.form.color);
            let logs = logs::run(&config, io::stdout(), io::stderr(), style);
            runtime.block_on(until_stdout_closed(logs)).into()
        }
        Command::Status(config) => {
            let terminal = io::stdout().is_terminal();
            let status = status::run(&config, io::stdout(), io::stderr(), terminal);
            runtime.block_on(until_stdout_closed(status)).into()
        }
        Command::Restart(config) => {
            let terminal = io::stderr().is_terminal();
            runtime.block_on(restart::run(&config, io::stdout(), io::stderr(), terminal)).into()
        }
        Command::Ui(config) => match runtime.block_on(ui::run(&config, io::stdout())) {
            Ok(()) => Exit::Done.into(),
            Err(error) => {
                let (exit, reason) = error.into();
                end(exit, &reason)
            }
        },
        Command::IdentityNew(config) => match identity::new(&config.dir) {
            Ok(address) => print(&address.to_string()),
            Err(reason) => fail(&reason),
        },
        Command::IdentityImport(config) => match runtime.block_on(identity::import(config)) {
            Ok(address) => print(&address.to_string()),
            Err(Failure::Interrupted) => ExitCode::from(INTERRUPTED),
            Err(Failure::Reported(exit, reason)) => end(exit, &reason),
        },
        Command::TokenNew(config) => match token::new(&config) {
            Ok(token) => print(&token),
            Err((exit, reason)) => end(exit, &reason),
        },
        Command::TokenCheck(config) => match token::check(&config) {
            Ok(claims) => print(&escape_json(&claims)),
            Err((exit, reason)) => end(exit, &reason),
        },
        Command::Context(command) => match context::run(&command) {
            Ok(text) => write(escape_terminal(&text).as_bytes()),
            Err(error) => end(context::exit(&error), &error.to_string()),
        },
        Command::Canary(config) => match runtime.block_on(canary::run(&config, io::stdout())) {
            Ok(exit) => exit.into(),
            Err(error) => end(Exit::from(&error), &error.to_string()),
        },
        Command::Demo(config) => {
            let program = match env::current_exe() {
                Ok(program) => program,
                Err(error) => return fail(&format!("failed to find the path of this program: {error}")),
            };
            let parts = demo::Parts { program, sample: SAMPLE, new_identity: &identity::new };
            let style = OutputStyle::of_process(Format::Text, false, ColorChoice::Auto);
            runtime.block_on(demo::run(&config, &parts, io::stdout(), io::stderr(), style)).into()
        }
        Command::Completions(shell) => match config::completions(shell) {
            Ok(script) => write(&script),
            Err(error) => fail(&error.to_string()),
        },
        Command::Man(None) => match config::man() {
            Ok(page) => write(&page),
            Err(error) => fail(&error.to_string()),
        },
        Command::Man(Some(dir)) => match config::man_pages(&dir) {
            Ok(()) => Exit::Done.into(),
            Err(error) => fail(&format!("failed to write man pages to {}: {error}", dir.display())),
        },
    }
}

/// Prints help, version or the errors of a command line. Help and version succeed.
fn report_load_error(error: &LoadError) -> ExitCode {
    match error {
        LoadError::Clap(error) => {
            // The output may be closed.
            let _ = error.print();
            if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() }
        }
        LoadError::Invalid(errors) => {
            // They repeat names from files.
            let _ = writeln!(io::stderr(), "{}", escape_terminal(&errors.to_string()));
            Exit::Usage.into()
        }
    }
}

fn print(text: &str) -> ExitCode {
    write(format!("{text}\n").as_bytes())
}

fn write(bytes: &[u8]) -> ExitCode {
    let mut stdout = io::stdout();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Exit::Done.into(),
        // The reader has closed the pipe because it needs no more.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done.into(),
        Err(error) => fail(&format!("failed to write to standard output: {error}")),
    }
}

fn fail(reason: &str) -> ExitCode {
    end(Exit::Failed, reason)
}

fn end(exit: Exit, reason: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "leasemux: {}", escape_terminal(reason));
    exit.into()
}
