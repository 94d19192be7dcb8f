//! Scripts, and whatever can happen in any order.

use proptest::prelude::*;

use super::{Action, DRAIN, Event, HAND_OVER, READY, Upgrade, Verdict, Which};
use crate::Instant;
use crate::policy::{Canary, Judgement, Plan};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

fn play(upgrade: &mut Upgrade, script: Vec<(u64, Event, Vec<Action>)>) {
    for (line, (at, event, expected)) in script.into_iter().enumerate() {
        let shown = format!("line {line}: {at} ms {event:?}");
        let actions = upgrade.handle(Instant::from_nanos(at * MS), event);
        assert_eq!(actions, expected, "{shown}");
    }
}

fn refused(reason: &str) -> Action {
    Action::Decided(Verdict::Refused(reason.to_owned()))
}

fn canary(percent: u32) -> Canary {
    Canary {
        percent,
        period: SECOND,
    }
}

/// Up to where the new one is about to begin.
fn started(plan: Plan) -> Upgrade {
    let mut upgrade = Upgrade::new(false);
    let resumes = plan != Plan::Replace;
    let after = if resumes {
        vec![Action::Resume, Action::Transform]
    } else {
        vec![Action::Transform]
    };
    play(
        &mut upgrade,
        vec![
            (0, Event::Begin(None), vec![Action::Review]),
            (1, Event::Reviewed(plan), vec![Action::Boot]),
            (4, Event::Booted, vec![Action::AskHandOver]),
            (5, Event::HandedOver { waits: true }, after),
            (6, Event::Transformed, vec![Action::Start]),
        ],
    );
    assert_eq!(upgrade.runs_beside(), resumes);
    upgrade
}

#[test]
fn the_new_one_takes_the_old_ones_place() {
    let mut upgrade = started(Plan::Replace);
    play(
        &mut upgrade,
        vec![
            (8, Event::Ready, vec![Action::CutOver]),
            (
                9,
                Event::Cut,
                vec![Action::Adopt, Action::Decided(Verdict::Kept)],
            ),
            (10, Event::Ended(Which::New, "faulted".into()), vec![]),
        ],
    );
    assert!(upgrade.is_over());
}

#[test]
fn whatever_goes_wrong_before_the_cut_has_the_old_one_go_on() {
    let gone = |reason: &str| vec![Action::Kill(Which::New), Action::Resume, refused(reason)];
    let cases = [
        (
            7,
            Event::Ended(Which::New, "faulted".into()),
            vec![Action::Resume, refused("the new version faulted")],
        ),
        (
            6 + READY.as_millis() as u64,
            Event::Tick,
            gone("the new version was not ready within 10 s"),
        ),
        (7, Event::Cancel("stopped".into()), gone("stopped")),
        (
            7,
            Event::Ended(Which::Old, "exited".into()),
            vec![
                Action::Kill(Which::New),
                refused("the old version exited meanwhile"),
            ],
        ),
    ];
    for (at, event, expected) in cases {
        let mut upgrade = started(Plan::Replace);
        play(&mut upgrade, vec![(at, event, expected)]);
        assert!(upgrade.is_over());
    }
    let mut upgrade = started(Plan::Replace);
    play(
        &mut upgrade,
        vec![
            (8, Event::Ready, vec![Action::CutOver]),
            (9, Event::CutFailed("disk full".into()), gone("disk full")),
        ],
    );
}

#[test]
fn who_does_not_hand_over_in_time_or_well_keeps_its_place() {
    let until = 4 + HAND_OVER.as_millis() as u64;
    for (at, event, reason) in [
        (
            until,
            Event::Tick,
            "the old version did not hand over within 2 s",
        ),
        (9, Event::HandOverFailed("too much".into()), "too much"),
    ] {
        let mut upgrade = Upgrade::new(false);
        play(
            &mut upgrade,
            vec![
                (0, Event::Begin(Some(Plan::Replace)), vec![Action::Boot]),
                (4, Event::Booted, vec![Action::AskHandOver]),
                (5, Event::Tick, vec![]),
                (
                    at,
                    event,
                    vec![Action::Kill(Which::New), Action::Resume, refused(reason)],
                ),
                // It was on its way.
                (at, Event::HandedOver { waits: true }, vec![]),
            ],
        );
    }
}

