//! The cell goes to another process: the part of the one that gets it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use wharf_machine::Hypervisor;
use wharf_machine::handover::Luggage;
use wharf_model::Outcome;
use wharf_model::cell::TaskKey;
use wharf_policy::{CarriedSlots, Opened, Slots};

use super::upgrade::Running;
use super::{Going, Supervisor};
use crate::cell::console::Consoles;
use crate::cell::events::EventLog;
use crate::cell::handover::{
    CarriedMember, Components, Control, ControlFiles, FORMAT, Finish, Gave, HandoverError, Heard,
    Images, Link, Lost, Message, PATIENCE, Reception, START_PATIENCE, Stranded, Told, World,
    announce, give,
};
use crate::cell::protocol::EventKind;
use crate::cell::templates::Templates;
use crate::cell::worker::{FromWorker, Live, ToWorker};
use crate::cell::{CellConfig, CellError, Ended, Request, Shared, policies, router};
use crate::net::{Acceptor, SharedPort, Switch, Waiting};
use crate::text::one_line;

/// A process that is about to be the host.
pub(in crate::cell) struct Newcomer {
    link: Link,
    reception: Reception,
    supervisor: Supervisor,
    /// The plugins that were compiled.
    opened: Opened,
    /// Where the guests that were taken are.
    places: BTreeMap<TaskKey, usize>,
}

impl Newcomer {
    /// Sets itself up as the other process says, but for the guests.
    pub(in crate::cell) fn meet(
        link: Link,
        (events, ended): (Arc<EventLog>, Arc<Ended>),
    ) -> Result<Self, HandoverError> {
        match link.hear(PATIENCE)?.0 {
            Message::Hello { format, .. } => {
                // The other one decides whether it goes on with this one.
                link.tell(&Message::Hello {
                    format: FORMAT,
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                })?;
                if format != FORMAT {
                    return Err(HandoverError::Format { theirs: format });
                }
            }
            _ => return Err(HandoverError::Unexpected("who it is")),
        }
        let mut opened = Opened::default();
        let met = match link.hear(PATIENCE) {
            // It ends this process when it takes its guests back.
            Ok(_) if !link.is_of_parent() => Err(HandoverError::NotParent),
            Ok((Message::World(world), luggage)) => {
                set_up(*world, luggage, &mut opened, (events, ended))
            }
            Ok(_) => Err(HandoverError::Unexpected("what there is")),
            Err(error) => Err(error.into()),
        };
        match met {
            Ok(supervisor) => {
                link.tell(&Message::Ready)?;
                Ok(Self {
                    link,
                    reception: Reception::default(),
                    supervisor,
                    opened,
                    places: BTreeMap::new(),
                })
            }
            Err(error) => {
                link.tell(&Message::Refused(one_line(&error)))?;
                Err(error)
            }
        }
    }

    /// Who decides.
    pub(in crate::cell) fn slots(&self) -> Arc<Slots> {
        Arc::clone(&self.supervisor.shared.slots)
    }

    /// Takes every guest, until there is only the rest to know.
    ///
    /// # Errors
    ///
    /// When the other process wants everything back, or is not understood: then it has
    /// everything, unless it is gone.
    pub(in crate::cell) fn take_guests(&mut self) -> Result<(Finish, Luggage), HandoverError> {
        loop {
            match self.take_in() {
                Ok(None) => {}
                Ok(Some((finish, luggage))) => return Ok((*finish, luggage)),
                Err(error) => return Err(self.decline(error)),
            }
        }
    }

