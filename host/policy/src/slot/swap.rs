//! Another plugin in a slot, between two questions.
//!
//! ```text
//!   fits? ─▶ configure ─▶ rehearse ─▶ shadow ─▶ warm up ─▶ ║ save, restore, assign ║
//!                                                          ╙ callers wait only here ╜
//! ```
//!
//! Until the cut nothing has changed: whatever fails before it leaves the slot as
//! it was. Nor does anything wait for it: other changes go on beside, of which the
//! first to be cut is made, and the others are refused, since what they were tried
//! beside is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wharf_model::policy::slot::{Event, State as Standing};

use super::change::{
    CANDIDATES, Held, RemoveRefusal, Removed, RollbackRefusal, RolledBack, StateMoved, SwapOptions,
    SwapRefusal, Swapped,
};
use super::trial::{refused, warm};
use super::{Failure, Inner, Installed, Predecessor, Previous, Slot, title};
use crate::clock::now;
use crate::instance::{Instance, STATE_TIME, Setup, State};
use crate::notice::NoticeKind;
use crate::plugin::Plugin;

impl Slot {
    /// Puts a plugin in. Takes as long as the plugin needs to be set up and tried,
    /// during which the slot answers as before; then callers wait while the state
    /// is handed over.
    ///
    /// # Errors
    ///
    /// When the plugin is not for this slot or fails in any of the steps, or another
    /// was put in meanwhile; the slot is then as it was.
    pub fn swap(
        &self,
        plugin: &Arc<Plugin>,
        options: &SwapOptions,
    ) -> Result<Swapped, SwapRefusal> {
        self.fit(plugin)?;
        let Some(_place) = self.candidates.enter(CANDIDATES) else {
            return Err(SwapRefusal::Busy(self.name));
        };
        let present = self.present(options.discard_state);
        let setup = self.setup_for(plugin, present.as_ref(), options.settings.clone());
        let state = match &present {
            Some(present) if !options.discard_state => readable(plugin, present)?,
            _ => None,
        };
        let questions = self.questions();
        let rehearsal = self.rehearse(plugin, &setup, state.as_deref(), &questions)?;
        let shadowed = match options.shadow {
            0 => None,
            wanted => Some(self.shadow(plugin, &setup, wanted, options)?),
        };
        let new = Installed {
            plugin: Arc::clone(plugin),
            setup,
            state: None,
        };
        let old = title(present.as_ref());
        let (state, pause) = if options.dry_run {
            let would = state.map_or(StateMoved::None, |it| StateMoved::Bytes(it.bytes.len()));
            (would, None)
        } else {
            let instance = warm(&new, state.as_deref(), &questions)?;
            let cut = Cut {
                beside: present.as_ref(),
                discard_state: options.discard_state,
                former: Former::Kept,
            };
            let (state, pause) = self.cut(instance, new, &cut)?;
            let detail = format!("in place of {old}, callers waited {} µs", pause.as_micros());
            self.tell(NoticeKind::Swapped, &plugin.title(), detail);
            self.wake_keeper();
            (state, Some(pause))
        };
        Ok(Swapped {
            old,
            new: plugin.title(),
            rehearsal,
            shadowed,
            state,
            pause,
        })
    }

    /// Takes the plugin out: what is built in decides again.
    ///
    /// # Errors
    ///
    /// When there is none, or the slot goes to another process.
    pub fn remove(&self, dry_run: bool) -> Result<Removed, RemoveRefusal> {
        let mut inner = self.lock();
        self.may_change(&inner)?;
        let start = Instant::now();
        let Some(installed) = &inner.installed else {
            return Err(RemoveRefusal::NothingThere(self.name));
        };
        let old = installed.plugin.title();
        if dry_run {
            return Ok(Removed { old, pause: None });
        }
        inner.previous = inner
            .installed
            .take()
            .map_or(Previous::Nothing, Previous::Plugin);
        let pause = self.empty(&mut inner, start);
        drop(inner);
        let detail = format!("in place of {old}, callers waited {} µs", pause.as_micros());
        self.tell(NoticeKind::Swapped, "built-in", detail);
        Ok(Removed {
            old,
            pause: Some(pause),
        })
    }

