//! The commands `identity new` and `identity import`.

use std::fs::File;
use std::io::{self, BufRead as _, IsTerminal as _, Read, Write as _};
use std::path::Path;

use crate::access::identity::IdentityFiles;
use crate::access::wallet::Mnemonic;
use crate::client::exit::Exit;
use crate::config::{ImportConfig, MnemonicSource};
use crate::model::id::Owner;
use crate::model::time::LogTime;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

/// Maximum size of a text with a mnemonic, in bytes: 24 words of 8 letters, and white space.
const MNEMONIC_MAX_BYTES: usize = 4 * 1024;

const PROMPT: &str = "Mnemonic (not shown): ";

/// Why no identity was imported.
pub(crate) enum Failure {
    /// Ctrl-C at the prompt.
    Interrupted,
    /// The exit code, and the reason.
    Reported(Exit, String),
}

/// Turns off the echo of the terminal at standard input until it is dropped.
struct EchoOff {
    before: Termios,
}

/// Creates an identity in `dir`.
pub(crate) fn new(dir: &Path) -> Result<Owner, String> {
    IdentityFiles::create(dir, LogTime::now()).map_err(|error| error.to_string())
}

/// Creates the identity of an existing account.
pub(crate) async fn import(config: ImportConfig) -> Result<Owner, Failure> {
    // First, because a failure after the prompt would waste the user's typing.
    IdentityFiles::check_absent(&config.dir).map_err(failed)?;
    let is_terminal = io::stdin().is_terminal();
    let (name, text) = match &config.mnemonic {
        Some(MnemonicSource::File(path)) => (path.display().to_string(), File::open(path).and_then(read)),
        Some(MnemonicSource::Input) if !is_terminal => ("standard input".to_owned(), read(io::stdin())),
        None if !is_terminal => {
            let reason = "there is no terminal to ask for the mnemonic: \
                          give --mnemonic-file FILE, or --mnemonic-file - to read standard input";
            return Err(Failure::Reported(Exit::Usage, reason.to_owned()));
        }
        Some(MnemonicSource::Input) | None => ("the line typed".to_owned(), prompt().await?),
    };
    let text = text.map_err(|error| failed(format!("{name}: {error}")))?;
    let text = std::str::from_utf8(&text).map_err(|_| failed(format!("{name} is not text")))?;
    let mnemonic = Mnemonic::parse(text).map_err(|error| failed(format!("{name} {error}")))?;
    IdentityFiles::import(&config.dir, &mnemonic, config.certificate.as_deref(), LogTime::now())
        .map_err(failed)
}

fn failed(reason: impl ToString) -> Failure {
    Failure::Reported(Exit::Failed, reason.to_string())
}

/// Reads to the end. The buffer has its full size from the start, because growing would leave copies in
/// memory.
fn read(source: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::with_capacity(MNEMONIC_MAX_BYTES + 1));
    source.take(MNEMONIC_MAX_BYTES as u64 + 1).read_to_end(&mut text)?;
    if text.len() > MNEMONIC_MAX_BYTES {
        return Err(io::Error::other(format!(
            "is larger than {MNEMONIC_MAX_BYTES} bytes, so not a mnemonic"
        )));
    }
    Ok(text)
}

/// Reads one line from the terminal without echo. Ctrl-C restores the echo.
async fn prompt() -> Result<io::Result<Zeroizing<Vec<u8>>>, Failure> {
    let no_terminal = |error| failed(format!("cannot ask on this terminal: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_terminal)?;
    let echo = EchoOff::new().map_err(no_terminal)?;
    let mut stderr = io::stderr();
    let _ = write!(stderr, "{PROMPT}").and_then(|()| stderr.flush());
    let line = tokio::task::spawn_blocking(|| {
        let mut line = Zeroizing::new(Vec::with_capacity(MNEMONIC_MAX_BYTES));
        io::stdin().lock().take(MNEMONIC_MAX_BYTES as u64).read_until(b'\n', &mut line).map(|_| line)
    });
    let line = tokio::select! {
        line = line => Some(line.unwrap_or_else(|panicked| Err(io::Error::other(panicked)))),
        _ = interrupt.recv() => None,
    };
    drop(echo);
    let _ = writeln!(stderr);
    line.ok_or(Failure::Interrupted)
}

// === impl EchoOff ===

impl EchoOff {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut without = before.clone();
        without.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &without)?;
        Ok(Self { before })
    }
}

impl Drop for EchoOff {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}
