//! One upgrade of one replica: from the wish to the end.
//!
//! ```text
//!                    defer               state, plan                  ready
//!  Reviewing ◀─────────────▶ Deferred   ┌──────────▶ Starting ───────────────────────┐
//!      │ plan                           │                                            │
//!      ▼          hands over            │ made       replace │        beside the old │
//!   Booting ───▶ HandingOver ───▶ Transforming               ▼                       ▼
//!                                                       CuttingOver     Watching ◀──▶ Judging
//!                                                            │ cut          │ keep     │ roll back
//!                                                            ▼              ▼          ▼
//!                                                          Over ◀─────── Draining ◀────┘
//! ```
//!
//! Until the cut, or the judgement to keep, the old one is in place: whatever goes wrong
//! before that, by whoever's fault, ends the new one and has the old one go on.

use std::time::Duration;

use crate::Instant;
use crate::policy::{Canary, Judgement, Plan};

/// How long a guest may take to bring its connections to rest and hand over. The
/// service stands still for a part of that.
pub const HAND_OVER: Duration = Duration::from_secs(2);

/// How long a new one may take until it serves.
pub const READY: Duration = Duration::from_secs(10);

/// How long connections may go on with the version that is to go. Then it is told to
/// end, whatever they do.
pub const DRAIN: Duration = Duration::from_secs(600);

/// How long an upgrade may be put off, all in all.
pub const DEFER: Duration = Duration::from_secs(86_400);

/// How often it is looked whether a version that is to go still has connections.
const LOOK: Duration = Duration::from_millis(20);

/// One of the two versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Which {
    /// What ran before.
    Old,
    /// What is to run.
    New,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants it. With a plan, nobody is asked for one.
    Begin(Option<Plan>),
    /// The policy has a plan.
    Reviewed(Plan),
    /// The new one was made.
    Booted,
    /// It could not be, for this reason.
    BootFailed(String),
    /// The old one has handed over, or has nothing to.
    HandedOver {
        /// Whether it stands still until it is told what becomes of it.
        waits: bool,
    },
    /// It handed over what cannot be taken.
    HandOverFailed(String),
    /// The state is one that the new one understands.
    Transformed,
    /// It cannot be made one.
    TransformFailed(String),
    /// The new one serves.
    Ready,
    /// It is in the old one's place.
    Cut,
    /// It cannot be put there.
    CutFailed(String),
    /// The policy has looked at both.
    Judged(Judgement),
    /// One of them has ended by itself, in these words.
    Ended(Which, String),
    /// So many connections are left to the one that is to go.
    Left(u32),
    /// The operator wants something else, in these words.
    Cancel(String),
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the policy for a plan.
    Review,
    /// Make the new one, but do not begin it.
    Boot,
    /// Ask the old one to hand over.
    AskHandOver,
    /// Have the policy turn the state into what the new one understands.
    Transform,
    /// Begin the new one, with the state.
    Start,
    /// Put the new one into the old one's place.
    CutOver,
    /// Have the old one go on.
    Resume,
    /// Give the new one this share of new connections in percent, the old one the rest.
    Share(u32),
    /// Ask the policy to look at both.
    Judge,
    /// The new one is the replica from now on; the old one is to go.
    Adopt,
    /// Say how many connections it has that is to go.
    Count(Which),
    /// Tell it to end.
    Stop(Which),
    /// End it at once.
    Kill(Which),
    /// It is decided.
    Decided(Verdict),
}

/// How an upgrade ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The new one is in place.
    Kept,
    /// The old one is, and the new one never served.
    Refused(String),
    /// The old one is again.
    RolledBack(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Reviewing,
    Deferred {
        until: Instant,
    },
    Booting,
    HandingOver {
        until: Instant,
    },
    Transforming,
    Starting {
        until: Instant,
    },
    CuttingOver,
    Watching {
        until: Instant,
    },
    Judging,
    Draining {
        which: Which,
        look: Instant,
        until: Instant,
    },
    Stopping {
        which: Which,
    },
    Over,
}

/// How the new one gets into place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Replace,
    /// Both run, the new one with this share at first.
    Beside(Canary),
}

/// One upgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade {
    state: State,
    way: Way,
    /// Until when it may be put off.
    patience: Option<Instant>,
    /// Whether the new one exists.
    is_made: bool,
    /// Whether the old one was asked to hand over and has not been told to go on.
    is_asked: bool,
    /// Whether both cannot run beside each other.
    is_exclusive: bool,
}

impl Upgrade {
    /// An upgrade that has not begun; of a replica that has something which only one
    /// version at a time can have, when it is `exclusive`.
    #[must_use]
    pub const fn new(exclusive: bool) -> Self {
        Self {
            state: State::New,
            way: Way::Replace,
            patience: None,
            is_made: false,
            is_asked: false,
            is_exclusive: exclusive,
        }
    }

