//! Programs on a terminal of their own.

use std::fs::File;
use std::io::Write as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use super::process::{LOOK, PATIENCE, Text};

/// A program whose standard input and error output are a terminal. Killed on drop.
pub(crate) struct OnTerminal {
    child: Child,
    master: File,
    /// Held so that the terminal outlives the program.
    slave: File,
    shown: Arc<Text>,
}

// === impl OnTerminal ===

impl OnTerminal {
    /// Starts a program on a terminal of this width.
    pub(crate) fn start(mut command: Command, columns: u16) -> Self {
        let (master, slave) = terminal(columns);
        command.stdout(Stdio::from(slave.try_clone().unwrap()));
        Self::spawn(command, master, slave)
    }

    /// The same, with another standard output.
    pub(crate) fn start_with_output(mut command: Command, columns: u16, output: Stdio) -> Self {
        let (master, slave) = terminal(columns);
        command.stdout(output);
        Self::spawn(command, master, slave)
    }

    fn spawn(mut command: Command, master: File, slave: File) -> Self {
        let side = || Stdio::from(slave.try_clone().unwrap());
        // Colours depend on them.
        command.env_remove("NO_COLOR").env("TERM", "xterm-256color");
        let child = command.stdin(side()).stderr(side()).spawn().unwrap();
        let shown = Text::read(master.try_clone().unwrap());
        Self { child, master, slave, shown }
    }

    /// Types `text`.
    pub(crate) fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until `found` returns a value for what the terminal was sent so far.
    pub(crate) fn until<T>(&self, what: &str, found: impl FnMut(&str) -> Option<T>) -> T {
        self.shown.until(found).unwrap_or_else(|| panic!("no {what} in {:?}", self.shown.get()))
    }

    /// Waits until the terminal was sent `expected`.
    pub(crate) fn until_shown(&self, expected: &str) {
        self.until(expected, |shown| shown.contains(expected).then_some(()));
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Returns whether the terminal shows what is typed.
    pub(crate) fn echoes(&self) -> bool {
        tcgetattr(&self.slave).unwrap().local_modes.contains(LocalModes::ECHO)
    }

    /// Waits until the program ends.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "does not end: {:?}", self.shown.get());
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the program ends. Returns its status and everything that the terminal was sent.
    pub(crate) fn finish(mut self) -> (ExitStatus, String) {
        let status = self.wait();
        // The terminal ends with the last handle of the program's side.
        self.slave = File::open("/dev/null").unwrap();
        assert!(self.shown.until_end());
        (status, self.shown.get())
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn terminal(columns: u16) -> (File, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let slave = File::options().read(true).write(true).open(name).unwrap();
    let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&slave, size).unwrap();
    (master.into(), slave)
}
