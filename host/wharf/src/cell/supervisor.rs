//! The thread that owns the model: it turns what workers, signals and the control
//! socket say into events, and actions into messages to workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, after, never, select_biased, unbounded};
use wharf_model::cell::{Action, Cell as Model, Event as Fact, Replica, State, TaskKey};
use wharf_model::{Outcome, Stop};

use super::console::{ConsoleRing, Consoles};
use super::events::EventLog;
use super::logger::{LogTarget, Logger};
use super::meters::Meters;
use super::protocol::{Command, EventKind, NoSuchTask, Reply, Selector, TaskState, TaskStatus};
use super::worker::{self, Birth, FromWorker, Mailbox, ToWorker};
use super::{CellConfig, CellError, Request, Shared, TaskSpec};
use crate::net::Acceptor;

/// Starts workers, supervisor and tasks; the thread ends when the cell does, having
/// said so in `over`. Returns also where the guests write.
pub(super) fn start(
    config: CellConfig,
    shared: &Shared,
    acceptor: Acceptor,
    (events, over): (Arc<EventLog>, Arc<AtomicBool>),
    requests: Receiver<Request>,
) -> Result<(Consoles, JoinHandle<()>), CellError> {
    let (outbox, reports) = unbounded();
    let mut workers = Workers(Vec::new());
    for index in 0..usize::try_from(config.workers.max(1)).unwrap_or(1) {
        let worker = worker::start(index, shared.clone(), outbox.clone())?;
        workers.0.push(worker);
    }
    let members = members(config.tasks)?;
    let replicas: Vec<Replica> = members.iter().map(Member::replica).collect();
    let consoles = Consoles::new(members.iter().map(Member::console));
    let supervisor = Supervisor {
        start: Instant::now(),
        model: Model::new(workers.0.len(), &replicas),
        members,
        workers,
        events,
        _outbox: outbox,
    };
    let thread = std::thread::Builder::new()
        .name("supervisor".to_owned())
        .spawn(move || {
            supervisor.run(&requests, &reports);
            // Ports are free again before anybody hears that all is over.
            drop(acceptor);
            over.store(true, Ordering::Release);
        })
        .map_err(CellError::Thread)?;
    Ok((consoles, thread))
}

/// One replica: what it is and what it left behind so far.
struct Member {
    task: usize,
    /// The place of the task whose ports lead here, too.
    joins: Option<usize>,
    index: u32,
    spec: Arc<TaskSpec>,
    console: Arc<ConsoleRing>,
    meters: Arc<Meters>,
    log: Option<Arc<LogTarget>>,
    reason: Option<String>,
}

impl Member {
    fn replica(&self) -> Replica {
        Replica {
            task: self.task,
            weight: self.spec.weight,
            restart: self.spec.restart,
        }
    }

    fn console(&self) -> (String, u32, Arc<ConsoleRing>) {
        let console = Arc::clone(&self.console);
        (self.spec.name.clone(), self.index, console)
    }

    fn name(&self) -> String {
        format!("{}.{}", self.spec.name, self.index)
    }
}

fn members(tasks: Vec<TaskSpec>) -> Result<Vec<Member>, CellError> {
    let mut logger = Logger::default();
    let mut members = Vec::new();
    let mut files = Vec::new();
    let names: Vec<String> = tasks.iter().map(|it| it.name.clone()).collect();
    for (task, spec) in tasks.into_iter().enumerate() {
        let joined = |name: &String| names.iter().position(|it| it == name);
        let joins = spec.joins.as_ref().and_then(joined);
        let file = spec.log.as_ref().map(|log| logger.add(log));
        let spec = Arc::new(spec);
        for index in 0..spec.replicas {
            files.push(file);
            members.push(Member {
                task,
                joins,
                index,
                spec: Arc::clone(&spec),
                console: Arc::default(),
                meters: Arc::default(),
                log: None,
                reason: None,
            });
        }
    }
    let target = logger.start()?;
    for (member, file) in members.iter_mut().zip(files) {
        member.log = file.map(&target);
    }
    Ok(members)
}

struct Supervisor {
    start: Instant,
    model: Model,
    members: Vec<Member>,
    workers: Workers,
    events: Arc<EventLog>,
    /// Keeps the channel open, so that its end never has to be told from quiet.
    _outbox: Sender<FromWorker>,
}

