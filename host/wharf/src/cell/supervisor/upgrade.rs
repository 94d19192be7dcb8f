//! Upgrades: what the model decides of them, carried out.
//!
//! A *rollout* is what an operator asked for: one image for some replicas, one after
//! the other. For each it has one upgrade of the model's, which is *ongoing* until
//! nothing of the version is left that had to go.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use wharf_machine::image::Image;
use wharf_model::Outcome;
use wharf_model::cell::{Event as Fact, TaskKey};
use wharf_model::policy::{Answer, Observation, Plan, Proposal, Question, Version};
use wharf_model::upgrade::{Action, Event, Upgrade, Verdict, Which};

use super::{Going, Supervisor, TaskSpec};
use crate::cell::asker::{Job, Prepared, Said};
use crate::cell::meters::Meters;
use crate::cell::protocol::{
    Beside, EventKind, Reply, Selector, TaskState, TaskStatus, UpgradeState, UpgradeStatus,
};
use crate::cell::worker::{Birth, Cut, Handed, ToWorker};
use crate::net::{Share, TimesThen};

/// Rollouts that are remembered.
const REMEMBERED: usize = 64;

/// What an operator asked for.
pub(super) struct Rollout {
    status: UpgradeStatus,
    /// What is to run. Of a rollback, what ran in each replica before.
    wish: Wish,
    /// Replicas that are still to be upgraded.
    left: VecDeque<usize>,
    done: Vec<usize>,
    /// Why the replicas that are done are to get their old version again.
    undoing: Option<String>,
}

/// What is to run in place of what does.
enum Wish {
    /// This image, by the policy's plan.
    Image(Arc<TaskSpec>, Option<Prepared>),
    /// What each replica ran before.
    Previous,
}

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

    /// When its model wants to hear of the time.
    pub(super) const fn alarm(&self) -> Option<wharf_model::Instant> {
        self.model.alarm()
    }
}

impl Supervisor {
    /// Begins to put another image in the place of what a selector means.
    pub(super) fn upgrade(&mut self, selector: Selector, image: &Path) -> Reply {
        let replicas = match self.upgradable(&selector) {
            Ok(replicas) => replicas,
            Err(refusal) => return *refusal,
        };
        let Some(member) = replicas.first().and_then(|it| self.members.get(*it)) else {
            return Reply::Denied("there is nothing to upgrade".to_owned());
        };
        let spec = Arc::new(TaskSpec {
            image: image.to_owned(),
            ..TaskSpec::clone(&member.spec)
        });
        let to = image.display().to_string();
        let status = self.roll_out(
            selector,
            &replicas,
            to,
            Wish::Image(Arc::clone(&spec), None),
        );
        let images = replicas.iter().filter_map(|it| self.members.get(*it));
        let running = images.filter_map(|it| it.image.clone()).collect();
        self.asker.send(Job::Prepare {
            id: status.id,
            spec,
            image: None,
            running,
        });
        Reply::Upgrading(status)
    }

    /// Begins to put what ran before in the place of what a selector means.
    pub(super) fn roll_back(&mut self, selector: Selector) -> Reply {
        let replicas = match self.upgradable(&selector) {
            Ok(replicas) => replicas,
            Err(refusal) => return *refusal,
        };
        let before: Option<Vec<_>> = replicas
            .iter()
            .map(|it| self.members.get(*it)?.previous.as_ref())
            .collect();
        let first = before.as_ref().and_then(|before| before.first());
        let Some(first) = first else {
            return Reply::Denied(format!(
                "{selector} has not been upgraded: there is nothing to go back to"
            ));
        };
        let to = first.spec.image.display().to_string();
        let status = self.roll_out(selector, &replicas, to, Wish::Previous);
        self.next_replica(status.id);
        Reply::Upgrading(status)
    }

    /// Every rollout that is remembered.
    pub(super) fn upgrades(&self) -> Vec<UpgradeStatus> {
        let running = self.rollouts.iter().map(|it| {
            let ongoing = self.ongoing.iter().rev();
            let step = ongoing
                .filter(|other| other.rollout == it.status.id)
                .map(|it| it.model.step())
                .next();
            UpgradeStatus {
                step: Some(step.unwrap_or("reading the image").to_owned()),
                ..it.status.clone()
            }
        });
        self.past_rollouts.iter().cloned().chain(running).collect()
    }

