//! Scripts: a line is a moment in milliseconds, what happens then, and what the
//! task must do.

use std::time::Duration;

use proptest::prelude::{Strategy, any, prop_oneof, proptest};
use wharf_abi::{Answer, Interest};

use super::{Action, Event, GRACE, Task};
use crate::{Instant, Outcome, Stop};

const STOP: u64 = Interest::STOP.bits();
const FOREVER: Option<Instant> = None;

const fn ms(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

const fn wait(deadline: Option<Instant>, interest: u64) -> Event {
    Event::Wait {
        deadline,
        interest,
        ready: Interest::NONE,
    }
}

fn ready(interest: Interest) -> Action {
    Action::Enter(Some(Answer::ok(interest.bits())))
}

const fn stopped(stop: Stop) -> Action {
    Action::End(Outcome::Stopped(stop))
}

const fn park(until: Option<Instant>) -> Action {
    Action::Park { until }
}

fn play(limit: Option<Instant>, script: &[(u64, Event, Action)]) {
    let mut task = Task::new(limit);
    for (line, &(at, event, expected)) in script.iter().enumerate() {
        assert_eq!(
            task.handle(ms(at), event),
            expected,
            "line {line}: {at} ms {event:?}"
        );
    }
}

#[test]
fn what_was_done_at_once_changes_nothing() {
    play(
        Some(ms(10)),
        &[
            (0, Event::Start, Action::Enter(None)),
            (1, Event::Again, Action::Enter(None)),
            (2, Event::Again, Action::Enter(None)),
            (3, wait(FOREVER, 0), park(Some(ms(10)))),
            (10, Event::Again, stopped(Stop::TimeLimit)),
        ],
    );
}

#[test]
fn a_device_that_is_ready_ends_a_wait_that_asks_for_it() {
    let disk = Interest::device(0);
    let other = Interest::device(1);
    let with = |interest: Interest, ready| Event::Wait {
        deadline: FOREVER,
        interest: interest.bits(),
        ready,
    };
    let devices = |ready| Event::Devices { ready };
    play(
        None,
        &[
            (0, Event::Start, Action::Enter(None)),
            // At once.
            (1, with(disk, disk.union(other)), ready(disk)),
            // Another's is of no interest, until it is asked for.
            (2, with(disk, other), park(None)),
            (3, Event::Interrupted, park(None)),
            (4, devices(other), park(None)),
            (5, devices(other.union(disk)), ready(disk)),
            // Who asks for none sleeps through all of them.
            (6, with(Interest::NONE, disk), park(None)),
            (7, devices(Interest::DEVICES), park(None)),
        ],
    );
}

#[test]
fn who_hands_over_waits_for_what_becomes_of_it() {
    let upgrade = Interest::UPGRADE;
    let idle = wait(FOREVER, upgrade.union(Interest::STOP).bits());
    let go_on = |answer| Action::Enter(Some(answer));
    play(
        None,
        &[
            (0, Event::Start, Action::Enter(None)),
            (1, idle, park(None)),
            (2, Event::Upgrade, ready(upgrade)),
            // It has something to finish first.
            (3, wait(Some(ms(9)), STOP), park(Some(ms(9)))),
            (4, wait(FOREVER, upgrade.bits()), ready(upgrade)),
            (5, Event::HandOver, park(None)),
            (6, Event::Interrupted, park(None)),
            (7, Event::Resume, go_on(Answer::ok(0))),
            // Nobody asks any more.
            (8, idle, park(None)),
            (9, Event::Resume, park(None)),
            (10, Event::Upgrade, ready(upgrade)),
            (11, Event::HandOverFailed, go_on(Answer::INVALID)),
            (12, Event::HandOver, go_on(Answer::INVALID)),
            (13, idle, park(None)),
        ],
    );
}

#[test]
fn who_has_handed_over_can_be_ended() {
    play(
        None,
        &[
            (0, Event::Start, Action::Enter(None)),
            (1, Event::Upgrade, Action::Enter(None)),
            (
                2,
                wait(FOREVER, Interest::UPGRADE.bits()),
                ready(Interest::UPGRADE),
            ),
            (3, Event::HandOver, park(None)),
            (4, Event::Stop(Stop::Terminate), stopped(Stop::Terminate)),
        ],
    );
}

#[test]
fn a_guest_serves_when_it_says_so_or_first_waits_without_saying_that_it_does_not() {
    let mut task = Task::new(None);
    task.handle(ms(0), Event::Start);
    task.handle(ms(1), wait(Some(ms(2)), Interest::STARTING.bits()));
    task.handle(ms(2), Event::Interrupted);
    assert!(!task.is_ready() && !task.hands_over());
    let mut other = task.clone();
    task.handle(ms(3), wait(FOREVER, Interest::UPGRADE.bits()));
    assert!(task.is_ready() && task.hands_over());
    assert_eq!(
        other.handle(ms(3), Event::Ready),
        Action::Enter(Some(Answer::ok(0)))
    );
    assert!(other.is_ready());
}

#[test]
fn a_device_that_is_ready_no_more_ends_no_wait() {
    let disk = Interest::device(0);
    let waits = Event::Wait {
        deadline: Some(ms(9)),
        interest: disk.union(Interest::STOP).bits(),
        ready: Interest::NONE,
    };
    let devices = |ready| Event::Devices { ready };
    play(
        None,
        &[
            (0, Event::Start, Action::Enter(None)),
            // A look at a guest that runs is nothing to it.
            (1, devices(disk), Action::Enter(None)),
            (2, waits, park(Some(ms(9)))),
            (3, devices(Interest::NONE), park(Some(ms(9)))),
            (9, devices(disk), ready(disk.union(Interest::TIMER))),
        ],
    );
}

#[test]
fn a_kick_is_answered_as_it_was_taken() {
    for answer in [Answer::ok(0), Answer::INVALID] {
        play(
            None,
            &[
                (0, Event::Start, Action::Enter(None)),
                (1, Event::Kick { answer }, Action::Enter(Some(answer))),
            ],
        );
    }
}

#[test]
fn a_guest_that_exits_ends_with_its_status() {
    play(
        None,
        &[
            (0, Event::Start, Action::Enter(None)),
            (
                1,
                Event::Exit { status: 42 },
                Action::End(Outcome::Exited { status: 42 }),
            ),
        ],
    );
}

#[test]
fn an_interrupted_guest_goes_on_where_it_was() {
    play(
        None,
        &[
            (0, Event::Start, Action::Enter(None)),
            (1, Event::Interrupted, Action::Enter(None)),
            (2, Event::Interrupted, Action::Enter(None)),
        ],
    );
}

#[test]
fn a_wait_ends_at_its_deadline_and_not_before() {
    play(
        None,
        &[
            (0, Event::Start, Action::Enter(None)),
            (1, wait(Some(ms(10)), 0), park(Some(ms(10)))),
            (4, Event::Interrupted, park(Some(ms(10)))),
            (10, Event::Interrupted, ready(Interest::TIMER)),
        ],
    );
}

#[test]
fn a_deadline_in_the_past_returns_at_once() {
    play(
        None,
        &[
            (5, Event::Start, Action::Enter(None)),
            (5, wait(Some(ms(5)), 0), ready(Interest::TIMER)),
            (6, wait(Some(ms(0)), STOP), ready(Interest::TIMER)),
        ],
    );
}

#[test]
fn a_wait_without_deadline_parks_for_ever() {
    play(
        None,
        &[
            (0, Event::Start, Action::Enter(None)),
            (1, wait(FOREVER, 0), park(None)),
            (1_000_000, Event::Interrupted, park(None)),
        ],
    );
}

#[test]
fn an_unknown_interest_is_refused_and_the_guest_runs_on() {
    play(
        None,
        &[
            (0, Event::Start, Action::Enter(None)),
            (
                1,
                wait(FOREVER, 1 << 63),
                Action::Enter(Some(Answer::INVALID)),
            ),
            (
                2,
                wait(FOREVER, u64::MAX),
                Action::Enter(Some(Answer::INVALID)),
            ),
        ],
    );
}

#[test]
fn a_console_write_answers_with_the_bytes_taken() {
    play(
        None,
        &[
            (0, Event::Start, Action::Enter(None)),
            (1, Event::ConsoleWrite, Action::Write { until: None }),
            (2, Event::Interrupted, Action::Write { until: None }),
            (
                3,
                Event::Written { bytes: 5 },
                Action::Enter(Some(Answer::ok(5))),
            ),
        ],
    );
}

#[test]
fn a_closed_console_ends_the_task() {
    play(
        None,
        &[
            (0, Event::Start, Action::Enter(None)),
            (1, Event::ConsoleWrite, Action::Write { until: None }),
            (2, Event::ConsoleClosed, stopped(Stop::ConsoleClosed)),
        ],
    );
}

#[test]
fn a_guest_that_never_asked_to_be_told_is_stopped_at_once() {
    let stop = Event::Stop(Stop::Interrupt);
    let running = [
        (0, Event::Start, Action::Enter(None)),
        (1, stop, stopped(Stop::Interrupt)),
    ];
    play(None, &running);
    play(
        None,
        &[
            (0, Event::Start, Action::Enter(None)),
            (1, wait(FOREVER, 0), park(None)),
            (2, stop, stopped(Stop::Interrupt)),
        ],
    );
    play(
        None,
        &[
            (0, Event::Start, Action::Enter(None)),
            (1, Event::ConsoleWrite, Action::Write { until: None }),
            (2, stop, stopped(Stop::Interrupt)),
        ],
    );
}

#[test]
fn a_guest_that_asked_is_told_and_given_time() {
    let end = ms(2).after(GRACE);
    play(
        None,
        &[
            (0, Event::Start, Action::Enter(None)),
            (1, wait(FOREVER, STOP), park(None)),
            (2, Event::Stop(Stop::Terminate), ready(Interest::STOP)),
            (3, wait(Some(ms(9_000)), 0), park(Some(end))),
            (5_002, Event::Interrupted, stopped(Stop::Terminate)),
        ],
    );
}

#[test]
fn the_time_to_finish_is_the_tasks_own() {
    let mut task = Task::new(None).with_grace(Duration::from_millis(7));
    task.handle(ms(0), Event::Start);
    task.handle(ms(0), wait(FOREVER, STOP));
    task.handle(ms(1), Event::Stop(Stop::Terminate));
    assert_eq!(task.alarm(), Some(ms(8)));
}

#[test]
fn a_guest_stopped_between_two_waits_is_told_at_the_next() {
    play(
        None,
        &[
            (0, Event::Start, Action::Enter(None)),
            (1, wait(Some(ms(1)), STOP), ready(Interest::TIMER)),
            (2, Event::Stop(Stop::Terminate), Action::Enter(None)),
            (3, wait(FOREVER, STOP), ready(Interest::STOP)),
            (
                4,
                Event::Exit { status: 0 },
                Action::End(Outcome::Exited { status: 0 }),
            ),
        ],
    );
}

#[test]
fn a_second_stop_ends_at_once() {
    play(
        None,
        &[
            (0, Event::Start, Action::Enter(None)),
            (1, wait(FOREVER, STOP), park(None)),
            (2, Event::Stop(Stop::Interrupt), ready(Interest::STOP)),
            (3, Event::Stop(Stop::Interrupt), stopped(Stop::Interrupt)),
        ],
    );
}

#[test]
fn the_time_limit_ends_a_task_in_every_state() {
    let limit = Some(ms(100));
    let late = (100, Event::Interrupted, stopped(Stop::TimeLimit));
    let start = (0, Event::Start, Action::Enter(None));
    play(limit, &[start, late]);
    play(limit, &[start, (1, wait(FOREVER, STOP), park(limit)), late]);
    play(
        limit,
        &[start, (1, wait(Some(ms(900)), 0), park(limit)), late],
    );
    play(
        limit,
        &[
            start,
            (1, Event::ConsoleWrite, Action::Write { until: limit }),
            late,
        ],
    );
}

#[test]
fn a_guest_that_exits_at_its_limit_has_exited() {
    play(
        Some(ms(100)),
        &[
            (0, Event::Start, Action::Enter(None)),
            (
                100,
                Event::Exit { status: 0 },
                Action::End(Outcome::Exited { status: 0 }),
            ),
        ],
    );
}

#[test]
fn what_has_ended_stays_ended() {
    let end = Action::End(Outcome::Faulted);
    play(
        None,
        &[
            (0, Event::Start, Action::Enter(None)),
            (1, Event::Fault, end),
            (2, Event::Exit { status: 0 }, end),
            (3, Event::Stop(Stop::Interrupt), end),
            (4, wait(FOREVER, 0), end),
        ],
    );
}

#[test]
fn the_alarm_is_the_earlier_of_limit_and_grace() {
    let mut task = Task::new(Some(ms(3)));
    assert_eq!(task.alarm(), Some(ms(3)));
    task = Task::new(None);
    assert_eq!(task.alarm(), None);
    task.handle(ms(0), Event::Start);
    task.handle(ms(0), wait(FOREVER, STOP));
    task.handle(ms(1), Event::Stop(Stop::Interrupt));
    assert_eq!(task.alarm(), Some(ms(1).after(GRACE)));
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Interrupted),
        (any::<Option<u64>>(), prop_oneof![0_u64..4, any::<u64>()])
            .prop_map(|(at, interest)| wait(at.map(Instant::from_nanos), interest)),
        Just(Event::ConsoleWrite),
        any::<u64>().prop_map(|bytes| Event::Written { bytes }),
        Just(Event::Stop(Stop::Interrupt)),
    ]
}

