//! An instance of a plugin: asked, set up, its state saved and restored.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::{PoolConcurrencyLimitError, Store, Trap};
use wharf_model::policy::{Answer, Choice, Question, STATE_LEN, SlotName, View};

use crate::bindings::{VERSION, lifecycle, router, scheduler, setting, types, upgrader};
use crate::engine::{Calling, Engine};
use crate::plugin::Plugin;
use crate::sandbox::{Sandbox, TimeOut, tick};

/// How long `describe` and `configure` may take. Nobody waits for them.
const SET_UP_TIME: Duration = Duration::from_secs(1);

/// How long `save` and `restore` may take when a plugin is put in: all callers of the
/// slot wait, once.
pub(crate) const STATE_TIME: Duration = Duration::from_millis(20);

/// Why a plugin did not do what it was called for.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It trapped, or its data could not be read.
    #[error("`{call}` trapped: {cause}")]
    Trap {
        /// What was called.
        call: &'static str,
        /// What wasmtime says.
        cause: String,
    },
    /// It took too long.
    #[error("`{call}` took longer than {}", milliseconds(.limit))]
    TimeOut {
        /// What was called.
        call: &'static str,
        /// How long it may take.
        limit: Duration,
    },
    /// It says that it cannot.
    #[error("`{call}` refused: {reason}")]
    Refused {
        /// What was called.
        call: &'static str,
        /// What it says.
        reason: String,
    },
    /// It saved more than may be kept.
    #[error("`save` returned {0} bytes, of at most {STATE_LEN}")]
    TooMuchState(usize),
    /// It has not what the slot asks.
    #[error("it does not export {0}")]
    OtherSlot(SlotName),
    /// Its types are others than the contract's.
    #[error("its {interface} is not that of wharf:policy {VERSION}: {cause}")]
    Shape {
        /// Which interface.
        interface: &'static str,
        /// What wasmtime says.
        cause: String,
    },
    /// There is no room for another instance.
    #[error("it cannot be instantiated: {0}")]
    Instantiate(String),
}

/// A replica of a task, as plugins are told of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TaskFacts {
    /// The task's name.
    pub name: String,
    /// Which replica of it, from 0.
    pub index: u32,
    /// Its weight.
    pub weight: u32,
    /// The task's labels, sorted by key.
    pub labels: Vec<(String, String)>,
}

/// What a plugin is configured with.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Setup {
    /// The operator's settings.
    pub settings: Vec<(String, String)>,
    /// Every replica, by its number.
    pub tasks: Vec<TaskFacts>,
}

/// A plugin's state.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct State {
    /// Its format.
    pub schema: u32,
    /// What the plugin wrote.
    pub bytes: Vec<u8>,
}

/// One instance in a store of its own. After a fault it must not be used again.
pub struct Instance {
    engine: Engine,
    plugin: Arc<Plugin>,
    store: Store<Sandbox>,
    lifecycle: lifecycle::Guest,
    scheduler: Option<scheduler::Guest>,
    router: Option<router::Guest>,
    upgrader: Option<upgrader::Guest>,
}

