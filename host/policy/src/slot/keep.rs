//! What the keeper does for a slot: it makes instances anew, saves their state now
//! and then, and passes time on to the rules.

use std::sync::MutexGuard;
use std::time::Duration;

use wharf_model::policy::slot::{Action, Event, State as Standing};

use super::{Failure, Inner, Installed, Slot};
use crate::clock::now;
use crate::instance::{Fault, Instance, STATE_TIME};
use crate::notice::NoticeKind;

/// How long a question may take of an instance that nobody waits for.
pub(super) const MEND_TIME: Duration = Duration::from_millis(100);

impl Slot {
    /// Passes time on: probation ends, a quarantined plugin is tried again, state is
    /// saved.
    pub(crate) fn look(&self) {
        let mut inner = self.lock();
        self.forget_leavers(&mut inner);
        let answers = inner.asked;
        let action = inner.rules.handle(now(), Event::Tick { answers });
        let title = inner.title();
        match action {
            Action::Confirm => {
                let former = inner.predecessor.take();
                self.tell(
                    NoticeKind::Confirmed,
                    &title,
                    "passed its probation".to_owned(),
                );
                if let Some(former) = former {
                    // This is the keeper's thread; callers go on meanwhile.
                    drop(inner);
                    drop(former.instance);
                    return;
                }
            }
            Action::Retry => {
                drop(inner);
                self.retry();
                return;
            }
            Action::None | Action::Return | Action::Quarantine { .. } => {}
        }
        let healthy = matches!(inner.rules.state(), Standing::Active | Standing::Probation);
        if healthy && inner.asked != inner.saved_at {
            // Callers wait each time, so it may take them no longer than a question of
            // their own could.
            self.save(&mut inner, self.config.deadline.min(STATE_TIME));
        }
    }

    /// Makes an instance in place of one that trapped, with the state of the last
    /// checkpoint.
    pub(crate) fn mend(&self) {
        let on_duty = |it| matches!(it, Standing::Active | Standing::Probation);
        let Some((mut inner, _, made)) = self.make_anew(on_duty) else {
            return;
        };
        match made {
            Ok(instance) => inner.sit(instance),
            // Another strike, of which there is a last.
            Err(fault) => self.struck(&mut inner, &Failure::Fault(fault)),
        }
    }

    /// Tries a plugin that was in quarantine.
    fn retry(&self) {
        let out = |it| it == Standing::Quarantined;
        let Some((mut inner, title, made)) = self.make_anew(out) else {
            return;
        };
        match made {
            Ok(instance) => {
                inner.sit(instance);
                inner.rules.handle(now(), Event::Retried);
                self.tell(
                    NoticeKind::Restored,
                    &title,
                    "tried again, on probation".to_owned(),
                );
            }
            Err(fault) => {
                let reason = fault.to_string();
                if let Action::Quarantine { pause } = inner.rules.handle(now(), Event::RetryFailed)
                {
                    let detail = format!("{reason}; tried again in {} s", pause.as_secs());
                    self.tell(NoticeKind::Quarantined, &title, detail);
                }
                inner.reason = Some(reason);
            }
        }
    }

    /// Makes an instance for an empty seat, without the lock; none when the slot is
    /// not such, or has changed meanwhile. Also gives the plugin's title.
    fn make_anew(
        &self,
        standing: impl Fn(Standing) -> bool,
    ) -> Option<(MutexGuard<'_, Inner>, String, Result<Instance, Fault>)> {
        let is_empty = |inner: &Inner| inner.seat.is_none() && standing(inner.rules.state());
        let inner = self.lock();
        let (turn, installed) = (inner.turn, inner.installed.clone()?);
        if !is_empty(&inner) {
            return None;
        }
        drop(inner);
        let made = make(&installed);
        let inner = self.lock();
        (inner.turn == turn && is_empty(&inner)).then(|| (inner, installed.plugin.title(), made))
    }

    /// When [`look`](Self::look) has something to do.
    pub(crate) fn alarm(&self) -> Option<wharf_model::Instant> {
        self.lock().rules.alarm()
    }
}

/// An instance with the state that was last saved.
pub(super) fn make(installed: &Installed) -> Result<Instance, Fault> {
    let mut instance = Instance::new(&installed.plugin)?;
    instance.configure(&installed.setup)?;
    if let Some(state) = &installed.state {
        instance.restore(state)?;
    }
    Ok(instance)
}
