//! The cell goes to another process: the part of the one that has it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use log::LevelFilter;
use wharf_machine::handover::Luggage;
use wharf_machine::image::Image;
use wharf_model::Outcome;
use wharf_model::cell::{State, TaskKey};

use super::{Going, Member, Supervisor};
use crate::cell::console::CONSOLE_BYTES;
use crate::cell::handover::{
    CarriedConsole, CarriedMember, Control, ControlFiles, FORMAT, Finish, Gave, HandoverError,
    Heard, Images, Link, Message, PATIENCE, PortFile, Reception, START_PATIENCE, Stranded,
    Surrendered, World, announce, give, keep,
};
use crate::cell::protocol::{EventKind, HandoverStatus, Reply};
use crate::cell::worker::{FromWorker, Live, Mailbox, ToWorker};
use crate::net::Waiting;
use crate::text::{one_line, shown};
use crate::units::nanos;

/// How long a guest that is being made, or ended, may take to get done.
const SETTLE_PATIENCE: Duration = Duration::from_secs(20);

/// How long a worker may take to say that a guest of its has ended.
const MOMENT: Duration = Duration::from_millis(100);

/// What is left of guests that another process has: machines, which take their time to
/// be closed, and have it when nobody waits any more.
#[derive(Default)]
pub(super) struct Departed(BTreeMap<TaskKey, Box<Live>>);

/// The process that is to go on.
struct Successor {
    process: Child,
    link: Link,
    version: String,
    images: Images,
    /// Guests that it knows of, and where their consoles were.
    announced: BTreeMap<TaskKey, u64>,
    /// What it gives back.
    reception: Reception,
    /// A guest on its way, when the link broke.
    left: Option<Surrendered>,
    /// For how long guests stood still.
    pauses: Vec<Duration>,
    connections: u32,
}

impl Supervisor {
    /// Hands everything over to another program.
    pub(super) fn hand_over(
        &mut self,
        program: &Path,
        control: Option<ControlFiles>,
    ) -> (Reply, Going) {
        let start = Instant::now();
        let handed = match control {
            Some(control) => self.try_hand_over(program, &control),
            None => Err("there is no control socket to hand over".to_owned()),
        };
        let mut successor = match handed {
            Ok(done) => done,
            Err(reason) => {
                let kind = EventKind::HandoverFailed;
                self.events.add(None, 0, kind, reason.clone());
                return (Reply::Denied(reason), Going::On);
            }
        };
        let pid = successor.process.id();
        successor.pauses.sort_unstable();
        let pause = |at: usize| successor.pauses.get(at).copied().map_or(0, nanos);
        let guests = successor.pauses.len();
        let status = HandoverStatus {
            pid,
            version: successor.version,
            guests: u32::try_from(guests).unwrap_or(u32::MAX),
            connections: successor.connections,
            pause_median_ns: pause(guests / 2),
            pause_max_ns: pause(guests.saturating_sub(1)),
            took_ns: nanos(start.elapsed()),
        };
        self.ended.is_handed_over.store(true, Ordering::Release);
        let detail = format!("to process {pid}, {guests} guests");
        self.events.add(None, 0, EventKind::HandedOver, detail);
        (Reply::HandedOver(status), Going::Over)
    }

    fn try_hand_over(
        &mut self,
        program: &Path,
        control: &ControlFiles,
    ) -> Result<Successor, String> {
        if !self.ongoing.is_empty() || !self.rollouts.is_empty() {
            return Err("a task is being upgraded: hand over when that is done".to_owned());
        }
        if self.writers.is_any_at_work() {
            return Err("a snapshot is being written: hand over when that is done".to_owned());
        }
        if self.model.is_going_down() {
            return Err("the host is ending".to_owned());
        }
        let mut successor = Successor::start(program, &control.path)?;
        match self.pass_on(&mut successor, control) {
            Ok(()) => Ok(successor),
            Err(error) => {
                let reason = one_line(&error);
                Err(match self.take_back(successor, &error) {
                    0 => reason,
                    lost => format!("{reason}; {lost} guests were lost with it and are restarted"),
                })
            }
        }
    }

