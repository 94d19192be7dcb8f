//! Text that may hold anything, on its way to a line that must not.

use std::error::Error;

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

/// The text with control characters spelt out: paths, arguments and guests'
/// words may hold anything, terminal controls included.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            printable.extend(c.escape_default());
        } else {
            printable.push(c);
        }
    }
    printable
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::one_line;

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
