//! What replicas use: the difference of two looks at their counters.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cell::protocol::{TaskState, TaskStatus};
use crate::control::{Client, ClientError};

/// What a replica used within a period.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Usage {
    pub(super) name: String,
    pub(super) index: u32,
    /// Share of one core.
    pub(super) cpu_percent: f64,
    pub(super) exits_per_second: f64,
    pub(super) memory_bytes: u64,
    pub(super) state: TaskState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Name,
    Cpu,
    Exits,
    Memory,
}

/// Counters at a moment.
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) tasks: Vec<TaskStatus>,
}

impl Sample {
    /// Asks the host now.
    pub(super) fn take(client: &Client) -> Result<Self, ClientError> {
        let tasks = client.tasks(None)?;
        let at = Instant::now();
        Ok(Self { at, tasks })
    }

    /// What was used since an earlier sample. A replica that was not there then
    /// used nothing yet.
    pub(super) fn since(&self, earlier: &Self) -> Vec<Usage> {
        let key = |task: &TaskStatus| (task.name.clone(), task.index);
        let before: BTreeMap<_, _> = earlier.tasks.iter().map(|task| (key(task), task)).collect();
        let seconds = self.at.duration_since(earlier.at).as_secs_f64().max(1e-3);
        let usage = |task: &TaskStatus| {
            let then = before.get(&key(task)).copied().unwrap_or(task);
            let run = Duration::from_nanos(task.run_ns.saturating_sub(then.run_ns));
            let exits = u32::try_from(task.exits.saturating_sub(then.exits)).unwrap_or(u32::MAX);
            Usage {
                name: task.name.clone(),
                index: task.index,
                cpu_percent: run.as_secs_f64() / seconds * 100.0,
                exits_per_second: f64::from(exits) / seconds,
                memory_bytes: task.memory_bytes,
                state: task.state,
            }
        };
        self.tasks.iter().map(usage).collect()
    }
}

/// Sorts, what is largest first but for names.
pub(super) fn sort(usages: &mut [Usage], order: Order) {
    usages.sort_by(|a, b| {
        let by_name = || (&a.name, a.index).cmp(&(&b.name, b.index));
        match order {
            Order::Name => by_name(),
            Order::Cpu => b.cpu_percent.total_cmp(&a.cpu_percent).then_with(by_name),
            Order::Exits => b
                .exits_per_second
                .total_cmp(&a.exits_per_second)
                .then_with(by_name),
            Order::Memory => b.memory_bytes.cmp(&a.memory_bytes).then_with(by_name),
        }
    });
}