    /// Does all of it, up to the other's word that it serves.
    fn pass_on(
        &mut self,
        successor: &mut Successor,
        control: &ControlFiles,
    ) -> Result<(), HandoverError> {
        successor.greet()?;
        let (world, luggage) = self.world()?;
        let link = &successor.link;
        link.say(&Message::World(Box::new(world)), luggage)?;
        successor.expect("that it is ready", |said| matches!(said, Message::Ready))?;
        self.acceptor.share(true);
        loop {
            let living = self.living()?;
            if living.is_empty() {
                break;
            }
            for key in &living {
                self.announce(successor, *key)?;
            }
            for key in living {
                self.pass(successor, key)?;
            }
        }
        let stranded = self.acceptor.rest();
        let finished = self.finish(successor, control, &stranded);
        if finished.is_err() {
            // What waits here still may find somebody here.
            let _ = self.acceptor.wake(stranded);
        }
        finished
    }

    /// The guests that are still to go, when what workers have said is taken in; none when
    /// nothing lives here any more, nor is about to.
    fn living(&mut self) -> Result<Vec<TaskKey>, HandoverError> {
        let start = Instant::now();
        loop {
            while let Ok(report) = self.reports.try_recv() {
                if self.hear(report) == Going::Over {
                    return Err(HandoverError::Unfit("the cell has ended".to_owned()));
                }
            }
            let (mut living, mut starts) = (Vec::new(), false);
            for replica in 0..self.members.len() {
                let key = self.model.key(replica);
                match self.model.state(replica) {
                    State::Up { .. } if !self.departed.0.contains_key(&key) => {
                        living.push(key);
                    }
                    State::Starting { .. } => starts = true,
                    _ => {}
                }
            }
            if !living.is_empty() || !starts {
                return Ok(living);
            }
            if start.elapsed() > SETTLE_PATIENCE {
                let reason = "a task takes too long to start: hand over when it has".to_owned();
                return Err(HandoverError::Unfit(reason));
            }
            if let Ok(report) = self.reports.recv_timeout(PATIENCE) {
                self.hear(report);
            }
        }
    }

    /// A living guest's replica, and how its worker is reached.
    fn place(&self, key: TaskKey) -> Option<(&Member, &Mailbox)> {
        let State::Up { worker, .. } = self.model.state(key.replica) else {
            return None;
        };
        let (mailbox, _) = self.workers.0.get(worker)?;
        Some((self.members.get(key.replica)?, mailbox))
    }

    fn announce(&self, successor: &mut Successor, key: TaskKey) -> Result<(), HandoverError> {
        let Some((member, mailbox)) = self.place(key) else {
            return Ok(());
        };
        let Successor { link, images, .. } = successor;
        match announce(link, images, &member.birth(key), mailbox)? {
            Ok(written) => {
                successor.announced.insert(key, written);
                Ok(())
            }
            Err(Gave::Kept(reason)) => {
                Err(HandoverError::Unfit(format!("{}: {reason}", member.name())))
            }
            // Its worker has said so, or is about to.
            Err(_) => Ok(()),
        }
    }

    fn pass(&mut self, successor: &mut Successor, key: TaskKey) -> Result<(), HandoverError> {
        let Some(written) = successor.announced.remove(&key) else {
            self.hear_more();
            return Ok(());
        };
        let Some((member, mailbox)) = self.place(key) else {
            return Ok(());
        };
        let open = member.meters.traffic().open.load(Ordering::Relaxed);
        let Successor { link, left, .. } = successor;
        match give(link, member.birth(key), written, mailbox, left)? {
            Gave::Away { left, pause } => {
                self.departed.0.insert(key, left);
                successor.pauses.push(pause);
                successor.connections = successor.connections.saturating_add(open);
            }
            Gave::Ended => self.hear_more(),
            Gave::Kept(reason) => {
                return Err(HandoverError::Unfit(format!("{}: {reason}", member.name())));
            }
        }
        Ok(())
    }

    /// Waits for what a worker is about to say.
    fn hear_more(&mut self) {
        if let Ok(report) = self.reports.recv_timeout(MOMENT) {
            self.hear(report);
        }
    }

