//! A guest that lives: its machine, its state in the model, and its turns.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use serde_json::Value;
use wharf_abi::Answer;
use wharf_machine::device::{Backend, Network, Wire};
use wharf_machine::handover::{Carried, Luggage};
use wharf_machine::image::Image;
use wharf_machine::snapshot::{RestoreConfig, Room, Saved};
use wharf_machine::{BootConfig, Machine};
use wharf_model::cell::TaskKey;
use wharf_model::policy::{Answer as Verdict, AttachVerdict, Question, SlotName};
use wharf_model::{Action, Event, Outcome, Stop, Task};
use wharf_policy::Slots;

use super::kick::Kicks;
use super::upgrade::Role;
use super::{Birth, ToWorker};
use crate::cell::console::ConsoleRing;
use crate::cell::logger::LogTarget;
use crate::cell::meters::{self, Activity, Meters};
use crate::cell::{Shared, TaskSpec};
use crate::device::Block;
use crate::device::attach::{self, Asker, AttachError, Supply};
use crate::device::carried::{self, CarriedError, Makers};
use crate::guest::GuestRun;
use crate::headroom;
use crate::net::{self, Guest, NetError, Share, Sockets};

/// How long a guest that writes more than its log file takes is kept waiting.
const LOG_PAUSE: Duration = Duration::from_millis(1);

/// How long a guest that is alone runs before it is left, only so that what it
/// used is seen. Costs 50 µs each time on KVM-PVM, 0.02 %.
const METER_PERIOD: Duration = Duration::from_millis(250);

/// One guest.
pub(in crate::cell) struct Live {
    pub(super) key: TaskKey,
    /// In the list of sleepers, until then; kept here to be found there.
    pub(super) sleeps_until: Option<Instant>,
    /// Whether it waits.
    pub(super) is_parked: bool,
    pub(super) spec: Arc<TaskSpec>,
    pub(super) guest: GuestRun,
    /// What is to be done first at the next turn.
    pub(super) next: Action,
    pub(super) console: Arc<ConsoleRing>,
    pub(super) log: Option<Arc<LogTarget>>,
    pub(super) meters: Arc<Meters>,
    pub(super) share: Arc<Share>,
    /// What becomes of it in an upgrade, while it is in one.
    pub(super) role: Option<Role>,
    /// Of what it is a clone, until that is told.
    pub(super) cloned: Option<Cloned>,
}

/// What there is to tell of a clone.
pub(in crate::cell) struct Cloned {
    /// What its snapshot's guest was booted with.
    pub(in crate::cell) boot: BootConfig,
    /// Whether it had been kept ready.
    pub(in crate::cell) was_warm: bool,
}

/// A guest as it stood.
pub(in crate::cell) struct Frozen {
    pub(in crate::cell) saved: Saved,
    pub(in crate::cell) image: Arc<Image>,
    /// For how long it stood still.
    pub(in crate::cell) pause: Duration,
}

/// The limits of a turn.
pub(super) struct Turn<'a> {
    /// How long it may last; `None` when nobody else is ready.
    pub(super) slice: Option<Duration>,
    /// When a sleeper is due, who may then go first.
    pub(super) sleeper: Option<Instant>,
    /// A message ends the turn.
    pub(super) inbox: &'a Receiver<ToWorker>,
}

/// Why a turn ended.
pub(super) enum Left {
    /// It could go on.
    Ready,
    /// It waits, until then or for an event.
    Parked(Option<Instant>),
    /// It is over.
    Ended(Outcome),
}

