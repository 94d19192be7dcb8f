//! Cells under scripts, with time in milliseconds.

use std::time::Duration;

use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

use super::{
    Action, BACKOFF_FIRST, BACKOFF_LAST, Cell, Event, HEALTHY, Replica, Restart, State, TaskKey,
};
use crate::{Instant, Outcome, Stop};

const OK: Outcome = Outcome::Exited { status: 0 };
const FAILED: Outcome = Outcome::Exited { status: 1 };

const fn ms(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

const fn key(replica: usize, generation: u64) -> TaskKey {
    TaskKey {
        replica,
        generation,
    }
}

const fn replica(task: usize, restart: Restart) -> Replica {
    Replica {
        task,
        weight: 100,
        restart,
    }
}

/// A cell of one replica that has come up.
fn one(restart: Restart) -> Cell {
    let mut cell = Cell::new(1, &[replica(0, restart)]);
    let boot = Action::Boot {
        key: key(0, 1),
        worker: 0,
    };
    assert_eq!(cell.handle(ms(0), Event::Start), [boot]);
    assert_eq!(cell.handle(ms(0), Event::Booted(key(0, 1))), []);
    cell
}

#[test]
fn whether_a_task_runs_again_is_its_policys_word() {
    for (restart, outcome, again) in [
        (Restart::Never, OK, false),
        (Restart::Never, FAILED, false),
        (Restart::Never, Outcome::Faulted, false),
        (Restart::OnFailure, OK, false),
        (Restart::OnFailure, FAILED, true),
        (Restart::OnFailure, Outcome::Faulted, true),
        (Restart::Always, OK, true),
        (Restart::Always, Outcome::Faulted, true),
    ] {
        let mut cell = one(restart);
        let actions = cell.handle(ms(1), Event::Ended(key(0, 1), outcome));
        let back_off = Action::BackOff {
            key: key(0, 1),
            pause: BACKOFF_FIRST,
        };
        let expected = if again { vec![back_off] } else { vec![] };
        assert_eq!(actions, expected, "{restart:?} {outcome:?}");
        assert_eq!(cell.last_outcome(0), Some(outcome));
    }
}

#[test]
fn a_crash_loop_backs_off_and_a_healthy_life_resets_that() {
    let mut cell = one(Restart::OnFailure);
    let mut now = ms(0);
    let mut pauses = Vec::new();
    for generation in 1..12 {
        let actions = cell.handle(now, Event::Ended(key(0, generation), Outcome::Faulted));
        let [Action::BackOff { pause, .. }] = actions[..] else {
            panic!("{actions:?}")
        };
        pauses.push(pause);
        now = now.after(pause);
        assert_eq!(cell.alarm(), Some(now));
        let next = key(0, generation + 1);
        assert_eq!(
            cell.handle(now, Event::Tick),
            [Action::Boot {
                key: next,
                worker: 0
            }]
        );
        cell.handle(now, Event::Booted(next));
    }
    assert_eq!(pauses[..4], [100, 200, 400, 800].map(Duration::from_millis));
    assert_eq!(pauses[10], BACKOFF_LAST);
    assert_eq!(cell.restarts(0), 11);

    let actions = cell.handle(
        now.after(HEALTHY),
        Event::Ended(key(0, 12), Outcome::Faulted),
    );
    assert_eq!(
        actions,
        [Action::BackOff {
            key: key(0, 12),
            pause: BACKOFF_FIRST
        }]
    );
}

#[test]
fn a_task_that_cannot_start_backs_off_like_one_that_fails() {
    let mut cell = Cell::new(1, &[replica(0, Restart::OnFailure)]);
    cell.handle(ms(0), Event::Start);
    let actions = cell.handle(ms(0), Event::BootFailed(key(0, 1)));
    assert_eq!(
        actions,
        [Action::BackOff {
            key: key(0, 1),
            pause: BACKOFF_FIRST
        }]
    );
    let mut cell = Cell::new(1, &[replica(0, Restart::Never)]);
    cell.handle(ms(0), Event::Start);
    assert_eq!(cell.handle(ms(0), Event::BootFailed(key(0, 1))), []);
    assert_eq!(cell.state(0), State::Down);
}

#[test]
fn a_stale_name_changes_nothing() {
    let mut cell = one(Restart::Always);
    cell.handle(ms(0), Event::Restart(0));
    cell.handle(ms(1), Event::Ended(key(0, 1), OK));
    let second = key(0, 2);
    cell.handle(ms(2), Event::Booted(second));
    let up = cell.state(0);
    for stale in [
        Event::Ended(key(0, 1), Outcome::Faulted),
        Event::BootFailed(key(0, 1)),
        Event::Booted(key(0, 1)),
        Event::Moved(key(0, 1), 0),
        Event::Ended(key(0, 3), Outcome::Faulted),
        Event::Ended(key(7, 1), Outcome::Faulted),
    ] {
        assert_eq!(cell.handle(ms(3), stale), [], "{stale:?}");
        assert_eq!((cell.state(0), cell.key(0)), (up, second));
    }
}

#[test]
fn nobody_ends_twice() {
    let mut cell = one(Restart::Always);
    let ended = Event::Ended(key(0, 1), Outcome::Faulted);
    assert_eq!(cell.handle(ms(1), ended).len(), 1, "it backs off");
    let alarm = cell.alarm();
    assert_eq!(cell.handle(ms(2), ended), []);
    assert_eq!(cell.alarm(), alarm);
}

#[test]
fn a_stopped_task_stays_down_until_it_is_started_again() {
    let mut cell = one(Restart::Always);
    let stop = Action::Stop {
        key: key(0, 1),
        worker: 0,
    };
    assert_eq!(cell.handle(ms(1), Event::Stop(0)), [stop]);
    assert_eq!(cell.handle(ms(2), Event::Stop(0)), [], "it has been told");
    let ended = Event::Ended(key(0, 1), Outcome::Stopped(Stop::Terminate));
    assert_eq!(cell.handle(ms(3), ended), []);
    assert_eq!(cell.handle(ms(100_000), Event::Tick), []);
    let boot = Action::Boot {
        key: key(0, 2),
        worker: 0,
    };
    assert_eq!(cell.handle(ms(100_001), Event::Restart(0)), [boot]);
}

#[test]
fn a_restart_ends_the_old_generation_first() {
    let mut cell = one(Restart::Never);
    let stop = Action::Stop {
        key: key(0, 1),
        worker: 0,
    };
    assert_eq!(cell.handle(ms(1), Event::Restart(0)), [stop]);
    let ended = Event::Ended(key(0, 1), Outcome::Stopped(Stop::Terminate));
    let boot = Action::Boot {
        key: key(0, 2),
        worker: 0,
    };
    assert_eq!(cell.handle(ms(2), ended), [boot]);
    assert_eq!(cell.restarts(0), 1);
}

#[test]
fn a_stop_before_a_task_is_up_reaches_it_when_it_is() {
    let mut cell = Cell::new(1, &[replica(0, Restart::Always)]);
    cell.handle(ms(0), Event::Start);
    assert_eq!(cell.handle(ms(0), Event::Stop(0)), []);
    let stop = Action::Stop {
        key: key(0, 1),
        worker: 0,
    };
    assert_eq!(cell.handle(ms(1), Event::Booted(key(0, 1))), [stop]);
}

#[test]
fn a_stop_during_back_off_ends_it() {
    let mut cell = one(Restart::Always);
    cell.handle(ms(1), Event::Ended(key(0, 1), OK));
    cell.handle(ms(2), Event::Stop(0));
    assert_eq!((cell.state(0), cell.alarm()), (State::Down, None));
    assert_eq!(cell.handle(ms(100_000), Event::Tick), []);
}

#[test]
fn a_cell_goes_down_from_its_last_task_to_its_first() {
    let replicas = [0, 1, 1, 2].map(|task| replica(task, Restart::Always));
    let mut cell = Cell::new(2, &replicas);
    cell.handle(ms(0), Event::Start);
    for replica in 0..4 {
        cell.handle(ms(0), Event::Booted(key(replica, 1)));
    }
    let stops = |actions: Vec<Action>| -> Vec<usize> {
        let stopped = |action| match action {
            Action::Stop { key, .. } => key.replica,
            other => panic!("{other:?}"),
        };
        actions.into_iter().map(stopped).collect()
    };
    let ended = |replica| Event::Ended(key(replica, 1), Outcome::Stopped(Stop::Terminate));
    assert_eq!(stops(cell.handle(ms(1), Event::Down)), [3]);
    assert_eq!(stops(cell.handle(ms(2), ended(3))), [1, 2]);
    assert!(stops(cell.handle(ms(3), ended(2))).is_empty());
    assert_eq!(stops(cell.handle(ms(4), ended(1))), [0]);
    assert_eq!(cell.handle(ms(5), ended(0)), [Action::Finished]);
}

#[test]
fn a_second_down_ends_everything_at_once() {
    let mut cell = Cell::new(
        1,
        &[replica(0, Restart::Always), replica(1, Restart::Always)],
    );
    cell.handle(ms(0), Event::Start);
    cell.handle(ms(0), Event::Booted(key(0, 1)));
    cell.handle(ms(1), Event::Down);
    let kill = |replica| Action::Kill {
        key: key(replica, 1),
        worker: 0,
    };
    assert_eq!(cell.handle(ms(2), Event::Down), [kill(0), kill(1)]);
}

#[test]
fn a_cell_without_life_is_over_as_soon_as_it_goes_down() {
    let mut cell = one(Restart::Always);
    cell.handle(ms(1), Event::Ended(key(0, 1), OK));
    assert_eq!(cell.handle(ms(2), Event::Down), [Action::Finished]);
}

#[test]
fn a_task_that_backs_off_is_down_as_soon_as_the_cell_goes_down() {
    let mut cell = Cell::new(
        1,
        &[replica(0, Restart::Always), replica(1, Restart::Always)],
    );
    cell.handle(ms(0), Event::Start);
    cell.handle(ms(0), Event::Booted(key(0, 1)));
    cell.handle(ms(0), Event::Booted(key(1, 1)));
    cell.handle(ms(1), Event::Ended(key(0, 1), FAILED));
    let stop = Action::Stop {
        key: key(1, 1),
        worker: 0,
    };
    assert_eq!(cell.handle(ms(2), Event::Down), [stop], "the last lives");
    assert_eq!((cell.state(0), cell.alarm()), (State::Down, None));
    let ended = Event::Ended(key(1, 1), Outcome::Stopped(Stop::Terminate));
    assert_eq!(cell.handle(ms(3), ended), [Action::Finished]);
}

#[test]
fn guests_go_to_the_worker_whose_guests_weigh_least() {
    let weigh = |weight| Replica {
        task: 0,
        weight,
        restart: Restart::Never,
    };
    let mut cell = Cell::new(
        2,
        &[weigh(300), weigh(100), weigh(100), weigh(100), weigh(1)],
    );
    let workers: Vec<_> = cell
        .handle(ms(0), Event::Start)
        .into_iter()
        .map(|action| match action {
            Action::Boot { worker, .. } => worker,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(workers, [0, 1, 1, 1, 0]);
}

#[test]
fn work_moves_to_a_worker_that_said_it_is_idle() {
    let mut cell = Cell::new(2, &[replica(0, Restart::Never), replica(0, Restart::Never)]);
    assert_eq!(cell.handle(ms(0), Event::Crowded(0)), []);
    cell.handle(ms(0), Event::Idle(1));
    assert_eq!(
        cell.handle(ms(1), Event::Crowded(0)),
        [Action::Donate { from: 0, to: 1 }]
    );
    assert_eq!(
        cell.handle(ms(2), Event::Crowded(0)),
        [],
        "it was given something"
    );
}

fn any_event() -> impl Strategy<Value = Event> {
    let any_key = || (0_usize..4, 0_u64..4).prop_map(|(r, g)| key(r, g));
    prop_oneof![
        Just(Event::Tick),
        any_key().prop_map(Event::Booted),
        any_key().prop_map(Event::BootFailed),
        (any_key(), any::<u8>())
            .prop_map(|(k, status)| Event::Ended(k, Outcome::Exited { status })),
        (any_key(), 0_usize..3).prop_map(|(k, worker)| Event::Moved(k, worker)),
        (0_usize..3).prop_map(Event::Idle),
        (0_usize..3).prop_map(Event::Crowded),
        (0_usize..5).prop_map(Event::Stop),
        (0_usize..5).prop_map(Event::Restart),
    ]
}

proptest! {
    /// Whatever happens, no replica has two generations alive, none is booted
    /// while it lives, going down ends, and no alarm is of the past after a tick: who
    /// ticks when it says so would do nothing else.
    #[test]
    fn no_replica_ever_lives_twice(
        events in proptest::collection::vec((0_u64..40_000, any_event()), 0..200),
    ) {
        let mut cell = Cell::new(2, &[
            replica(0, Restart::Always), replica(1, Restart::OnFailure), replica(1, Restart::Never),
        ]);
        let mut alive: std::collections::BTreeMap<usize, u64> = Default::default();
        let mut now = 0;
        let boots = |actions: &[Action], alive: &mut std::collections::BTreeMap<usize, u64>| {
            for action in actions {
                if let Action::Boot { key, worker } = action {
                    assert!(*worker < 2);
                    assert_eq!(alive.insert(key.replica, key.generation), None, "lives twice");
                }
            }
        };
        boots(&cell.handle(ms(0), Event::Start), &mut alive);
        for (step, event) in events {
            now += step;
            // A worker only speaks of the dead once; the script may do it often.
            if let Event::Ended(k, _) | Event::BootFailed(k) = event
                && alive.get(&k.replica) == Some(&k.generation)
            {
                alive.remove(&k.replica);
            }
            let actions = cell.handle(ms(now), event);
            boots(&actions, &mut alive);
            if event == Event::Tick {
                assert!(cell.alarm().is_none_or(|alarm| alarm > ms(now)), "an alarm that stays");
            }
        }
        let mut finished = cell.handle(ms(now), Event::Down).contains(&Action::Finished);
        now += 60_000;
        cell.handle(ms(now), Event::Tick);
        assert_eq!(cell.alarm(), None, "nothing is started any more");
        for (replica, generation) in alive {
            let ended = Event::Ended(key(replica, generation), Outcome::Stopped(Stop::Terminate));
            finished |= cell.handle(ms(now), ended).contains(&Action::Finished);
        }
        assert!(finished);
    }
}

#[test]
fn a_life_beside_takes_the_place_of_the_present_one_and_what_was_said_of_that_with_it() {
    let mut cell = Cell::new(1, &[replica(0, Restart::Never)]);
    assert_eq!(cell.begin_heir(0), None, "nothing lives");
    cell.handle(ms(0), Event::Start);
    let old = cell.key(0);
    assert_eq!(cell.begin_heir(0), None, "it is being made");
    cell.handle(ms(1), Event::Booted(old));
    let (new, worker) = cell.begin_heir(0).unwrap();
    assert_eq!((new.generation, worker, cell.key(0)), (2, 0, old));

    // One that came to nothing leaves its number behind.
    let (third, _) = cell.begin_heir(0).unwrap();
    assert_eq!(third.generation, 3);
    cell.handle(ms(2), Event::Stop(0));
    assert_eq!(cell.begin_heir(0), None, "it is to end");
    let told = cell.handle(ms(3), Event::Adopted(third, 0));
    assert_eq!(
        told,
        [Action::Stop {
            key: third,
            worker: 0
        }]
    );
    assert_eq!(cell.key(0), third);
    // Of the lives before nothing counts any more.
    assert_eq!(cell.handle(ms(4), Event::Adopted(new, 0)), []);
    assert_eq!(cell.handle(ms(5), Event::Ended(old, Outcome::Faulted)), []);
    assert!(matches!(cell.state(0), State::Up { .. }));
    cell.handle(ms(6), Event::Ended(third, Outcome::Faulted));
    assert_eq!(cell.state(0), State::Down);
}

#[test]
fn a_cell_goes_on_in_another_process_where_it_was() {
    let mut cell = Cell::new(
        2,
        &[replica(0, Restart::Always), replica(0, Restart::Never)],
    );
    cell.handle(ms(0), Event::Start);
    for replica in 0..2 {
        cell.handle(ms(0), Event::Booted(key(replica, 1)));
    }
    cell.handle(ms(5), Event::Ended(key(0, 1), FAILED));
    let text = serde_json::to_string(&cell).unwrap();
    let other: Cell = serde_json::from_str(&text).unwrap();
    let mut other = other.moved_to(3, |key| (key.replica == 1).then_some(2));
    let since = ms(0);
    assert_eq!(other.state(1), State::Up { worker: 2, since });
    assert_eq!(other.alarm(), cell.alarm());
    let again = |worker| Action::Boot {
        key: key(0, 2),
        worker,
    };
    let due = cell.alarm().unwrap();
    assert_eq!(cell.handle(due, Event::Tick), [again(0)]);
    assert_eq!(other.handle(due, Event::Tick), [again(0)]);
    assert_eq!(other.restarts(0), 1);
}
