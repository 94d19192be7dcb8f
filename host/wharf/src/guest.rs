//! A guest and its task, whoever runs them: exits become events, and events what to do.
//!
//! `wharf run` and a cell's workers differ in where output goes, who interrupts, and
//! what a park is. What a guest's own exits mean is the same for both, and is here.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wharf_abi::hypercall::FOREVER;
use wharf_abi::{Answer, Interest};
use wharf_machine::handover::{BadLuggage, BytesRef, Luggage};
use wharf_machine::image::Image;
use wharf_machine::{BadLegacy, Call, Error, Exit, Fault, Legacy, Machine, Report, UserSlice};
use wharf_model::{Action, Event, Instant, Task};

/// A guest's task, and what it waits for to be done.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CarriedRun {
    task: Task,
    /// What it is still to write to its console.
    pending: BytesRef,
    backlog: bool,
}

/// One guest that runs.
#[derive(Debug)]
pub(crate) struct GuestRun {
    pub(crate) machine: Machine,
    image: Arc<Image>,
    task: Task,
    /// The bytes of a console write that the model has not yet seen the end of.
    pending: Vec<u8>,
    /// Whether a device was left with work.
    backlog: bool,
    report: Option<String>,
    /// What it handed over, until somebody takes it.
    legacy: Option<Result<Legacy, BadLegacy>>,
}

impl GuestRun {
    pub(crate) fn new(machine: Machine, image: Arc<Image>, task: Task) -> Self {
        Self {
            machine,
            image,
            task,
            pending: Vec::new(),
            backlog: false,
            report: None,
            legacy: None,
        }
    }

    /// What there is of it beside its machine, for another process.
    pub(crate) fn carry(&self, luggage: &mut Luggage) -> CarriedRun {
        CarriedRun {
            task: self.task.clone(),
            pending: luggage.put_bytes(&self.pending),
            backlog: self.backlog,
        }
    }

    /// Goes on with what ran in another process.
    ///
    /// # Errors
    ///
    /// When something of it is missing.
    pub(crate) fn go_on(
        machine: Machine,
        image: Arc<Image>,
        carried: &CarriedRun,
        luggage: &Luggage,
    ) -> Result<Self, BadLuggage> {
        let mut run = Self::new(machine, image, carried.task.clone());
        run.pending = luggage.bytes(carried.pending)?.to_vec();
        run.backlog = carried.backlog;
        Ok(run)
    }

    /// The guest's clock is the only one here: a deadline then is what the guest
    /// takes it for, however the TSC and the kernel's clock drift apart.
    pub(crate) fn now(&self) -> Instant {
        Instant::from_nanos(self.machine.monotonic_ns())
    }

    pub(crate) const fn image(&self) -> &Arc<Image> {
        &self.image
    }

    pub(crate) const fn task(&self) -> &Task {
        &self.task
    }

    /// What it wants written to its console.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.pending
    }

    /// Whether a device has work that the guest did not ask for.
    pub(crate) const fn has_backlog(&self) -> bool {
        self.backlog
    }

    /// Has the devices looked at before the guest is parked again.
    pub(crate) const fn has_news(&mut self) {
        self.backlog = true;
    }

    /// Several printable lines, of a guest that faulted.
    pub(crate) fn report(&self) -> Option<&str> {
        self.report.as_deref()
    }

    /// What it handed over since this was asked last.
    pub(crate) const fn take_legacy(&mut self) -> Option<Result<Legacy, BadLegacy>> {
        self.legacy.take()
    }

    /// Takes in what happened and says what to do.
    pub(crate) fn handle(&mut self, event: Event) -> Action {
        self.task.handle(self.now(), event)
    }

    /// Enters the guest once.
    ///
    /// # Errors
    ///
    /// As [`Machine::enter`].
    pub(crate) fn enter(&mut self, answer: Option<Answer>) -> Result<Exit, Error> {
        self.machine.enter(answer)
    }

    /// Turns an exit into what the model understands.
    pub(crate) fn take(&mut self, exit: Exit) -> Event {
        log::trace!("{exit:?}");
        let taken = match exit {
            Exit::Call(call) => self.call(call),
            Exit::Again => Ok(Event::Again),
            Exit::Interrupted => Ok(Event::Interrupted),
            Exit::Fault(fault) => Err(fault),
        };
        taken.unwrap_or_else(|fault| self.fault(&fault))
    }

    /// Goes on with the devices of a guest that waits.
    pub(crate) fn look_again(&mut self) -> Event {
        // What it has handed over is all that it knows of, and stays so.
        if self.task.has_handed_over() {
            self.backlog = false;
            return Event::Interrupted;
        }
        match self.serve() {
            Ok(ready) => Event::Devices { ready },
            Err(fault) => self.fault(&fault),
        }
    }

    /// The host cannot go on with it, for this reason.
    pub(crate) fn give_up(&mut self, reason: String) -> Event {
        self.report = Some(reason);
        Event::Fault
    }

    fn call(&mut self, call: Call) -> Result<Event, Box<Fault>> {
        Ok(match call {
            Call::Exit { status } => Event::Exit { status },
            Call::Wait {
                deadline_ns,
                interest,
            } => Event::Wait {
                deadline: (deadline_ns != FOREVER).then(|| Instant::from_nanos(deadline_ns)),
                interest,
                ready: self.serve()?,
            },
            Call::Kick { target } => Event::Kick {
                answer: self.machine.kick(target)?,
            },
            Call::ConsoleWrite(slice) => {
                self.pending = self.machine.read_user(slice)?;
                Event::ConsoleWrite
            }
            Call::HandOver(block) => self.hand_over(block)?,
            Call::Ready => Event::Ready,
        })
    }

    /// Reads what the guest hands over, if it was asked to.
    fn hand_over(&mut self, block: UserSlice) -> Result<Event, Box<Fault>> {
        let legacy = self.machine.read_legacy(block)?;
        // What it sent before is on its way before anybody goes on in its place.
        self.machine.transmit()?;
        if !self.task.is_asked_to_hand_over() {
            return Ok(Event::HandOverFailed);
        }
        let event = match legacy {
            Ok(_) => Event::HandOver,
            Err(_) => Event::HandOverFailed,
        };
        self.legacy = Some(legacy);
        Ok(event)
    }

    /// Looks at the devices, and says which have something for the guest.
    fn serve(&mut self) -> Result<Interest, Box<Fault>> {
        if !self.machine.has_devices() {
            self.backlog = false;
            return Ok(Interest::NONE);
        }
        let served = self.machine.serve()?;
        self.backlog = served.more;
        Ok(served.ready)
    }

    fn fault(&mut self, fault: &Fault) -> Event {
        self.report = Some(Report::new(fault, &self.machine, &self.image).to_string());
        Event::Fault
    }
}
