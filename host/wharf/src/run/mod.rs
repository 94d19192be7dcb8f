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
use wharf_abi::Interest;
use wharf_abi::hypercall::FOREVER;
use wharf_machine::device::{Backend, Network, Wire};
use wharf_machine::image::Image;
use wharf_machine::{BootConfig, Call, Error, Exit, Fault, Hypervisor, Machine};
use wharf_model::policy::built_in;
use wharf_model::{Action, Event, Instant, Outcome, Task};

use crate::device::Block;
use crate::device::attach::{self, Asker, AttachError, Supply};
use crate::net::{Acceptor, Board, Guest, NetError, Publish, Sockets, Switch};
use alarm::Alarm;
pub use console::Lost;
use console::{Console, Written};
use signals::{Signals, Wake};
use stdin::Stdin;

/// What to run and how.
#[derive(Clone, Debug, Default)]
pub struct RunConfig {
    /// Memory, arguments, generation.
    pub boot: BootConfig,
    /// What messages call the task; none for the image's name.
    pub name: Option<String>,
    /// What stands behind its devices.
    pub blocks: Vec<Block>,
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
    /// Of these, to end: 0 when the host ended it.
    pub ends: u64,
    /// From the first instruction to the end.
    pub elapsed: Duration,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "exits {} (waits {}, writes {}, kicks {}, interruptions {}, end {}) in {:.3} ms",
            self.exits,
            self.waits,
            self.writes,
            self.kicks,
            self.interruptions,
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

/// Runs `image` to its end.
///
/// # Errors
///
/// When the host cannot start or run it; what the guest does is never an error.
pub fn run(image: &Image, config: &RunConfig) -> Result<Finished, RunError> {
    let name = config.name.as_deref().unwrap_or(&image.manifest().name);
    let ports = std::iter::once((name, config.publish.as_slice()));
    let acceptor = Acceptor::start(Box::new(|it| built_in::connect(&it)), ports)?;
    let backends = attach(image, config, acceptor.board())?;
    let start = std::time::Instant::now();
    let hypervisor = Hypervisor::open()?;
    let machine = Machine::boot(&hypervisor, image, &config.boot, backends)?;
    log::info!(
        "booted {} {}",
        image.manifest().name,
        image.manifest().version
    );
    log::debug!("{:#x?}", machine.layout());
    // Until here a signal simply ends the process: there is nothing to end well.
    let signals = Signals::block()?;
    let left = |limit: Duration| limit.saturating_sub(start.elapsed());
    let limit = config.limit.map(|limit| now(&machine).after(left(limit)));
    Foreground {
        image,
        machine,
        signals,
        console: Console::stdout()?,
        alarm: Alarm::default(),
        task: Task::new(limit),
        pending: Vec::new(),
        backlog: false,
        report: None,
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
        let sockets = Sockets::new(Arc::clone(board), guest, Arc::default())?;
        Ok(Box::new(sockets))
    };
    // Nobody else is on it.
    let switch = Arc::new(Switch::new());
    let wire =
        |device| -> Result<Box<dyn Wire>, NetError> { Ok(Box::new(switch.plug(0, device)?)) };
    let supply = Supply {
        blocks: &config.blocks,
        publish: &config.publish,
        network: &network,
        input: &|| Some(Box::new(Stdin::default())),
        wire: &wire,
    };
    attach::attach(manifest, &supply, asker, true, |it| built_in::attach(&it))
}

/// The guest's clock is the only one here: a deadline then is what the guest
/// takes it for, however the TSC and the kernel's clock drift apart.
fn now(machine: &Machine) -> Instant {
    Instant::from_nanos(machine.monotonic_ns())
}

struct Foreground<'a> {
    image: &'a Image,
    machine: Machine,
    signals: Signals,
    console: Console,
    alarm: Alarm,
    task: Task,
    /// The bytes of a console write that the model has not yet seen the end of.
    pending: Vec<u8>,
    /// Whether a device was left with work.
    backlog: bool,
    report: Option<String>,
    stats: Stats,
}

