//! The tasks of a cell: which of them live, on which worker, and what follows
//! when one ends.
//!
//! ```text
//!            Boot                Booted
//!   Down ───────────▶ Starting ─────────▶ Up ──┐ Stop, Restart: told, once
//!    ▲  ▲               │  ▲              │ ◀─┘
//!    │  └───────────────┤  │ pause over   │ Ended
//!    │       BootFailed │  │              │
//!    │                  ▼  │              ▼
//!    └───────────── is it to run again? ◀─┘
//!         no            │ yes
//!                       └─▶ BackingOff
//! ```
//!
//! Each start is a new generation. Whatever a worker says of an older one is
//! about a guest that is gone, and changes nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Instant, Outcome};

/// Pause before the first restart. Short: most restarts are of something that
/// failed once.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);

/// The pause doubles with each failure in a row, up to this: long enough that a
/// task that cannot run costs nothing, short enough that one whose reason has
/// gone is back before its operator asks.
pub const BACKOFF_LAST: Duration = Duration::from_secs(30);

/// A generation that lived so long was healthy: the next failure is a first one.
pub const HEALTHY: Duration = Duration::from_secs(10);

/// When a task is started again after it ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Not at all.
    Never,
    /// When it faulted, exited with another status than 0, or could not start.
    #[default]
    OnFailure,
    /// Whatever its status.
    Always,
}

/// One life of one replica. Replicas are numbered through the cell, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskKey {
    /// Which replica.
    pub replica: usize,
    /// Which life, from 1.
    pub generation: u64,
}

/// What the cell is told of a replica when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Which task it belongs to; tasks are numbered in their order.
    pub task: usize,
    /// Its weight, which also counts when workers are chosen.
    pub weight: u32,
    /// When it is started again.
    pub restart: Restart,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The cell starts: everything is to run.
    Start,
    /// A worker has made a guest.
    Booted(TaskKey),
    /// A worker could not.
    BootFailed(TaskKey),
    /// A guest has ended.
    Ended(TaskKey, Outcome),
    /// A guest went to another worker.
    Moved(TaskKey, usize),
    /// A worker has nothing to run.
    Idle(usize),
    /// A worker has guests ready that it does not get to.
    Crowded(usize),
    /// The operator wants a replica stopped.
    Stop(usize),
    /// The operator wants a new generation of a replica.
    Restart(usize),
    /// A life that was begun beside the present one, on this worker, has taken its place.
    Adopted(TaskKey, usize),
    /// The operator wants everything to end; the second time, at once.
    Down,
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Have a worker make a guest and run it.
    Boot {
        /// The new generation.
        key: TaskKey,
        /// The worker.
        worker: usize,
    },
    /// Tell a guest to end, and end it when it does not.
    Stop {
        /// Which.
        key: TaskKey,
        /// The worker that has it.
        worker: usize,
    },
    /// End a guest at once.
    Kill {
        /// Which.
        key: TaskKey,
        /// The worker that has it.
        worker: usize,
    },
    /// Have a worker give a ready guest away.
    Donate {
        /// The worker that has too many.
        from: usize,
        /// The one that has none.
        to: usize,
    },
    /// Nothing but a wait, told for the record.
    BackOff {
        /// The generation that failed.
        key: TaskKey,
        /// How long the next one waits.
        pause: Duration,
    },
    /// The cell is over.
    Finished,
}

/// Where a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It does not live and is not to.
    Down,
    /// A worker makes it.
    Starting {
        /// Which worker.
        worker: usize,
    },
    /// It lives.
    Up {
        /// On which worker.
        worker: usize,
        /// Since when.
        since: Instant,
    },
    /// It waits to be started again.
    BackingOff {
        /// Until then.
        until: Instant,
    },
}

/// What the operator wants of a replica that has been told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Wish {
    /// That it runs; it was not told.
    Run,
    /// That it ends.
    End,
    /// That another generation follows.
    Again,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Slot {
    replica: Replica,
    state: State,
    wish: Wish,
    generation: u64,
    /// The last number that was given to a life, be it in place or not.
    last: u64,
    restarts: u64,
    failures: u32,
    ended: Option<Outcome>,
}

