//! The time-stamp counter, which guests read without an exit.

#![expect(unsafe_code, reason = "reading the time-stamp counter")]

use std::time::{SystemTime, UNIX_EPOCH};

use wharf_abi::Clock;

/// Reads the host's time-stamp counter.
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 CPU and touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// A guest clock that starts now, on a TSC of `tsc_khz`.
pub(crate) fn clock_from_now(tsc_khz: u32) -> Option<Clock> {
    Clock::new(tsc(), tsc_khz, wall_ns())
}

/// A guest clock that shows `monotonic_ns` now, whether or not this machine has been up for
/// so long; none when no clock can.
pub(crate) fn clock_going_on(tsc_khz: u32, monotonic_ns: u64) -> Option<Clock> {
    let mut clock = clock_from_now(tsc_khz)?;
    let ticks = (u128::from(monotonic_ns) << 32).checked_div(clock.ns_per_tick_q32.into())?;
    let ticks = u64::try_from(ticks).ok().filter(|it| *it < 1 << 62)?;
    clock.tsc_base = clock.tsc_base.wrapping_sub(ticks);
    clock.wall_base_ns = clock.wall_base_ns.saturating_sub(monotonic_ns);
    Some(clock)
}

fn wall_ns() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH);
    let ns = wall.unwrap_or_default().as_nanos();
    ns.try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{clock_going_on, tsc};

    #[test]
    fn a_clock_goes_on_where_it_was() {
        // The last is longer than any machine has been up.
        for was in [0, 1, 999_999_999, 3_600_000_000_000, 1 << 59] {
            let clock = clock_going_on(4_000_000, was).unwrap();
            let now = clock.monotonic_ns(tsc());
            assert!(
                (was.saturating_sub(2)..was + 60_000_000_000).contains(&now),
                "{was} {now}"
            );
            let wall = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
            assert!(clock.wall_ns(tsc()).abs_diff(wall) < 60_000_000_000);
        }
        assert!(clock_going_on(4_000_000, u64::MAX).is_none());
    }
}