    /// Replicas that can be upgraded, all that a selector means.
    fn upgradable(&self, selector: &Selector) -> Result<Vec<usize>, Box<Reply>> {
        let replicas = self.find(selector);
        if replicas.is_empty() {
            let selector = selector.clone();
            return Err(Box::new(Reply::Refused(super::NoSuchTask { selector })));
        }
        for replica in &replicas {
            let Some(member) = self.members.get(*replica) else {
                continue;
            };
            let name = member.name();
            let of = |it: &Rollout| it.left.contains(replica) || it.done.contains(replica);
            let is_ongoing = self.ongoing.iter().any(|it| it.new.replica == *replica);
            if is_ongoing || self.rollouts.iter().any(of) {
                return Err(denied(format!(
                    "{name} is being upgraded: wait until that is over, or end it with `wharf restart`"
                )));
            }
            if !matches!(
                self.model.state(*replica),
                wharf_model::cell::State::Up { .. }
            ) || member.image.is_none()
            {
                return Err(denied(format!(
                    "{name} does not run: start it with `wharf restart {name}`"
                )));
            }
        }
        Ok(replicas)
    }

    fn roll_out(
        &mut self,
        task: Selector,
        replicas: &[usize],
        to: String,
        wish: Wish,
    ) -> UpgradeStatus {
        self.last_rollout = self.last_rollout.saturating_add(1);
        let first = replicas.first().and_then(|it| self.members.get(*it));
        let status = UpgradeStatus {
            id: self.last_rollout,
            task,
            from: first.map_or_else(String::new, |it| it.spec.image.display().to_string()),
            to,
            state: UpgradeState::Running,
            step: None,
            replicas: u32::try_from(replicas.len()).unwrap_or(u32::MAX),
            done: 0,
            connections: 0,
            state_bytes: 0,
            pause_ns: 0,
            reason: None,
        };
        self.rollouts.push(Rollout {
            status: status.clone(),
            wish,
            left: replicas.iter().copied().collect(),
            done: Vec::new(),
            undoing: None,
        });
        status
    }

    /// Takes in what the asker says.
    pub(super) fn hear_asker(&mut self, said: Said) -> Going {
        match said {
            Said::Prepared(id, prepared) => {
                let Some(rollout) = self.rollouts.iter_mut().find(|it| it.status.id == id) else {
                    return Going::On;
                };
                match (prepared, &mut rollout.wish) {
                    (Ok(prepared), Wish::Image(_, slot)) => {
                        *slot = Some(prepared);
                        self.next_replica(id)
                    }
                    (Ok(_), Wish::Previous) => Going::On,
                    (Err(reason), _) => {
                        self.end_rollout(id, UpgradeState::Refused, Some(reason));
                        Going::On
                    }
                }
            }
            Said::Answered {
                id,
                replica,
                answer,
            } => {
                let is_it = |it: &Ongoing| it.rollout == id && it.new.replica == replica;
                let Some(at) = self.ongoing.iter().position(is_it) else {
                    return Going::On;
                };
                let event = match answer {
                    Answer::Review(plan) => Event::Reviewed(plan),
                    Answer::Judge(judgement) => Event::Judged(judgement),
                    Answer::Transform(Ok(state)) => {
                        if let Some(ongoing) = self.ongoing.get_mut(at) {
                            ongoing.state = state;
                        }
                        Event::Transformed
                    }
                    Answer::Transform(Err(reason)) => Event::TransformFailed(reason),
                    // An answer is of its question's kind.
                    _ => return Going::On,
                };
                self.drive(self.key_at(at), event)
            }
        }
    }

    fn key_at(&self, at: usize) -> TaskKey {
        let none = TaskKey {
            replica: usize::MAX,
            generation: 0,
        };
        self.ongoing.get(at).map_or(none, |it| it.new)
    }