/// The workers. Nobody else ends them: dropped, also when one could not be started or
/// the supervisor panics, they end, and their guests with them.
struct Workers(Vec<(Mailbox, JoinHandle<()>)>);

impl Drop for Workers {
    fn drop(&mut self) {
        for (mailbox, _) in &self.0 {
            mailbox.send(ToWorker::Quit);
        }
        for (_, thread) in self.0.drain(..) {
            // A worker that panicked said so; the others are ended all the same.
            let _ = thread.join();
        }
    }
}

/// Whether the cell goes on.
#[derive(PartialEq, Eq)]
enum Going {
    On,
    Over,
}

impl Supervisor {
    fn run(mut self, requests: &Receiver<Request>, reports: &Receiver<FromWorker>) {
        self.events
            .add(None, 0, EventKind::Up, "the cell serves".to_owned());
        let mut going = self.tell(Fact::Start);
        while going == Going::On {
            let tick = match self.model.alarm() {
                Some(at) => after(at.since(self.now())),
                None => never(),
            };
            going = select_biased! {
                recv(reports) -> report => match report {
                    Ok(report) => self.hear(report),
                    Err(_) => Going::Over,
                },
                recv(requests) -> request => match request {
                    Ok(Request { command, reply }) => {
                        let (answer, going) = self.obey(command);
                        // Who asked may have gone; that changes nothing here.
                        let _ = reply.send(answer);
                        going
                    }
                    // Nobody can ask any more, nor end the cell: it ends.
                    Err(_) => self.tell(Fact::Down),
                },
                recv(tick) -> _ => self.tell(Fact::Tick),
            };
        }
        drop(self.workers);
        self.events
            .add(None, 0, EventKind::Down, "the cell has ended".to_owned());
    }

    fn now(&self) -> wharf_model::Instant {
        let ns = self.start.elapsed().as_nanos();
        wharf_model::Instant::from_nanos(ns.try_into().unwrap_or(u64::MAX))
    }

    /// Takes in what a worker says.
    fn hear(&mut self, report: FromWorker) -> Going {
        match report {
            FromWorker::Booted(key, took) => {
                let detail = format!("in {} us", took.as_micros());
                self.record(key, EventKind::Started, detail);
                self.tell(Fact::Booted(key))
            }
            FromWorker::BootFailed(key, reason) => {
                self.record(key, EventKind::StartFailed, reason);
                self.tell(Fact::BootFailed(key))
            }
            FromWorker::Ended(key, outcome, report) => {
                let (kind, detail) = match outcome {
                    Outcome::Exited { status } => {
                        (EventKind::Exited, format!("exited with status {status}"))
                    }
                    Outcome::Faulted => (EventKind::Faulted, report.unwrap_or_default()),
                    Outcome::Stopped(stop) => (EventKind::Stopped, stop_reason(stop)),
                };
                self.record(key, kind, detail);
                self.tell(Fact::Ended(key, outcome))
            }
            FromWorker::Gave(key, to) => {
                self.record(key, EventKind::Moved, format!("to worker {to}"));
                self.tell(Fact::Moved(key, to))
            }
            FromWorker::Idle(worker) => self.tell(Fact::Idle(worker)),
            FromWorker::Crowded(worker) => self.tell(Fact::Crowded(worker)),
            // Its guests cannot be told to end, so waiting for them would not end.
            FromWorker::Broken(worker) => {
                log::error!("worker {worker} panicked: the cell ends");
                Going::Over
            }
        }
    }

    fn obey(&mut self, command: Command) -> (Reply, Going) {
        match command {
            Command::Tasks => (Reply::Tasks(self.statuses()), Going::On),
            Command::Stop(selector) => self.each(selector, Fact::Stop),
            Command::Restart(selector) => self.each(selector, Fact::Restart),
            Command::Down => (Reply::Begun, self.tell(Fact::Down)),
        }
    }

    fn each(&mut self, selector: Selector, fact: impl Fn(usize) -> Fact) -> (Reply, Going) {
        let found = self.find(&selector);
        if found.is_empty() {
            return (Reply::Refused(NoSuchTask { selector }), Going::On);
        }
        let mut going = Going::On;
        for replica in found {
            if self.tell(fact(replica)) == Going::Over {
                going = Going::Over;
            }
        }
        (Reply::Begun, going)
    }

