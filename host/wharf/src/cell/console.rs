//! The last of what a task wrote, kept in a bounded ring.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that a ring keeps.
pub const CONSOLE_BYTES: usize = 256 * 1024;

/// A task's console output, over all its generations. One thread appends, any
/// number read, none waits for another longer than a copy takes.
#[derive(Debug, Default)]
pub struct ConsoleRing {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    bytes: VecDeque<u8>,
    /// How many bytes were written before the first that is kept.
    start: u64,
}

/// A piece of a console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Position of the first byte, counted from the first ever written. Later
    /// than asked for when what was asked for is no longer kept.
    pub start: u64,
    /// The bytes, as the guest wrote them: not text until somebody checks.
    pub bytes: Vec<u8>,
}

impl ConsoleRing {
    /// Appends, dropping the oldest bytes for which there is no room.
    pub fn append(&self, bytes: &[u8]) {
        let mut inner = self.lock();
        inner.bytes.extend(bytes);
        let surplus = inner.bytes.len().saturating_sub(CONSOLE_BYTES);
        inner.bytes.drain(..surplus);
        inner.start = inner
            .start
            .saturating_add(surplus.try_into().unwrap_or(u64::MAX));
    }

    /// What is kept from position `from` on, at most `limit` bytes.
    #[must_use]
    pub fn read(&self, from: u64, limit: usize) -> Piece {
        let inner = self.lock();
        let start = from.max(inner.start);
        let skip = usize::try_from(start.saturating_sub(inner.start)).unwrap_or(usize::MAX);
        let bytes: Vec<u8> = inner.bytes.iter().skip(skip).take(limit).copied().collect();
        Piece { start, bytes }
    }

    /// How many bytes were ever written: where the next will go.
    #[must_use]
    pub fn end(&self) -> u64 {
        let inner = self.lock();
        let kept = u64::try_from(inner.bytes.len()).unwrap_or(u64::MAX);
        inner.start.saturating_add(kept)
    }

    /// A writer that panicked left bytes at worst, so the ring is still good.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{CONSOLE_BYTES, ConsoleRing};

    #[test]
    fn a_reader_goes_on_where_it_was() {
        let ring = ConsoleRing::default();
        ring.append(b"one ");
        assert_eq!(ring.read(0, 100).bytes, b"one ");
        ring.append(b"two");
        assert_eq!(ring.read(4, 100).bytes, b"two");
        assert_eq!(ring.read(4, 1).bytes, b"t");
        assert_eq!(ring.read(ring.end(), 100).bytes, b"");
        assert_eq!(ring.read(u64::MAX, 100).bytes, b"");
    }

    #[test]
    fn a_flood_keeps_the_last_of_it_and_says_where_that_starts() {
        let ring = ConsoleRing::default();
        for _ in 0..100 {
            ring.append(&[b'x'; 4096]);
        }
        ring.append(b"last");
        let piece = ring.read(0, usize::MAX);
        assert_eq!(piece.bytes.len(), CONSOLE_BYTES);
        assert!(piece.bytes.ends_with(b"xlast"));
        assert_eq!(piece.start, 100 * 4096 + 4 - CONSOLE_BYTES as u64);
        assert_eq!(ring.end(), 100 * 4096 + 4);
    }
}
