//! The three slots of a host, the engine that their plugins run in, and the keeper.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use serde::{Deserialize, Serialize};
use wharf_model::policy::SlotName;

use crate::engine::{Engine, EngineError};
use crate::instance::TaskFacts;
use crate::keeper::{Chore, Tell, keep};
use crate::notice::Notice;
use crate::plugin::{Plugin, Refusal};
use crate::slot::{CarriedSlot, CarryError, Components, Slot, SlotConfig, SlotStatus};

/// A plugin could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Plugins cannot be run here.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It is no plugin.
    #[error("{}: {source}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Refusal,
    },
}

/// All slots. Without a plugin they cost a few kilobytes and no thread.
pub struct Slots {
    scheduler: Slot,
    router: Slot,
    upgrader: Slot,
    cache: Option<PathBuf>,
    engine: Mutex<EngineState>,
}

/// All slots of a host as they were, for another process that goes on with them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CarriedSlots {
    slots: Vec<CarriedSlot>,
    /// By their digests. They go another way: they are large.
    #[serde(skip)]
    pub components: BTreeMap<String, Arc<[u8]>>,
}

/// Plugins by their digests.
#[derive(Debug, Default)]
pub struct Opened(BTreeMap<String, Arc<Plugin>>);

impl Components for BTreeMap<String, Arc<[u8]>> {
    fn need(&mut self, plugin: &Plugin) {
        self.entry(plugin.digest.clone())
            .or_insert_with(|| Arc::clone(&plugin.component));
    }
}

/// The engine is made when the first plugin is opened, and the keeper with it.
enum EngineState {
    None(Receiver<Chore>, Tell),
    Some(Engine),
}

impl Slots {
    /// Slots in which nothing is but what is built in. Plugins are told of these
    /// tasks, operators of what happens by `tell`, on a thread of its own. Compiled
    /// plugins are kept in `cache`, when there is one.
    pub fn new(
        tasks: Vec<TaskFacts>,
        config: impl Fn(SlotName) -> SlotConfig,
        cache: Option<PathBuf>,
        tell: impl Fn(Notice) + Send + 'static,
    ) -> Arc<Self> {
        let (chores, inbox): (Sender<Chore>, _) = unbounded();
        let tasks: Arc<[TaskFacts]> = tasks.into();
        let slot = |name| Slot::new(name, config(name), Arc::clone(&tasks), chores.clone());
        Arc::new(Self {
            scheduler: slot(SlotName::Scheduler),
            router: slot(SlotName::Router),
            upgrader: slot(SlotName::Upgrader),
            cache,
            engine: Mutex::new(EngineState::None(inbox, Box::new(tell))),
        })
    }

    /// One of them.
    #[must_use]
    pub const fn slot(&self, name: SlotName) -> &Slot {
        match name {
            SlotName::Scheduler => &self.scheduler,
            SlotName::Router => &self.router,
            SlotName::Upgrader => &self.upgrader,
        }
    }

    /// All of them as they are.
    #[must_use]
    pub fn statuses(&self) -> Vec<SlotStatus> {
        let slots = SlotName::ALL.into_iter();
        slots.map(|name| self.slot(name).status()).collect()
    }

    /// Reads, compiles and examines a plugin, which takes tens of milliseconds for
    /// a small one that is not in the cache.
    ///
    /// # Errors
    ///
    /// Why it is none.
    pub fn open(self: &Arc<Self>, path: &Path) -> Result<Arc<Plugin>, OpenError> {
        let engine = self.engine()?;
        Plugin::open(&engine, path).map_err(|source| OpenError::Refused {
            path: path.to_owned(),
            source,
        })
    }

    /// All slots as they are, with the state of their plugins as it is now.
    #[must_use]
    pub fn carry(&self) -> CarriedSlots {
        let mut components = BTreeMap::new();
        let names = SlotName::ALL.into_iter();
        let slots = names.map(|name| self.slot(name).carry(&mut components));
        CarriedSlots {
            slots: slots.collect(),
            components,
        }
    }

    /// Says whether changes are to be refused for now: what operators change while another
    /// process takes over would be lost.
    pub fn hold(&self, is_held: bool) {
        for name in SlotName::ALL {
            self.slot(name).hold(is_held);
        }
    }

    /// Goes on where the slots of another process were. To be done before anything is
    /// asked; it may be done again, and then only the plugins that are not among those
    /// `opened` before have to be compiled.
    ///
    /// # Errors
    ///
    /// When a plugin does not take up its work here.
    pub fn go_on(
        self: &Arc<Self>,
        carried: &CarriedSlots,
        opened: &mut Opened,
    ) -> Result<(), CarryError> {
        for it in &carried.slots {
            let names = SlotName::ALL.into_iter().map(|name| self.slot(name));
            let Some(slot) = names.into_iter().find(|slot| slot.is_of(it)) else {
                continue;
            };
            slot.go_on(it, &mut |digest: &str| {
                if let Some(plugin) = opened.0.get(digest) {
                    return Ok(Arc::clone(plugin));
                }
                let slot = slot.name();
                let component = carried.components.get(digest);
                let component = component.ok_or(CarryError::NoComponent { slot })?;
                let plugin = Plugin::new(&self.engine()?, component)
                    .map_err(|source| CarryError::Refused { slot, source })?;
                opened.0.insert(digest.to_owned(), Arc::clone(&plugin));
                Ok(plugin)
            })?;
        }
        Ok(())
    }

    fn engine(self: &Arc<Self>) -> Result<Engine, EngineError> {
        let mut state = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        if let EngineState::Some(engine) = &*state {
            return Ok(engine.clone());
        }
        let engine = Engine::new(self.cache.as_deref())?;
        let slots = Arc::downgrade(self);
        // What the keeper works with is given to it when it is there: what was moved
        // into a thread that could not be made would be gone.
        let (give, given) = bounded(1);
        std::thread::Builder::new()
            .name("policy keeper".to_owned())
            .spawn(move || {
                if let Ok((chores, tell)) = given.recv() {
                    keep(&slots, &chores, &tell);
                }
            })
            .map_err(EngineError::Thread)?;
        let before = std::mem::replace(&mut *state, EngineState::Some(engine.clone()));
        if let EngineState::None(chores, tell) = before {
            let _ = give.send((chores, tell));
        }
        Ok(engine)
    }
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slots").finish_non_exhaustive()
    }
}
