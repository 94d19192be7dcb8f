//! How a task ended.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The end of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The guest made an exit hypercall.
    Exited {
        /// Its status.
        status: u8,
    },
    /// The guest broke a rule.
    Faulted,
    /// The host ended the guest.
    Stopped(Stop),
}

/// Why a host ends a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stop {
    /// SIGINT: the operator typed ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGHUP: the terminal has gone.
    HangUp,
    /// The task's time limit is over.
    TimeLimit,
    /// Nobody reads the console any more.
    ConsoleClosed,
}

impl Outcome {
    /// The status that `wharf run` exits with: the guest's own; 139 (as a shell
    /// shows SIGSEGV) for a fault; 128 + the signal's number for a signal; 124
    /// (as timeout(1)) for the time limit.
    #[must_use]
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Exited { status } => status,
            Self::Faulted => 139,
            Self::Stopped(stop) => match stop {
                Stop::HangUp => 129,
                Stop::Interrupt => 130,
                Stop::ConsoleClosed => 141,
                Stop::Terminate => 143,
                Stop::TimeLimit => 124,
            },
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "interrupted",
            Self::Terminate => "terminated",
            Self::HangUp => "ended: the terminal has gone",
            Self::TimeLimit => "ended: the time limit is over",
            Self::ConsoleClosed => "ended: nobody reads its output",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Stop};

    #[test]
    fn statuses_are_those_that_shells_know() {
        assert_eq!(Outcome::Exited { status: 7 }.exit_status(), 7);
        assert_eq!(Outcome::Faulted.exit_status(), 139);
        assert_eq!(Outcome::Stopped(Stop::Interrupt).exit_status(), 130);
        assert_eq!(Outcome::Stopped(Stop::TimeLimit).exit_status(), 124);
    }
}
