//! Where the host asks: a slot has a plugin or none, and always answers.
//!
//! ```text
//!              ask                      ┌────────────┐
//!   worker ──────────▶ one lock ──────▶ │ the plugin │──▶ check ──▶ the answer
//!                        │  no plugin,  └────────────┘ fault,│nonsense
//!                        │  or it is out                     ▼
//!                        └─────────────────────────▶ what is built in
//! ```
//!
//! Whoever asks waits for nobody but who asks at the same time, and for a swap's
//! cut. Everything that takes longer is a [`Chore`] of the [keeper](crate::keeper):
//! a plugin that trapped is made anew there, and until then what is built in
//! answers.

mod carry;
mod change;
mod gate;
mod keep;
mod places;
mod swap;
mod trial;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use serde::{Deserialize, Serialize};
use wharf_model::policy::slot::{Action, Event, Slot as Rules, State as Standing};
use wharf_model::policy::{
    Answer, AttachVerdict, Nonsense, Question, SlotName, Verdict, built_in, check,
};

use crate::clock::now;
use crate::instance::{Fault, Instance, Setup, State, TaskFacts};
use crate::keeper::Chore;
use crate::notice::{Notice, NoticeKind};
use crate::plugin::Plugin;
use crate::seen::{By, Seen, Watcher};
use crate::stats::{CallTimes, Stats};
use gate::Gate;
use places::Places;

pub(crate) use carry::Components;
pub use carry::{CarriedSlot, CarryError};
pub use change::{
    Difference, Held, Rehearsal, RemoveRefusal, Removed, RollbackRefusal, RolledBack, Shadowed,
    StateMoved, SwapOptions, SwapRefusal, Swapped,
};

/// Questions that are kept to rehearse a candidate with.
const RECENT: usize = 64;

/// Chores that wait for the keeper when it gets no instances to drop any more.
const CHORES: usize = 4;

/// While what is built in answers unwatched, a question this often is kept.
const SAMPLE_NS: u64 = 10_000_000;

/// Who answers when a plugin cannot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFault {
    /// What is built in.
    #[default]
    BuiltIn,
    /// Nobody: what was asked for is denied. For routers.
    Deny,
}

/// How a slot treats its plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotConfig {
    /// How long a question may take.
    pub deadline: Duration,
    /// Who answers when a plugin cannot.
    pub on_fault: OnFault,
}

impl SlotConfig {
    /// What a slot has of which nothing is said.
    #[must_use]
    pub fn of(slot: SlotName) -> Self {
        let deadline = match slot {
            SlotName::Scheduler => Duration::from_millis(1),
            SlotName::Router => Duration::from_millis(5),
            SlotName::Upgrader => Duration::from_secs(1),
        };
        Self {
            deadline,
            on_fault: OnFault::BuiltIn,
        }
    }
}

/// A slot, as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotStatus {
    /// Which.
    pub slot: SlotName,
    /// Who answers.
    pub state: Standing,
    /// Name of the plugin that is in the slot, also while it is in quarantine.
    pub plugin: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// SHA-256 of its component.
    pub digest: Option<String>,
    /// Questions that it was asked.
    pub calls: u64,
    /// Those of them that it failed to answer.
    pub strikes: u64,
    /// Median time of a question in nanoseconds.
    pub p50_ns: u64,
    /// 99th percentile of the same.
    pub p99_ns: u64,
    /// Times that another plugin was put in.
    pub swaps: u64,
    /// For how long callers had to wait in the last of them.
    pub last_swap_pause_ns: u64,
    /// What `rollback` goes back to.
    pub previous: Option<String>,
    /// Why the plugin last failed.
    pub reason: Option<String>,
    /// Times of all calls of all plugins.
    pub times: CallTimes,
    /// Strikes of all plugins.
    pub all_strikes: u64,
}

/// Why a question was not answered by the plugin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error(transparent)]
    Nonsense(#[from] Nonsense),
}

