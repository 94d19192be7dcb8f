//! Reads what an operator configured a policy with.
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
        wanted: &str,
    ) -> Result<u64, String> {
        self.read(key, default, wanted, |text| number(text, range))
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
        wanted: &str,
    ) -> Result<u64, String> {
        let read = |text: &str| duration(text).filter(|ns| range.contains(ns));
        self.read(key, default, wanted, read)
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

/// Reads a duration such as `250ms`, in nanoseconds. The units are those of the
/// operator's file: ns, us, ms, s, min (or m), h.
#[must_use]
pub fn duration(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let factor = match unit.trim_start() {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" | "min" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
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

/// Opens the policy that a plugin keeps between two questions.
///
/// A component has one thread and a call that traps ends it, so that nobody ever
/// waits here, nor sees what a panic left.
pub fn open<T>(policy: &Mutex<T>) -> MutexGuard<'_, T> {
    policy.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
