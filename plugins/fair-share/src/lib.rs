//! A scheduler: processor time by weight, and those that slept soon.
//!
//! Each time that a task runs it has *used* that time divided by its weight; the
//! ready task that has used least runs next. Time that nobody else wanted is free.
//! A task that comes back from sleep starts up to `boost` slices behind the others,
//! so that it runs before those that always want to; but never further behind than
//! it was, so that its share stays that of its weight.
//!
//! | setting | default | |
//! |---|---|---|
//! | `boost` | `1` | slices that a sleeper may be behind, 0 to 100 |
//! | `slice` | `"2ms"` | for how long each runs, 100us to 100ms |
//!
//! ```toml
//! [policy.scheduler]
//! plugin = "plugins/fair-share"
//! config = { boost = 2 }
//! ```
//!
//! It keeps what everybody has used through a swap.

mod bindings;

use std::sync::Mutex;

use bindings::{lifecycle, scheduler};
use lifecycle::{Identity, Setting, Task};
use scheduler::{Candidate, Choice, Slice, SliceEnd, View};
use wharf_plugin_settings::{Settings, open, read_state, write_state};

/// What a nanosecond at weight 1 counts; at the highest weight, 10,000, it is 1.
const SCALE: i64 = 10_000;

/// A slice counts so many nanoseconds at least: nobody runs for nothing.
const RAN_LEAST: u64 = 1_000;

/// And at most: that a host was stopped for a while is not its task's fault.
const RAN_MOST: u64 = 100_000_000;

static POLICY: Mutex<FairShare> = Mutex::new(FairShare {
    boost: 1,
    slice: 2_000_000,
    shares: Vec::new(),
});

#[derive(Clone)]
struct FairShare {
    boost: i64,
    slice: u64,
    /// By number of the replica.
    shares: Vec<Share>,
}

#[derive(Clone, Copy, Default)]
struct Share {
    /// What it used beyond the one that runs on its worker; below 0 when it is behind.
    ahead: i64,
    weight: u32,
    /// Where it was seen, from 1; 0 is nowhere yet.
    worker: u32,
}

impl FairShare {
    fn configure(&mut self, settings: Vec<Setting>, tasks: usize) -> Result<(), String> {
        let mut by = Settings::new(settings.into_iter().map(|it| (it.key, it.value)));
        let boost = by.number("boost", 0..=100, 1)?;
        let slice = by.duration("slice", 100_000..=100_000_000, 2_000_000)?;
        by.finish()?;
        (self.boost, self.slice) = (boost.try_into().unwrap_or(0), slice);
        self.shares.resize(tasks, Share::default());
        Ok(())
    }

    fn next(&mut self, view: &View) -> Choice {
        if let Some(slice) = &view.last {
            self.charge(slice);
        }
        let worker = view.worker.saturating_add(1);
        let mut best: Option<(i64, &Candidate)> = None;
        for it in &view.ready {
            // One that nobody told of has no share: the host's order then.
            let Some(ahead) = self.enter(it, worker) else {
                best = view.ready.first().map(|first| (0, first));
                break;
            };
            if best.is_none_or(|(least, _)| ahead < least) {
                best = Some((ahead, it));
            }
        }
        // The others are ahead of that one now, or behind it while they sleep.
        if let Some((ahead @ 1.., _)) = best {
            for share in self.shares.iter_mut().filter(|it| it.worker == worker) {
                share.ahead = share.ahead.saturating_sub(ahead);
            }
        }
        Choice {
            replica: best.map_or(u32::MAX, |(_, it)| it.replica),
            generation: best.map_or(0, |(_, it)| it.generation),
            slice: self.slice,
        }
    }

    /// Books a slice.
    fn charge(&mut self, slice: &Slice) {
        let debt = self.slice;
        if let Some(share) = self.share(slice.replica) {
            let ran = slice.ran.clamp(RAN_LEAST, RAN_MOST);
            share.ahead = share.ahead.saturating_add(counts(ran, share.weight));
            // Who sleeps owes one slice at most when it comes back.
            if slice.end != SliceEnd::Preempted {
                share.ahead = share.ahead.min(counts(debt, share.weight));
            }
        }
    }

    /// How far a candidate is ahead; `None` when nobody told of it.
    fn enter(&mut self, it: &Candidate, worker: u32) -> Option<i64> {
        let behind = counts(self.slice, it.weight).saturating_mul(self.boost);
        let share = self.share(it.replica)?;
        if share.worker == 0 {
            share.ahead = 0;
        }
        (share.weight, share.worker) = (it.weight, worker);
        let most = counts(RAN_MOST, it.weight);
        share.ahead = share.ahead.clamp(behind.saturating_neg(), most);
        Some(share.ahead)
    }

    fn share(&mut self, replica: u32) -> Option<&mut Share> {
        self.shares.get_mut(usize::try_from(replica).ok()?)
    }

    fn save(&self) -> Vec<u8> {
        let rest = |it: &Share| u64::from(it.worker) << 32 | u64::from(it.weight);
        let share = |it: &Share| [it.ahead.cast_unsigned(), rest(it)];
        write_state(self.shares.iter().flat_map(share))
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let half = |rest: u64| u32::try_from(rest & u64::from(u32::MAX)).unwrap_or(0);
        let share = |[ahead, rest]: [u64; 2]| Share {
            ahead: ahead.cast_signed(),
            weight: half(rest),
            worker: half(rest >> 32),
        };
        let told = self.shares.len();
        self.shares = read_state(state)?.into_iter().map(share).collect();
        self.shares.resize(told, Share::default());
        Ok(())
    }
}

/// What so many nanoseconds count at a weight.
fn counts(ns: u64, weight: u32) -> i64 {
    let ns = i64::try_from(ns.min(RAN_MOST)).unwrap_or(0);
    ns.saturating_mul(SCALE)
        .checked_div(i64::from(weight.max(1)))
        .unwrap_or(i64::MAX)
}

struct Plugin;

impl lifecycle::Guest for Plugin {
    fn describe() -> Identity {
        Identity {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state_schema: 1,
            oldest_schema: 1,
        }
    }

    fn configure(settings: Vec<Setting>, tasks: Vec<Task>) -> Result<(), String> {
        open(&POLICY).configure(settings, tasks.len())
    }

    fn save() -> Vec<u8> {
        open(&POLICY).save()
    }

    fn restore(_schema: u32, state: Vec<u8>) -> Result<(), String> {
        open(&POLICY).restore(&state)
    }
}

impl scheduler::Guest for Plugin {
    fn next(view: View) -> Choice {
        open(&POLICY).next(&view)
    }
}

#[cfg(test)]
mod tests;