impl Foreground<'_> {
    fn run(mut self) -> Result<Finished, RunError> {
        let start = now(&self.machine);
        let mut event = Event::Start;
        loop {
            event = match self.task.handle(now(&self.machine), event) {
                Action::Enter(answer) => {
                    self.set_alarm(self.task.alarm())?;
                    let exit = self.machine.enter(answer)?;
                    self.take(exit)?
                }
                Action::Park { until } => self.park(until)?,
                Action::Write { until } => self.write(until)?,
                Action::End(outcome) => {
                    self.stats.elapsed = now(&self.machine).since(start);
                    return Ok(Finished {
                        outcome,
                        report: self.report,
                        lost: self.console.into_lost(),
                        stats: self.stats,
                    });
                }
            };
        }
    }

    /// Turns an exit into what the model understands.
    fn take(&mut self, exit: Exit) -> Result<Event, RunError> {
        count(&mut self.stats.exits);
        log::trace!("{exit:?}");
        match exit {
            Exit::Call(Call::Exit { status }) => {
                count(&mut self.stats.ends);
                Ok(Event::Exit { status })
            }
            Exit::Call(Call::Wait {
                deadline_ns,
                interest,
            }) => {
                count(&mut self.stats.waits);
                let deadline = (deadline_ns != FOREVER).then(|| Instant::from_nanos(deadline_ns));
                Ok(match self.serve() {
                    Ok(ready) => Event::Wait {
                        deadline,
                        interest,
                        ready,
                    },
                    Err(fault) => self.fault(&fault),
                })
            }
            Exit::Call(Call::Kick { target }) => {
                count(&mut self.stats.kicks);
                Ok(match self.machine.kick(target) {
                    Ok(answer) => Event::Kick { answer },
                    Err(fault) => self.fault(&fault),
                })
            }
            Exit::Call(Call::ConsoleWrite(slice)) => {
                count(&mut self.stats.writes);
                match self.machine.read_user(slice) {
                    Ok(bytes) => {
                        self.pending = bytes;
                        Ok(Event::ConsoleWrite)
                    }
                    Err(fault) => Ok(self.fault(&fault)),
                }
            }
            Exit::Interrupted => {
                count(&mut self.stats.interruptions);
                Ok(self.signals.take()?.map_or(Event::Interrupted, Event::Stop))
            }
            Exit::Fault(fault) => {
                count(&mut self.stats.ends);
                Ok(self.fault(&fault))
            }
        }
    }

    /// Looks at the devices, and says which have something for the guest.
    fn serve(&mut self) -> Result<Interest, Box<Fault>> {
        if !self.machine.has_devices() {
            return Ok(Interest::NONE);
        }
        let served = self.machine.serve()?;
        self.backlog = served.more;
        Ok(served.ready)
    }

    fn fault(&mut self, fault: &Fault) -> Event {
        let report = wharf_machine::Report::new(fault, &self.machine, self.image);
        self.report = Some(report.to_string());
        Event::Fault
    }

    fn set_alarm(&mut self, at: Option<Instant>) -> Result<(), RunError> {
        match at {
            Some(at) => self.alarm.set(at.since(now(&self.machine))),
            None => Ok(()),
        }
    }

    fn park(&mut self, until: Option<Instant>) -> Result<Event, RunError> {
        if self.backlog {
            if let Some(stop) = self.signals.take()? {
                return Ok(Event::Stop(stop));
            }
            return Ok(match self.serve() {
                Ok(ready) => Event::Devices { ready },
                Err(fault) => self.fault(&fault),
            });
        }
        self.set_alarm(until)?;
        let devices = self.machine.device_fds();
        match self
            .signals
            .wait(devices.map(|fd| (fd, PollFlags::POLLIN)))?
        {
            Wake::Stop(stop) => Ok(Event::Stop(stop)),
            Wake::Ready => Ok(match self.serve() {
                Ok(ready) => Event::Devices { ready },
                Err(fault) => self.fault(&fault),
            }),
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
            Wake::Ready => match self.console.write(&self.pending) {
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