/// All replicas of a cell. Serialised, it goes on in another process of the same machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    slots: Vec<Slot>,
    /// Which workers said that they are idle and were given nothing since.
    #[serde(skip)]
    idle: Vec<bool>,
    going_down: bool,
}

impl Cell {
    /// A cell of so many workers, at least one, in which nothing lives yet.
    #[must_use]
    pub fn new(workers: usize, replicas: &[Replica]) -> Self {
        let slot = |replica: &Replica| Slot {
            replica: *replica,
            state: State::Down,
            wish: Wish::Run,
            generation: 0,
            last: 0,
            restarts: 0,
            failures: 0,
            ended: None,
        };
        Self {
            slots: replicas.iter().map(slot).collect(),
            idle: vec![false; workers.max(1)],
            going_down: false,
        }
    }

    /// The same cell on other workers, at least one. What lives is where `place` says.
    #[must_use]
    pub fn moved_to(mut self, workers: usize, place: impl Fn(TaskKey) -> Option<usize>) -> Self {
        self.idle = vec![false; workers.max(1)];
        for (replica, slot) in self.slots.iter_mut().enumerate() {
            let key = TaskKey {
                replica,
                generation: slot.generation,
            };
            if let State::Up { worker, .. } | State::Starting { worker } = &mut slot.state {
                *worker = place(key).unwrap_or(0);
            }
        }
        self
    }

    /// Whether everything is to end.
    #[must_use]
    pub const fn is_going_down(&self) -> bool {
        self.going_down
    }

    /// Where a replica is.
    #[must_use]
    pub fn state(&self, replica: usize) -> State {
        self.slots
            .get(replica)
            .map_or(State::Down, |slot| slot.state)
    }

    /// A replica's present or last life.
    #[must_use]
    pub fn key(&self, replica: usize) -> TaskKey {
        let generation = self.slots.get(replica).map_or(0, |slot| slot.generation);
        TaskKey {
            replica,
            generation,
        }
    }

    /// Begins another life of a replica beside the present one, which is to take its
    /// place; says which, and which worker has the present one. None when it does not
    /// live, or not for long.
    pub fn begin_heir(&mut self, replica: usize) -> Option<(TaskKey, usize)> {
        if self.going_down {
            return None;
        }
        let slot = self.slots.get_mut(replica)?;
        let State::Up { worker, .. } = slot.state else {
            return None;
        };
        if slot.wish != Wish::Run {
            return None;
        }
        slot.last = slot.last.saturating_add(1);
        let generation = slot.last;
        let key = TaskKey {
            replica,
            generation,
        };
        Some((key, worker))
    }

    /// How often a replica was started again.
    #[must_use]
    pub fn restarts(&self, replica: usize) -> u64 {
        self.slots.get(replica).map_or(0, |slot| slot.restarts)
    }

    /// How the last generation that ended did so.
    #[must_use]
    pub fn last_outcome(&self, replica: usize) -> Option<Outcome> {
        self.slots.get(replica).and_then(|slot| slot.ended)
    }

    /// When [`Event::Tick`] is due; `None` when nothing waits for a time.
    #[must_use]
    pub fn alarm(&self) -> Option<Instant> {
        let until = |slot: &Slot| match slot.state {
            State::BackingOff { until } => Some(until),
            _ => None,
        };
        self.slots.iter().filter_map(until).min()
    }

