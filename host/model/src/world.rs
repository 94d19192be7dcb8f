//! Cells, workers and queues together, in every order that messages may take.
//!
//! The world keeps to what real workers do: their mailboxes and what they tell are
//! queues, a guest that is given away is sent before that is told, and what is said
//! to one that has left is passed on behind it. Everything else is chosen: which
//! mailbox is looked into next, what a guest does in its turn, what the operator
//! wants.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;

use crate::cell::{Action, Cell, Event, Replica, Restart, State, TaskKey};
use crate::schedule::{FairQueue, SLICE};
use crate::{Instant, Outcome, Stop};

/// The built-in policy does not go by the time of day.
const NOW: Instant = Instant::from_nanos(0);

const WORKERS: usize = 3;
const REPLICAS: usize = 5;

#[derive(Clone, Copy, Debug)]
enum Letter {
    Boot(TaskKey),
    Adopt(TaskKey, bool),
    Stop(TaskKey),
    Kill(TaskKey),
    Donate(usize),
}

#[derive(Clone, Debug, Default)]
struct Worker {
    inbox: VecDeque<Letter>,
    /// Guests, and whether each was told to end.
    guests: BTreeMap<TaskKey, bool>,
    gone: BTreeMap<usize, (TaskKey, usize)>,
    queue: FairQueue<TaskKey>,
}

/// One thing that happens next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A worker takes in a message; or cannot start the guest that it is to.
    Take {
        worker: usize,
        can_boot: bool,
    },
    /// A worker gives a guest a turn.
    Turn {
        worker: usize,
        end: Turn,
    },
    /// A worker's sleepers wake.
    Wake {
        worker: usize,
    },
    /// The supervisor hears a worker.
    Hear,
    Idle {
        worker: usize,
    },
    Crowded {
        worker: usize,
    },
    Stop {
        replica: usize,
    },
    Restart {
        replica: usize,
    },
    Pass {
        ms: u64,
    },
}

/// How a guest leaves its turn.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Goes,
    Sleeps,
    Ends(Outcome),
}

struct World {
    now: u64,
    cell: Cell,
    workers: Vec<Worker>,
    told: VecDeque<Event>,
    wants: Vec<bool>,
    finished: bool,
}

impl World {
    fn new(restart: Restart) -> Self {
        let replica = |number: usize| Replica {
            task: number / 2,
            weight: 100,
            restart,
        };
        let replicas: Vec<_> = (0..REPLICAS).map(replica).collect();
        let mut world = Self {
            now: 0,
            cell: Cell::new(WORKERS, &replicas),
            workers: vec![Worker::default(); WORKERS],
            told: VecDeque::new(),
            wants: vec![true; REPLICAS],
            finished: false,
        };
        world.tell(Event::Start);
        world
    }

    fn tell(&mut self, event: Event) {
        let now = Instant::from_nanos(self.now);
        for action in self.cell.handle(now, event) {
            let (worker, letter) = match action {
                Action::Boot { key, worker } => (worker, Letter::Boot(key)),
                Action::Stop { key, worker } => (worker, Letter::Stop(key)),
                Action::Kill { key, worker } => (worker, Letter::Kill(key)),
                Action::Donate { from, to } => (from, Letter::Donate(to)),
                Action::BackOff { .. } => continue,
                Action::Finished => {
                    self.finished = true;
                    continue;
                }
            };
            self.workers[worker].inbox.push_back(letter);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Take { worker, can_boot } => self.take(worker, can_boot),
            Step::Turn { worker, end } => self.turn(worker, end),
            Step::Wake { worker } => {
                let worker = &mut self.workers[worker];
                for key in worker.guests.keys() {
                    worker.queue.wake(NOW, *key);
                }
            }
            Step::Hear => {
                if let Some(event) = self.told.pop_front() {
                    self.tell(event);
                }
            }
            Step::Idle { worker } => self.told.push_back(Event::Idle(worker)),
            Step::Crowded { worker } => self.told.push_back(Event::Crowded(worker)),
            Step::Stop { replica } => {
                self.wants[replica] = false;
                self.tell(Event::Stop(replica));
            }
            Step::Restart { replica } => {
                self.wants[replica] = true;
                self.tell(Event::Restart(replica));
            }
            Step::Pass { ms } => {
                self.now += ms * 1_000_000;
                self.tell(Event::Tick);
            }
        }
        self.nobody_is_in_two_places();
    }

