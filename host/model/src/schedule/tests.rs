//! The scheduler under tasks that run, sleep and wake as scripts say.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::{any, proptest};

use super::{FairQueue, SLICE};
use crate::Instant;

/// The built-in policy does not go by the time of day.
const NOW: Instant = Instant::from_nanos(0);

/// Lets always-ready tasks of these weights compete for so many slices.
fn shares(weights: &[u32], slices: u32) -> Vec<f64> {
    let mut queue = FairQueue::default();
    for (key, weight) in weights.iter().enumerate() {
        queue.insert(key, *weight);
        queue.wake(NOW, key);
    }
    let mut ran = vec![0.0; weights.len()];
    for _ in 0..slices {
        let key = queue.pick().unwrap();
        queue.ran(SLICE);
        queue.yield_now(NOW);
        ran[key] += 1.0 / f64::from(slices);
    }
    ran
}

#[test]
fn weights_are_honoured() {
    for (weights, expected) in [
        (&[100, 300][..], &[0.25, 0.75][..]),
        (&[7, 7, 7, 7], &[0.25; 4]),
        (&[1, 99], &[0.01, 0.99]),
        (&[10_000], &[1.0]),
    ] {
        for (share, expected) in shares(weights, 5_000).iter().zip(expected) {
            assert!((share - expected).abs() < 0.01, "{weights:?}: {share}");
        }
    }
}

#[test]
fn a_task_that_slept_runs_next_and_then_takes_turns() {
    let mut queue = FairQueue::default();
    queue.insert("spins", 100);
    queue.insert("sleeps", 100);
    queue.wake(NOW, "spins");
    for _ in 0..1_000 {
        assert_eq!(queue.pick(), Some("spins"));
        queue.ran(SLICE);
        queue.yield_now(NOW);
    }
    queue.wake(NOW, "sleeps");
    assert_eq!(queue.pick(), Some("sleeps"));
    let mut turns = BTreeMap::new();
    queue.ran(SLICE);
    queue.yield_now(NOW);
    for _ in 0..100 {
        *turns.entry(queue.pick().unwrap()).or_insert(0) += 1;
        queue.ran(SLICE);
        queue.yield_now(NOW);
    }
    // No windfall: it does not get the thousand slices that it did not use.
    assert!(turns["spins"] >= 49 && turns["sleeps"] >= 49, "{turns:?}");
}

#[test]
fn a_task_that_used_much_pays_no_more_than_a_slice_after_a_sleep() {
    let mut queue = FairQueue::default();
    queue.insert("greedy", 100);
    queue.wake(NOW, "greedy");
    queue.pick();
    queue.ran(Duration::from_secs(60));
    queue.sleep("greedy");
    queue.insert("other", 100);
    queue.wake(NOW, "other");
    queue.wake(NOW, "greedy");
    let first: Vec<_> = (0..4)
        .map(|_| {
            let key = queue.pick().unwrap();
            queue.ran(SLICE);
            queue.yield_now(NOW);
            key
        })
        .collect();
    assert!(first.contains(&"greedy"), "{first:?}");
}

#[test]
fn a_task_alone_has_no_slice() {
    let mut queue = FairQueue::default();
    queue.insert(1, 100);
    queue.wake(NOW, 1);
    assert_eq!(queue.pick(), Some(1));
    assert_eq!(queue.slice(), None);
    queue.insert(2, 100);
    queue.wake(NOW, 2);
    assert_eq!(queue.slice(), Some(SLICE));
}

#[test]
fn nobody_runs_twice_at_once() {
    let mut queue = FairQueue::default();
    queue.insert(1, 100);
    queue.wake(NOW, 1);
    queue.wake(NOW, 1);
    assert_eq!(queue.pick(), Some(1));
    queue.wake(NOW, 1);
    assert_eq!((queue.waiting(), queue.pick()), (0, None));
}

proptest! {
    /// Whatever tasks come, go, run, sleep and wake: none that is ready waits
    /// for ever, none is ready twice, none that is gone comes back.
    #[test]
    fn no_task_is_lost_or_starved(
        steps in proptest::collection::vec((any::<u8>(), 0_u8..6, 1_u32..20_000, 0_u64..5_000_000), 1..300),
    ) {
        let mut queue = FairQueue::default();
        let mut known: BTreeMap<u8, bool> = BTreeMap::new();
        for (step, key, weight, ns) in steps {
            match step % 5 {
                0 => { queue.insert(key, weight); known.insert(key, false); }
                1 => { queue.wake(NOW, key); if let Some(ready) = known.get_mut(&key) { *ready = true; } }
                2 => { queue.sleep(key); if let Some(ready) = known.get_mut(&key) { *ready = false; } }
                3 => { queue.remove(key); known.remove(&key); }
                _ => if let Some(key) = queue.pick() {
                    assert_eq!(known.get(&key), Some(&true));
                    queue.ran(Duration::from_nanos(ns));
                    queue.yield_now(NOW);
                }
            }
        }
        // Every ready task gets its turn in a bounded number of slices: the most
        // that weights allow one to be ahead.
        let mut left: std::collections::BTreeSet<u8> =
            known.iter().filter(|(_, ready)| **ready).map(|(key, _)| *key).collect();
        for _ in 0..200_000 {
            if left.is_empty() { break; }
            let key = queue.pick().unwrap();
            left.remove(&key);
            queue.ran(SLICE);
            queue.yield_now(NOW);
        }
        assert!(left.is_empty(), "starved: {left:?}");
    }
}

#[test]
fn years_of_run_time_change_nothing() {
    let mut queue = FairQueue::default();
    for (key, weight) in [("light", 1), ("heavy", 3)] {
        queue.insert(key, weight);
        queue.wake(NOW, key);
    }
    let mut turns = BTreeMap::new();
    // An hour at a time: 11 years in all.
    for _ in 0..100_000 {
        let key = queue.pick().unwrap();
        *turns.entry(key).or_insert(0_u32) += 1;
        queue.ran(Duration::from_secs(3600));
        queue.yield_now(NOW);
    }
    let heavy = f64::from(turns["heavy"]) / 100_000.0;
    assert!((0.749..=0.751).contains(&heavy), "{turns:?}");
}
