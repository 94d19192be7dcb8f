#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test may stop where it stands"
)]

use super::Canary;
use super::bindings::lifecycle::{Setting, Task};
use super::bindings::router::{Connection, Direction, Endpoint, Target, Verdict};

fn settings(pairs: &[(&str, &str)]) -> Vec<Setting> {
    let setting = |(key, value): &(&str, &str)| Setting {
        key: (*key).to_owned(),
        value: (*value).to_owned(),
    };
    pairs.iter().map(setting).collect()
}

/// Two replicas each of web, of new with this label, and of newer with 30 %.
fn policy(pairs: &[(&str, &str)], share: &str) -> Result<Canary, String> {
    let task = |(name, index, share): (&str, u32, Option<&str>)| Task {
        name: name.to_owned(),
        index,
        weight: 100,
        labels: settings(&share.map_or(vec![], |it| vec![("canary", it)])),
    };
    let tasks = [
        ("web", 0, None),
        ("web", 1, None),
        ("new", 0, Some(share)),
        ("new", 1, Some(share)),
        ("newer", 0, Some("30")),
        ("newer", 1, Some("30")),
    ];
    Canary::configure(settings(pairs), &tasks.map(task))
}

fn connection(client: u64, targets: &[u32]) -> Connection {
    let target = |replica: &u32| Target {
        replica: *replica,
        connections: 0,
        generation: 1,
    };
    let endpoint = |low, port| Endpoint { high: 0, low, port };
    Connection {
        now: client,
        lot: client,
        direction: Direction::Inbound,
        from_replica: None,
        source: endpoint(0xffff_0a00_0000 + client, 1),
        destination: endpoint(1, 80),
        targets: targets.iter().map(target).collect(),
    }
}

/// How many of 10,000 clients go to each of the targets.
fn spread<const N: usize>(policy: &Canary, targets: [u32; N]) -> [usize; N] {
    let mut counts = [0; N];
    for client in 0..10_000 {
        match policy.connect(&connection(client, &targets)) {
            Verdict::Target(place) => counts[usize::try_from(place).unwrap()] += 1,
            other => assert_eq!(other, Verdict::Target(0), "client {client}"),
        }
    }
    counts
}

#[test]
fn a_canary_gets_its_share_of_the_clients() {
    for (share, low, high) in [
        ("0", 0, 0),
        ("2.5", 200, 300),
        ("10", 900, 1100),
        ("50", 4800, 5200),
        ("100", 10_000, 10_000),
    ] {
        let [web, _, new, _] = spread(&policy(&[], share).unwrap(), [0, 1, 2, 3]);
        assert!((low..=high).contains(&new), "{share} %: {new}");
        assert_eq!(web + new, 10_000);
    }
}

#[test]
fn several_canaries_have_a_share_each() {
    let [web, new, newer] = spread(&policy(&[], "10").unwrap(), [0, 2, 4]);
    assert!((5800..6200).contains(&web), "{web}");
    assert!((900..1100).contains(&new), "{new}");
    assert!((2800..3200).contains(&newer), "{newer}");
    let greedy = policy(&[], "90").unwrap();
    assert_eq!(spread(&greedy, [0, 4, 2])[0], 0);
}

#[test]
fn a_client_stays_on_its_side_whatever_else_changes() {
    let policy = policy(&[], "40").unwrap();
    for client in 0..1000 {
        let first = policy.connect(&connection(client, &[0, 1, 2, 3]));
        let mut again = connection(client, &[3, 1, 2, 0]);
        (again.now, again.lot, again.source.port) = (7, u64::MAX - client, 9);
        let new = first == Verdict::Target(2);
        let expected = if new { 0 } else { 1 };
        assert_eq!(policy.connect(&again), Verdict::Target(expected));
    }
}

#[test]
fn a_larger_share_only_adds_clients() {
    let (small, large) = (policy(&[], "10").unwrap(), policy(&[], "40").unwrap());
    for client in 0..1000 {
        let asked = connection(client, &[0, 2]);
        if small.connect(&asked) == Verdict::Target(1) {
            assert_eq!(large.connect(&asked), Verdict::Target(1));
        }
    }
}

#[test]
fn another_seed_makes_other_clients_the_first() {
    let (one, two) = (
        policy(&[], "10").unwrap(),
        policy(&[("seed", "7")], "10").unwrap(),
    );
    let on_trial = |policy: &Canary| -> Vec<u64> {
        let is_new = |client: &u64| {
            let asked = connection(*client, &[0, 2]);
            policy.connect(&asked) == Verdict::Target(1)
        };
        (0..1000).filter(is_new).collect()
    };
    let (one, two) = (on_trial(&one), on_trial(&two));
    let both = one.iter().filter(|it| two.contains(it)).count();
    assert!(both * 4 < one.len(), "{both} of {}", one.len());
}

#[test]
fn the_lot_decides_only_where_nobody_is_known() {
    let by_lot = policy(&[("sticky", "false")], "10").unwrap();
    let sticky = policy(&[], "10").unwrap();
    let mut asked = connection(1, &[0, 2]);
    for (lot, place) in [(9_999, 1), (10_000, 0), (109_999, 1), (u64::MAX, 0)] {
        asked.lot = lot;
        assert_eq!(by_lot.connect(&asked), Verdict::Target(place), "{lot}");
        let mut nobody = asked.clone();
        nobody.source.low = 0;
        assert_eq!(sticky.connect(&nobody), Verdict::Target(place), "{lot}");
        nobody.from_replica = Some(5);
        nobody.lot = 0;
        let known = sticky.connect(&nobody);
        nobody.lot = lot;
        assert_eq!(sticky.connect(&nobody), known);
    }
}

#[test]
fn where_there_is_one_side_it_takes_all() {
    let policy = policy(&[], "10").unwrap();
    for targets in [[2, 3], [0, 1], [9, u32::MAX]] {
        assert_eq!(spread(&policy, targets), [10_000, 0], "{targets:?}");
    }
    let nobody = connection(1, &[]);
    assert_eq!(policy.connect(&nobody), Verdict::BuiltIn);
}

#[test]
fn the_outside_is_left_to_the_built_in_policy() {
    let mut asked = connection(1, &[]);
    asked.direction = Direction::Outbound;
    let policy = policy(&[], "10").unwrap();
    assert_eq!(policy.connect(&asked), Verdict::BuiltIn);
}

#[test]
fn what_is_wrong_is_refused_by_name() {
    for (pairs, share, said) in [
        (&[][..], "x", "task new: label canary = \"x\" is wrong"),
        (&[], "100.5", "task new: label canary = \"100.5\""),
        (&[("sticky", "yes")], "1", "sticky = \"yes\" is wrong"),
        (&[("seed", "-1")], "1", "seed = \"-1\" is wrong"),
        (&[("percent", "1")], "1", "there is no setting percent"),
    ] {
        let refusal = policy(pairs, share).err().unwrap();
        assert!(refusal.contains(said), "{refusal}");
    }
}
