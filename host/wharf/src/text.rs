//! Text that may hold anything, on its way to a line that must not.

use std::error::Error;
use std::path::Path;

use wharf_model::policy::check::commands_terminal;

/// An error and its causes on one line. A cause that was told already is not
/// repeated.
#[must_use]
pub fn one_line(error: &dyn Error) -> String {
    let mut line = String::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        let text = printable(&cause.to_string());
        if !line.contains(&text) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&text);
        }
        next = cause.source();
    }
    line
}

/// The text with what a terminal would obey or hide spelt out: paths, arguments and
/// guests' words may hold anything.
#[must_use]
pub fn printable(text: &str) -> String {
    escape(text, &[])
}

/// A path as a terminal may have it.
#[must_use]
pub fn shown(path: &Path) -> String {
    printable(&path.display().to_string())
}

/// As [`printable`], but newlines and tabs stay.
#[must_use]
pub fn visible(text: &str) -> String {
    escape(text, &['\n', '\t'])
}

fn escape(text: &str, kept: &[char]) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if commands_terminal(c) && !kept.contains(&c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::{one_line, visible};

    #[test]
    fn a_guest_does_not_command_the_terminal() {
        assert_eq!(visible("a\tb\nü"), "a\tb\nü");
        assert_eq!(visible("\x1b[2J\r\x07\u{9b}"), "\\u{1b}[2J\\r\\u{7}\\u{9b}");
        assert_eq!(visible("\u{202e}gnp"), "\\u{202e}gnp");
    }

    #[test]
    fn causes_are_joined() {
        let error = anyhow!("not a directory").context("cannot enter x");
        assert_eq!(one_line(error.as_ref()), "cannot enter x: not a directory");
    }

    #[test]
    fn a_cause_that_was_told_is_not_repeated() {
        let error = anyhow!("busy").context("KVM could not run: busy (try again)");
        assert_eq!(
            one_line(error.as_ref()),
            "KVM could not run: busy (try again)"
        );
    }

    #[test]
    fn it_is_one_line_whatever_a_path_holds() {
        let error = anyhow!("a\nb").context("\x1b[31mred\u{9b}");
        assert_eq!(one_line(error.as_ref()), "\\u{1b}[31mred\\u{9b}: a\\nb");
    }
}
