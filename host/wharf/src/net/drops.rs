//! Frames that went nowhere, counted.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use wharf_machine::device::Way;

use super::board::lock;

/// The counters of all interfaces, as this thread sees them (proc_pid_net(5)).
const COUNTERS: &str = "/proc/thread-self/net/dev";

/// Where in a line of them, behind the name, is what was not sent out of an interface.
/// Out of a tap's goes what is for its guest.
const DROPPED_AT: usize = 11;

/// What is counted of a replica's frames that nobody got, over all its generations.
#[derive(Debug, Default)]
pub struct FrameDrops {
    sent: AtomicU64,
    received: AtomicU64,
    /// Tap interfaces that it has, at which the kernel counts.
    taps: Mutex<BTreeMap<String, AtTap>>,
}

/// What the kernel has dropped at an interface.
#[derive(Clone, Copy, Debug)]
struct AtTap {
    /// Before the replica had it.
    before: u64,
    /// Since then, when it was looked at last.
    since: u64,
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

    /// Has these counts: of frames for the replica, and of its own.
    pub(crate) fn count_on(&self, received: u64, sent: u64) {
        self.received.store(received, Ordering::Relaxed);
        self.sent.store(sent, Ordering::Relaxed);
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
        let mut taps = lock(&self.taps);
        look(&mut taps);
        let at_taps = taps.values().map(|it| it.since);
        let counted = self.received.load(Ordering::Relaxed);
        at_taps.fold(counted, u64::saturating_add)
    }

    /// Counts what the kernel drops at a tap interface from now on.
    pub(super) fn begin(&self, interface: &str) {
        let before = dropped(&counters(), interface).unwrap_or(0);
        let at = AtTap { before, since: 0 };
        lock(&self.taps).insert(interface.to_owned(), at);
    }

    /// The interface is the replica's no more.
    pub(super) fn end(&self, interface: &str) {
        let mut taps = lock(&self.taps);
        look(&mut taps);
        if let Some(at) = taps.remove(interface) {
            self.received.fetch_add(at.since, Ordering::Relaxed);
        }
    }
}

/// Takes in what the kernel has counted. Of an interface that is gone, or is another by
/// now, what was seen last stays.
fn look(taps: &mut BTreeMap<String, AtTap>) {
    if taps.is_empty() {
        return;
    }
    let counters = counters();
    for (interface, at) in taps {
        let now = dropped(&counters, interface).unwrap_or(0);
        at.since = at.since.max(now.saturating_sub(at.before));
    }
}

fn counters() -> String {
    fs::read_to_string(COUNTERS).unwrap_or_default()
}

/// What was dropped on its way out of an interface.
fn dropped(counters: &str, interface: &str) -> Option<u64> {
    let mut lines = counters.lines().filter_map(|line| line.split_once(':'));
    let (_, numbers) = lines.find(|(name, _)| name.trim_start() == interface)?;
    numbers
        .split_ascii_whitespace()
        .nth(DROPPED_AT)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use wharf_machine::device::Way;

    use super::{AtTap, FrameDrops, dropped};
    use crate::net::board::lock;

    const COUNTERS: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 2776770   11307    0    0    0     0          0         0  2776770   11307    0    0    0     0       0          0
  tap0:       1       2    3    4    5     6          7         8        9      10   11   12   13    14      15         16
 tap01:1 2 3 4 5 6 7 8 9 10 11 18446744073709551616 13 14 15 16
";

    #[test]
    fn the_kernels_counter_is_found_by_the_whole_name() {
        assert_eq!(dropped(COUNTERS, "tap0"), Some(12));
        assert_eq!(dropped(COUNTERS, "lo"), Some(0));
        for none in ["tap", "tap01", "tap1", "", "face |bytes"] {
            assert_eq!(dropped(COUNTERS, none), None, "{none}");
        }
        assert_eq!(dropped("", "tap0"), None);
    }

    #[test]
    fn what_was_counted_at_an_interface_stays_when_it_is_gone() {
        let drops = FrameDrops::default();
        drops.count(Way::FromGuest);
        drops.count(Way::ToGuest);
        let at = AtTap {
            before: 5,
            since: 7,
        };
        lock(&drops.taps).insert("no such one".to_owned(), at);
        assert_eq!((drops.sent(), drops.received()), (1, 8));
        drops.end("no such one");
        assert_eq!((drops.sent(), drops.received()), (1, 8));
        drops.end("nor this one");
        drops.begin("no such one");
        assert_eq!((drops.sent(), drops.received()), (1, 8));
    }
}
