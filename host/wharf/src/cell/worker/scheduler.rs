//! Who runs next on a worker: the policy slot is asked when there is a choice, and
//! the fair queue keeps the books.

use std::sync::Arc;
use std::time::Duration;

use wharf_model::cell::TaskKey;
use wharf_model::policy::{Answer, Question, Slice, SliceEnd, SlotName, View};
use wharf_model::schedule::{FairQueue, SLICE};
use wharf_policy::{Slots, now};

/// The ready tasks of a worker, and who chooses among them.
pub(super) struct Scheduler {
    queue: FairQueue<TaskKey>,
    slots: Arc<Slots>,
    /// The last question, whose memory the next one uses.
    question: Question,
    worker: u32,
    /// Whether the slot chose who runs.
    is_chosen: bool,
    last: Option<Slice>,
}

impl Scheduler {
    pub(super) fn new(worker: usize, slots: Arc<Slots>) -> Self {
        Self {
            queue: FairQueue::default(),
            slots,
            question: Question::Next(View::default()),
            worker: u32::try_from(worker).unwrap_or(u32::MAX),
            is_chosen: false,
            last: None,
        }
    }

    /// Takes in a task that sleeps.
    pub(super) fn insert(&mut self, key: TaskKey, weight: u32) {
        self.queue.insert(key, weight);
    }

    /// Forgets a task, whatever it does.
    pub(super) fn remove(&mut self, key: TaskKey) {
        self.queue.remove(key);
    }

    /// How many tasks are ready, without the one that runs.
    pub(super) fn waiting(&self) -> usize {
        self.queue.waiting()
    }

    /// The ready task that would run last: the one to give away.
    pub(super) fn last(&self) -> Option<TaskKey> {
        self.queue.last()
    }

    /// Makes a task ready.
    pub(super) fn wake(&mut self, key: TaskKey) {
        self.queue.wake(now(), key);
    }

    /// Says who runs now, and for how long, unless it is alone.
    pub(super) fn next(&mut self) -> Option<(TaskKey, Option<Duration>)> {
        self.is_chosen = false;
        if self.queue.waiting() > 1
            && let Some((key, slice)) = self.ask()
        {
            return Some((key, Some(slice)));
        }
        let key = self.queue.pick()?;
        Some((key, self.queue.slice()))
    }

    /// Books the turn that has just ended.
    pub(super) fn ran(&mut self, key: TaskKey, time: Duration, end: SliceEnd) {
        self.queue.ran(time);
        self.last = self.is_chosen.then(|| Slice {
            replica: u32::try_from(key.replica).unwrap_or(u32::MAX),
            end,
            ran: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
        });
        match end {
            SliceEnd::Preempted => self.queue.yield_now(now()),
            SliceEnd::Waits => self.queue.sleep(key),
            SliceEnd::Ended => self.queue.remove(key),
        }
    }

    /// Has the slot choose, if anybody but the queue itself would.
    fn ask(&mut self) -> Option<(TaskKey, Duration)> {
        let slot = self.slots.slot(SlotName::Scheduler);
        let now = now();
        if !slot.wants(now.as_nanos()) {
            return None;
        }
        // No plugin can keep a task from running.
        if slot.has_plugin()
            && let Some(starved) = self.queue.pick_starved(now)
        {
            return Some((starved, SLICE));
        }
        let Question::Next(view) = &mut self.question else {
            return None;
        };
        view.now = now.as_nanos();
        view.worker = self.worker;
        view.last = self.last.take();
        self.queue.fill(view);
        let Answer::Next(choice) = slot.ask(&self.question) else {
            return None;
        };
        let turn = self.queue.take(choice);
        self.is_chosen = turn.is_some();
        turn
    }
}
