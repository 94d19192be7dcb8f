//! Frames that went nowhere, counted.

use std::sync::atomic::{AtomicU64, Ordering};

use wharf_machine::device::Way;

/// What is counted of a replica's frames that nobody got, over all its generations.
#[derive(Debug, Default)]
pub struct FrameDrops {
    sent: AtomicU64,
    received: AtomicU64,
}

impl FrameDrops {
    /// Counts a frame.
    pub fn count(&self, way: Way) {
        let counter = match way {
            Way::FromGuest => &self.sent,
            Way::ToGuest => &self.received,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts what another life of the replica counted, which is over.
    pub(crate) fn absorb(&self, other: &Self) {
        self.sent.fetch_add(other.sent(), Ordering::Relaxed);
        self.received.fetch_add(other.received(), Ordering::Relaxed);
    }

    /// Frames that the replica sent, and that were not from its own address, too short
    /// or too long, or more than the wire took.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Frames that were for the replica, and that it had no room for, or that were too
    /// long.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}
