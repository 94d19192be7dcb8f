//! A slot that goes on in another process: who is in force, with its state, and what it
//! could go back to.
//!
//! Both processes are of one machine, so that their clocks are the same.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wharf_model::policy::slot::{Slot as Rules, State as Standing};
use wharf_model::policy::{Question, SlotName};

use super::keep::make;
use super::{Installed, Predecessor, Previous, Slot};
use crate::engine::EngineError;
use crate::instance::{Fault, STATE_TIME, Setup, State};
use crate::plugin::{Plugin, Refusal};
use crate::stats::{Counted, Stats};

/// A slot does not go on.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// Plugins cannot be run here.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A plugin is none to this host.
    #[error("[policy.{slot}] {source}")]
    Refused {
        /// Where it is.
        slot: SlotName,
        /// Why not.
        source: Refusal,
    },
    /// It does not take up its work.
    #[error("[policy.{slot}] {source}")]
    Fault {
        /// Where it is.
        slot: SlotName,
        /// What went wrong.
        source: Fault,
    },
    /// It is not there.
    #[error("[policy.{slot}] its component is missing")]
    NoComponent {
        /// Where it should be.
        slot: SlotName,
    },
}

/// A slot as it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CarriedSlot {
    name: SlotName,
    rules: Rules,
    installed: Option<CarriedPlugin>,
    /// Kept warm, with what was before it.
    predecessor: Option<(CarriedPlugin, CarriedPrevious)>,
    previous: CarriedPrevious,
    recent: Vec<Question>,
    counted: Counted,
    reason: Option<String>,
}

/// A plugin in a slot.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct CarriedPlugin {
    /// Which component it is.
    digest: String,
    setup: Setup,
    state: Option<State>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum CarriedPrevious {
    #[default]
    Nothing,
    BuiltIn,
    Plugin(CarriedPlugin),
}

/// The plugins of a host, by their components.
pub(crate) trait Components {
    /// Takes note of one that is needed.
    fn need(&mut self, plugin: &Plugin);
}

impl Slot {
    /// The slot as it is. Callers wait while the plugin saves its state.
    pub(crate) fn carry(&self, components: &mut impl Components) -> CarriedSlot {
        let mut inner = self.lock();
        self.save(&mut inner, STATE_TIME);
        let mut carried = |installed: &Installed| {
            components.need(&installed.plugin);
            CarriedPlugin {
                digest: installed.plugin.digest.clone(),
                setup: installed.setup.as_ref().clone(),
                state: installed.state.as_deref().cloned(),
            }
        };
        let installed = inner.installed.as_ref().map(&mut carried);
        let mut previous = |previous: &Previous| match previous {
            Previous::Nothing => CarriedPrevious::Nothing,
            Previous::BuiltIn => CarriedPrevious::BuiltIn,
            Previous::Plugin(it) => CarriedPrevious::Plugin(carried(it)),
        };
        let before = previous(&inner.previous);
        let predecessor = inner.predecessor.as_ref();
        let predecessor = predecessor.map(|it| {
            let before = previous(&it.previous);
            (it, before)
        });
        let predecessor = predecessor.map(|(it, before)| (carried(&it.installed), before));
        CarriedSlot {
            name: self.name,
            rules: inner.rules.clone(),
            installed,
            predecessor,
            previous: before,
            recent: inner.recent.iter().cloned().collect(),
            counted: inner.stats.counted(),
            reason: inner.reason.clone(),
        }
    }

    /// Goes on where another slot was. Nobody may have asked yet; but it may have gone on
    /// once before.
    pub(crate) fn go_on(
        &self,
        carried: &CarriedSlot,
        open: &mut impl FnMut(&str) -> Result<Arc<Plugin>, CarryError>,
    ) -> Result<(), CarryError> {
        let mut revive = |it: &CarriedPlugin| -> Result<Installed, CarryError> {
            Ok(Installed {
                plugin: open(&it.digest)?,
                setup: Arc::new(it.setup.clone()),
                state: it.state.clone().map(Arc::new),
            })
        };
        let made = |installed: &Installed| {
            make(installed).map_err(|source| CarryError::Fault {
                slot: self.name,
                source,
            })
        };
        let installed = carried.installed.as_ref().map(&mut revive).transpose()?;
        let mut before = |it: &CarriedPrevious| {
            Ok::<_, CarryError>(match it {
                CarriedPrevious::Nothing => Previous::Nothing,
                CarriedPrevious::BuiltIn => Previous::BuiltIn,
                CarriedPrevious::Plugin(it) => Previous::Plugin(revive(it)?),
            })
        };
        let previous = before(&carried.previous)?;
        let predecessor = match &carried.predecessor {
            None => None,
            Some((it, previous)) => {
                let previous = before(previous)?;
                let installed = revive(it)?;
                let instance = made(&installed)?;
                Some(Predecessor {
                    instance,
                    installed,
                    previous,
                })
            }
        };
        let is_out = carried.rules.state() == Standing::Quarantined;
        let seat = installed.as_ref().filter(|_| !is_out).map(made);
        let seat = seat.transpose()?;
        let mut inner = self.lock();
        match seat {
            Some(instance) => inner.sit(instance),
            // Nor does who sat there when it went on for the first time.
            None => {
                self.unseat(&mut inner);
                inner.turn = inner.turn.saturating_add(1);
            }
        }
        inner.rules = carried.rules.clone();
        inner.installed = installed;
        inner.predecessor = predecessor;
        inner.previous = previous;
        inner.recent = carried.recent.iter().cloned().collect();
        inner.stats = Stats::count_on(&carried.counted);
        inner.reason.clone_from(&carried.reason);
        self.set_watched(&inner);
        drop(inner);
        self.wake_keeper();
        Ok(())
    }

    /// Says whether operators are to leave it as it is for now.
    pub(crate) fn hold(&self, is_held: bool) {
        self.lock().is_held = is_held;
    }

    /// Whether it is the slot that was carried.
    pub(crate) fn is_of(&self, carried: &CarriedSlot) -> bool {
        self.name == carried.name
    }
}
