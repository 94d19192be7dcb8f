//! One guest, from a worker of one process to a worker of another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use wharf_machine::handover::{Luggage, Reserved};
use wharf_machine::image::Image;
use wharf_model::cell::TaskKey;

use super::message::{Announcement, CarriedConsole, CarriedGuest};
use super::{HandoverError, Link, LinkError, Message, PATIENCE};
use crate::cell::Shared;
use crate::cell::console::CONSOLE_BYTES;
use crate::cell::worker::{Birth, Live, Mailbox, ToWorker};
use crate::text::one_line;

/// How long a worker may take to be done with what it is at: a disk may be slow.
const WORKER_PATIENCE: Duration = Duration::from_secs(10);

/// The images that were sent over a link, each once.
#[derive(Debug, Default)]
pub(in crate::cell) struct Images {
    sent: Vec<Arc<Image>>,
}

/// A guest that its worker has let go of.
pub(in crate::cell) struct Surrendered {
    pub(in crate::cell) live: Box<Live>,
    /// Since when it stands still.
    pub(in crate::cell) since: Instant,
}

/// What became of a guest that was to be given.
pub(in crate::cell) enum Gave {
    /// The other process has it. What is left here is to be dropped when there is time.
    Away {
        left: Box<Live>,
        /// For how long it stood still.
        pause: Duration,
    },
    /// It has ended by itself.
    Ended,
    /// It goes on here, for this reason.
    Kept(String),
}

impl Images {
    /// The number by which the other process knows an image, which it is sent if it does
    /// not.
    pub(in crate::cell) fn send(
        &mut self,
        link: &Link,
        image: &Arc<Image>,
    ) -> Result<usize, LinkError> {
        let known = self.sent.iter().position(|it| Arc::ptr_eq(it, image));
        if let Some(number) = known {
            return Ok(number);
        }
        let mut luggage = Luggage::default();
        let bytes = luggage.put_bytes(image.bytes());
        link.say(&Message::Image(bytes), luggage)?;
        self.sent.push(Arc::clone(image));
        Ok(self.sent.len().saturating_sub(1))
    }
}

/// Says what there is to know of a guest that still runs. Returns where its console was,
/// or what became of it.
pub(in crate::cell) fn announce(
    link: &Link,
    images: &mut Images,
    birth: &Birth,
    mailbox: &Mailbox,
) -> Result<Result<u64, Gave>, HandoverError> {
    let (tell, told) = bounded(1);
    mailbox.send(ToWorker::Describe(birth.key, tell));
    let Ok(described) = told.recv_timeout(WORKER_PATIENCE) else {
        return Ok(Err(Gave::Ended));
    };
    let described = match described {
        Ok(described) => described,
        Err(reason) => return Ok(Err(Gave::Kept(reason))),
    };
    let image = images.send(link, &described.image)?;
    let mut luggage = described.luggage;
    let so_far = birth.console.read(0, CONSOLE_BYTES);
    let written = u64::try_from(so_far.bytes.len()).unwrap_or(u64::MAX);
    let written = so_far.start.saturating_add(written);
    let announcement = Announcement {
        key: birth.key,
        spec: described.spec.as_ref().clone(),
        image,
        machine: described.machine,
        console: CarriedConsole::put(&so_far, &mut luggage),
    };
    link.say(&Message::Announce(Box::new(announcement)), luggage)?;
    Ok(Ok(written))
}

/// Gives the guest of a worker away that was announced, with its console from `written` on.
///
/// # Errors
///
/// When the other process cannot be reached any more. The guest then still stands, in
/// `left`, if it had left its worker: who comes here next decides whose it is.
pub(in crate::cell) fn give(
    link: &Link,
    birth: Birth,
    written: u64,
    mailbox: &Mailbox,
    left: &mut Option<Surrendered>,
) -> Result<Gave, HandoverError> {
    let Birth {
        key, console, log, ..
    } = birth;
    link.tell(&Message::Reserve(key))?;
    match link.hear(PATIENCE)?.0 {
        Message::Reserved => {}
        Message::Refused(reason) => return Ok(Gave::Kept(reason)),
        _ => return Err(HandoverError::Unexpected("whether it has a machine")),
    }
    let (tell, told) = bounded(1);
    mailbox.send(ToWorker::Surrender(key, tell));
    let Ok(surrendered) = told.recv_timeout(WORKER_PATIENCE) else {
        link.tell(&Message::Nevermind(key))?;
        return Ok(Gave::Ended);
    };
    let Surrendered { live, since } = left.insert(surrendered);
    if let Some(log) = log {
        log.settle();
    }
    let mut luggage = Luggage::default();
    let mut guest = match live.carry(&mut luggage) {
        Ok(guest) => guest,
        Err(reason) => {
            keep(left, mailbox);
            link.tell(&Message::Nevermind(key))?;
            return Ok(Gave::Kept(reason));
        }
    };
    guest.console = CarriedConsole::put(&console.read(written, CONSOLE_BYTES), &mut luggage);
    link.say(&Message::Guest(Box::new(guest)), luggage)?;
    match link.hear(PATIENCE)?.0 {
        Message::Taken => {}
        Message::Refused(reason) => {
            keep(left, mailbox);
            return Ok(Gave::Kept(reason));
        }
        _ => return Err(HandoverError::Unexpected("whether it has the guest")),
    }
    let pause = since.elapsed();
    let Some(Surrendered { mut live, .. }) = left.take() else {
        return Ok(Gave::Ended);
    };
    live.let_go();
    Ok(Gave::Away { left: live, pause })
}