#[test]
fn a_policy_may_put_off_or_refuse() {
    let mut upgrade = Upgrade::new(false);
    play(
        &mut upgrade,
        vec![
            (0, Event::Begin(None), vec![Action::Review]),
            (1, Event::Reviewed(Plan::Defer(SECOND)), vec![]),
            (1000, Event::Tick, vec![]),
            (1001, Event::Tick, vec![Action::Review]),
            (
                1002,
                Event::Reviewed(Plan::Refuse("no".into())),
                vec![refused("no")],
            ),
        ],
    );
    let mut exclusive = Upgrade::new(true);
    let both = "both versions cannot write one disk: the plan must be to replace";
    play(
        &mut exclusive,
        vec![
            (0, Event::Begin(None), vec![Action::Review]),
            (
                1,
                Event::Reviewed(Plan::Canary(canary(5))),
                vec![refused(both)],
            ),
        ],
    );
}

#[test]
fn a_canary_goes_by_steps_and_the_old_one_ends_when_it_is_alone() {
    let mut upgrade = started(Plan::Canary(canary(5)));
    let left = |connections| Event::Left(connections);
    play(
        &mut upgrade,
        vec![
            (10, Event::Ready, vec![Action::Share(5)]),
            (11, Event::Tick, vec![]),
            (1010, Event::Tick, vec![Action::Judge]),
            (1011, Event::Judged(Judgement::Wait(SECOND)), vec![]),
            (2011, Event::Tick, vec![Action::Judge]),
            (
                2012,
                Event::Judged(Judgement::Advance(canary(50))),
                vec![Action::Share(50)],
            ),
            (3012, Event::Tick, vec![Action::Judge]),
            (
                3013,
                Event::Judged(Judgement::Keep),
                vec![
                    Action::Share(100),
                    Action::Adopt,
                    Action::Decided(Verdict::Kept),
                ],
            ),
            (3013, Event::Tick, vec![Action::Count(Which::Old)]),
            (3014, left(3), vec![]),
            (3033, Event::Tick, vec![Action::Count(Which::Old)]),
            (3034, left(0), vec![Action::Stop(Which::Old)]),
            (3035, Event::Ended(Which::Old, "exited".into()), vec![]),
        ],
    );
    assert!(upgrade.is_over());
}

#[test]
fn what_is_worse_goes_with_its_connections_in_peace() {
    let mut upgrade = started(Plan::BlueGreen(SECOND));
    let back = Verdict::RolledBack("slow".into());
    let until = 1011 + DRAIN.as_millis() as u64;
    play(
        &mut upgrade,
        vec![
            (10, Event::Ready, vec![Action::Share(100)]),
            (1010, Event::Tick, vec![Action::Judge]),
            (
                1011,
                Event::Judged(Judgement::RollBack("slow".into())),
                vec![Action::Share(0), Action::Decided(back)],
            ),
            (1011, Event::Tick, vec![Action::Count(Which::New)]),
            (1012, Event::Left(1), vec![]),
            (until, Event::Tick, vec![Action::Stop(Which::New)]),
        ],
    );
}

#[test]
fn a_canary_that_faults_is_over_at_once() {
    let mut upgrade = started(Plan::Canary(canary(5)));
    let back = Verdict::RolledBack("the new version faulted".into());
    play(
        &mut upgrade,
        vec![
            (10, Event::Ready, vec![Action::Share(5)]),
            (
                11,
                Event::Ended(Which::New, "faulted".into()),
                vec![Action::Share(0), Action::Decided(back)],
            ),
        ],
    );
    assert!(upgrade.is_over());
}

