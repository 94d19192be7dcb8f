//! Tasks as metrics in the OpenMetrics text format, which Prometheus reads.

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use wharf_policy::SlotStatus;

use super::policy_metrics::Policies;
use crate::cell::protocol::{EventKind, TaskState, TaskStatus};

/// Every state, so that a series is there, at 0, before a task is first in it.
const STATES: [(TaskState, &str); 6] = [
    (TaskState::Starting, "starting"),
    (TaskState::Ready, "ready"),
    (TaskState::Running, "running"),
    (TaskState::Waiting, "waiting"),
    (TaskState::Stopped, "stopped"),
    (TaskState::Faulted, "faulted"),
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Replica {
    task: String,
    index: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReplicaInState {
    task: String,
    index: u32,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

/// The families of a moment. They are made anew each time from what the workers
/// count anyway, and so cost nothing when nobody asks.
#[derive(Default)]
struct Families {
    state: Family<ReplicaInState, Gauge>,
    run: Family<Replica, Counter<f64, AtomicU64>>,
    exits: Family<Replica, Counter>,
    console: Family<Replica, Counter>,
    connections: Family<Replica, Gauge>,
    connected: Family<Replica, Counter>,
    cut_off: Family<Replica, Counter>,
    received: Family<Replica, Counter>,
    sent: Family<Replica, Counter>,
    received_dropped: Family<Replica, Counter>,
    sent_dropped: Family<Replica, Counter>,
    restarts: Family<Replica, Counter>,
    memory: Family<Replica, Gauge<f64, AtomicU64>>,
}

/// The metrics of these replicas and slots, in a cell in which so many events of each
/// kind happened.
pub(super) fn encode(
    tasks: &[TaskStatus],
    events: &[(EventKind, u64)],
    policies: Vec<SlotStatus>,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("wharf");
    let families = Families::default();
    families.register(&mut registry);
    tasks.iter().for_each(|task| families.set(task));

    let number: Gauge = Gauge::default();
    number.set(tasks.len().try_into().unwrap_or(i64::MAX));
    registry.register("tasks", "Replicas of tasks, living or not", number);
    let counted: Family<OfKind, Counter> = Family::default();
    for (kind, count) in events {
        let kind = kind.word();
        counted.get_or_create(&OfKind { kind }).inc_by(*count);
    }
    registry.register("events", "Events since the host began", counted);

    registry.register_collector(Box::new(Policies(policies)));

    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Families {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "task_state",
            "Whether a replica is in a state: 1 for the one it is in",
            self.state.clone(),
        );
        registry.register_with_unit(
            "task_run",
            "Processor time spent in the guest",
            Unit::Seconds,
            self.run.clone(),
        );
        registry.register(
            "task_exits",
            "Times that the guest was left",
            self.exits.clone(),
        );
        registry.register_with_unit(
            "task_console",
            "Bytes written to the console",
            Unit::Bytes,
            self.console.clone(),
        );
        registry.register(
            "task_connections_open",
            "Connections that a replica has",
            self.connections.clone(),
        );
        registry.register(
            "task_connections",
            "Connections that a replica had",
            self.connected.clone(),
        );
        registry.register(
            "task_connection_errors",
            "Connections that were cut off",
            self.cut_off.clone(),
        );
        registry.register_with_unit(
            "task_received",
            "Bytes that came over connections",
            Unit::Bytes,
            self.received.clone(),
        );
        registry.register_with_unit(
            "task_sent",
            "Bytes that went over connections",
            Unit::Bytes,
            self.sent.clone(),
        );
        registry.register(
            "task_received_frames_dropped",
            "Frames for a replica that went nowhere",
            self.received_dropped.clone(),
        );
        registry.register(
            "task_sent_frames_dropped",
            "Frames of a replica that went nowhere",
            self.sent_dropped.clone(),
        );
        registry.register(
            "task_restarts",
            "Times that a replica was started again",
            self.restarts.clone(),
        );
        registry.register_with_unit(
            "task_memory",
            "Memory of the guest",
            Unit::Bytes,
            self.memory.clone(),
        );
    }

    fn set(&self, task: &TaskStatus) {
        let replica = Replica {
            task: task.name.clone(),
            index: task.index,
        };
        for (state, word) in STATES {
            let labels = ReplicaInState {
                task: task.name.clone(),
                index: task.index,
                state: word,
            };
            let is_in_it = i64::from(task.state == state);
            self.state.get_or_create(&labels).set(is_in_it);
        }
        self.run
            .get_or_create(&replica)
            .inc_by(std::time::Duration::from_nanos(task.run_ns).as_secs_f64());
        self.exits.get_or_create(&replica).inc_by(task.exits);
        self.console
            .get_or_create(&replica)
            .inc_by(task.console_bytes);
        self.connections
            .get_or_create(&replica)
            .set(task.connections.into());
        for (family, count) in [
            (&self.connected, task.connections_total),
            (&self.cut_off, task.connection_errors),
            (&self.received, task.received_bytes),
            (&self.sent, task.sent_bytes),
            (&self.received_dropped, task.received_frames_dropped),
            (&self.sent_dropped, task.sent_frames_dropped),
        ] {
            family.get_or_create(&replica).inc_by(count);
        }
        self.restarts.get_or_create(&replica).inc_by(task.restarts);
        self.memory
            .get_or_create(&replica)
            .set(approximate(task.memory_bytes));
    }
}

/// A number of bytes as a metric's value, which is a float: exact up to 2⁵³.
fn approximate(bytes: u64) -> f64 {
    let high = u32::try_from(bytes >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(bytes & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    f64::from(high).mul_add(4_294_967_296.0, f64::from(low))
}

#[cfg(test)]
mod tests {
    use super::{approximate, encode};
    use crate::cell::protocol::EventKind;
    use crate::control::fake;

    #[test]
    fn a_replica_has_every_metric() {
        let mut task = fake::status("web", 1);
        task.run_ns = 1_500_000_000;
        task.exits = 7;
        task.console_bytes = 300;
        task.connections = 3;
        task.received_bytes = 11;
        task.received_frames_dropped = 5;
        task.restarts = 2;
        let events = [(EventKind::StartFailed, 5), (EventKind::Moved, 0)];
        let text = encode(&[task], &events, Vec::new()).unwrap();
        for line in [
            "# HELP wharf_task_run_seconds Processor time spent in the guest.",
            "# TYPE wharf_task_run_seconds counter",
            "# UNIT wharf_task_run_seconds seconds",
            "wharf_task_run_seconds_total{task=\"web\",index=\"1\"} 1.5",
            "wharf_task_exits_total{task=\"web\",index=\"1\"} 7",
            "wharf_task_console_bytes_total{task=\"web\",index=\"1\"} 300",
            "wharf_task_connections_open{task=\"web\",index=\"1\"} 3",
            "wharf_task_connections_total{task=\"web\",index=\"1\"} 0",
            "wharf_task_received_bytes_total{task=\"web\",index=\"1\"} 11",
            "wharf_task_received_frames_dropped_total{task=\"web\",index=\"1\"} 5",
            "wharf_task_sent_frames_dropped_total{task=\"web\",index=\"1\"} 0",
            "wharf_task_restarts_total{task=\"web\",index=\"1\"} 2",
            "wharf_task_memory_bytes{task=\"web\",index=\"1\"} 33554432.0",
            "wharf_task_state{task=\"web\",index=\"1\",state=\"waiting\"} 1",
            "wharf_task_state{task=\"web\",index=\"1\",state=\"running\"} 0",
            "wharf_tasks 1",
            "wharf_events_total{kind=\"start-failed\"} 5",
            "wharf_events_total{kind=\"moved\"} 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
    }

    #[test]
    fn bytes_are_exact_as_far_as_there_are_any() {
        assert_eq!(approximate((1 << 53) - 1), 9_007_199_254_740_991.0);
        assert_eq!(approximate(0), 0.0);
    }
}
