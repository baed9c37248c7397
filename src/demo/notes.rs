//! Messages of the demo between the lines of the printing follower.

use std::io;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::follow::{ConnectionChange, Sink};
use crate::client::print::Printer;
use crate::model::proto::lease::ServiceLogs;

/// Messages that wait for the printer, which takes them within [`DELAY`]. The demo has some ten in all.
const WAITING_MAX: usize = 16;

/// Longest time that a message waits while no lines arrive.
const DELAY: Duration = Duration::from_millis(50);

/// Sends messages to the printer.
#[derive(Debug)]
pub(super) struct Notes(mpsc::Sender<String>);

/// A printer that also prints [`Notes`].
pub(super) struct NotePrinter {
    printer: Printer<'static>,
    notes: mpsc::Receiver<String>,
}

/// Creates a printer, and the sender of its notes.
pub(super) fn notes(printer: Printer<'static>) -> (Notes, NotePrinter) {
    let (sender, notes) = mpsc::channel(WAITING_MAX);
    (Notes(sender), NotePrinter { printer, notes })
}

// === impl Notes ===

impl Notes {
    /// Adds a message for each line of a text. Waits while the printer is blocked.
    pub(super) async fn add(&self, text: &str) {
        for line in text.lines() {
            // A printer that ended has reported why.
            let _ = self.0.send(line.to_owned()).await;
        }
    }
}

// === impl NotePrinter ===

impl NotePrinter {
    /// Prints the remaining messages.
    pub(super) fn into_printer(mut self) -> Printer<'static> {
        // The summary follows, whose errors are reported.
        let _ = self.print_notes();
        self.printer
    }

    fn print_notes(&mut self) -> io::Result<()> {
        while let Ok(text) = self.notes.try_recv() {
            self.printer.message(&text)?;
        }
        Ok(())
    }
}

impl Sink for NotePrinter {
    fn entry(&mut self, entry: &ServiceLogs) -> io::Result<()> {
        self.print_notes()?;
        self.printer.entry(entry)
    }

    fn pause(&mut self) -> io::Result<()> {
        self.print_notes()?;
        self.printer.pause()
    }

    fn due(&self) -> Option<Instant> {
        let printer = self.printer.due();
        let notes = (!self.notes.is_closed()).then(|| Instant::now() + DELAY);
        match (printer, notes) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    fn on_due(&mut self) -> io::Result<()> {
        self.print_notes()?;
        if self.printer.due().is_some_and(|due| due <= Instant::now()) {
            self.printer.on_due()?;
        }
        Ok(())
    }

    fn connection(&mut self, change: &ConnectionChange<'_>) -> io::Result<()> {
        self.printer.connection(change)
    }
}
