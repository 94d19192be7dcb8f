//! Upgrades: what the model decides of them, carried out.
//!
//! Each replica of a [rollout](super::rollout) has one upgrade of the model's, which is
//! *ongoing* until nothing of the version is left that had to go.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use wharf_machine::image::Image;
use wharf_model::cell::{Event as Fact, TaskKey};
use wharf_model::policy::{Answer, Observation, Plan, Proposal, Question, Version};
use wharf_model::upgrade::{Action, Event, Upgrade, Verdict, Which};

use super::{Going, Member, Supervisor, TaskSpec};
use crate::cell::asker::{Job, Said};
use crate::cell::meters::Meters;
use crate::cell::protocol::{Beside, EventKind, Reply, Selector, TaskState, TaskStatus};
use crate::cell::worker::{Birth, Cut, Handed, ToWorker};
use crate::net::{Share, TimesThen};
use crate::units::nanos;

/// What a replica runs.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) spec: Arc<TaskSpec>,
    pub(super) image: Arc<Image>,
}

/// An upgrade of one replica.
pub(super) struct Ongoing {
    rollout: u64,
    model: Upgrade,
    old: TaskKey,
    new: TaskKey,
    /// Where both are.
    worker: usize,
    next: Running,
    digests: (String, String),
    /// Of the version that is not the replica's present one.
    meters: Arc<Meters>,
    share: Arc<Share>,
    state: Vec<u8>,
    /// What the old one had counted when this began.
    before: Counted,
    /// Whether the new one is the replica's present one.
    is_adopted: bool,
}

/// What one version has counted.
#[derive(Clone, Default)]
struct Counted {
    connections: u64,
    errors: u64,
    answers: TimesThen,
}

impl Counted {
    fn of(meters: &Meters) -> Self {
        let traffic = meters.traffic();
        Self {
            connections: traffic.total.load(Ordering::Relaxed),
            errors: traffic.errors.load(Ordering::Relaxed),
            answers: traffic.answers.now(),
        }
    }

    /// What was counted since.
    fn since(&self, before: &Self) -> Observation {
        let answers = self.answers.since(&before.answers);
        Observation {
            connections: self.connections.saturating_sub(before.connections),
            errors: self.errors.saturating_sub(before.errors),
            faults: 0,
            median: answers.percentile(50),
            p99: answers.percentile(99),
        }
    }
}

impl Ongoing {
    fn key(&self, which: Which) -> TaskKey {
        match which {
            Which::Old => self.old,
            Which::New => self.new,
        }
    }

    /// The version that is to take the other's place.
    pub(super) const fn new_key(&self) -> TaskKey {
        self.new
    }

    /// Whether it is one of that rollout's.
    pub(super) const fn is_of(&self, rollout: u64) -> bool {
        self.rollout == rollout
    }

    /// Where it is, in a word for people.
    pub(super) const fn step(&self) -> &'static str {
        self.model.step()
    }

    /// The life beside the replica's present one, while there is one.
    fn key_beside(&self) -> Option<(TaskKey, Beside)> {
        let beside = if self.is_adopted {
            (self.old, Beside::Last)
        } else {
            (self.new, Beside::Next)
        };
        self.model.has_both().then_some(beside)
    }

    /// What is shown of that life.
    pub(super) fn beside(&self, member: &Member) -> Option<TaskStatus> {
        let (key, beside) = self.key_beside()?;
        let running = match beside {
            Beside::Last => member.previous.as_ref()?,
            Beside::Next => &self.next,
        };
        Some(TaskStatus {
            generation: key.generation,
            state: match self.meters.state() {
                TaskState::Waiting if !self.is_adopted && !self.model.serves() => {
                    TaskState::Starting
                }
                state => state,
            },
            beside: Some(beside),
            worker: self.worker.try_into().ok(),
            reason: Some(self.step().to_owned()),
            ..member.row(&running.spec, &self.meters, &self.share)
        })
    }

    /// When its model wants to hear of the time.
    pub(super) const fn alarm(&self) -> Option<wharf_model::Instant> {
        self.model.alarm()
    }
}

