//! A worker: a thread that is an executor of virtual machines.
//!
//! ```text
//!   ┌──▶ take in messages ──▶ wake who is due ──▶ pick who is next ──▶ run it ──┐
//!   │                                                │ nobody                   │
//!   │                                                ▼                          │
//!   │                                     sleep until a message, a device       │
//!   │                                     or the next deadline                  │
//!   └────────────────────────────────────────────────┴──────────────────────────┘
//! ```
//!
//! A guest that waits is an entry in a list and costs no thread. A guest that
//! runs is left when it waits, ends, has used its slice while others are ready,
//! when a sleeper is due, or when a message comes: the sender signals a worker
//! that is in a guest or sleeps, and the signal is blocked outside, so that it
//! cannot fall into the gap before `KVM_RUN`.

mod handover;
mod kick;
mod live;
mod scheduler;
mod upgrade;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use wharf_machine::image::Image;
use wharf_machine::snapshot::Room;
use wharf_model::cell::TaskKey;
use wharf_model::policy::SliceEnd;
use wharf_model::schedule::SLICE;
use wharf_model::{Outcome, Stop};

use super::console::ConsoleRing;
use super::handover::Surrendered;
use super::logger::LogTarget;
use super::meters::{Activity, Meters};
use super::{CellError, Shared, TaskSpec};
use crate::net::Share;

pub(super) use handover::Described;
pub(super) use kick::Kicker;
use kick::Kicks;
pub(super) use live::{Cloned, Frozen, Live};
use live::{Left, Turn};
use scheduler::Scheduler;
pub(super) use upgrade::{Cut, Handed};
use watch::{Patience, Watch};

/// How often a crowded worker says so: moving a guest is cheap, but going back
/// and forth is not useful.
const CROWDED_EVERY: Duration = Duration::from_millis(20);

/// What a worker is told.
pub(super) enum ToWorker {
    /// Make a guest and run it.
    Boot(Box<Birth>),
    /// Take over a guest from another worker.
    Adopt(Box<Live>),
    /// Tell a guest to end.
    Stop(TaskKey),
    /// End a guest at once.
    Kill(TaskKey),
    /// Ask a guest to hand over.
    HandOver(TaskKey),
    /// Begin a guest that was made to inherit.
    Begin {
        /// Which.
        key: TaskKey,
        /// With this state.
        state: Vec<u8>,
        /// Whether it runs beside the one before it from now on.
        is_beside: bool,
    },
    /// Have a guest go on that was asked to hand over.
    Resume(TaskKey),
    /// Put the later life of a replica in the place of the earlier.
    CutOver {
        /// The earlier.
        old: TaskKey,
        /// The later.
        new: TaskKey,
    },
    /// Freeze a guest into this room, and say here what it is now.
    Save(TaskKey, Room, Sender<Result<Frozen, String>>),
    /// Describe a guest that goes on, for another process.
    Describe(TaskKey, Sender<Result<Described, String>>),
    /// Let go of a guest, for good.
    Surrender(TaskKey, Sender<Surrendered>),
    /// Give a ready guest to another worker.
    Donate(usize, Mailbox),
    /// End everything and return.
    Quit,
}

/// What a worker tells its supervisor.
pub(super) enum FromWorker {
    /// A guest was made.
    Booted(TaskKey, Made),
    /// It could not be, for this reason.
    BootFailed(TaskKey, String),
    /// A guest has ended; a fault comes with its report.
    Ended(TaskKey, Outcome, Option<String>),
    /// A guest has gone to this worker.
    Gave(TaskKey, usize),
    /// A guest was asked to hand over, and this came of it.
    HandedOver(TaskKey, Handed),
    /// A guest that is to take another's place serves.
    Ready(TaskKey),
    /// It has; or it cannot, and nothing has changed.
    CutOver(TaskKey, Result<Cut, String>),
    /// Nothing is ready here.
    Idle(usize),
    /// More is ready here than this worker gets to.
    Crowded(usize),
    /// It panicked.
    Broken(usize),
}

