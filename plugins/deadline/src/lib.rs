//! A scheduler: earliest deadline first, within a budget.
//!
//! A task with the label `deadline = "5ms"` has a *period* of that length, which
//! begins when it becomes ready after the one before is over. Until it has run for
//! its `budget` in a period, it runs before all tasks without a deadline; among
//! several the one whose period ends first. Beyond its budget it is as a task
//! without a deadline until its next period, so that none keeps the others from
//! running. Those run by the host's virtual time, which goes by weight.
//!
//! | label of a task | default | |
//! |---|---|---|
//! | `deadline` | none | 1ms to 10s |
//! | `budget` | half the deadline | 100us to the deadline |
//!
//! | setting | default | |
//! |---|---|---|
//! | `slice` | `"2ms"` | for how long each runs, 100us to 100ms; no longer than what is left of its budget |
//!
//! ```toml
//! [policy.scheduler]
//! plugin = "plugins/deadline"
//!
//! [[task]]
//! labels = { deadline = "5ms", budget = "1ms" }
//! ```
//!
//! Nothing is kept through a swap: after it, periods begin anew.

mod bindings;

use std::ops::RangeInclusive;
use std::sync::Mutex;

use bindings::{lifecycle, scheduler};
use lifecycle::{Identity, Setting, Task};
use scheduler::{Candidate, Choice, View};
use wharf_plugin_settings::{Settings, duration, open, wanted_duration, wrong};

const MS: u64 = 1_000_000;

static POLICY: Mutex<Deadline> = Mutex::new(Deadline {
    slice: 2 * MS,
    terms: Vec::new(),
});

#[derive(Clone)]
struct Deadline {
    slice: u64,
    /// By number of the replica; none of a task without a deadline.
    terms: Vec<Option<Terms>>,
}

/// What a task with a deadline may use, and its present period. In nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Terms {
    deadline: u64,
    budget: u64,
    generation: u64,
    ends: u64,
    /// For how long it had run when the period began.
    ran: u64,
}

impl Deadline {
    fn configure(&mut self, settings: Vec<Setting>, tasks: &[Task]) -> Result<(), String> {
        let mut by = Settings::new(settings.into_iter().map(|it| (it.key, it.value)));
        let slice = by.duration("slice", 100_000..=100 * MS, 2 * MS)?;
        by.finish()?;
        let terms = tasks.iter().map(Terms::of);
        let mut terms = terms.collect::<Result<Vec<_>, _>>()?;
        // Who has the same terms as before is in the same period.
        for (new, old) in terms.iter_mut().zip(&self.terms) {
            if let (Some(new), Some(old)) = (new, old)
                && (new.deadline, new.budget) == (old.deadline, old.budget)
            {
                *new = *old;
            }
        }
        (self.slice, self.terms) = (slice, terms);
        Ok(())
    }

    fn next(&mut self, view: &View) -> Choice {
        let slice = self.slice;
        // By what it is chosen, and for how long it may run.
        let mut best: Option<((bool, u64), &Candidate, u64)> = None;
        for it in &view.ready {
            let within = self.terms(it.replica).and_then(|terms| {
                let left = terms.left(it, view.now);
                (left > 0).then_some(((false, terms.ends), left.min(slice)))
            });
            let (key, time) = within.unwrap_or(((true, it.virtual_time), slice));
            if best.is_none_or(|(least, ..)| key < least) {
                best = Some((key, it, time));
            }
        }
        Choice {
            replica: best.map_or(u32::MAX, |(_, it, _)| it.replica),
            generation: best.map_or(0, |(_, it, _)| it.generation),
            slice: best.map_or(slice, |(.., time)| time.max(100_000)),
        }
    }

    fn terms(&mut self, replica: u32) -> Option<&mut Terms> {
        self.terms.get_mut(usize::try_from(replica).ok()?)?.as_mut()
    }
}

impl Terms {
    /// What a task's labels say.
    fn of(task: &Task) -> Result<Option<Self>, String> {
        let read = |key: &str, range: RangeInclusive<u64>| {
            let Some(label) = task.labels.iter().find(|it| it.key == key) else {
                return Ok(None);
            };
            let read = duration(&label.value).filter(|ns| range.contains(ns));
            let wanted = wanted_duration(&range, *range.end());
            let refusal = wrong(key, &label.value, &wanted);
            let named = || format!("task {}: label {refusal}", task.name);
            read.map(Some).ok_or_else(named)
        };
        let deadline = read("deadline", MS..=10_000 * MS)?;
        let most = deadline.unwrap_or(0);
        let budget = read("budget", 100_000..=most)?.unwrap_or(most / 2);
        Ok(deadline.map(|deadline| Self {
            deadline,
            budget,
            generation: 0,
            ends: 0,
            ran: 0,
        }))
    }

    /// What is left of the budget. Begins a period when the one before is over.
    fn left(&mut self, it: &Candidate, now: u64) -> u64 {
        let same = self.generation == it.generation;
        if now >= self.ends || !same {
            // Who was only put aside for others was ready since before.
            let before = if same { self.ends } else { 0 };
            let begun = it.ready_since.min(now).max(before);
            let begun = if begun.saturating_add(self.deadline) > now {
                begun
            } else {
                now
            };
            self.ends = begun.saturating_add(self.deadline);
            (self.generation, self.ran) = (it.generation, it.ran);
        }
        let ran = it.ran.saturating_sub(self.ran);
        self.budget.saturating_sub(ran)
    }
}

struct Plugin;

impl lifecycle::Guest for Plugin {
    fn describe() -> Identity {
        Identity {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state_schema: 0,
            oldest_schema: 0,
        }
    }

    fn configure(settings: Vec<Setting>, tasks: Vec<Task>) -> Result<(), String> {
        open(&POLICY).configure(settings, &tasks)
    }

    fn save() -> Vec<u8> {
        Vec::new()
    }

    fn restore(_schema: u32, _state: Vec<u8>) -> Result<(), String> {
        Err("deadline keeps no state".to_owned())
    }
}

impl scheduler::Guest for Plugin {
    fn next(view: View) -> Choice {
        open(&POLICY).next(&view)
    }
}

#[cfg(test)]
mod tests;
