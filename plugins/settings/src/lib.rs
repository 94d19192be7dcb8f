//! What plugins share: reading what an operator configured them with, and state that
//! is numbers.
//!
//! Settings reach a plugin as text, values that are not strings as TOML writes
//! them. A plugin takes each one it knows out of [`Settings`] and then
//! [finishes](Settings::finish), which refuses what is left. Every refusal names
//! the setting and says what to write.
//!
//! Must never know what a setting means, nor the contract's types: those are each
//! plugin's own.

#![forbid(unsafe_code)]
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is left of the settings, and what was looked for.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    left: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl Settings {
    /// All settings, by key and value.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        Self {
            left: pairs.into_iter().collect(),
            known: Vec::new(),
        }
    }

    /// A setting as it was written, if it was.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        self.known.push(key);
        let place = self.left.iter().position(|(it, _)| it == key)?;
        Some(self.left.swap_remove(place).1)
    }

    /// Reads a setting; `default` when it was not written.
    ///
    /// # Errors
    ///
    /// When `read` makes nothing of it: that what is `wanted` be written, such as
    /// "a whole number, such as 2".
    pub fn read<T>(
        &mut self,
        key: &'static str,
        default: T,
        wanted: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, String> {
        match self.text(key) {
            None => Ok(default),
            Some(value) => read(&value).ok_or_else(|| wrong(key, &value, wanted)),
        }
    }

    /// A whole number, as [`read`](Self::read).
    ///
    /// # Errors
    ///
    /// When it is none or not within `range`.
    pub fn number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> Result<u64, String> {
        let (least, most) = (range.start(), range.end());
        let wanted = format!("a whole number from {least} to {most}, such as {default}");
        self.read(key, default, &wanted, |text| number(text, range))
    }

    /// A number in thousandths, as [`read`](Self::read).
    ///
    /// # Errors
    ///
    /// When it is none or not within `range`.
    pub fn thousandths(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> Result<u64, String> {
        let show = |it: &u64| format!("{}.{:03}", it / 1000, it % 1000);
        let (least, most) = (show(range.start()), show(range.end()));
        let wanted = format!(
            "a number from {least} to {most}, such as {}",
            show(&default)
        );
        let read = |text: &str| thousandths(text).filter(|it| range.contains(it));
        self.read(key, default, &wanted, read)
    }

    /// A duration in nanoseconds, as [`read`](Self::read).
    ///
    /// # Errors
    ///
    /// When it is none or not within `range`.
    pub fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> Result<u64, String> {
        let wanted = wanted_duration(&range, default);
        let read = |text: &str| duration(text).filter(|ns| range.contains(ns));
        self.read(key, default, &wanted, read)
    }

    /// Takes out all settings whose keys begin with `prefix`: the rest of each key,
    /// and the value.
    pub fn beginning(&mut self, prefix: &'static str) -> Vec<(String, String)> {
        self.known.push(prefix);
        let mut found = Vec::new();
        self.left.retain(|(key, value)| {
            let rest = key.strip_prefix(prefix);
            found.extend(rest.map(|it| (it.to_owned(), value.clone())));
            rest.is_none()
        });
        found
    }

    /// Ends the reading.
    ///
    /// # Errors
    ///
    /// When a setting is left that nobody took, with those that there are.
    pub fn finish(self) -> Result<(), String> {
        match self.left.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!(
                "there is no setting {key}: this policy has {}",
                self.known.join(", ")
            )),
        }
    }
}

/// What is said of a setting or label that is wrong.
#[must_use]
pub fn wrong(key: &str, value: &str, wanted: &str) -> String {
    format!("{key} = \"{value}\" is wrong: write {wanted}")
}

/// Reads a whole number within a range.
#[must_use]
pub fn number(text: &str, range: RangeInclusive<u64>) -> Option<u64> {
    let number = text.trim().parse().ok()?;
    range.contains(&number).then_some(number)
}

