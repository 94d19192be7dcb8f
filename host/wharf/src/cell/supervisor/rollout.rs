//! Rollouts: what an operator asked for, one image for some replicas, one after the
//! other. When one fails, those before it get their old version again.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use wharf_model::cell::{State, TaskKey};
use wharf_model::policy::Plan;
use wharf_model::upgrade::{Event, Verdict};

use super::upgrade::{Ongoing, Running};
use super::{Going, Member, NoSuchTask, Supervisor, TaskSpec};
use crate::cell::asker::{Job, Prepared};
use crate::cell::protocol::{EventKind, Reply, Selector, UpgradeState, UpgradeStatus};

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
    /// Why the operator wants no more of it.
    called_off: Option<String>,
}

/// What is to run in place of what does.
enum Wish {
    /// This image, by the policy's plan.
    Image(Arc<TaskSpec>, Option<Prepared>),
    /// What each replica ran before.
    Previous,
}

impl Rollout {
    /// Whether it is this one, and replicas get their old version again.
    pub(super) fn is_undoing(&self, id: u64) -> bool {
        self.status.id == id && self.undoing.is_some()
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
            clones: None,
            ..TaskSpec::clone(&member.spec)
        });
        let to = image.display().to_string();
        let status = self.roll_out(
            selector,
            &replicas,
            to,
            Wish::Image(Arc::clone(&spec), None),
        );
        let image = |it: &usize| Some((*it, self.members.get(*it)?.image.clone()?));
        let running = replicas.iter().filter_map(image).collect();
        self.asker.send(Job::Prepare {
            id: status.id,
            spec,
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
                .filter(|other| other.is_of(it.status.id))
                .map(Ongoing::step)
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
            return Err(Box::new(Reply::Refused(NoSuchTask { selector })));
        }
        for replica in &replicas {
            let Some(member) = self.members.get(*replica) else {
                continue;
            };
            let name = member.name();
            let of = |it: &Rollout| it.left.contains(replica) || it.done.contains(replica);
            let is_ongoing = self
                .ongoing
                .iter()
                .any(|it| it.new_key().replica == *replica);
            if is_ongoing || self.rollouts.iter().any(of) {
                return Err(denied(format!(
                    "{name} is being upgraded: wait until that is over, or end it with `wharf restart`"
                )));
            }
            if !matches!(self.model.state(*replica), State::Up { .. }) || member.image.is_none() {
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
            called_off: None,
        });
        status
    }

    /// Takes in what became of the image that is to run.
    pub(super) fn prepared(&mut self, id: u64, prepared: Result<Prepared, String>) -> Going {
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
                self.refuse_rollout(id, reason);
                Going::On
            }
        }
    }

    /// Ends a rollout of which no replica has begun.
    fn refuse_rollout(&mut self, id: u64, reason: String) {
        if let Some(rollout) = self.rollouts.iter().find(|it| it.status.id == id) {
            let task = Some(rollout.status.task.to_string());
            self.events
                .add(task, 0, EventKind::UpgradeRefused, reason.clone());
        }
        self.end_rollout(id, UpgradeState::Refused, Some(reason));
    }

    /// Begins with the next replica of a rollout, or ends it.
    fn next_replica(&mut self, id: u64) -> Going {
        let Some(rollout) = self.rollouts.iter_mut().find(|it| it.status.id == id) else {
            return Going::On;
        };
        let Some(replica) = rollout.left.pop_front() else {
            let (done, all) = (rollout.status.done, rollout.status.replicas);
            match (rollout.undoing.clone(), rollout.called_off.clone()) {
                (Some(reason), _) => self.end_rollout(id, UpgradeState::RolledBack, Some(reason)),
                (None, Some(why)) => {
                    let reason = format!("{why}: {done} of {all} have the new version");
                    self.end_rollout(id, UpgradeState::Refused, Some(reason));
                }
                (None, None) => self.end_rollout(id, UpgradeState::Kept, None),
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
        let old_digest = match &rollout.wish {
            Wish::Image(_, Some(prepared)) => prepared.running.get(&replica).cloned(),
            _ => None,
        };
        let begun = next.and_then(|next| Some((next, self.model.begin_heir(replica)?)));
        let Some((next, (new, worker))) = begun else {
            let reason = "it does not run any more".to_owned();
            return self.replica_failed(id, replica, Verdict::Refused(reason));
        };
        let digests = (old_digest.unwrap_or_default(), digest);
        self.begin_upgrade(id, (new, worker), next, digests, plan)
    }

    /// What came of a replica's upgrade, when it was not kept.
    pub(super) fn replica_failed(&mut self, id: u64, replica: usize, verdict: Verdict) -> Going {
        let (state, reason) = match verdict {
            Verdict::Kept => return Going::On,
            Verdict::Refused(reason) => (UpgradeState::Refused, reason),
            Verdict::RolledBack(reason) => (UpgradeState::RolledBack, reason),
        };
        let name = self.members.get(replica).map(Member::name);
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

    /// A replica has what it was to have.
    pub(super) fn replica_kept(&mut self, id: u64, replica: usize) -> Going {
        if let Some(rollout) = self.rollouts.iter_mut().find(|it| it.status.id == id)
            && rollout.undoing.is_none()
        {
            rollout.done.push(replica);
            rollout.status.done = rollout.status.done.saturating_add(1);
        }
        self.next_replica(id)
    }

    /// The status of a rollout, to add to.
    pub(super) fn rollout_status(&mut self, id: u64) -> Option<&mut UpgradeStatus> {
        let mut rollouts = self.rollouts.iter_mut().map(|it| &mut it.status);
        rollouts.find(|it| it.id == id)
    }

    /// The operator wants something else of these replicas.
    pub(super) fn cancel_upgrades(&mut self, replicas: &[usize], why: &str) {
        for rollout in &mut self.rollouts {
            let before = rollout.left.len();
            rollout.left.retain(|it| !replicas.contains(it));
            if rollout.left.len() < before {
                rollout.called_off = Some(why.to_owned());
            }
        }
        let concerned = self.ongoing.iter().map(Ongoing::new_key);
        let concerned: Vec<TaskKey> = concerned
            .filter(|key| replicas.contains(&key.replica))
            .collect();
        for key in concerned {
            self.drive(key, Event::Cancel(why.to_owned()));
        }
        // One whose image is still being read has nothing to read it for.
        let is_idle = |it: &&Rollout| {
            let is_its = |other: &Ongoing| other.is_of(it.status.id);
            it.left.is_empty() && !self.ongoing.iter().any(is_its)
        };
        let idle = self.rollouts.iter().filter(is_idle);
        let idle: Vec<u64> = idle.map(|it| it.status.id).collect();
        for id in idle {
            self.refuse_rollout(id, why.to_owned());
        }
    }
}

fn denied(reason: String) -> Box<Reply> {
    Box::new(Reply::Denied(reason))
}
