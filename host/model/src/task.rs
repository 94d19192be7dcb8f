//! The life of one guest: when it runs, when it is parked, when it ends.
//!
//! ```text
//!              Start           ConsoleWrite
//!   ┌─────┐   ────────▶ ┌─────────┐ ─────────▶ ┌─────────┐
//!   │ New │             │ Running │            │ Writing │
//!   └─────┘             └─────────┘ ◀───────── └─────────┘
//!                        │  ▲     │    Written       │
//!                  Wait  │  │     │ Exit, Fault      │ ConsoleClosed
//!                        ▼  │     ▼                  ▼
//!                  ┌─────────┐   ┌───────────────────────┐
//!                  │ Waiting │ ─▶│ Ended (outcome)       │
//!                  └─────────┘   └───────────────────────┘
//!   deadline, STOP, device ▲    Stop, time limit: from every state
//! ```
//!
//! A guest that is to hand over is told by [`Interest::UPGRADE`] when it waits for that
//! bit. Its [`Event::HandOver`] parks it: from there it goes on as if it had not been
//! asked ([`Event::Resume`]), or never again.
//!
//! A device's bit is a level, not an event: whoever looks at the devices of a guest
//! that waits says which have something for it now, and the last look counts.
//!
//! A guest that waits with [`Interest::STOP`] is *cooperative*: the first
//! [`Event::Stop`] is told to it, and it has [`GRACE`] to end by itself. Any
//! other guest, and any second stop, ends at once. The time limit always does.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use wharf_abi::{Answer, Interest};

use crate::{Instant, Outcome, Stop};

/// How long a cooperative guest has between being told to stop and its end:
/// what an operator at a terminal will wait for.
pub const GRACE: Duration = Duration::from_secs(5);

/// What happened to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest can be entered for the first time.
    Start,
    /// The guest was interrupted while it ran, or a park or write ended early.
    Interrupted,
    /// The guest wants to end.
    Exit {
        /// With this status.
        status: u8,
    },
    /// The guest wants to be parked.
    Wait {
        /// Until then; `None` for ever.
        deadline: Option<Instant>,
        /// Or until one of these raw [`Interest`] bits.
        interest: u64,
        /// Devices that have something for the guest now.
        ready: Interest,
    },
    /// The devices of a guest that waits were looked at again.
    Devices {
        /// Those that have something for the guest now.
        ready: Interest,
    },
    /// The guest wanted a queue looked at, which was done.
    Kick {
        /// What it is told.
        answer: Answer,
    },
    /// The guest was left for something that was done at once, and wants no answer.
    Again,
    /// The guest wants bytes written to its console.
    ConsoleWrite,
    /// So many of them were.
    Written {
        /// At most what the guest asked for.
        bytes: u64,
    },
    /// The console takes no more, ever.
    ConsoleClosed,
    /// The guest broke a rule.
    Fault,
    /// Somebody wants the task to end.
    Stop(Stop),
    /// Somebody wants the guest to hand over.
    Upgrade,
    /// The guest hands over.
    HandOver,
    /// It wanted to, in vain: what it gave is nothing that can be taken.
    HandOverFailed,
    /// It is to go on: nobody takes over from it any more.
    Resume,
    /// The guest serves.
    Ready,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Enter the guest; its pending hypercall returns this.
    Enter(Option<Answer>),
    /// Do nothing until then, or until something happens.
    Park {
        /// `None`: only something that happens ends the park.
        until: Option<Instant>,
    },
    /// Write the guest's bytes, but not longer than until then.
    Write {
        /// As for a park.
        until: Option<Instant>,
    },
    /// The task is over.
    End(Outcome),
}

/// One task's state. Serialised, it goes on in another process of the same machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    state: State,
    limit: Option<Instant>,
    grace: Duration,
    /// Whether the last wait had [`Interest::STOP`].
    cooperative: bool,
    stopping: Option<Stopping>,
    /// Whether the last wait had [`Interest::UPGRADE`].
    hands_over: bool,
    /// Whether it was asked to hand over.
    upgrading: bool,
    is_ready: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    New,
    Running,
    Writing,
    HandedOver,
    Waiting {
        deadline: Option<Instant>,
        #[serde(with = "bits")]
        interest: Interest,
        /// Devices that had something for the guest when they were looked at last.
        #[serde(with = "bits")]
        devices: Interest,
    },
    Ended(Outcome),
}

/// A cooperative guest's last moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stopping {
    reason: Stop,
    ends: Instant,
}

impl Task {
    /// A task that ends at `limit`, if there is one.
    #[must_use]
    pub const fn new(limit: Option<Instant>) -> Self {
        Self {
            state: State::New,
            limit,
            grace: GRACE,
            cooperative: false,
            stopping: None,
            hands_over: false,
            upgrading: false,
            is_ready: false,
        }
    }

    /// The same with another time than [`GRACE`] between being told and the end.
    #[must_use]
    pub const fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Whether the guest serves, by its own word.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Whether it was told to end, and has not.
    #[must_use]
    pub const fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Whether it would hand over if it were asked to.
    #[must_use]
    pub const fn hands_over(&self) -> bool {
        self.hands_over
    }

    /// Whether it has, and waits for what becomes of that.
    #[must_use]
    pub fn has_handed_over(&self) -> bool {
        self.state == State::HandedOver
    }

    /// Whether it was asked to, and has not.
    #[must_use]
    pub fn is_asked_to_hand_over(&self) -> bool {
        self.upgrading && self.state != State::HandedOver
    }

