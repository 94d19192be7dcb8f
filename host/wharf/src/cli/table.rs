//! Tables of tasks, and the units in them.

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, presets};

use super::output;
use crate::cell::protocol::TaskState;

/// A table with these columns, of which those that begin with `>` are aligned to
/// the right.
pub(super) fn new(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| column.trim_start_matches('>')));
    for (column, name) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, 2));
        if name.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    if output::colour() {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table
}

/// A table as it is printed.
pub(super) fn text(table: &Table) -> String {
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// A state, in a colour that tells whether to worry.
pub(super) fn state_cell(state: TaskState) -> Cell {
    let cell = Cell::new(word(state));
    match state {
        TaskState::Ready | TaskState::Running | TaskState::Waiting => cell.fg(Color::Green),
        TaskState::Starting => cell.fg(Color::Yellow),
        TaskState::Faulted => cell.fg(Color::Red),
        TaskState::Stopped => cell,
    }
}

/// A state as it is written everywhere.
pub(super) const fn word(state: TaskState) -> &'static str {
    match state {
        TaskState::Starting => "starting",
        TaskState::Ready => "ready",
        TaskState::Running => "running",
        TaskState::Waiting => "waiting",
        TaskState::Stopped => "stopped",
        TaskState::Faulted => "faulted",
    }
}

/// A size in the largest unit of which it is a multiple.
pub(super) fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = |(shift, _): &(u32, &str)| bytes > 0 && bytes.trailing_zeros() >= *shift;
    match units.into_iter().find(whole) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

/// A time to three digits or so.
pub(super) fn time(ns: u64) -> String {
    let (us, ms, s) = (ns / 1_000, ns / 1_000_000, ns / 1_000_000_000);
    match s {
        0 if ms == 0 => format!("{us}µs"),
        0 => format!("{ms}ms"),
        1..60 => format!("{s}.{}s", ms % 1000 / 100),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::{size, time};

    #[test]
    fn sizes_are_exact() {
        assert_eq!(size(32 << 20), "32MiB");
        assert_eq!(size((32 << 20) + 4096), "32772KiB");
        assert_eq!(size(0), "0B");
        assert_eq!(size(7), "7B");
    }

    #[test]
    fn times_are_short() {
        for (ns, text) in [
            (0, "0µs"),
            (1_500_000, "1ms"),
            (1_590_000_000, "1.5s"),
            (61_000_000_000, "1m01s"),
            (3_720_000_000_000, "1h02m"),
        ] {
            assert_eq!(time(ns), text);
        }
    }
}
