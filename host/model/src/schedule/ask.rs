//! A queue as a question to a scheduling policy, and the answer as a turn.

use std::time::Duration;

use super::FairQueue;
use crate::Instant;
use crate::cell::TaskKey;
use crate::policy::{Candidate, Choice, View};

/// Tasks that a question names at most: those that this crate's policy would run
/// first.
pub const CANDIDATES: usize = 64;

/// A task that is ready for so long runs next, whatever a policy says.
pub const STARVED: Duration = Duration::from_secs(1);

impl FairQueue<TaskKey> {
    /// Puts the ready tasks into a question.
    pub fn fill(&self, view: &mut View) {
        let candidate = |&(_, key): &(u64, TaskKey)| {
            let share = self.tasks.get(&key)?;
            Some(Candidate {
                replica: u32::try_from(key.replica).unwrap_or(u32::MAX),
                weight: share.weight,
                generation: key.generation,
                ran: share.ran,
                virtual_time: share.used,
                ready_since: share.since.as_nanos(),
            })
        };
        view.ready.clear();
        let candidates = self.ready.iter().filter_map(candidate);
        view.ready.extend(candidates.take(CANDIDATES));
    }

    /// Runs who was chosen: for how long, at most. `None` when that one is not ready.
    pub fn take(&mut self, choice: Choice) -> Option<(TaskKey, Duration)> {
        let key = TaskKey {
            replica: usize::try_from(choice.replica).ok()?,
            generation: choice.generation,
        };
        self.pick_this(key)
            .map(|key| (key, Duration::from_nanos(choice.slice)))
    }

    /// Runs who has been passed over for too long, if anybody was.
    pub fn pick_starved(&mut self, now: Instant) -> Option<TaskKey> {
        let since = |key: &TaskKey| self.tasks.get(key).map(|share| share.since);
        let keys = self.ready.iter().map(|(_, key)| *key);
        let oldest = keys.min_by_key(|key| since(key).unwrap_or(now))?;
        if now.since(since(&oldest)?) < STARVED {
            return None;
        }
        self.pick_this(oldest)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{CANDIDATES, STARVED};
    use crate::Instant;
    use crate::cell::TaskKey;
    use crate::policy::{Choice, View};
    use crate::schedule::FairQueue;

    const fn key(replica: usize) -> TaskKey {
        TaskKey {
            replica,
            generation: 1,
        }
    }

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    /// A queue in which so many tasks are ready since 1 ms.
    fn queue(tasks: usize) -> FairQueue<TaskKey> {
        let mut queue = FairQueue::default();
        for replica in 0..tasks {
            queue.insert(key(replica), 100);
            queue.wake(at(1), key(replica));
        }
        queue
    }

    fn choice(replica: u32, generation: u64) -> Choice {
        Choice {
            replica,
            generation,
            slice: 1_000_000,
        }
    }

    #[test]
    fn a_question_names_the_ready_in_the_order_of_what_is_built_in() {
        let mut queue = queue(3);
        queue.pick();
        queue.ran(Duration::from_millis(2));
        queue.yield_now(at(3));
        let mut view = View::default();
        queue.fill(&mut view);
        let replicas: Vec<_> = view.ready.iter().map(|it| it.replica).collect();
        assert_eq!(replicas, [1, 2, 0]);
        let last = view.ready[2];
        assert_eq!(
            (last.ran, last.ready_since, last.weight),
            (2_000_000, 3_000_000, 100)
        );
        assert!(last.virtual_time > view.ready[0].virtual_time);
    }

    #[test]
    fn a_question_has_a_bound() {
        let mut view = View::default();
        queue(CANDIDATES + 1).fill(&mut view);
        assert_eq!(view.ready.len(), CANDIDATES);
    }

    #[test]
    fn an_answer_is_a_turn_only_of_who_is_ready() {
        let mut queue = queue(2);
        assert_eq!(queue.take(choice(7, 1)), None);
        assert_eq!(queue.take(choice(1, 2)), None);
        let turn = queue.take(choice(1, 1));
        assert_eq!(turn, Some((key(1), Duration::from_millis(1))));
        assert_eq!(queue.take(choice(0, 1)), None, "somebody runs already");
    }

    #[test]
    fn who_was_passed_over_for_too_long_is_next() {
        let mut queue = queue(2);
        let mut now = at(1);
        while now.since(at(1)) < STARVED {
            assert_eq!(queue.pick_starved(now), None);
            queue.take(choice(0, 1)).unwrap();
            now = now.after(Duration::from_millis(2));
            queue.ran(Duration::from_millis(2));
            queue.yield_now(now);
        }
        assert_eq!(queue.pick_starved(now), Some(key(1)));
    }

    #[test]
    fn what_is_built_in_goes_on_where_a_policy_left_off() {
        let mut queue = queue(2);
        for _ in 0..10 {
            queue.take(choice(1, 1)).unwrap();
            queue.ran(Duration::from_millis(2));
            queue.yield_now(at(2));
        }
        // Nobody asks any more: the other one catches up, then they take turns.
        let turns: Vec<_> = (0..20)
            .map(|_| {
                let key = queue.pick().unwrap();
                queue.ran(Duration::from_millis(2));
                queue.yield_now(at(3));
                key.replica
            })
            .collect();
        assert_eq!(turns[..10], [0; 10]);
        assert_eq!(turns[10..].iter().filter(|it| **it == 0).count(), 5);
    }
}
