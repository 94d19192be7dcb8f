use std::time::Duration;

use proptest::prelude::{Just, Strategy, prop, prop_oneof};
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::{Action, Event, HEALTHY, PROBATION, QUARANTINE_FIRST, QUARANTINE_LAST, Slot, State};
use crate::Instant;

const TICK: Event = Event::Tick { answers: 1 };

fn at(seconds: u64) -> Instant {
    Instant::default().after(Duration::from_secs(seconds))
}

/// A slot whose plugin was put in at 0 and has passed its probation.
fn active() -> Slot {
    let mut slot = Slot::default();
    slot.handle(at(0), Event::Installed { predecessor: true });
    assert_eq!(
        slot.handle(Instant::default().after(PROBATION), TICK),
        Action::Confirm
    );
    assert_eq!(slot.state(), State::Active);
    slot
}

#[test]
fn a_slot_begins_with_what_is_built_in() {
    let slot = Slot::default();
    assert_eq!(slot.state(), State::BuiltIn);
    assert_eq!(slot.alarm(), None);
}

#[test]
fn probation_lasts_until_it_has_answered() {
    let mut slot = Slot::default();
    slot.handle(at(0), Event::Installed { predecessor: false });
    assert_eq!(
        slot.handle(at(100), Event::Tick { answers: 0 }),
        Action::None
    );
    assert_eq!(slot.state(), State::Probation);
    assert_eq!(slot.handle(at(4), TICK), Action::None);
    assert_eq!(slot.handle(at(101), TICK), Action::Confirm);
    assert_eq!(slot.state(), State::Active);
}

#[test]
fn a_plugin_that_nobody_asks_wakes_nobody_after_its_probation() {
    let mut slot = Slot::default();
    slot.handle(at(0), Event::Installed { predecessor: false });
    let over = Instant::default().after(PROBATION);
    assert_eq!(slot.alarm(), Some(over));
    slot.handle(over, Event::Tick { answers: 0 });
    assert_eq!(slot.alarm(), None);
    assert_eq!(slot.handle(at(60), TICK), Action::Confirm, "it is asked");
    slot.handle(at(61), Event::Installed { predecessor: true });
    assert_eq!(slot.alarm(), Some(at(61).after(PROBATION)), "a new one");
}

#[test]
fn one_strike_on_probation_brings_the_predecessor_back() {
    let mut slot = Slot::default();
    slot.handle(at(0), Event::Installed { predecessor: true });
    assert_eq!(slot.handle(at(1), Event::Struck), Action::Return);
    slot.handle(at(1), Event::Returned);
    assert_eq!(slot.state(), State::Active);
}

#[test]
fn one_strike_on_probation_without_a_predecessor_is_quarantine() {
    let mut slot = Slot::default();
    slot.handle(at(0), Event::Installed { predecessor: false });
    let pause = QUARANTINE_FIRST;
    assert_eq!(
        slot.handle(at(1), Event::Struck),
        Action::Quarantine { pause }
    );
    assert_eq!(slot.state(), State::Quarantined);
    assert_eq!(slot.alarm(), Some(at(1).after(pause)));
}

#[test]
fn three_strikes_within_ten_seconds_are_quarantine_and_others_are_not() {
    let mut slot = active();
    for second in [10, 15, 20, 25, 30] {
        assert_eq!(slot.handle(at(second), Event::Struck), Action::None);
    }
    assert_eq!(
        slot.handle(at(31), Event::Struck),
        Action::Quarantine {
            pause: QUARANTINE_FIRST
        }
    );
}

#[test]
fn a_quarantined_plugin_is_tried_again_ever_more_slowly() {
    let mut slot = Slot::default();
    let mut now = at(0);
    slot.handle(now, Event::Installed { predecessor: false });
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let Action::Quarantine { pause } = slot.handle(now, Event::Struck) else {
            panic!("a strike on probation");
        };
        pauses.push(pause.as_secs());
        assert_eq!(slot.handle(now, TICK), Action::None);
        now = slot.alarm().unwrap();
        assert_eq!(slot.handle(now, TICK), Action::Retry);
        assert_eq!(slot.handle(now, TICK), Action::None, "once");
        slot.handle(now, Event::Retried);
        assert_eq!(slot.state(), State::Probation);
    }
    assert_eq!(pauses[..5], [1, 2, 4, 8, 16]);
    assert_eq!(pauses[11], QUARANTINE_LAST.as_secs());
}

