//! The thread that owns the model: it turns what workers, signals and the control
//! socket say into events, and actions into messages to workers.

mod handover;
mod rollout;
mod snapshot;
mod successor;
mod takeover;
mod upgrade;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, after, never, select_biased, unbounded};
use wharf_machine::image::Image;
use wharf_model::cell::{Action, Cell as Model, Event as Fact, Replica, State, TaskKey};
use wharf_model::upgrade::Event as Upgrading;
use wharf_model::{Outcome, Stop};

use super::asker::{Asker, Said};
use super::console::{ConsoleRing, Consoles};
use super::events::EventLog;
use super::logger::{self, LogTarget, Logger};
use super::meters::Meters;
use super::protocol::{
    Command, EventKind, NoSuchTask, Reply, Selector, TaskState, TaskStatus, UpgradeStatus,
};
use super::worker::{self, Birth, FromWorker, Mailbox, ToWorker};
use super::{CellConfig, CellError, Ended, Request, Shared, TaskSpec};
use crate::net::{Acceptor, Share};
use handover::{Departed, Prepared, Preparing};
use rollout::Rollout;
use upgrade::{Ongoing, Running};

pub(super) use takeover::Newcomer;

/// Starts workers, supervisor and tasks; the thread ends when the cell does, having
/// said so in `ended`. Returns also where the guests write.
pub(super) fn start(
    config: CellConfig,
    shared: &Shared,
    acceptor: Acceptor,
    (events, ended): (Arc<EventLog>, Arc<Ended>),
    requests: Receiver<Request>,
) -> Result<(Consoles, JoinHandle<()>), CellError> {
    let mut supervisor = Supervisor::new(config, shared, acceptor, (events, ended))?;
    let consoles = supervisor.consoles();
    let thread = std::thread::Builder::new()
        .name("supervisor".to_owned())
        .spawn(move || {
            let words = "the cell serves".to_owned();
            supervisor.events.add(None, 0, EventKind::Up, words);
            let going = supervisor.tell(Fact::Start);
            supervisor.run(&requests, going);
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
    share: Arc<Share>,
    log: Option<Arc<LogTarget>>,
    reason: Option<String>,
    /// What it runs, or ran last.
    image: Option<Arc<Image>>,
    /// What it is started again with, when that is not what is in the file then.
    pinned: Option<Arc<Image>>,
    /// What it ran before the last upgrade.
    previous: Option<Running>,
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

    /// What is needed to make its next life.
    fn birth(&self, key: TaskKey) -> Birth {
        Birth {
            key,
            task: self.task,
            joins: self.joins,
            spec: Arc::clone(&self.spec),
            // A clone's image alone is not what it is made of.
            image: self.pinned.clone().filter(|_| self.spec.clones.is_none()),
            console: Arc::clone(&self.console),
            meters: Arc::clone(&self.meters),
            share: Arc::clone(&self.share),
            log: self.log.clone(),
            heir_of: None,
        }
    }

    /// What is shown of a life of it, as far as that is not the model's to say.
    fn row(&self, spec: &TaskSpec, meters: &Meters, share: &Share) -> TaskStatus {
        let (traffic, frames) = (meters.traffic(), meters.frames());
        TaskStatus {
            name: spec.name.clone(),
            index: self.index,
            generation: 0,
            state: meters.state(),
            image: spec.image.display().to_string(),
            memory_bytes: spec.boot.memory,
            run_ns: meters.run_ns(),
            exits: meters.exits(),
            console_bytes: 0,
            connections: traffic.open.load(Ordering::Relaxed),
            connections_total: traffic.total.load(Ordering::Relaxed),
            connection_errors: traffic.errors.load(Ordering::Relaxed),
            received_bytes: traffic.received.load(Ordering::Relaxed),
            sent_bytes: traffic.sent.load(Ordering::Relaxed),
            received_frames_dropped: frames.received(),
            sent_frames_dropped: frames.sent(),
            restarts: 0,
            exit_status: None,
            weight: spec.weight,
            share: share.get(),
            beside: None,
            worker: None,
            reason: None,
        }
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
                share: Arc::default(),
                log: None,
                reason: None,
                image: None,
                pinned: None,
                previous: None,
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
    /// What it was started with.
    config: CellConfig,
    shared: Shared,
    ended: Arc<Ended>,
    acceptor: Acceptor,
    /// What workers say, and where they say it: kept open, so that its end never has to
    /// be told from quiet.
    reports: Receiver<FromWorker>,
    _outbox: Sender<FromWorker>,
    /// What the asker says.
    said: Receiver<Said>,
    /// Who is to hear of a hand-over for which another process gets ready.
    preparing: Option<Preparing>,
    /// Where processes arrive that are ready to go on.
    successors: (Sender<Prepared>, Receiver<Prepared>),
    /// What is left here of guests that another process has.
    departed: Departed,
    start: Instant,
    model: Model,
    members: Vec<Member>,
    workers: Workers,
    events: Arc<EventLog>,
    rollouts: Vec<Rollout>,
    /// The last of those that are over.
    past_rollouts: VecDeque<UpgradeStatus>,
    last_rollout: u64,
    ongoing: Vec<Ongoing>,
    asker: Asker,
    writers: snapshot::Writers,
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
    /// A supervisor of tasks of which none lives yet, and its workers.
    fn new(
        config: CellConfig,
        shared: &Shared,
        acceptor: Acceptor,
        (events, ended): (Arc<EventLog>, Arc<Ended>),
    ) -> Result<Self, CellError> {
        let (outbox, reports) = unbounded();
        let mut workers = Workers(Vec::new());
        for index in 0..usize::try_from(config.workers.max(1)).unwrap_or(1) {
            let worker = worker::start(index, shared.clone(), outbox.clone())?;
            workers.0.push(worker);
        }
        let members = members(config.tasks.clone())?;
        let replicas: Vec<Replica> = members.iter().map(Member::replica).collect();
        let (asker, said) = Asker::start(Arc::clone(&shared.slots))?;
        Ok(Self {
            start: Instant::now(),
            model: Model::new(workers.0.len(), &replicas),
            members,
            workers,
            events,
            ended,
            acceptor,
            reports,
            _outbox: outbox,
            said,
            preparing: None,
            successors: unbounded(),
            departed: Departed::default(),
            shared: shared.clone(),
            config,
            rollouts: Vec::new(),
            past_rollouts: VecDeque::new(),
            last_rollout: 0,
            ongoing: Vec::new(),
            asker,
            writers: snapshot::Writers::default(),
        })
    }

    fn consoles(&self) -> Consoles {
        Consoles::new(self.members.iter().map(Member::console))
    }

    /// Serves until the cell is over, and says so.
    fn run(mut self, requests: &Receiver<Request>, mut going: Going) {
        let (reports, said) = (self.reports.clone(), self.said.clone());
        let ready = self.successors.1.clone();
        while going == Going::On {
            let upgrades = self.ongoing.iter().filter_map(Ongoing::alarm);
            let tick = match self.model.alarm().into_iter().chain(upgrades).min() {
                Some(at) => after(at.since(self.now())),
                None => never(),
            };
            going = select_biased! {
                recv(reports) -> report => match report {
                    Ok(report) => self.hear(report),
                    Err(_) => Going::Over,
                },
                recv(requests) -> request => match request {
                    Ok(request) => self.obey(request),
                    // Nobody can ask any more, nor end the cell: it ends.
                    Err(_) => self.tell(Fact::Down),
                },
                recv(said) -> said => match said {
                    Ok(said) => self.hear_asker(said),
                    Err(_) => Going::Over,
                },
                recv(ready) -> prepared => match prepared {
                    Ok(prepared) => self.go_over(prepared),
                    Err(_) => Going::Over,
                },
                recv(tick) -> _ => match self.tell(Fact::Tick) {
                    Going::On => self.tick_upgrades(),
                    Going::Over => Going::Over,
                },
            };
        }
        drop(self.workers);
        // What has been frozen is written, and what guests have said.
        self.writers.join();
        logger::settle_all(self.members.iter().filter_map(|it| it.log.as_deref()));
        if self.ended.is_handed_over.load(Ordering::Acquire) {
            // What happens now, another process tells.
            self.events.close();
        } else {
            let words = "the cell has ended".to_owned();
            self.events.add(None, 0, EventKind::Down, words);
        }
        // Ports are free again before anybody hears that all is over.
        drop(self.acceptor);
        self.ended.is_over.store(true, Ordering::Release);
    }

    fn now(&self) -> wharf_model::Instant {
        let ns = self.start.elapsed().as_nanos();
        wharf_model::Instant::from_nanos(ns.try_into().unwrap_or(u64::MAX))
    }

    /// Takes in what a worker says.
    fn hear(&mut self, report: FromWorker) -> Going {
        match report {
            FromWorker::Booted(key, made) => {
                if let Some(heir) = self.heir(key) {
                    self.heir_is_at(heir, made.worker);
                    return self.drive(heir, Upgrading::Booted);
                }
                if self.model.key(key.replica) != key {
                    // Whose place it was to take was told something else meanwhile.
                    self.send(made.worker, ToWorker::Kill(key));
                    return Going::On;
                }
                let mut how = "";
                if let Some(member) = self.members.get_mut(key.replica) {
                    member.image = Some(made.image);
                    if let Some(cloned) = made.cloned {
                        how = if cloned.was_warm {
                            ", a warm clone"
                        } else {
                            ", a clone"
                        };
                        let mut spec = member.spec.as_ref().clone();
                        spec.boot = cloned.boot;
                        member.spec = Arc::new(spec);
                    }
                }
                let detail = format!("in {} us{how}", made.took.as_micros());
                self.record(key, EventKind::Started, detail);
                self.tell(Fact::Booted(key))
            }
            FromWorker::BootFailed(key, reason) => {
                if let Some(heir) = self.heir(key) {
                    return self.drive(heir, Upgrading::BootFailed(reason));
                }
                self.record(key, EventKind::StartFailed, reason);
                self.tell(Fact::BootFailed(key))
            }
            FromWorker::Ended(key, outcome, report) => {
                let words = words(outcome);
                let (kind, detail) = match outcome {
                    Outcome::Exited { .. } => (EventKind::Exited, words.clone()),
                    Outcome::Faulted => (EventKind::Faulted, report.unwrap_or_default()),
                    Outcome::Stopped(_) => (EventKind::Stopped, words.clone()),
                };
                // Of a life that is beside the present one, nothing is the replica's.
                if self.model.key(key.replica) != key {
                    self.note(key, kind, detail);
                    return self.version_ended(key, words);
                }
                self.record(key, kind, detail);
                let going = self.tell(Fact::Ended(key, outcome));
                if self.heir_of(key).is_some() {
                    self.version_ended(key, words);
                }
                going
            }
            FromWorker::HandedOver(key, handed) => self.handed_over(key, handed),
            FromWorker::Ready(key) => self.drive(key, Upgrading::Ready),
            FromWorker::CutOver(key, cut) => self.cut_over(key, cut),
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

    fn obey(&mut self, request: Request) -> Going {
        let Request {
            command,
            control,
            reply,
        } = request;
        let (answer, going) = match command {
            Command::Tasks => (Reply::Tasks(self.statuses()), Going::On),
            Command::Stop(selector) if selector.generation.is_some() => self.stop_life(selector),
            Command::Stop(selector) => {
                self.cancel_upgrades(&self.find(&selector), "the task was stopped meanwhile");
                self.each(selector, Fact::Stop)
            }
            Command::Restart(selector) => {
                self.cancel_upgrades(&self.find(&selector), "the task was restarted meanwhile");
                for replica in self.find(&selector) {
                    if let Some(member) = self.members.get_mut(replica) {
                        member.pinned = None;
                    }
                }
                self.each(selector, Fact::Restart)
            }
            Command::Upgrade { selector, image } => (self.upgrade(selector, &image), Going::On),
            Command::Rollback(selector) => (self.roll_back(selector), Going::On),
            Command::Snapshot { selector, file } => {
                // It is answered by whoever writes it.
                self.snapshot(selector, file, &reply);
                return Going::On;
            }
            Command::HandOver { program } => {
                // It is answered when another process is ready, and then has everything.
                self.hand_over(&program, control, &reply);
                return Going::On;
            }
            Command::Upgrades => (Reply::Upgrades(self.upgrades()), Going::On),
            Command::Down => {
                let all: Vec<usize> = (0..self.members.len()).collect();
                self.cancel_upgrades(&all, "the host ends");
                (Reply::Begun, self.tell(Fact::Down))
            }
        };
        // Who asked may have gone; that changes nothing here.
        let _ = reply.send(answer);
        going
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

    /// The replicas that a selector means; of one that names a life, the replica whose
    /// present life that is.
    fn find(&self, selector: &Selector) -> Vec<usize> {
        let is_meant = |replica: usize, member: &Member| {
            let present = self.model.key(replica).generation;
            selector.matches(&member.spec.name, member.index)
                && selector.generation.is_none_or(|it| it == present)
        };
        let numbered = self.members.iter().enumerate();
        numbered
            .filter(|(replica, member)| is_meant(*replica, member))
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
            self.send(worker, ToWorker::Boot(Box::new(member.birth(key))));
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
        }
        self.note(key, kind, detail);
    }

    /// An event that is no reason for where a replica is.
    fn note(&self, key: TaskKey, kind: EventKind, detail: String) {
        if let Some(member) = self.members.get(key.replica) {
            self.events
                .add(Some(member.name()), key.generation, kind, detail);
        }
    }

    fn statuses(&self) -> Vec<TaskStatus> {
        let status = |(replica, member): (usize, &Member)| {
            let outcome = self.model.last_outcome(replica);
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
                generation: self.model.key(replica).generation,
                state,
                console_bytes: member.console.end(),
                restarts: self.model.restarts(replica),
                exit_status: outcome.map(Outcome::exit_status),
                worker: worker.and_then(|worker| worker.try_into().ok()),
                reason: member.reason.clone(),
                ..member.row(&member.spec, &member.meters, &member.share)
            }
        };
        let mut rows = Vec::new();
        for (replica, member) in self.members.iter().enumerate() {
            rows.push(status((replica, member)));
            let here = self.ongoing.iter();
            let here = here.filter(|it| it.new_key().replica == replica);
            rows.extend(here.filter_map(|it| it.beside(member)));
        }
        rows
    }
}

/// How a life ended, for people.
fn words(outcome: Outcome) -> String {
    match outcome {
        Outcome::Exited { status } => format!("exited with status {status}"),
        Outcome::Faulted => "faulted".to_owned(),
        Outcome::Stopped(Stop::Terminate) => "stopped".to_owned(),
        Outcome::Stopped(other) => other.to_string(),
    }
}