/// What a slot was configured to have.
#[derive(Clone, Debug)]
pub(crate) struct Installed {
    pub(crate) plugin: Arc<Plugin>,
    pub(crate) setup: Arc<Setup>,
    /// Its state when it was last saved; shared, since a cut must not take the time to
    /// copy a mebibyte.
    pub(crate) state: Option<Arc<State>>,
}

/// What was in the slot before.
#[derive(Clone, Debug, Default)]
enum Previous {
    /// Nothing that could come back.
    #[default]
    Nothing,
    /// What is built in.
    BuiltIn,
    Plugin(Installed),
}

/// Kept warm while its successor is on probation.
struct Predecessor {
    instance: Instance,
    installed: Installed,
    previous: Previous,
}

/// A slot.
pub struct Slot {
    name: SlotName,
    config: SlotConfig,
    tasks: Arc<[TaskFacts]>,
    /// Whether anybody but what is built in wants to see questions.
    watched: AtomicBool,
    has_plugin: AtomicBool,
    /// When a question is next wanted all the same.
    sample_at: AtomicU64,
    inner: Gate<Inner>,
    /// Plugins that are being tried.
    candidates: Places,
    chores: Sender<Chore>,
}

struct Inner {
    rules: Rules,
    /// Who answers; none for what is built in, and while a plugin is made anew.
    seat: Option<Instance>,
    /// The plugin, also while it has no seat.
    installed: Option<Installed>,
    predecessor: Option<Predecessor>,
    previous: Previous,
    /// Questions that the plugin in force was asked since it was put in.
    asked: u64,
    /// The same at the last checkpoint.
    saved_at: u64,
    /// Counts what is put into the seat, so that who worked without the lock sees
    /// whether it still is what it was.
    turn: u64,
    recent: VecDeque<Question>,
    watchers: Vec<Watcher>,
    stats: Stats,
    reason: Option<String>,
    /// Whether nobody may change it now.
    is_held: bool,
}

impl Slot {
    /// A slot in which nothing is but what is built in.
    pub(crate) fn new(
        name: SlotName,
        config: SlotConfig,
        tasks: Arc<[TaskFacts]>,
        chores: Sender<Chore>,
    ) -> Self {
        Self {
            name,
            config,
            tasks,
            watched: AtomicBool::new(false),
            has_plugin: AtomicBool::new(false),
            sample_at: AtomicU64::new(0),
            inner: Gate::new(Inner {
                rules: Rules::default(),
                seat: None,
                installed: None,
                predecessor: None,
                previous: Previous::Nothing,
                asked: 0,
                saved_at: 0,
                turn: 0,
                recent: VecDeque::new(),
                watchers: Vec::new(),
                stats: Stats::new(),
                reason: None,
                is_held: false,
            }),
            candidates: Places::default(),
            chores,
        }
    }

    /// Which slot it is.
    #[must_use]
    pub const fn name(&self) -> SlotName {
        self.name
    }

    /// Says whether the question that could be asked now has to be: false when the
    /// answer is what is built in, and nobody wants to see it. A question is wanted
    /// now and then all the same, to rehearse candidates with.
    pub fn wants(&self, now_ns: u64) -> bool {
        if self.watched.load(Ordering::Relaxed) {
            return true;
        }
        let due = self.sample_at.load(Ordering::Relaxed) <= now_ns;
        if due {
            let next = now_ns.saturating_add(SAMPLE_NS);
            self.sample_at.store(next, Ordering::Relaxed);
        }
        due
    }

    /// Says whether a plugin is in the slot.
    pub fn has_plugin(&self) -> bool {
        self.has_plugin.load(Ordering::Relaxed)
    }

    /// Answers a question of this slot, always. The answer is checked and final: it
    /// leaves nothing to the built-in policy or to the lot.
    pub fn ask(&self, question: &Question) -> Answer {
        let mut inner = self.inner.ask();
        let (answer, by, failure) = match inner.ask(question, self.config.deadline) {
            Some(Ok(answer)) => (answer, By::Plugin, None),
            Some(Err(failure)) => (self.instead(question), By::BuiltIn, Some(failure)),
            None if inner.installed.is_some() => (self.instead(question), By::BuiltIn, None),
            None => (built_in(question), By::BuiltIn, None),
        };
        inner.keep(question);
        let said = failure.as_ref().map(ToString::to_string);
        if inner.show(question, &answer, by, said.as_deref()) {
            self.set_watched(&inner);
        }
        if let Some(failure) = failure {
            self.struck(&mut inner, &failure);
        }
        answer
    }

