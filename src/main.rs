//! leasemux

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    // Before anything else, and before there is a second thread: see `platform::local::shim`.
    if args.next().is_some_and(|arg| arg == "shim") {
        return leasemux::platform::local::shim::main(args);
    }
    ExitCode::SUCCESS
}