/// What is needed to make a guest.
pub(super) struct Birth {
    pub(super) key: TaskKey,
    /// The task's place in the configuration.
    pub(super) task: usize,
    /// The same of the task whose ports lead to this one as well.
    pub(super) joins: Option<usize>,
    pub(super) spec: Arc<TaskSpec>,
    /// What is to run, when that is not what is in the file now.
    pub(super) image: Option<Arc<Image>>,
    pub(super) console: Arc<ConsoleRing>,
    pub(super) meters: Arc<Meters>,
    pub(super) share: Arc<Share>,
    pub(super) log: Option<Arc<LogTarget>>,
    /// The life whose place it is to take. It is made, but not begun.
    pub(super) heir_of: Option<TaskKey>,
}

/// A guest that was made.
pub(super) struct Made {
    /// How long that took.
    pub(super) took: Duration,
    /// What booted it, when it is a clone.
    pub(super) cloned: Option<Cloned>,
    /// Where.
    pub(super) worker: usize,
    /// Of what.
    pub(super) image: Arc<Image>,
}

/// A way to reach a worker, wherever it is.
#[derive(Clone)]
pub(super) struct Mailbox {
    messages: Sender<ToWorker>,
    kicker: Arc<Kicker>,
}

impl Mailbox {
    /// Sends a message and gets the worker out of its guest, if it is in one.
    pub(super) fn send(&self, message: ToWorker) {
        // A worker is gone only when the whole cell is.
        let _ = self.messages.send(message);
        self.kicker.kick();
    }
}

/// Starts a worker.
pub(super) fn start(
    index: usize,
    shared: Shared,
    outbox: Sender<FromWorker>,
) -> Result<(Mailbox, JoinHandle<()>), CellError> {
    let (messages, inbox) = unbounded();
    let kicker = Arc::new(Kicker::default());
    let mailbox = Mailbox {
        messages,
        kicker: Arc::clone(&kicker),
    };
    let (ready, is_ready) = bounded(1);
    let thread = std::thread::Builder::new()
        .name(format!("worker {index}"))
        .spawn(move || {
            let made = Kicks::on_this_thread(kicker).and_then(|kicks| {
                let watch = Watch::new(kicks.fd())?;
                Ok((kicks, watch))
            });
            let refusal = made.as_ref().err().copied();
            // Who started this thread waits for the answer.
            let _ = ready.send(refusal.map_or(Ok(()), Err));
            if let Ok(made) = made {
                let _farewell = Farewell(index, outbox.clone());
                Worker::new(index, shared, inbox, outbox, made).run();
            }
        })
        .map_err(CellError::Thread)?;
    // A worker that is given tasks and cannot run would keep them for ever.
    let started = is_ready.recv().unwrap_or(Err(nix::Error::ECANCELED));
    started.map_err(|e| CellError::Thread(e.into()))?;
    Ok((mailbox, thread))
}

/// Tells the supervisor when a worker panics, whose guests are gone then.
struct Farewell(usize, Sender<FromWorker>);

impl Drop for Farewell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A supervisor that is gone has ended the cell.
            let _ = self.1.send(FromWorker::Broken(self.0));
        }
    }
}

struct Worker {
    index: usize,
    shared: Shared,
    inbox: Receiver<ToWorker>,
    outbox: Sender<FromWorker>,
    kicks: Kicks,
    watch: Watch,
    guests: BTreeMap<TaskKey, Live>,
    queue: Scheduler,
    sleepers: BTreeSet<(Instant, TaskKey)>,
    /// Where guests went that were here: what is said to them still comes here
    /// until the supervisor has heard. One entry a replica, of its last life here.
    gone: BTreeMap<usize, (TaskKey, Mailbox)>,
    /// Guests that are over and whose machines are still to be closed.
    dead: Vec<Live>,
    said_idle: bool,
    said_crowded: Instant,
}

impl Worker {
    fn new(
        index: usize,
        shared: Shared,
        inbox: Receiver<ToWorker>,
        outbox: Sender<FromWorker>,
        (kicks, watch): (Kicks, Watch),
    ) -> Self {
        let slots = Arc::clone(&shared.slots);
        Self {
            index,
            shared,
            inbox,
            outbox,
            kicks,
            watch,
            guests: BTreeMap::new(),
            queue: Scheduler::new(index, slots),
            sleepers: BTreeSet::new(),
            gone: BTreeMap::new(),
            dead: Vec::new(),
            said_idle: false,
            said_crowded: Instant::now(),
        }
    }

