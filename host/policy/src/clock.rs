//! The host's monotonic clock, by which questions and the rules of a slot go.

use nix::time::{ClockId, clock_gettime};
use wharf_model::Instant;

/// What it shows.
#[must_use]
pub fn now() -> Instant {
    // The clock exists on every Linux.
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(std::time::Duration::ZERO, std::time::Duration::from);
    Instant::from_nanos(time.as_nanos().try_into().unwrap_or(u64::MAX))
}
