//! A scheduler: one after the other, each for the same time, whatever its weight.
//!
//! After a task comes the ready one with the next higher number, and after the
//! highest the lowest. So a task waits for one slice of each of the others at most.
//! What is decided follows from the question alone: nothing is kept between two.
//!
//! | setting | default | |
//! |---|---|---|
//! | `slice` | `"2ms"` | for how long each runs, 100us to 100ms |
//!
//! ```toml
//! [policy.scheduler]
//! plugin = "plugins/round-robin"
//! config = { slice = "1ms" }
//! ```

mod bindings;

use std::sync::Mutex;

use bindings::{lifecycle, scheduler};
use lifecycle::{Identity, Setting, Task};
use scheduler::{Candidate, Choice, View};
use wharf_plugin_settings::{Settings, open};

static POLICY: Mutex<RoundRobin> = Mutex::new(RoundRobin { slice: 2_000_000 });

struct RoundRobin {
    /// For how long each runs, in nanoseconds.
    slice: u64,
}

impl RoundRobin {
    fn configure(settings: Vec<Setting>) -> Result<Self, String> {
        let mut settings = Settings::new(settings.into_iter().map(|it| (it.key, it.value)));
        let slice = settings.duration("slice", 100_000..=100_000_000, 2_000_000)?;
        settings.finish()?;
        Ok(Self { slice })
    }

    fn next(&self, view: &View) -> Choice {
        let after = view.last.map(|slice| slice.replica);
        let turn = |it: &&Candidate| (after.is_some_and(|last| it.replica <= last), it.replica);
        let chosen = view.ready.iter().min_by_key(turn);
        Choice {
            replica: chosen.map_or(u32::MAX, |it| it.replica),
            generation: chosen.map_or(0, |it| it.generation),
            slice: self.slice,
        }
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

    fn configure(settings: Vec<Setting>, _tasks: Vec<Task>) -> Result<(), String> {
        *open(&POLICY) = RoundRobin::configure(settings)?;
        Ok(())
    }

    fn save() -> Vec<u8> {
        Vec::new()
    }

    fn restore(_schema: u32, _state: Vec<u8>) -> Result<(), String> {
        Err("round-robin keeps no state".to_owned())
    }
}

impl scheduler::Guest for Plugin {
    fn next(view: View) -> Choice {
        open(&POLICY).next(&view)
    }
}

#[cfg(test)]
mod tests;