#[test]
fn a_retry_that_fails_waits_longer() {
    let mut slot = Slot::default();
    slot.handle(at(0), Event::Installed { predecessor: false });
    slot.handle(at(0), Event::Struck);
    assert_eq!(slot.handle(at(1), TICK), Action::Retry);
    let pause = QUARANTINE_FIRST * 2;
    assert_eq!(
        slot.handle(at(1), Event::RetryFailed),
        Action::Quarantine { pause }
    );
}

#[test]
fn a_healthy_time_makes_the_next_quarantine_a_first_one() {
    let quarantined_after = |healthy: Duration| {
        let mut slot = Slot::default();
        slot.handle(at(0), Event::Installed { predecessor: false });
        slot.handle(at(0), Event::Struck);
        slot.handle(at(1), TICK);
        slot.handle(at(1), Event::Retried);
        slot.handle(at(6), TICK);
        assert_eq!(slot.state(), State::Active);
        let late = at(6).after(healthy);
        slot.handle(late, Event::Struck);
        slot.handle(late, Event::Struck);
        slot.handle(late, Event::Struck)
    };
    let pause = QUARANTINE_FIRST;
    assert_eq!(quarantined_after(HEALTHY), Action::Quarantine { pause });
    let pause = QUARANTINE_FIRST * 2;
    assert_eq!(quarantined_after(HEALTHY / 2), Action::Quarantine { pause });
}

#[test]
fn a_late_strike_of_a_plugin_that_is_out_changes_nothing() {
    let mut slot = active();
    slot.handle(at(10), Event::Removed);
    assert_eq!(slot.handle(at(10), Event::Struck), Action::None);
    assert_eq!(slot.state(), State::BuiltIn);
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        prop::bool::ANY.prop_map(|predecessor| Event::Installed { predecessor }),
        Just(Event::Retried),
        Just(Event::RetryFailed),
        Just(Event::Struck),
        Just(Event::Returned),
        Just(Event::Removed),
        prop_oneof![Just(0), Just(7)].prop_map(|answers| Event::Tick { answers }),
    ]
}

proptest! {
    /// Whatever comes in whatever order: a return is only asked for where there is
    /// somebody to return to, a retry only of what is quarantined, quarantine always
    /// has an end, and who ticks when the alarm says so does not tick for ever at once.
    #[test]
    fn no_order_of_events_leads_astray(
        events in prop::collection::vec((any_event(), 0_u64..20_000), 1..200)
    ) {
        let mut slot = Slot::default();
        let mut now = Instant::default();
        let mut kept = false;
        let mut retrying = false;
        for (event, pause) in events {
            now = now.after(Duration::from_millis(pause));
            let before = slot.state();
            let action = slot.handle(now, event);
            match action {
                Action::Return => prop_assert!(kept && before == State::Probation),
                Action::Retry => {
                    prop_assert_eq!(before, State::Quarantined);
                    retrying = true;
                }
                Action::Quarantine { pause } => {
                    prop_assert!(pause >= QUARANTINE_FIRST && pause <= QUARANTINE_LAST);
                    retrying = false;
                }
                Action::Confirm => prop_assert_eq!(before, State::Probation),
                Action::None => {}
            }
            if matches!((event, action), (Event::Tick { .. }, Action::None)) {
                prop_assert!(slot.alarm().is_none_or(|alarm| alarm > now));
            }
            match event {
                Event::Installed { predecessor } => kept = predecessor,
                Event::Retried if before == State::Quarantined => kept = false,
                Event::Returned | Event::Removed => kept = false,
                _ => {}
            }
            if slot.state() == State::Quarantined {
                prop_assert!(slot.alarm().is_some() || retrying);
            } else {
                retrying = false;
            }
        }
    }
}
