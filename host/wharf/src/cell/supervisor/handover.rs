//! The cell goes to another process: the part of the one that has it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use wharf_machine::handover::Luggage;
use wharf_model::Outcome;
use wharf_model::cell::{State, TaskKey};

use super::successor::Successor;
use super::{Going, Member, Supervisor};
use crate::cell::handover::{
    Accepting, Broken, Components, Control, ControlFiles, ControlSocket, Finish, Gave,
    HandoverError, Heard, Lost, Message, PATIENCE, PortFile, Process, Stranded, Surrendered, Told,
    World, announce, give, keep,
};
use crate::cell::protocol::{EventKind, HandoverStatus, Reply};
use crate::cell::worker::{FromWorker, Live, Mailbox, ToWorker};
use crate::net::Waiting;
use crate::text::one_line;
use crate::units::nanos;

/// How long a guest that is being made, or ended, may take to get done.
const SETTLE_PATIENCE: Duration = Duration::from_secs(20);

/// How long a worker may take to say that a guest of its has ended.
const MOMENT: Duration = Duration::from_millis(100);

/// What is left of guests that another process has: machines, which take their time to
/// be closed, and have it when nobody waits any more.
#[derive(Default)]
pub(super) struct Departed(BTreeMap<TaskKey, Box<Live>>);

/// A hand-over that was asked for, while another process gets ready for it. Everything goes
/// on here meanwhile.
pub(super) struct Preparing {
    start: Instant,
    control: ControlSocket,
    reply: Sender<Reply>,
    /// Ended with this, if it is not the host by then.
    process: Process,
    /// The plugins' components that it was sent.
    components: BTreeSet<String>,
}

/// What a process that gets ready says in the end: why it does not, if so.
pub(super) type Prepared = Result<Box<Successor>, HandoverError>;

impl Supervisor {
    /// Begins to hand everything over to another program. `reply` hears how that goes.
    pub(super) fn hand_over(
        &mut self,
        program: &Path,
        control: Option<ControlSocket>,
        reply: &Sender<Reply>,
    ) {
        let start = Instant::now();
        let begun = match control {
            _ if self.preparing.is_some() => {
                Err("the host is being handed over already".to_owned())
            }
            None => Err("there is no control socket to hand over".to_owned()),
            Some(control) => {
                let prepared = self.prepare(program, &control);
                prepared
                    .map_err(|e| one_line(&e))
                    .map(|(process, components)| Preparing {
                        start,
                        control,
                        reply: reply.clone(),
                        process,
                        components,
                    })
            }
        };
        match begun {
            Ok(preparing) => self.preparing = Some(preparing),
            Err(reason) => self.fail_hand_over(reason, reply),
        }
    }

    fn fail_hand_over(&self, reason: String, reply: &Sender<Reply>) {
        let kind = EventKind::HandoverFailed;
        self.events.add(None, 0, kind, reason.clone());
        // Who asked may have gone.
        let _ = reply.send(Reply::Denied(reason));
    }

    /// Starts the program, and has a thread wait until it is ready. Returns which plugins'
    /// components it is sent.
    fn prepare(
        &self,
        program: &Path,
        control: &ControlSocket,
    ) -> Result<(Process, BTreeSet<String>), HandoverError> {
        self.can_hand_over()?;
        let (world, luggage) = self.world()?;
        let components = world.slots.components.keys().cloned().collect();
        let ended = Arc::clone(&self.ended);
        let is_wanted = move || ended.is_wanted.load(Ordering::Acquire);
        let (process, link) = Process::start(program, &control.files.path, is_wanted)?;
        let ready = self.successors.0.clone();
        std::thread::Builder::new()
            .name("successor".to_owned())
            .spawn(move || {
                let prepared = Successor::new(link).prepared(world, &luggage);
                // The cell may have ended.
                let _ = ready.send(prepared.map(Box::new));
            })
            .map_err(|e| HandoverError::Unfit(format!("cannot start a thread: {e}")))?;
        Ok((process, components))
    }

