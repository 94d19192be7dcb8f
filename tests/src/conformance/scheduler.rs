//! What every scheduler must do.

use wharf_model::policy::{Answer, Candidate, Question, Slice, SliceEnd, View};

use super::{Dice, Make, NUMBERS, Policy, answer, deterministic_answers, survives_any_state};

/// Turns of a stretch on the simulated host.
const TURNS: usize = 10_000;

/// Holds a scheduler to the whole set.
///
/// # Panics
///
/// When it breaks a rule.
pub fn conforms(make: &Make<'_>) {
    says_the_same_to_any_view(make);
    starves_nobody(make);
    bears_tasks_that_come_and_go(make);
    goes_on_from_its_state(make);
    survives_any_state(make, &[100, 1], &odd_views(1));
}

/// Every choice is a candidate in its present life, whatever the numbers, and the
/// same of two fresh policies.
///
/// # Panics
///
/// When it is not.
pub fn says_the_same_to_any_view(make: &Make<'_>) {
    for length in [1, 2, 3, 8, 33, 64] {
        deterministic_answers(make, &[100; 40], &odd_views(length));
    }
}

/// Of tasks that always want to run, each runs again after as many turns as its
/// weight lets it expect, twice over.
///
/// # Panics
///
/// When one does not.
pub fn starves_nobody(make: &Make<'_>) {
    for weights in [
        &[100, 100][..],
        &[1, 3],
        &[10_000, 100, 100],
        &[1, 2, 3, 5, 8, 13, 21, 34],
        &[100; 64],
    ] {
        let mut policy = make(weights);
        let mut host = Host::new(weights);
        let chosen: Vec<u32> = (0..TURNS).map(|_| host.turn(&mut *policy)).collect();
        let all: u32 = weights.iter().sum();
        for (replica, weight) in (0..).zip(weights) {
            let bound = 2 * all.div_ceil(*weight) + u32::try_from(weights.len()).unwrap();
            let waited = longest_wait(&chosen, replica);
            assert!(waited <= bound, "{weights:?}: {replica} waited {waited}");
        }
    }
}

/// Tasks sleep, wake, end, start again and are named that nobody told of; those that
/// always want to run still do.
///
/// # Panics
///
/// When they do not.
pub fn bears_tasks_that_come_and_go(make: &Make<'_>) {
    let weights = [100; 12];
    let mut policy = make(&weights);
    for view in odd_views(5) {
        answer(&mut *policy, &view);
    }
    let (mut host, mut dice) = (Host::new(&weights), Dice::new(4));
    let chosen = |_| {
        // The first two always want to run.
        for task in host.tasks.iter_mut().skip(2) {
            match dice.roll(40) {
                0..4 => task.asleep = true,
                4..8 if task.asleep => (task.asleep, task.ready_since) = (false, host.now),
                8 => (task.generation, task.ran) = (task.generation + 1, 0),
                _ => {}
            }
        }
        host.turn(&mut *policy)
    };
    let chosen: Vec<u32> = (0..TURNS).map(chosen).collect();
    for replica in [0, 1] {
        let waited = longest_wait(&chosen, replica);
        assert!(waited <= 100, "{replica} waited {waited} turns");
    }
}

/// A fresh policy that was given the state of another chooses as that one does.
///
/// # Panics
///
/// When it does not.
pub fn goes_on_from_its_state(make: &Make<'_>) {
    let weights = [1, 100, 10_000, 33, 100];
    let mut old = make(&weights);
    let mut host = Host::new(&weights);
    for _ in 0..777 {
        host.turn(&mut *old);
    }
    let mut new = make(&weights);
    if let Some(state) = old.save() {
        new.restore(&state).expect("it takes its own state");
        assert_eq!(new.save(), Some(state), "state changes by being moved");
    }
    let mut same = host.clone();
    for turn in 0..777 {
        let (one, two) = (host.turn(&mut *old), same.turn(&mut *new));
        assert_eq!(one, two, "turn {turn} after the move");
    }
}

