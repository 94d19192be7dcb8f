//! The built-in scheduler: who runs next on one worker, and for how long.
//!
//! Weighted fair queueing by virtual run time: a task that ran for a while has
//! used that time divided by its weight, and the ready task that has used least
//! runs next. So over any stretch in which tasks are always ready, their run
//! times stand to each other as their weights.
//!
//! A task that sleeps is out of the race. When it comes back it starts from
//! where the others are: it does not make up for what it did not use (that
//! would starve the others), nor pay longer than one slice for what it used
//! last (that would make its answer late).
//!
//! Another policy may choose among the ready tasks: `ask` makes the question
//! of the queue, and a turn of the answer. The books are kept all the same, so
//! that this policy can go on at any time.

mod ask;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::Instant;

pub use ask::{CANDIDATES, STARVED};

/// How long a task runs before the next is considered, unless it is alone.
///
/// Ending a slice costs about 50 µs on KVM-PVM: 2 ms keeps that to 2.5 %, and
/// keeps a hundred ready tasks below a quarter of a second.
pub const SLICE: Duration = Duration::from_millis(2);

/// Weight of a task that says nothing.
pub const WEIGHT_DEFAULT: u32 = 100;

/// Weights that a task may have.
pub const WEIGHTS: std::ops::RangeInclusive<u32> = 1..=10_000;

/// Where the floor starts again from 0.
const REBASE: u64 = 1 << 60;

/// Virtual nanoseconds in a nanosecond of a task of weight 1.
const SCALE: u64 = 10_000;

/// Which task runs next, among those of one worker, which are known by keys.
#[derive(Clone, Debug)]
pub struct FairQueue<K> {
    tasks: BTreeMap<K, Share>,
    /// The ready tasks, least used first.
    ready: BTreeSet<(u64, K)>,
    running: Option<K>,
    /// What the task that is furthest behind has used; never goes back.
    floor: u64,
}

#[derive(Clone, Copy, Debug)]
struct Share {
    weight: u32,
    /// Virtual nanoseconds used.
    used: u64,
    /// Nanoseconds used.
    ran: u64,
    /// Since when it is ready.
    since: Instant,
}

impl<K> Default for FairQueue<K> {
    fn default() -> Self {
        Self {
            tasks: BTreeMap::new(),
            ready: BTreeSet::new(),
            running: None,
            floor: 0,
        }
    }
}

impl<K: Copy + Ord> FairQueue<K> {
    /// Takes in a task that sleeps. Weights outside [`WEIGHTS`] are clamped.
    pub fn insert(&mut self, key: K, weight: u32) {
        let weight = weight.clamp(*WEIGHTS.start(), *WEIGHTS.end());
        self.remove(key);
        let used = self.floor;
        let share = Share {
            weight,
            used,
            ran: 0,
            since: Instant::default(),
        };
        self.tasks.insert(key, share);
    }

    /// Forgets a task, whatever it does.
    pub fn remove(&mut self, key: K) {
        self.sleep(key);
        self.tasks.remove(&key);
    }

    /// Makes a task ready. One that is ready or running stays as it is.
    pub fn wake(&mut self, now: Instant, key: K) {
        if self.running == Some(key) {
            return;
        }
        let floor = self.floor;
        let Some(share) = self.tasks.get_mut(&key) else {
            return;
        };
        if !self.ready.contains(&(share.used, key)) {
            let debt = virtual_ns(SLICE, share.weight);
            share.used = share.used.clamp(floor, floor.saturating_add(debt));
            share.since = now;
            self.ready.insert((share.used, key));
        }
    }

    /// Takes a task out of the race until it wakes.
    pub fn sleep(&mut self, key: K) {
        if self.running == Some(key) {
            self.running = None;
        }
        if let Some(share) = self.tasks.get(&key) {
            self.ready.remove(&(share.used, key));
        }
    }

    /// Says who runs now, and marks it as running. `None` when nobody is ready
    /// or somebody runs already.
    pub fn pick(&mut self) -> Option<K> {
        if self.running.is_some() {
            return None;
        }
        let (_, key) = *self.ready.first()?;
        self.pick_this(key)
    }

    /// The same with somebody else's choice: `None` when that one is not ready.
    fn pick_this(&mut self, key: K) -> Option<K> {
        if self.running.is_some() {
            return None;
        }
        let (behind, _) = *self.ready.first()?;
        let used = self.tasks.get(&key)?.used;
        if !self.ready.remove(&(used, key)) {
            return None;
        }
        self.floor = self.floor.max(behind);
        self.running = Some(key);
        if self.floor >= REBASE {
            self.rebase();
        }
        Some(key)
    }

    /// Counts from the floor on, so that nothing ever saturates: a task of weight 1
    /// would after 21 days of run time, and then not run for as long.
    fn rebase(&mut self) {
        let floor = std::mem::take(&mut self.floor);
        self.tasks
            .values_mut()
            .for_each(|share| share.used = share.used.saturating_sub(floor));
        let ready = std::mem::take(&mut self.ready);
        let moved = |(used, key): (u64, K)| (used.saturating_sub(floor), key);
        self.ready = ready.into_iter().map(moved).collect();
    }

    /// Books what the running task used. It goes on running until it is
    /// [put back](Self::yield_now) or [sleeps](Self::sleep).
    pub fn ran(&mut self, time: Duration) {
        if let Some(share) = self.running.and_then(|key| self.tasks.get_mut(&key)) {
            share.used = share.used.saturating_add(virtual_ns(time, share.weight));
            let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            share.ran = share.ran.saturating_add(ns);
        }
    }

    /// Puts the running task back among the ready.
    pub fn yield_now(&mut self, now: Instant) {
        if let Some(key) = self.running.take()
            && let Some(share) = self.tasks.get_mut(&key)
        {
            share.since = now;
            self.ready.insert((share.used, key));
        }
    }

    /// How long the running task may run on: `None` when no other is ready.
    #[must_use]
    pub fn slice(&self) -> Option<Duration> {
        (!self.ready.is_empty()).then_some(SLICE)
    }

    /// How many tasks are ready, without the one that runs.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.ready.len()
    }

    /// The ready task that would run last: the one to give away.
    #[must_use]
    pub fn last(&self) -> Option<K> {
        self.ready.last().map(|(_, key)| *key)
    }
}

fn virtual_ns(time: Duration, weight: u32) -> u64 {
    let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    ns.saturating_mul(SCALE)
        .checked_div(u64::from(weight))
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
