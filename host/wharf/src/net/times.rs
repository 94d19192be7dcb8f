//! How long things took, counted without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Steps between a time and twice that: what is said of one is 1/8 off at most.
const STEPS: u32 = 4;

/// One for less than 1 us, and [`STEPS`] for each of 24 doublings from there on; the
/// last counts everything from 16 s on.
const COUNTERS: usize = 1 + 4 * 24;

/// Counts of times, by size.
#[derive(Debug)]
pub struct Times([AtomicU64; COUNTERS]);

/// Counts at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimesThen([u64; COUNTERS]);

impl Default for Times {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; COUNTERS])
    }
}

impl Default for TimesThen {
    fn default() -> Self {
        Self([0; COUNTERS])
    }
}

impl Times {
    /// Counts one.
    pub fn add(&self, time: Duration) {
        let place = place(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        if let Some(counter) = self.0.get(place) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Has other counts, of which a version that knew fewer times has fewer.
    pub fn count_on(&self, counts: &[u64]) {
        let all = self
            .0
            .iter()
            .zip(counts.iter().chain(std::iter::repeat(&0)));
        for (to, from) in all {
            to.store(*from, Ordering::Relaxed);
        }
    }

    /// The counts now.
    #[must_use]
    pub fn now(&self) -> TimesThen {
        let mut then = TimesThen::default();
        for (to, from) in then.0.iter_mut().zip(&self.0) {
            *to = from.load(Ordering::Relaxed);
        }
        then
    }
}

impl TimesThen {
    /// The counters, from the shortest times to the longest.
    #[must_use]
    pub const fn counts(&self) -> &[u64] {
        &self.0
    }

    /// What was counted since an earlier moment.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = self.clone();
        for (count, before) in since.0.iter_mut().zip(&earlier.0) {
            *count = count.saturating_sub(*before);
        }
        since
    }

    /// The time that so many percent are not longer than, in nanoseconds; 0 when there
    /// is none.
    #[must_use]
    pub fn percentile(&self, percent: u64) -> u64 {
        let all: u64 = self.0.iter().sum();
        let wanted = all.saturating_mul(percent).div_ceil(100).max(1);
        let mut seen = 0_u64;
        for (place, count) in self.0.iter().enumerate() {
            seen = seen.saturating_add(*count);
            if seen >= wanted {
                return longest_us(place).saturating_mul(1000);
            }
        }
        0
    }
}

/// Which counter a time goes to: the first below 1 us, then [`STEPS`] a doubling.
fn place(us: u64) -> usize {
    let Some(doubling) = us.checked_ilog2() else {
        return 0;
    };
    let whole = 1_u64.checked_shl(doubling).unwrap_or(u64::MAX);
    let part = us.saturating_sub(whole).saturating_mul(STEPS.into());
    let step = part.checked_div(whole).unwrap_or(0);
    let place = u64::from(doubling)
        .saturating_mul(STEPS.into())
        .saturating_add(step)
        .saturating_add(1);
    usize::try_from(place).unwrap_or(COUNTERS).min(COUNTERS - 1)
}

/// The longest time that a counter counts.
fn longest_us(place: usize) -> u64 {
    let Some(place) = u64::try_from(place).ok().and_then(|it| it.checked_sub(1)) else {
        return 1;
    };
    let steps = u64::from(STEPS);
    let doubling = u32::try_from(place.checked_div(steps).unwrap_or(0)).unwrap_or(0);
    let step = place.checked_rem(steps).unwrap_or(0).saturating_add(1);
    let whole = 1_u64.checked_shl(doubling).unwrap_or(u64::MAX);
    let part = whole.saturating_mul(step).div_ceil(steps);
    whole.saturating_add(part)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Times, longest_us, place};

    #[test]
    fn each_time_is_within_what_its_counter_says() {
        for us in (0..5000).chain([1 << 20, (1 << 20) + 1, 15_000_000]) {
            let longest = longest_us(place(us));
            assert!(
                us <= longest && longest <= us + us / 4 + 1,
                "{us}: {longest}"
            );
        }
        place(u64::MAX);
    }

    #[test]
    fn percentiles_are_of_what_was_counted_meanwhile() {
        let times = Times::default();
        assert_eq!(times.now().percentile(50), 0);
        times.add(Duration::from_secs(10));
        let before = times.now();
        for us in 1..=100 {
            times.add(Duration::from_micros(us));
        }
        let since = times.now().since(&before);
        let (median, p99) = (since.percentile(50), since.percentile(99));
        assert!((50_000..=63_000).contains(&median), "{median}");
        assert!((99_000..=125_000).contains(&p99), "{p99}");
    }
}
