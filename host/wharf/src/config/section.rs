//! Reads a table: which keys it may have and which it has to.

use toml::de::DeTable;

use super::field::Field;
use super::findings::{Findings, quote};

/// Longest key that is compared with the known ones.
const TYPO_MAX: usize = 32;

/// A key that some table takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// A line with it that would be right.
    pub(super) example: &'static str,
}

/// A table whose keys are known.
#[derive(Clone, Copy)]
pub(super) struct Section<'a> {
    entries: &'a DeTable<'a>,
    at: usize,
    called: &'static str,
}

impl Key {
    pub(super) const fn new(name: &'static str, example: &'static str) -> Self {
        Self { name, example }
    }
}

impl<'a> Section<'a> {
    /// Takes a table that begins `at` and complains about keys not in `keys`.
    pub(super) fn new(
        entries: &'a DeTable<'a>,
        at: usize,
        called: &'static str,
        keys: &[Key],
        found: &mut Findings<'_>,
    ) -> Self {
        for key in entries.keys() {
            let name: &str = key.get_ref();
            if keys.iter().any(|known| known.name == name) {
                continue;
            }
            let instead = match closest(name, keys) {
                Some(meant) => format!("did you mean {meant:?}?"),
                None => format!("{called} takes {}", list(keys)),
            };
            let name = quote(name);
            found.add(key.span().start, format!("unknown key {name}: {instead}"));
        }
        Self {
            entries,
            at,
            called,
        }
    }

    pub(super) fn get(&self, key: Key) -> Option<Field<'a>> {
        let value = self.entries.get(key.name)?;
        Some(Field { key, value })
    }

    pub(super) fn require(&self, key: Key, found: &mut Findings<'_>) -> Option<Field<'a>> {
        let field = self.get(key);
        if field.is_none() {
            let Key { name, example } = key;
            let called = self.called;
            found.add(self.at, format!("{called} needs {name}: write {example}"));
        }
        field
    }

    /// A table whose keys are the operator's own.
    pub(super) fn open(entries: &'a DeTable<'a>, at: usize) -> Self {
        let called = "this table";
        Self {
            entries,
            at,
            called,
        }
    }

    /// Every value, all of them behind keys of the operator's own.
    pub(super) fn fields(self, key: Key) -> impl Iterator<Item = (&'a str, Field<'a>)> {
        self.entries
            .iter()
            .map(move |(name, value)| (name.get_ref().as_ref(), Field { key, value }))
    }
}

/// The known key that `name` was most likely meant to be.
fn closest(name: &str, keys: &[Key]) -> Option<&'static str> {
    if name.len() > TYPO_MAX {
        return None;
    }
    let name = name.to_ascii_lowercase().replace('_', "-");
    keys.iter()
        .map(|key| (strsim::damerau_levenshtein(&name, key.name), key.name))
        // Of a short word little may be wrong, or everything is close to it.
        .filter(|(distance, known)| distance.saturating_mul(3) <= known.len().max(3))
        .min()
        .map(|(_, known)| known)
}

fn list(keys: &[Key]) -> String {
    let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
    names.join(", ")
}
