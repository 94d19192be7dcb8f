//! A cell: the tasks that one process runs, the workers that run them, and the
//! supervisor that keeps them alive.
//!
//! ```text
//!   control, signals ──Request──▶ supervisor ──ToWorker──▶ worker (one a core)
//!                     ◀──reply──   (model)   ◀─FromWorker─  runs its guests inline
//! ```
//!
//! The supervisor is a thread that owns the model and does nothing but pass on
//! what it decides. A worker is a thread that owns virtual machines. They talk
//! in owned values over channels; two things are shared besides, because a copy
//! of them for every byte would be absurd: each task's [`ConsoleRing`] and the
//! [`EventLog`]. And all ask one set of policy [`Slots`].

pub mod console;
pub mod events;
pub mod protocol;

mod headroom;
mod logger;
mod meters;
mod policies;
mod spec;
mod supervisor;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use wharf_machine::Hypervisor;
use wharf_model::policy::SlotName;
use wharf_policy::Slots;

use console::ConsoleRing;
use events::EventLog;
use protocol::{Selector, TaskStatus};
pub use spec::{LogFile, PolicySpec, TaskSpec};

/// What a cell is to run.
#[derive(Debug)]
pub struct CellConfig {
    /// Worker threads, at least one.
    pub workers: u32,
    /// The tasks, in the order in which they start. They stop in the other.
    pub tasks: Vec<TaskSpec>,
    /// The plugins that decide from the start on.
    pub policies: Vec<PolicySpec>,
}

/// No task is called so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no task is called {selector} (try `wharf ps`)")]
pub struct NoSuchTask {
    /// What was asked for.
    pub selector: Selector,
}

/// The cell could not be started.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// KVM is not usable.
    #[error(transparent)]
    Machine(#[from] wharf_machine::Error),
    /// No thread could be made.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// A plugin that the tasks are to run under is not one.
    #[error("[policy.{slot}]")]
    Policy {
        /// The slot.
        slot: SlotName,
        /// Why not.
        source: PolicyError,
    },
}

/// A plugin was not put into its slot.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It is no plugin.
    #[error(transparent)]
    Open(#[from] wharf_policy::OpenError),
    /// It is not good enough.
    #[error(transparent)]
    Swap(#[from] wharf_policy::SwapRefusal),
}

/// How often who waits for an answer looks whether there can be one.
const ANSWER_PERIOD: Duration = Duration::from_millis(50);

/// A running cell. Cloned handles are the same cell.
#[derive(Clone, Debug)]
pub struct Cell {
    requests: Sender<Request>,
    events: Arc<EventLog>,
    slots: Arc<Slots>,
    over: Arc<AtomicBool>,
}

/// What the supervisor is asked, each with where the answer goes.
#[derive(Debug)]
pub(crate) enum Request {
    Tasks(Sender<Vec<TaskStatus>>),
    Stop(Selector, Sender<Result<(), NoSuchTask>>),
    Restart(Selector, Sender<Result<(), NoSuchTask>>),
    Consoles(Selector, Sender<Result<Consoles, NoSuchTask>>),
    /// End everything; a second time, at once.
    Down,
}

/// Replicas' names, such as `web.0`, and their consoles.
pub type Consoles = Vec<(String, Arc<ConsoleRing>)>;

impl Cell {
    /// Starts workers, supervisor and tasks. The thread that is returned ends
    /// when every task has, after [`Cell::down`].
    ///
    /// # Errors
    ///
    /// When KVM or threads are not to be had. A task that cannot be started is
    /// no error here, but an event.
    pub fn start(config: CellConfig) -> Result<(Self, JoinHandle<()>), CellError> {
        let hypervisor = Arc::new(Hypervisor::open()?);
        let events = Arc::new(EventLog::default());
        let slots = policies::slots(&config, &events);
        policies::install(&slots, &config.policies)?;
        let (requests, inbox) = bounded(64);
        let over = Arc::new(AtomicBool::new(false));
        let cell = Self {
            requests,
            events: Arc::clone(&events),
            slots: Arc::clone(&slots),
            over: Arc::clone(&over),
        };
        let supervisor = supervisor::start(config, &hypervisor, &slots, events, over, inbox)?;
        Ok((cell, supervisor))
    }

    /// A handle to a supervisor that somebody else started.
    #[cfg(test)]
    pub(crate) fn with_supervisor(requests: Sender<Request>, events: Arc<EventLog>) -> Self {
        Self {
            requests,
            events,
            slots: Slots::new(Vec::new(), wharf_policy::SlotConfig::of, None, |_| {}),
            over: Arc::default(),
        }
    }

    /// Every replica of every task, in the order of the configuration. Empty
    /// when the cell has ended.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskStatus> {
        self.ask(Request::Tasks).unwrap_or_default()
    }

    /// Stops what the selector means; it will not be started again. Returns when
    /// that has begun, not when it is done.
    ///
    /// # Errors
    ///
    /// When it means nothing.
    pub fn stop(&self, selector: &Selector) -> Result<(), NoSuchTask> {
        self.ask(|reply| Request::Stop(selector.clone(), reply))
            .unwrap_or(Ok(()))
    }

    /// Starts a new generation of what the selector means, ending the present
    /// one first. Returns when that has begun.
    ///
    /// # Errors
    ///
    /// When it means nothing.
    pub fn restart(&self, selector: &Selector) -> Result<(), NoSuchTask> {
        self.ask(|reply| Request::Restart(selector.clone(), reply))
            .unwrap_or(Ok(()))
    }

    /// The consoles of what the selector means.
    ///
    /// # Errors
    ///
    /// When it means nothing.
    pub fn consoles(&self, selector: &Selector) -> Result<Consoles, NoSuchTask> {
        self.ask(|reply| Request::Consoles(selector.clone(), reply))
            .unwrap_or(Ok(Vec::new()))
    }

    /// Begins to end the cell: tasks are stopped in reverse order. The second
    /// call ends them at once.
    pub fn down(&self) {
        // A supervisor that is gone has ended everything already.
        let _ = self.requests.send(Request::Down);
    }

    /// What happened so far.
    #[must_use]
    pub fn events(&self) -> &EventLog {
        &self.events
    }

    /// Who decides.
    #[must_use]
    pub const fn slots(&self) -> &Arc<Slots> {
        &self.slots
    }

    /// Asks the supervisor; `None` when it has ended, also when it did so with the
    /// request in its mailbox.
    fn ask<T>(&self, request: impl FnOnce(Sender<T>) -> Request) -> Option<T> {
        let (reply, answer) = bounded(1);
        self.requests.send(request(reply)).ok()?;
        loop {
            match answer.recv_timeout(ANSWER_PERIOD) {
                Ok(answer) => return Some(answer),
                Err(RecvTimeoutError::Timeout) if !self.over.load(Ordering::Acquire) => {}
                Err(_) => return None,
            }
        }
    }
}