fn any_event() -> impl Strategy<Value = Event> {
    let words = || Just("x".to_owned());
    let which = || prop_oneof![Just(Which::Old), Just(Which::New)];
    let plan = prop_oneof![
        3 => Just(Plan::Replace),
        1 => Just(Plan::BlueGreen(SECOND)),
        2 => Just(Plan::Canary(canary(5))),
        1 => Just(Plan::Defer(SECOND)),
        1 => Just(Plan::Refuse("no".to_owned())),
    ];
    let judgement = prop_oneof![
        Just(Judgement::Keep),
        Just(Judgement::Wait(SECOND)),
        Just(Judgement::Advance(canary(9))),
        Just(Judgement::RollBack("no".to_owned())),
    ];
    prop_oneof![
        3 => plan.prop_map(Event::Reviewed),
        3 => Just(Event::Booted),
        1 => words().prop_map(Event::BootFailed),
        3 => any::<bool>().prop_map(|waits| Event::HandedOver { waits }),
        1 => words().prop_map(Event::HandOverFailed),
        3 => Just(Event::Transformed),
        1 => words().prop_map(Event::TransformFailed),
        3 => Just(Event::Ready),
        3 => Just(Event::Cut),
        1 => words().prop_map(Event::CutFailed),
        3 => judgement.prop_map(Event::Judged),
        1 => (which(), words()).prop_map(|(which, words)| Event::Ended(which, words)),
        1 => (0_u32..2).prop_map(Event::Left),
        1 => words().prop_map(Event::Cancel),
        4 => Just(Event::Tick),
    ]
}

proptest! {
    /// Whatever happens in whatever order: there is one verdict at most; the old one
    /// stands still only between its hand-over and that; and unless the new one was
    /// kept, nothing of it is left when the upgrade is over.
    #[test]
    fn there_is_always_one_version_in_place(
        events in prop::collection::vec((0_u64..4 * SECOND, any_event()), 0..60),
    ) {
        let mut upgrade = Upgrade::new(false);
        let (mut now, mut verdict) = (0, None);
        let (mut made, mut asked, mut old_is_gone) = (false, false, false);
        let mut happens = vec![(0, Event::Begin(None))];
        happens.extend(events);
        for (later, event) in happens {
            now += later;
            // What there is no machine for, nobody says.
            let is_possible = match &event {
                Event::Ended(Which::New, _) | Event::Ready | Event::Cut | Event::CutFailed(_) => made,
                Event::Ended(Which::Old, _) => !old_is_gone,
                Event::HandedOver { .. } | Event::HandOverFailed(_) => asked,
                _ => true,
            };
            if !is_possible {
                continue;
            }
            match &event {
                Event::Booted => made |= upgrade.step() == "booting",
                Event::Ended(Which::New, _) => made = false,
                Event::Ended(Which::Old, _) => {
                    old_is_gone = true;
                    asked = false;
                }
                _ => {}
            }
            for action in upgrade.handle(Instant::from_nanos(now), event) {
                match action {
                    Action::AskHandOver => asked = true,
                    Action::Resume => {
                        prop_assert!(asked);
                        asked = false;
                    }
                    Action::Kill(Which::New) => {
                        prop_assert!(made);
                        made = false;
                    }
                    Action::Kill(Which::Old) => old_is_gone = true,
                    Action::Decided(it) => {
                        prop_assert_eq!(&verdict, &None);
                        prop_assert!(it == Verdict::Kept || !asked, "the old one stands still");
                        verdict = Some(it);
                    }
                    _ => {}
                }
            }
            if upgrade.is_over() {
                match &verdict {
                    None => prop_assert!(false, "over without a verdict"),
                    Some(Verdict::Kept) => {}
                    Some(_) => prop_assert!(!made, "something of the new one is left"),
                }
                prop_assert_eq!(upgrade.alarm(), None);
            }
        }
    }
}
