#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test may stop where it stands"
)]

use super::bindings::lifecycle::Setting;
use super::bindings::scheduler::{Candidate, Slice, SliceEnd, View};
use super::{FairShare, POLICY};

const SLICE: u64 = 2_000_000;

fn policy(pairs: &[(&str, &str)], tasks: usize) -> Result<FairShare, String> {
    let setting = |(key, value): &(&str, &str)| Setting {
        key: (*key).to_owned(),
        value: (*value).to_owned(),
    };
    let mut policy = POLICY.lock().unwrap().clone();
    policy.configure(pairs.iter().map(setting).collect(), tasks)?;
    Ok(policy)
}

fn view(worker: u32, last: Option<(u32, SliceEnd, u64)>, ready: &[(u32, u32)]) -> View {
    let candidate = |(replica, weight): &(u32, u32)| Candidate {
        replica: *replica,
        weight: *weight,
        generation: 1,
        ran: 0,
        virtual_time: 0,
        ready_since: 0,
    };
    View {
        now: 0,
        worker,
        last: last.map(|(replica, end, ran)| Slice { replica, end, ran }),
        ready: ready.iter().map(candidate).collect(),
    }
}

/// Who runs in so many slices in which all are always ready.
fn turns(policy: &mut FairShare, worker: u32, ready: &[(u32, u32)], count: usize) -> Vec<u32> {
    let mut last = None;
    let turn = |_| {
        let chosen = policy.next(&view(worker, last, ready)).replica;
        last = Some((chosen, SliceEnd::Preempted, SLICE));
        chosen
    };
    (0..count).map(turn).collect()
}

fn count(turns: &[u32], of: u32) -> usize {
    turns.iter().filter(|it| **it == of).count()
}

#[test]
fn shares_are_as_the_weights() {
    let mut policy = policy(&[], 2).unwrap();
    let turns = turns(&mut policy, 0, &[(0, 1), (1, 3)], 4000);
    assert!(count(&turns, 0).abs_diff(1000) <= 1);
}

#[test]
fn a_sleeper_comes_before_the_others_as_far_as_its_boost() {
    for (boost, before) in [("0", 1), ("1", 2), ("2", 3), ("5", 6)] {
        let mut policy = policy(&[("boost", boost)], 3).unwrap();
        turns(&mut policy, 0, &[(0, 100), (1, 100), (2, 100)], 9);
        turns(&mut policy, 0, &[(0, 100), (1, 100)], 100);
        let after = turns(&mut policy, 0, &[(2, 100), (0, 100), (1, 100)], 30);
        let first = after.iter().take_while(|it| **it == 2).count();
        assert!(first.abs_diff(before) <= 1, "boost {boost}: {after:?}");
        assert!(count(&after, 0) >= 8 - before, "boost {boost}: {after:?}");
    }
}

#[test]
fn what_nobody_else_wanted_is_free() {
    let mut policy = policy(&[], 2).unwrap();
    // It ran alone for an hour, and slept.
    let alone = Some((0, SliceEnd::Waits, 3_600_000_000_000));
    policy.next(&view(0, None, &[(0, 100), (1, 100)]));
    policy.next(&view(0, alone, &[(1, 100)]));
    let turns = turns(&mut policy, 0, &[(0, 100), (1, 100)], 10);
    assert!(count(&turns, 0) >= 4, "{turns:?}");
}

#[test]
fn who_moves_to_another_worker_is_where_the_others_are() {
    let mut policy = policy(&[], 4).unwrap();
    turns(&mut policy, 0, &[(0, 1), (1, 1)], 1000);
    turns(&mut policy, 1, &[(2, 10_000), (3, 10_000)], 1000);
    for (worker, ready) in [(1, [(0, 100), (2, 100)]), (0, [(1, 100), (3, 100)])] {
        let turns = turns(&mut policy, worker, &ready, 300);
        let share = count(&turns, ready[0].0);
        assert!((100..=200).contains(&share), "worker {worker}: {share}");
    }
}

#[test]
fn state_is_kept_as_a_whole() {
    let ready = [(0, 3), (1, 100), (2, 7)];
    let mut old = policy(&[], 3).unwrap();
    turns(&mut old, 5, &ready, 77);
    let mut new = policy(&[], 3).unwrap();
    new.restore(&old.save()).unwrap();
    assert_eq!(new.save(), old.save());
    assert_eq!(
        turns(&mut new, 5, &ready, 500),
        turns(&mut old, 5, &ready, 500)
    );
}

#[test]
fn state_that_is_none_is_refused_and_changes_nothing() {
    let mut policy = policy(&[], 2).unwrap();
    turns(&mut policy, 0, &[(0, 1), (1, 1)], 7);
    let before = policy.save();
    for state in [&[1][..], &[9; 15], &[255; 17]] {
        assert!(policy.restore(state).is_err(), "{} bytes", state.len());
    }
    assert_eq!(policy.save(), before);
}

#[test]
fn hostile_state_heals() {
    let mut policy = policy(&[], 2).unwrap();
    let seen_on_0 = 1_u64 << 32;
    let shares = [(i64::MAX, seen_on_0), (i64::MIN, seen_on_0)];
    let bytes = |(ahead, rest): (i64, u64)| [ahead.to_le_bytes(), rest.to_le_bytes()];
    let state: Vec<u8> = shares.into_iter().flat_map(bytes).flatten().collect();
    policy.restore(&state).unwrap();
    let ready = [(0, 1), (1, 1)];
    turns(&mut policy, 0, &ready, 100);
    assert_eq!(count(&turns(&mut policy, 0, &ready, 100), 0), 50);
}

#[test]
fn no_view_is_too_odd() {
    let mut policy = policy(&[("slice", "100ms"), ("boost", "100")], 2).unwrap();
    assert_eq!(policy.next(&view(0, None, &[])).replica, u32::MAX);
    for replica in [0, 1, 2, u32::MAX] {
        for ran in [0, u64::MAX] {
            for end in [SliceEnd::Ended, SliceEnd::Waits, SliceEnd::Preempted] {
                let ready = [(replica, 0), (1, u32::MAX)];
                let chosen = policy.next(&view(u32::MAX, Some((replica, end, ran)), &ready));
                assert!([replica, 1].contains(&chosen.replica));
            }
        }
    }
}

#[test]
fn wrong_settings_are_refused_by_name() {
    for (key, value) in [("boost", "101"), ("boost", "x"), ("slice", "1"), ("b", "")] {
        let refusal = policy(&[(key, value)], 1).err().unwrap();
        assert!(refusal.contains(key), "{refusal}");
    }
}
