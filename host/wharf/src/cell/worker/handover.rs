//! A worker's part in a hand-over of the host: guests leave it for another process, and
//! come to it from one.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;
use wharf_machine::handover::{Announced, Luggage, Reserved};
use wharf_machine::image::Image;
use wharf_model::cell::TaskKey;

use super::live::{Live, back_ends};
use super::{Birth, Worker};
use crate::cell::handover::{CarriedConsole, CarriedGuest, Next, Surrendered};
use crate::cell::meters::Activity;
use crate::cell::{Shared, TaskSpec};
use crate::guest::GuestRun;
use crate::headroom;
use crate::text::one_line;

/// A guest that runs, as far as another process can make ready for it.
pub(in crate::cell) struct Described {
    pub(in crate::cell) machine: Announced,
    pub(in crate::cell) luggage: Luggage,
    pub(in crate::cell) image: Arc<Image>,
    pub(in crate::cell) spec: Arc<TaskSpec>,
}

impl Worker {
    /// Describes a guest that goes on; whoever asked hears nothing when it is not here.
    pub(super) fn describe(&mut self, key: TaskKey, tell: &Sender<Result<Described, String>>) {
        if let Some(live) = self.guests.get_mut(&key) {
            // Who asked may have gone.
            let _ = tell.send(live.describe());
        }
    }

    /// Lets go of a guest, which is the asker's then.
    pub(super) fn surrender(&mut self, key: TaskKey, tell: &Sender<Surrendered>) {
        // One that is over is heard of in a moment.
        let is_over = |live: &Live| Next::of(live.next).is_none();
        if self.guests.get(&key).is_none_or(is_over) {
            return;
        }
        let since = Instant::now();
        let Some(live) = self.remove(key) else {
            return;
        };
        let live = Box::new(live);
        if let Err(returned) = tell.send(Surrendered { live, since }) {
            self.take_in(*returned.into_inner().live);
        }
    }
}

impl Live {
    /// Whose it is.
    pub(in crate::cell) const fn key(&self) -> TaskKey {
        self.key
    }

    fn describe(&mut self) -> Result<Described, String> {
        if self.is_in_upgrade() {
            return Err("it is being upgraded".to_owned());
        }
        let (image, spec) = (Arc::clone(self.image()), Arc::clone(&self.spec));
        let mut luggage = Luggage::default();
        let machine = self.guest().machine.announce(&mut luggage);
        Ok(Described {
            machine: machine.map_err(|e| one_line(&e))?,
            luggage,
            image,
            spec,
        })
    }

    /// Describes it as it stands.
    pub(in crate::cell) fn carry(&mut self, luggage: &mut Luggage) -> Result<CarriedGuest, String> {
        let next = Next::of(self.next).ok_or("it is over")?;
        let machine = self.guest.machine.carry(luggage);
        let machine = machine.map_err(|e| one_line(&e))?;
        let run = self.guest.carry(luggage);
        Ok(CarriedGuest {
            key: self.key,
            machine,
            run,
            next,
            counts: self.meters.counts(),
            console: CarriedConsole {
                start: self.console.end(),
                bytes: luggage.put_bytes(&[]),
            },
        })
    }

    /// Has it go on in this process, as if nothing had been.
    pub(in crate::cell) fn resume(&mut self) {
        self.guest.machine.resume();
        self.guest.has_news();
    }

    /// It is another process's.
    pub(in crate::cell) fn let_go(&mut self) {
        self.guest.machine.let_go();
    }

    /// Makes a guest of another process, which is to be [resumed](Self::resume) when it is
    /// this one's. The error says why not, in one line.
    pub(in crate::cell) fn go_on(
        shared: &Shared,
        birth: Birth,
        reserved: Reserved,
        carried: &CarriedGuest,
        luggage: &mut Luggage,
    ) -> Result<Self, String> {
        let backends = back_ends(shared, &birth, &carried.machine, luggage);
        let backends = backends.map_err(|e| one_line(&e))?;
        let image = birth.image.clone().ok_or("its image is not there")?;
        let next = carried
            .next
            .action()
            .ok_or("it has an answer that there is not")?;
        birth.meters.set_activity(Activity::Ready);
        let machine = reserved.go_on(&carried.machine, luggage, backends);
        let machine = machine.map_err(|e| one_line(&e))?;
        headroom::check().map_err(|e| one_line(&e))?;
        let guest = GuestRun::go_on(machine, image, &carried.run, luggage);
        let guest = guest.map_err(|e| one_line(&e))?;
        Ok(Self::new(birth, guest, next))
    }
}
