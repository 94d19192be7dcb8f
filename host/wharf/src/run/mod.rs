//! `wharf run`: one task in the foreground, its console on standard output.
//!
//! One thread does everything. It enters the guest, turns each exit into an
//! event, asks the model what to do, and does it. Signals are blocked except
//! inside the guest and inside `Signals::wait`, so
//! none is lost and none needs a handler.

pub(crate) mod alarm;
mod console;
pub(crate) mod signals;
mod stdin;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::PollFlags;
use wharf_machine::device::{Backend, Network, Wire};
use wharf_machine::image::Image;
use wharf_machine::snapshot::{RestoreConfig, RestoreError, Snapshot};
use wharf_machine::{BootConfig, Call, Error, Exit, Hypervisor, Machine};
use wharf_model::policy::built_in;
use wharf_model::{Action, Event, Instant, Outcome, Task};

use crate::device::Block;
use crate::device::attach::{self, Asker, AttachError, Configured, Supply};
use crate::guest::GuestRun;
use crate::net::{self, Acceptor, Board, Guest, NetDevice, NetError, Publish, Sockets, Switch};
use alarm::Alarm;
pub use console::Lost;
use console::{Console, Written};
use signals::{Signals, Wake};
use stdin::Stdin;

/// What to run and how.
#[derive(Clone, Debug, Default)]
pub struct RunConfig {
    /// Memory, arguments, generation. A snapshot has its own.
    pub boot: BootConfig,
    /// What messages call the task; none for the image's name.
    pub name: Option<String>,
    /// What stands behind its devices.
    pub blocks: Vec<Block>,
    /// What its devices for frames are attached to.
    pub nets: Vec<NetDevice>,
    /// Its ports that can be reached from outside.
    pub publish: Vec<Publish>,
    /// The task ends when it has run so long.
    pub limit: Option<Duration>,
}

/// How a run ended, with what is needed to explain it.
#[derive(Debug)]
pub struct Finished {
    /// The end.
    pub outcome: Outcome,
    /// Several printable lines, when the guest faulted.
    pub report: Option<String>,
    /// What of its output could not be written, if anything.
    pub lost: Option<Lost>,
    /// What the run consisted of.
    pub stats: Stats,
}

/// Counts over a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Times that the guest was left, for whatever reason.
    pub exits: u64,
    /// Of these, to wait.
    pub waits: u64,
    /// Of these, to write to the console.
    pub writes: u64,
    /// Of these, to have a queue looked at.
    pub kicks: u64,
    /// Of these, because of a signal or the alarm.
    pub interruptions: u64,
    /// Of these, for something else that is done at once, such as an instruction.
    pub others: u64,
    /// Of these, to end: 0 when the host ended it.
    pub ends: u64,
    /// From the first instruction to the end.
    pub elapsed: Duration,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "exits {} (waits {}, writes {}, kicks {}, interruptions {}, others {}, end {}) \
             in {:.3} ms",
            self.exits,
            self.waits,
            self.writes,
            self.kicks,
            self.interruptions,
            self.others,
            self.ends,
            self.elapsed.as_secs_f64() * 1e3
        )
    }
}

/// The host could not run the task.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// KVM, memory or the image's needs.
    #[error(transparent)]
    Machine(#[from] Error),
    /// The snapshot cannot go on.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// Signals, timers, polling.
    #[error("the kernel refused {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: nix::Error,
    },
    /// Its ports cannot be published.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Its devices cannot be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// What is run.
#[derive(Clone, Debug)]
pub enum Origin {
    /// An image, from its entry point on.
    Image(Arc<Image>),
    /// A guest, from where it stood.
    Snapshot(Arc<Snapshot>),
}

impl Origin {
    /// What it is or was made of.
    #[must_use]
    pub fn image(&self) -> &Arc<Image> {
        match self {
            Self::Image(image) => image,
            Self::Snapshot(snapshot) => snapshot.image(),
        }
    }
}

/// Runs a guest to its end.
///
/// # Errors
///
/// When the host cannot start or run it; what the guest does is never an error.
pub fn run(origin: &Origin, config: &RunConfig) -> Result<Finished, RunError> {
    let image = origin.image();
    let name = config.name.as_deref().unwrap_or(&image.manifest().name);
    let ports = std::iter::once((name, config.publish.as_slice()));
    let acceptor = Acceptor::start(Box::new(|it| built_in::connect(&it)), ports)?;
    let backends = attach(image, config, acceptor.board())?;
    let start = std::time::Instant::now();
    let hypervisor = Hypervisor::open()?;
    let machine = match origin {
        Origin::Image(image) => Machine::boot(&hypervisor, image, &config.boot, backends)?,
        Origin::Snapshot(snapshot) => {
            let generation = snapshot.generation().saturating_add(1);
            Machine::restore(
                &hypervisor,
                snapshot,
                RestoreConfig { generation },
                backends,
            )?
        }
    };
    log::info!(
        "booted {} {}",
        image.manifest().name,
        image.manifest().version
    );
    log::debug!("{:#x?}", machine.layout());
    // Until here a signal simply ends the process: there is nothing to end well.
    let signals = Signals::block()?;
    let left = |limit: Duration| limit.saturating_sub(start.elapsed());
    let now = Instant::from_nanos(machine.monotonic_ns());
    let limit = config.limit.map(|limit| now.after(left(limit)));
    Foreground {
        guest: GuestRun::new(machine, Arc::clone(image), Task::new(limit)),
        signals,
        console: Console::stdout()?,
        alarm: Alarm::default(),
        stats: Stats::default(),
    }
    .run()
}