impl Live {
    /// Reads the image and makes the guest; the error says why not, in one line.
    /// One that is to take the place of `old` has the same disks, and is not begun.
    pub(super) fn boot(shared: &Shared, birth: Birth, old: Option<&Self>) -> Result<Self, String> {
        let guest = guest_of(&birth);
        let (key, spec, meters) = (birth.key, &birth.spec, &birth.meters);
        let is_heir = birth.heir_of.is_some();
        meters.set_activity(Activity::Ready);
        let line = |e: &dyn std::error::Error| crate::text::one_line(e);
        let (image, prepared) = match (&birth.image, spec.clones) {
            (Some(image), _) => (Arc::clone(image), None),
            (None, None) => (
                Arc::new(Image::open(&spec.image).map_err(|e| line(&e))?),
                None,
            ),
            (None, Some(_)) => {
                let taken = shared.templates.take(&spec.image).map_err(|e| line(&e))?;
                (Arc::clone(taken.0.snapshot().image()), Some(taken))
            }
        };
        let network = || -> Result<Box<dyn Network>, NetError> {
            let (board, traffic) = (Arc::clone(&shared.board), Arc::clone(meters.traffic()));
            let share = Arc::clone(&birth.share);
            Ok(Box::new(Sockets::new(board, guest, traffic, share)?))
        };
        let wire = |device, tap: Option<&str>| -> Result<Box<dyn Wire>, NetError> {
            let drops = Arc::clone(meters.frames());
            net::wire(&shared.switch, (guest.replica, device), tap, drops)
        };
        let legacy = |block: &Block| old?.guest.machine.share_disk(&block.device);
        let supply = Supply {
            configured: spec.configured(),
            legacy: &legacy,
            network: &network,
            wire: &wire,
            input: &|| None,
        };
        let backends =
            route(&shared.slots, &spec.name, guest, &image, &supply).map_err(|e| line(&e))?;
        let (mut machine, cloned) = match prepared {
            Some((prepared, was_warm)) => {
                let snapshot = Arc::clone(prepared.snapshot());
                // To the guest, its lives before the snapshot count.
                let generation = snapshot.generation().saturating_add(key.generation);
                let machine = prepared.start(RestoreConfig { generation }, backends);
                let boot = snapshot.boot().clone();
                let cloned = Cloned { boot, was_warm };
                (machine.map_err(|e| line(&e))?, Some(cloned))
            }
            None => {
                let mut boot = spec.boot.clone();
                boot.generation = key.generation;
                boot.is_heir = is_heir;
                let machine = Machine::boot(&shared.hypervisor, &image, &boot, backends);
                (machine.map_err(|e| line(&e))?, None)
            }
        };
        if is_heir {
            machine.hold_wires();
        }
        // Asked last: what is not left then was this guest's.
        headroom::check().map_err(|e| line(&e))?;
        let task = Task::new(None).with_grace(spec.grace);
        let mut guest = GuestRun::new(machine, image, task);
        let next = guest.handle(Event::Start);
        Ok(Self {
            role: is_heir.then_some(Role::Heir { is_ready: false }),
            cloned,
            ..Self::new(birth, guest, next)
        })
    }

    /// A guest that was made, of which this is to be done first.
    pub(super) fn new(birth: Birth, guest: GuestRun, next: Action) -> Self {
        Self {
            key: birth.key,
            sleeps_until: None,
            is_parked: false,
            spec: birth.spec,
            guest,
            next,
            console: birth.console,
            log: birth.log,
            meters: birth.meters,
            share: birth.share,
            role: None,
            cloned: None,
        }
    }

    /// Freezes it as it stands; it goes on as if nothing had been. The error says why
    /// not, in one line.
    pub(super) fn save(&mut self, room: Room) -> Result<Frozen, String> {
        if self.is_in_upgrade() {
            return Err("it is being upgraded: take a snapshot before or after that".to_owned());
        }
        if self.guest.task().is_stopping() {
            return Err("it is being stopped: take a snapshot of one that goes on".to_owned());
        }
        let pending = match self.next {
            Action::Enter(answer) => answer,
            // A wait may always end early.
            Action::Park { .. } => Some(Answer::ok(0)),
            // It writes that itself; a clone did not say it.
            Action::Write { .. } => {
                let bytes = self.guest.pending().len().try_into().unwrap_or(u64::MAX);
                Some(Answer::ok(bytes))
            }
            Action::End(_) => None,
        };
        let start = Instant::now();
        let saved = self.guest.machine.save_into(room, pending);
        Ok(Frozen {
            saved: saved.map_err(|e| crate::text::one_line(&e))?,
            image: Arc::clone(self.image()),
            pause: start.elapsed(),
        })
    }

    /// Whether what becomes of it is still to be decided. What serves beside another is as
    /// good as any.
    pub(super) const fn is_in_upgrade(&self) -> bool {
        !matches!(self.role, None | Some(Role::Heir { is_ready: true }))
    }