    /// Takes in what happened and says what to do, in this order.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Start => {
                for replica in 0..self.slots.len() {
                    self.boot(replica, &mut actions);
                }
            }
            Event::Booted(key) => self.booted(now, key, &mut actions),
            Event::BootFailed(key) => self.over(now, key, None, &mut actions),
            Event::Ended(key, outcome) => self.over(now, key, Some(outcome), &mut actions),
            Event::Moved(key, to) => self.moved(key, to),
            Event::Idle(worker) => self.set_idle(worker, true),
            Event::Crowded(from) => self.relieve(from, &mut actions),
            Event::Stop(replica) => self.tell(replica, Wish::End, &mut actions),
            Event::Restart(replica) => self.tell(replica, Wish::Again, &mut actions),
            Event::Adopted(key, worker) => self.adopt(now, key, worker, &mut actions),
            Event::Down if self.going_down => self.kill_all(&mut actions),
            Event::Down => self.go_down(),
            Event::Tick => self.tick(now, &mut actions),
        }
        if self.going_down {
            self.wind_down(&mut actions);
        }
        actions
    }

    fn boot(&mut self, replica: usize, actions: &mut Vec<Action>) {
        let worker = self.least_loaded();
        if let Some(slot) = self.slots.get_mut(replica) {
            slot.last = slot.last.saturating_add(1);
            slot.generation = slot.last;
            slot.wish = Wish::Run;
            slot.state = State::Starting { worker };
            let generation = slot.generation;
            let key = TaskKey {
                replica,
                generation,
            };
            actions.push(Action::Boot { key, worker });
            self.set_idle(worker, false);
        }
    }

    fn booted(&mut self, now: Instant, key: TaskKey, actions: &mut Vec<Action>) {
        let Some(slot) = self.current(key) else {
            return;
        };
        if let State::Starting { worker } = slot.state {
            slot.state = State::Up { worker, since: now };
            if slot.wish != Wish::Run {
                actions.push(Action::Stop { key, worker });
            }
        }
    }

    /// What is said of the life before does not count any more.
    fn adopt(&mut self, now: Instant, key: TaskKey, worker: usize, actions: &mut Vec<Action>) {
        let slot = self.slots.get_mut(key.replica);
        if let Some(slot) =
            slot.filter(|it| it.generation < key.generation && key.generation <= it.last)
        {
            slot.generation = key.generation;
            slot.failures = 0;
            slot.state = State::Up { worker, since: now };
            // It was said to the one before.
            if slot.wish != Wish::Run {
                actions.push(Action::Stop { key, worker });
            }
        }
    }

    /// A generation is over, or never began (`None`).
    fn over(
        &mut self,
        now: Instant,
        key: TaskKey,
        outcome: Option<Outcome>,
        actions: &mut Vec<Action>,
    ) {
        let going_down = self.going_down;
        let Some(slot) = self.current(key) else {
            return;
        };
        let lived = match slot.state {
            State::Up { since, .. } => now.since(since),
            State::Starting { .. } => Duration::ZERO,
            State::Down | State::BackingOff { .. } => return,
        };
        slot.ended = outcome.or(slot.ended);
        slot.state = State::Down;
        let wish = std::mem::replace(&mut slot.wish, Wish::Run);
        if wish == Wish::End || going_down {
            return;
        }
        if wish == Wish::Again {
            slot.failures = 0;
            self.boot_again(key.replica, actions);
            return;
        }
        let failed = !matches!(outcome, Some(Outcome::Exited { status: 0 }));
        let again = match slot.replica.restart {
            Restart::Never => false,
            Restart::OnFailure => failed,
            Restart::Always => true,
        };
        if !again {
            return;
        }
        if lived >= HEALTHY {
            slot.failures = 0;
        }
        let pause = backoff(slot.failures);
        slot.failures = slot.failures.saturating_add(1);
        slot.state = State::BackingOff {
            until: now.after(pause),
        };
        actions.push(Action::BackOff { key, pause });
    }

    fn boot_again(&mut self, replica: usize, actions: &mut Vec<Action>) {
        if let Some(slot) = self.slots.get_mut(replica) {
            slot.restarts = slot.restarts.saturating_add(1);
        }
        self.boot(replica, actions);
    }

    fn moved(&mut self, key: TaskKey, to: usize) {
        if let Some(slot) = self.current(key)
            && let State::Up { worker, .. } = &mut slot.state
        {
            *worker = to;
        }
    }

    /// Has a crowded worker give to an idle one, if there is one.
    fn relieve(&mut self, from: usize, actions: &mut Vec<Action>) {
        self.set_idle(from, false);
        if let Some(to) = self.idle.iter().position(|&idle| idle) {
            self.set_idle(to, false);
            actions.push(Action::Donate { from, to });
        }
    }

    fn tell(&mut self, replica: usize, wish: Wish, actions: &mut Vec<Action>) {
        let going_down = self.going_down;
        let Some(slot) = self.slots.get_mut(replica) else {
            return;
        };
        let key = TaskKey {
            replica,
            generation: slot.generation,
        };
        match slot.state {
            State::Up { worker, .. } => {
                let told = slot.wish != Wish::Run;
                slot.wish = wish;
                if !told {
                    actions.push(Action::Stop { key, worker });
                }
            }
            State::Starting { .. } => slot.wish = wish,
            State::Down | State::BackingOff { .. } => {
                slot.state = State::Down;
                slot.failures = 0;
                if wish == Wish::Again && !going_down {
                    self.boot_again(replica, actions);
                }
            }
        }
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for replica in 0..self.slots.len() {
            let due = matches!(self.state(replica), State::BackingOff { until } if until <= now);
            if due {
                self.boot_again(replica, actions);
            }
        }
    }

    /// From now on nothing is started, so nothing waits for that either.
    fn go_down(&mut self) {
        self.going_down = true;
        for slot in &mut self.slots {
            if matches!(slot.state, State::BackingOff { .. }) {
                slot.state = State::Down;
            }
        }
    }

    /// Tells the last task that still lives to end. Those before it are told when
    /// it has: what was started last may need what was started first.
    fn wind_down(&mut self, actions: &mut Vec<Action>) {
        let alive = |slot: &Slot| matches!(slot.state, State::Up { .. } | State::Starting { .. });
        let last = self
            .slots
            .iter()
            .filter(|slot| alive(slot))
            .map(|slot| slot.replica.task)
            .max();
        match last {
            None => actions.push(Action::Finished),
            Some(task) => {
                for replica in 0..self.slots.len() {
                    if self
                        .slots
                        .get(replica)
                        .is_some_and(|slot| slot.replica.task == task)
                    {
                        self.tell(replica, Wish::End, actions);
                    }
                }
            }
        }
    }

    fn kill_all(&mut self, actions: &mut Vec<Action>) {
        for (replica, slot) in self.slots.iter_mut().enumerate() {
            let key = TaskKey {
                replica,
                generation: slot.generation,
            };
            if let State::Up { worker, .. } | State::Starting { worker } = slot.state {
                slot.wish = Wish::End;
                actions.push(Action::Kill { key, worker });
            }
        }
    }

    /// The slot of a key, unless the key is of a generation that is gone.
    fn current(&mut self, key: TaskKey) -> Option<&mut Slot> {
        self.slots
            .get_mut(key.replica)
            .filter(|slot| slot.generation == key.generation)
    }

    fn set_idle(&mut self, worker: usize, idle: bool) {
        if let Some(flag) = self.idle.get_mut(worker) {
            *flag = idle;
        }
    }

    /// The worker whose guests weigh least; of equals, the first.
    fn least_loaded(&self) -> usize {
        let load = |of: usize| -> u64 {
            let on = |slot: &&Slot| match slot.state {
                State::Up { worker, .. } | State::Starting { worker } => worker == of,
                State::Down | State::BackingOff { .. } => false,
            };
            self.slots
                .iter()
                .filter(on)
                .map(|slot| u64::from(slot.replica.weight))
                .sum()
        };
        (0..self.idle.len())
            .min_by_key(|&worker| load(worker))
            .unwrap_or(0)
    }
}

/// 100 ms, 200 ms, 400 ms … 30 s.
fn backoff(failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);
    BACKOFF_FIRST.saturating_mul(factor).min(BACKOFF_LAST)
}

#[cfg(test)]
mod tests;
