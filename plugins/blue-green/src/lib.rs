//! An upgrader: the new version starts beside the old and takes all new connections
//! at once; after a while it is kept, or the old one comes back.
//!
//! It goes back when the new version had a fault, or errors in more of a hundred
//! connections than the old one, by more than `errors`. Two that run side by side
//! cannot both have a state; what is done with a task that has one is a setting.
//!
//! | setting | default | |
//! |---|---|---|
//! | `period` | `"30s"` | how long both run before it is judged, 1s to 24h |
//! | `connections` | `0` | it is not kept before it took so many |
//! | `errors` | `1` | percent of its connections, beyond the old one's: 0 to 100 |
//! | `stateful` | `"replace"` | for a task that has a state: `"replace"` hands it over, `"refuse"` |
//!
//! ```toml
//! [policy.upgrader]
//! plugin = "plugins/blue-green"
//! config = { period = "2min", errors = 0.5 }
//! ```

mod bindings;

use std::sync::Mutex;

use bindings::{lifecycle, upgrader};
use lifecycle::{Identity, Setting, Task};
use upgrader::{Judgement, Observation, Plan, Proposal};
use wharf_plugin_settings::{Settings, open, percent, same_format};

const S: u64 = 1_000_000_000;

static POLICY: Mutex<BlueGreen> = Mutex::new(BlueGreen {
    period: 30 * S,
    connections: 0,
    errors: 1000,
    refuses_state: false,
});

struct BlueGreen {
    /// In nanoseconds.
    period: u64,
    connections: u64,
    /// In thousandths of a percent.
    errors: u64,
    refuses_state: bool,
}

impl BlueGreen {
    fn configure(settings: Vec<Setting>) -> Result<Self, String> {
        let mut by = Settings::new(settings.into_iter().map(|it| (it.key, it.value)));
        let word = |text: &str| match text {
            "replace" => Some(false),
            "refuse" => Some(true),
            _ => None,
        };
        let policy = Self {
            period: by.duration("period", S..=86_400 * S, 30 * S)?,
            connections: by.number("connections", 0..=u64::MAX, 0)?,
            errors: by.thousandths("errors", 0..=100_000, 1000)?,
            refuses_state: by.read("stateful", false, "replace or refuse", word)?,
        };
        by.finish()?;
        Ok(policy)
    }

    fn review(&self, proposal: &Proposal) -> Plan {
        match (has_state(proposal), self.refuses_state) {
            (false, _) => Plan::BlueGreen(self.period),
            (true, false) => Plan::Replace,
            (true, true) => Plan::Refuse(
                "it has a state, which two versions cannot both have: stateful = \"replace\" \
                 would hand it over"
                    .to_owned(),
            ),
        }
    }

    fn judge(&self, proposal: &Proposal, old: &Observation, new: &Observation) -> Judgement {
        if new.faults > 0 {
            return Judgement::RollBack(format!("it ended {} times by a fault", new.faults));
        }
        let (theirs, ours) = [old, new]
            .map(|it| percent(it.errors, it.connections))
            .into();
        if ours > theirs.saturating_add(self.errors) {
            return Judgement::RollBack(format!(
                "errors in {} of its {} connections, in {} of the old one's {}",
                new.errors, new.connections, old.errors, old.connections
            ));
        }
        if new.connections < self.connections && !has_state(proposal) {
            return Judgement::Wait(self.period);
        }
        Judgement::Keep
    }
}

/// Whether a version has a state to hand over, or expects one.
const fn has_state(proposal: &Proposal) -> bool {
    proposal.old.state_schema != 0 || proposal.new.state_schema != 0
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
        *open(&POLICY) = BlueGreen::configure(settings)?;
        Ok(())
    }

    fn save() -> Vec<u8> {
        Vec::new()
    }

    fn restore(_schema: u32, _state: Vec<u8>) -> Result<(), String> {
        Err("blue-green keeps no state".to_owned())
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
