//! Text to the task's console.
//!
//! An exit costs more than formatting a line does, so [`print!`](crate::print)
//! and [`println!`](crate::println) collect what they write and hand it over at
//! the end: one exit for each call whose text fits [`LINE_MAX`].

use core::fmt::{self, Write};

use crate::hypercall;

/// Most bytes, line feed included, that one exit of
/// [`println!`](crate::println) writes.
///
/// Collected on the stack: small enough to stay within pages that a guest has
/// touched anyway.
pub const LINE_MAX: usize = 1024;

/// Writes bytes to the console, as they are, with one exit for each 4096.
#[inline(never)]
pub fn write(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match hypercall::console_write(bytes) {
            // The console is gone: nobody is left to tell.
            0 => return,
            taken => bytes = bytes.get(taken..).unwrap_or_default(),
        }
    }
}

/// Writes formatted text to the console: what [`print!`](crate::print) calls.
pub fn print(text: fmt::Arguments<'_>) {
    let mut line = Line::new(write);
    // A failure is the caller's own `Display`'s: what it wrote so far is shown.
    let _ = line.write_fmt(text);
    line.flush();
}

/// Writes formatted text and a line feed to the console: what [`println!`](crate::println) calls.
pub fn print_line(text: fmt::Arguments<'_>) {
    let mut line = Line::new(write);
    let _ = line.write_fmt(text);
    let _ = line.write_str("\n");
    line.flush();
}

/// Writes formatted text to the task's console.
#[macro_export]
macro_rules! print {
    ($($text:tt)*) => {
        $crate::console::print(::core::format_args!($($text)*))
    };
}

/// Writes a line of formatted text to the task's console, with one exit when it
/// fits [`LINE_MAX`](crate::console::LINE_MAX) bytes.
#[macro_export]
macro_rules! println {
    () => {
        $crate::println!("")
    };
    ($($text:tt)*) => {
        $crate::console::print_line(::core::format_args!($($text)*))
    };
}

/// The same as [`print!`](crate::print): a guest has one console.
#[macro_export]
macro_rules! eprint {
    ($($text:tt)*) => {
        $crate::print!($($text)*)
    };
}

/// The same as [`println!`](crate::println): a guest has one console.
#[macro_export]
macro_rules! eprintln {
    ($($text:tt)*) => {
        $crate::println!($($text)*)
    };
}

/// Collects pieces of text and passes them on in as few writes as it can.
struct Line<W: FnMut(&[u8])> {
    held: [u8; LINE_MAX],
    len: usize,
    write: W,
}

impl<W: FnMut(&[u8])> Line<W> {
    fn new(write: W) -> Self {
        Self {
            held: [0; LINE_MAX],
            len: 0,
            write,
        }
    }

    /// Writes what is held.
    fn flush(&mut self) {
        if let Some(held) = self.held.get(..self.len)
            && !held.is_empty()
        {
            (self.write)(held);
        }
        self.len = 0;
    }

    /// Holds a piece; returns whether it fitted.
    fn hold(&mut self, piece: &[u8]) -> bool {
        let room = self.held.get_mut(self.len..).unwrap_or_default();
        match room.get_mut(..piece.len()) {
            Some(room) => {
                room.copy_from_slice(piece);
                self.len += piece.len();
                true
            }
            None => false,
        }
    }
}

impl<W: FnMut(&[u8])> Write for Line<W> {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        let piece = piece.as_bytes();
        if !self.hold(piece) {
            self.flush();
            if !self.hold(piece) {
                (self.write)(piece);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use core::fmt::Write;

    use super::{LINE_MAX, Line};

    /// The sizes of the writes that pieces of these sizes turn into.
    fn writes(pieces: &[usize]) -> Vec<usize> {
        let mut seen = Vec::new();
        let mut all = Vec::new();
        let mut line = Line::new(|bytes: &[u8]| {
            seen.push(bytes.len());
            all.extend_from_slice(bytes);
        });
        let mut expected = String::new();
        for (at, &len) in pieces.iter().enumerate() {
            let piece = char::from(b'a' + (at % 26) as u8).to_string().repeat(len);
            line.write_str(&piece).unwrap();
            expected.push_str(&piece);
        }
        line.flush();
        line.flush();
        assert_eq!(all, expected.as_bytes());
        seen
    }

    #[test]
    fn a_line_that_fits_is_one_write() {
        assert_eq!(writes(&[5, 0, 7, 1]), [13]);
        assert_eq!(writes(&[LINE_MAX - 1, 1]), [LINE_MAX]);
    }

    #[test]
    fn nothing_is_no_write() {
        assert_eq!(writes(&[]), []);
        assert_eq!(writes(&[0, 0]), []);
    }

    #[test]
    fn a_piece_longer_than_a_line_is_not_cut_up() {
        assert_eq!(writes(&[LINE_MAX, 1]), [LINE_MAX, 1]);
        assert_eq!(writes(&[3, 5 * LINE_MAX, 2]), [3, 5 * LINE_MAX, 2]);
    }
}
