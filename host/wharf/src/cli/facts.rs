//! What is known of one thing, a line for each: names to the left, bold on a terminal.

use clap::builder::styling::Style;

use super::output;
use crate::text::printable;

/// Lines of names and values.
pub(super) struct Facts {
    style: Style,
    text: String,
}

impl Facts {
    /// None yet, in colour where standard output shows colours.
    pub(super) fn new() -> Self {
        Self::with(output::colour())
    }

    /// The same, in colour or not.
    pub(super) fn with(colour: bool) -> Self {
        let style = Style::new();
        Self {
            style: if colour { style.bold() } else { style },
            text: String::new(),
        }
    }

    /// Adds a line.
    pub(super) fn row(&mut self, name: &str, value: &str) {
        let (style, value) = (self.style, printable(value));
        self.text
            .push_str(&format!("{style}{name:<9}{style:#} {value}\n"));
    }

    /// Adds a line for each value, with the name before the first; one that says so when
    /// there is none.
    pub(super) fn list<T: AsRef<str>>(&mut self, name: &str, values: impl IntoIterator<Item = T>) {
        let mut names = std::iter::once(name).chain(std::iter::repeat(""));
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            self.row(name, "nothing");
        }
        for (value, name) in values.zip(&mut names) {
            self.row(name, value.as_ref());
        }
    }

    /// All lines.
    pub(super) fn into_text(self) -> String {
        self.text
    }
}
