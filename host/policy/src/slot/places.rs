//! Places for what may be done at the same time only so often.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many are taken.
#[derive(Debug, Default)]
pub(super) struct Places(AtomicUsize);

/// A place that is taken, until this is dropped.
#[derive(Debug)]
pub(super) struct Place<'a>(&'a Places);

impl Places {
    /// Takes one of so many places; none when all are taken.
    pub(super) fn enter(&self, of: usize) -> Option<Place<'_>> {
        let one_more = |taken: usize| taken.checked_add(1).filter(|&it| it <= of);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()
            .map(|_| Place(self))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::Places;

    #[test]
    fn a_place_can_be_had_again() {
        let places = Places::default();
        let (first, second) = (places.enter(2), places.enter(2));
        assert!(first.is_some() && second.is_some());
        assert!(places.enter(2).is_none());
        let third = places.enter(3);
        assert!(third.is_some(), "who may have more places gets one");
        drop((first, third));
        assert!(places.enter(2).is_some());
    }
}