impl Supervisor {
    /// Stops one life of a replica: of two the one that is to take over, or to go, at once;
    /// otherwise the present one, as its replica.
    pub(super) fn stop_life(&mut self, selector: Selector) -> (Reply, Going) {
        let is_meant = |key: TaskKey| {
            let member = self.members.get(key.replica);
            let is_its = member.is_some_and(|it| selector.matches(&it.spec.name, it.index));
            is_its && selector.generation == Some(key.generation)
        };
        let beside = self.ongoing.iter().find(|it| {
            let key = it.key_beside();
            key.is_some_and(|(key, _)| is_meant(key))
        });
        if let Some(new) = beside.map(Ongoing::new_key) {
            let why = format!("{selector} was stopped");
            self.drive(new, Event::Cancel(why.clone()));
            // It may be left to end with its connections now, for which nobody waits.
            let going = self.drive(new, Event::Cancel(why));
            if self.ongoing.iter().any(|it| it.new == new) {
                let why = format!("{selector} takes the other's place at this moment: ask again");
                return (Reply::Denied(why), going);
            }
            return (Reply::Begun, going);
        }
        let found = self.find(&selector);
        let is_in_place = |it: &Ongoing| found.contains(&it.new.replica) && !it.is_adopted;
        if self.ongoing.iter().any(is_in_place) {
            let replica = Selector {
                generation: None,
                ..selector.clone()
            };
            let why = format!(
                "{selector} serves until the upgrade is through: stop {replica} for good, or the \
                 generation after it"
            );
            return (Reply::Denied(why), Going::On);
        }
        self.cancel_upgrades(&found, "the task was stopped meanwhile");
        self.each(selector, Fact::Stop)
    }

    /// Takes in what the asker says.
    pub(super) fn hear_asker(&mut self, said: Said) -> Going {
        let (new, answer) = match said {
            Said::Prepared(id, prepared) => return self.prepared(id, prepared),
            Said::Answered(new, answer) => (new, answer),
        };
        let event = match answer {
            Answer::Review(plan) => Event::Reviewed(plan),
            Answer::Judge(judgement) => Event::Judged(judgement),
            Answer::Transform(Ok(state)) => {
                if let Some(ongoing) = self.ongoing.iter_mut().find(|it| it.new == new) {
                    ongoing.state = state;
                }
                Event::Transformed
            }
            Answer::Transform(Err(reason)) => Event::TransformFailed(reason),
            // An answer is of its question's kind.
            _ => return Going::On,
        };
        self.drive(new, event)
    }

    /// Begins to put a version, on the worker that has the present one, in the place of
    /// that; by this plan, if nobody is to be asked for one. `digests` are those of the
    /// old and the new image.
    pub(super) fn begin_upgrade(
        &mut self,
        rollout: u64,
        (new, worker): (TaskKey, usize),
        next: Running,
        digests: (String, String),
        plan: Option<Plan>,
    ) -> Going {
        let Some(member) = self.members.get(new.replica) else {
            return Going::On;
        };
        let exclusive = next.spec.blocks.iter().any(|it| !it.is_private());
        let image = next.spec.image.display().to_string();
        self.ongoing.push(Ongoing {
            rollout,
            model: Upgrade::new(exclusive),
            old: self.model.key(new.replica),
            new,
            worker,
            digests,
            next,
            meters: Arc::default(),
            share: Arc::new(Share::new(0)),
            state: Vec::new(),
            before: Counted::of(&member.meters),
            is_adopted: false,
        });
        self.note(new, EventKind::UpgradeBegun, format!("to {image}"));
        self.drive(new, Event::Begin(plan))
    }

    /// Tells an upgrade what happened and does what it says.
    pub(super) fn drive(&mut self, new: TaskKey, event: Event) -> Going {
        let now = self.now();
        let Some(at) = self.ongoing.iter().position(|it| it.new == new) else {
            return Going::On;
        };
        let Some(ongoing) = self.ongoing.get_mut(at) else {
            return Going::On;
        };
        let actions = ongoing.model.handle(now, event);
        let mut going = Going::On;
        for action in actions {
            if self.act(new, action) == Going::Over {
                going = Going::Over;
            }
        }
        self.ongoing.retain(|it| !it.model.is_over());
        going
    }

    fn act(&mut self, new: TaskKey, action: Action) -> Going {
        let Some(ongoing) = self.ongoing.iter_mut().find(|it| it.new == new) else {
            return Going::On;
        };
        let (old, worker) = (ongoing.old, ongoing.worker);
        match action {
            Action::Review => self.ask(new, Question::Review),
            Action::Boot => self.boot_heir(new),
            Action::AskHandOver => self.send(worker, ToWorker::HandOver(old)),
            Action::Transform => return self.transform(new),
            Action::Start => {
                let state = std::mem::take(&mut ongoing.state);
                let is_beside = ongoing.model.runs_beside();
                let begin = ToWorker::Begin {
                    key: new,
                    state,
                    is_beside,
                };
                self.send(worker, begin);
            }
            Action::CutOver => self.send(worker, ToWorker::CutOver { old, new }),
            Action::Resume => self.send(worker, ToWorker::Resume(old)),
            Action::Share(percent) => {
                ongoing.share.set(percent);
                if let Some(member) = self.members.get(new.replica) {
                    member.share.set(Share::ALL.saturating_sub(percent));
                }
                self.shared.board.knock();
                if (1..Share::ALL).contains(&percent) {
                    let detail = format!("{percent} % of new connections");
                    self.note(new, EventKind::UpgradeShared, detail);
                }
            }
            Action::Judge => self.judge(new),
            Action::Adopt => return self.adopt(new),
            Action::Count(which) => {
                let meters = if which == Which::New || ongoing.is_adopted {
                    &ongoing.meters
                } else {
                    return Going::On;
                };
                let left = meters.traffic().open.load(Ordering::Relaxed);
                return self.drive(new, Event::Left(left));
            }
            Action::Stop(which) => {
                let key = ongoing.key(which);
                self.send(worker, ToWorker::Stop(key));
            }
            Action::Kill(which) => {
                let key = ongoing.key(which);
                self.send(worker, ToWorker::Kill(key));
            }
            Action::Decided(verdict) => return self.decided(new, verdict),
        }
        Going::On
    }

