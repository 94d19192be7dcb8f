//! A candidate before anybody depends on it: rehearsed, run as a shadow, warmed up.
//!
//! Its instances run on the thread of whoever changes the slot, without the slot's
//! lock.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use wharf_model::policy::rehearsal;
use wharf_model::policy::{Answer, Question, check};

use super::change::{Difference, Rehearsal, Shadowed, SwapOptions, SwapRefusal};
use super::swap::readable;
use super::{Failure, Installed, Slot};
use crate::clock::now;
use crate::instance::{Fault, Instance, Setup, State};
use crate::plugin::Plugin;
use crate::seen::{Shown, window};

/// Questions that wait for a shadow to answer them. What does not fit is left out.
const SHADOW_QUEUE: usize = 256;

/// Differences that a shadow reports.
const DIFFERENCES: usize = 10;

/// How often a shadow that nobody asks looks whether somebody still waits for it.
const GLANCE: Duration = Duration::from_millis(100);

/// Questions that an instance is warmed up with.
const WARM_UP: usize = 4;

impl Slot {
    /// What candidates are tried with: questions that were asked, the last last,
    /// then made-up ones.
    pub(super) fn questions(&self) -> Questions {
        let recorded: Vec<_> = self.lock().recent.iter().cloned().collect();
        let replicas = u32::try_from(self.tasks.len()).unwrap_or(u32::MAX);
        Questions {
            made_up: rehearsal::questions(self.name, now(), replicas),
            recorded,
        }
    }

    /// Asks an instance that is thrown away afterwards everything there is.
    pub(super) fn rehearse(
        &self,
        plugin: &Arc<Plugin>,
        setup: &Setup,
        state: Option<&State>,
        questions: &Questions,
    ) -> Result<Rehearsal, SwapRefusal> {
        let failed = |fault| refused(plugin, fault);
        let mut trial = Instance::new(plugin).map_err(failed)?;
        trial.configure(setup).map_err(failed)?;
        if let Some(state) = state {
            trial.restore(state).map_err(failed)?;
        }
        for (number, question) in questions.all().enumerate() {
            ask(&mut trial, question, self.config.deadline).map_err(|failure| {
                SwapRefusal::Rehearsal {
                    plugin: plugin.title(),
                    number,
                    reason: failure.to_string(),
                }
            })?;
        }
        if let Some(saved) = trial.save().map_err(failed)? {
            trial.restore(&saved).map_err(failed)?;
        }
        Ok(Rehearsal {
            recorded: questions.recorded.len(),
            made_up: questions.made_up.len(),
        })
    }

    /// Lets a candidate answer live questions. It runs on this thread, so that who
    /// asks does not wait for it.
    pub(super) fn shadow(
        &self,
        plugin: &Arc<Plugin>,
        setup: &Setup,
        wanted: u64,
        options: &SwapOptions,
    ) -> Result<Shadowed, SwapRefusal> {
        let failed = |fault| refused(plugin, fault);
        let mut candidate = Instance::new(plugin).map_err(failed)?;
        candidate.configure(setup).map_err(failed)?;
        let (watcher, window) = window(SHADOW_QUEUE);
        let present = self.watch(watcher);
        if let Some(present) = present
            && !options.discard_state
            && let Some(state) = readable(plugin, &present)?
        {
            candidate.restore(&state).map_err(failed)?;
        }
        let patience = options.shadow_patience;
        let deadline = Instant::now().checked_add(patience);
        let mut report = Shadowed::default();
        while report.asked < wanted {
            let left = deadline.map_or(patience, |it| it.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(SwapRefusal::FewQuestions {
                    asked: report.asked,
                    wanted,
                    patience,
                });
            }
            if options.given_up.load(Ordering::Relaxed) {
                return Err(SwapRefusal::GivenUp {
                    plugin: plugin.title(),
                });
            }
            let Some(shown) = window.next(left.min(GLANCE)) else {
                continue;
            };
            let seen = match shown {
                Shown::Seen(seen) => seen,
                Shown::LeftOut(count) => {
                    report.left_out = report.left_out.saturating_add(count);
                    continue;
                }
            };
            let number = report.asked;
            let would =
                ask(&mut candidate, &seen.question, self.config.deadline).map_err(|failure| {
                    SwapRefusal::Shadow {
                        plugin: plugin.title(),
                        number,
                        reason: failure.to_string(),
                    }
                })?;
            report.asked = report.asked.saturating_add(1);
            if would == seen.answer {
                report.agreed = report.agreed.saturating_add(1);
            } else if report.differences.len() < DIFFERENCES {
                report.differences.push(Difference {
                    number,
                    question: seen.question,
                    was: seen.answer,
                    would,
                });
            }
        }
        Ok(report)
    }
}

pub(super) struct Questions {
    recorded: Vec<Question>,
    made_up: Vec<Question>,
}

impl Questions {
    fn all(&self) -> impl Iterator<Item = &Question> {
        self.recorded.iter().chain(&self.made_up)
    }
}

/// An instance whose first real question takes no longer than the others: its pages
/// are there and its code has run. What it then knows is `state`, or nothing.
pub(super) fn warm(
    new: &Installed,
    state: Option<&State>,
    questions: &Questions,
) -> Result<Instance, SwapRefusal> {
    let failed = |fault| refused(&new.plugin, fault);
    let mut instance = Instance::new(&new.plugin).map_err(failed)?;
    instance.configure(&new.setup).map_err(failed)?;
    let blank = instance.save().map_err(failed)?;
    for (number, question) in questions.all().take(WARM_UP).enumerate() {
        ask(&mut instance, question, super::keep::MEND_TIME).map_err(|failure| {
            SwapRefusal::WarmUp {
                plugin: new.plugin.title(),
                number,
                reason: failure.to_string(),
            }
        })?;
    }
    if let Some(state) = state.or(blank.as_ref()) {
        instance.restore(state).map_err(failed)?;
    }
    Ok(instance)
}

/// Asks an instance that nobody depends on.
fn ask(instance: &mut Instance, question: &Question, limit: Duration) -> Result<Answer, Failure> {
    let answer = instance.ask(question, limit)?;
    Ok(check(question, answer)?)
}

pub(super) fn refused(plugin: &Plugin, fault: Fault) -> SwapRefusal {
    SwapRefusal::Fault {
        plugin: plugin.title(),
        fault,
    }
}