/// Views whose numbers no host would send, each of so many candidates.
fn odd_views(length: u32) -> Vec<Question> {
    let mut dice = Dice::new(length.into());
    let mut number = move || {
        let any = NUMBERS[usize::try_from(dice.roll(8)).unwrap()];
        any.wrapping_add(dice.roll(3))
    };
    let mut views = Vec::new();
    for round in 0..60 {
        // Some of them nobody told of, the last one there can be among them.
        let replica = |it: u32| {
            if round % 3 == 0 {
                u32::MAX - it
            } else {
                it * 3 % 97
            }
        };
        let mut candidate = |it| Candidate {
            replica: replica(it),
            weight: u32::try_from(number() % (1 << 32)).unwrap(),
            generation: number(),
            ran: number(),
            virtual_time: number(),
            ready_since: number(),
        };
        let ready: Vec<_> = (0..length).map(&mut candidate).collect();
        let ends = [SliceEnd::Preempted, SliceEnd::Waits, SliceEnd::Ended];
        let last = ends.get(round % 4).map(|end| Slice {
            replica: replica(u32::try_from(round).unwrap()),
            end: *end,
            ran: number(),
        });
        views.push(Question::Next(View {
            now: number(),
            worker: [0, 1, 127, u32::MAX][round % 4],
            last,
            ready,
        }));
    }
    views
}

/// How many turns in a row went to others.
fn longest_wait(chosen: &[u32], replica: u32) -> u32 {
    let waits = chosen.split(|it| *it == replica).map(<[_]>::len);
    u32::try_from(waits.max().unwrap()).unwrap()
}

/// A host of one worker, without a watchdog.
#[derive(Clone, Debug)]
pub struct Host {
    /// The time, in nanoseconds.
    pub now: u64,
    /// By number of the replica.
    pub tasks: Vec<Task>,
    last: Option<Slice>,
}

/// A task on the simulated host.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its weight.
    pub weight: u32,
    /// Which life of it.
    pub generation: u64,
    /// For how long it ran in this life, in nanoseconds.
    pub ran: u64,
    /// Since when it is ready.
    pub ready_since: u64,
    /// Whether it does not want to run.
    pub asleep: bool,
    /// For how long it runs before it sleeps, when it does by itself.
    pub needs: Option<u64>,
    virtual_time: u64,
}

impl Host {
    /// A host of tasks that always want to run.
    #[must_use]
    pub fn new(weights: &[u32]) -> Self {
        let task = |weight: &u32| Task {
            weight: *weight,
            generation: 1,
            ran: 0,
            ready_since: 0,
            asleep: false,
            needs: None,
            virtual_time: 0,
        };
        Self {
            now: 0,
            tasks: weights.iter().map(task).collect(),
            last: None,
        }
    }

    /// Asks who runs, and lets it run. Gives who that was.
    ///
    /// # Panics
    ///
    /// When the answer is none.
    pub fn turn(&mut self, policy: &mut dyn Policy) -> u32 {
        let candidate = |(replica, it): (u32, &Task)| Candidate {
            replica,
            weight: it.weight,
            generation: it.generation,
            ran: it.ran,
            virtual_time: it.virtual_time,
            ready_since: it.ready_since,
        };
        let awake = (0..).zip(&self.tasks).filter(|(_, it)| !it.asleep);
        let mut ready: Vec<_> = awake.map(candidate).collect();
        ready.sort_by_key(|it| (it.virtual_time, it.replica));
        ready.truncate(64);
        let question = Question::Next(View {
            now: self.now,
            worker: 0,
            last: self.last,
            ready,
        });
        let Answer::Next(choice) = answer(policy, &question) else {
            panic!("no choice");
        };
        let task = &mut self.tasks[usize::try_from(choice.replica).unwrap()];
        let ran = task.needs.map_or(choice.slice, |it| it.min(choice.slice));
        task.needs = task.needs.map(|it| it - ran);
        task.asleep = task.needs == Some(0);
        task.ran += ran;
        task.virtual_time += ran * 10_000 / u64::from(task.weight);
        self.now += ran;
        task.ready_since = self.now;
        self.last = Some(Slice {
            replica: choice.replica,
            end: if task.asleep {
                SliceEnd::Waits
            } else {
                SliceEnd::Preempted
            },
            ran,
        });
        choice.replica
    }
}
