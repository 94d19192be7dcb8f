//! Timers for `async` code, and the clock behind them.
//!
//! These are `embassy-time`'s types over a tick of one microsecond of
//! [`monotonic`](crate::time::monotonic) time. Mind that [`Duration`] here is
//! that crate's; it converts from and to `core`'s.
//!
//! A timer must be polled by a task of this runtime, with that task's own
//! waker: a combinator that makes its own wakers (such as `FuturesUnordered`)
//! panics when a timer is polled in it. Spawn a task for each instead.

use core::cell::RefCell;
use core::task::Waker;

use critical_section::Mutex;
use embassy_time_driver::{Driver, time_driver_impl};
use embassy_time_queue_utils::Queue;
use wharf_abi::hypercall::FOREVER;

pub use embassy_time::{
    Duration, Instant, Ticker, TimeoutError, Timer, WithTimeout, with_deadline, with_timeout,
};

use crate::time::monotonic_ns;

const NS_PER_TICK: u64 = 1_000;
const _: () = assert!(embassy_time_driver::TICK_HZ * NS_PER_TICK == 1_000_000_000);

/// Wakes every task whose timer is due and returns the monotonic time, in
/// nanoseconds, of the next that is not; [`FOREVER`] when there is none.
pub(crate) fn wake_due() -> u64 {
    let now = DRIVER.now();
    critical_section::with(|cs| deadline_ns(DRIVER.queue.borrow_ref_mut(cs).next_expiration(now)))
}

/// The time of a tick, or [`FOREVER`] for the last one: the queue's "never".
fn deadline_ns(tick: u64) -> u64 {
    tick.checked_mul(NS_PER_TICK).unwrap_or(FOREVER)
}

struct TscDriver {
    queue: Mutex<RefCell<Queue>>,
}

time_driver_impl!(static DRIVER: TscDriver = TscDriver { queue: Mutex::new(RefCell::new(Queue::new())) });

impl Driver for TscDriver {
    fn now(&self) -> u64 {
        monotonic_ns() / NS_PER_TICK
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        // No alarm to set: the run loop asks for the next deadline before it waits.
        critical_section::with(|cs| self.queue.borrow_ref_mut(cs).schedule_wake(at, waker));
    }
}

#[cfg(test)]
mod tests {
    use wharf_abi::hypercall::FOREVER;

    use super::deadline_ns;

    #[test]
    fn no_timer_is_no_deadline() {
        assert_eq!(deadline_ns(7), 7_000);
        assert_eq!(deadline_ns(u64::MAX), FOREVER);
    }
}