    /// Puts back what was there before the last swap: at once while it is kept
    /// warm, else made anew with the state that the one in force hands over or, when
    /// it cannot read that, its own of then.
    ///
    /// # Errors
    ///
    /// When there is nothing, it fails now, or something was put in meanwhile. The
    /// slot is then as it was.
    pub fn rollback(&self) -> Result<RolledBack, RollbackRefusal> {
        let mut inner = self.lock();
        self.may_change(&inner).map_err(SwapRefusal::from)?;
        let old = inner.title();
        if inner.predecessor.is_some() {
            let start = Instant::now();
            self.bring_back(&mut inner);
            let pause = start.elapsed();
            self.changed(&mut inner, pause);
            return Ok(self.went_back(old, inner.title(), pause));
        }
        let previous = match &inner.previous {
            Previous::Nothing => return Err(RollbackRefusal::Nothing(self.name)),
            Previous::BuiltIn => {
                let start = Instant::now();
                inner.installed = None;
                inner.previous = Previous::Nothing;
                let pause = self.empty(&mut inner, start);
                return Ok(self.went_back(old, inner.title(), pause));
            }
            Previous::Plugin(installed) => installed.clone(),
        };
        let present = inner.installed.clone();
        drop(inner);
        // A place more than candidates have: going back must not wait for shadows.
        let Some(_place) = self.candidates.enter(CANDIDATES.saturating_add(1)) else {
            return Err(SwapRefusal::Busy(self.name).into());
        };
        let revived = |discard_state| {
            let cut = Cut {
                beside: present.as_ref(),
                discard_state,
                former: Former::Dropped,
            };
            self.cut(self.revive(&previous)?, previous.clone(), &cut)
        };
        let (_, pause) = revived(false).or_else(|refusal| match refusal {
            // It does not read what its successor wrote: its own state it does.
            SwapRefusal::Schema { .. } | SwapRefusal::Fault { .. } => revived(true),
            other => Err(other),
        })?;
        self.wake_keeper();
        Ok(self.went_back(old, previous.plugin.title(), pause))
    }

    fn went_back(&self, old: String, new: String, pause: Duration) -> RolledBack {
        let detail = format!("in place of {old}");
        self.tell(NoticeKind::RolledBack, &new, detail);
        RolledBack { old, new, pause }
    }

    /// What the previous plugin was, with its own state.
    fn revive(&self, previous: &Installed) -> Result<Instance, SwapRefusal> {
        warm(previous, previous.state.as_deref(), &self.questions())
    }

    fn fit(&self, plugin: &Plugin) -> Result<(), SwapRefusal> {
        if plugin.fits(self.name) {
            return Ok(());
        }
        let slots: Vec<_> = plugin.slots().iter().map(ToString::to_string).collect();
        Err(SwapRefusal::NotForSlot {
            plugin: plugin.title(),
            slot: self.name,
            fits: slots.join(" and "),
        })
    }

    /// What is in force, with its state as it is now.
    fn present(&self, without_state: bool) -> Option<Installed> {
        let mut inner = self.lock();
        if !without_state {
            self.save(&mut inner, STATE_TIME);
        }
        inner.installed.clone()
    }

    /// Settings of the operator's, else those of a plugin of the same name.
    fn setup_for(
        &self,
        plugin: &Plugin,
        present: Option<&Installed>,
        settings: Option<Vec<(String, String)>>,
    ) -> Arc<Setup> {
        let same = present.filter(|it| it.plugin.identity.name == plugin.identity.name);
        let settings = match (settings, same) {
            (Some(settings), _) => settings,
            (None, Some(same)) => return Arc::clone(&same.setup),
            (None, None) => Vec::new(),
        };
        Arc::new(Setup {
            settings,
            ..self.bare_setup()
        })
    }

    const fn may_change(&self, inner: &Inner) -> Result<(), Held> {
        if inner.is_held {
            return Err(Held(self.name));
        }
        Ok(())
    }

    /// The cut: hands the state over and assigns, while callers wait.
    fn cut(
        &self,
        mut instance: Instance,
        new: Installed,
        cut: &Cut<'_>,
    ) -> Result<(StateMoved, Duration), SwapRefusal> {
        let mut inner = self.lock();
        self.may_change(&inner)?;
        let start = Instant::now();
        if !is_same(inner.installed.as_ref(), cut.beside) {
            return Err(SwapRefusal::Changed {
                plugin: new.plugin.title(),
                slot: self.name,
                now: inner.title(),
            });
        }
        let state = if cut.discard_state {
            StateMoved::Fresh("as asked for".to_owned())
        } else {
            self.hand_over(&mut inner, &mut instance, &new)?
        };
        let outdated = inner.replace(instance, new, cut.former);
        let pause = start.elapsed();
        self.changed(&mut inner, pause);
        drop(inner);
        // Who swaps has the time for that.
        drop(outdated);
        Ok((state, pause))
    }