    pub(super) const fn guest(&mut self) -> &mut GuestRun {
        &mut self.guest
    }

    pub(super) const fn image(&self) -> &Arc<Image> {
        self.guest.image()
    }

    /// Says which part of its replica's new connections it gets.
    pub(super) fn set_share(&self, percent: u32) {
        self.share.set(percent);
    }

    pub(super) fn weight(&self) -> u32 {
        self.spec.weight
    }

    /// Says what it does, to whoever looks.
    pub(super) fn shows(&self, activity: Activity) {
        self.meters.set_activity(activity);
    }

    /// What becomes readable when its devices have something to do.
    pub(super) fn device_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.guest.machine.device_fds()
    }

    /// Has the devices looked at, at the next turn.
    pub(super) const fn has_news(&mut self) {
        self.guest.has_news();
    }

    /// Lets go of its files, for whoever comes after it.
    pub(super) fn release_devices(&mut self) {
        self.guest.machine.release_devices();
    }

    /// The fault report, of a guest that faulted.
    pub(super) fn report(&self) -> Option<String> {
        self.guest.report().map(str::to_owned)
    }

    /// Passes on that somebody wants it to end.
    pub(super) fn tell(&mut self, stop: Stop) {
        self.hear(Event::Stop(stop));
    }

    /// Takes in what comes from outside, between two turns.
    pub(super) fn hear(&mut self, event: Event) {
        let pending = match self.next {
            // An answer that the guest has not got yet must not be lost.
            Action::Enter(answer) => answer,
            _ => None,
        };
        self.next = match self.guest.handle(event) {
            Action::Enter(answer) => Action::Enter(answer.or(pending)),
            other => other,
        };
    }

    /// Runs the guest until its turn is over; also says how long it ran.
    pub(super) fn run(&mut self, kicks: &mut Kicks, turn: &Turn<'_>) -> (Left, Duration) {
        let start = Instant::now();
        let ends = turn.slice.and_then(|slice| start.checked_add(slice));
        self.meters.set_activity(Activity::Running);
        self.set_alarm(kicks, start, ends, turn.sleeper);
        // A park or write that ended is looked at again; an answer is not.
        if !matches!(self.next, Action::Enter(_) | Action::End(_)) {
            let event = if self.guest.has_backlog() {
                self.guest.look_again()
            } else {
                Event::Interrupted
            };
            self.next = self.guest.handle(event);
        }
        let mut used = Duration::ZERO;
        loop {
            match self.next {
                Action::Enter(answer) => {
                    let (event, time) = match self.enter(kicks, turn, answer) {
                        Some(entered) => entered,
                        None => return (Left::Ready, used),
                    };
                    used = used.saturating_add(time);
                    self.next = self.guest.handle(event);
                    let over = ends.is_some_and(|ends| Instant::now() >= ends);
                    let interrupted = event == Event::Interrupted;
                    if matches!(self.next, Action::Enter(_)) && (over || interrupted) {
                        return (Left::Ready, used);
                    }
                }
                // A device that was left with work is a reason to have another turn.
                Action::Park { .. } if self.guest.has_backlog() => return (Left::Ready, used),
                Action::Park { until } => {
                    self.meters.set_activity(Activity::Waiting);
                    return (Left::Parked(until.map(|until| self.host_time(until))), used);
                }
                Action::Write { .. } => {
                    if !self.write() {
                        let until = Instant::now().checked_add(LOG_PAUSE);
                        return (Left::Parked(until), used);
                    }
                    let bytes = self.guest.pending().len().try_into().unwrap_or(u64::MAX);
                    self.next = self.guest.handle(Event::Written { bytes });
                    // A long text of an hvt guest's is written without entering it.
                    let now = Instant::now();
                    let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
                    if matches!(self.next, Action::Enter(_))
                        && (is_due(ends) || is_due(turn.sleeper))
                    {
                        return (Left::Ready, used);
                    }
                }
                Action::End(outcome) => return (Left::Ended(outcome), used),
            }
        }
    }

    /// Enters the guest once; `None` when a message came first. Time is the thread's
    /// own: a guest does not pay for what else the machine did meanwhile.
    fn enter(
        &mut self,
        kicks: &Kicks,
        turn: &Turn<'_>,
        answer: Option<Answer>,
    ) -> Option<(Event, Duration)> {
        kicks.away();
        if !turn.inbox.is_empty() {
            kicks.back();
            return None;
        }
        let start = meters::thread_time();
        let exit = self.guest.enter(answer);
        kicks.back();
        let event = match exit {
            Ok(exit) => self.guest.take(exit),
            Err(e) => {
                let reason = crate::text::one_line(&e);
                self.guest
                    .give_up(format!("the host could not run it: {reason}"))
            }
        };
        if event == Event::Interrupted {
            kicks.drain();
        }
        // What the host did for it, such as moving its bytes, is its own time too.
        let time = meters::thread_time().saturating_sub(start);
        self.meters.ran(time);
        Some((event, time))
    }

    /// Writes what the guest wants written; false when the log file is behind.
    fn write(&self) -> bool {
        if let Some(log) = &self.log
            && !log.append(self.guest.pending())
        {
            return false;
        }
        self.console.append(self.guest.pending());
        true
    }

    /// The earliest of what must end this turn rings; for a guest that is alone,
    /// that is when its meters have to be read.
    fn set_alarm(
        &self,
        kicks: &mut Kicks,
        start: Instant,
        ends: Option<Instant>,
        sleeper: Option<Instant>,
    ) {
        let own = self.guest.task().alarm().map(|at| self.host_time(at));
        let meters = start.checked_add(METER_PERIOD);
        if let Some(first) = [ends, sleeper, own, meters].into_iter().flatten().min() {
            kicks.set_alarm(first.saturating_duration_since(start));
        }
    }

    /// A moment of the guest's clock as one of the host's. The two may drift
    /// apart a little; who wakes early looks at the guest's and sleeps on.
    fn host_time(&self, at: wharf_model::Instant) -> Instant {
        let host = Instant::now();
        let left = at.since(self.guest.now());
        host.checked_add(left)
            .unwrap_or_else(|| host.checked_add(FAR).unwrap_or(host))
    }
}