    /// Takes in a message. The last is returned.
    fn take_in(&mut self) -> Result<Option<(Box<Finish>, Luggage)>, HandoverError> {
        let said = self.link.hear(START_PATIENCE)?;
        let Supervisor {
            members, shared, ..
        } = &self.supervisor;
        let birth = |key: TaskKey| Some(members.get(key.replica)?.birth(key));
        match self.reception.hear(&self.link, said, shared, birth)? {
            Heard::Nothing => {}
            Heard::Here(key, live) => {
                self.link.tell(&Message::Taken)?;
                self.place(key, live);
            }
            Heard::Other(Message::Policies { slots, components }, luggage) => {
                self.decide_on(slots, components, &luggage)?;
                self.link.tell(&Message::Ready)?;
            }
            Heard::Other(Message::Finish(finish), luggage) => return Ok(Some((finish, luggage))),
            Heard::Other(Message::GiveBack, _) => {
                self.give_back()?;
                return Err(HandoverError::GivenBack);
            }
            Heard::Other(..) => return Err(HandoverError::Unexpected("a guest")),
        }
        Ok(None)
    }

    /// Has policies decide as they did a moment ago.
    fn decide_on(
        &mut self,
        mut slots: CarriedSlots,
        components: Components,
        luggage: &Luggage,
    ) -> Result<(), HandoverError> {
        components
            .take(&mut slots, luggage)
            .map_err(|e| HandoverError::unfit(&e))?;
        let own = &self.supervisor.shared.slots;
        own.go_on(&slots, &mut self.opened)
            .map_err(|e| HandoverError::unfit(&e))?;
        // What policies have gone through here, they have there.
        self.supervisor.events.forget();
        Ok(())
    }

    /// Gives a guest to the worker with the fewest.
    fn place(&mut self, key: TaskKey, mut live: Box<Live>) {
        let workers = &self.supervisor.workers.0;
        let load = |worker: &usize| self.places.values().filter(|it| *it == worker).count();
        let worker = (0..workers.len()).min_by_key(load).unwrap_or(0);
        if let Some((mailbox, _)) = workers.get(worker) {
            live.resume();
            mailbox.send(ToWorker::Adopt(live));
            self.places.insert(key, worker);
        }
    }

    /// Says why this process does not go on, and gives back what it has when it is asked
    /// to. Returns why.
    fn decline(&mut self, why: HandoverError) -> HandoverError {
        if why.is_end() || matches!(why, HandoverError::GivenBack) {
            return why;
        }
        let declined = self.link.tell(&Message::Refused(one_line(&why)));
        let given_back = declined.map_err(HandoverError::from).and_then(|()| {
            loop {
                match self.link.hear(PATIENCE) {
                    Ok((Message::GiveBack, _)) => return self.give_back(),
                    // What it had said before it heard.
                    Ok(_) => {}
                    Err(error) if error.is_end() => return Err(error.into()),
                    Err(_) => {}
                }
            }
        });
        if let Err(error) = given_back {
            log::error!("guests were not given back: {}", one_line(&error));
        }
        why
    }

    /// Gives back whatever was taken.
    fn give_back(&mut self) -> Result<(), HandoverError> {
        self.supervisor.acceptor.share(true);
        let (mut images, mut departed) = (Images::default(), Vec::new());
        let mut ends = BTreeMap::new();
        for (key, worker) in std::mem::take(&mut self.places) {
            let supervisor = &self.supervisor;
            let (Some(member), Some((mailbox, _))) = (
                supervisor.members.get(key.replica),
                supervisor.workers.0.get(worker),
            ) else {
                continue;
            };
            let (link, birth) = (&self.link, member.birth(key));
            let told = announce(link, &mut images, &birth, mailbox)?;
            let gave = match told {
                Told::All(written) => {
                    give(link, birth, written, mailbox).map_err(|broken| broken.error)?
                }
                Told::Ended => Gave::Ended,
                Told::Kept(reason) => Gave::Kept {
                    reason,
                    guest: None,
                },
            };
            let (outcome, report) = match gave {
                Gave::Away { left, .. } => {
                    departed.push(left);
                    continue;
                }
                Gave::Ended => {
                    supervisor.hear_of_ends(&mut ends);
                    let unknown = || Some("it has ended in another process".to_owned());
                    let ended = ends.remove(&key);
                    ended.unwrap_or_else(|| (Outcome::Faulted, unknown()))
                }
                Gave::Kept { reason, .. } => {
                    let report = format!("it does not come back from another process: {reason}");
                    (Outcome::Faulted, Some(report))
                }
            };
            let lost = Lost {
                key,
                outcome,
                report,
            };
            link.tell(&Message::Lost(Box::new(lost)))?;
        }
        self.link.tell(&Message::Empty).map_err(HandoverError::from)
    }

