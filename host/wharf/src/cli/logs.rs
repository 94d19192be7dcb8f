//! `wharf logs`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};

use super::host::{Host, emit};
use crate::cell::protocol::Selector;
use crate::control::ConsolePiece;
use crate::text::visible;

/// Bytes of a line that is not complete. What is longer is broken.
const LINE_BYTES: usize = 64 * 1024;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wharf logs web                           every replica, its name before each line
  wharf logs web.1 --tail 20 -f            one replica: 20 lines, and what follows

On a terminal, control characters that a guest writes are shown and not obeyed.")]
pub(super) struct Args {
    /// The task: NAME, or NAME.INDEX for one replica
    task: Selector,

    /// Go on with what will be written, over restarts, until the host ends
    #[arg(short, long)]
    follow: bool,

    /// Begin with the last N lines of each replica
    #[arg(long, value_name = "N")]
    tail: Option<usize>,

    #[command(flatten)]
    host: Host,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let client = args.host.client()?;
    let replicas = client.tasks(Some(&args.task))?;
    let mut printer = Printer {
        is_terminal: io::stdout().is_terminal(),
        names: replicas.len() > 1,
        open: BTreeMap::new(),
    };
    for piece in client.console(&args.task, args.tail, args.follow)? {
        if emit(printer.add(piece?).as_bytes())?.is_break() {
            return Ok(0);
        }
    }
    // When the reader leaves now, it has missed nothing it wanted.
    let _ = emit(printer.end().as_bytes())?;
    Ok(0)
}

/// Makes output of pieces.
struct Printer {
    is_terminal: bool,
    /// Whether lines begin with the replica's name. Lines of different replicas
    /// must not mix then, so that each is held until it is whole.
    names: bool,
    open: BTreeMap<String, String>,
}

impl Printer {
    fn add(&mut self, piece: ConsolePiece) -> String {
        let text = if self.is_terminal {
            visible(&piece.text)
        } else {
            piece.text
        };
        if !self.names {
            return text;
        }
        let open = self.open.entry(piece.task.clone()).or_default();
        open.push_str(&text);
        if open.len() > LINE_BYTES {
            open.push('\n');
        }
        let end = open.rfind('\n').map_or(0, |at| at.saturating_add(1));
        let rest = open.split_off(end);
        let whole = std::mem::replace(open, rest);
        whole.lines().map(|line| named(&piece.task, line)).collect()
    }

    /// What was not ended by a newline.
    fn end(&mut self) -> String {
        let open = std::mem::take(&mut self.open);
        open.iter()
            .filter(|(_, line)| !line.is_empty())
            .map(|(task, line)| named(task, line))
            .collect()
    }
}

fn named(task: &str, line: &str) -> String {
    format!("{task} | {line}\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::Printer;
    use crate::control::ConsolePiece;

    fn piece(task: &str, text: &str) -> ConsolePiece {
        ConsolePiece {
            task: task.to_owned(),
            start: 0,
            text: text.to_owned(),
        }
    }

    #[test]
    fn lines_of_replicas_do_not_mix() {
        let mut printer = Printer {
            is_terminal: false,
            names: true,
            open: BTreeMap::new(),
        };
        assert_eq!(printer.add(piece("web.0", "on")), "");
        assert_eq!(
            printer.add(piece("web.1", "a\nb\nc")),
            "web.1 | a\nweb.1 | b\n"
        );
        assert_eq!(printer.add(piece("web.0", "e\n")), "web.0 | one\n");
        let long = "x".repeat(70_000);
        assert_eq!(
            printer.add(piece("web.0", &long)),
            format!("web.0 | {long}\n")
        );
        assert_eq!(printer.end(), "web.1 | c\n");
    }

    #[test]
    fn one_replica_is_as_it_was_written_unless_a_terminal_would_obey() {
        let mut printer = Printer {
            is_terminal: false,
            names: false,
            open: BTreeMap::new(),
        };
        assert_eq!(printer.add(piece("web.0", "\x1b[1mx")), "\x1b[1mx");
        printer.is_terminal = true;
        assert_eq!(printer.add(piece("web.0", "\x1b[1mx\n")), "\\u{1b}[1mx\n");
    }
}