/// Has the router say what each device of a new guest gets, and opens that.
fn route(
    slots: &Slots,
    task: &str,
    guest: Guest,
    image: &Image,
    supply: &Supply<'_>,
) -> Result<Vec<Backend>, AttachError> {
    let router = slots.slot(SlotName::Router);
    let asker = Asker {
        task,
        now: wharf_policy::now().as_nanos(),
        replica: guest.replica,
        generation: guest.generation,
    };
    let strict = !router.has_plugin();
    attach::attach(image.manifest(), supply, asker, strict, |attachment| {
        match router.ask(&Question::Attach(attachment)) {
            Verdict::Attach(verdict) => verdict,
            // An answer is of its question's kind.
            _ => AttachVerdict::BuiltIn,
        }
    })
}

/// What stands behind the devices of a guest that comes from another process.
pub(super) fn back_ends(
    shared: &Shared,
    birth: &Birth,
    carried: &Carried,
    luggage: &mut Luggage,
) -> Result<Vec<Backend>, CarriedError> {
    let guest = guest_of(birth);
    let network = |it: &Value, luggage: &mut Luggage| -> Result<Box<dyn Network>, _> {
        let (board, share) = (Arc::clone(&shared.board), Arc::clone(&birth.share));
        let traffic = Arc::clone(birth.meters.traffic());
        let sockets = Sockets::new(board, guest, traffic, share)?;
        Ok(Box::new(sockets.go_on(it, luggage)?))
    };
    let wire = |device: u8, it: &Value, luggage: &mut Luggage| {
        let drops = Arc::clone(birth.meters.frames());
        let place = (guest.replica, device);
        net::carried_wire(&shared.switch, place, drops, it, luggage)
    };
    let makers = Makers {
        network: &network,
        wire: &wire,
    };
    carried::back_ends(carried, luggage, &makers)
}

/// A life of a replica, as the network knows it.
fn guest_of(birth: &Birth) -> Guest {
    Guest {
        task: birth.task,
        joins: birth.joins,
        replica: u32::try_from(birth.key.replica).unwrap_or(u32::MAX),
        generation: birth.key.generation,
    }
}

/// What an absurd deadline is taken for; it is looked at again then.
const FAR: Duration = Duration::from_secs(365 * 86_400);
