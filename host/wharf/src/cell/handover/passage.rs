//! One guest, from a worker of one process to a worker of another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
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

/// What the other process knows of a guest that is to be given.
pub(in crate::cell) enum Told {
    /// All that there is to know before it comes, with its console up to here.
    All(u64),
    /// It has ended by itself.
    Ended,
    /// It goes on here, for this reason.
    Kept(String),
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
    /// It goes on here.
    Kept {
        /// Why.
        reason: String,
        /// The guest, if it had left its worker.
        guest: Option<Surrendered>,
    },
}

/// The other process did not say what became of a guest.
pub(in crate::cell) struct Broken {
    pub(in crate::cell) error: HandoverError,
    /// The guest, if it had left its worker. It stands still: whose it is, who ends the
    /// other process finds out.
    pub(in crate::cell) undecided: Option<Surrendered>,
}

impl From<HandoverError> for Broken {
    fn from(error: HandoverError) -> Self {
        Self {
            error,
            undecided: None,
        }
    }
}

impl From<LinkError> for Broken {
    fn from(error: LinkError) -> Self {
        HandoverError::from(error).into()
    }
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
        link.say(&Message::Image(bytes), &luggage)?;
        self.sent.push(Arc::clone(image));
        Ok(self.sent.len().saturating_sub(1))
    }
}

/// Asks a worker for something of a guest's. None when nobody has that guest any more; the
/// error says that its worker does not answer.
fn asked<T>(
    mailbox: &Mailbox,
    message: impl FnOnce(Sender<T>) -> ToWorker,
) -> Result<Option<T>, String> {
    // Handed from one to the other: what is not taken any more, its worker keeps.
    let (tell, told) = bounded(0);
    mailbox.send(message(tell));
    match told.recv_timeout(WORKER_PATIENCE) {
        Ok(told) => Ok(Some(told)),
        Err(RecvTimeoutError::Disconnected) => Ok(None),
        Err(RecvTimeoutError::Timeout) => Err("its worker does not answer".to_owned()),
    }
}