    /// Takes in what there is to know. What serves the control socket is made by `serve`
    /// before the other process lets go of it.
    ///
    /// # Errors
    ///
    /// When it cannot be gone on with; then everything is given back.
    pub(in crate::cell) fn finish<T>(
        mut self,
        finish: Finish,
        mut luggage: Luggage,
        requests: Receiver<Request>,
        serve: impl FnOnce(Consoles, &CellConfig, ControlFiles) -> Result<T, String>,
    ) -> Result<(JoinHandle<()>, T), HandoverError> {
        match self.settle(finish, &mut luggage, requests, serve) {
            Ok((begin, thread, served)) => {
                // If the other is gone, there is nobody but this one to serve.
                let _ = self.link.tell(&Message::Serving);
                // It waits for this.
                let _ = begin.send(self.supervisor);
                Ok((thread, served))
            }
            Err(error) => Err(self.decline(error)),
        }
    }

    fn settle<T>(
        &mut self,
        finish: Finish,
        luggage: &mut Luggage,
        requests: Receiver<Request>,
        serve: impl FnOnce(Consoles, &CellConfig, ControlFiles) -> Result<T, String>,
    ) -> Result<(crossbeam_channel::Sender<Supervisor>, JoinHandle<()>, T), HandoverError> {
        let Finish {
            model,
            now,
            members,
            events,
            upgrades,
            last_upgrade,
            stranded,
            control,
        } = finish;
        let supervisor = &mut self.supervisor;
        if members.len() != supervisor.members.len() {
            return Err(HandoverError::Unexpected("as many replicas as there are"));
        }
        for (replica, carried) in members.into_iter().enumerate() {
            supervisor.restore(replica, carried, &self.reception, luggage)?;
        }
        let waiting = stranded.iter().map(|it| waiting(it, luggage));
        let waiting = waiting.collect::<Result<Vec<_>, _>>()?;
        let files = control_files(control, luggage)?;
        supervisor.model = model.moved_to(supervisor.workers.0.len(), |key| {
            self.places.get(&key).copied()
        });
        let age = Duration::from_nanos(now.as_nanos());
        supervisor.start = Instant::now().checked_sub(age).unwrap_or(supervisor.start);
        supervisor.past_rollouts = upgrades.into();
        supervisor.last_rollout = last_upgrade;
        // Nobody else looks at these if this is given back.
        supervisor.events.go_on(events);
        let (begin, begun) = bounded::<Supervisor>(1);
        let thread = std::thread::Builder::new()
            .name("supervisor".to_owned())
            .spawn(move || {
                if let Ok(supervisor) = begun.recv() {
                    supervisor.run(&requests, Going::On);
                }
            })
            .map_err(|e| HandoverError::unfit(&e))?;
        let served = serve(supervisor.consoles(), &supervisor.config, files);
        let served = served.map_err(HandoverError::Unfit)?;
        // What follows cannot fail.
        let guests = self.places.len();
        let detail = format!("{guests} guests go on in process {}", std::process::id());
        supervisor
            .events
            .add(None, 0, EventKind::HandedOver, detail);
        supervisor.acceptor.share(false);
        if let Err(error) = supervisor.acceptor.wake(waiting) {
            log::error!("published ports are not served: {}", one_line(&error));
        }
        supervisor.shared.templates.keep_warm();
        Ok((begin, thread, served))
    }
}

impl Supervisor {
    /// What workers have said of guests' ends, which nobody hears any more otherwise.
    fn hear_of_ends(&self, ends: &mut BTreeMap<TaskKey, (Outcome, Option<String>)>) {
        while let Ok(report) = self.reports.try_recv() {
            if let FromWorker::Ended(key, outcome, report) = report {
                ends.insert(key, (outcome, report));
            }
        }
    }

