//! Time without an exit: the guest turns its own TSC into nanoseconds.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How to read time from the time-stamp counter.
///
/// The host keeps the guest's TSC equal to its own (offset 0), so both sides
/// compute the same monotonic time from the same constants, and a deadline
/// that a guest passes to [`Hypercall::Wait`](crate::Hypercall::Wait) means the
/// same instant to the host. The TSC is taken to be invariant (Intel SDM vol. 3
/// §19.17.1); `wharf doctor` says whether it is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default,
)]
#[repr(C)]
pub struct Clock {
    /// TSC value at monotonic time 0, which is when the host built the boot page: modulo
    /// 2⁶⁴, since a guest that goes on may be older than the machine that it is on by then.
    pub tsc_base: u64,
    /// Nanoseconds per TSC tick, as a fixed-point number with 32 fraction bits.
    pub ns_per_tick_q32: u64,
    /// Wall-clock time (UTC) at monotonic time 0, in nanoseconds since 1970.
    /// Not corrected afterwards.
    pub wall_base_ns: u64,
}

impl Clock {
    /// Makes the clock of a TSC that runs at `tsc_khz`, or `None` for 0 kHz.
    #[must_use]
    pub const fn new(tsc_base: u64, tsc_khz: u32, wall_base_ns: u64) -> Option<Self> {
        const NS_PER_MS_Q32: u64 = 1_000_000 << 32;
        match NS_PER_MS_Q32.checked_div(tsc_khz as u64) {
            Some(ns_per_tick_q32) => Some(Self {
                tsc_base,
                ns_per_tick_q32,
                wall_base_ns,
            }),
            None => None,
        }
    }

    /// Nanoseconds since monotonic time 0 when the TSC reads `tsc`; 0 for a reading from
    /// before it, which one of more than 2⁶³ ticks is taken for: 73 years at 4 GHz.
    #[must_use]
    pub const fn monotonic_ns(&self, tsc: u64) -> u64 {
        let since = tsc.wrapping_sub(self.tsc_base);
        let ticks = if since >> 63 == 0 { since } else { 0 };
        // 64 × 64 bits fit in 128: the product cannot overflow.
        let ns = (ticks as u128 * self.ns_per_tick_q32 as u128) >> 32;
        if ns > u64::MAX as u128 {
            u64::MAX
        } else {
            ns as u64
        }
    }

    /// Wall-clock nanoseconds since 1970 when the TSC reads `tsc`.
    #[must_use]
    pub const fn wall_ns(&self, tsc: u64) -> u64 {
        self.wall_base_ns.saturating_add(self.monotonic_ns(tsc))
    }
}

#[cfg(test)]
mod tests {
    use super::Clock;

    #[test]
    fn a_second_of_ticks_is_a_second() {
        for khz in [1_000, 999_999, 2_449_999, 3_000_000, 5_700_123] {
            let clock = Clock::new(77, khz, 5).unwrap();
            let ns = clock.monotonic_ns(77 + u64::from(khz) * 1_000);
            assert!(ns.abs_diff(1_000_000_000) <= 2, "{khz} kHz: {ns}");
            assert_eq!(clock.wall_ns(77), 5);
        }
    }

    #[test]
    fn a_year_of_ticks_is_off_by_less_than_20_ms() {
        let clock = Clock::new(0, 2_450_000, 0).unwrap();
        let year_s = 365 * 86_400;
        let ns = clock.monotonic_ns(2_450_000_000 * year_s);
        // One unit of the last of 32 fraction bits, relative to 0.4 ns a tick.
        assert!(ns.abs_diff(year_s * 1_000_000_000) < 20_000_000, "{ns}");
    }

    /// A guest of ten seconds goes on where the TSC has counted for one.
    #[test]
    fn a_clock_may_be_older_than_its_machine() {
        let second = 1_000_000_000_u64;
        let clock = Clock::new(second.wrapping_sub(10 * second), 1_000_000, 0).unwrap();
        assert_eq!(clock.monotonic_ns(second), 10 * second);
        assert_eq!(clock.monotonic_ns(2 * second), 11 * second);
    }

    #[test]
    fn readings_at_the_edges_saturate() {
        let clock = Clock::new(100, 1_000, u64::MAX).unwrap();
        assert_eq!((clock.monotonic_ns(0), clock.monotonic_ns(99)), (0, 0));
        assert_eq!(clock.monotonic_ns(100 + (1 << 63)), 0);
        assert_eq!(clock.monotonic_ns(99 + (1 << 63)), u64::MAX);
        assert_eq!(clock.wall_ns(99 + (1 << 63)), u64::MAX);
        assert_eq!(Clock::new(0, 0, 0), None);
    }
}
