//! The lock of a slot. It is held for a microsecond at a time, by those who ask, and
//! for ten by a swap's cut: less than it takes to put a thread to sleep and wake it,
//! which on a virtual machine is 50 µs for both. So everybody looks for a while
//! before they sleep, and those who ask give way to those who manage: else a manager
//! would find the lock taken by who asks in a tight loop, sleep, and cost that one
//! the time to be woken.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// Looks at a lock that is held, of 45 ns each, before it is waited for.
const LOOKS: u32 = 1_000;

/// What is behind the lock.
pub(super) struct Gate<T> {
    inner: Mutex<T>,
    /// Managers that want in.
    managers: AtomicU32,
}

impl<T> Gate<T> {
    pub(super) const fn new(inner: T) -> Self {
        Self {
            inner: Mutex::new(inner),
            managers: AtomicU32::new(0),
        }
    }

    /// Lets in who asks, after managers.
    pub(super) fn ask(&self) -> MutexGuard<'_, T> {
        self.enter(|| self.managers.load(Ordering::Relaxed) == 0)
    }

    /// Lets in who looks after the slot.
    pub(super) fn manage(&self) -> MutexGuard<'_, T> {
        self.managers.fetch_add(1, Ordering::Relaxed);
        let inner = self.enter(|| true);
        self.managers.fetch_sub(1, Ordering::Relaxed);
        inner
    }

    /// A thread that panicked inside left an instance that is at worst in the middle
    /// of a call, which wasmtime refuses to enter: a strike.
    fn enter(&self, may: impl Fn() -> bool) -> MutexGuard<'_, T> {
        for _ in 0..LOOKS {
            if may() {
                match self.inner.try_lock() {
                    Ok(inner) => return inner,
                    Err(TryLockError::Poisoned(inner)) => return inner.into_inner(),
                    Err(TryLockError::WouldBlock) => {}
                }
            }
            spin_loop();
        }
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