use proptest::prelude::Just;

proptest! {
    /// Whatever a guest does, two stops end it, and so does its limit.
    #[test]
    fn no_guest_outlives_two_stops_or_its_limit(
        events in proptest::collection::vec((0_u64..1_000, any_event()), 0..40),
        limited: bool,
    ) {
        let mut task = Task::new(limited.then_some(ms(1_000_000)));
        task.handle(ms(0), Event::Start);
        let mut now = 0;
        for (step, event) in events {
            now += step;
            let action = task.handle(ms(now), event);
            if let Action::Park { until: Some(until) } = action {
                assert!(until > ms(now), "a park that is over before it begins");
            }
        }
        if limited {
            let last = task.handle(ms(1_000_000), Event::Interrupted);
            assert!(matches!(last, Action::End(_)));
        } else {
            task.handle(ms(now), Event::Stop(Stop::Terminate));
            let last = task.handle(ms(now), Event::Stop(Stop::Terminate));
            assert!(matches!(last, Action::End(_)));
        }
    }
}

#[test]
fn a_task_goes_on_in_another_process_where_it_was() {
    let mut task = Task::new(None);
    task.handle(Instant::from_nanos(0), Event::Start);
    let wait = Event::Wait {
        deadline: Some(Instant::from_nanos(50)),
        interest: Interest::STOP.union(Interest::device(0)).bits(),
        ready: Interest::NONE,
    };
    task.handle(Instant::from_nanos(1), wait);
    let text = serde_json::to_string(&task).unwrap();
    let mut other: Task = serde_json::from_str(&text).unwrap();
    assert_eq!(other, task);
    let ready = Interest::device(0);
    let answer = Action::Enter(Some(Answer::ok(ready.bits())));
    let look = Event::Devices { ready };
    assert_eq!(other.handle(Instant::from_nanos(2), look), answer);
    let forged = text.replace(
        &ready.union(Interest::STOP).bits().to_string(),
        "8388608000",
    );
    assert_ne!(forged, text);
    assert!(serde_json::from_str::<Task>(&forged).is_err());
}