/// Opens what the image's devices get. One task alone is nobody's to route but the
/// built-in policy's, which is asked itself: no plugin, no engine for any.
fn attach(
    image: &Image,
    config: &RunConfig,
    board: &Arc<Board>,
) -> Result<Vec<Backend>, AttachError> {
    let manifest = image.manifest();
    let asker = Asker {
        task: config.name.as_deref().unwrap_or(&manifest.name),
        generation: config.boot.generation,
        ..Asker::default()
    };
    let network = || -> Result<Box<dyn Network>, NetError> {
        let guest = Guest {
            generation: config.boot.generation,
            ..Guest::default()
        };
        let sockets = Sockets::new(Arc::clone(board), guest, Arc::default(), Arc::default())?;
        Ok(Box::new(sockets))
    };
    // Nobody else is on it.
    let switch = Arc::new(Switch::new());
    let wire = |device, tap: Option<&str>| -> Result<Box<dyn Wire>, NetError> {
        net::wire(&switch, (0, device), tap, Arc::default())
    };
    let supply = Supply {
        configured: Configured {
            blocks: &config.blocks,
            nets: &config.nets,
            publish: &config.publish,
            joins: None,
        },
        legacy: &|_| None,
        network: &network,
        input: &|| Some(Box::new(Stdin::default())),
        wire: &wire,
    };
    attach::attach(manifest, &supply, asker, true, |it| built_in::attach(&it))
}

struct Foreground {
    guest: GuestRun,
    signals: Signals,
    console: Console,
    alarm: Alarm,
    stats: Stats,
}

impl Foreground {
    fn run(mut self) -> Result<Finished, RunError> {
        let start = self.guest.now();
        let mut event = Event::Start;
        loop {
            event = match self.guest.handle(event) {
                Action::Enter(answer) => {
                    self.set_alarm(self.guest.task().alarm())?;
                    let exit = self.guest.enter(answer)?;
                    self.count(&exit);
                    match self.guest.take(exit) {
                        Event::Interrupted => {
                            self.signals.take()?.map_or(Event::Interrupted, Event::Stop)
                        }
                        event => event,
                    }
                }
                Action::Park { until } => self.park(until)?,
                Action::Write { until } => self.write(until)?,
                Action::End(outcome) => {
                    self.stats.elapsed = self.guest.now().since(start);
                    return Ok(Finished {
                        outcome,
                        report: self.guest.report().map(str::to_owned),
                        lost: self.console.into_lost(),
                        stats: self.stats,
                    });
                }
            };
        }
    }

    const fn count(&mut self, exit: &Exit) {
        count(&mut self.stats.exits);
        match exit {
            Exit::Call(Call::Wait { .. }) => count(&mut self.stats.waits),
            Exit::Call(Call::Kick { .. }) => count(&mut self.stats.kicks),
            Exit::Call(Call::ConsoleWrite(_)) => count(&mut self.stats.writes),
            Exit::Call(Call::HandOver(_) | Call::Ready) | Exit::Again => {
                count(&mut self.stats.others);
            }
            Exit::Call(Call::Exit { .. }) | Exit::Fault(_) => count(&mut self.stats.ends),
            Exit::Interrupted => count(&mut self.stats.interruptions),
        }
    }

    fn set_alarm(&mut self, at: Option<Instant>) -> Result<(), RunError> {
        match at {
            Some(at) => self.alarm.set(at.since(self.guest.now())),
            None => Ok(()),
        }
    }

    fn park(&mut self, until: Option<Instant>) -> Result<Event, RunError> {
        if self.guest.has_backlog() {
            if let Some(stop) = self.signals.take()? {
                return Ok(Event::Stop(stop));
            }
            return Ok(self.guest.look_again());
        }
        self.set_alarm(until)?;
        let devices = self.guest.machine.device_fds();
        match self
            .signals
            .wait(devices.map(|fd| (fd, PollFlags::POLLIN)))?
        {
            Wake::Stop(stop) => Ok(Event::Stop(stop)),
            Wake::Ready => Ok(self.guest.look_again()),
            Wake::Alarm => Ok(Event::Interrupted),
        }
    }

    /// Writes without ever blocking: a reader that is slow slows the guest, and
    /// ctrl-C still works.
    fn write(&mut self, until: Option<Instant>) -> Result<Event, RunError> {
        self.set_alarm(until)?;
        let console = self.console.fd();
        match self
            .signals
            .wait(std::iter::once((console, PollFlags::POLLOUT)))?
        {
            Wake::Stop(stop) => Ok(Event::Stop(stop)),
            Wake::Alarm => Ok(Event::Interrupted),
            Wake::Ready => match self.console.write(self.guest.pending()) {
                Written::Bytes(bytes) => Ok(Event::Written { bytes }),
                Written::Later => Ok(Event::Interrupted),
                Written::Closed => Ok(Event::ConsoleClosed),
            },
        }
    }
}

/// Counts one more; a guest cannot live long enough to reach the end.
const fn count(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

/// Names what was tried when the kernel refuses it.
fn refused(what: &'static str) -> impl FnOnce(nix::Error) -> RunError {
    move |source| RunError::System { what, source }
}
