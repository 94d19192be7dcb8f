//! `wharf policy ls`.

use comfy_table::{Cell, Color};
use wharf_model::policy::slot::State;

use crate::cli::host::Host;
use crate::cli::{output, table};
use crate::control::PolicyStatus;
use crate::text::printable;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    host: Host,

    /// Print an array of objects, one a slot
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let slots = args.host.client()?.policies()?;
    output::result(args.json, &slots, || report(&slots))?;
    Ok(0)
}

fn report(slots: &[PolicyStatus]) -> String {
    let mut table = table::new(&[
        "SLOT", "PLUGIN", "STATE", ">CALLS", ">STRIKES", ">P50", ">P99", ">SWAPS", ">PAUSE",
        "DIGEST",
    ]);
    for slot in slots {
        let plugin = match &slot.version {
            Some(version) => format!("{} {version}", slot.plugin),
            None => slot.plugin.clone(),
        };
        let plugin = printable(&plugin);
        let digest = slot.digest.as_deref().unwrap_or("-");
        table.add_row([
            Cell::new(slot.slot),
            Cell::new(plugin),
            state_cell(slot.state),
            Cell::new(slot.calls),
            Cell::new(slot.strikes),
            Cell::new(short(slot.p50_ns)),
            Cell::new(short(slot.p99_ns)),
            Cell::new(slot.swaps),
            Cell::new(short(slot.last_swap_pause_ns)),
            Cell::new(digest.get(..12).unwrap_or(digest)),
        ]);
    }
    let mut text = table::text(&table);
    for slot in slots {
        if let Some(reason) = &slot.reason {
            text.push_str(&format!("{}: {}\n", slot.slot, printable(reason)));
        }
    }
    text
}

fn state_cell(state: State) -> Cell {
    let (word, colour) = match state {
        State::BuiltIn => ("built-in", None),
        State::Probation => ("probation", Some(Color::Yellow)),
        State::Active => ("active", Some(Color::Green)),
        State::Quarantined => ("quarantined", Some(Color::Red)),
    };
    let cell = Cell::new(word);
    match colour {
        Some(colour) => cell.fg(colour),
        None => cell,
    }
}

/// A time of which nanoseconds matter.
fn short(ns: u64) -> String {
    match ns {
        0 => "-".to_owned(),
        1..10_000 => format!("{ns}ns"),
        _ => table::time(ns),
    }
}

#[cfg(test)]
mod tests {
    use wharf_model::policy::SlotName;
    use wharf_model::policy::slot::State;

    use super::report;
    use crate::control::PolicyStatus;

    #[test]
    fn the_table_says_who_decides_and_why_not() {
        let built_in = PolicyStatus {
            slot: SlotName::Router,
            plugin: "built-in".to_owned(),
            version: None,
            digest: None,
            state: State::BuiltIn,
            calls: 0,
            strikes: 0,
            p50_ns: 0,
            p99_ns: 0,
            swaps: 0,
            last_swap_pause_ns: 0,
            previous: None,
            reason: None,
        };
        let out = PolicyStatus {
            slot: SlotName::Scheduler,
            plugin: "fair-share".to_owned(),
            version: Some("1.0.0".to_owned()),
            digest: Some("0123456789abcdef".to_owned()),
            state: State::Quarantined,
            calls: 12,
            strikes: 3,
            p50_ns: 661,
            p99_ns: 12_345,
            swaps: 1,
            last_swap_pause_ns: 18_000,
            reason: Some("`next` trapped".to_owned()),
            ..built_in.clone()
        };
        let expected = "\
SLOT       PLUGIN            STATE        CALLS  STRIKES    P50   P99  SWAPS  PAUSE  DIGEST
scheduler  fair-share 1.0.0  quarantined     12        3  661ns  12µs      1   18µs  0123456789ab
router     built-in          built-in         0        0      -     -      0      -  -
scheduler: `next` trapped
";
        assert_eq!(report(&[out, built_in]), expected);
    }
}
