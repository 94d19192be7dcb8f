#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use super::StaticRoutes;
use super::bindings::lifecycle::{Setting, Task};
use super::bindings::router::{
    AttachVerdict, Attachment, Connection, DeviceKind, Direction, Endpoint, Target, Verdict,
};

/// web.0, web.1, kv.0 with the numbers 0, 1, 2.
fn policy(pairs: &[(&str, &str)]) -> Result<StaticRoutes, String> {
    let setting = |(key, value): &(&str, &str)| Setting {
        key: (*key).to_owned(),
        value: (*value).to_owned(),
    };
    let task = |(name, index): (&str, u32)| Task {
        name: name.to_owned(),
        index,
        weight: 100,
        labels: Vec::new(),
    };
    let tasks = [("web", 0), ("web", 1), ("kv", 0)].map(task);
    StaticRoutes::configure(pairs.iter().map(setting).collect(), &tasks)
}

fn connection(direction: Direction, port: u16, targets: &[u32]) -> Connection {
    let nowhere = Endpoint {
        high: 0,
        low: 0,
        port: 0,
    };
    let target = |replica: &u32| Target {
        replica: *replica,
        connections: 0,
        generation: 1,
    };
    Connection {
        now: 0,
        lot: 0,
        direction,
        from_replica: None,
        source: nowhere,
        destination: Endpoint { port, ..nowhere },
        targets: targets.iter().map(target).collect(),
    }
}

fn attachment(replica: u32, backends: &[&str]) -> Attachment {
    Attachment {
        now: 0,
        replica,
        generation: 1,
        device: "data".to_owned(),
        kind: DeviceKind::Block,
        backends: backends.iter().map(|it| (*it).to_owned()).collect(),
    }
}

#[test]
fn a_port_leads_to_its_task_and_nowhere_else() {
    let policy = policy(&[("port-80", "web"), ("port-81", "web.1"), ("port-0", "kv")]).unwrap();
    let (inbound, between) = (Direction::Inbound, Direction::Between);
    for (direction, port, targets, verdict) in [
        (inbound, 80, &[2, 1, 0][..], Verdict::Target(1)),
        (between, 80, &[0, 1], Verdict::Target(0)),
        (inbound, 81, &[0, 2, 1], Verdict::Target(2)),
        (inbound, 0, &[0, 2, 1], Verdict::Target(1)),
        (inbound, 81, &[0, 2], Verdict::Deny),
        (inbound, 80, &[], Verdict::Deny),
        (inbound, 82, &[0], Verdict::BuiltIn),
        (Direction::Outbound, 80, &[], Verdict::BuiltIn),
    ] {
        let asked = connection(direction, port, targets);
        assert_eq!(policy.connect(&asked), verdict, "{port} {targets:?}");
    }
}

#[test]
fn other_ports_can_be_denied() {
    let policy = policy(&[("port-80", "web"), ("other-ports", "deny")]).unwrap();
    let verdict = |direction| policy.connect(&connection(direction, 82, &[0]));
    assert_eq!(verdict(Direction::Inbound), Verdict::Deny);
    assert_eq!(verdict(Direction::Outbound), Verdict::BuiltIn);
}

#[test]
fn the_nearest_route_of_a_device_counts() {
    let policy = policy(&[
        ("device-data", "a"),
        ("device-data@web.1", "c"),
        ("device-data@web", "b"),
    ])
    .unwrap();
    let backends = ["a", "b", "c"];
    for (replica, place) in [(0, 1), (1, 2), (2, 0), (u32::MAX, 0)] {
        let verdict = policy.attach(&attachment(replica, &backends));
        assert_eq!(verdict, AttachVerdict::Backend(place), "{replica}");
    }
    let denied = policy.attach(&attachment(0, &["a"]));
    assert!(matches!(denied, AttachVerdict::Deny(reason) if reason.contains("back end b")));
}

#[test]
fn a_device_without_a_route_is_left_to_the_built_in_policy() {
    let policy = policy(&[("device-other", "a")]).unwrap();
    let verdict = policy.attach(&attachment(0, &["a"]));
    assert_eq!(verdict, AttachVerdict::BuiltIn);
}

#[test]
fn wrong_settings_are_refused_by_name() {
    for (key, value, said) in [
        ("port-80", "wep", "port-80 = \"wep\" is wrong"),
        ("port-80", "web.2", "port-80 = \"web.2\" is wrong"),
        ("port-65536", "web", "port-65536 is no port"),
        ("port-080", "web", "port-080 is no port"),
        ("port-+80", "web", "port-+80 is no port"),
        ("device-data@wep", "a", "device-data@wep is of no task"),
        ("other-ports", "no", "other-ports = \"no\" is wrong"),
        ("ports", "web", "there is no setting ports"),
    ] {
        let refusal = policy(&[(key, value)]).err().unwrap();
        assert!(refusal.contains(said), "{refusal}");
    }
}
