//! Tasks: futures that run beside main.
//!
//! A task of the executor needs storage that lives for ever. Here that storage
//! is a small slot that holds a boxed future: a slot whose task has ended waits
//! in a list for the next one, so memory follows the most tasks that were alive
//! at one time, not how many there have been.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::pin::Pin;
use core::task::{Context, Poll};

use critical_section::Mutex;
use embassy_executor::raw::{AvailableTask, TaskStorage};

use crate::executor;

/// Starts a task that runs `future` to its end, beside main and other tasks.
///
/// Nobody waits for it: when main ends, the guest does.
///
/// # Panics
///
/// Outside an `async fn main`, where nothing would ever run the task.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    let Some(spawner) = executor::spawner() else {
        panic!("a task was spawned without an async main that could run it");
    };
    let work: Work = Box::pin(future);
    let (slot, storage) = claim();
    spawner.spawn(storage.initialize(|| Task {
        slot,
        work: Some(work),
    }));
}

type Work = Pin<Box<dyn Future<Output = ()>>>;
type Slot = TaskStorage<Task>;

/// Slots that no task is in.
static FREE: Mutex<RefCell<Vec<&'static Slot>>> = Mutex::new(RefCell::new(Vec::new()));

/// Runs a future, and then gives back the slot that it ran in.
struct Task {
    slot: &'static Slot,
    /// `None` once the future has ended.
    work: Option<Work>,
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Some(work) = &mut self.work {
            if work.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            // Dropped before the slot is offered: a destructor may spawn, and
            // must not find the slot that it is in.
            self.work = None;
            critical_section::with(|cs| FREE.borrow_ref_mut(cs).push(self.slot));
        }
        Poll::Ready(())
    }
}

/// Takes a slot that can be used at once.
fn claim() -> (&'static Slot, AvailableTask<Task>) {
    loop {
        if let Some(claimed) = critical_section::with(|cs| reuse(&mut FREE.borrow_ref_mut(cs))) {
            return claimed;
        }
        let slot = Box::leak(Box::new(Slot::new()));
        critical_section::with(|cs| FREE.borrow_ref_mut(cs).push(slot));
    }
}

/// Takes the last slot of the list that can be used at once. One that cannot
/// held a task that woke itself as it ended, and is still queued for that.
fn reuse(free: &mut Vec<&'static Slot>) -> Option<(&'static Slot, AvailableTask<Task>)> {
    let (at, storage) = (free.iter().enumerate().rev())
        .find_map(|(at, slot)| Some((at, AvailableTask::claim(slot)?)))?;
    Some((free.swap_remove(at), storage))
}
