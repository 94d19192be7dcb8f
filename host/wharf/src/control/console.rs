//! Consoles as JSON lines.

use std::sync::Arc;

use super::feed::{Feed, push_line};
use super::resources::{ConsolePiece, ConsoleQuery};
use crate::cell::Cell;
use crate::cell::console::{Consoles as Kept, Piece};
use crate::cell::protocol::{NoSuchTask, Selector};

/// Bytes of a console in one line.
const PIECE_BYTES: usize = 16 * 1024;

/// Bytes of lines in one chunk, more or less: what a follower that does not read
/// keeps in memory, however many replicas it follows.
const CHUNK_BYTES: usize = 64 * 1024;

/// The consoles of some replicas, each read on from where it was.
pub(super) struct Consoles {
    cell: Arc<Cell>,
    readers: Vec<Reader>,
}

struct Reader {
    /// The number that the cell gave it.
    replica: usize,
    task: String,
    /// Position of the next byte.
    next: u64,
    /// Where to end, unless it is followed. A guest may write faster than a
    /// client reads, so that it would never be up to date.
    until: Option<u64>,
}

impl Consoles {
    pub(super) fn new(
        cell: Arc<Cell>,
        selector: &Selector,
        query: ConsoleQuery,
    ) -> Result<Self, NoSuchTask> {
        let kept = cell.consoles();
        let reader = |(replica, task)| Reader {
            replica,
            task,
            next: match query.tail {
                Some(lines) => tail(&kept.read(replica, 0, usize::MAX), lines),
                None => 0,
            },
            until: (!query.follow).then(|| kept.end(replica)),
        };
        let readers = kept.find(selector)?.into_iter().map(reader).collect();
        Ok(Self { cell, readers })
    }
}

impl Feed for Consoles {
    fn take(&mut self, is_last: bool) -> Vec<u8> {
        let mut lines = Vec::new();
        let mut read = 0_usize;
        for reader in &mut self.readers {
            if lines.len() >= CHUNK_BYTES {
                break;
            }
            read = read.saturating_add(1);
            if let Some(piece) = reader.take(self.cell.consoles(), is_last) {
                push_line(&mut lines, &piece);
            }
        }
        // Those that it did not come to are the first next time.
        let turn = read.min(self.readers.len());
        self.readers.rotate_left(turn);
        lines
    }
}

impl Reader {
    fn take(&mut self, kept: &Kept, is_last: bool) -> Option<ConsolePiece> {
        let limit = self.until.map_or(PIECE_BYTES, |until| {
            let left = until.saturating_sub(self.next);
            usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES))
        });
        let Piece { start, bytes } = kept.read(self.replica, self.next, limit);
        // A full piece is not the last, unless it ends where the reader does.
        let is_last = is_last && bytes.len() < PIECE_BYTES;
        let (text, length) = decode(&bytes, is_last);
        if length == 0 {
            return None;
        }
        self.next = start.saturating_add(length.try_into().unwrap_or(u64::MAX));
        Some(ConsolePiece {
            task: self.task.clone(),
            start,
            text,
        })
    }
}

/// Text of a piece, and how many bytes it is of. Leaves a character that is not
/// complete to the next piece, if there is to be one.
fn decode(bytes: &[u8], is_last: bool) -> (String, usize) {
    let incomplete = match bytes.utf8_chunks().last().map(|chunk| chunk.invalid()) {
        Some(tail) if !is_last => match std::str::from_utf8(tail) {
            Err(error) if error.error_len().is_none() => tail.len(),
            _ => 0,
        },
        _ => 0,
    };
    let length = bytes.len().saturating_sub(incomplete);
    let whole = bytes.get(..length).unwrap_or_default();
    (String::from_utf8_lossy(whole).into_owned(), length)
}

