//! The process that a cell goes over to, as far as that has got.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use wharf_machine::handover::Luggage;
use wharf_machine::image::Image;
use wharf_model::cell::TaskKey;

use super::Member;
use crate::cell::console::CONSOLE_BYTES;
use crate::cell::handover::{
    CarriedConsole, CarriedMember, FORMAT, HandoverError, Images, Link, Message, PATIENCE,
    Reception, START_PATIENCE, Surrendered, World,
};

/// The process that is to go on.
pub(super) struct Successor {
    pub(super) link: Link,
    pub(super) version: String,
    pub(super) images: Images,
    /// Guests that it knows of, and where their consoles were.
    pub(super) announced: BTreeMap<TaskKey, u64>,
    /// What it gives back.
    pub(super) reception: Reception,
    /// A guest on its way, when the link broke.
    pub(super) undecided: Option<Surrendered>,
    /// For how long guests stood still.
    pub(super) pauses: Vec<Duration>,
    pub(super) connections: u32,
}

impl Successor {
    pub(super) fn new(link: Link) -> Self {
        Self {
            link,
            version: String::new(),
            images: Images::default(),
            announced: BTreeMap::new(),
            reception: Reception::default(),
            undecided: None,
            pauses: Vec::new(),
            connections: 0,
        }
    }

    /// Has it set itself up.
    pub(super) fn prepared(
        mut self,
        world: World,
        luggage: &Luggage,
    ) -> Result<Self, HandoverError> {
        let ready = self.greet().and_then(|()| {
            let world = Message::World(Box::new(world));
            self.link.say(&world, luggage)?;
            self.answers(START_PATIENCE, "that it is ready", |it| {
                matches!(it, Message::Ready)
            })
        });
        ready.map(|()| self)
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

    /// Waits for an answer, `what` in words.
    pub(super) fn answers(
        &self,
        patience: Duration,
        what: &'static str,
        is_it: impl Fn(&Message) -> bool,
    ) -> Result<(), HandoverError> {
        match self.link.hear(patience)?.0 {
            said if is_it(&said) => Ok(()),
            Message::Refused(reason) => Err(HandoverError::Refused(reason)),
            _ => Err(HandoverError::Unexpected(what)),
        }
    }

    /// A replica, and with `rest` what would have come with its guest.
    pub(super) fn carry(
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
}