    /// The moment at which a running guest must be interrupted, because this
    /// task then ends.
    #[must_use]
    pub fn alarm(&self) -> Option<Instant> {
        earliest(self.limit, self.stopping.map(|stopping| stopping.ends))
    }

    /// Takes in what happened and says what to do. After [`Action::End`] it
    /// says the same for ever.
    pub fn handle(&mut self, now: Instant, event: Event) -> Action {
        if let Some(outcome) = self.over(now, event) {
            self.state = State::Ended(outcome);
            return Action::End(outcome);
        }
        match event {
            Event::Start | Event::Again | Event::Interrupted => self.go_on(now, None),
            Event::Wait {
                deadline,
                interest,
                ready,
            } => self.wait(now, deadline, interest, ready),
            Event::Devices { ready } => {
                if let State::Waiting { devices, .. } = &mut self.state {
                    *devices = ready;
                }
                self.go_on(now, None)
            }
            Event::Kick { answer } => self.go_on(now, Some(answer)),
            Event::ConsoleWrite => {
                self.state = State::Writing;
                self.go_on(now, None)
            }
            Event::Written { bytes } => {
                self.state = State::Running;
                self.go_on(now, Some(Answer::ok(bytes)))
            }
            Event::Stop(reason) => {
                self.stopping = Some(Stopping {
                    reason,
                    ends: now.after(self.grace),
                });
                self.go_on(now, None)
            }
            Event::Upgrade => {
                self.upgrading = true;
                self.go_on(now, None)
            }
            Event::HandOver if self.upgrading => {
                self.state = State::HandedOver;
                self.go_on(now, None)
            }
            Event::HandOver | Event::HandOverFailed => {
                self.upgrading = false;
                self.go_on(now, Some(Answer::INVALID))
            }
            Event::Resume => {
                self.upgrading = false;
                if self.state == State::HandedOver {
                    self.state = State::Running;
                    return self.go_on(now, Some(Answer::ok(0)));
                }
                self.go_on(now, None)
            }
            Event::Ready => {
                self.is_ready = true;
                self.go_on(now, Some(Answer::ok(0)))
            }
            // These end a task in every state.
            Event::Exit { .. } | Event::Fault | Event::ConsoleClosed => self.go_on(now, None),
        }
    }

    /// Whether the task ends with this event.
    fn over(&self, now: Instant, event: Event) -> Option<Outcome> {
        if let State::Ended(outcome) = self.state {
            return Some(outcome);
        }
        match event {
            Event::Exit { status } => return Some(Outcome::Exited { status }),
            Event::Fault => return Some(Outcome::Faulted),
            Event::ConsoleClosed => return Some(Outcome::Stopped(Stop::ConsoleClosed)),
            Event::Stop(reason) if !self.cooperative || self.stopping.is_some() => {
                return Some(Outcome::Stopped(reason));
            }
            _ => {}
        }
        if self.limit.is_some_and(|limit| limit <= now) {
            return Some(Outcome::Stopped(Stop::TimeLimit));
        }
        self.stopping
            .filter(|stopping| stopping.ends <= now)
            .map(|stopping| Outcome::Stopped(stopping.reason))
    }

    fn wait(
        &mut self,
        now: Instant,
        deadline: Option<Instant>,
        interest: u64,
        devices: Interest,
    ) -> Action {
        let Some(interest) = Interest::from_bits(interest) else {
            return self.go_on(now, Some(Answer::INVALID));
        };
        self.cooperative = interest.contains(Interest::STOP);
        self.hands_over = interest.contains(Interest::UPGRADE);
        self.is_ready |= !interest.contains(Interest::STARTING);
        self.state = State::Waiting {
            deadline,
            interest,
            devices,
        };
        self.go_on(now, None)
    }

    /// What a task does that does not end.
    fn go_on(&mut self, now: Instant, answer: Option<Answer>) -> Action {
        match self.state {
            State::New | State::Running => {
                self.state = State::Running;
                Action::Enter(answer)
            }
            State::Writing => Action::Write {
                until: self.alarm(),
            },
            State::HandedOver => Action::Park {
                until: self.alarm(),
            },
            State::Waiting {
                deadline,
                interest,
                devices,
            } => {
                let ready = self
                    .ready(now, deadline, interest)
                    .union(devices.intersection(interest));
                if ready == Interest::NONE {
                    Action::Park {
                        until: earliest(deadline, self.alarm()),
                    }
                } else {
                    self.state = State::Running;
                    Action::Enter(Some(Answer::ok(ready.bits())))
                }
            }
            State::Ended(outcome) => Action::End(outcome),
        }
    }

    fn ready(&self, now: Instant, deadline: Option<Instant>, interest: Interest) -> Interest {
        let mut ready = Interest::NONE;
        if deadline.is_some_and(|deadline| deadline <= now) {
            ready = ready.union(Interest::TIMER);
        }
        if self.stopping.is_some() && interest.contains(Interest::STOP) {
            ready = ready.union(Interest::STOP);
        }
        if self.upgrading && interest.contains(Interest::UPGRADE) {
            ready = ready.union(Interest::UPGRADE);
        }
        ready
    }
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

/// Interests as the number that guests know them by.
mod bits {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use wharf_abi::Interest;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(it: &Interest, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(it.bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Interest, D::Error> {
        let bits = u64::deserialize(from)?;
        Interest::from_bits(bits).ok_or_else(|| de::Error::custom("interest in what is not there"))
    }
}

#[cfg(test)]
mod tests;
