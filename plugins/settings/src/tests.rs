#![allow(
    clippy::arithmetic_side_effects,
    reason = "a test may stop where it stands"
)]

use std::sync::Mutex;

use super::{
    Settings, duration, list, open, percent, read_state, thousandths, wanted_duration, write_state,
};

fn settings(pairs: &[(&str, &str)]) -> Settings {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    Settings::new(pairs.iter().map(owned))
}

#[test]
fn what_is_not_written_is_the_default() {
    assert_eq!(settings(&[]).number("boost", 0..=9, 3), Ok(3));
    assert_eq!(settings(&[]).duration("slice", 1..=9, 4), Ok(4));
    assert_eq!(settings(&[]).finish(), Ok(()));
}

#[test]
fn what_is_wrong_is_named_with_what_to_write() {
    for value in ["", "x", "10", "-1", "1.5", "99999999999999999999", "٣"] {
        assert_eq!(
            settings(&[("boost", value)]).number("boost", 0..=9, 3),
            Err(format!(
                "boost = \"{value}\" is wrong: write a whole number from 0 to 9, such as 3"
            ))
        );
    }
}

#[test]
fn a_refusal_says_the_bounds_in_the_units_that_operators_write() {
    let mut written = settings(&[("slice", "2"), ("errors", "200")]);
    for (refusal, said) in [
        (
            written.duration("slice", 100_000..=100_000_000, 2_000_000),
            "slice = \"2\" is wrong: write a duration from 100us to 100ms, such as \"2ms\"",
        ),
        (
            written.thousandths("errors", 0..=100_000, 1500),
            "errors = \"200\" is wrong: write a number from 0.000 to 100.000, such as 1.500",
        ),
    ] {
        assert_eq!(refusal, Err(said.to_owned()));
    }
    assert_eq!(
        wanted_duration(&(1..=86_400_000_000_000), 61_000_000_000),
        "a duration from 1ns to 24h, such as \"61s\""
    );
}

#[test]
fn parts_are_in_thousandths_of_a_percent() {
    for (part, of, share) in [
        (0, 0, 0),
        (9, 0, 0),
        (1, 2, 50_000),
        (1, 3, 33_333),
        (7, 3, 100_000),
        (u64::MAX, u64::MAX, 100_000),
    ] {
        assert_eq!(percent(part, of), share, "{part} of {of}");
    }
}

#[test]
fn what_nobody_knows_is_refused_with_what_there_is() {
    let mut settings = settings(&[("bost", "2"), ("port-80", "web"), ("slice", "2ms")]);
    let of_ports = vec![("80".to_owned(), "web".to_owned())];
    assert_eq!(settings.number("boost", 0..=9, 3), Ok(3));
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
fn state_is_whole_records_or_refused() {
    let state = write_state([1, u64::MAX, 3, 4].into_iter());
    assert_eq!(read_state(&state), Ok(vec![[1, u64::MAX], [3, 4]]));
    assert_eq!(read_state::<4>(&[]), Ok(Vec::new()));
    for cut in [1, 8, 24, 31] {
        let part = state.get(..cut).unwrap_or_default();
        assert!(read_state::<2>(part).is_err(), "{cut} bytes");
    }
}

#[test]
fn a_policy_opens_even_after_a_panic() {
    let policy = Mutex::new(1);
    *open(&policy) += 1;
    assert_eq!(*open(&policy), 2);
}