    fn take(&mut self, at: usize, can_boot: bool) {
        let Some(letter) = self.workers[at].inbox.pop_front() else {
            return;
        };
        match letter {
            Letter::Boot(key) if can_boot => {
                self.told.push_back(Event::Booted(key));
                self.take_in(at, key, false);
            }
            Letter::Boot(key) => self.told.push_back(Event::BootFailed(key)),
            Letter::Adopt(key, is_told) => self.take_in(at, key, is_told),
            Letter::Stop(key) | Letter::Kill(key) => {
                let worker = &mut self.workers[at];
                if let Some(is_told) = worker.guests.get_mut(&key) {
                    *is_told = true;
                    worker.queue.wake(NOW, key);
                    if matches!(letter, Letter::Kill(_)) {
                        self.end(at, key, Outcome::Stopped(Stop::Terminate));
                    }
                } else if let Some(&(gone, to)) = worker.gone.get(&key.replica)
                    && gone == key
                {
                    self.workers[to].inbox.push_back(letter);
                }
            }
            Letter::Donate(to) if to == at => {}
            Letter::Donate(to) => {
                let worker = &mut self.workers[at];
                if let Some(key) = worker.queue.last()
                    && let Some(is_told) = worker.guests.remove(&key)
                {
                    worker.queue.remove(key);
                    worker.gone.insert(key.replica, (key, to));
                    self.workers[to]
                        .inbox
                        .push_back(Letter::Adopt(key, is_told));
                    self.told.push_back(Event::Moved(key, to));
                }
            }
        }
    }

    fn take_in(&mut self, at: usize, key: TaskKey, is_told: bool) {
        let worker = &mut self.workers[at];
        worker.gone.remove(&key.replica);
        worker.guests.insert(key, is_told);
        worker.queue.insert(key, 100);
        worker.queue.wake(NOW, key);
    }

    fn turn(&mut self, at: usize, end: Turn) {
        let worker = &mut self.workers[at];
        let Some(key) = worker.queue.pick() else {
            return;
        };
        worker.queue.ran(SLICE);
        let is_told = *worker.guests.get(&key).expect("who is picked is there");
        match end {
            // One that was told ends when it can.
            _ if is_told => self.end(at, key, Outcome::Exited { status: 0 }),
            Turn::Goes => worker.queue.yield_now(NOW),
            Turn::Sleeps => worker.queue.sleep(key),
            Turn::Ends(outcome) => self.end(at, key, outcome),
        }
    }

    fn end(&mut self, at: usize, key: TaskKey, outcome: Outcome) {
        let worker = &mut self.workers[at];
        worker.guests.remove(&key);
        worker.queue.remove(key);
        self.told.push_back(Event::Ended(key, outcome));
    }

    /// A replica has one guest at most: at a worker, or on its way to one.
    fn nobody_is_in_two_places(&self) {
        let mut alive = BTreeSet::new();
        for worker in &self.workers {
            let coming = worker.inbox.iter().filter_map(|letter| match letter {
                Letter::Adopt(key, _) => Some(key),
                _ => None,
            });
            for key in worker.guests.keys().chain(coming) {
                assert!(alive.insert(key.replica), "{key:?} lives twice");
            }
        }
    }

    /// Lets everybody do what they have to, guests included, until nothing is left
    /// to say. Pauses pass.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            while !self.told.is_empty() {
                self.step(Step::Hear);
            }
            for worker in 0..WORKERS {
                while !self.workers[worker].inbox.is_empty() {
                    self.take(worker, true);
                }
                for _ in 0..REPLICAS {
                    self.turn(worker, Turn::Goes);
                }
            }
            let is_quiet =
                self.told.is_empty() && self.workers.iter().all(|worker| worker.inbox.is_empty());
            match self.cell.alarm() {
                Some(at) if is_quiet => {
                    self.now = self.now.max(at.as_nanos());
                    self.tell(Event::Tick);
                }
                None if is_quiet => return,
                _ => {}
            }
        }
        panic!("it goes on and on");
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    let worker = || 0..WORKERS;
    let replica = || 0..REPLICAS;
    let end = prop_oneof![
        4 => Just(Turn::Goes),
        3 => Just(Turn::Sleeps),
        1 => any::<u8>().prop_map(|status| Turn::Ends(Outcome::Exited { status })),
        1 => Just(Turn::Ends(Outcome::Faulted)),
    ];
    prop_oneof![
        6 => (worker(), prop::bool::weighted(0.9))
            .prop_map(|(worker, can_boot)| Step::Take { worker, can_boot }),
        6 => Just(Step::Hear),
        4 => (worker(), end).prop_map(|(worker, end)| Step::Turn { worker, end }),
        1 => worker().prop_map(|worker| Step::Wake { worker }),
        2 => worker().prop_map(|worker| Step::Idle { worker }),
        2 => worker().prop_map(|worker| Step::Crowded { worker }),
        1 => replica().prop_map(|replica| Step::Stop { replica }),
        1 => replica().prop_map(|replica| Step::Restart { replica }),
        1 => (0_u64..20_000).prop_map(|ms| Step::Pass { ms }),
    ]
}

