#![allow(
    clippy::arithmetic_side_effects,
    reason = "a test may stop where it stands"
)]

use std::sync::Mutex;

use super::{Settings, duration, list, open, thousandths};

const WANTED: &str = "a whole number from 0 to 9, such as boost = 2";

fn settings(pairs: &[(&str, &str)]) -> Settings {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    Settings::new(pairs.iter().map(owned))
}

#[test]
fn what_is_not_written_is_the_default() {
    assert_eq!(settings(&[]).number("boost", 0..=9, 3, WANTED), Ok(3));
    assert_eq!(
        settings(&[]).duration("slice", 1..=9, 4, "a duration"),
        Ok(4)
    );
    assert_eq!(settings(&[]).finish(), Ok(()));
}

#[test]
fn what_is_wrong_is_named_with_what_to_write() {
    for value in ["", "x", "10", "-1", "1.5", "99999999999999999999", "٣"] {
        assert_eq!(
            settings(&[("boost", value)]).number("boost", 0..=9, 3, WANTED),
            Err(format!("boost = \"{value}\" is wrong: write {WANTED}"))
        );
    }
}

#[test]
fn what_nobody_knows_is_refused_with_what_there_is() {
    let mut settings = settings(&[("bost", "2"), ("port-80", "web"), ("slice", "2ms")]);
    let of_ports = vec![("80".to_owned(), "web".to_owned())];
    assert_eq!(settings.number("boost", 0..=9, 3, WANTED), Ok(3));
    assert_eq!(settings.text("slice").as_deref(), Some("2ms"));
    assert_eq!(settings.beginning("port-"), of_ports);
    assert_eq!(
        settings.finish(),
        Err("there is no setting bost: this policy has boost, slice, port-".to_owned())
    );
}

#[test]
fn durations_have_units_and_do_not_overflow() {
    for (text, ns) in [
        ("5ms", Some(5_000_000)),
        (" 2 s ", Some(2_000_000_000)),
        ("1min", Some(60_000_000_000)),
        ("7ns", Some(7)),
        ("3µs", Some(3_000)),
        ("1h", Some(3_600_000_000_000)),
        ("5", None),
        ("ms", None),
        ("", None),
        ("-5ms", None),
        ("1.5ms", None),
        ("5 parsecs", None),
        ("9999999999999h", None),
    ] {
        assert_eq!(duration(text), ns, "{text}");
    }
}

#[test]
fn decimals_are_exact() {
    for (text, number) in [
        ("2", Some(2000)),
        ("1.5", Some(1500)),
        (" 0.125 ", Some(125)),
        ("0.0", Some(0)),
        ("", None),
        (".5", None),
        ("1.", None),
        ("1.2345", None),
        ("+1", None),
        ("1.+5", None),
        ("-1", None),
        ("18446744073709551615", None),
    ] {
        assert_eq!(thousandths(text), number, "{text}");
    }
}

#[test]
fn a_list_is_an_array_or_a_string() {
    for (text, items) in [
        ("[5, 25]", vec!["5", "25"]),
        ("5,25 ,", vec!["5", "25"]),
        (r#"["a:1", '[::]/0:*']"#, vec!["a:1", "[::]/0:*"]),
        ("[::]/0:*, b", vec!["[::]/0:*", "b"]),
        ("[]", vec![]),
        (" ", vec![]),
    ] {
        assert_eq!(list(text), items, "{text}");
    }
}

#[test]
fn a_policy_opens_even_after_a_panic() {
    let policy = Mutex::new(1);
    *open(&policy) += 1;
    assert_eq!(*open(&policy), 2);
}