    fn can_hand_over(&self) -> Result<(), HandoverError> {
        let why = if !self.ongoing.is_empty() || !self.rollouts.is_empty() {
            "a task is being upgraded: hand over when that is done"
        } else if self.writers.is_any_at_work() {
            "a snapshot is being written: hand over when that is done"
        } else if self.model.is_going_down() {
            "the host is ending"
        } else {
            return Ok(());
        };
        Err(HandoverError::Unfit(why.to_owned()))
    }

    /// Hands everything over to a process that is ready.
    pub(super) fn go_over(&mut self, prepared: Prepared) -> Going {
        let Some(preparing) = self.preparing.take() else {
            return Going::On;
        };
        let mut successor = match prepared {
            Ok(successor) => successor,
            Err(error) => {
                let error = preparing.process.explain(error);
                self.fail_hand_over(one_line(&error), &preparing.reply);
                return Going::On;
            }
        };
        if let Err(error) = self.pass_on(&mut successor, &preparing) {
            let error = preparing.process.explain(error);
            let mut reason = one_line(&error);
            let (lost, mut going) = self.take_back(successor, &preparing.process, &error);
            if lost > 0 {
                reason.push_str(&format!(
                    "; {lost} guests were lost with it, which start again as their tasks say"
                ));
            }
            if matches!(error, HandoverError::CellEnded) {
                going = Going::Over;
            }
            self.shared.slots.hold(false);
            if let Err(error) = preparing.control.files.claim() {
                log::warn!("the control socket's lock: {error}");
            }
            (preparing.control.accept)(Accepting::All);
            self.fail_hand_over(reason, &preparing.reply);
            return going;
        }
        let Preparing {
            start,
            control,
            reply,
            process,
            ..
        } = preparing;
        process.release();
        // Whoever comes after the new process finds it free.
        (control.accept)(Accepting::Never);
        drop(control);
        let pid = process.id();
        successor.pauses.sort_unstable();
        let pause = |at: usize| successor.pauses.get(at).copied().map_or(0, nanos);
        let guests = successor.pauses.len();
        let status = HandoverStatus {
            pid,
            guests: u32::try_from(guests).unwrap_or(u32::MAX),
            connections: successor.connections,
            pause_median_ns: pause(guests / 2),
            pause_max_ns: pause(guests.saturating_sub(1)),
            took_ns: nanos(start.elapsed()),
            version: successor.version,
        };
        self.ended.is_handed_over.store(true, Ordering::Release);
        // The other process tells it as an event, which follows the last one here.
        log::info!("process {pid} goes on with {guests} guests");
        // Who asked may have gone.
        let _ = reply.send(Reply::HandedOver(status));
        Going::Over
    }

    /// Does all of it, up to the other's word that it serves.
    fn pass_on(
        &mut self,
        successor: &mut Successor,
        preparing: &Preparing,
    ) -> Result<(), HandoverError> {
        self.can_hand_over()?;
        let Preparing {
            control,
            components,
            ..
        } = preparing;
        // Who asks for something from here on asks the other process, in the end.
        (control.accept)(Accepting::Later);
        self.shared.slots.hold(true);
        let mut slots = self.shared.slots.carry();
        slots
            .components
            .retain(|digest, _| !components.contains(digest));
        let mut luggage = Luggage::default();
        let components = Components::put(&slots, &mut luggage);
        let policies = Message::Policies { slots, components };
        successor.link.say(&policies, &luggage)?;
        successor.answers(PATIENCE, "that it is ready", |it| {
            matches!(it, Message::Ready)
        })?;
        self.acceptor.share(true);
        let start = Instant::now();
        loop {
            let living = self.living()?;
            if living.is_empty() {
                break;
            }
            if start.elapsed() > PATIENCE {
                let reason = "tasks end and start too often: hand over when they do not";
                return Err(HandoverError::Unfit(reason.to_owned()));
            }
            for key in &living {
                self.announce(successor, *key)?;
            }
            for key in living {
                if self.ended.is_wanted.load(Ordering::Acquire) {
                    return Err(HandoverError::Unfit("the host is ending".to_owned()));
                }
                self.pass(successor, key)?;
            }
        }
        let waiting = self.acceptor.rest().into_iter();
        let waiting: Vec<Arc<Waiting>> = waiting.map(Arc::new).collect();
        let finished = self.finish(successor, &control.files, &waiting);
        if finished.is_err() {
            // What waits here still may find somebody here.
            let waiting = waiting.into_iter().filter_map(Arc::into_inner);
            if let Err(error) = self.acceptor.wake(waiting.collect()) {
                log::error!("published ports are not served: {}", one_line(&error));
            }
        }
        finished
    }

