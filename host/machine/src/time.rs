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
    let tsc_base = tsc();
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Clock::new(
        tsc_base,
        tsc_khz,
        wall.as_nanos().try_into().unwrap_or(u64::MAX),
    )
}
