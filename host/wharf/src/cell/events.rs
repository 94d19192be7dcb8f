//! What happened, kept for a while, for whoever asks or follows.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::handover::CarriedEvents;
use super::protocol::{Event, EventKind};

/// Events that are kept.
pub const EVENTS_KEPT: usize = 4096;

/// The last events of a cell, each with a number that is never used again.
#[derive(Debug, Default)]
pub struct EventLog {
    inner: Mutex<Inner>,
    added: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Event>,
    last: u64,
    /// How many of each kind there were, kept or not.
    counts: BTreeMap<EventKind, u64>,
    /// Whether there will be no more.
    is_closed: bool,
}

impl EventLog {
    /// Adds an event that happens now.
    pub fn add(&self, task: Option<String>, generation: u64, kind: EventKind, detail: String) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut inner = self.lock();
        inner.last = inner.last.saturating_add(1);
        let count = inner.counts.entry(kind).or_default();
        *count = count.saturating_add(1);
        let event = Event {
            seq: inner.last,
            time_ns: now.as_nanos().try_into().unwrap_or(u64::MAX),
            task,
            generation,
            kind,
            detail,
        };
        let line = format!(
            "{} {:?} {}",
            event.task.as_deref().unwrap_or("cell"),
            event.kind,
            event.detail.lines().next().unwrap_or_default()
        );
        inner.events.push_back(event);
        if inner.events.len() > EVENTS_KEPT {
            inner.events.pop_front();
        }
        drop(inner);
        self.added.notify_all();
        // Standard error may block, on which nobody who reads events has to wait.
        log::info!("{line}");
    }

    /// What happened, for another process.
    pub(super) fn carry(&self) -> CarriedEvents {
        let counts = self.counts();
        let inner = self.lock();
        CarriedEvents {
            last: inner.last,
            kept: inner.events.iter().cloned().collect(),
            counts,
        }
    }

    /// Forgets what happened so far: it happened in another process, too.
    pub(super) fn forget(&self) {
        *self.lock() = Inner::default();
    }

    /// Puts what happened in another process before what happened here.
    pub(super) fn go_on(&self, carried: CarriedEvents) {
        let mut inner = self.lock();
        inner.last = inner.last.saturating_add(carried.last);
        for event in &mut inner.events {
            event.seq = event.seq.saturating_add(carried.last);
        }
        for event in carried.kept.into_iter().rev() {
            if inner.events.len() < EVENTS_KEPT {
                inner.events.push_front(event);
            }
        }
        for (kind, count) in carried.counts {
            let all = inner.counts.entry(kind).or_default();
            *all = all.saturating_add(count);
        }
    }

    /// Says that there will be no more, to whoever waits.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.added.notify_all();
    }

    /// Whether there will be no more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Waits until there is an event with a number above `seq`, or there will be none, but
    /// no longer than `patience`.
    pub fn wait_after(&self, seq: u64, patience: Duration) {
        let is_old = |inner: &mut Inner| inner.last <= seq && !inner.is_closed;
        // A poisoned log is looked at like any other.
        let _ = self.added.wait_timeout_while(self.lock(), patience, is_old);
    }

    /// The kept events with numbers above `seq`, oldest first, at most `limit`.
    #[must_use]
    pub fn after(&self, seq: u64, limit: usize) -> Vec<Event> {
        let inner = self.lock();
        let skip = inner.events.partition_point(|event| event.seq <= seq);
        inner
            .events
            .iter()
            .skip(skip)
            .take(limit)
            .cloned()
            .collect()
    }

    /// Number of the last event; 0 before the first.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.lock().last
    }

    /// How many events of each kind there were, those that are no longer kept too.
    #[must_use]
    pub fn counts(&self) -> Vec<(EventKind, u64)> {
        let inner = self.lock();
        let count = |kind| inner.counts.get(&kind).copied().unwrap_or(0);
        let kinds = EventKind::ALL.into_iter();
        kinds.map(|kind| (kind, count(kind))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{EVENTS_KEPT, EventLog};
    use crate::cell::protocol::EventKind;

    #[test]
    fn old_events_go_and_numbers_stay() {
        let log = EventLog::default();
        for _ in 0..EVENTS_KEPT + 10 {
            log.add(None, 0, EventKind::Up, String::new());
        }
        let all = log.after(0, usize::MAX);
        assert_eq!((all.len(), all[0].seq), (EVENTS_KEPT, 11));
        assert_eq!(log.after(log.last(), 10), []);
        assert_eq!(log.after(log.last() - 2, 1)[0].seq, log.last() - 1);
    }

    #[test]
    fn what_happened_elsewhere_was_before() {
        let (old, new) = (EventLog::default(), EventLog::default());
        for _ in 0..10 {
            old.add(None, 0, EventKind::Up, String::new());
        }
        new.add(None, 0, EventKind::Moved, String::new());
        new.go_on(old.carry());
        let all = new.after(0, usize::MAX);
        let numbers: Vec<u64> = all.iter().map(|it| it.seq).collect();
        assert_eq!(numbers, (1..=11).collect::<Vec<_>>());
        assert_eq!((all[10].kind, new.last()), (EventKind::Moved, 11));
        let up = |(kind, count)| (kind == EventKind::Up).then_some(count);
        assert_eq!(new.counts().into_iter().find_map(up), Some(10));
    }

    #[test]
    fn every_event_is_counted_for_ever() {
        let log = EventLog::default();
        for _ in 0..EVENTS_KEPT + 10 {
            log.add(None, 0, EventKind::Exited, String::new());
        }
        log.add(None, 0, EventKind::Down, String::new());
        let counts = log.counts();
        assert_eq!(counts.len(), EventKind::ALL.len());
        for (kind, count) in counts {
            let expected = match kind {
                EventKind::Exited => EVENTS_KEPT as u64 + 10,
                EventKind::Down => 1,
                _ => 0,
            };
            assert_eq!(count, expected, "{kind:?}");
        }
    }
}