    /// Asks the upgrader about an upgrade.
    fn ask(&self, new: TaskKey, question: impl FnOnce(Proposal) -> Question) {
        let Some(ongoing) = self.ongoing.iter().find(|it| it.new == new) else {
            return;
        };
        let Some(member) = self.members.get(new.replica) else {
            return;
        };
        let schema = |image: Option<&Arc<Image>>| image.map_or(0, |it| it.manifest().state_schema);
        let labels = ongoing.next.spec.labels.iter();
        let proposal = Proposal {
            now: wharf_policy::now().as_nanos(),
            replica: u32::try_from(new.replica).unwrap_or(u32::MAX),
            old: Version {
                digest: ongoing.digests.0.clone(),
                generation: ongoing.old.generation,
                state_schema: schema(member.image.as_ref()),
            },
            new: Version {
                digest: ongoing.digests.1.clone(),
                generation: new.generation,
                state_schema: schema(Some(&ongoing.next.image)),
            },
            connections: member.meters.traffic().open.load(Ordering::Relaxed),
            labels: labels
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        };
        self.asker.send(Job::Ask(new, question(proposal)));
    }

    fn boot_heir(&self, new: TaskKey) {
        let Some(ongoing) = self.ongoing.iter().find(|it| it.new == new) else {
            return;
        };
        if let Some(member) = self.members.get(new.replica) {
            let birth = Birth {
                spec: Arc::clone(&ongoing.next.spec),
                image: Some(Arc::clone(&ongoing.next.image)),
                meters: Arc::clone(&ongoing.meters),
                share: Arc::clone(&ongoing.share),
                heir_of: Some(ongoing.old),
                ..member.birth(new)
            };
            self.send(ongoing.worker, ToWorker::Boot(Box::new(birth)));
        }
    }

    /// Formats that are alike need nobody to turn one into the other.
    fn transform(&mut self, new: TaskKey) -> Going {
        let Some(ongoing) = self.ongoing.iter_mut().find(|it| it.new == new) else {
            return Going::On;
        };
        let old = self
            .members
            .get(new.replica)
            .and_then(|it| it.image.as_ref());
        let old_schema = old.map_or(0, |it| it.manifest().state_schema);
        let new_schema = ongoing.next.image.manifest().state_schema;
        if old_schema == new_schema || ongoing.state.is_empty() {
            return self.drive(new, Event::Transformed);
        }
        let state = std::mem::take(&mut ongoing.state);
        self.ask(new, |proposal| Question::Transform(proposal, state));
        Going::On
    }

    fn judge(&self, new: TaskKey) {
        let Some(ongoing) = self.ongoing.iter().find(|it| it.new == new) else {
            return;
        };
        if let Some(member) = self.members.get(new.replica) {
            let old = Counted::of(&member.meters).since(&ongoing.before);
            let new_one = Counted::of(&ongoing.meters).since(&Counted::default());
            self.ask(new, |proposal| Question::Judge(proposal, old, new_one));
        }
    }

    /// The new version is the replica from now on.
    fn adopt(&mut self, new: TaskKey) -> Going {
        let Some(ongoing) = self.ongoing.iter_mut().find(|it| it.new == new) else {
            return Going::On;
        };
        ongoing.is_adopted = true;
        let (id, worker) = (ongoing.rollout, ongoing.worker);
        // Nobody is to go back to what has just failed.
        let is_undone = self.rollouts.iter().any(|it| it.is_undoing(id));
        if let Some(member) = self.members.get_mut(new.replica) {
            let image = member.image.replace(Arc::clone(&ongoing.next.image));
            let spec = std::mem::replace(&mut member.spec, Arc::clone(&ongoing.next.spec));
            let previous = image.map(|image| Running { spec, image });
            member.previous = previous.filter(|_| !is_undone);
            // What is in the file by then is another matter.
            member.pinned = Some(Arc::clone(&ongoing.next.image));
            std::mem::swap(&mut member.meters, &mut ongoing.meters);
            std::mem::swap(&mut member.share, &mut ongoing.share);
            member.reason = None;
        }
        self.tell(Fact::Adopted(new, worker))
    }