/// Position at which the last `lines` lines begin. What follows the last newline
/// is a line, if there is something.
fn tail(kept: &Piece, lines: usize) -> u64 {
    let text = kept.bytes.strip_suffix(b"\n").unwrap_or(&kept.bytes);
    let skip = match lines.checked_sub(1) {
        None => kept.bytes.len(),
        Some(newlines_within) => {
            let newlines = text.iter().enumerate().rev();
            newlines
                .filter(|(_, byte)| **byte == b'\n')
                .nth(newlines_within)
                .map_or(0, |(at, _)| at.saturating_add(1))
        }
    };
    kept.start
        .saturating_add(skip.try_into().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Consoles, PIECE_BYTES, decode, tail};
    use crate::cell::Cell;
    use crate::cell::console::Piece;
    use crate::control::fake;
    use crate::control::feed::Feed;
    use crate::control::resources::{ConsolePiece, ConsoleQuery};

    /// Reads all consoles of `web`, not following.
    fn read_web(cell: Cell) -> Consoles {
        let web = "web".parse().unwrap();
        Consoles::new(Arc::new(cell), &web, ConsoleQuery::default()).unwrap()
    }

    fn pieces(lines: &[u8]) -> Vec<ConsolePiece> {
        let lines = std::str::from_utf8(lines).unwrap();
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn the_last_lines_are_found() {
        for (text, lines, expected) in [
            ("a\nb\nc\n", 0, ""),
            ("a\nb\nc\n", 1, "c\n"),
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc\n", 9, "a\nb\nc\n"),
            ("a\nb", 1, "b"),
            ("\n\n", 1, "\n"),
            ("", 3, ""),
        ] {
            let bytes = text.as_bytes().to_vec();
            let start = usize::try_from(tail(&Piece { start: 100, bytes }, lines)).unwrap() - 100;
            assert_eq!(&text[start..], expected, "{text:?} {lines}");
        }
    }

    #[test]
    fn a_character_is_not_torn_apart() {
        assert_eq!(decode("aé".as_bytes(), false), ("aé".to_owned(), 3));
        assert_eq!(decode(b"a\xc3", false), ("a".to_owned(), 1));
        assert_eq!(decode(b"a\xc3", true), ("a\u{fffd}".to_owned(), 2));
        assert_eq!(
            decode(b"\xff\xffb", false),
            ("\u{fffd}\u{fffd}b".to_owned(), 3)
        );
        assert_eq!(decode(b"a\xff", false), ("a\u{fffd}".to_owned(), 2));

        let (cell, rings) = fake::cell();
        let text = "é".repeat(PIECE_BYTES);
        rings[0].append(b"x");
        rings[0].append(text.as_bytes());
        let mut consoles = read_web(cell);
        let mut all = String::new();
        loop {
            let lines = consoles.take(true);
            if lines.is_empty() {
                break;
            }
            all.extend(pieces(&lines).into_iter().map(|piece| piece.text));
        }
        assert_eq!(all, format!("x{text}"));
    }

    #[test]
    fn a_chunk_is_bounded_and_everybody_comes_to_it() {
        let replicas = (0..100).map(|index| fake::status("web", index));
        let (cell, rings) = fake::cell_of(replicas.collect());
        for ring in rings {
            // Each byte takes six in JSON.
            ring.append(&[0; PIECE_BYTES]);
        }
        let mut consoles = read_web(cell);
        let mut seen = std::collections::BTreeSet::new();
        loop {
            let lines = consoles.take(true);
            assert!(lines.len() < super::CHUNK_BYTES + 7 * PIECE_BYTES);
            if lines.is_empty() {
                break;
            }
            seen.extend(pieces(&lines).into_iter().map(|piece| piece.task));
        }
        assert_eq!(seen.len(), 100);
    }

    #[test]
    fn a_reader_that_does_not_follow_ends_where_the_console_was() {
        let (cell, rings) = fake::cell();
        rings[0].append(b"before");
        let mut consoles = read_web(cell);
        rings[0].append(b" after");
        let expected = ConsolePiece {
            task: "web.0".to_owned(),
            start: 0,
            text: "before".to_owned(),
        };
        assert_eq!(pieces(&consoles.take(true)), [expected]);
        assert_eq!(consoles.take(true), b"");
    }
}