    /// Everything but the guests.
    fn world(&self) -> Result<(World, Luggage), HandoverError> {
        let mut luggage = Luggage::default();
        let slots = self.shared.slots.carry();
        let components = slots.components.iter();
        let components = components.map(|(digest, it)| (digest.clone(), luggage.put_bytes(it)));
        let components = components.collect();
        let ports = self
            .acceptor
            .ports()
            .map_err(|e| HandoverError::unfit(&e))?;
        let ports = ports.into_iter().map(|it| PortFile {
            task: it.task,
            publish: it.publish,
            listener: luggage.put_file(it.listener),
        });
        let world = World {
            config: self.config.clone(),
            components,
            ports: ports.collect(),
            switch: self.shared.switch.seed(),
            slots,
        };
        Ok((world, luggage))
    }

    /// Says what there is to know beside the guests, and waits until the other serves.
    fn finish(
        &self,
        successor: &mut Successor,
        control: &ControlFiles,
        stranded: &[Waiting],
    ) -> Result<(), HandoverError> {
        let mut luggage = Luggage::default();
        let mut members = Vec::new();
        for (replica, member) in self.members.iter().enumerate() {
            let is_away = self.departed.0.contains_key(&self.model.key(replica));
            members.push(successor.carry(member, !is_away, &mut luggage)?);
        }
        let mut file = |file: io::Result<OwnedFd>| {
            let file = file.map_err(|e| HandoverError::unfit(&e))?;
            Ok::<_, HandoverError>(luggage.put_file(file))
        };
        let stranded = stranded.iter().map(|it| {
            Ok(Stranded {
                port: it.port,
                socket: file(it.socket.try_clone().map(OwnedFd::from))?,
                source: it.source,
                from: it.from,
                waited: nanos(it.since.elapsed()),
            })
        });
        let stranded: Result<Vec<_>, HandoverError> = stranded.collect();
        let stranded = stranded?;
        let control = Control {
            path: control.path.clone(),
            listener: file(control.listener.try_clone())?,
            lock: file(control.lock.try_clone())?,
            config: control.config.clone(),
        };
        let finish = Finish {
            model: self.model.clone(),
            now: self.now(),
            members,
            events: self.events.carry(),
            upgrades: self.past_rollouts.iter().cloned().collect(),
            last_upgrade: self.last_rollout,
            stranded,
            control,
        };
        let link = &successor.link;
        link.say(&Message::Finish(Box::new(finish)), luggage)?;
        successor.expect("that it serves", |said| matches!(said, Message::Serving))
    }

    /// Takes everything back that went over, and ends the other process. Returns how many
    /// guests it did not give back.
    fn take_back(&mut self, mut successor: Successor, why: &HandoverError) -> usize {
        // Who refuses is asked to give back; who is gone, or talks nonsense, is ended.
        if matches!(why, HandoverError::Refused(_) | HandoverError::Unfit(_))
            && let Err(error) = self.receive_back(&mut successor)
        {
            log::warn!("the process that was to take over: {}", one_line(&error));
        }
        successor.end();
        // With it gone, what it has said is all that there is: a guest that it did not
        // say to have is this process's.
        if let Some(Surrendered { live, .. }) = &successor.left {
            let key = live.key();
            let has_said =
                std::iter::from_fn(|| successor.link.hear(Duration::from_millis(1)).ok());
            if has_said
                .into_iter()
                .any(|(said, _)| matches!(said, Message::Taken))
            {
                let mut live = successor.left.take();
                if let Some(Surrendered { live, .. }) = &mut live {
                    live.let_go();
                }
                self.departed.0.extend(live.map(|it| (key, it.live)));
            } else if let State::Up { worker, .. } = self.model.state(key.replica)
                && let Some((mailbox, _)) = self.workers.0.get(worker)
            {
                keep(&mut successor.left, mailbox);
            }
        }
        self.acceptor.share(false);
        let lost = std::mem::take(&mut self.departed.0);
        for key in lost.keys() {
            let report = Some("the process that had taken it over has ended".to_owned());
            self.hear(FromWorker::Ended(*key, Outcome::Faulted, report));
        }
        lost.len()
    }