impl Instance {
    /// Makes one; it still has to be [configured](Self::configure).
    ///
    /// # Errors
    ///
    /// When there is no room for it, or its start function traps.
    pub fn new(plugin: &Arc<Plugin>) -> Result<Self, Fault> {
        let engine = &plugin.engine;
        let mut store = Store::new(
            &engine.wasmtime,
            Sandbox::new(plugin.title(), &plugin.slots()),
        );
        store.limiter(|sandbox| &mut sandbox.limits);
        store.epoch_deadline_callback(tick);
        let _calling = allow(engine, &mut store, SET_UP_TIME);
        let cannot = |e: wasmtime::Error| match e.downcast_ref::<PoolConcurrencyLimitError>() {
            Some(limit) => Fault::Instantiate(limit.to_string()),
            None => fault_of("instantiation", SET_UP_TIME, &e),
        };
        let exports = &plugin.exports;
        let instance = plugin.pre.instantiate(&mut store).map_err(cannot)?;
        let lifecycle = exports.lifecycle.load(&mut store, &instance);
        let scheduler = exports
            .scheduler
            .as_ref()
            .map(|it| it.load(&mut store, &instance));
        let router = exports
            .router
            .as_ref()
            .map(|it| it.load(&mut store, &instance));
        let upgrader = exports
            .upgrader
            .as_ref()
            .map(|it| it.load(&mut store, &instance));
        Ok(Self {
            lifecycle: shape("lifecycle", lifecycle)?,
            scheduler: shape("scheduler", scheduler.transpose())?,
            router: shape("router", router.transpose())?,
            upgrader: shape("upgrader", upgrader.transpose())?,
            engine: engine.clone(),
            plugin: Arc::clone(plugin),
            store,
        })
    }

    /// The plugin that this is an instance of.
    #[must_use]
    pub const fn plugin(&self) -> &Arc<Plugin> {
        &self.plugin
    }

    pub(crate) fn describe(&mut self) -> Result<lifecycle::Identity, Fault> {
        let _calling = allow(&self.engine, &mut self.store, SET_UP_TIME);
        let said = self.lifecycle.call_describe(&mut self.store);
        said.map_err(|e| fault_of("describe", SET_UP_TIME, &e))
    }

    /// Sets it up.
    ///
    /// # Errors
    ///
    /// When it refuses or fails; after a refusal it goes on with what it had.
    pub fn configure(&mut self, setup: &Setup) -> Result<(), Fault> {
        const CALL: &str = "configure";
        let settings: Vec<_> = setup.settings.iter().map(setting).collect();
        let tasks: Vec<_> = setup.tasks.iter().map(task).collect();
        let _calling = allow(&self.engine, &mut self.store, SET_UP_TIME);
        self.lifecycle
            .call_configure(&mut self.store, &settings, &tasks)
            .map_err(|e| fault_of(CALL, SET_UP_TIME, &e))?
            .map_err(|reason| refused(CALL, &reason))
    }

    /// Its state; none when it keeps none.
    ///
    /// # Errors
    ///
    /// When it fails, or saves more than a mebibyte.
    pub fn save(&mut self) -> Result<Option<State>, Fault> {
        self.save_within(STATE_TIME)
    }

    /// The same, in a time of the caller's.
    pub(crate) fn save_within(&mut self, limit: Duration) -> Result<Option<State>, Fault> {
        let schema = self.plugin.identity.state_schema;
        if schema == 0 {
            return Ok(None);
        }
        let _calling = allow(&self.engine, &mut self.store, limit);
        let bytes = self
            .lifecycle
            .call_save(&mut self.store)
            .map_err(|e| fault_of("save", limit, &e))?;
        if bytes.len() > STATE_LEN {
            return Err(Fault::TooMuchState(bytes.len()));
        }
        Ok(Some(State { schema, bytes }))
    }

    /// Gives it state.
    ///
    /// # Errors
    ///
    /// When it refuses or fails.
    pub fn restore(&mut self, state: &State) -> Result<(), Fault> {
        const CALL: &str = "restore";
        let _calling = allow(&self.engine, &mut self.store, STATE_TIME);
        self.lifecycle
            .call_restore(&mut self.store, state.schema, &state.bytes)
            .map_err(|e| fault_of(CALL, STATE_TIME, &e))?
            .map_err(|reason| refused(CALL, &reason))
    }

