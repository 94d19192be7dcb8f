//! The signals that end a task, taken when there is time for them.

use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use wharf_model::Stop;

use super::{RunError, alarm, refused};

/// SIGINT, SIGTERM, SIGHUP and the alarm, blocked for this thread.
///
/// The vCPU runs with them unblocked (see wharf-machine), so they end `KVM_RUN`
/// at once, and stay pending until [`Signals::take`] or [`Signals::wait`].
pub(super) struct Signals {
    fd: SignalFd,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// Somebody wants the task to end.
    Stop(Stop),
    /// The file can be written.
    Ready,
    /// The alarm rang.
    Alarm,
}

impl Signals {
    /// Blocks the signals. Programs that this thread starts would inherit that.
    pub(super) fn block() -> Result<Self, RunError> {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            alarm::SIGNAL,
        ] {
            set.add(signal);
        }
        set.thread_block().map_err(refused("to block signals"))?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let fd = SignalFd::with_flags(&set, flags).map_err(refused("a signalfd"))?;
        Ok(Self { fd })
    }

    /// Takes the pending signals, if any, and tells the first that is no alarm.
    pub(super) fn take(&self) -> Result<Option<Stop>, RunError> {
        while let Some(signal) = self.fd.read_signal().map_err(refused("to read a signal"))? {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
            match Signal::try_from(number) {
                Ok(Signal::SIGINT) => return Ok(Some(Stop::Interrupt)),
                Ok(Signal::SIGTERM) => return Ok(Some(Stop::Terminate)),
                Ok(Signal::SIGHUP) => return Ok(Some(Stop::HangUp)),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Sleeps until a signal comes, the alarm among them, or `writable` can be
    /// written. Poll's own time-out would be up to 0.1 % late; the alarm is not.
    pub(super) fn wait(&self, writable: Option<BorrowedFd<'_>>) -> Result<Wake, RunError> {
        let mut fds = vec![PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        fds.extend(writable.map(|fd| PollFd::new(fd, PollFlags::POLLOUT)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(refused("to poll")(e)),
        }
        if let Some(stop) = self.take()? {
            return Ok(Wake::Stop(stop));
        }
        // An error or hang-up is for the write to find.
        let ready = fds.get(1).is_some_and(|fd| fd.any().unwrap_or(true));
        Ok(if ready { Wake::Ready } else { Wake::Alarm })
    }
}
