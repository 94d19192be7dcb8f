#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::net::SocketAddr;

use super::AllowList;
use super::bindings::lifecycle::{Setting, Task};
use super::bindings::router::{Connection, Direction, Endpoint, Verdict};

/// web.0, web.1, kv.0 with the numbers 0, 1, 2.
fn policy(pairs: &[(&str, &str)]) -> Result<AllowList, String> {
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
    AllowList::configure(pairs.iter().map(setting).collect(), &tasks)
}

fn connection(direction: Direction, from: Option<u32>, to: &str) -> Connection {
    let to: SocketAddr = to.parse().unwrap();
    let bits = match to {
        SocketAddr::V4(it) => it.ip().to_ipv6_mapped().to_bits(),
        SocketAddr::V6(it) => it.ip().to_bits(),
    };
    let low = u128::from(u64::MAX);
    Connection {
        now: 0,
        lot: 0,
        direction,
        from_replica: from,
        source: Endpoint {
            high: 0,
            low: 0,
            port: 0,
        },
        destination: Endpoint {
            high: u64::try_from(bits >> 64).unwrap(),
            low: u64::try_from(bits & low).unwrap(),
            port: to.port(),
        },
        targets: Vec::new(),
    }
}

fn lets(rules: &str, to: &str) -> bool {
    let policy = policy(&[("allow", rules)]).unwrap();
    policy.connect(&connection(Direction::Outbound, Some(0), to)) == Verdict::Pass
}

#[test]
fn only_what_a_rule_names_is_let_through() {
    for (rules, to, passes) in [
        ("", "10.0.0.1:443", false),
        ("[]", "10.0.0.1:443", false),
        ("10.0.0.0/8:443", "10.255.0.1:443", true),
        ("10.0.0.0/8:443", "11.0.0.1:443", false),
        ("10.0.0.0/8:443", "10.0.0.1:80", false),
        ("192.0.2.7:*", "192.0.2.7:1", true),
        ("192.0.2.7:*", "192.0.2.8:1", false),
        ("192.0.2.7:80-90", "192.0.2.7:90", true),
        ("192.0.2.7:80-90", "192.0.2.7:91", false),
        ("0.0.0.0/0:*", "255.255.255.255:65535", true),
        ("0.0.0.0/0:*", "[2001:db8::1]:80", false),
        ("[::]/0:*", "[2001:db8::1]:80", true),
        ("[::]/0:*", "10.0.0.1:80", false),
        ("[::]/0:*", "[::ffff:10.0.0.1]:80", false),
        ("10.0.0.1/32:80", "[::ffff:10.0.0.1]:80", true),
        ("[2001:db8::]/32:443", "[2001:db8:1::]:443", true),
        ("[2001:db8::]/32:443", "[2001:db9::]:443", false),
        ("[::1]:80", "[::1]:80", true),
        ("10.0.0.1:1, [::1]:80,", "[::1]:80", true),
        (r#"["10.0.0.1:1", "[::1]:80"]"#, "[::1]:80", true),
    ] {
        assert_eq!(lets(rules, to), passes, "{rules} to {to}");
    }
}

#[test]
fn a_task_can_have_rules_of_its_own() {
    let policy = policy(&[("allow", "10.0.0.1:1"), ("allow-web", "10.0.0.2:2")]).unwrap();
    for (from, to, verdict) in [
        (Some(1), "10.0.0.1:1", Verdict::Pass),
        (Some(1), "10.0.0.2:2", Verdict::Pass),
        (Some(2), "10.0.0.1:1", Verdict::Pass),
        (Some(2), "10.0.0.2:2", Verdict::Deny),
        (Some(u32::MAX), "10.0.0.2:2", Verdict::Deny),
        (None, "10.0.0.2:2", Verdict::Deny),
    ] {
        let asked = connection(Direction::Outbound, from, to);
        assert_eq!(policy.connect(&asked), verdict, "{from:?} to {to}");
    }
}

#[test]
fn only_what_goes_outside_is_decided() {
    let policy = policy(&[("allow", "[::]/0:*")]).unwrap();
    for direction in [Direction::Inbound, Direction::Between] {
        let asked = connection(direction, None, "[::1]:1");
        assert_eq!(policy.connect(&asked), Verdict::BuiltIn);
    }
}

#[test]
fn wrong_rules_are_refused_with_what_is_wrong() {
    for (rule, said) in [
        ("10.0.0.1", "it has no port"),
        ("10.0.0.1:", "its port is none"),
        ("10.0.0.1:65536", "its port is none"),
        ("10.0.0.1:9-8", "its ports end before they begin"),
        ("example.org:80", "it has no IP address"),
        (":80", "it has no IP address"),
        ("[10.0.0.1]:80", "it has no IP address"),
        ("::1:80", "its IPv6 address is not in [ ]"),
        ("[::ffff:10.0.0.0]/104:80", "it is an IPv4 address"),
        ("10.0.0.0/33:80", "the number after / is too large"),
        ("10.0.0.0/x:80", "the number after / is too large, or none"),
        ("[::]/129:80", "the number after / is too large"),
        ("10.0.0.1/8:80", "bits that are not of the network"),
        ("[2001:db8::1]/32:80", "bits that are not of the network"),
    ] {
        let refusal = policy(&[("allow", rule)]).err().unwrap();
        assert!(
            refusal.contains("allow: ") && refusal.contains(said),
            "{refusal}"
        );
    }
}

#[test]
fn wrong_settings_are_refused_by_name() {
    for (key, value, said) in [
        ("allow-wep", "10.0.0.1:1", "allow-wep is of no task"),
        ("allow-web", "10.0.0.1", "allow-web: the rule \"10.0.0.1\""),
        ("deny", "10.0.0.1:1", "there is no setting deny"),
    ] {
        let refusal = policy(&[(key, value)]).err().unwrap();
        assert!(refusal.contains(said), "{refusal}");
    }
}