    /// Asks it. The answer is what it says, and may be nonsense.
    ///
    /// # Errors
    ///
    /// When it fails to answer within `limit`.
    pub fn ask(&mut self, question: &Question, limit: Duration) -> Result<Answer, Fault> {
        let store = &mut self.store;
        store.data_mut().in_slot(question.slot());
        let other = Fault::OtherSlot(question.slot());
        match question {
            Question::Next(view) => self.next(view, limit).map(Answer::Next),
            Question::Attach(asked) => {
                let router = self.router.as_ref().ok_or(other)?;
                let _calling = allow(&self.engine, store, limit);
                let said = router.call_attach(store, &asked.into());
                answered("attach", limit, said).map(|it| Answer::Attach(it.into()))
            }
            Question::Connect(asked) => {
                let router = self.router.as_ref().ok_or(other)?;
                let _calling = allow(&self.engine, store, limit);
                let said = router.call_connect(store, &asked.into());
                answered("connect", limit, said).map(|it| Answer::Connect(it.into()))
            }
            Question::Review(asked) => {
                let upgrader = self.upgrader.as_ref().ok_or(other)?;
                let _calling = allow(&self.engine, store, limit);
                let said = upgrader.call_review(store, &asked.into());
                answered("review", limit, said).map(|it| Answer::Review(it.into()))
            }
            Question::Transform(asked, state) => {
                let upgrader = self.upgrader.as_ref().ok_or(other)?;
                let _calling = allow(&self.engine, store, limit);
                let said = upgrader.call_transform(store, &asked.into(), state);
                answered("transform", limit, said).map(Answer::Transform)
            }
            Question::Judge(asked, old, new) => {
                let upgrader = self.upgrader.as_ref().ok_or(other)?;
                let _calling = allow(&self.engine, store, limit);
                let said = upgrader.call_judge(store, &asked.into(), (*old).into(), (*new).into());
                answered("judge", limit, said).map(|it| Answer::Judge(it.into()))
            }
        }
    }

    fn next(&mut self, view: &View, limit: Duration) -> Result<Choice, Fault> {
        let scheduler = self
            .scheduler
            .as_ref()
            .ok_or(Fault::OtherSlot(SlotName::Scheduler))?;
        let view = scheduler::View::from(view);
        let _calling = allow(&self.engine, &mut self.store, limit);
        let said = scheduler.call_next(&mut self.store, &view);
        answered("next", limit, said).map(Choice::from)
    }
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Instance").field(&self.plugin).finish()
    }
}

/// Gives the next call so much time. To be kept until it is over.
fn allow<'a>(engine: &'a Engine, store: &mut Store<Sandbox>, budget: Duration) -> Calling<'a> {
    let calling = engine.calling();
    let sandbox = store.data_mut();
    sandbox.budget = budget;
    sandbox.first_tick = None;
    store.set_epoch_deadline(1);
    calling
}

fn answered<T>(call: &'static str, limit: Duration, said: wasmtime::Result<T>) -> Result<T, Fault> {
    said.map_err(|e| fault_of(call, limit, &e))
}

fn fault_of(call: &'static str, limit: Duration, error: &wasmtime::Error) -> Fault {
    if error.downcast_ref::<TimeOut>().is_some() {
        return Fault::TimeOut { call, limit };
    }
    let cause = match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    };
    Fault::Trap {
        call,
        cause: wharf_model::policy::check::short(&cause),
    }
}

/// What was found of an interface, if its types are the contract's.
pub(crate) fn shape<T>(interface: &'static str, found: wasmtime::Result<T>) -> Result<T, Fault> {
    found.map_err(|e| Fault::Shape {
        interface,
        cause: wharf_model::policy::check::short(&e.root_cause().to_string()),
    })
}

fn refused(call: &'static str, reason: &str) -> Fault {
    Fault::Refused {
        call,
        reason: wharf_model::policy::check::short(reason),
    }
}

fn task(facts: &TaskFacts) -> types::Task {
    types::Task {
        name: facts.name.clone(),
        index: facts.index,
        weight: facts.weight,
        labels: facts.labels.iter().map(setting).collect(),
    }
}

fn milliseconds(limit: &Duration) -> String {
    format!("{} ms", limit.as_secs_f64() * 1e3)
}
