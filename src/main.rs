//! Entry point: see [`leasemux::program`].

use std::process::ExitCode;

fn main() -> ExitCode {
    leasemux::program::main()
}