/// Says what there is to know of a guest that still runs.
///
/// # Errors
///
/// When the other process cannot be reached any more.
pub(in crate::cell) fn announce(
    link: &Link,
    images: &mut Images,
    birth: &Birth,
    mailbox: &Mailbox,
) -> Result<Told, LinkError> {
    let described = asked(mailbox, |tell| ToWorker::Describe(birth.key, tell));
    let described = match described {
        Ok(Some(Ok(described))) => described,
        Ok(None) => return Ok(Told::Ended),
        Ok(Some(Err(reason))) | Err(reason) => return Ok(Told::Kept(reason)),
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
    link.say(&Message::Announce(Box::new(announcement)), &luggage)?;
    Ok(Told::All(written))
}

/// Gives the guest of a worker away that was announced, with its console from `written` on.
///
/// # Errors
///
/// When the other process cannot be reached any more, or talks nonsense.
pub(in crate::cell) fn give(
    link: &Link,
    birth: Birth,
    written: u64,
    mailbox: &Mailbox,
) -> Result<Gave, Broken> {
    let Birth {
        key, console, log, ..
    } = birth;
    link.tell(&Message::Reserve(key))?;
    match link.hear(PATIENCE)?.0 {
        Message::Reserved => {}
        Message::Refused(reason) => {
            return Ok(Gave::Kept {
                reason,
                guest: None,
            });
        }
        _ => return Err(HandoverError::Unexpected("whether it has a machine").into()),
    }
    let stays = |reason, guest| {
        link.tell(&Message::Nevermind(key))?;
        Ok(Gave::Kept { reason, guest })
    };
    let mut surrendered = match asked(mailbox, |tell| ToWorker::Surrender(key, tell)) {
        Ok(Some(surrendered)) => surrendered,
        Ok(None) => {
            link.tell(&Message::Nevermind(key))?;
            return Ok(Gave::Ended);
        }
        Err(reason) => return stays(reason, None),
    };
    if let Some(log) = log {
        log.settle();
    }
    let mut luggage = Luggage::default();
    let mut guest = match surrendered.live.carry(&mut luggage) {
        Ok(guest) => guest,
        Err(reason) => return stays(reason, Some(surrendered)),
    };
    guest.console = CarriedConsole::put(&console.read(written, CONSOLE_BYTES), &mut luggage);
    let said = link.say(&Message::Guest(Box::new(guest)), &luggage);
    drop(luggage);
    let heard = match said {
        Ok(()) => link.hear(PATIENCE),
        Err(error) if error.is_end() => Err(error),
        // Nothing was said.
        Err(error) => return stays(one_line(&error), Some(surrendered)),
    };
    let error = match heard {
        Ok((Message::Taken, _)) => {
            let pause = surrendered.since.elapsed();
            let mut left = surrendered.live;
            left.let_go();
            return Ok(Gave::Away { left, pause });
        }
        Ok((Message::Refused(reason), _)) => {
            return Ok(Gave::Kept {
                reason,
                guest: Some(surrendered),
            });
        }
        Ok(_) => HandoverError::Unexpected("whether it has the guest"),
        Err(error) => error.into(),
    };
    Err(Broken {
        error,
        undecided: Some(surrendered),
    })
}

/// Has a guest go on that nobody took, on the worker where the model has it.
pub(in crate::cell) fn keep(surrendered: Surrendered, mailbox: &Mailbox) {
    let Surrendered { mut live, .. } = surrendered;
    live.resume();
    mailbox.send(ToWorker::Adopt(live));
}

/// The receiving end: what is known of guests that are to come. What cannot be done for
/// one of them is said when it is asked for.
#[derive(Default)]
pub(in crate::cell) struct Reception {
    images: Vec<Result<Arc<Image>, String>>,
    expected: BTreeMap<TaskKey, Result<Expected, String>>,
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
    /// still until it is resumed.
    Here(TaskKey, Box<Live>),
    /// It is about something else.
    Other(Message, Luggage),
}

impl Reception {
    /// An image that was sent; the error says why it is none here.
    pub(in crate::cell) fn image(&self, number: usize) -> Result<Arc<Image>, String> {
        let image = self.images.get(number).cloned();
        image.unwrap_or_else(|| Err("its image was not sent".to_owned()))
    }

    /// Takes in a message, and answers it when it is about a guest. `birth` makes what is
    /// needed here of a guest's key.
    ///
    /// # Errors
    ///
    /// When the other process cannot be reached any more.
    pub(in crate::cell) fn hear(
        &mut self,
        link: &Link,
        (message, luggage): (Message, Luggage),
        shared: &Shared,
        birth: impl FnOnce(TaskKey) -> Option<Birth>,
    ) -> Result<Heard, LinkError> {
        match message {
            Message::Image(bytes) => {
                let image = luggage.bytes(bytes).map_err(|e| one_line(&e));
                let image = image.map(<[u8]>::to_vec);
                let image = image.and_then(|it| Image::parse(it).map_err(|e| one_line(&e)));
                self.images.push(image.map(Arc::new));
            }
            Message::Announce(announcement) => {
                let key = announcement.key;
                let expected = self.prepare(*announcement, luggage, shared, birth(key));
                self.expected.insert(key, expected);
            }
            Message::Reserve(key) => {
                let answer = match self.reserve(key) {
                    Ok(()) => Message::Reserved,
                    Err(reason) => Message::Refused(reason),
                };
                link.tell(&answer)?;
            }
            Message::Nevermind(key) => drop(self.expected.remove(&key)),
            Message::Guest(guest) => match self.take(&guest, luggage, shared) {
                Ok(live) => return Ok(Heard::Here(guest.key, Box::new(live))),
                Err(reason) => link.tell(&Message::Refused(reason))?,
            },
            other => return Ok(Heard::Other(other, luggage)),
        }
        Ok(Heard::Nothing)
    }

    fn prepare(
        &self,
        announcement: Announcement,
        mut luggage: Luggage,
        shared: &Shared,
        birth: Option<Birth>,
    ) -> Result<Expected, String> {
        let Announcement {
            key: _,
            spec,
            image,
            machine,
            console,
        } = announcement;
        let image = self.image(image)?;
        let birth = birth.ok_or("there is no such replica")?;
        let written = console.take(&luggage).map_err(|e| one_line(&e))?;
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
            .map_err(|e| format!("cannot start a thread: {e}"))?;
        Ok(Expected {
            birth: Birth {
                spec: Arc::new(spec),
                image: Some(image),
                ..birth
            },
            machine: is_made,
            reserved: None,
        })
    }

    /// Waits for a guest's machine.
    fn reserve(&mut self, key: TaskKey) -> Result<(), String> {
        let expected = self.expected.get_mut(&key);
        let expected = expected.ok_or("it was not announced")?;
        let expected = expected.as_mut().map_err(|reason| reason.clone())?;
        let made = expected.machine.recv();
        expected.reserved = Some(made.unwrap_or_else(|e| Err(e.to_string()))?);
        Ok(())
    }

    fn take(
        &mut self,
        guest: &CarriedGuest,
        mut luggage: Luggage,
        shared: &Shared,
    ) -> Result<Live, String> {
        let expected = self.expected.remove(&guest.key);
        let Expected {
            birth, reserved, ..
        } = expected.ok_or("it was not announced")??;
        let machine = reserved.ok_or("no machine was reserved for it")?;
        let written = guest.console.take(&luggage).map_err(|e| one_line(&e))?;
        let (console, meters) = (Arc::clone(&birth.console), Arc::clone(&birth.meters));
        let live = Live::go_on(shared, birth, machine, guest, &mut luggage)?;
        console.go_on(&written);
        meters.count_on(&guest.counts);
        Ok(live)
    }
}