    fn find(&self, selector: &Selector) -> Vec<usize> {
        let matches = |member: &Member| selector.matches(&member.spec.name, member.index);
        let numbered = self.members.iter().enumerate();
        numbered
            .filter(|(_, member)| matches(member))
            .map(|(replica, _)| replica)
            .collect()
    }

    /// Tells the model and does what it says.
    fn tell(&mut self, fact: Fact) -> Going {
        let now = self.now();
        let mut going = Going::On;
        for action in self.model.handle(now, fact) {
            match action {
                Action::Boot { key, worker } => self.boot(key, worker),
                Action::Stop { key, worker } => self.send(worker, ToWorker::Stop(key)),
                Action::Kill { key, worker } => self.send(worker, ToWorker::Kill(key)),
                Action::Donate { from, to } => {
                    if let Some((mailbox, _)) = self.workers.0.get(to) {
                        self.send(from, ToWorker::Donate(to, mailbox.clone()));
                    }
                }
                Action::BackOff { key, pause } => {
                    let detail = format!("starts again in {} ms", pause.as_millis());
                    self.record(key, EventKind::BackingOff, detail);
                }
                Action::Finished => going = Going::Over,
            }
        }
        going
    }

    fn boot(&self, key: TaskKey, worker: usize) {
        if let Some(member) = self.members.get(key.replica) {
            let birth = Birth {
                key,
                task: member.task,
                joins: member.joins,
                spec: Arc::clone(&member.spec),
                console: Arc::clone(&member.console),
                meters: Arc::clone(&member.meters),
                log: member.log.clone(),
            };
            self.send(worker, ToWorker::Boot(Box::new(birth)));
        }
    }

    fn send(&self, worker: usize, message: ToWorker) {
        if let Some((mailbox, _)) = self.workers.0.get(worker) {
            mailbox.send(message);
        }
    }

    fn record(&mut self, key: TaskKey, kind: EventKind, detail: String) {
        if let Some(member) = self.members.get_mut(key.replica) {
            match kind {
                // A pause and a move are no reasons for where it is.
                EventKind::Moved | EventKind::BackingOff => {}
                EventKind::Started => member.reason = None,
                _ => {
                    let first = detail.lines().next().unwrap_or_default();
                    member.reason = (!first.is_empty()).then(|| first.to_owned());
                }
            }
            self.events
                .add(Some(member.name()), key.generation, kind, detail);
        }
    }

    fn statuses(&self) -> Vec<TaskStatus> {
        let status = |(replica, member): (usize, &Member)| {
            let outcome = self.model.last_outcome(replica);
            let traffic = member.meters.traffic();
            let (state, worker) = match self.model.state(replica) {
                State::Starting { worker } => (TaskState::Starting, Some(worker)),
                State::BackingOff { .. } => (TaskState::Starting, None),
                State::Up { worker, .. } => (member.meters.state(), Some(worker)),
                State::Down => match outcome {
                    Some(Outcome::Exited { .. } | Outcome::Stopped(_)) => {
                        (TaskState::Stopped, None)
                    }
                    Some(Outcome::Faulted) | None => (TaskState::Faulted, None),
                },
            };
            TaskStatus {
                name: member.spec.name.clone(),
                index: member.index,
                generation: self.model.key(replica).generation,
                state,
                image: member.spec.image.display().to_string(),
                memory_bytes: member.spec.boot.memory,
                run_ns: member.meters.run_ns(),
                exits: member.meters.exits(),
                console_bytes: member.console.end(),
                connections: traffic.open.load(Ordering::Relaxed),
                connections_total: traffic.total.load(Ordering::Relaxed),
                connection_errors: traffic.errors.load(Ordering::Relaxed),
                received_bytes: traffic.received.load(Ordering::Relaxed),
                sent_bytes: traffic.sent.load(Ordering::Relaxed),
                restarts: self.model.restarts(replica),
                exit_status: outcome.map(Outcome::exit_status),
                weight: member.spec.weight,
                worker: worker.and_then(|worker| worker.try_into().ok()),
                reason: member.reason.clone(),
            }
        };
        self.members.iter().enumerate().map(status).collect()
    }
}

fn stop_reason(stop: Stop) -> String {
    match stop {
        Stop::Terminate => "stopped".to_owned(),
        other => other.to_string(),
    }
}
