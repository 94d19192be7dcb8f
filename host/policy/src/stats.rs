//! What is counted of a slot's calls.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets in which all calls of a slot are counted, in
/// nanoseconds; one bucket more takes the rest.
pub const BUCKETS_NS: [u64; 12] = [
    250,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    1_000_000,
    10_000_000,
    1_000_000_000,
];

/// Counters of one slot.
#[derive(Clone, Debug)]
pub(crate) struct Stats {
    /// Calls of the plugin in force, by how long they took. Always there: its
    /// bounds are good ones.
    current: Option<Histogram<u64>>,
    /// Calls of all plugins.
    pub(crate) total: CallTimes,
    /// Questions that a plugin failed to answer, of all plugins.
    pub(crate) strikes: u64,
    /// Strikes of the plugin in force.
    pub(crate) current_strikes: u64,
    /// Times that another plugin was put in.
    pub(crate) swaps: u64,
    /// For how long callers had to wait in the last of them.
    pub(crate) last_pause: Duration,
}

/// Calls counted by how long they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallTimes {
    /// Calls within each of [`BUCKETS_NS`] and above the one before it; the last
    /// number is of those above all.
    pub buckets: [u64; BUCKETS_NS.len() + 1],
    /// The sum of all times in nanoseconds.
    pub sum_ns: u64,
}

/// What was counted, for another process to count on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counted {
    /// Times of the plugin in force, in nanoseconds, with how often each was.
    current: Vec<(u64, u64)>,
    total: CallTimes,
    strikes: u64,
    current_strikes: u64,
    swaps: u64,
    last_pause: Duration,
}

impl Stats {
    /// What was counted so far.
    pub(crate) fn counted(&self) -> Counted {
        let times = self.current.iter().flat_map(Histogram::iter_recorded);
        Counted {
            current: times
                .map(|it| (it.value_iterated_to(), it.count_at_value()))
                .collect(),
            total: self.total,
            strikes: self.strikes,
            current_strikes: self.current_strikes,
            swaps: self.swaps,
            last_pause: self.last_pause,
        }
    }

    /// Counts on from there.
    pub(crate) fn count_on(counted: &Counted) -> Self {
        let mut stats = Self::new();
        if let Some(current) = &mut stats.current {
            for (value, count) in &counted.current {
                current.saturating_record_n(*value, *count);
            }
        }
        Self {
            total: counted.total,
            strikes: counted.strikes,
            current_strikes: counted.current_strikes,
            swaps: counted.swaps,
            last_pause: counted.last_pause,
            ..stats
        }
    }

    pub(crate) fn new() -> Self {
        Self {
            // Two digits are 20 KiB; times above a second are counted as one.
            current: Histogram::new_with_bounds(1, 1_000_000_000, 2).ok(),
            total: CallTimes::default(),
            strikes: 0,
            current_strikes: 0,
            swaps: 0,
            last_pause: Duration::ZERO,
        }
    }

    /// Books a call of the plugin in force.
    pub(crate) fn called(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if let Some(current) = &mut self.current {
            current.saturating_record(ns);
        }
        self.total.add(ns);
    }

    pub(crate) fn struck(&mut self) {
        self.strikes = self.strikes.saturating_add(1);
        self.current_strikes = self.current_strikes.saturating_add(1);
    }

    /// Another plugin is in force.
    pub(crate) fn begin(&mut self) {
        if let Some(current) = &mut self.current {
            current.reset();
        }
        self.current_strikes = 0;
    }

    pub(crate) fn calls(&self) -> u64 {
        self.current.as_ref().map_or(0, Histogram::len)
    }

    /// A quantile of the times of the plugin in force, in nanoseconds.
    pub(crate) fn quantile(&self, quantile: f64) -> u64 {
        let current = self.current.as_ref();
        current.map_or(0, |it| it.value_at_quantile(quantile))
    }
}

impl CallTimes {
    fn add(&mut self, ns: u64) {
        let place = BUCKETS_NS.partition_point(|bound| *bound < ns);
        if let Some(count) = self.buckets.get_mut(place) {
            *count = count.saturating_add(1);
        }
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets
            .iter()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Stats;

    #[test]
    fn calls_are_counted_by_their_time() {
        let mut stats = Stats::new();
        for us in 1..=100 {
            stats.called(Duration::from_micros(us));
        }
        assert_eq!((stats.calls(), stats.total.count()), (100, 100));
        let near = |found: u64, ns: u64| found.abs_diff(ns) * 100 <= ns;
        assert!(near(stats.quantile(0.5), 50_000), "{}", stats.quantile(0.5));
        assert!(near(stats.quantile(0.99), 99_000));
        // 1 µs is within the bucket of its name.
        assert_eq!(stats.total.buckets[2], 1);
        stats.begin();
        assert_eq!((stats.calls(), stats.total.count()), (0, 100));
        stats.called(Duration::from_secs(100));
        assert_eq!(stats.total.buckets[12], 1);
    }
}
