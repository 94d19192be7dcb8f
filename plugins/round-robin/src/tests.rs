#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use super::bindings::scheduler::{Candidate, Slice, SliceEnd, View};
use super::{RoundRobin, Setting};

fn view(last: Option<u32>, ready: &[u32]) -> View {
    let slice = |replica| Slice {
        replica,
        end: SliceEnd::Preempted,
        ran: u64::MAX,
    };
    let candidate = |replica: &u32| Candidate {
        replica: *replica,
        weight: 0,
        generation: u64::from(*replica).saturating_add(100),
        ran: 0,
        virtual_time: 0,
        ready_since: 0,
    };
    View {
        now: 0,
        worker: 0,
        last: last.map(slice),
        ready: ready.iter().map(candidate).collect(),
    }
}

fn next(last: Option<u32>, ready: &[u32]) -> u32 {
    let choice = configured(&[]).unwrap().next(&view(last, ready));
    choice.replica
}

fn configured(pairs: &[(&str, &str)]) -> Result<RoundRobin, String> {
    let setting = |(key, value): &(&str, &str)| Setting {
        key: (*key).to_owned(),
        value: (*value).to_owned(),
    };
    RoundRobin::configure(pairs.iter().map(setting).collect())
}

#[test]
fn after_a_task_comes_the_next_higher_number() {
    for (last, ready, chosen) in [
        (None, &[7, 3, 5][..], 3),
        (Some(3), &[7, 3, 5], 5),
        (Some(5), &[7, 3, 5], 7),
        (Some(7), &[7, 3, 5], 3),
        (Some(4), &[7, 3, 5], 5),
        (Some(u32::MAX), &[7, 3, 5], 3),
        (Some(3), &[3], 3),
        (Some(0), &[u32::MAX, 0], u32::MAX),
    ] {
        assert_eq!(next(last, ready), chosen, "after {last:?} of {ready:?}");
    }
}

#[test]
fn of_nobody_it_names_nobody() {
    assert_eq!(next(None, &[]), u32::MAX);
}

#[test]
fn the_slice_is_as_configured() {
    let choice = configured(&[("slice", "1ms")])
        .unwrap()
        .next(&view(None, &[4, 2]));
    assert_eq!((choice.slice, choice.generation), (1_000_000, 102));
}

#[test]
fn wrong_settings_are_refused_by_name() {
    for (key, value, said) in [
        ("slice", "2", "slice = \"2\" is wrong"),
        ("slice", "1s", "slice = \"1s\" is wrong"),
        ("slize", "2ms", "there is no setting slize"),
    ] {
        let refusal = configured(&[(key, value)]).err().unwrap();
        assert!(refusal.contains(said), "{refusal}");
    }
}
