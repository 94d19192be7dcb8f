//! What goes to standard output and standard error, and in which form.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;

/// Writes a result. A reader that has seen enough, such as `head`, is no error.
pub(super) fn print(result: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(result).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// Says on standard error what went wrong. When even that fails there is nobody
/// to tell.
pub(super) fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "wharf: {message}");
}

/// Whether standard output shows colours, and the operator wants them.
pub(super) fn colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// An error and its causes on one line. A cause that the message before it ends
/// with already is not repeated.
pub(super) fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = printable(&cause.to_string());
        if line.contains(&cause) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&cause);
    }
    line
}

/// Paths and arguments may hold anything, terminal controls included.
fn printable(text: &str) -> String {
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
        assert_eq!(one_line(&error), "cannot enter x: not a directory");
    }

    #[test]
    fn a_cause_that_was_told_is_not_repeated() {
        let error = anyhow!("busy").context("KVM could not run: busy (try again)");
        assert_eq!(one_line(&error), "KVM could not run: busy (try again)");
    }

    #[test]
    fn it_is_one_line_whatever_a_path_holds() {
        let error = anyhow!("a\nb").context("\x1b[31mred\u{9b}");
        assert_eq!(one_line(&error), "\\u{1b}[31mred\\u{9b}: a\\nb");
    }
}
