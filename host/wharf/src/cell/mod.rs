//! A cell: the tasks that one process runs, the workers that run them, and the
//! supervisor that keeps them alive.
//!
//! ```text
//!   control, signals ──Command──▶ supervisor ──ToWorker──▶ worker (one a core)
//!                     ◀──Reply──    (model)   ◀─FromWorker─  runs its guests inline
//!                     ◀─Event, Piece─                        │
//!                          ▲      a window of the last ones  │
//!                          └─────────────────────────────────┘
//! ```
//!
//! The supervisor is a thread that owns the model and does nothing but pass on
//! what it decides. A worker is a thread that owns virtual machines. Whoever has a
//! [`Cell`] talks to it in the owned, serialisable values of [`protocol`], and gets
//! nothing else from it; [`Slots`] are the exception until policies have commands.
//!
//! What a cell tells unasked, events and consoles, it puts into two bounded
//! windows, [`EventLog`] and [`Consoles`]. They belong to the handle, which reads
//! owned values out of them without asking anybody: the supervisor may have ended
//! before a guest's last words are read, a follower that has nothing to read
//! wakes no thread, and bytes are copied once. Between processes, whoever reads
//! the socket would fill them.

pub mod console;
pub mod events;
pub mod protocol;

mod asker;
mod handover;
mod logger;
mod meters;
mod policies;
mod spec;
mod supervisor;
mod templates;
#[cfg(test)]
mod tests;
mod worker;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use wharf_machine::Hypervisor;
use wharf_model::policy::{Answer, Question, SlotName, Verdict};
use wharf_policy::Slots;

use crate::net::{Acceptor, Board, NetError, Router, Switch};
use console::Consoles;
use events::EventLog;
use handover::Link;
pub use handover::{Accepting, ControlFiles, ControlSocket, HandoverError, write_holder};
use protocol::{
    Command, HandoverStatus, NoSuchTask, Reply, Selector, SnapshotStatus, TaskStatus, UpgradeStatus,
};
pub use spec::{CellConfig, Clones, LogFile, PolicySpec, TaskSpec};
use supervisor::Newcomer;
use templates::Templates;