    /// Makes a replica what it was.
    fn restore(
        &mut self,
        replica: usize,
        carried: CarriedMember,
        reception: &Reception,
        luggage: &Luggage,
    ) -> Result<(), HandoverError> {
        let Some(member) = self.members.get_mut(replica) else {
            return Ok(());
        };
        let image = |number| reception.image(number).map_err(HandoverError::Unfit);
        let maybe = |number: Option<usize>| number.map(image).transpose();
        let CarriedMember {
            spec,
            image: runs,
            pinned,
            previous,
            reason,
            rest,
        } = carried;
        member.spec = Arc::new(spec);
        member.image = maybe(runs)?;
        member.pinned = maybe(pinned)?;
        member.previous = match previous {
            Some((spec, number)) => Some(Running {
                spec: Arc::new(spec),
                image: image(number)?,
            }),
            None => None,
        };
        member.reason = reason;
        if let Some((counts, console)) = rest {
            member.meters.count_on(&counts);
            let console = console
                .take(luggage)
                .map_err(|e| HandoverError::unfit(&e))?;
            member.console.go_on(&console);
        }
        Ok(())
    }
}

/// Workers, policies, ports: all that does not depend on a guest.
fn set_up(
    world: World,
    mut luggage: Luggage,
    opened: &mut Opened,
    (events, ended): (Arc<EventLog>, Arc<Ended>),
) -> Result<Supervisor, HandoverError> {
    let World {
        config,
        mut slots,
        components,
        ports,
        switch,
    } = world;
    let hypervisor = Hypervisor::open().map_err(|e| HandoverError::unfit(&e))?;
    let hypervisor = Arc::new(hypervisor.with_shared_memory());
    let own = policies::slots(&config, &events);
    components
        .take(&mut slots, &luggage)
        .map_err(|e| HandoverError::unfit(&e))?;
    // They will go on from a later state: this compiles them, and shows whether they do.
    own.go_on(&slots, opened)
        .map_err(|e| HandoverError::unfit(&e))?;
    let ports = ports.into_iter().map(|it| {
        Ok(SharedPort {
            task: it.task,
            publish: it.publish,
            listener: luggage
                .take_file(it.listener)
                .map_err(|e| HandoverError::unfit(&e))?,
        })
    });
    let ports = ports.collect::<Result<Vec<_>, HandoverError>>()?;
    let acceptor = Acceptor::go_on(router(&own), ports).map_err(|e| HandoverError::unfit(&e))?;
    let cell = |error: CellError| HandoverError::unfit(&error);
    let templates = Templates::start(&hypervisor, &config.tasks).map_err(cell)?;
    let shared = Shared {
        hypervisor,
        slots: own,
        board: Arc::clone(acceptor.board()),
        templates,
        switch: Arc::new(Switch::with_seed(switch)),
    };
    Supervisor::new(config, &shared, acceptor, (events, ended)).map_err(cell)
}

fn waiting(it: &Stranded, luggage: &mut Luggage) -> Result<Waiting, HandoverError> {
    let waited = Duration::from_nanos(it.waited);
    let now = Instant::now();
    let socket = luggage
        .take_file(it.socket)
        .map_err(|e| HandoverError::unfit(&e))?;
    Ok(Waiting {
        since: now.checked_sub(waited).unwrap_or(now),
        port: it.port,
        socket: socket.into(),
        source: it.source,
        from: it.from,
    })
}

fn control_files(it: Control, luggage: &mut Luggage) -> Result<ControlFiles, HandoverError> {
    let mut file = |file| {
        luggage
            .take_file(file)
            .map_err(|e| HandoverError::unfit(&e))
    };
    Ok(ControlFiles {
        path: it.path,
        listener: file(it.listener)?,
        lock: file(it.lock)?,
        config: it.config,
    })
}
