//! An upgrader: the new version gets a share of the connections that grows step by
//! step, and goes when it does worse than the old one.
//!
//! At each step it waits until the new version took so many connections. It goes back
//! at a fault; when errors are more frequent than in the old one's connections by a
//! factor, and than is tolerated; when its 99th percentile is longer by a factor. After
//! the last step it is kept. A task with a state is replaced, since two versions cannot
//! both have it, and judged by the built-in policy. At which step each upgrade is, is
//! kept through a swap.
//!
//! | setting | default | |
//! |---|---|---|
//! | `steps` | `[5, 25, 50, 100]` | shares in percent, rising |
//! | `period` | `"1min"` | how long each step takes, 1s to 24h |
//! | `connections` | `20` | what it must take in a step to be judged |
//! | `errors` | `1` | percent of its connections that may have errors in any case |
//! | `error-factor`, `p99-factor` | `1.5` | how many times the old one's it may have |
//!
//! ```toml
//! [policy.upgrader]
//! plugin = "plugins/canary-judge"
//! config = { steps = [1, 10, 50], period = "5min", p99-factor = 2 }
//! ```

mod bindings;

use std::sync::{LazyLock, Mutex};

use bindings::{lifecycle, upgrader};
use lifecycle::{Identity, Setting, Task};
use upgrader::{Canary, Judgement, Observation, Plan, Proposal};
use wharf_plugin_settings::{
    Settings, list, number, open, percent, read_state, same_format, times, write_state,
};

const S: u64 = 1_000_000_000;

static POLICY: LazyLock<Mutex<CanaryJudge>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct CanaryJudge {
    /// Percents below 100, rising.
    steps: Vec<u32>,
    period: u64,
    connections: u64,
    /// In thousandths of a percent; the factors in thousandths.
    errors: u64,
    error_factor: u64,
    p99_factor: u64,
    /// By number of the replica.
    trials: Vec<Trial>,
}

/// How far an upgrade is: the generation of the new version, 0 when there is none;
/// the place of its share in the steps; connections that it had taken before.
type Trial = [u64; 3];

impl CanaryJudge {
    fn configure(&mut self, settings: Vec<Setting>, tasks: usize) -> Result<(), String> {
        let mut by = Settings::new(settings.into_iter().map(|it| (it.key, it.value)));
        let wanted = "percents from 1 to 100 that rise, such as [5, 25, 50]";
        let new = Self {
            steps: by.read("steps", vec![5, 25, 50], wanted, steps)?,
            period: by.duration("period", S..=86_400 * S, 60 * S)?,
            connections: by.number("connections", 0..=u64::MAX, 20)?,
            errors: by.thousandths("errors", 0..=100_000, 1000)?,
            error_factor: by.thousandths("error-factor", 1000..=100_000, 1500)?,
            p99_factor: by.thousandths("p99-factor", 1000..=100_000, 1500)?,
            trials: self.trials.clone(),
        };
        by.finish()?;
        *self = new;
        self.trials.resize(tasks, Trial::default());
        Ok(())
    }

    fn review(&mut self, proposal: &Proposal) -> Plan {
        let first = self.canary(0);
        if let Some(trial) = self.trial(proposal) {
            *trial = [proposal.new.generation, 0, 0];
            return first.map_or(Plan::BuiltIn, Plan::Canary);
        }
        Plan::BuiltIn
    }

    fn judge(&mut self, proposal: &Proposal, old: &Observation, new: &Observation) -> Judgement {
        if new.faults > 0 {
            return Judgement::RollBack(format!("it ended {} times by a fault", new.faults));
        }
        let (generation, taken) = (proposal.new.generation, new.connections);
        let (why, enough) = (self.worse(old, new), self.connections);
        let Some(trial) = self.trial(proposal) else {
            return Judgement::BuiltIn;
        };
        let [known, at, before] = *trial;
        // One of which nothing is known begins anew.
        let step = if known != generation {
            0
        } else if taken.saturating_sub(before) < enough {
            return Judgement::Wait(self.period);
        } else if let Some(why) = why {
            return Judgement::RollBack(why);
        } else {
            at.saturating_add(1)
        };
        *trial = [generation, step, taken];
        let next = self.canary(step);
        next.map_or(Judgement::Keep, Judgement::Advance)
    }

    fn canary(&self, step: u64) -> Option<Canary> {
        let percent = self.steps.get(usize::try_from(step).ok()?).copied();
        let period = self.period;
        percent.map(|percent| Canary { percent, period })
    }

    /// What is known of an upgrade, if it is one that can go by steps.
    fn trial(&mut self, of: &Proposal) -> Option<&mut Trial> {
        let trial = self.trials.get_mut(usize::try_from(of.replica).ok()?);
        trial.filter(|_| (of.old.state_schema, of.new.state_schema) == (0, 0))
    }

    /// Why the new version is worse than the old one, if it is.
    fn worse(&self, old: &Observation, new: &Observation) -> Option<String> {
        let share = |of: &Observation| percent(of.errors, of.connections);
        let (theirs, ours) = (share(old), share(new));
        if ours > times(theirs, self.error_factor).max(self.errors) {
            return Some(format!(
                "errors in {} of its {} connections, in {} of the old one's {}",
                new.errors, new.connections, old.errors, old.connections
            ));
        }
        let slower = old.p99 > 0 && new.p99 > times(old.p99, self.p99_factor);
        let (ours, theirs) = (new.p99 / 1000, old.p99 / 1000);
        slower.then(|| format!("its p99 is {ours} us, the old one's {theirs} us"))
    }

    fn save(&self) -> Vec<u8> {
        write_state(self.trials.as_flattened().iter().copied())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let told = self.trials.len();
        self.trials = read_state(state)?;
        self.trials.resize(told, Trial::default());
        Ok(())
    }
}

/// Reads the steps; the last, 100, needs no trial.
fn steps(text: &str) -> Option<Vec<u32>> {
    let percent = |text| number(text, 1..=100)?.try_into().ok();
    let mut steps: Vec<u32> = list(text).into_iter().map(percent).collect::<Option<_>>()?;
    steps.pop_if(|it| *it == 100);
    let good = steps.is_sorted_by(|a, b| a < b) && steps.last().is_some_and(|it| *it < 100);
    good.then_some(steps)
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

impl upgrader::Guest for Plugin {
    fn review(proposal: Proposal) -> Plan {
        open(&POLICY).review(&proposal)
    }

    fn transform(proposal: Proposal, state: Vec<u8>) -> Result<Vec<u8>, String> {
        let (old, new) = (proposal.old.state_schema, proposal.new.state_schema);
        same_format(old, new, state)
    }

    fn judge(proposal: Proposal, old: Observation, new: Observation) -> Judgement {
        open(&POLICY).judge(&proposal, &old, &new)
    }
}

#[cfg(test)]
mod tests;