    /// The guests that are still to go, when what workers have said is taken in; none when
    /// nothing lives here any more, nor is about to.
    fn living(&mut self) -> Result<Vec<TaskKey>, HandoverError> {
        let start = Instant::now();
        loop {
            self.hear_all()?;
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
            let Some(left) = SETTLE_PATIENCE.checked_sub(start.elapsed()) else {
                let reason = "a task takes too long to start: hand over when it has";
                return Err(HandoverError::Unfit(reason.to_owned()));
            };
            if let Ok(report) = self.reports.recv_timeout(left) {
                self.take_note(report)?;
            }
        }
    }

    /// Takes in what a worker says while guests go over.
    fn take_note(&mut self, report: FromWorker) -> Result<(), HandoverError> {
        match self.hear(report) {
            Going::On => Ok(()),
            Going::Over => Err(HandoverError::CellEnded),
        }
    }

    /// Takes in whatever workers have said: also where guests have moved, so that one that
    /// comes back goes where it is looked for.
    fn hear_all(&mut self) -> Result<(), HandoverError> {
        while let Ok(report) = self.reports.try_recv() {
            self.take_note(report)?;
        }
        Ok(())
    }

    /// Has a guest go on here that nobody took.
    fn keep(&self, key: TaskKey, guest: Surrendered) {
        if let Some((_, mailbox)) = self.place(key) {
            keep(guest, mailbox);
        }
    }

    /// Waits for what a worker is about to say.
    fn hear_more(&mut self) -> Result<(), HandoverError> {
        match self.reports.recv_timeout(MOMENT) {
            Ok(report) => self.take_note(report),
            Err(_) => Ok(()),
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
            Told::All(written) => {
                successor.announced.insert(key, written);
                Ok(())
            }
            // Its worker has said so, or is about to.
            Told::Ended => Ok(()),
            Told::Kept(reason) => Err(kept(member, &reason)),
        }
    }

    fn pass(&mut self, successor: &mut Successor, key: TaskKey) -> Result<(), HandoverError> {
        let Some(written) = successor.announced.remove(&key) else {
            return self.hear_more();
        };
        let Some((member, mailbox)) = self.place(key) else {
            return Ok(());
        };
        let open = member.meters.traffic().open.load(Ordering::Relaxed);
        match give(&successor.link, member.birth(key), written, mailbox) {
            Ok(Gave::Away { left, pause }) => {
                self.departed.0.insert(key, left);
                successor.pauses.push(pause);
                successor.connections = successor.connections.saturating_add(open);
                Ok(())
            }
            Ok(Gave::Ended) => self.hear_more(),
            Ok(Gave::Kept { reason, guest }) => {
                let why = kept(member, &reason);
                if let Some(guest) = guest {
                    self.hear_all()?;
                    self.keep(key, guest);
                }
                Err(why)
            }
            Err(Broken { error, undecided }) => {
                successor.undecided = undecided;
                Err(error)
            }
        }
    }