    fn decided(&mut self, new: TaskKey, verdict: Verdict) -> Going {
        let Some(ongoing) = self.ongoing.iter().find(|it| it.new == new) else {
            return Going::On;
        };
        let id = ongoing.rollout;
        let (kind, detail) = match &verdict {
            Verdict::Kept => {
                let next = &ongoing.next.spec.image;
                (EventKind::Upgraded, format!("to {}", next.display()))
            }
            Verdict::Refused(reason) => (EventKind::UpgradeRefused, reason.clone()),
            Verdict::RolledBack(reason) => (EventKind::UpgradeRolledBack, reason.clone()),
        };
        self.note(new, kind, detail);
        if verdict != Verdict::Kept {
            return self.replica_failed(id, new.replica, verdict);
        }
        self.replica_kept(id, new.replica)
    }

    /// The new version of an upgrade in which a guest is, when that is what it is and
    /// not the replica's present life.
    pub(super) fn heir(&self, key: TaskKey) -> Option<TaskKey> {
        let is_it = |it: &&Ongoing| it.new == key && !it.is_adopted;
        self.ongoing.iter().find(is_it).map(|it| it.new)
    }

    /// The new version of the upgrade in which this one is the old.
    pub(super) fn heir_of(&self, old: TaskKey) -> Option<TaskKey> {
        self.ongoing
            .iter()
            .find(|it| it.old == old)
            .map(|it| it.new)
    }

    /// What a worker says of a hand-over.
    pub(super) fn handed_over(&mut self, old: TaskKey, handed: Handed) -> Going {
        let Some(ongoing) = self.ongoing.iter_mut().find(|it| it.old == old) else {
            return Going::On;
        };
        let (new, id) = (ongoing.new, ongoing.rollout);
        let event = match handed {
            Handed::State(state) => {
                let len = u64::try_from(state.len()).unwrap_or(u64::MAX);
                ongoing.state = state;
                if let Some(status) = self.rollout_status(id) {
                    status.state_bytes = status.state_bytes.saturating_add(len);
                }
                Event::HandedOver { waits: true }
            }
            Handed::Nothing => Event::HandedOver { waits: false },
            Handed::Failed(reason) => Event::HandOverFailed(reason),
        };
        self.drive(new, event)
    }

    /// What a worker says of a cut-over.
    pub(super) fn cut_over(&mut self, new: TaskKey, cut: Result<Cut, String>) -> Going {
        let event = match cut {
            Ok(Cut { connections, pause }) => {
                if let Some(ongoing) = self.ongoing.iter().find(|it| it.new == new) {
                    let id = ongoing.rollout;
                    if let Some(member) = self.members.get(new.replica) {
                        // It is gone.
                        ongoing.meters.absorb(&member.meters);
                    }
                    if let Some(status) = self.rollout_status(id) {
                        status.connections = status.connections.saturating_add(connections);
                        status.pause_ns = status.pause_ns.max(nanos(pause));
                    }
                }
                Event::Cut
            }
            Err(reason) => Event::CutFailed(reason),
        };
        self.drive(new, event)
    }

    /// The worker on which both versions are.
    pub(super) fn heir_is_at(&mut self, new: TaskKey, worker: usize) {
        if let Some(ongoing) = self.ongoing.iter_mut().find(|it| it.new == new) {
            ongoing.worker = worker;
        }
    }

    /// One of the versions has ended by itself, in these words.
    pub(super) fn version_ended(&mut self, key: TaskKey, words: String) -> Going {
        let Some(ongoing) = self
            .ongoing
            .iter()
            .find(|it| it.old == key || it.new == key)
        else {
            return Going::On;
        };
        let which = if ongoing.old == key {
            Which::Old
        } else {
            Which::New
        };
        if which == Which::Old
            && ongoing.is_adopted
            && let Some(member) = self.members.get(key.replica)
        {
            member.meters.absorb(&ongoing.meters);
        }
        self.drive(ongoing.new, Event::Ended(which, words))
    }

    /// Tells every upgrade that time has passed.
    pub(super) fn tick_upgrades(&mut self) -> Going {
        let keys: Vec<TaskKey> = self.ongoing.iter().map(|it| it.new).collect();
        let mut going = Going::On;
        for key in keys {
            if self.drive(key, Event::Tick) == Going::Over {
                going = Going::Over;
            }
        }
        going
    }
}