    fn run(mut self) {
        loop {
            while let Ok(message) = self.inbox.try_recv() {
                if self.obey(message).is_break() {
                    return;
                }
            }
            self.wake_due();
            if !self.watch.is_empty() {
                self.look(Patience::None);
            }
            match self.queue.next() {
                Some((key, slice)) => {
                    self.run_one(key, slice);
                    self.dead.clear();
                }
                None => self.sleep(),
            }
        }
    }

    fn obey(&mut self, message: ToWorker) -> std::ops::ControlFlow<()> {
        match message {
            ToWorker::Boot(birth) => self.boot(*birth),
            ToWorker::Adopt(live) => self.take_in(*live),
            ToWorker::Stop(key) => match self.guests.get_mut(&key) {
                Some(live) => {
                    live.tell(Stop::Terminate);
                    self.wake(key);
                }
                None => self.forward(key, ToWorker::Stop(key)),
            },
            ToWorker::Kill(key) if self.guests.contains_key(&key) => {
                self.end(key, Outcome::Stopped(Stop::Terminate));
            }
            ToWorker::Kill(key) => self.forward(key, ToWorker::Kill(key)),
            ToWorker::HandOver(key) => self.ask_hand_over(key),
            ToWorker::Begin {
                key,
                state,
                is_beside,
            } => self.begin(key, &state, is_beside),
            ToWorker::Resume(key) => self.resume(key),
            ToWorker::CutOver { old, new } => self.cut_over(old, new),
            ToWorker::Save(key, room, frozen) => match self.guests.get_mut(&key) {
                Some(live) => {
                    // Who asked may have gone.
                    let _ = frozen.send(live.save(room));
                }
                None => self.forward(key, ToWorker::Save(key, room, frozen)),
            },
            ToWorker::Describe(key, tell) if self.guests.contains_key(&key) => {
                self.describe(key, &tell);
            }
            ToWorker::Describe(key, tell) => self.forward(key, ToWorker::Describe(key, tell)),
            ToWorker::Surrender(key, tell) if self.guests.contains_key(&key) => {
                self.surrender(key, &tell);
            }
            ToWorker::Surrender(key, tell) => self.forward(key, ToWorker::Surrender(key, tell)),
            ToWorker::Donate(to, mailbox) => self.donate(to, &mailbox),
            ToWorker::Quit => return std::ops::ControlFlow::Break(()),
        }
        std::ops::ControlFlow::Continue(())
    }

    fn boot(&mut self, birth: Birth) {
        let (key, heir_of, start) = (birth.key, birth.heir_of, Instant::now());
        let old = heir_of.and_then(|old| self.guests.get(&old));
        if let Some(old) = heir_of.filter(|_| old.is_none()) {
            self.forward(old, ToWorker::Boot(Box::new(birth)));
            return;
        }
        match Live::boot(&self.shared, birth, old) {
            Ok(mut live) => {
                let made = Made {
                    took: start.elapsed(),
                    worker: self.index,
                    image: Arc::clone(live.image()),
                    cloned: live.cloned.take(),
                };
                match heir_of {
                    Some(_) => self.hold(live),
                    None => self.take_in(live),
                }
                self.tell(FromWorker::Booted(key, made));
            }
            Err(reason) => self.tell(FromWorker::BootFailed(key, reason)),
        }
    }

    fn take_in(&mut self, live: Live) {
        let key = live.key;
        self.gone.remove(&key.replica);
        self.queue.insert(key, live.weight());
        self.watch.add(key, live.device_fds());
        self.guests.insert(key, live);
        self.said_idle = false;
        self.wake(key);
    }

    /// Makes a guest ready, wherever it slept.
    fn wake(&mut self, key: TaskKey) {
        if let Some(live) = self.guests.get_mut(&key) {
            if let Some(until) = live.sleeps_until.take() {
                self.sleepers.remove(&(until, key));
            }
            live.is_parked = false;
            live.shows(Activity::Ready);
            self.queue.wake(key);
        }
    }

    /// Wakes the guests whose devices have something to do.
    fn look(&mut self, patience: Patience) {
        for key in self.watch.look(patience) {
            if let Some(live) = self.guests.get_mut(&key) {
                live.has_news();
                if live.is_parked {
                    self.wake(key);
                }
            }
        }
    }

