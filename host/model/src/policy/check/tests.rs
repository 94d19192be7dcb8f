use super::super::{
    Answer, AttachVerdict, Attachment, Canary, Candidate, Choice, Connection, DeviceKind,
    Direction, Endpoint, Judgement, Observation, Plan, Proposal, Question, Target, Verdict,
    Version, View, built_in,
};
use super::{Nonsense, SLICE_NS, check, short};
use proptest::prelude::{any, prop};
use proptest::{prop_assert, prop_assert_eq, proptest};

fn view() -> Question {
    let candidate = |replica| Candidate {
        replica,
        weight: 100,
        generation: 7,
        ran: 0,
        virtual_time: 0,
        ready_since: 0,
    };
    Question::Next(View {
        ready: vec![candidate(4), candidate(9)],
        ..View::default()
    })
}

fn chosen(replica: u32, generation: u64, slice: u64) -> Result<Answer, Nonsense> {
    check(
        &view(),
        Answer::Next(Choice {
            replica,
            generation,
            slice,
        }),
    )
}

fn connection(direction: Direction, targets: u32) -> Connection {
    let target = |replica| Target {
        replica,
        connections: 0,
        generation: 1,
    };
    Connection {
        now: 0,
        lot: 5,
        direction,
        from_replica: None,
        source: Endpoint::default(),
        destination: Endpoint::default(),
        targets: (0..targets).map(target).collect(),
    }
}

fn proposal() -> Proposal {
    let version = |generation| Version {
        digest: String::new(),
        generation,
        state_schema: 1,
    };
    Proposal {
        now: 0,
        replica: 0,
        old: version(1),
        new: version(2),
        connections: 0,
        labels: Vec::new(),
    }
}

#[test]
fn a_choice_is_one_of_the_candidates_in_this_life() {
    assert!(chosen(9, 7, 0).is_ok());
    assert_eq!(chosen(5, 7, 0), Err(Nonsense::NotReady { replica: 5 }));
    assert_eq!(
        chosen(4, 6, 0),
        Err(Nonsense::WrongGeneration {
            replica: 4,
            generation: 6,
            alive: 7
        })
    );
}

#[test]
fn a_slice_is_clamped() {
    let slice = |ns| match chosen(4, 7, ns) {
        Ok(Answer::Next(choice)) => choice.slice,
        other => panic!("{other:?}"),
    };
    assert_eq!(slice(0), 2_000_000);
    assert_eq!(slice(1), *SLICE_NS.start());
    assert_eq!(slice(u64::MAX), *SLICE_NS.end());
    assert_eq!(slice(3_000_000), 3_000_000);
}

#[test]
fn a_place_is_in_the_list() {
    let asked = Question::Connect(connection(Direction::Inbound, 2));
    let answer = |verdict| check(&asked, Answer::Connect(verdict));
    assert!(answer(Verdict::Target(1)).is_ok());
    assert!(matches!(
        answer(Verdict::Target(2)),
        Err(Nonsense::NoSuchPlace {
            chosen: 2,
            of: 2,
            ..
        })
    ));
    assert_eq!(answer(Verdict::Pass), Err(Nonsense::NotOutbound));
    assert_eq!(answer(Verdict::Spread(vec![0, 0])), Err(Nonsense::NoWeight));
    assert_eq!(
        answer(Verdict::Spread(vec![1])),
        Err(Nonsense::WrongWeights {
            weights: 1,
            targets: 2
        })
    );
}

#[test]
fn the_built_in_router_lets_nothing_out() {
    let asked = Question::Connect(connection(Direction::Outbound, 0));
    assert_eq!(
        check(&asked, Answer::Connect(Verdict::BuiltIn)),
        Ok(Answer::Connect(Verdict::Deny))
    );
    assert_eq!(
        check(&asked, Answer::Connect(Verdict::Pass)),
        Ok(Answer::Connect(Verdict::Pass))
    );
}

#[test]
fn a_device_gets_what_is_called_like_it() {
    let asked = |device: &str| {
        Question::Attach(Attachment {
            now: 0,
            replica: 0,
            generation: 1,
            device: device.to_owned(),
            kind: DeviceKind::Block,
            backends: vec!["log".to_owned(), "data".to_owned()],
        })
    };
    assert_eq!(
        built_in(&asked("data")),
        Answer::Attach(AttachVerdict::Backend(1))
    );
    assert!(matches!(
        built_in(&asked("more")),
        Answer::Attach(AttachVerdict::Deny(_))
    ));
    assert!(check(&asked("data"), Answer::Attach(AttachVerdict::Backend(2))).is_err());
}