    /// When [`Event::Tick`] is due; `None` when nothing waits for a time.
    #[must_use]
    pub const fn alarm(&self) -> Option<Instant> {
        match self.state {
            State::Deferred { until }
            | State::HandingOver { until }
            | State::Starting { until }
            | State::Watching { until } => Some(until),
            State::Draining { look, .. } => Some(look),
            _ => None,
        }
    }

    /// Whether there is nothing left to do.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Whether both versions exist, as far as is known here.
    #[must_use]
    pub fn has_both(&self) -> bool {
        self.is_made && !self.is_over()
    }

    /// Whether both are to serve for a while, and not the new one from a moment on.
    #[must_use]
    pub const fn runs_beside(&self) -> bool {
        matches!(self.way, Way::Beside(_))
    }

    /// Whether the new one has begun to serve.
    #[must_use]
    pub const fn serves(&self) -> bool {
        matches!(
            self.state,
            State::Watching { .. }
                | State::Judging
                | State::Draining { .. }
                | State::Stopping { .. }
        )
    }

    /// Where it is, in a word for people.
    #[must_use]
    pub const fn step(&self) -> &'static str {
        match self.state {
            State::New | State::Reviewing => "reviewing",
            State::Deferred { .. } => "deferred",
            State::Booting => "booting",
            State::HandingOver { .. } => "handing over",
            State::Transforming => "transforming",
            State::Starting { .. } => "starting",
            State::CuttingOver => "cutting over",
            State::Watching { .. } | State::Judging => "watching",
            State::Draining { .. } | State::Stopping { .. } => "draining",
            State::Over => "over",
        }
    }

    /// Takes in what happened and says what to do, in this order. What comes out of
    /// place, because it crossed something else on its way, changes nothing.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        use State::{
            Booting, CuttingOver, Deferred, Draining, HandingOver, Judging, New, Over, Reviewing,
            Starting, Stopping, Transforming, Watching,
        };
        let mut actions = Vec::new();
        match (self.state, event) {
            (New, Event::Begin(plan)) => {
                self.patience = Some(now.after(DEFER));
                match plan {
                    Some(plan) => self.planned(now, plan, &mut actions),
                    None => self.review(&mut actions),
                }
            }
            (Reviewing, Event::Reviewed(plan)) => self.planned(now, plan, &mut actions),
            (Deferred { until }, Event::Tick) if until <= now => self.review(&mut actions),
            (Booting, Event::Booted) => {
                self.is_made = true;
                self.is_asked = true;
                self.state = HandingOver {
                    until: now.after(HAND_OVER),
                };
                actions.push(Action::AskHandOver);
            }
            (Booting, Event::BootFailed(reason)) => self.give_up(reason, &mut actions),
            (HandingOver { .. }, Event::HandedOver { waits: false }) if self.is_exclusive => {
                let reason = "the old version does not stand still to hand over, and would write \
                              its disk beside the new one: stop the task and start it anew";
                self.give_up(reason.to_owned(), &mut actions);
            }
            (HandingOver { .. }, Event::HandedOver { waits }) => {
                // Who runs beside the new one does not stand still for it.
                if !waits || self.way != Way::Replace {
                    self.resume(&mut actions);
                }
                self.state = Transforming;
                actions.push(Action::Transform);
            }
            (HandingOver { until }, Event::Tick) if until <= now => {
                let patience = HAND_OVER.as_secs();
                self.give_up(
                    format!("the old version did not hand over within {patience} s"),
                    &mut actions,
                );
            }
            (Transforming, Event::Transformed) => {
                self.state = Starting {
                    until: now.after(READY),
                };
                actions.push(Action::Start);
            }
            (Starting { .. }, Event::Ready) => match self.way {
                Way::Replace => {
                    self.state = CuttingOver;
                    actions.push(Action::CutOver);
                }
                Way::Beside(first) => self.share(now, first, &mut actions),
            },
            (Starting { until }, Event::Tick) if until <= now => {
                let patience = READY.as_secs();
                self.give_up(
                    format!("the new version was not ready within {patience} s"),
                    &mut actions,
                );
            }
            (CuttingOver, Event::Cut) => {
                self.state = Over;
                actions.push(Action::Adopt);
                actions.push(Action::Decided(Verdict::Kept));
            }
            (HandingOver { .. }, Event::HandOverFailed(reason))
            | (Transforming, Event::TransformFailed(reason))
            | (CuttingOver, Event::CutFailed(reason)) => self.give_up(reason, &mut actions),
            (Watching { until }, Event::Tick) if until <= now => {
                self.state = Judging;
                actions.push(Action::Judge);
            }
            (Judging, Event::Judged(judgement)) => self.judged(now, judgement, &mut actions),
            (Watching { .. } | Judging, Event::Ended(Which::New, words)) => {
                actions.push(Action::Share(0));
                self.state = Over;
                let reason = format!("the new version {words}");
                actions.push(Action::Decided(Verdict::RolledBack(reason)));
            }
            // It serves already; nobody else does.
            (Watching { .. } | Judging, Event::Ended(Which::Old, _)) => {
                self.state = Over;
                actions.push(Action::Share(100));
                actions.push(Action::Adopt);
                actions.push(Action::Decided(Verdict::Kept));
            }
            (Watching { .. } | Judging, Event::Cancel(reason)) => {
                self.roll_back(now, reason, &mut actions);
            }
            (Draining { which, .. } | Stopping { which }, Event::Ended(ended, _)) => {
                if which == ended {
                    self.state = Over;
                }
            }
            (Draining { which, until, .. }, Event::Tick) => {
                if until <= now {
                    self.state = Stopping { which };
                    actions.push(Action::Stop(which));
                } else {
                    let look = now.after(LOOK);
                    self.state = Draining { which, look, until };
                    actions.push(Action::Count(which));
                }
            }
            (Draining { which, .. }, Event::Left(0)) => {
                self.state = Stopping { which };
                actions.push(Action::Stop(which));
            }
            (Draining { which, .. } | Stopping { which }, Event::Cancel(_)) => {
                self.state = Over;
                actions.push(Action::Kill(which));
            }
            // It is on its way, and what is done cannot be undone.
            (CuttingOver, Event::Cancel(_)) | (Over, _) => {}
            (_, Event::Ended(Which::New, words)) => {
                self.is_made = false;
                self.give_up(format!("the new version {words}"), &mut actions);
            }
            (_, Event::Ended(Which::Old, words)) => {
                self.is_asked = false;
                self.give_up(format!("the old version {words} meanwhile"), &mut actions);
            }
            (_, Event::Cancel(reason)) => self.give_up(reason, &mut actions),
            (_, _) => {}
        }
        actions
    }

    fn review(&mut self, actions: &mut Vec<Action>) {
        self.state = State::Reviewing;
        actions.push(Action::Review);
    }

    fn planned(&mut self, now: Instant, plan: Plan, actions: &mut Vec<Action>) {
        self.way = match plan {
            Plan::BuiltIn | Plan::Replace => Way::Replace,
            Plan::BlueGreen(period) => Way::Beside(Canary {
                percent: 100,
                period,
            }),
            Plan::Canary(canary) => Way::Beside(canary),
            Plan::Defer(time) => {
                if self.patience.is_some_and(|patience| patience <= now) {
                    let reason = "the policy puts it off for more than a day".to_owned();
                    return self.give_up(reason, actions);
                }
                let until = now.after(Duration::from_nanos(time));
                self.state = State::Deferred { until };
                return;
            }
            Plan::Refuse(reason) => return self.give_up(reason, actions),
        };
        if self.is_exclusive && self.way != Way::Replace {
            let reason = "both versions cannot write one disk: the plan must be to replace";
            return self.give_up(reason.to_owned(), actions);
        }
        self.state = State::Booting;
        actions.push(Action::Boot);
    }

    fn judged(&mut self, now: Instant, judgement: Judgement, actions: &mut Vec<Action>) {
        match judgement {
            Judgement::BuiltIn | Judgement::Keep => {
                actions.push(Action::Share(100));
                actions.push(Action::Adopt);
                self.drain(now, Which::Old);
                actions.push(Action::Decided(Verdict::Kept));
            }
            Judgement::Wait(time) => {
                self.state = State::Watching {
                    until: now.after(Duration::from_nanos(time)),
                };
            }
            Judgement::Advance(canary) => self.share(now, canary, actions),
            Judgement::RollBack(reason) => self.roll_back(now, reason, actions),
        }
    }

    fn share(&mut self, now: Instant, step: Canary, actions: &mut Vec<Action>) {
        self.state = State::Watching {
            until: now.after(Duration::from_nanos(step.period)),
        };
        actions.push(Action::Share(step.percent.min(100)));
    }

    fn roll_back(&mut self, now: Instant, reason: String, actions: &mut Vec<Action>) {
        actions.push(Action::Share(0));
        self.drain(now, Which::New);
        actions.push(Action::Decided(Verdict::RolledBack(reason)));
    }

    fn drain(&mut self, now: Instant, which: Which) {
        self.state = State::Draining {
            which,
            look: now,
            until: now.after(DRAIN),
        };
    }

    fn resume(&mut self, actions: &mut Vec<Action>) {
        if std::mem::take(&mut self.is_asked) {
            actions.push(Action::Resume);
        }
    }

    /// Everything is as if nothing had been.
    fn give_up(&mut self, reason: String, actions: &mut Vec<Action>) {
        if std::mem::take(&mut self.is_made) {
            actions.push(Action::Kill(Which::New));
        }
        self.resume(actions);
        self.state = State::Over;
        actions.push(Action::Decided(Verdict::Refused(reason)));
    }
}

#[cfg(test)]
mod tests;