/// The cell could not be started.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// KVM is not usable.
    #[error(transparent)]
    Machine(#[from] wharf_machine::Error),
    /// A port cannot be published.
    #[error(transparent)]
    Net(#[from] NetError),
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

/// Something that takes its time was not begun, or not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskRefusal {
    /// There is nothing to do it to.
    #[error(transparent)]
    NoSuchTask(#[from] NoSuchTask),
    /// It cannot be done now.
    #[error("{0}")]
    Denied(String),
    /// Another process has the cell by now, and is to be asked.
    #[error("another process has the host by now: ask again")]
    HandedOver,
}

/// How often who waits for an answer looks whether there can be one.
const ANSWER_PERIOD: Duration = Duration::from_millis(50);

/// A running cell. Cloned handles are the same cell.
#[derive(Clone, Debug)]
pub struct Cell {
    requests: Sender<Request>,
    events: Arc<EventLog>,
    consoles: Arc<Consoles>,
    slots: Arc<Slots>,
    ended: Arc<Ended>,
}

/// How a cell has ended.
#[derive(Debug, Default)]
struct Ended {
    is_over: AtomicBool,
    /// Whether somebody wants it to end.
    is_wanted: AtomicBool,
    /// Whether another process goes on with it.
    is_handed_over: AtomicBool,
}

/// What all workers of a cell use.
#[derive(Clone)]
struct Shared {
    hypervisor: Arc<Hypervisor>,
    slots: Arc<Slots>,
    board: Arc<Board>,
    templates: Arc<Templates>,
    /// What guests send frames to each other through.
    switch: Arc<Switch>,
}

/// Says where connections go: where the router slot does.
fn router(slots: &Arc<Slots>) -> Box<Router> {
    let slots = Arc::clone(slots);
    Box::new(move |connection| {
        let router = slots.slot(SlotName::Router);
        match router.ask(&Question::Connect(connection)) {
            Answer::Connect(verdict) => verdict,
            // An answer is of its question's kind.
            _ => Verdict::Deny,
        }
    })
}

/// A command on its way within this process: with where its reply goes.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) command: Command,
    /// The control socket, which goes along when the cell is handed over.
    pub(crate) control: Option<ControlSocket>,
    pub(crate) reply: Sender<Reply>,
}

impl Cell {
    /// Starts workers, supervisor and tasks. The thread that is returned ends
    /// when every task has, after [`Cell::down`].
    ///
    /// # Errors
    ///
    /// When KVM or threads are not to be had. A task that cannot be started is
    /// no error here, but an event.
    pub fn start(config: CellConfig) -> Result<(Self, JoinHandle<()>), CellError> {
        let hypervisor = Arc::new(Hypervisor::open()?.with_shared_memory());
        let events = Arc::new(EventLog::default());
        let slots = policies::slots(&config, &events);
        policies::install(&slots, &config.policies)?;
        // Before anything runs: a port that somebody else has refuses the whole.
        let ports = config
            .tasks
            .iter()
            .map(|task| (task.name.as_str(), task.publish.as_slice()));
        let acceptor = Acceptor::start(router(&slots), ports)?;
        let (requests, inbox) = bounded(64);
        let ended: Arc<Ended> = Arc::default();
        let told = (Arc::clone(&events), Arc::clone(&ended));
        let templates = Templates::start(&hypervisor, &config.tasks)?;
        let shared = Shared {
            hypervisor,
            templates,
            slots: Arc::clone(&slots),
            board: Arc::clone(acceptor.board()),
            switch: Arc::default(),
        };
        let (consoles, supervisor) = supervisor::start(config, &shared, acceptor, told, inbox)?;
        shared.templates.keep_warm();
        let cell = Self {
            requests,
            events,
            consoles: Arc::new(consoles),
            slots,
            ended,
        };
        Ok((cell, supervisor))
    }

    /// Goes on with the cell of another process, which this one was started by with one
    /// end of a link. `serve` serves the control socket, before the other lets go of it.
    ///
    /// # Errors
    ///
    /// When it cannot be gone on with. What was taken over has been given back then, unless
    /// the other process is gone.
    pub fn take_over<T>(
        link: OwnedFd,
        serve: impl FnOnce(Self, &CellConfig, ControlFiles) -> Result<T, String>,
    ) -> Result<(JoinHandle<()>, T), HandoverError> {
        let (events, ended) = (Arc::new(EventLog::default()), Arc::default());
        let told = (Arc::clone(&events), Arc::clone(&ended));
        let mut newcomer = Newcomer::meet(Link::given(link), told)?;
        let (finish, luggage) = newcomer.take_guests()?;
        let (requests, inbox) = bounded(64);
        let slots = newcomer.slots();
        newcomer.finish(finish, luggage, inbox, |consoles, config, control| {
            let cell = Self {
                requests,
                events,
                consoles: Arc::new(consoles),
                slots,
                ended,
            };
            serve(cell, config, control)
        })
    }

    /// A handle to a supervisor that somebody else started.
    #[cfg(test)]
    pub(crate) fn with_supervisor(
        requests: Sender<Request>,
        events: Arc<EventLog>,
        consoles: Consoles,
    ) -> Self {
        Self {
            requests,
            events,
            consoles: Arc::new(consoles),
            slots: Slots::new(Vec::new(), wharf_policy::SlotConfig::of, None, |_| {}),
            ended: Arc::default(),
        }
    }

    /// Every replica of every task, in the order of the configuration. Empty
    /// when the cell has ended.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskStatus> {
        match self.ask(Command::Tasks) {
            Some(Reply::Tasks(tasks)) => tasks,
            _ => Vec::new(),
        }
    }

    /// Stops what the selector means; it will not be started again. Returns when
    /// that has begun, not when it is done.
    ///
    /// # Errors
    ///
    /// When it means nothing, or a life that is needed.
    pub fn stop(&self, selector: &Selector) -> Result<(), TaskRefusal> {
        self.begin(Command::Stop(selector.clone()))
    }

    /// Starts a new generation of what the selector means, ending the present
    /// one first. Returns when that has begun.
    ///
    /// # Errors
    ///
    /// When it means nothing.
    pub fn restart(&self, selector: &Selector) -> Result<(), TaskRefusal> {
        self.begin(Command::Restart(selector.clone()))
    }

    /// Begins to put another image in the place of what the selector means runs.
    /// Returns when that has begun; [`Cell::upgrades`] tells how it goes.
    ///
    /// # Errors
    ///
    /// When it means nothing, or nothing that can be upgraded now.
    pub fn upgrade(&self, selector: &Selector, image: &Path) -> Result<UpgradeStatus, TaskRefusal> {
        let (selector, image) = (selector.clone(), image.to_owned());
        self.begin_upgrade(Command::Upgrade { selector, image })
    }

    /// The same with the image that ran before.
    ///
    /// # Errors
    ///
    /// As [`Cell::upgrade`], and when there was none.
    pub fn rollback(&self, selector: &Selector) -> Result<UpgradeStatus, TaskRefusal> {
        self.begin_upgrade(Command::Rollback(selector.clone()))
    }

    /// The last upgrades, the oldest first.
    #[must_use]
    pub fn upgrades(&self) -> Vec<UpgradeStatus> {
        match self.ask(Command::Upgrades) {
            Some(Reply::Upgrades(upgrades)) => upgrades,
            _ => Vec::new(),
        }
    }

    /// Writes a replica into a file, from which others can be made; it goes on. Returns
    /// when the file is on the disk.
    ///
    /// # Errors
    ///
    /// When the selector means nothing, or not one replica that can be frozen now, or
    /// the file cannot be written.
    pub fn snapshot(
        &self,
        selector: &Selector,
        file: &Path,
    ) -> Result<SnapshotStatus, TaskRefusal> {
        let (selector, file) = (selector.clone(), file.to_owned());
        match self.ask(Command::Snapshot { selector, file }) {
            Some(Reply::Snapshot(status)) => Ok(status),
            other => Err(self.refusal(other)),
        }
    }

    /// Has another program, by its absolute path, go on with everything in a process of
    /// its own, also with the control socket. Returns when it does; then this cell is over.
    ///
    /// # Errors
    ///
    /// When it cannot be done now, or the other process does not take over. Then
    /// everything goes on here.
    pub fn hand_over(
        &self,
        program: &Path,
        control: ControlSocket,
    ) -> Result<HandoverStatus, TaskRefusal> {
        let program = program.to_owned();
        match self.ask_with(Command::HandOver { program }, Some(control)) {
            Some(Reply::HandedOver(status)) => Ok(status),
            other => Err(self.refusal(other)),
        }
    }

    /// Whether another process goes on with it.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        self.ended.is_handed_over.load(Ordering::Acquire)
    }

    fn begin_upgrade(&self, command: Command) -> Result<UpgradeStatus, TaskRefusal> {
        match self.ask(command) {
            Some(Reply::Upgrading(status)) => Ok(status),
            other => Err(self.refusal(other)),
        }
    }

    /// Begins to end the cell: tasks are stopped in reverse order. The second
    /// call ends them at once. Returns when that has begun.
    pub fn down(&self) {
        // What is being handed over is not handed over then.
        self.ended.is_wanted.store(true, Ordering::Release);
        // A supervisor that is gone has ended everything already.
        let _ = self.ask(Command::Down);
    }

    /// What happened so far.
    #[must_use]
    pub fn events(&self) -> &EventLog {
        &self.events
    }

    /// What guests wrote last, also after the cell has ended.
    #[must_use]
    pub fn consoles(&self) -> &Consoles {
        &self.consoles
    }

    /// Who decides.
    #[must_use]
    pub const fn slots(&self) -> &Arc<Slots> {
        &self.slots
    }

    /// Has something begun; it is as good as done when the cell has ended.
    fn begin(&self, command: Command) -> Result<(), TaskRefusal> {
        match self.ask(command) {
            refused @ Some(Reply::Refused(_) | Reply::Denied(_)) => Err(self.refusal(refused)),
            None if self.is_handed_over() => Err(TaskRefusal::HandedOver),
            _ => Ok(()),
        }
    }

    /// Why there is another answer than the one that was hoped for.
    fn refusal(&self, reply: Option<Reply>) -> TaskRefusal {
        match reply {
            Some(Reply::Refused(refusal)) => refusal.into(),
            Some(Reply::Denied(reason)) => TaskRefusal::Denied(reason),
            _ if self.is_handed_over() => TaskRefusal::HandedOver,
            _ => TaskRefusal::Denied("the host is ending".to_owned()),
        }
    }

    /// Asks the supervisor; `None` when it has ended, also when it did so with the
    /// request in its mailbox.
    fn ask(&self, command: Command) -> Option<Reply> {
        self.ask_with(command, None)
    }

    fn ask_with(&self, command: Command, control: Option<ControlSocket>) -> Option<Reply> {
        let (reply, answer) = bounded(1);
        let request = Request {
            command,
            control,
            reply,
        };
        self.requests.send(request).ok()?;
        loop {
            match answer.recv_timeout(ANSWER_PERIOD) {
                Ok(reply) => return Some(reply),
                Err(RecvTimeoutError::Timeout) if !self.ended.is_over.load(Ordering::Acquire) => {}
                Err(_) => return None,
            }
        }
    }
}
