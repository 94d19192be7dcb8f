//! The signals that end a task, taken when there is time for them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use signal_hook::consts::SIGXFSZ;
use signal_hook::flag;
use wharf_model::Stop;

use super::{RunError, alarm, refused};

/// The signals that ask for an end.
const STOPS: [(Signal, Stop); 3] = [
    (Signal::SIGINT, Stop::Interrupt),
    (Signal::SIGTERM, Stop::Terminate),
    (Signal::SIGHUP, Stop::HangUp),
];

/// SIGINT, SIGTERM, SIGHUP and the alarm, blocked for this thread. Those of the
/// first three that whoever started wharf has it ignore stay ignored.
///
/// The vCPU runs with them unblocked (see wharf-machine), so they end `KVM_RUN`
/// at once, and stay pending until [`Signals::take`] or [`Signals::wait`].
///
/// Dropped, it lets the first three do what they always do: whatever the process
/// does after a run, a signal ends it.
pub(super) struct Signals {
    fd: SignalFd,
    stops: SigSet,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// Somebody wants the task to end.
    Stop(Stop),
    /// A file is as it is to be.
    Ready,
    /// The alarm rang.
    Alarm,
}

impl Signals {
    /// Blocks the signals. Programs that this thread starts would inherit that.
    pub(super) fn block() -> Result<Self, RunError> {
        let stops = block_stops().map_err(refused("to block signals"))?;
        let mut taken = stops;
        taken.add(alarm::SIGNAL);
        taken.thread_block().map_err(refused("to block signals"))?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let fd = SignalFd::with_flags(&taken, flags).map_err(refused("a signalfd"))?;
        Ok(Self { fd, stops })
    }

    /// Takes the pending signals, if any, and tells the first that is no alarm.
    pub(super) fn take(&self) -> Result<Option<Stop>, RunError> {
        while let Some(signal) = self.fd.read_signal().map_err(refused("to read a signal"))? {
            let number = i32::try_from(signal.ssi_signo).ok();
            let signal = number.and_then(|number| Signal::try_from(number).ok());
            let stop = STOPS.iter().find(|(stop, _)| Some(*stop) == signal);
            if let Some((_, stop)) = stop {
                return Ok(Some(*stop));
            }
        }
        Ok(None)
    }

    /// Sleeps until a signal comes, the alarm among them, or one of `files` is as it
    /// is to be. Poll's own time-out would be up to 0.1 % late; the alarm is not.
    pub(super) fn wait<'a>(
        &self,
        files: impl Iterator<Item = (BorrowedFd<'a>, PollFlags)>,
    ) -> Result<Wake, RunError> {
        let mut fds = vec![PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        fds.extend(files.map(|(fd, flags)| PollFd::new(fd, flags)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(refused("to poll")(e)),
        }
        if let Some(stop) = self.take()? {
            return Ok(Wake::Stop(stop));
        }
        // An error or hang-up is for the write to find.
        let mut files = fds.iter().skip(1);
        let ready = files.any(|fd| fd.any().unwrap_or(true));
        Ok(if ready { Wake::Ready } else { Wake::Alarm })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // The alarm stays blocked: it may be pending, and would end the process.
        let _ = self.stops.thread_unblock();
    }
}

/// Blocks the signals that ask for an end, but for those that this process was
/// started to ignore, and says which that are.
pub(crate) fn block_stops() -> nix::Result<SigSet> {
    let ignored = ignored();
    let mut stops = SigSet::empty();
    for (signal, _) in STOPS {
        if !ignored.contains(signal) {
            stops.add(signal);
        }
    }
    stops.thread_block()?;
    Ok(stops)
}

/// Lets a write past `ulimit -f` fail with EFBIG, which is enough, instead of ending
/// the process by SIGXFSZ. SIGPIPE is ignored by every Rust program.
///
/// The signal is taken by a handler that does nothing of use. Blocked it would stay
/// pending, and end every `KVM_RUN` of its thread at once; ignored it would be ignored
/// by the programs, too, that this one starts.
///
/// # Errors
///
/// When the kernel takes no handler.
pub(crate) fn survive_large_files() -> io::Result<()> {
    flag::register(SIGXFSZ, Arc::default()).map(drop)
}

/// The signals that this process was started to ignore (proc(5), `SigIgn`);
/// none when the kernel does not tell.
fn ignored() -> SigSet {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let is_ignored = |signal: Signal| match signal {
        Signal::SIGHUP => mask & 1 << 0 != 0,
        Signal::SIGINT => mask & 1 << 1 != 0,
        Signal::SIGTERM => mask & 1 << 14 != 0,
        _ => false,
    };
    STOPS
        .into_iter()
        .map(|(signal, _)| signal)
        .filter(|signal| is_ignored(*signal))
        .collect()
}
