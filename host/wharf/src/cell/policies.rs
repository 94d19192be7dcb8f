//! A cell's policy slots: what their plugins are told of the tasks, and what
//! operators are told of the plugins.

use std::sync::Arc;

use wharf_model::policy::SlotName;
use wharf_policy::{Notice, NoticeKind, SlotConfig, Slots, SwapOptions, TaskFacts, default_cache};

use super::events::EventLog;
use super::protocol::EventKind;
use super::{CellConfig, CellError, PolicyError, PolicySpec, TaskSpec};

/// The slots of a cell, with nothing in them but what is built in.
pub(super) fn slots(config: &CellConfig, events: &Arc<EventLog>) -> Arc<Slots> {
    let given = |slot: SlotName| config.policies.iter().find(|it| it.slot == slot);
    let slot_config = |slot| given(slot).map_or_else(|| SlotConfig::of(slot), |it| it.config);
    let events = Arc::clone(events);
    let tell = move |notice: Notice| {
        let subject = format!("policy.{}", notice.slot);
        let detail = format!("{}: {}", notice.plugin, notice.detail);
        events.add(Some(subject), 0, kind(notice.kind), detail);
    };
    Slots::new(facts(&config.tasks), slot_config, default_cache(), tell)
}

/// Puts in what the configuration asks for. All of it has to be good: tasks are not
/// run under another policy than their operator wants.
pub(super) fn install(slots: &Arc<Slots>, policies: &[PolicySpec]) -> Result<(), CellError> {
    for policy in policies {
        let slot = policy.slot;
        let refused = |source| CellError::Policy { slot, source };
        let plugin = slots
            .open(&policy.plugin)
            .map_err(|e| refused(PolicyError::from(e)))?;
        let options = SwapOptions {
            settings: Some(policy.settings.clone()),
            ..SwapOptions::default()
        };
        slots
            .slot(slot)
            .swap(&plugin, &options)
            .map_err(|e| refused(PolicyError::from(e)))?;
    }
    Ok(())
}

/// Every replica, in the order in which the cell numbers them.
fn facts(tasks: &[TaskSpec]) -> Vec<TaskFacts> {
    let replica = |task: &TaskSpec, index| TaskFacts {
        name: task.name.clone(),
        index,
        weight: task.weight,
        labels: task.labels.clone().into_iter().collect(),
    };
    tasks
        .iter()
        .flat_map(|task| (0..task.replicas).map(move |index| replica(task, index)))
        .collect()
}

const fn kind(kind: NoticeKind) -> EventKind {
    match kind {
        NoticeKind::Swapped => EventKind::PolicySwapped,
        NoticeKind::Confirmed => EventKind::PolicyConfirmed,
        NoticeKind::Struck => EventKind::PolicyStruck,
        NoticeKind::Quarantined => EventKind::PolicyQuarantined,
        NoticeKind::Restored => EventKind::PolicyRestored,
        NoticeKind::RolledBack => EventKind::PolicyRolledBack,
    }
}
