//! The thread that does for slots whatever takes longer than an answer may.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use wharf_model::policy::SlotName;

use crate::clock::now;
use crate::instance::Instance;
use crate::notice::Notice;
use crate::slots::Slots;

/// How often state is saved, for the case that a plugin traps. With nothing asked
/// in between nothing is saved.
const CHECKPOINT: Duration = Duration::from_secs(1);

/// What is to be done.
pub(crate) enum Chore {
    /// Make the plugin of a slot anew.
    Mend(SlotName),
    /// Drop an instance, which takes 20 µs.
    Drop(Box<Instance>),
    /// Tell the operator.
    Tell(Notice),
    /// A slot has changed: look when the clock matters next.
    Look,
}

/// Where notices go.
pub(crate) type Tell = Box<dyn Fn(Notice) + Send>;

/// Does chores until nobody can have any, or the slots are gone.
pub(crate) fn keep(slots: &Weak<Slots>, chores: &Receiver<Chore>, tell: &Tell) {
    loop {
        let Some(wait) = slots.upgrade().map(|slots| patience(&slots)) else {
            return;
        };
        let chore = match wait {
            Some(wait) => chores.recv_timeout(wait),
            None => chores.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match chore {
            Ok(Chore::Mend(name)) => {
                if let Some(slots) = slots.upgrade() {
                    slots.slot(name).mend();
                }
            }
            Ok(Chore::Drop(instance)) => drop(instance),
            Ok(Chore::Tell(notice)) => tell(notice),
            Ok(Chore::Look) => {}
            Err(RecvTimeoutError::Timeout) => {
                if let Some(slots) = slots.upgrade() {
                    SlotName::ALL
                        .iter()
                        .for_each(|name| slots.slot(*name).look());
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// How long until the clock matters; for ever while there is no plugin.
fn patience(slots: &Arc<Slots>) -> Option<Duration> {
    let alarms = SlotName::ALL.iter().map(|name| slots.slot(*name));
    let mut wait = None;
    for slot in alarms {
        if slot.has_plugin() {
            let alarm = slot.alarm().map_or(CHECKPOINT, |at| at.since(now()));
            wait = Some(wait.unwrap_or(CHECKPOINT).min(alarm));
        }
    }
    wait
}
