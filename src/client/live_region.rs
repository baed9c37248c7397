//! Region at the end of a terminal that is redrawn in place.

use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use super::Out;
use super::json::write_line;
use super::terminal::cut;

/// Assumed size of a terminal that does not report one.
const USUAL_SIZE: Size = Size { columns: 80, rows: 24 };

/// Size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) rows: usize,
}

/// Draws lines and replaces them later. Call [`LiveRegion::keep`] before other output to the same terminal.
pub(super) struct LiveRegion<'a> {
    out: Out<'a>,
    size: fn() -> Size,
    /// Number of drawn lines, which the next drawing replaces. Shared with [`super::interrupt`].
    drawn: Arc<Mutex<usize>>,
}

// === impl Size ===

impl Size {
    /// Returns the size of the terminal at standard output.
    pub(super) fn of_output() -> Self {
        Self::of(rustix::termios::tcgetwinsize(rustix::stdio::stdout()))
    }

    /// Returns the size of the terminal at standard error.
    pub(super) fn of_errors() -> Self {
        Self::of(rustix::termios::tcgetwinsize(rustix::stdio::stderr()))
    }

    /// As [`Size::of_errors`]. `None` while the program runs in the background of that terminal, as after `&`
    /// in a shell: what it drew would be in the middle of what a person types.
    pub(super) fn of_foreground_errors() -> Option<Self> {
        let foreground = rustix::termios::tcgetpgrp(rustix::stdio::stderr());
        // Fails if it is not the controlling terminal, which then has no jobs.
        let is_background = foreground.is_ok_and(|group| group != rustix::process::getpgrp());
        (!is_background).then(Self::of_errors)
    }

    fn of(reported: rustix::io::Result<rustix::termios::Winsize>) -> Self {
        let size = reported.map(|size| Self { columns: size.ws_col.into(), rows: size.ws_row.into() });
        size.ok().filter(|size| size.columns > 0 && size.rows > 0).unwrap_or(USUAL_SIZE)
    }
}

// === impl LiveRegion ===

impl<'a> LiveRegion<'a> {
    /// Creates an empty region on a terminal of this size, which may change.
    pub(super) fn new(out: impl Write + Send + 'a, size: fn() -> Size) -> Self {
        Self { out: Box::new(out), size, drawn: Arc::default() }
    }

    /// Replaces the drawn lines by as many of `lines` as fit on the terminal. `lines` must be escaped. Lines
    /// that scroll out of sight could not be erased.
    pub(super) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let size = (self.size)();
        // Held while writing, so that Ctrl-C erases all that is drawn.
        let mut drawn = self.drawn.lock();
        let mut picture = if *drawn > 0 { Self::erasure(*drawn) } else { Vec::new() };
        // The cursor needs the row below.
        let room = size.rows.saturating_sub(1).max(1);
        let shown = if lines.len() > room { room.saturating_sub(1) } else { lines.len() };
        for line in &lines[..shown] {
            writeln!(picture, "{}", cut(line, size.columns))?;
        }
        if shown < lines.len() {
            let more = format!("… and {} more", lines.len() - shown);
            writeln!(picture, "{}", cut(&more, size.columns))?;
        }
        *drawn = shown + usize::from(shown < lines.len());
        self.out.write_all(&picture)?;
        self.out.flush()
    }

    /// Erases the region and writes `lines` permanently.
    pub(super) fn print(&mut self, lines: &[String]) -> io::Result<()> {
        self.erase()?;
        for line in lines {
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }

    /// Erases the region and writes `object` permanently, as a line of JSON.
    pub(super) fn print_json(&mut self, object: &impl Serialize) -> io::Result<()> {
        self.erase()?;
        write_line(&mut self.out, object)?;
        self.out.flush()
    }

    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.erase()?;
        self.out.flush()
    }

    /// Makes the drawn lines permanent.
    pub(super) fn keep(&mut self) {
        *self.drawn.lock() = 0;
    }

    /// Keeps the number of drawn lines in `drawn`.
    pub(super) fn counted_in(self, drawn: &Arc<Mutex<usize>>) -> Self {
        Self { drawn: Arc::clone(drawn), ..self }
    }

    /// Returns what erases this many drawn lines.
    pub(super) fn erasure(drawn: usize) -> Vec<u8> {
        format!("\x1b[{drawn}A\r\x1b[J").into_bytes()
    }

    fn erase(&mut self) -> io::Result<()> {
        let drawn = std::mem::take(&mut *self.drawn.lock());
        if drawn > 0 { self.out.write_all(&Self::erasure(drawn)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Size {
        Size { columns: 10, rows: 4 }
    }

    fn drawn(pictures: &[&[&str]]) -> String {
        let mut out = Vec::new();
        let mut region = LiveRegion::new(&mut out, small);
        for picture in pictures {
            region.draw(&picture.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>()).unwrap();
        }
        drop(region);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn drawing_replaces_the_previous_one() {
        assert_eq!(drawn(&[&["a", "b"], &["c"], &["d"]]), "a\nb\n\x1b[2A\r\x1b[Jc\n\x1b[1A\r\x1b[Jd\n");
    }

    #[test]
    fn wide_characters_do_not_wrap_a_line() {
        assert_eq!(drawn(&[&["日本語日本", "日本語日本語"]]), "日本語日本\n日本語日…\n");
    }

    #[test]
    fn drawing_is_limited_to_the_visible_rows() {
        assert_eq!(drawn(&[&["0123456789", "0123456789x"]]), "0123456789\n012345678…\n");
        assert_eq!(drawn(&[&["a", "b", "c", "d", "e"], &[]]), "a\nb\n… and 3 m…\n\x1b[3A\r\x1b[J");
    }
}
