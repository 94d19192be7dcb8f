#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may stop where it stands"
)]

use super::bindings::lifecycle::Setting;
use super::bindings::upgrader::{Canary, Guest, Judgement, Observation, Plan, Proposal, Version};
use super::{CanaryJudge, Plugin, S};

fn policy(pairs: &[(&str, &str)]) -> Result<CanaryJudge, String> {
    let setting = |(key, value): &(&str, &str)| Setting {
        key: (*key).to_owned(),
        value: (*value).to_owned(),
    };
    let mut policy = CanaryJudge::default();
    policy.configure(pairs.iter().map(setting).collect(), 2)?;
    Ok(policy)
}

fn proposal(replica: u32, generation: u64, schema: u32) -> Proposal {
    let version = |generation| Version {
        digest: String::new(),
        generation,
        state_schema: schema,
    };
    Proposal {
        now: 0,
        replica,
        old: version(1),
        new: version(generation),
        connections: 0,
        labels: Vec::new(),
    }
}

fn observed(connections: u64, errors: u64, p99: u64) -> Observation {
    Observation {
        connections,
        errors,
        faults: 0,
        median: p99,
        p99,
    }
}

fn share(percent: u32) -> Canary {
    Canary {
        percent,
        period: 60 * S,
    }
}

const QUIET: Observation = Observation {
    connections: 0,
    errors: 0,
    faults: 0,
    median: 0,
    p99: 0,
};

#[test]
fn a_good_version_goes_up_all_steps_and_is_kept() {
    for (steps, percents) in [
        (&[][..], &[5, 25, 50][..]),
        (&[("steps", "[1, 10, 100]")], &[1, 10]),
        (&[("steps", "99")], &[99]),
    ] {
        let mut policy = policy(steps).unwrap();
        let asked = proposal(0, 2, 0);
        let (first, rest) = percents.split_first().unwrap();
        assert_eq!(policy.review(&asked), Plan::Canary(share(*first)));
        let mut taken = 20;
        for percent in rest {
            let judged = policy.judge(&asked, &QUIET, &observed(taken, 0, 0));
            assert_eq!(judged, Judgement::Advance(share(*percent)));
            let judged = policy.judge(&asked, &QUIET, &observed(taken.saturating_add(19), 0, 0));
            assert_eq!(judged, Judgement::Wait(60 * S));
            taken = taken.saturating_add(20);
        }
        let judged = policy.judge(&asked, &QUIET, &observed(taken, 0, 0));
        assert_eq!(judged, Judgement::Keep);
    }
}

#[test]
fn a_worse_version_goes_at_any_step() {
    let faulted = Observation { faults: 1, ..QUIET };
    for (pairs, old, new, said) in [
        (&[][..], QUIET, faulted, "it ended 1 times by a fault"),
        (&[], QUIET, observed(100, 2, 0), "errors in 2 of its 100"),
        (&[], QUIET, observed(100, 1, 0), ""),
        (&[], observed(100, 4, 0), observed(100, 6, 0), ""),
        (
            &[],
            observed(100, 4, 0),
            observed(100, 7, 0),
            "in 4 of the old one's 100",
        ),
        (
            &[("errors", "7")],
            observed(100, 4, 0),
            observed(100, 7, 0),
            "",
        ),
        (
            &[("error-factor", "2")],
            observed(100, 4, 0),
            observed(100, 8, 0),
            "",
        ),
        (&[], observed(9, 0, 8000), observed(100, 0, 12_000), ""),
        (
            &[],
            observed(9, 0, 8000),
            observed(100, 0, 12_001),
            "its p99 is 12 us, the old one's 8 us",
        ),
        (
            &[("p99-factor", "2")],
            observed(9, 0, 8000),
            observed(100, 0, 16_000),
            "",
        ),
        (&[], QUIET, observed(100, 0, u64::MAX), ""),
        (
            &[],
            observed(1, 1, u64::MAX),
            observed(u64::MAX, u64::MAX, u64::MAX),
            "",
        ),
    ] {
        for steps in 0..3 {
            let mut policy = policy(pairs).unwrap();
            let asked = proposal(1, 2, 0);
            policy.review(&asked);
            policy.trials.iter_mut().for_each(|it| it[1] = steps);
            match policy.judge(&asked, &old, &new) {
                Judgement::RollBack(reason) => {
                    assert!(!said.is_empty() && reason.contains(said), "{reason}");
                }
                other => assert!(said.is_empty(), "{other:?}, not {said}"),
            }
        }
    }
}

#[test]
fn of_an_upgrade_that_it_does_not_know_it_begins_anew() {
    let mut policy = policy(&[]).unwrap();
    policy.review(&proposal(0, 2, 0));
    let judged = policy.judge(&proposal(0, 3, 0), &QUIET, &observed(1000, 0, 0));
    assert_eq!(judged, Judgement::Advance(share(5)));
    let judged = policy.judge(&proposal(0, 3, 0), &QUIET, &observed(1019, 0, 0));
    assert_eq!(judged, Judgement::Wait(60 * S));
}

#[test]
fn who_has_a_state_or_is_unknown_is_left_to_the_built_in_policy() {
    let mut policy = policy(&[]).unwrap();
    for asked in [
        proposal(0, 2, 1),
        proposal(2, 2, 0),
        proposal(u32::MAX, 2, 0),
    ] {
        assert_eq!(policy.review(&asked), Plan::BuiltIn);
        let judged = policy.judge(&asked, &QUIET, &QUIET);
        assert_eq!(judged, Judgement::BuiltIn);
    }
}

#[test]
fn state_is_kept_as_a_whole() {
    let mut old = policy(&[]).unwrap();
    let asked = proposal(1, 7, 0);
    old.review(&asked);
    old.judge(&asked, &QUIET, &observed(30, 0, 0));
    let mut new = policy(&[]).unwrap();
    new.restore(&old.save()).unwrap();
    assert_eq!(new.trials, old.trials);
    let judged = new.judge(&asked, &QUIET, &observed(60, 0, 0));
    assert_eq!(judged, Judgement::Advance(share(50)));
    assert!(new.restore(&[0; 23]).is_err());
    new.restore(&[255; 24 * 9]).unwrap();
    assert_eq!(new.trials.len(), 2);
    new.judge(&proposal(0, u64::MAX, 0), &QUIET, &QUIET);
}

#[test]
fn state_of_the_same_format_is_handed_over() {
    assert_eq!(
        Plugin::transform(proposal(0, 2, 3), vec![1, 2]),
        Ok(vec![1, 2])
    );
    let mut other = proposal(0, 2, 3);
    other.new.state_schema = 4;
    assert!(Plugin::transform(other, Vec::new()).is_err());
}

#[test]
fn wrong_settings_are_refused_by_name() {
    for (key, value) in [
        ("steps", "[]"),
        ("steps", "100"),
        ("steps", "[0, 5]"),
        ("steps", "[5, 5]"),
        ("steps", "[25, 5]"),
        ("steps", "[5, 100, 100]"),
        ("steps", "[5, 101]"),
        ("period", "1"),
        ("connections", "x"),
        ("errors", "100.001"),
        ("error-factor", "0.9"),
        ("p99-factor", "-2"),
        ("percent", "5"),
    ] {
        let refusal = policy(&[(key, value)]).err().unwrap();
        assert!(refusal.contains(key), "{refusal}");
    }
}