/// Has a guest go on that nobody took.
pub(in crate::cell) fn keep(left: &mut Option<Surrendered>, mailbox: &Mailbox) {
    if let Some(Surrendered { mut live, .. }) = left.take() {
        live.keep();
        mailbox.send(ToWorker::Adopt(live));
    }
}

/// The receiving end: what is known of guests that are to come.
#[derive(Default)]
pub(in crate::cell) struct Reception {
    images: Vec<Arc<Image>>,
    expected: BTreeMap<TaskKey, Expected>,
}

/// A guest that is to come.
struct Expected {
    birth: Birth,
    /// The machine that is being made for it. KVM waits for the whole machine to get
    /// around to things when it makes one, which takes a second or two where all
    /// processors are busy; so each is made by a thread of its own, all at once.
    machine: Receiver<Result<Reserved, String>>,
    reserved: Option<Reserved>,
}

/// What came of a message.
pub(in crate::cell) enum Heard {
    /// It was about a guest that is to come.
    Nothing,
    /// A guest is here. It is taken with the next word to the other process, and stands
    /// still until a worker has it.
    Here(TaskKey, Box<Live>),
    /// It is about something else.
    Other(Message, Luggage),
}

impl Reception {
    /// An image that was sent.
    pub(in crate::cell) fn image(&self, number: usize) -> Result<Arc<Image>, HandoverError> {
        let image = self.images.get(number).map(Arc::clone);
        image.ok_or(HandoverError::Unexpected("an image that it has sent"))
    }

    /// Takes in a message, and answers it when it is about a guest. `birth` makes what is
    /// needed here of a guest's key.
    ///
    /// # Errors
    ///
    /// When the other process cannot be reached any more, or says what is not understood.
    pub(in crate::cell) fn hear(
        &mut self,
        link: &Link,
        (message, luggage): (Message, Luggage),
        shared: &Shared,
        birth: impl FnOnce(TaskKey) -> Option<Birth>,
    ) -> Result<Heard, HandoverError> {
        match message {
            Message::Image(bytes) => {
                let bytes = luggage.bytes(bytes).map_err(|e| HandoverError::unfit(&e))?;
                let image = Image::parse(bytes.to_vec()).map_err(|e| HandoverError::unfit(&e))?;
                self.images.push(Arc::new(image));
            }
            Message::Announce(announcement) => {
                let birth = birth(announcement.key);
                self.expect(*announcement, luggage, shared, birth)?;
            }
            Message::Reserve(key) => {
                let expected = self.expected.get_mut(&key);
                let made = expected.map(|it| {
                    let made = it.machine.recv().unwrap_or_else(|e| Err(e.to_string()));
                    made.map(|machine| it.reserved = Some(machine))
                });
                match made {
                    Some(Ok(())) => link.tell(&Message::Reserved)?,
                    Some(Err(reason)) => link.tell(&Message::Refused(reason))?,
                    None => return Err(HandoverError::Unexpected("a guest that was announced")),
                }
            }
            Message::Nevermind(key) => drop(self.expected.remove(&key)),
            Message::Guest(guest) => return self.take(link, &guest, luggage, shared),
            other => return Ok(Heard::Other(other, luggage)),
        }
        Ok(Heard::Nothing)
    }

    fn expect(
        &mut self,
        announcement: Announcement,
        mut luggage: Luggage,
        shared: &Shared,
        birth: Option<Birth>,
    ) -> Result<(), HandoverError> {
        let Announcement {
            key,
            spec,
            image,
            machine,
            console,
        } = announcement;
        let image = self.image(image)?;
        let birth = birth.ok_or(HandoverError::Unexpected("a replica that there is"))?;
        let written = console
            .take(&luggage)
            .map_err(|e| HandoverError::unfit(&e))?;
        birth.console.go_on(&written);
        let (made, is_made) = bounded(1);
        let (hypervisor, its) = (Arc::clone(&shared.hypervisor), Arc::clone(&image));
        std::thread::Builder::new()
            .name("machine".to_owned())
            .spawn(move || {
                let reserved = Reserved::new(&hypervisor, &its, &machine, &mut luggage);
                // Nobody may want it any more.
                let _ = made.send(reserved.map_err(|e| one_line(&e)));
            })
            .map_err(|e| HandoverError::unfit(&e))?;
        let expected = Expected {
            birth: Birth {
                spec: Arc::new(spec),
                image: Some(image),
                ..birth
            },
            machine: is_made,
            reserved: None,
        };
        self.expected.insert(key, expected);
        Ok(())
    }

    fn take(
        &mut self,
        link: &Link,
        guest: &CarriedGuest,
        mut luggage: Luggage,
        shared: &Shared,
    ) -> Result<Heard, HandoverError> {
        let expected = self.expected.remove(&guest.key);
        let Some((birth, machine)) = expected.and_then(|it| Some((it.birth, it.reserved?))) else {
            return Err(HandoverError::Unexpected("a guest that has a machine"));
        };
        let written = guest
            .console
            .take(&luggage)
            .map_err(|e| HandoverError::unfit(&e))?;
        let (console, meters) = (Arc::clone(&birth.console), Arc::clone(&birth.meters));
        match Live::go_on(shared, birth, machine, guest, &mut luggage) {
            Ok(live) => {
                console.go_on(&written);
                meters.count_on(&guest.counts);
                Ok(Heard::Here(guest.key, Box::new(live)))
            }
            Err(reason) => {
                link.tell(&Message::Refused(reason))?;
                Ok(Heard::Nothing)
            }
        }
    }
}