    /// Moves the state of who is in force into `instance`.
    fn hand_over(
        &self,
        inner: &mut Inner,
        instance: &mut Instance,
        new: &Installed,
    ) -> Result<StateMoved, SwapRefusal> {
        let lost = self.save(inner, STATE_TIME);
        let Some(present) = &inner.installed else {
            return Ok(StateMoved::None);
        };
        let Some(state) = readable(&new.plugin, present)? else {
            let other = present.plugin.identity.name != new.plugin.identity.name;
            let had = present.plugin.identity.state_schema > 0;
            return Ok(match lost {
                Some(reason) => StateMoved::Fresh(reason),
                None if had && other => StateMoved::Fresh("it is of another name".to_owned()),
                None if had => StateMoved::Fresh("the one before it saved none".to_owned()),
                None => StateMoved::None,
            });
        };
        instance
            .restore(&state)
            .map_err(|fault| refused(&new.plugin, fault))?;
        Ok(StateMoved::Bytes(state.bytes.len()))
    }

    /// Brings the saved state of who is in force up to date. An instance that fails
    /// to save within the limit is out: its last state stands. Says why, then.
    pub(super) fn save(&self, inner: &mut Inner, limit: Duration) -> Option<String> {
        match inner.seat.as_mut()?.save_within(limit) {
            Ok(state) => {
                inner.saved_at = inner.asked;
                if let Some(installed) = &mut inner.installed {
                    installed.state = state.map(Arc::new);
                }
                None
            }
            Err(fault) => {
                let reason = fault.to_string();
                self.struck(inner, &Failure::Fault(fault));
                Some(reason)
            }
        }
    }

    /// Nothing is in force but what is built in. Says for how long callers had to wait.
    fn empty(&self, inner: &mut Inner, start: Instant) -> Duration {
        self.unseat(inner);
        if let Some(former) = inner.predecessor.take() {
            self.discard(former.instance);
        }
        inner.turn = inner.turn.saturating_add(1);
        inner.rules.handle(now(), Event::Removed);
        let pause = start.elapsed();
        self.changed(inner, pause);
        pause
    }

    fn changed(&self, inner: &mut Inner, pause: Duration) {
        inner.stats.swaps = inner.stats.swaps.saturating_add(1);
        inner.stats.last_pause = pause;
        inner.stats.begin();
        inner.reason = None;
        self.set_watched(inner);
    }
}

/// How a candidate takes its place.
struct Cut<'a> {
    /// What was in force when it was tried.
    beside: Option<&'a Installed>,
    /// Whether it begins anew.
    discard_state: bool,
    former: Former,
}

/// What becomes of the plugin that was in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Former {
    /// It can come back: by itself when its successor fails on probation, and by a
    /// rollback.
    Kept,
    /// It was rolled back from, and nobody wants it back.
    Dropped,
}

impl Inner {
    /// Puts a plugin in, with the one before it as its predecessor if that is kept.
    /// Returns what is not needed any more.
    fn replace(&mut self, instance: Instance, new: Installed, former: Former) -> Vec<Instance> {
        let mut outdated: Vec<_> = self
            .predecessor
            .take()
            .map(|it| it.instance)
            .into_iter()
            .collect();
        let old = self.installed.replace(new);
        let kept = former == Former::Kept;
        let previous = match &old {
            _ if !kept => Previous::Nothing,
            Some(old) => Previous::Plugin(old.clone()),
            None => Previous::BuiltIn,
        };
        let before = std::mem::replace(&mut self.previous, previous);
        let warm = self.seat.take();
        self.predecessor = match (warm, old) {
            // Only who was in good standing comes back by itself.
            (Some(instance), Some(installed)) if kept && self.rules.state() == Standing::Active => {
                Some(Predecessor {
                    instance,
                    installed,
                    previous: before,
                })
            }
            (warm, _) => {
                outdated.extend(warm);
                None
            }
        };
        let predecessor = self.predecessor.is_some();
        self.sit(instance);
        self.rules.handle(now(), Event::Installed { predecessor });
        outdated
    }
}

/// Whether the same plugin is in force with the same settings, which is all that a
/// trial depends on: one that was made anew meanwhile, or was out and is back, is the
/// same.
fn is_same(one: Option<&Installed>, other: Option<&Installed>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => {
            Arc::ptr_eq(&one.plugin, &other.plugin) && Arc::ptr_eq(&one.setup, &other.setup)
        }
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// The state that a plugin takes over from the one in force: none when either keeps
/// none, or they are of different names.
pub(super) fn readable(
    plugin: &Plugin,
    present: &Installed,
) -> Result<Option<Arc<State>>, SwapRefusal> {
    let (new, old) = (&plugin.identity, &present.plugin.identity);
    let Some(state) = &present.state else {
        return Ok(None);
    };
    if new.name != old.name || new.state_schema == 0 {
        return Ok(None);
    }
    if (new.oldest_schema..=new.state_schema).contains(&state.schema) {
        return Ok(Some(Arc::clone(state)));
    }
    Err(SwapRefusal::Schema {
        plugin: plugin.title(),
        oldest: new.oldest_schema,
        newest: new.state_schema,
        found: state.schema,
    })
}