/// Reads a number with up to three decimals, as thousandths: `1.5` is 1500.
#[must_use]
pub fn thousandths(text: &str) -> Option<u64> {
    let (whole, decimals) = text.trim().split_once('.').unwrap_or((text.trim(), "0"));
    let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let scale = match decimals.len() {
        1 => 100,
        2 => 10,
        3 => 1,
        _ => return None,
    };
    if !plain(whole) || !plain(decimals) {
        return None;
    }
    let part = decimals.parse::<u64>().ok()?.checked_mul(scale)?;
    let whole = whole.parse::<u64>().ok()?;
    whole.checked_mul(1000)?.checked_add(part)
}

/// The units of durations, which are those of the operator's file.
const UNITS: [(&str, u64); 8] = [
    ("h", 3_600_000_000_000),
    ("min", 60_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("µs", 1_000),
    ("ns", 1),
];

/// Reads a duration such as `250ms`, in nanoseconds.
#[must_use]
pub fn duration(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let unit = UNITS.iter().find(|it| it.0 == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(unit.1)
}

/// What is wanted where a duration is: its bounds, and an example.
#[must_use]
pub fn wanted_duration(range: &RangeInclusive<u64>, example: u64) -> String {
    let show = |ns: &u64| {
        let whole = |it: &&(_, u64)| ns.checked_rem(it.1) == Some(0);
        let (unit, ns_each) = UNITS.iter().find(whole).unwrap_or(&("ns", 1));
        format!("{}{unit}", ns.checked_div(*ns_each).unwrap_or(0))
    };
    let (least, most) = (show(range.start()), show(range.end()));
    let example = show(&example);
    format!("a duration from {least} to {most}, such as \"{example}\"")
}

/// Reads a list: a TOML array, or a string in which commas part the items.
#[must_use]
pub fn list(text: &str) -> Vec<&str> {
    let text = text.trim();
    let array = text.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    array
        .unwrap_or(text)
        .split(',')
        .map(|item| item.trim().trim_matches(['"', '\'']).trim())
        .filter(|item| !item.is_empty())
        .collect()
}

/// What part of them are so many of so many, in thousandths of a percent; none when
/// there are none.
#[must_use]
pub fn percent(part: u64, of: u64) -> u64 {
    let part = u128::from(part.min(of)).saturating_mul(100_000);
    let share = part.checked_div(of.into()).unwrap_or(0);
    share.try_into().unwrap_or(0)
}

/// A number times so many thousandths.
#[must_use]
pub fn times(number: u64, factor: u64) -> u64 {
    let product = u128::from(number).saturating_mul(factor.into()) / 1000;
    product.try_into().unwrap_or(u64::MAX)
}

/// Writes state that is numbers: eight bytes each, the lowest first.
pub fn write_state(numbers: impl Iterator<Item = u64>) -> Vec<u8> {
    numbers.flat_map(u64::to_le_bytes).collect()
}

/// Reads state that is numbers, `N` to each record.
///
/// # Errors
///
/// When a record is not whole.
pub fn read_state<const N: usize>(state: &[u8]) -> Result<Vec<[u64; N]>, String> {
    let (numbers, cut) = state.as_chunks();
    let numbers: Vec<u64> = numbers.iter().map(|it| u64::from_le_bytes(*it)).collect();
    match (numbers.as_chunks(), cut) {
        ((records, []), []) => Ok(records.to_vec()),
        _ => Err("the state is cut short".to_owned()),
    }
}

/// State for a version that reads format `new`, of one that wrote format `old`.
///
/// # Errors
///
/// When they differ: there is no way from one to the other.
pub fn same_format(old: u32, new: u32, state: Vec<u8>) -> Result<Vec<u8>, String> {
    let same = (old == new).then_some(state);
    same.ok_or_else(|| format!("nothing turns state of format {old} into format {new}"))
}

/// Opens the policy that a plugin keeps between two questions.
///
/// A component has one thread and a call that traps ends it, so that nobody ever
/// waits here, nor sees what a panic left.
pub fn open<T>(policy: &Mutex<T>) -> MutexGuard<'_, T> {
    policy.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
