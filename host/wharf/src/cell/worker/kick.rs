//! Getting a worker out of its guest: by another thread, or by its own timer.

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
    in_guest: AtomicBool,
}

impl Kicker {
    /// Gets the worker out of its guest, if it is in one or about to enter.
    ///
    /// The message was sent before this is called, and the worker looks for
    /// messages after it has said that it enters: one of the two sees the other.
    pub(super) fn kick(&self) {
        if self.in_guest.load(Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            // The thread lives for as long as anybody has its mailbox.
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

    /// Says that the guest is about to be entered: from now on messages kick.
    pub(super) fn entering(&self) {
        self.shared.in_guest.store(true, Ordering::SeqCst);
    }

    /// Says that the guest was left.
    pub(super) fn left(&self) {
        self.shared.in_guest.store(false, Ordering::SeqCst);
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
