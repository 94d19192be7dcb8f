//! What a replica's worker counts and its supervisor reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

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