    /// The slot as it is.
    #[must_use]
    pub fn status(&self) -> SlotStatus {
        let inner = self.lock();
        let identity = inner.installed.as_ref().map(|it| &it.plugin.identity);
        SlotStatus {
            slot: self.name,
            state: inner.rules.state(),
            plugin: identity.map(|it| it.name.clone()),
            version: identity.map(|it| it.version.clone()),
            digest: inner.installed.as_ref().map(|it| it.plugin.digest.clone()),
            calls: inner.stats.calls(),
            strikes: inner.stats.current_strikes,
            p50_ns: inner.stats.quantile(0.5),
            p99_ns: inner.stats.quantile(0.99),
            swaps: inner.stats.swaps,
            last_swap_pause_ns: inner
                .stats
                .last_pause
                .as_nanos()
                .try_into()
                .unwrap_or(u64::MAX),
            previous: match &inner.previous {
                Previous::Nothing => None,
                Previous::BuiltIn => Some("built-in".to_owned()),
                Previous::Plugin(it) => Some(it.plugin.title()),
            },
            reason: inner.reason.clone(),
            times: inner.stats.total,
            all_strikes: inner.stats.strikes,
        }
    }

    /// Has all questions and answers shown to somebody, from now on.
    pub(crate) fn watch(&self, watcher: Watcher) -> Option<Installed> {
        let mut inner = self.lock();
        // State that is fresh: who watches begins where the plugin is.
        let saved = inner.seat.as_mut().map(Instance::save);
        if let Some(saved) = saved {
            match saved {
                Ok(state) => {
                    if let Some(installed) = &mut inner.installed {
                        installed.state = state.map(Arc::new);
                    }
                }
                Err(fault) => self.struck(&mut inner, &fault.into()),
            }
        }
        inner.watchers.push(watcher);
        self.forget_leavers(&mut inner);
        inner.installed.clone()
    }

    /// What a plugin without settings would be configured with.
    pub(crate) fn bare_setup(&self) -> Setup {
        Setup {
            settings: Vec::new(),
            tasks: self.tasks.to_vec(),
        }
    }

    /// What answers in place of a plugin that cannot.
    fn instead(&self, question: &Question) -> Answer {
        const DOWN: &str = "the router's plugin has failed, and on-fault is \"deny\"";
        match (self.config.on_fault, question) {
            (OnFault::Deny, Question::Attach(_)) => {
                Answer::Attach(AttachVerdict::Deny(DOWN.to_owned()))
            }
            (OnFault::Deny, Question::Connect(_)) => Answer::Connect(Verdict::Deny),
            _ => built_in(question),
        }
    }

    /// Books a failure of the plugin in force and does what follows.
    fn struck(&self, inner: &mut Inner, failure: &Failure) {
        let now = now();
        let reason = failure.to_string();
        let title = inner.title();
        inner.stats.struck();
        inner.reason = Some(reason.clone());
        self.tell(NoticeKind::Struck, &title, reason.clone());
        // After a fault its store cannot be entered again.
        if matches!(failure, Failure::Fault(_)) {
            self.unseat(inner);
        }
        match inner.rules.handle(now, Event::Struck) {
            Action::Return => {
                self.bring_back(inner);
                let detail = format!(
                    "{title} failed on probation ({reason}); {} is back",
                    inner.title()
                );
                self.tell(NoticeKind::RolledBack, &title, detail);
            }
            Action::Quarantine { pause } => {
                self.unseat(inner);
                let detail = format!("{reason}; tried again in {} s", pause.as_secs());
                self.tell(NoticeKind::Quarantined, &title, detail);
                self.wake_keeper();
            }
            Action::None | Action::Confirm | Action::Retry => {
                if inner.seat.is_none() {
                    let _ = self.chores.send(Chore::Mend(self.name));
                }
            }
        }
    }

