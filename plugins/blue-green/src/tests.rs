#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use super::bindings::lifecycle::Setting;
use super::bindings::upgrader::{Guest, Judgement, Observation, Plan, Proposal, Version};
use super::{BlueGreen, Plugin, S};

fn policy(pairs: &[(&str, &str)]) -> Result<BlueGreen, String> {
    let setting = |(key, value): &(&str, &str)| Setting {
        key: (*key).to_owned(),
        value: (*value).to_owned(),
    };
    BlueGreen::configure(pairs.iter().map(setting).collect())
}

fn proposal(old: u32, new: u32) -> Proposal {
    let version = |generation, state_schema| Version {
        digest: String::new(),
        generation,
        state_schema,
    };
    Proposal {
        now: 0,
        replica: 0,
        old: version(1, old),
        new: version(2, new),
        connections: 0,
        labels: Vec::new(),
    }
}

fn observed(connections: u64, errors: u64, faults: u32) -> Observation {
    Observation {
        connections,
        errors,
        faults,
        median: 0,
        p99: 0,
    }
}

#[test]
fn who_has_no_state_runs_beside_the_new_version() {
    let blue_green = |period| Plan::BlueGreen(period);
    for (pairs, old, new, plan) in [
        (&[][..], 0, 0, blue_green(30 * S)),
        (&[("period", "2min")], 0, 0, blue_green(120 * S)),
        (&[("stateful", "refuse")], 0, 0, blue_green(30 * S)),
        (&[], 1, 0, Plan::Replace),
        (&[], 0, 1, Plan::Replace),
        (&[("stateful", "replace")], 2, 2, Plan::Replace),
    ] {
        let policy = policy(pairs).unwrap();
        assert_eq!(policy.review(&proposal(old, new)), plan, "{pairs:?}");
    }
    let plan = policy(&[("stateful", "refuse")])
        .unwrap()
        .review(&proposal(1, 1));
    assert!(matches!(plan, Plan::Refuse(_)), "{plan:?}");
}

#[test]
fn the_old_one_comes_back_when_the_new_one_does_worse() {
    let quiet = observed(0, 0, 0);
    for (pairs, old, new, kept) in [
        (&[][..], quiet, quiet, true),
        (&[], quiet, observed(0, 0, 1), false),
        (&[], quiet, observed(1000, 0, 1), false),
        (&[], quiet, observed(1000, 10, 0), true),
        (&[], quiet, observed(1000, 11, 0), false),
        (&[], observed(100, 5, 0), observed(1000, 60, 0), true),
        (&[], observed(100, 5, 0), observed(1000, 61, 0), false),
        (&[], observed(100, 5, 9), observed(100, 5, 0), true),
        (&[("errors", "0.5")], quiet, observed(1000, 6, 0), false),
        (
            &[],
            observed(1, u64::MAX, 0),
            observed(u64::MAX, u64::MAX, 0),
            true,
        ),
    ] {
        let judged = policy(pairs).unwrap().judge(&proposal(0, 0), &old, &new);
        assert_eq!(judged == Judgement::Keep, kept, "{old:?} {new:?}");
        assert_eq!(matches!(judged, Judgement::RollBack(_)), !kept);
    }
}

#[test]
fn it_is_not_kept_before_it_took_enough_connections() {
    let policy = policy(&[("connections", "10")]).unwrap();
    let judge = |schema, new| policy.judge(&proposal(schema, schema), &observed(0, 0, 0), &new);
    assert_eq!(judge(0, observed(9, 0, 0)), Judgement::Wait(30 * S));
    assert_eq!(judge(0, observed(10, 0, 0)), Judgement::Keep);
    assert_eq!(judge(1, observed(9, 0, 0)), Judgement::Keep);
    let failed = judge(0, observed(9, 0, 1));
    assert!(matches!(failed, Judgement::RollBack(_)), "{failed:?}");
}

#[test]
fn a_reason_says_the_numbers() {
    let policy = policy(&[]).unwrap();
    let (old, new) = (observed(1000, 1, 0), observed(80, 4, 0));
    assert_eq!(
        policy.judge(&proposal(0, 0), &old, &new),
        Judgement::RollBack(
            "errors in 4 of its 80 connections, in 1 of the old one's 1000".to_owned()
        )
    );
}

#[test]
fn state_of_the_same_format_is_handed_over() {
    assert_eq!(
        Plugin::transform(proposal(3, 3), vec![1, 2]),
        Ok(vec![1, 2])
    );
    let refused = Plugin::transform(proposal(3, 4), vec![1, 2]);
    let said = "nothing turns state of format 3 into format 4";
    assert_eq!(refused, Err(said.to_owned()));
}

#[test]
fn wrong_settings_are_refused_by_name() {
    for (key, value) in [
        ("period", "30"),
        ("period", "0s"),
        ("connections", "-1"),
        ("errors", "101"),
        ("stateful", "yes"),
        ("percent", "5"),
    ] {
        let refusal = policy(&[(key, value)]).err().unwrap();
        assert!(refusal.contains(key), "{refusal}");
    }
}