    /// Everything but the guests.
    fn world(&self) -> Result<(World, Luggage), HandoverError> {
        let mut luggage = Luggage::default();
        let slots = self.shared.slots.carry();
        let components = Components::put(&slots, &mut luggage);
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
        waiting: &[Arc<Waiting>],
    ) -> Result<(), HandoverError> {
        let mut luggage = Luggage::default();
        let mut members = Vec::new();
        for (replica, member) in self.members.iter().enumerate() {
            let is_away = self.departed.0.contains_key(&self.model.key(replica));
            members.push(successor.carry(member, !is_away, &mut luggage)?);
        }
        let stranded = waiting.iter().map(|it| stranded(it, &mut luggage));
        let stranded = stranded.collect();
        let control = control.try_clone().map_err(|e| HandoverError::unfit(&e))?;
        let control = Control {
            path: control.path,
            listener: luggage.put_file(control.listener),
            lock: luggage.put_file(control.lock),
            config: control.config,
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
        link.say(&Message::Finish(Box::new(finish)), &luggage)?;
        successor.answers(PATIENCE, "that it serves", |it| {
            matches!(it, Message::Serving)
        })
    }

    /// Takes everything back that went over, and ends the other process. Returns how many
    /// guests it did not give back.
    fn take_back(
        &mut self,
        mut successor: Box<Successor>,
        process: &Process,
        why: &HandoverError,
    ) -> (usize, Going) {
        let mut going = Going::On;
        let mut lost_there = 0_usize;
        // Who is gone or silent has nothing to say any more.
        if !why.is_end()
            && successor.undecided.is_none()
            && let Err(error) = self.receive_back(&mut successor, &mut lost_there)
        {
            if matches!(error, HandoverError::CellEnded) {
                going = Going::Over;
            }
            log::warn!("the process that was to take over: {}", one_line(&error));
        }
        process.end();
        // With it gone, what it has said is all that there is: a guest that it did not
        // say to have is this process's.
        if let Some(mut undecided) = successor.undecided.take() {
            let key = undecided.live.key();
            let link = &successor.link;
            let has_said = std::iter::from_fn(|| link.hear(Duration::from_millis(1)).ok());
            if has_said
                .into_iter()
                .any(|(said, _)| matches!(said, Message::Taken))
            {
                undecided.live.let_go();
                self.departed.0.insert(key, undecided.live);
            } else {
                if self.hear_all().is_err() {
                    going = Going::Over;
                }
                self.keep(key, undecided);
            }
        }
        self.acceptor.share(false);
        let lost = std::mem::take(&mut self.departed.0);
        for key in lost.keys() {
            let report = Some("the process that had taken it over has ended".to_owned());
            if self.hear(FromWorker::Ended(*key, Outcome::Faulted, report)) == Going::Over {
                going = Going::Over;
            }
        }
        (lost.len().saturating_add(lost_there), going)
    }

    /// Takes guests from the other process until it has none.
    fn receive_back(
        &mut self,
        successor: &mut Successor,
        lost_there: &mut usize,
    ) -> Result<(), HandoverError> {
        let Successor {
            link, reception, ..
        } = &mut *successor;
        link.tell(&Message::GiveBack)?;
        // Machines take their time to be closed, for which no guest is to wait.
        let mut remains = Vec::new();
        loop {
            let birth = |key: TaskKey| Some(self.members.get(key.replica)?.birth(key));
            match reception.hear(link, link.hear(PATIENCE)?, &self.shared, birth)? {
                Heard::Nothing => {}
                Heard::Here(key, mut live) => {
                    link.tell(&Message::Taken)?;
                    remains.extend(self.departed.0.remove(&key));
                    live.resume();
                    self.hear_all()?;
                    if let Some((_, mailbox)) = self.place(key) {
                        mailbox.send(ToWorker::Adopt(live));
                    }
                }
                Heard::Other(Message::Lost(lost), _) => {
                    let Lost {
                        key,
                        outcome,
                        report,
                    } = *lost;
                    // Only what it had can be lost there.
                    if self.departed.0.remove(&key).is_some() {
                        *lost_there = lost_there.saturating_add(1);
                        self.take_note(FromWorker::Ended(key, outcome, report))?;
                    }
                }
                Heard::Other(Message::Empty, _) => return Ok(()),
                // What it had said before it heard that it is to give back.
                Heard::Other(Message::Ready | Message::Serving | Message::Refused(_), _) => {}
                Heard::Other(..) => return Err(HandoverError::Unexpected("what it gives back")),
            }
        }
    }
}

/// A guest that does not go, and so neither does the host.
fn kept(member: &Member, reason: &str) -> HandoverError {
    HandoverError::Unfit(format!("{}: {reason}", member.name()))
}

fn stranded(waiting: &Arc<Waiting>, luggage: &mut Luggage) -> Stranded {
    Stranded {
        port: waiting.port,
        socket: luggage.lend_file(waiting),
        source: waiting.source,
        from: waiting.from,
        waited: nanos(waiting.since.elapsed()),
    }
}
