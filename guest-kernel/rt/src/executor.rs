//! The run loop of an `async fn main`.
//!
//! ```text
//!        ┌──────────────────────────────────────────┐
//!        ▼                                          │ a task is awake
//!   poll what is awake ──▶ wake what is due ────────┤
//!        ▲                                          │ none is
//!        └── one exit: devices, and wait for the next deadline ◀
//! ```

#![expect(unsafe_code, reason = "the raw executor's contract")]

use core::cell::Cell;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};

use embassy_executor::Spawner;
use embassy_executor::raw::{Executor, TaskStorage};

use wharf_abi::Interest;

use crate::{device, hypercall, time, timer, upgrade};

/// Whether a task became awake since the executor was last polled.
static AWAKE: AtomicBool = AtomicBool::new(false);

/// How long tasks that stay awake may keep others from their devices: a look costs an
/// exit.
const LOOK_NS: u64 = 1_000_000;

static SPAWNER: OneVcpu<Cell<Option<Spawner>>> = OneVcpu(Cell::new(None));

/// Returns the spawner of the running executor; `None` outside an async main.
pub(crate) fn spawner() -> Option<Spawner> {
    SPAWNER.0.get()
}

/// Runs the future that `main` makes, and every task spawned meanwhile, until
/// one of them ends the guest.
///
/// Executor and main's future are in this function's frame, which costs no page
/// of the heap: the frame is never left, so it is as good as static.
pub(crate) fn run<F>(main: impl FnOnce(Spawner) -> F) -> !
where
    F: Future + 'static,
{
    let executor = Executor::new(ptr::null_mut());
    let storage = TaskStorage::new();
    // SAFETY: this function does not return and a guest does not unwind.
    let executor: &'static Executor = unsafe { &*ptr::from_ref(&executor) };
    // SAFETY: as above.
    let storage: &'static TaskStorage<F> = unsafe { &*ptr::from_ref(&storage) };

    let spawner = executor.spawner();
    SPAWNER.0.set(Some(spawner));
    if let Ok(token) = storage.spawn(|| main(spawner)) {
        spawner.spawn(token);
    }
    let mut looked_ns = 0;
    loop {
        AWAKE.store(false, Ordering::Relaxed);
        // SAFETY: only this loop polls, and no task can get at the executor.
        unsafe { executor.poll() };
        // Also when tasks are awake: one that always is must not keep the
        // others from their timers.
        let deadline_ns = timer::wake_due();
        // May wake a task that waited for room in a queue.
        device::settle();
        // What tasks put into queues while others stay awake is not left there.
        let submitted = device::take_submitted();
        let is_idle = !AWAKE.load(Ordering::Relaxed);
        // Nor must who never sleeps keep the others from their devices.
        let devices = device::interest();
        let is_late = !is_idle
            && devices != Interest::NONE
            && time::monotonic_ns().saturating_sub(looked_ns) >= LOOK_NS;
        if is_idle || submitted || is_late {
            let until_ns = if is_idle {
                // Nobody is in the middle of anything.
                upgrade::settle(deadline_ns)
            } else {
                0
            };
            let interest = devices.union(upgrade::interest());
            let ready = hypercall::wait_until_ns(until_ns, interest);
            upgrade::hear(ready);
            device::wake(ready);
            if devices != Interest::NONE {
                looked_ns = time::monotonic_ns();
            }
        }
    }
}

/// What the executor calls when its queue of awake tasks stops being empty.
#[unsafe(export_name = "__pender")]
fn pender(_context: *mut ()) {
    AWAKE.store(true, Ordering::Relaxed);
}

/// A value that only the guest's one thread of execution can reach.
struct OneVcpu<T>(T);

// SAFETY: a guest has one vCPU and no interrupts, so nothing runs beside the
// code that uses the value.
unsafe impl<T> Sync for OneVcpu<T> {}

/// A critical section on one vCPU without interrupts: nothing can come between.
struct Uninterrupted;

critical_section::set_impl!(Uninterrupted);

// SAFETY: a guest has one vCPU and no interrupts, so whatever runs between the
// two calls runs alone.
unsafe impl critical_section::Impl for Uninterrupted {
    unsafe fn acquire() -> critical_section::RawRestoreState {}

    unsafe fn release((): critical_section::RawRestoreState) {}
}