    fn wake_due(&mut self) {
        if self.sleepers.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(&(until, key)) = self.sleepers.first()
            && until <= now
        {
            self.wake(key);
        }
    }

    /// Runs a guest until it is left, and does what that calls for.
    fn run_one(&mut self, key: TaskKey, slice: Option<Duration>) {
        let Some(live) = self.guests.get_mut(&key) else {
            self.queue.remove(key);
            return;
        };
        // Nobody calls a worker out of its guest for the sake of another's socket.
        let slice = slice.or_else(|| self.watch.has_others(key).then_some(SLICE));
        let turn = Turn {
            slice,
            sleeper: self.sleepers.first().map(|(until, _)| *until),
            inbox: &self.inbox,
        };
        let (left, used) = live.run(&mut self.kicks, &turn);
        let has_role = live.role.is_some();
        self.queue.ran(
            key,
            used,
            match left {
                Left::Ready => SliceEnd::Preempted,
                Left::Parked(_) => SliceEnd::Waits,
                Left::Ended(_) => SliceEnd::Ended,
            },
        );
        match left {
            Left::Ready => {
                live.shows(Activity::Ready);
                self.say_crowded();
            }
            Left::Parked(until) => {
                live.is_parked = true;
                live.sleeps_until = until;
                self.sleepers.extend(until.map(|until| (until, key)));
            }
            Left::Ended(outcome) => self.end(key, outcome),
        }
        if has_role {
            self.report_role(key);
        }
    }

    /// Forgets a guest and tells how it ended.
    fn end(&mut self, key: TaskKey, outcome: Outcome) {
        if let Some(mut live) = self.remove(key) {
            let report = live.report();
            // Closing the VM takes a while, which a new generation need not wait for;
            // what it has to wait for are the files.
            live.release_devices();
            self.tell(FromWorker::Ended(key, outcome, report));
            drop(live);
        }
    }

    /// Forgets a guest.
    fn remove(&mut self, key: TaskKey) -> Option<Live> {
        let live = self.guests.remove(&key)?;
        self.queue.remove(key);
        self.watch.remove(key, live.device_fds());
        if let Some(until) = live.sleeps_until {
            self.sleepers.remove(&(until, key));
        }
        Some(live)
    }

    /// Gives away the ready guest that would run last here.
    fn donate(&mut self, to: usize, mailbox: &Mailbox) {
        if to == self.index {
            return;
        }
        if let Some(key) = self.queue.last()
            && !self.is_beside_another(key)
            && let Some(live) = self.remove(key)
        {
            // Sent before it is told: whatever the supervisor then says to the
            // other worker arrives behind the guest.
            mailbox.send(ToWorker::Adopt(Box::new(live)));
            self.gone.insert(key.replica, (key, mailbox.clone()));
            self.tell(FromWorker::Gave(key, to));
        }
    }

    /// Passes on what was said to a guest that has left. It arrives behind the
    /// guest, which went the same way. What was said to one that has ended is
    /// dropped.
    fn forward(&self, key: TaskKey, message: ToWorker) {
        if let Some((gone, mailbox)) = self.gone.get(&key.replica)
            && *gone == key
        {
            mailbox.send(message);
        }
    }

    /// Waits for a message, a device or the next deadline.
    fn sleep(&mut self) {
        if !self.said_idle {
            self.said_idle = true;
            self.tell(FromWorker::Idle(self.index));
        }
        if let Some((until, _)) = self.sleepers.first() {
            self.kicks
                .set_alarm(until.saturating_duration_since(Instant::now()));
        }
        self.kicks.away();
        if self.inbox.is_empty() {
            self.look(Patience::Unlimited);
        }
        self.kicks.back();
        self.kicks.drain();
    }

    fn say_crowded(&mut self) {
        if self.queue.waiting() > 1 && self.said_crowded.elapsed() >= CROWDED_EVERY {
            self.said_crowded = Instant::now();
            self.tell(FromWorker::Crowded(self.index));
        }
    }

    fn tell(&self, message: FromWorker) {
        // A supervisor that is gone has ended the cell.
        let _ = self.outbox.send(message);
    }
}