proptest! {
    /// No task is lost and none runs twice: whatever happened, in the end those that
    /// are wanted run where the cell thinks that they do, the others do not run, and
    /// all of them can be told to end.
    #[test]
    fn in_the_end_everybody_is_where_the_operator_wants_them(
        steps in prop::collection::vec(any_step(), 0..300),
    ) {
        let mut world = World::new(Restart::Always);
        for step in steps {
            world.step(step);
        }
        world.settle();
        for (replica, is_wanted) in world.wants.clone().into_iter().enumerate() {
            let key = world.cell.key(replica);
            let holders: Vec<usize> = (0..WORKERS)
                .filter(|worker| world.workers[*worker].guests.contains_key(&key))
                .collect();
            match world.cell.state(replica) {
                State::Up { worker, .. } => {
                    assert!(is_wanted, "{replica} runs on after a stop");
                    assert_eq!(holders, [worker]);
                }
                State::Down => {
                    assert!(!is_wanted, "{replica} is lost");
                    assert!(holders.is_empty(), "{holders:?}");
                }
                state => panic!("{replica} stays {state:?}"),
            }
        }
        let guests: usize = world.workers.iter().map(|worker| worker.guests.len()).sum();
        assert_eq!(guests, world.wants.iter().filter(|wants| **wants).count());

        world.tell(Event::Down);
        world.settle();
        assert!(world.finished);
        assert!(world.workers.iter().all(|worker| worker.guests.is_empty()));
    }

    /// Who is always ready gets time as the weights say, however long turns are.
    #[test]
    fn time_is_divided_as_weights_say(
        weights in prop::collection::vec(1_u32..=10_000, 1..8),
        turns in prop::collection::vec(1_000_u32..=2_000_000, 200..2_000),
    ) {
        let mut queue = FairQueue::default();
        for (key, weight) in weights.iter().enumerate() {
            queue.insert(key, *weight);
            queue.wake(NOW, key);
        }
        let mut got = vec![0.0; weights.len()];
        for turn in turns {
            let key = queue.pick().unwrap();
            queue.ran(Duration::from_nanos(turn.into()));
            queue.yield_now(NOW);
            got[key] += f64::from(turn) / f64::from(weights[key]);
        }
        // What each got for its weight differs by one turn of the lightest at most.
        let most = got.iter().copied().fold(0.0, f64::max);
        let least = got.iter().copied().fold(f64::INFINITY, f64::min);
        let lightest = f64::from(*weights.iter().min().unwrap());
        assert!(most - least <= 2e6 / lightest + 1.0, "{weights:?}: {got:?}");
    }

    /// Nobody starves: who is always ready gets its share, whatever the others do
    /// between sleeping and running.
    #[test]
    fn who_is_always_ready_gets_its_share_among_sleepers(
        weights in prop::collection::vec(50_u32..=200, 2..8),
        steps in prop::collection::vec((any::<bool>(), 1_usize..8, 1_000_u32..=2_000_000), 500..3_000),
    ) {
        let mut queue = FairQueue::default();
        for (key, weight) in weights.iter().enumerate() {
            queue.insert(key, *weight);
        }
        queue.wake(NOW, 0);
        let (mut got, mut all) = (0.0, 0.0);
        for (sleeps, wakes, turn) in steps {
            queue.wake(NOW, wakes % weights.len());
            let key = queue.pick().unwrap();
            queue.ran(Duration::from_nanos(turn.into()));
            all += f64::from(turn);
            if key == 0 {
                got += f64::from(turn);
            }
            if sleeps && key != 0 {
                queue.sleep(key);
            } else {
                queue.yield_now(NOW);
            }
        }
        let of = |weight: u32| f64::from(weight);
        let whole: f64 = weights.iter().copied().map(of).sum();
        // Each of the others may be a turn ahead, for its weight.
        let slack = 2e6 * whole / weights.iter().copied().map(of).fold(f64::INFINITY, f64::min);
        let share = (all - slack) * of(weights[0]) / whole;
        assert!(got >= share - 2e6, "{weights:?}: {got} of {all}, not {share}");
    }
}
