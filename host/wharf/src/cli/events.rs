//! `wharf events`.

use std::io::{self, IsTerminal};

use clap::builder::styling::{AnsiColor, Style};
use jiff::Timestamp;

use super::host::{Host, emit};
use super::output;
use crate::cell::protocol::{Event, EventKind};
use crate::text::visible;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go on with what will happen, also in another process that takes over, until the host
    /// ends
    #[arg(short, long)]
    follow: bool,

    /// Print one object a line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    host: Host,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let client = args.host.client()?;
    let (colour, is_terminal) = (output::colour(), io::stdout().is_terminal());
    let mut last = 0;
    loop {
        let pid = client.host()?.pid;
        for event in client.events(last, args.follow)? {
            let event = event?;
            last = event.seq;
            let mut line = if args.json {
                serde_json::to_string(&event)?
            } else {
                human(&event, colour, is_terminal)
            };
            line.push('\n');
            if emit(line.as_bytes())?.is_break() {
                return Ok(0);
            }
        }
        // Another process may go on with the same host, and its events.
        let goes_on = client.host().is_ok_and(|host| host.pid != pid);
        if !args.follow || !goes_on {
            return Ok(0);
        }
    }
}

/// An event on one line, and its further lines below it.
fn human(event: &Event, colour: bool, is_terminal: bool) -> String {
    let time = Timestamp::from_nanosecond(event.time_ns.into()).unwrap_or(Timestamp::MAX);
    let who = match &event.task {
        Some(task) if event.generation > 0 => format!("{task}#{}", event.generation),
        Some(slot) => slot.clone(),
        None => "wharf".to_owned(),
    };
    let word = event.kind.word();
    let style = match shade(event.kind) {
        Some(shade) if colour => shade.on_default(),
        _ => Style::new(),
    };
    let detail = event.detail.trim_end().replace('\n', "\n    ");
    let detail = if is_terminal {
        visible(&detail)
    } else {
        detail
    };
    let line = format!("{time:.3}  {who:<12}  {style}{word:<12}{style:#}  {detail}");
    line.trim_end().to_owned()
}

/// The colour of a kind that is worth one.
const fn shade(kind: EventKind) -> Option<AnsiColor> {
    match kind {
        EventKind::Started | EventKind::Up => Some(AnsiColor::Green),
        EventKind::StartFailed | EventKind::Faulted => Some(AnsiColor::Red),
        EventKind::BackingOff | EventKind::UpgradeRefused | EventKind::UpgradeRolledBack => {
            Some(AnsiColor::Yellow)
        }
        EventKind::Upgraded => Some(AnsiColor::Green),
        EventKind::UpgradeBegun | EventKind::UpgradeShared | EventKind::Snapshotted => None,
        EventKind::Exited | EventKind::Stopped | EventKind::Moved | EventKind::Down => None,
        EventKind::HandedOver => Some(AnsiColor::Green),
        EventKind::HandoverFailed => Some(AnsiColor::Yellow),
        EventKind::PolicySwapped | EventKind::PolicyConfirmed => Some(AnsiColor::Green),
        EventKind::PolicyStruck | EventKind::PolicyRestored | EventKind::PolicyRolledBack => {
            Some(AnsiColor::Yellow)
        }
        EventKind::PolicyQuarantined => Some(AnsiColor::Red),
    }
}

#[cfg(test)]
mod tests {
    use super::human;
    use crate::cell::protocol::{Event, EventKind};

    #[test]
    fn a_report_of_several_lines_is_indented() {
        let event = Event {
            seq: 1,
            time_ns: 1_700_000_000_123_456_789,
            task: Some("web.0".to_owned()),
            generation: 2,
            kind: EventKind::Faulted,
            detail: "page fault\nrip 0x10\x07\n".to_owned(),
        };
        assert_eq!(
            human(&event, false, true),
            "2023-11-14T22:13:20.123Z  web.0#2       faulted       page fault\n    rip 0x10\\u{7}"
        );
        assert!(human(&event, true, true).contains("\x1b[31mfaulted"));
    }
}
