//! Getting a worker out of its guest: by another thread, or by its own timer.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::run::alarm::{self, Alarm};

/// What gets a worker out of its guest. Blocked everywhere else, so it ends the
/// next `KVM_RUN` when it comes just before it.
const KICK: Signal = Signal::SIGUSR1;

/// What other threads hold of a worker.
#[derive(Debug, Default)]
pub(in crate::cell) struct Kicker {
    thread: OnceLock<Pthread>,
    /// Whether it is in a guest, or sleeps.
    is_away: AtomicBool,
}

impl Kicker {
    /// Gets the worker out of its guest or sleep, if it is there or about to be.
    ///
    /// The message was sent before this is called, and the worker looks for
    /// messages after it has said that it goes away: one of the two sees the other.
    pub(super) fn kick(&self) {
        if self.is_away.load(Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            // A worker says that it is back before its thread ends, also when it
            // panics.
            let _ = pthread_kill(*thread, KICK);
        }
    }
}

/// What a worker has itself.
pub(super) struct Kicks {
    shared: Arc<Kicker>,
    signals: SignalFd,
    alarm: Alarm,
}

impl Drop for Kicks {
    /// A worker that is gone is not kicked: its thread may have been joined.
    fn drop(&mut self) {
        self.back();
    }
}

impl Kicks {
    /// Blocks kick and alarm on this thread, which `shared` then kicks.
    pub(super) fn on_this_thread(shared: Arc<Kicker>) -> nix::Result<Self> {
        let mut set = SigSet::empty();
        set.add(KICK);
        set.add(alarm::SIGNAL);
        set.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&set, flags)?;
        // Nobody else sets it: one kicker is one worker's.
        let _ = shared.thread.set(pthread_self());
        Ok(Self {
            shared,
            signals,
            alarm: Alarm::default(),
        })
    }

    /// Becomes readable when a kick or the alarm came.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }

    /// Says that the guest is about to be entered, or the worker about to sleep: from
    /// now on messages kick.
    pub(super) fn away(&self) {
        self.shared.is_away.store(true, Ordering::SeqCst);
    }

    /// Says that it is back.
    pub(super) fn back(&self) {
        self.shared.is_away.store(false, Ordering::SeqCst);
    }

    /// Takes what is pending, so that it does not end the next entry too.
    pub(super) fn drain(&self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
    }

    /// Rings after `left`.
    pub(super) fn set_alarm(&mut self, left: Duration) {
        if let Err(e) = self.alarm.set(left) {
            // Without a timer slices only end at exits; say so and go on.
            log::error!("a worker's timer: {e}");
        }
    }
}
