//! Time: read it without an exit, or sleep through it.
//!
//! The host says once how its clock follows from the time-stamp counter; a
//! guest reads the counter itself. `async` code sleeps with
//! [`timer`](crate::timer) instead of [`sleep`], which stops every task.

#![expect(unsafe_code, reason = "reads the time-stamp counter")]

use core::arch::x86_64::_rdtsc;
use core::time::Duration;

use wharf_abi::Interest;

use crate::boot::clock;
use crate::hypercall::wait_until_ns;

/// Returns the time since the host built the guest's boot page. Never goes back.
#[must_use]
pub fn monotonic() -> Duration {
    Duration::from_nanos(monotonic_ns())
}

/// Returns the time since 1970-01-01 00:00 UTC, as the host's clock had it at
/// the guest's start.
#[must_use]
pub fn wall() -> Duration {
    Duration::from_nanos(clock().wall_ns(tsc()))
}

/// Parks the whole guest for at least `duration`, usually with one exit.
pub fn sleep(duration: Duration) {
    let deadline_ns = monotonic_ns().saturating_add(as_nanos(duration));
    while monotonic_ns() < deadline_ns {
        wait_until_ns(deadline_ns, Interest::NONE);
    }
}

/// [`monotonic`] in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    clock().monotonic_ns(tsc())
}

/// A duration in nanoseconds; the longest possible one above 584 years.
pub(crate) fn as_nanos(duration: Duration) -> u64 {
    duration
        .as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::from(duration.subsec_nanos()))
}

fn tsc() -> u64 {
    // SAFETY: `rdtsc` needs nothing of the processor that x86-64 does not have,
    // and the host leaves it open to guests.
    unsafe { _rdtsc() }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::as_nanos;

    #[test]
    fn durations_saturate() {
        assert_eq!(as_nanos(Duration::new(3, 5)), 3_000_000_005);
        assert_eq!(as_nanos(Duration::MAX), u64::MAX);
    }
}
