//! The last of what guests wrote, kept in a bounded ring each.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::protocol::{NoSuchTask, Selector};

/// Bytes that a ring keeps.
pub const CONSOLE_BYTES: usize = 256 * 1024;

/// The consoles of a cell's replicas, which are numbered in the order of the
/// configuration. Readers get copies, bounded by what they ask for.
#[derive(Debug, Default)]
pub struct Consoles(Vec<Console>);

#[derive(Debug)]
struct Console {
    task: String,
    index: u32,
    ring: Arc<ConsoleRing>,
}

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Position of the first byte, counted from the first ever written. Later
    /// than asked for when what was asked for is no longer kept.
    pub start: u64,
    /// The bytes, as the guest wrote them: not text until somebody checks.
    pub bytes: Vec<u8>,
}

impl Consoles {
    /// Of these replicas: their tasks' names, their indices, and where they write.
    pub(crate) fn new(replicas: impl IntoIterator<Item = (String, u32, Arc<ConsoleRing>)>) -> Self {
        let replicas = replicas.into_iter();
        Self(
            replicas
                .map(|(task, index, ring)| Console { task, index, ring })
                .collect(),
        )
    }

    /// Numbers and names, such as `web.0`, of the replicas that a selector means.
    ///
    /// # Errors
    ///
    /// When it means none.
    pub fn find(&self, selector: &Selector) -> Result<Vec<(usize, String)>, NoSuchTask> {
        let numbered = self.0.iter().enumerate();
        let found: Vec<_> = numbered
            .filter(|(_, it)| selector.matches(&it.task, it.index))
            .map(|(replica, it)| (replica, format!("{}.{}", it.task, it.index)))
            .collect();
        if found.is_empty() {
            let selector = selector.clone();
            return Err(NoSuchTask { selector });
        }
        Ok(found)
    }

    /// What is kept of a replica's console from position `from` on, at most `limit`
    /// bytes. A number that is no replica's has written nothing.
    #[must_use]
    pub fn read(&self, replica: usize, from: u64, limit: usize) -> Piece {
        let nothing = Piece {
            start: from,
            bytes: Vec::new(),
        };
        let console = self.0.get(replica);
        console.map_or(nothing, |console| console.ring.read(from, limit))
    }

    /// How many bytes a replica ever wrote: where the next will go.
    #[must_use]
    pub fn end(&self, replica: usize) -> u64 {
        self.0.get(replica).map_or(0, |console| console.ring.end())
    }
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

    /// Takes over what another ring has, from where this one has nothing.
    pub(crate) fn go_on(&self, piece: &Piece) {
        let mut inner = self.lock();
        let kept = u64::try_from(inner.bytes.len()).unwrap_or(u64::MAX);
        let end = inner.start.saturating_add(kept);
        if piece.start > end {
            inner.bytes.clear();
            inner.start = piece.start;
        }
        drop(inner);
        let known = usize::try_from(end.saturating_sub(piece.start)).unwrap_or(usize::MAX);
        self.append(piece.bytes.get(known..).unwrap_or_default());
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
    use std::sync::Arc;

    use super::{CONSOLE_BYTES, ConsoleRing, Consoles};

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
    fn a_ring_goes_on_where_another_was() {
        let ring = ConsoleRing::default();
        ring.append(b"one two");
        let other = ConsoleRing::default();
        other.go_on(&ring.read(4, 100));
        assert_eq!((other.end(), other.read(0, 100).start), (7, 4));
        ring.append(b" three");
        // What is known already is not written twice.
        other.go_on(&ring.read(0, 100));
        assert_eq!(other.read(0, 100).bytes, b"two three");
        other.append(b"!");
        ring.go_on(&other.read(0, 100));
        ring.go_on(&other.read(0, 100));
        assert_eq!(ring.read(0, 100).bytes, b"one two three!");
        assert_eq!(ring.end(), other.end());
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

    #[test]
    fn a_reader_gets_copies_of_what_it_names() {
        let rings: [Arc<ConsoleRing>; 3] = Default::default();
        let names = [("web", 0), ("web", 1), ("db", 0)].into_iter();
        let written = names.zip(&rings);
        let consoles = Consoles::new(
            written.map(|((task, index), ring)| (task.to_owned(), index, Arc::clone(ring))),
        );
        rings[1].append(b"hello");
        let find = |text: &str| consoles.find(&text.parse().unwrap());
        let web = [(0, "web.0".to_owned()), (1, "web.1".to_owned())];
        assert_eq!(find("web").unwrap(), web);
        assert_eq!(find("db").unwrap(), [(2, "db.0".to_owned())]);
        assert!(find("db.1").is_err() && find("nope").is_err());
        assert_eq!(consoles.read(1, 1, 3).bytes, b"ell");
        assert_eq!(
            (consoles.end(1), consoles.end(0), consoles.end(9)),
            (5, 0, 0)
        );
        assert_eq!(consoles.read(9, 7, 3).bytes, b"");
    }
}