    /// Begins with the next replica of a rollout, or ends it.
    fn next_replica(&mut self, id: u64) -> Going {
        let Some(rollout) = self.rollouts.iter_mut().find(|it| it.status.id == id) else {
            return Going::On;
        };
        let Some(replica) = rollout.left.pop_front() else {
            let undone = rollout.undoing.clone();
            match undone {
                Some(reason) => self.end_rollout(id, UpgradeState::RolledBack, Some(reason)),
                None => self.end_rollout(id, UpgradeState::Kept, None),
            }
            return Going::On;
        };
        let previous = self.members.get(replica).and_then(|it| it.previous.clone());
        let (next, digest, plan) = match (&rollout.wish, rollout.undoing.is_some()) {
            (Wish::Image(spec, Some(prepared)), false) => {
                let next = Running {
                    spec: Arc::clone(spec),
                    image: Arc::clone(&prepared.image),
                };
                (Some(next), prepared.digest.clone(), None)
            }
            _ => (previous, String::new(), Some(Plan::Replace)),
        };
        let place = rollout.done.len();
        let old_digest = match &rollout.wish {
            Wish::Image(_, Some(prepared)) => prepared.running.get(place).cloned(),
            _ => None,
        };
        let begun = next.and_then(|next| Some((next, self.model.begin_heir(replica)?)));
        let Some((next, (new, worker))) = begun else {
            let reason = "it does not run any more".to_owned();
            return self.replica_failed(id, replica, Verdict::Refused(reason));
        };
        let Some(member) = self.members.get(replica) else {
            return Going::On;
        };
        let old = self.model.key(replica);
        let exclusive = next.spec.blocks.iter().any(|it| !it.is_private());
        let image = next.spec.image.display().to_string();
        self.ongoing.push(Ongoing {
            rollout: id,
            model: Upgrade::new(exclusive),
            old,
            new,
            worker,
            digests: (old_digest.unwrap_or_default(), digest),
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

    /// What came of a replica's upgrade, when it was not kept.
    fn replica_failed(&mut self, id: u64, replica: usize, verdict: Verdict) -> Going {
        let (state, reason) = match verdict {
            Verdict::Kept => return Going::On,
            Verdict::Refused(reason) => (UpgradeState::Refused, reason),
            Verdict::RolledBack(reason) => (UpgradeState::RolledBack, reason),
        };
        let name = self.members.get(replica).map(super::Member::name);
        let name = name.unwrap_or_default();
        let Some(rollout) = self.rollouts.iter_mut().find(|it| it.status.id == id) else {
            return Going::On;
        };
        let reason = format!("{name}: {reason}");
        rollout.left.clear();
        if rollout.done.is_empty() || rollout.undoing.is_some() {
            let reason = rollout.undoing.take().map_or_else(
                || reason.clone(),
                |first| format!("{first}; and then {reason}"),
            );
            self.end_rollout(id, state, Some(reason));
            return Going::On;
        }
        rollout.undoing = Some(reason);
        rollout.left = rollout.done.drain(..).rev().collect();
        self.next_replica(id)
    }

    fn end_rollout(&mut self, id: u64, state: UpgradeState, reason: Option<String>) {
        let Some(at) = self.rollouts.iter().position(|it| it.status.id == id) else {
            return;
        };
        let rollout = self.rollouts.remove(at);
        if let (UpgradeState::Refused, Some(reason)) = (state, &reason)
            && rollout.status.done == 0
        {
            let task = Some(rollout.status.task.to_string());
            self.events
                .add(task, 0, EventKind::UpgradeRefused, reason.clone());
        }
        self.past_rollouts.push_back(UpgradeStatus {
            state,
            reason,
            step: None,
            ..rollout.status
        });
        if self.past_rollouts.len() > REMEMBERED {
            self.past_rollouts.pop_front();
        }
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
                self.send(worker, ToWorker::Begin(new, state));
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
        self.asker.send(Job::Ask {
            id: ongoing.rollout,
            replica: new.replica,
            question: question(proposal),
        });
    }

    fn boot_heir(&self, new: TaskKey) {
        let Some(ongoing) = self.ongoing.iter().find(|it| it.new == new) else {
            return;
        };
        if let Some(member) = self.members.get(new.replica) {
            let birth = Birth {
                key: new,
                task: member.task,
                joins: member.joins,
                spec: Arc::clone(&ongoing.next.spec),
                image: Some(Arc::clone(&ongoing.next.image)),
                console: Arc::clone(&member.console),
                meters: Arc::clone(&ongoing.meters),
                share: Arc::clone(&ongoing.share),
                log: member.log.clone(),
                heir_of: Some(ongoing.old),
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
        let mut rollouts = self.rollouts.iter().filter(|it| it.status.id == id);
        let is_undone = rollouts.any(|it| it.undoing.is_some());
        if let Some(member) = self.members.get_mut(new.replica) {
            let image = member.image.replace(Arc::clone(&ongoing.next.image));
            let spec = std::mem::replace(&mut member.spec, Arc::clone(&ongoing.next.spec));
            // Nobody is to go back to what has just failed.
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
        if let Some(rollout) = self.rollouts.iter_mut().find(|it| it.status.id == id)
            && rollout.undoing.is_none()
        {
            rollout.done.push(new.replica);
            rollout.status.done = rollout.status.done.saturating_add(1);
        }
        self.next_replica(id)
    }

    /// An event that is no reason for where a replica is.
    fn note(&self, key: TaskKey, kind: EventKind, detail: String) {
        if let Some(member) = self.members.get(key.replica) {
            self.events
                .add(Some(member.name()), key.generation, kind, detail);
        }
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
                if let Some(rollout) = self.rollouts.iter_mut().find(|it| it.status.id == id) {
                    let bytes = &mut rollout.status.state_bytes;
                    *bytes = bytes.saturating_add(len);
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
                let ongoing = self.ongoing.iter().find(|it| it.new == new);
                let id = ongoing.map(|it| it.rollout);
                let rollout = self.rollouts.iter_mut().find(|it| Some(it.status.id) == id);
                if let Some(Rollout { status, .. }) = rollout {
                    status.connections = status.connections.saturating_add(connections);
                    status.pause_ns = status.pause_ns.max(nanos(pause));
                }
                if let Some(ongoing) = ongoing
                    && let Some(member) = self.members.get(new.replica)
                {
                    // It is gone.
                    ongoing.meters.absorb(&member.meters);
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

    /// One of the versions has ended by itself.
    pub(super) fn version_ended(&mut self, key: TaskKey, outcome: Outcome) -> Going {
        let words = match outcome {
            Outcome::Exited { status } => format!("exited with status {status}"),
            Outcome::Faulted => "faulted".to_owned(),
            Outcome::Stopped(stop) => stop.to_string(),
        };
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

    /// The operator wants something else of these replicas.
    pub(super) fn cancel_upgrades(&mut self, replicas: &[usize], why: &str) {
        let keys: Vec<TaskKey> = self
            .ongoing
            .iter()
            .filter(|it| replicas.contains(&it.new.replica))
            .map(|it| it.new)
            .collect();
        for rollout in &mut self.rollouts {
            rollout.left.retain(|it| !replicas.contains(it));
        }
        for key in keys {
            self.drive(key, Event::Cancel(why.to_owned()));
        }
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

    /// The lives beside the present ones, of this replica.
    pub(super) fn beside(&self, replica: usize) -> impl Iterator<Item = TaskStatus> {
        let here = self.ongoing.iter();
        let here = here.filter(move |it| it.new.replica == replica && it.model.has_both());
        here.filter_map(move |it| {
            let member = self.members.get(replica)?;
            let (key, beside, running) = if it.is_adopted {
                (it.old, Beside::Last, member.previous.as_ref()?)
            } else {
                (it.new, Beside::Next, &it.next)
            };
            let traffic = it.meters.traffic();
            Some(TaskStatus {
                name: running.spec.name.clone(),
                index: member.index,
                generation: key.generation,
                state: match it.meters.state() {
                    TaskState::Waiting if !it.is_adopted && !it.model.serves() => {
                        TaskState::Starting
                    }
                    state => state,
                },
                image: running.spec.image.display().to_string(),
                memory_bytes: running.spec.boot.memory,
                run_ns: it.meters.run_ns(),
                exits: it.meters.exits(),
                console_bytes: 0,
                connections: traffic.open.load(Ordering::Relaxed),
                connections_total: traffic.total.load(Ordering::Relaxed),
                connection_errors: traffic.errors.load(Ordering::Relaxed),
                received_bytes: traffic.received.load(Ordering::Relaxed),
                sent_bytes: traffic.sent.load(Ordering::Relaxed),
                received_frames_dropped: it.meters.frames().received(),
                sent_frames_dropped: it.meters.frames().sent(),
                restarts: 0,
                exit_status: None,
                weight: running.spec.weight,
                share: it.share.get(),
                beside: Some(beside),
                worker: it.worker.try_into().ok(),
                reason: Some(it.model.step().to_owned()),
            })
        })
    }
}

fn denied(reason: String) -> Box<Reply> {
    Box::new(Reply::Denied(reason))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
