//! Sizes and durations as people write them: a number and a unit, always both.

use std::time::Duration;

/// Not a size or duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// A number alone, or no number.
    #[error("{text:?} needs a number and a unit, such as {example}")]
    NoUnit {
        /// What was written.
        text: String,
        /// What could have been.
        example: &'static str,
    },
    /// A unit that is none.
    #[error("{unit:?} is no unit: use {units}")]
    UnknownUnit {
        /// What was written.
        unit: String,
        /// What could have been.
        units: &'static str,
    },
    /// More than 2⁶⁴ − 1 of the smallest unit.
    #[error("{text:?} is too large")]
    TooLarge {
        /// What was written.
        text: String,
    },
}

/// Reads a size in binary units, such as `32MiB`, into bytes.
///
/// # Errors
///
/// When the number or the unit is missing, unknown or too large.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split(text, "32MiB")?;
    let factor = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        unit => {
            return Err(UnitError::UnknownUnit {
                unit: unit.to_owned(),
                units: "B, KiB, MiB, GiB or TiB",
            });
        }
    };
    product(text, number, factor)
}

/// Reads a duration, such as `250ms`.
///
/// # Errors
///
/// As [`parse_size`].
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let (number, unit) = split(text, "250ms")?;
    let factor = match unit {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" | "min" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        unit => {
            return Err(UnitError::UnknownUnit {
                unit: unit.to_owned(),
                units: "ns, us, ms, s, min or h",
            });
        }
    };
    product(text, number, factor).map(Duration::from_nanos)
}

fn split<'a>(text: &'a str, example: &'static str) -> Result<(&'a str, &'a str), UnitError> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits).unwrap_or((text, ""));
    let unit = unit.trim_start();
    if number.is_empty() || unit.is_empty() {
        return Err(UnitError::NoUnit {
            text: text.to_owned(),
            example,
        });
    }
    Ok((number, unit))
}

fn product(text: &str, number: &str, factor: u64) -> Result<u64, UnitError> {
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| UnitError::TooLarge {
            text: text.to_owned(),
        })
}

/// A time as the socket and other processes are told it: in nanoseconds, or as many as
/// there can be.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{parse_duration, parse_size};

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(parse_size("1B"), Ok(1));
        assert_eq!(parse_size("32MiB"), Ok(32 << 20));
        assert_eq!(parse_size(" 2 GiB "), Ok(2 << 30));
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2min"), Ok(Duration::from_secs(120)));
    }

    #[test]
    fn what_is_no_size_says_what_would_be() {
        for (text, message) in [
            ("32", "\"32\" needs a number and a unit, such as 32MiB"),
            ("", "\"\" needs a number and a unit, such as 32MiB"),
            ("MiB", "\"MiB\" needs a number and a unit, such as 32MiB"),
            (
                "-1MiB",
                "\"-1MiB\" needs a number and a unit, such as 32MiB",
            ),
            ("32MB", "\"MB\" is no unit: use B, KiB, MiB, GiB or TiB"),
            (
                "1.5GiB",
                "\".5GiB\" is no unit: use B, KiB, MiB, GiB or TiB",
            ),
            (
                "99999999999999999999B",
                "\"99999999999999999999B\" is too large",
            ),
            ("99999999999TiB", "\"99999999999TiB\" is too large"),
        ] {
            assert_eq!(parse_size(text).unwrap_err().to_string(), message);
        }
        assert!(parse_duration("5").is_err());
        assert!(parse_duration("5 fortnights").is_err());
    }
}
