#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test may stop where it stands"
)]

use super::bindings::lifecycle::{Setting, Task};
use super::bindings::scheduler::{Candidate, View};
use super::{Deadline, MS, POLICY};

fn settings(pairs: &[(&str, &str)]) -> Vec<Setting> {
    let setting = |(key, value): &(&str, &str)| Setting {
        key: (*key).to_owned(),
        value: (*value).to_owned(),
    };
    pairs.iter().map(setting).collect()
}

fn policy(by: &[(&str, &str)], labels: &[&[(&str, &str)]]) -> Result<Deadline, String> {
    let task = |labels: &&[(&str, &str)]| Task {
        name: "web".to_owned(),
        index: 0,
        weight: 100,
        labels: settings(labels),
    };
    let tasks: Vec<_> = labels.iter().map(task).collect();
    let mut policy = POLICY.lock().unwrap().clone();
    policy.configure(settings(by), &tasks)?;
    Ok(policy)
}

/// Replica, for how long it ran, since when it is ready.
fn view(now: u64, ready: &[(u32, u64, u64)]) -> View {
    let candidate = |(replica, ran, ready_since): &(u32, u64, u64)| Candidate {
        replica: *replica,
        weight: 100,
        generation: 1,
        ran: *ran,
        virtual_time: ran / 100,
        ready_since: *ready_since,
    };
    View {
        now,
        worker: 0,
        last: None,
        ready: ready.iter().map(candidate).collect(),
    }
}

#[test]
fn the_earliest_deadline_runs_first() {
    let labels: [&[_]; 3] = [&[], &[("deadline", "20ms")], &[("deadline", "5ms")]];
    let mut policy = policy(&[], &labels).unwrap();
    for (now, ready, chosen) in [
        (MS, &[(0, 0, 0), (1, 0, 0), (2, 0, 0)][..], 2),
        (MS, &[(0, 0, 0), (1, 0, 0)], 1),
        (MS, &[(0, 0, 0)], 0),
        // The period of 1 ends at 20, a new one of 2 at 23, the next at 28.
        (18 * MS, &[(1, 0, 0), (2, 0, 18 * MS)], 1),
        (21 * MS, &[(1, 0, 0), (2, 0, 18 * MS)], 2),
    ] {
        assert_eq!(policy.next(&view(now, ready)).replica, chosen, "at {now}");
    }
}

#[test]
fn beyond_its_budget_a_task_is_as_the_others_until_its_next_period() {
    let labels: [&[_]; 2] = [&[], &[("deadline", "10ms"), ("budget", "3ms")]];
    let mut policy = policy(&[], &labels).unwrap();
    for (now, ran, chosen, slice) in [
        (0, 0, 1, 2 * MS),
        (2 * MS, 2 * MS, 1, MS),
        (3 * MS, 3 * MS, 0, 2 * MS),
        (9 * MS, 3 * MS, 0, 2 * MS),
        (10 * MS, 3 * MS, 1, 2 * MS),
        (11 * MS, 6 * MS - 1, 1, 100_000),
    ] {
        let choice = policy.next(&view(now, &[(0, MS, 0), (1, ran, 0)]));
        assert_eq!((choice.replica, choice.slice), (chosen, slice), "at {now}");
    }
}

#[test]
fn a_task_that_was_put_aside_has_whole_periods() {
    let mut policy = policy(&[], &[&[("deadline", "10ms"), ("budget", "4ms")]]).unwrap();
    for (now, ready_since, ends) in [
        (0, 0, 10),
        (9 * MS, 4 * MS, 10),
        (10 * MS, 4 * MS, 20),
        (21 * MS, 14 * MS, 30),
        (42 * MS, 41 * MS, 51),
        (99 * MS, 41 * MS, 109),
    ] {
        policy.next(&view(now, &[(0, 0, ready_since)]));
        assert_eq!(policy.terms[0].unwrap().ends, ends * MS, "at {now}");
    }
}

#[test]
fn a_new_life_has_a_new_period() {
    let mut policy = policy(&[], &[&[("deadline", "4ms")], &[]]).unwrap();
    let mut question = view(0, &[(1, 0, 0), (0, 0, 0)]);
    policy.next(&question);
    question.ready[1].ran = 2 * MS;
    assert_eq!(policy.next(&question).replica, 1);
    question.ready[1].generation = 2;
    assert_eq!(policy.next(&question).replica, 0);
}

#[test]
fn tasks_that_change_leave_the_periods_of_the_others() {
    let mut policy = policy(&[], &[&[("deadline", "4ms")]]).unwrap();
    policy.next(&view(0, &[(0, 0, 0)]));
    let before = policy.terms.clone();
    let task = |deadline| Task {
        name: "web".to_owned(),
        index: 0,
        weight: 100,
        labels: settings(&[("deadline", deadline)]),
    };
    policy
        .configure(Vec::new(), &[task("4ms"), task("6ms")])
        .unwrap();
    assert!(policy.terms[0] == before[0] && policy.terms.len() == 2);
    policy.configure(Vec::new(), &[task("5ms")]).unwrap();
    assert!(policy.terms[0] != before[0]);
}

#[test]
fn no_view_is_too_odd() {
    let mut policy = policy(&[], &[&[("deadline", "10s"), ("budget", "10s")], &[]]).unwrap();
    assert_eq!(policy.next(&view(0, &[])).replica, u32::MAX);
    for now in [u64::MAX, 0, 1] {
        for number in [u64::MAX, 0, 1] {
            let ready = [(0, number, u64::MAX), (u32::MAX, number, 0), (1, 0, number)];
            policy.next(&view(now, &ready));
        }
    }
}

#[test]
fn what_is_wrong_is_refused_by_name() {
    for (by, labels, said) in [
        (&[("slice", "5s")][..], &[][..], "slice = \"5s\" is wrong"),
        (&[("period", "5ms")], &[], "there is no setting period"),
        (
            &[],
            &[("deadline", "5")],
            "task web: label deadline = \"5\"",
        ),
        (&[], &[("deadline", "1us")], "label deadline = \"1us\""),
        (&[], &[("budget", "1ms")], "label budget = \"1ms\" is wrong"),
        (
            &[],
            &[("budget", "6ms"), ("deadline", "5ms")],
            "label budget = \"6ms\"",
        ),
    ] {
        let refusal = policy(by, &[labels]).err().unwrap();
        assert!(refusal.contains(said), "{refusal}");
    }
}
