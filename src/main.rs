//! The program: reads what is asked for and calls who does it.
//!
//! Exit codes are those of [`leasemux::client::exit::Exit`]; the help tells them.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use leasemux::client::exit::Exit;
use leasemux::client::print::OutputStyle;
use leasemux::client::{demo, escape_json, harmless, logs, restart, status, until_reader_gone};
use leasemux::config::{self, Command, LoadError, Output};
use leasemux::platform::local::shim;
use leasemux::serve;
use tokio::runtime::Runtime;

use self::identity::Failure;

mod identity;
mod token;

/// The exit code of a program that Ctrl-C ended, as shells show it.
const INTERRUPTED: u8 = 130;

/// What the demo runs.
const SAMPLE: &str = include_str!("../examples/shop.yaml");

/// First argument of the program when it is the supervisor of one container process: not for people, so not in the help.
const SHIM: &str = "shim";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    if arguments.get(1).is_some_and(|first| first == SHIM) {
        // Before there is a second thread: the shim forks and execs.
        return shim::main(arguments.into_iter().skip(2));
    }
    let task = match config::read(arguments, &serve::PROBES) {
        Ok(task) => task,
        Err(stop) => return refuse(&stop),
    };
    let runtime = match serve::main_runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start: {error}")),
    };
    let exit = run(&runtime, task);
    // A thread that hangs in a write to a pipe that nobody reads does not keep the program from ending.
    runtime.shutdown_background();
    exit
}

fn run(runtime: &Runtime, task: Command) -> ExitCode {
    match task {
        Command::Serve(config) => match runtime.block_on(serve::run(*config)) {
            Ok(()) => Exit::Done.into(),
            Err(error) => fail(&error.to_string()),
        },
        Command::Checked(notes) => {
            for note in notes {
                // Nobody to tell if this cannot be printed.
                let _ = writeln!(io::stderr(), "note: {note}");
            }
            say("nothing is wrong with this configuration")
        }
        Command::Logs(config) => {
            let look = OutputStyle::of_process(config.output, config.timestamps);
            let logs = logs::run(&config, io::stdout(), io::stderr(), look);
            runtime.block_on(until_reader_gone(logs)).into()
        }
        Command::Status(config) => {
            let terminal = io::stdout().is_terminal();
            let status = status::run(&config, io::stdout(), io::stderr(), terminal);
            runtime.block_on(until_reader_gone(status)).into()
        }
        Command::Restart(config) => {
            let terminal = io::stderr().is_terminal();
            runtime.block_on(restart::run(&config, io::stdout(), io::stderr(), terminal)).into()
        }
        Command::IdentityNew(config) => match identity::new(&config.dir) {
            Ok(address) => say(&address.to_string()),
            Err(reason) => fail(&reason),
        },
        Command::IdentityImport(config) => match runtime.block_on(identity::import(config)) {
            Ok(address) => say(&address.to_string()),
            Err(Failure::Interrupted) => ExitCode::from(INTERRUPTED),
            Err(Failure::Reported(exit, reason)) => end(exit, &reason),
        },
        Command::TokenNew(config) => match token::new(&config) {
            Ok(token) => say(&token),
            Err((exit, reason)) => end(exit, &reason),
        },
        Command::TokenCheck(config) => match token::check(&config) {
            Ok(claims) => say(&escape_json(&claims)),
            Err((exit, reason)) => end(exit, &reason),
        },
        Command::Demo(config) => {
            let program = match env::current_exe() {
                Ok(program) => program,
                Err(error) => return fail(&format!("cannot find this program: {error}")),
            };
            let parts = demo::Parts { program, sample: SAMPLE, new_identity: &identity::new };
            let look = OutputStyle::of_process(Output::Text, false);
            runtime.block_on(demo::run(&config, &parts, io::stdout(), io::stderr(), look)).into()
        }
        Command::Completions(shell) => put(&config::completions(shell)),
        Command::Man(None) => match config::man() {
            Ok(page) => put(&page),
            Err(error) => fail(&error.to_string()),
        },
        Command::Man(Some(dir)) => match config::man_pages(&dir) {
            Ok(()) => Exit::Done.into(),
            Err(error) => fail(&format!("cannot write the pages into {}: {error}", dir.display())),
        },
    }
}

/// Help and version are answers; everything else is wrong usage, told by clap or by us.
fn refuse(stop: &LoadError) -> ExitCode {
    match stop {
        LoadError::Clap(error) => {
            // Nobody to tell if this cannot be printed.
            let _ = error.print();
            if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() }
        }
        LoadError::Faults(faults) => {
            let _ = writeln!(io::stderr(), "{faults}");
            Exit::Usage.into()
        }
    }
}

fn say(text: &str) -> ExitCode {
    put(format!("{text}\n").as_bytes())
}

fn put(bytes: &[u8]) -> ExitCode {
    let mut stdout = io::stdout();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Exit::Done.into(),
        // Who reads has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done.into(),
        Err(error) => fail(&format!("cannot write: {error}")),
    }
}

fn fail(reason: &str) -> ExitCode {
    end(Exit::Failed, reason)
}

fn end(exit: Exit, reason: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "leasemux: {}", harmless(reason));
    exit.into()
}
