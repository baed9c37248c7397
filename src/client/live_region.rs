//! A part of a terminal that is drawn anew in place.

use std::io::{self, Write};

use serde::Serialize;

use super::columns::cut;
use super::json::write_line;

/// What a terminal is taken for that does not tell its size.
const USUAL_SIZE: Size = Size { columns: 80, rows: 24 };

/// How much a terminal shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// Columns of a line.
    pub(super) columns: usize,
    /// Lines.
    pub(super) rows: usize,
}

/// Draws lines, and other ones in their place. Calls [`LiveRegion::keep`] before somebody else writes to the same terminal.
#[derive(Debug)]
pub(super) struct LiveRegion<W> {
    out: W,
    size: fn() -> Size,
    /// Lines that are to be replaced.
    drawn: usize,
}

// === impl Size ===

impl Size {
    /// Of the terminal that is this process's standard output.
    pub(super) fn of_output() -> Self {
        Self::of(rustix::termios::tcgetwinsize(rustix::stdio::stdout()))
    }

    /// Of the terminal that is this process's standard error.
    pub(super) fn of_errors() -> Self {
        Self::of(rustix::termios::tcgetwinsize(rustix::stdio::stderr()))
    }

    fn of(told: rustix::io::Result<rustix::termios::Winsize>) -> Self {
        let told = told.map(|size| Self { columns: size.ws_col.into(), rows: size.ws_row.into() });
        told.ok().filter(|size| size.columns > 0 && size.rows > 0).unwrap_or(USUAL_SIZE)
    }
}

// === impl Screen ===

impl<W: Write> LiveRegion<W> {
    /// On a terminal of this size, which may change.
    pub(super) fn new(out: W, size: fn() -> Size) -> Self {
        Self { out, size, drawn: 0 }
    }

    /// Puts `lines` in the place of what was drawn before, as much of them as the terminal shows. They must not hold anything that
    /// steers it.
    pub(super) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let size = (self.size)();
        self.back()?;
        // The cursor stands in the line below.
        let room = size.rows.saturating_sub(1).max(1);
        let shown = if lines.len() > room { room.saturating_sub(1) } else { lines.len() };
        for line in &lines[..shown] {
            writeln!(self.out, "{}", cut(line, size.columns))?;
        }
        self.drawn = shown;
        if shown < lines.len() {
            let more = format!("… and {} more", lines.len() - shown);
            writeln!(self.out, "{}", cut(&more, size.columns))?;
            self.drawn += 1;
        }
        self.out.flush()
    }

    /// Writes `lines` as they are, to stay.
    pub(super) fn print(&mut self, lines: &[String]) -> io::Result<()> {
        self.back()?;
        for line in lines {
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }

    /// Writes `object` as a line of JSON, to stay.
    pub(super) fn print_json(&mut self, object: &impl Serialize) -> io::Result<()> {
        self.back()?;
        write_line(&mut self.out, object)?;
        self.out.flush()
    }

    /// Takes away what was drawn.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.back()?;
        self.out.flush()
    }

    /// Leaves what was drawn where it is.
    pub(super) fn keep(&mut self) {
        self.drawn = 0;
    }

    /// To the beginning of what was drawn, which is taken away.
    fn back(&mut self) -> io::Result<()> {
        if self.drawn > 0 {
            write!(self.out, "\x1b[{}A\r\x1b[J", self.drawn)?;
            self.drawn = 0;
        }
        Ok(())
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
        let mut screen = LiveRegion::new(&mut out, small);
        for picture in pictures {
            screen.draw(&picture.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>()).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_picture_takes_the_place_of_another() {
        assert_eq!(drawn(&[&["a", "b"], &["c"], &["d"]]), "a\nb\n\x1b[2A\r\x1b[Jc\n\x1b[1A\r\x1b[Jd\n");
    }

    #[test]
    fn wide_characters_do_not_wrap_a_line() {
        assert_eq!(drawn(&[&["日本語日本", "日本語日本語"]]), "日本語日本\n日本語日…\n");
    }

    #[test]
    fn nothing_is_drawn_beyond_what_is_seen_since_it_could_not_be_taken_away() {
        assert_eq!(drawn(&[&["0123456789", "0123456789x"]]), "0123456789\n012345678…\n");
        assert_eq!(drawn(&[&["a", "b", "c", "d", "e"], &[]]), "a\nb\n… and 3 m…\n\x1b[3A\r\x1b[J");
    }
}
