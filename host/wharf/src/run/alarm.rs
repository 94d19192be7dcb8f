//! The timer that gets a thread out of its guest.

use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::gettid;
use std::time::Duration;
use wharf_model::Instant;

use super::{RunError, refused};

/// What the alarm sends. Blocked by [`super::signals::Signals`], so that it is
/// never lost: it ends `KVM_RUN` also when it comes just before it.
pub(super) const SIGNAL: Signal = Signal::SIGALRM;

/// A timer that signals this thread at a moment. Made when first needed: most
/// runs have no time limit.
#[derive(Default)]
pub(super) struct Alarm {
    timer: Option<Timer>,
    set: Option<Instant>,
}

impl Alarm {
    /// Rings at `at`, or not at all. Costs nothing when it stays as it is.
    pub(super) fn set(&mut self, at: Option<Instant>) -> Result<(), RunError> {
        if self.set == at {
            return Ok(());
        }
        self.set = at;
        let Some(at) = at else {
            self.timer = None;
            return Ok(());
        };
        let mut timer = match self.timer.take() {
            Some(timer) => timer,
            None => new_timer()?,
        };
        let at = TimeSpec::from_duration(Duration::from_nanos(at.as_nanos()));
        timer
            .set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            .map_err(refused("to set a timer"))?;
        self.timer = Some(timer);
        Ok(())
    }
}

fn new_timer() -> Result<Timer, RunError> {
    let notify = SigevNotify::SigevThreadId {
        signal: SIGNAL,
        thread_id: gettid().as_raw(),
        si_value: 0,
    };
    Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify)).map_err(refused("a timer"))
}