    /// Puts the warm predecessor back in place of who failed.
    fn bring_back(&self, inner: &mut Inner) {
        if let Some(former) = inner.predecessor.take() {
            self.unseat(inner);
            inner.sit(former.instance);
            inner.installed = Some(former.installed);
            inner.previous = former.previous;
        }
        inner.rules.handle(now(), Event::Returned);
    }

    /// Takes the instance out of the seat; the keeper drops it, which takes 20 µs.
    fn unseat(&self, inner: &mut Inner) {
        if let Some(instance) = inner.seat.take() {
            self.discard(instance);
        }
    }

    fn discard(&self, instance: Instance) {
        // There is room for so many instances only: a keeper that is behind gets no
        // more of them. Without a keeper it is dropped here, too.
        if self.chores.len() < CHORES {
            let _ = self.chores.send(Chore::Drop(Box::new(instance)));
        }
    }

    fn tell(&self, kind: NoticeKind, plugin: &str, detail: String) {
        let notice = Notice {
            slot: self.name,
            kind,
            plugin: plugin.to_owned(),
            detail,
        };
        let _ = self.chores.send(Chore::Tell(notice));
    }

    /// Has the keeper look at the clock again.
    fn wake_keeper(&self) {
        let _ = self.chores.send(Chore::Look);
    }

    /// Lets go of watchers that nobody is behind any more, also when nothing is asked.
    fn forget_leavers(&self, inner: &mut Inner) {
        inner.watchers.retain(Watcher::is_watched);
        self.set_watched(inner);
    }

    fn set_watched(&self, inner: &Inner) {
        let has_plugin = inner.installed.is_some();
        let watched = has_plugin || !inner.watchers.is_empty();
        self.watched.store(watched, Ordering::Relaxed);
        self.has_plugin.store(has_plugin, Ordering::Relaxed);
    }

    /// Who looks after the slot goes before those who ask.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.manage()
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Slot").field(&self.name).finish()
    }
}

impl Inner {
    /// Asks who is in the seat; none when nobody is.
    fn ask(&mut self, question: &Question, limit: Duration) -> Option<Result<Answer, Failure>> {
        let instance = self.seat.as_mut()?;
        let start = Instant::now();
        let said = instance.ask(question, limit);
        self.stats.called(start.elapsed());
        self.asked = self.asked.saturating_add(1);
        Some(match said {
            Ok(answer) => check(question, answer).map_err(Failure::from),
            Err(fault) => Err(fault.into()),
        })
    }

    /// Keeps a question for rehearsals, in place of the oldest; one with a mebibyte
    /// of state is not worth it.
    fn keep(&mut self, question: &Question) {
        if matches!(question, Question::Transform(..)) {
            return;
        }
        if self.recent.len() < RECENT {
            self.recent.push_back(question.clone());
            return;
        }
        let Some(mut kept) = self.recent.pop_front() else {
            return;
        };
        kept.become_copy_of(question);
        self.recent.push_back(kept);
    }

    /// Shows what was asked and answered; says whether somebody watches no more.
    fn show(
        &mut self,
        question: &Question,
        answer: &Answer,
        by: By,
        failure: Option<&str>,
    ) -> bool {
        let before = self.watchers.len();
        if before == 0 {
            return false;
        }
        let seen = || Seen {
            question: question.clone(),
            answer: answer.clone(),
            by,
            failure: failure.map(str::to_owned),
        };
        self.watchers.retain_mut(|watcher| watcher.show(seen));
        self.watchers.len() != before
    }

    /// Puts an instance into the seat.
    fn sit(&mut self, instance: Instance) {
        self.seat = Some(instance);
        self.turn = self.turn.saturating_add(1);
        self.asked = 0;
        self.saved_at = 0;
    }

    fn title(&self) -> String {
        title(self.installed.as_ref())
    }
}

/// What is in force, as operators are told of it.
fn title(installed: Option<&Installed>) -> String {
    installed.map_or_else(|| "built-in".to_owned(), |it| it.plugin.title())
}