#[test]
fn a_device_for_frames_gets_the_first_wire_whatever_it_is_called() {
    let asked = |device: &str, backends: &[&str]| {
        built_in(&Question::Attach(Attachment {
            now: 0,
            replica: 0,
            generation: 1,
            device: device.to_owned(),
            kind: DeviceKind::Frames,
            backends: backends.iter().map(|it| (*it).to_owned()).collect(),
        }))
    };
    let backend = |place| Answer::Attach(AttachVerdict::Backend(place));
    assert_eq!(asked("lan", &["switch"]), backend(0));
    assert_eq!(asked("lan", &["tap0", "switch"]), backend(0));
    assert_eq!(asked("switch", &["tap0", "switch"]), backend(0));
    let none = asked("lan", &[]);
    assert!(matches!(none, Answer::Attach(AttachVerdict::Deny(_))));
}

#[test]
fn an_upgrade_is_kept_unless_it_does_worse() {
    let seen = |connections, errors, faults| Observation {
        connections,
        errors,
        faults,
        ..Observation::default()
    };
    let judged = |old, new| match built_in(&Question::Judge(proposal(), old, new)) {
        Answer::Judge(judgement) => judgement,
        other => panic!("{other:?}"),
    };
    assert_eq!(judged(seen(100, 0, 0), seen(100, 1, 0)), Judgement::Keep);
    assert!(matches!(
        judged(seen(100, 0, 0), seen(100, 2, 0)),
        Judgement::RollBack(_)
    ));
    assert!(matches!(
        judged(seen(100, 0, 0), seen(0, 0, 1)),
        Judgement::RollBack(_)
    ));
    assert_eq!(judged(seen(100, 50, 0), seen(100, 50, 0)), Judgement::Keep);
}

#[test]
fn a_canary_has_a_share() {
    let answer = |percent| {
        check(
            &Question::Review(proposal()),
            Answer::Review(Plan::Canary(Canary { percent, period: 0 })),
        )
    };
    assert!(answer(1).is_ok() && answer(99).is_ok());
    assert_eq!(answer(0), Err(Nonsense::Percent { percent: 0 }));
    assert_eq!(answer(100), Err(Nonsense::Percent { percent: 100 }));
}

#[test]
fn state_has_a_bound_and_reasons_are_cut() {
    let asked = Question::Transform(proposal(), Vec::new());
    let made = |len| check(&asked, Answer::Transform(Ok(vec![0; len])));
    assert!(made(1 << 20).is_ok());
    assert!(made((1 << 20) + 1).is_err());
    let long = short(&"ä\u{1b}[31m".repeat(1000));
    assert!(long.len() <= 260 && long.ends_with('…') && !long.contains('\u{1b}'));
}

#[test]
fn an_answer_to_another_question_is_none() {
    assert_eq!(
        check(&view(), Answer::Connect(Verdict::Deny)),
        Err(Nonsense::OtherQuestion)
    );
}

proptest! {
    /// By lot means by weight: over all lots each target gets its share exactly.
    #[test]
    fn a_spread_gives_each_its_weight(weights in prop::collection::vec(0_u32..20, 1..8)) {
        let sum: u32 = weights.iter().sum();
        let mut asked = connection(Direction::Inbound, weights.len() as u32);
        let mut got = vec![0; weights.len()];
        for lot in 0..u64::from(sum) {
            asked.lot = lot;
            let verdict = check(
                &Question::Connect(asked.clone()),
                Answer::Connect(Verdict::Spread(weights.clone())),
            );
            let Ok(Answer::Connect(Verdict::Target(place))) = verdict else {
                panic!("{verdict:?}");
            };
            got[place as usize] += 1;
        }
        prop_assert_eq!(got, weights);
    }

    /// What is built in always gives an answer that is one.
    #[test]
    fn the_built_in_never_talks_nonsense(
        targets in 0_u32..5, lot in any::<u64>(), outbound in any::<bool>(), candidates in 1_usize..9
    ) {
        let direction = if outbound { Direction::Outbound } else { Direction::Inbound };
        let mut asked = connection(direction, targets);
        asked.lot = lot;
        let Question::Next(mut view) = view() else { panic!() };
        view.ready = view.ready.iter().cycle().take(candidates).copied().collect();
        for question in [Question::Connect(asked), Question::Next(view)] {
            let answer = built_in(&question);
            prop_assert!(check(&question, answer.clone()) == Ok(answer));
        }
    }
}
