//! Reads one value: what it has to be, and what to say when it is not.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::findings::{Findings, quote, shorten};
use super::section::{Key, Section};
use crate::units::{self, UnitError};

/// A value and the key it stands behind, or one item of an array that does.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    pub(super) key: Key,
    /// The value as it is.
    pub(super) value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Field<'a> {
    /// Where the value is.
    pub(super) fn at(&self) -> usize {
        self.value.span().start
    }

    /// Complains; `what` continues a sentence that begins with the key.
    pub(super) fn wrong(&self, what: impl Display, found: &mut Findings<'_>) {
        found.add(self.at(), format!("{} {what}", self.key.name));
    }

    /// Complains about what was written, too, when it is text.
    pub(super) fn wrong_text(&self, what: impl Display, found: &mut Findings<'_>) {
        match self.value.get_ref() {
            DeValue::String(text) => self.wrong(format_args!("{} {what}", quote(text)), found),
            _ => self.wrong(what, found),
        }
    }

    /// Complains and shows what would be right.
    pub(super) fn wrong_unlike(&self, what: impl Display, found: &mut Findings<'_>) {
        self.wrong(format_args!("{what}: write {}", self.key.example), found);
    }

    pub(super) fn text(&self, found: &mut Findings<'_>) -> Option<&'a str> {
        match self.value.get_ref() {
            DeValue::String(text) => Some(text.as_ref()),
            _ => self.wrong_type(found),
        }
    }

    /// Text that may be handed to a kernel: neither empty nor with a NUL in it.
    pub(super) fn path(&self, found: &mut Findings<'_>) -> Option<PathBuf> {
        let text = self.text(found)?;
        if text.is_empty() {
            self.wrong_unlike("is empty", found);
            None
        } else if text.contains('\0') {
            self.wrong("holds a NUL byte: take it out", found);
            None
        } else {
            Some(found.directory().join(text))
        }
    }

    pub(super) fn number(
        &self,
        range: RangeInclusive<u32>,
        found: &mut Findings<'_>,
    ) -> Option<u32> {
        let DeValue::Integer(written) = self.value.get_ref() else {
            return self.wrong_type(found);
        };
        let number = u32::from_str_radix(written.as_str(), written.radix());
        let number = number.ok().filter(|number| range.contains(number));
        if number.is_none() {
            let (least, most) = (range.start(), range.end());
            let written = shorten(&written.to_string());
            self.wrong(
                format!("{written} is out of range: write {least} to {most}"),
                found,
            );
        }
        number
    }

    pub(super) fn size(&self, found: &mut Findings<'_>) -> Option<u64> {
        self.unit(units::parse_size, found)
    }

    pub(super) fn duration(&self, found: &mut Findings<'_>) -> Option<Duration> {
        self.unit(units::parse_duration, found)
    }

    /// One of several words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)], found: &mut Findings<'_>) -> Option<T> {
        let text = self.text(found)?;
        let word = words.iter().find(|(word, _)| *word == text);
        if word.is_none() {
            let words: Vec<String> = words.iter().map(|(word, _)| quote(word)).collect();
            let what = format!("cannot be {}: write {}", quote(text), words.join(" or "));
            self.wrong(what, found);
        }
        word.map(|&(_, meaning)| meaning)
    }

    pub(super) fn items(&self, found: &mut Findings<'_>) -> Option<Vec<Self>> {
        let DeValue::Array(items) = self.value.get_ref() else {
            return self.wrong_type(found);
        };
        let items = items.iter();
        Some(items.map(|value| Self { value, ..*self }).collect())
    }

    pub(super) fn section(
        &self,
        called: &'static str,
        keys: &[Key],
        found: &mut Findings<'_>,
    ) -> Option<Section<'a>> {
        let entries = self.table(found)?;
        Some(Section::new(entries, self.at(), called, keys, found))
    }

    /// A table whose keys are the operator's own.
    pub(super) fn open_section(&self, found: &mut Findings<'_>) -> Option<Section<'a>> {
        Some(Section::open(self.table(found)?, self.at()))
    }

    fn table(&self, found: &mut Findings<'_>) -> Option<&'a DeTable<'a>> {
        match self.value.get_ref() {
            DeValue::Table(entries) => Some(entries),
            _ => self.wrong_type(found),
        }
    }

    fn unit<T>(
        &self,
        parse: fn(&str) -> Result<T, UnitError>,
        found: &mut Findings<'_>,
    ) -> Option<T> {
        let text = self.text(found)?;
        let quoted = quote(text);
        match parse(text) {
            Ok(value) => return Some(value),
            Err(UnitError::NoUnit { example, .. }) => {
                let what = format!("{quoted} needs a number and a unit, such as {example}");
                self.wrong(what, found);
            }
            Err(UnitError::UnknownUnit { unit, units }) => {
                let unit = quote(&unit);
                self.wrong(format!("{quoted}: {unit} is no unit: use {units}"), found);
            }
            Err(UnitError::TooLarge { .. }) => {
                self.wrong_unlike(format!("{quoted} is too large"), found);
            }
        }
        None
    }

    fn wrong_type<T>(&self, found: &mut Findings<'_>) -> Option<T> {
        let kind = match self.value.get_ref() {
            DeValue::String(_) => "text",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        self.wrong_unlike(format!("cannot be {kind}"), found);
        None
    }
}
