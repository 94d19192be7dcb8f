//! What a replica's worker counts and its supervisor reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::protocol::TaskState;
use crate::net::{FrameDrops, Traffic};

/// Counters of one replica, over all its generations. Each is written by one
/// thread at a time and is true by itself; together they are a moment apart.
#[derive(Debug, Default)]
pub(super) struct Meters {
    run_ns: AtomicU64,
    exits: AtomicU64,
    activity: AtomicU8,
    traffic: Arc<Traffic>,
    frames: Arc<FrameDrops>,
}

/// What a replica that lives does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Activity {
    Waiting = 0,
    Ready = 1,
    Running = 2,
}

/// What was counted, for another process to count on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    run_ns: u64,
    exits: u64,
    connections: u64,
    connection_errors: u64,
    received: u64,
    sent: u64,
    answers: Vec<u64>,
    received_frames: u64,
    sent_frames: u64,
}

/// Processor time that this thread has used.
pub(super) fn thread_time() -> Duration {
    // Linux has this clock for every thread; without it nothing would be booked.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

impl Meters {
    /// Books a stay in the guest.
    pub(super) fn ran(&self, time: Duration) {
        let ns = time.as_nanos().try_into().unwrap_or(u64::MAX);
        self.run_ns.fetch_add(ns, Ordering::Relaxed);
        self.exits.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts what another life of the replica counted, which is over.
    pub(super) fn absorb(&self, other: &Self) {
        self.run_ns.fetch_add(other.run_ns(), Ordering::Relaxed);
        self.exits.fetch_add(other.exits(), Ordering::Relaxed);
        self.traffic.absorb(&other.traffic);
        self.frames.absorb(&other.frames);
    }

    /// What was counted so far, but for the connections that are open.
    pub(super) fn counts(&self) -> Counts {
        let traffic = &self.traffic;
        Counts {
            run_ns: self.run_ns(),
            exits: self.exits(),
            connections: traffic.total.load(Ordering::Relaxed),
            connection_errors: traffic.errors.load(Ordering::Relaxed),
            received: traffic.received.load(Ordering::Relaxed),
            sent: traffic.sent.load(Ordering::Relaxed),
            answers: traffic.answers.now().counts().to_vec(),
            received_frames: self.frames.received(),
            sent_frames: self.frames.sent(),
        }
    }

    /// Counts on from there. Whatever was counted here is in it.
    pub(super) fn count_on(&self, counts: &Counts) {
        let traffic = &self.traffic;
        for (to, from) in [
            (&self.run_ns, counts.run_ns),
            (&self.exits, counts.exits),
            (&traffic.total, counts.connections),
            (&traffic.errors, counts.connection_errors),
            (&traffic.received, counts.received),
            (&traffic.sent, counts.sent),
        ] {
            to.store(from, Ordering::Relaxed);
        }
        traffic.answers.count_on(&counts.answers);
        self.frames
            .count_on(counts.received_frames, counts.sent_frames);
    }

    pub(super) fn set_activity(&self, activity: Activity) {
        let number = match activity {
            Activity::Waiting => 0,
            Activity::Ready => 1,
            Activity::Running => 2,
        };
        self.activity.store(number, Ordering::Relaxed);
    }

    /// What its connections count.
    pub(super) const fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// What is counted of its frames.
    pub(super) const fn frames(&self) -> &Arc<FrameDrops> {
        &self.frames
    }

    pub(super) fn run_ns(&self) -> u64 {
        self.run_ns.load(Ordering::Relaxed)
    }

    pub(super) fn exits(&self) -> u64 {
        self.exits.load(Ordering::Relaxed)
    }

    /// The state of a replica that lives.
    pub(super) fn state(&self) -> TaskState {
        match self.activity.load(Ordering::Relaxed) {
            2 => TaskState::Running,
            1 => TaskState::Ready,
            _ => TaskState::Waiting,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use wharf_machine::device::Way;

    use super::Meters;

    #[test]
    fn what_was_counted_elsewhere_is_counted_on_and_never_twice() {
        let meters = Meters::default();
        meters.ran(Duration::from_nanos(7));
        meters.traffic().total.store(3, Ordering::Relaxed);
        meters.traffic().answers.add(Duration::from_millis(2));
        meters.frames().count(Way::ToGuest);
        let other = Meters::default();
        other.count_on(&meters.counts());
        assert_eq!(other.counts(), meters.counts());
        other.ran(Duration::from_nanos(1));
        meters.count_on(&other.counts());
        assert_eq!((meters.run_ns(), meters.exits()), (8, 2));
        assert_eq!(meters.counts(), other.counts());
    }
}