    /// Takes guests from the other process until it has none.
    fn receive_back(&mut self, successor: &mut Successor) -> Result<(), HandoverError> {
        successor.link.tell(&Message::GiveBack)?;
        loop {
            let Successor {
                link, reception, ..
            } = &mut *successor;
            let birth = |key: TaskKey| Some(self.members.get(key.replica)?.birth(key));
            match reception.hear(link, link.hear(PATIENCE)?, &self.shared, birth)? {
                Heard::Nothing | Heard::Other(Message::Lost(_), _) => {}
                Heard::Here(key, live) => {
                    link.tell(&Message::Taken)?;
                    // Dropped later: what is left of it is in nobody's way.
                    self.departed.0.remove(&key);
                    if let Some((_, mailbox)) = self.place(key) {
                        mailbox.send(ToWorker::Adopt(live));
                    }
                }
                Heard::Other(Message::Empty, _) => return Ok(()),
                Heard::Other(..) => return Err(HandoverError::Unexpected("what it gives back")),
            }
        }
    }
}

impl Successor {
    /// Starts the program; the socket is on its command line for people to see.
    fn start(program: &Path, socket: &Path) -> Result<Self, String> {
        let (link, theirs) = Link::pair().map_err(|e| format!("no socket: {e}"))?;
        let process = Program::new(program)
            .args(["up", "--take-over", "--socket"])
            .arg(socket)
            .args(verbosity())
            .stdin(Stdio::from(theirs))
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", shown(program)))?;
        Ok(Self {
            process,
            link,
            version: String::new(),
            images: Images::default(),
            announced: BTreeMap::new(),
            reception: Reception::default(),
            left: None,
            pauses: Vec::new(),
            connections: 0,
        })
    }

    fn greet(&mut self) -> Result<(), HandoverError> {
        self.link.tell(&Message::Hello {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })?;
        match self.link.hear(PATIENCE)?.0 {
            Message::Hello { format, version } if format == FORMAT => {
                self.version = version;
                Ok(())
            }
            Message::Hello { format, .. } => Err(HandoverError::Format { theirs: format }),
            _ => Err(HandoverError::Unexpected("who it is")),
        }
    }

    fn expect(
        &self,
        what: &'static str,
        is_it: impl Fn(&Message) -> bool,
    ) -> Result<(), HandoverError> {
        match self.link.hear(START_PATIENCE)?.0 {
            said if is_it(&said) => Ok(()),
            Message::Refused(reason) => Err(HandoverError::Refused(reason)),
            _ => Err(HandoverError::Unexpected(what)),
        }
    }

    /// A replica, and with `rest` what would have come with its guest.
    fn carry(
        &mut self,
        member: &Member,
        rest: bool,
        luggage: &mut Luggage,
    ) -> Result<CarriedMember, HandoverError> {
        let mut number = |image: &Option<Arc<Image>>| {
            let image = image.as_ref();
            image.map(|it| self.images.send(&self.link, it)).transpose()
        };
        let image = number(&member.image)?;
        let pinned = number(&member.pinned)?;
        let previous = match &member.previous {
            Some(it) => number(&Some(Arc::clone(&it.image)))?
                .map(|number| (it.spec.as_ref().clone(), number)),
            None => None,
        };
        let rest = rest.then(|| {
            let console = member.console.read(0, CONSOLE_BYTES);
            let console = CarriedConsole::put(&console, luggage);
            (member.meters.counts(), console)
        });
        Ok(CarriedMember {
            spec: member.spec.as_ref().clone(),
            image,
            pinned,
            previous,
            reason: member.reason.clone(),
            rest,
        })
    }

    /// Ends the process, and returns when it is gone.
    fn end(&mut self) {
        // It may be gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What has the other process say as much as this one.
fn verbosity() -> Option<&'static str> {
    match log::max_level() {
        LevelFilter::Off => Some("-qq"),
        LevelFilter::Error => Some("-q"),
        LevelFilter::Warn => None,
        LevelFilter::Info => Some("-v"),
        LevelFilter::Debug => Some("-vv"),
        LevelFilter::Trace => Some("-vvv"),
    }
}
