//! The timer that gets a thread out of its guest.

use std::time::Duration;

use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::gettid;

use super::{RunError, refused};

/// What the alarm sends. Blocked by [`super::signals::Signals`], so that it is
/// never lost: it ends `KVM_RUN` also when it comes just before it.
pub(crate) const SIGNAL: Signal = Signal::SIGALRM;

/// A timer that signals this thread. Made when first needed: many runs never
/// wait and have no time limit.
///
/// It is never disarmed. It may ring when nobody needs it any more, or a little
/// early by the guest's clock; who hears it looks at that clock and goes on.
#[derive(Default)]
pub(crate) struct Alarm {
    timer: Option<Timer>,
}

impl Alarm {
    /// Rings when `left` is over, instead of whenever it was to ring before.
    pub(crate) fn set(&mut self, left: Duration) -> Result<(), RunError> {
        let timer = match &mut self.timer {
            Some(timer) => timer,
            none => none.insert(new_timer()?),
        };
        // Zero would disarm it.
        let left = TimeSpec::from_duration(left.max(Duration::from_nanos(1)));
        timer
            .set(Expiration::OneShot(left), TimerSetTimeFlags::empty())
            .map_err(refused("to set a timer"))
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
