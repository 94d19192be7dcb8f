//! Who is in force in a slot, and what follows when a plugin fails.
//!
//! ```text
//!              Installed                     period over, it answered
//!  built-in ──────────────▶ probation ─────────────────────────────▶ active
//!      ▲                     │   ▲  ▲ Installed                        │  │
//!      │ Removed             │   │  └──────────────────────────────────┘  │
//!      │ (from anywhere)     │   │ Retried                 three strikes  │
//!      │          strike     ▼   │                                        │
//!      │      (predecessor   quarantined ◀────────────────────────────────┘
//!      │       kept: it          │
//!      │       returns)          └─ pause over: retry
//! ```
//!
//! Whatever the state, a question that the plugin cannot answer is answered by
//! what is built in: this machine only decides who is asked the next one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Instant;

/// How long a plugin is on probation, with its predecessor kept warm. It must also
/// have answered once.
pub const PROBATION: Duration = Duration::from_secs(5);

/// So many strikes within [`STRIKE_WINDOW`] take an active plugin out.
pub const STRIKES: usize = 3;

/// Strikes further back do not count: a host that was stopped for a moment, or one
/// odd question, is no reason to lose a policy that works.
pub const STRIKE_WINDOW: Duration = Duration::from_secs(10);

/// Pause before a plugin in quarantine is tried again.
pub const QUARANTINE_FIRST: Duration = Duration::from_secs(1);

/// The pause doubles with each quarantine in a row, up to this.
pub const QUARANTINE_LAST: Duration = Duration::from_secs(300);

/// A plugin that was active for so long is healthy: its next quarantine is a first
/// one.
pub const HEALTHY: Duration = Duration::from_secs(60);

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// What is built in; there is no plugin.
    BuiltIn,
    /// A plugin that is new here: one strike takes it out.
    Probation,
    /// A plugin.
    Active,
    /// What is built in, because the plugin failed.
    Quarantined,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A plugin was put in.
    Installed {
        /// Whether the plugin before it is kept, to come back.
        predecessor: bool,
    },
    /// The quarantined plugin was put in again.
    Retried,
    /// It could not be.
    RetryFailed,
    /// The plugin failed to answer.
    Struck,
    /// The predecessor was put back.
    Returned,
    /// The plugin was taken out for good.
    Removed,
    /// Time has passed; the plugin in force has answered so many questions.
    Tick {
        /// Since it was put in.
        answers: u64,
    },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// The predecessor is put back, at once.
    Return,
    /// The plugin is taken out until a retry.
    Quarantine {
        /// How long it stays out.
        pause: Duration,
    },
    /// The predecessor is let go.
    Confirm,
    /// The quarantined plugin is made anew and put in.
    Retry,
}

/// One slot. Serialised, it goes on in another process of the same machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    state: State,
    since: Instant,
    predecessor: bool,
    strikes: Vec<Instant>,
    /// Quarantines in a row.
    quarantines: u32,
    /// When the pause is over; none while a retry is under way.
    retry_at: Option<Instant>,
    /// Its probation is over but for an answer: no time ends that.
    unasked: bool,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            state: State::BuiltIn,
            since: Instant::default(),
            predecessor: false,
            strikes: Vec::new(),
            quarantines: 0,
            retry_at: None,
            unasked: false,
        }
    }
}

impl Slot {
    /// Takes in what happened and says what follows.
    pub fn handle(&mut self, now: Instant, event: Event) -> Action {
        match (event, self.state) {
            (Event::Installed { predecessor }, _) => {
                self.quarantines = 0;
                self.begin_probation(now, predecessor);
                Action::None
            }
            (Event::Retried, State::Quarantined) => {
                self.begin_probation(now, false);
                Action::None
            }
            (Event::RetryFailed, State::Quarantined) => self.quarantine(now),
            (Event::Struck, State::Probation) if self.predecessor => Action::Return,
            (Event::Struck, State::Probation) => self.quarantine(now),
            (Event::Struck, State::Active) => self.strike(now),
            (Event::Returned, _) => {
                self.enter(now, State::Active);
                Action::None
            }
            (Event::Removed, _) => {
                self.quarantines = 0;
                self.enter(now, State::BuiltIn);
                Action::None
            }
            (Event::Tick { answers }, State::Probation) if now.since(self.since) >= PROBATION => {
                if answers == 0 {
                    self.unasked = true;
                    return Action::None;
                }
                self.enter(now, State::Active);
                Action::Confirm
            }
            (Event::Tick { .. }, State::Quarantined)
                if self.retry_at.is_some_and(|at| at <= now) =>
            {
                self.retry_at = None;
                Action::Retry
            }
            // A strike of a plugin that is out already, or time that changes nothing.
            (Event::Retried | Event::RetryFailed | Event::Struck | Event::Tick { .. }, _) => {
                Action::None
            }
        }
    }

    /// Who answers.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// When time may change something; it has to be told by then, by a
    /// [tick](Event::Tick). After a tick that came to nothing this is later than it.
    /// None for a plugin whose probation only an answer can end: it is confirmed by
    /// whichever tick follows that.
    #[must_use]
    pub fn alarm(&self) -> Option<Instant> {
        match self.state {
            State::Probation if self.unasked => None,
            State::Probation => Some(self.since.after(PROBATION)),
            State::Quarantined => self.retry_at,
            State::BuiltIn | State::Active => None,
        }
    }

    fn begin_probation(&mut self, now: Instant, predecessor: bool) {
        self.enter(now, State::Probation);
        self.predecessor = predecessor;
    }

    fn strike(&mut self, now: Instant) -> Action {
        if now.since(self.since) >= HEALTHY {
            self.quarantines = 0;
        }
        self.strikes
            .retain(|strike| now.since(*strike) < STRIKE_WINDOW);
        self.strikes.push(now);
        if self.strikes.len() >= STRIKES {
            self.quarantine(now)
        } else {
            Action::None
        }
    }

    fn quarantine(&mut self, now: Instant) -> Action {
        let doubled = 1_u32.checked_shl(self.quarantines).unwrap_or(u32::MAX);
        let pause = QUARANTINE_FIRST
            .saturating_mul(doubled)
            .min(QUARANTINE_LAST);
        self.quarantines = self.quarantines.saturating_add(1);
        self.enter(now, State::Quarantined);
        self.retry_at = Some(now.after(pause));
        Action::Quarantine { pause }
    }

    fn enter(&mut self, now: Instant, state: State) {
        self.state = state;
        self.since = now;
        self.predecessor = false;
        self.strikes.clear();
        self.retry_at = None;
        self.unasked = false;
    }
}

#[cfg(test)]
mod tests;
