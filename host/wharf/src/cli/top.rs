//! `wharf top`.

use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use comfy_table::Cell;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::widgets::{Paragraph, Row, Table};
use ratatui::{DefaultTerminal, Frame};

use super::host::Host;
use super::usage::{Order, Sample, Usage, sort};
use super::{output, table};
use crate::cell::protocol::TaskState;
use crate::control::Client;

/// How long counters are watched for one rate.
const PERIOD: Duration = Duration::from_secs(1);

const COLUMNS: [&str; 5] = ["NAME", ">CPU%", ">EXITS/S", ">MEMORY", "STATE"];

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print an array of one second's rates and end
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    host: Host,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let client = args.host.client()?;
    let first = Sample::take(&client)?;
    if !args.json && io::stdout().is_terminal() && io::stdin().is_terminal() {
        let mut terminal = ratatui::try_init().context("cannot draw on the terminal")?;
        let result = watch(&client, first, &mut terminal);
        ratatui::restore();
        result?;
        return Ok(0);
    }
    thread::sleep(PERIOD);
    let mut usages = Sample::take(&client)?.since(&first);
    sort(&mut usages, Order::Cpu);
    output::result(args.json, &usages, || report(&usages))?;
    Ok(0)
}

fn report(usages: &[Usage]) -> String {
    let mut table = table::new(&COLUMNS);
    for usage in usages {
        let [name, cpu, exits, memory, _] = cells(usage);
        let mut row: Vec<_> = [name, cpu, exits, memory]
            .into_iter()
            .map(Cell::new)
            .collect();
        row.push(table::state_cell(usage.state));
        table.add_row(row);
    }
    table::text(&table)
}

fn cells(usage: &Usage) -> [String; 5] {
    [
        format!("{}.{}", usage.name, usage.index),
        format!("{:.1}", usage.cpu_percent),
        format!("{:.0}", usage.exits_per_second),
        table::size(usage.memory_bytes),
        table::word(usage.state).to_owned(),
    ]
}

/// Shows rates until the operator or the host ends it.
fn watch(client: &Client, first: Sample, terminal: &mut DefaultTerminal) -> anyhow::Result<()> {
    let mut earlier = first;
    let mut usages = earlier.since(&earlier);
    let mut order = Order::Cpu;
    loop {
        sort(&mut usages, order);
        terminal.draw(|frame| draw(frame, &usages, order))?;
        let left = PERIOD.saturating_sub(earlier.at.elapsed());
        if !left.is_zero() && event::poll(left)? {
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => match pressed(key) {
                    Some(Key::Quit) => return Ok(()),
                    Some(Key::Sort(by)) => order = by,
                    None => {}
                },
                // Most likely another size, and that is drawn above.
                _ => {}
            }
        } else {
            let now = Sample::take(client)?;
            usages = now.since(&earlier);
            earlier = now;
        }
    }
}

enum Key {
    Quit,
    Sort(Order),
}

fn pressed(key: KeyEvent) -> Option<Key> {
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
        KeyCode::Char('c') if is_control => Some(Key::Quit),
        KeyCode::Char('c') => Some(Key::Sort(Order::Cpu)),
        KeyCode::Char('e') => Some(Key::Sort(Order::Exits)),
        KeyCode::Char('m') => Some(Key::Sort(Order::Memory)),
        KeyCode::Char('n') => Some(Key::Sort(Order::Name)),
        _ => None,
    }
}

fn draw(frame: &mut Frame, usages: &[Usage], order: Order) {
    let [body, foot] =
        Layout::vertical([Constraint::Min(1), Constraint::Length(1)]).areas(frame.area());
    let sorted = match order {
        Order::Name => "NAME",
        Order::Cpu => ">CPU%",
        Order::Exits => ">EXITS/S",
        Order::Memory => ">MEMORY",
    };
    let head = COLUMNS.map(|column| {
        let style = Style::new().add_modifier(Modifier::BOLD);
        let style = if column == sorted {
            style.add_modifier(Modifier::UNDERLINED)
        } else {
            style
        };
        ratatui::text::Span::styled(column.trim_start_matches('>'), style)
    });
    let rows = usages.iter().map(|usage| {
        let style = match usage.state {
            TaskState::Faulted if output::colour() => Style::new().fg(Color::Red),
            TaskState::Stopped if output::colour() => Style::new().fg(Color::DarkGray),
            _ => Style::new(),
        };
        Row::new(cells(usage)).style(style)
    });
    let widths = [
        Constraint::Min(12),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Length(9),
    ];
    frame.render_widget(Table::new(rows, widths).header(Row::new(head)), body);
    let keys = "q quit · sort by c cpu · e exits · m memory · n name";
    frame.render_widget(Paragraph::new(keys), foot);
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::{Order, Sample, draw, report, sort};
    use crate::control::fake;

    #[test]
    fn rates_are_differences() {
        let at = Instant::now();
        let earlier = Sample {
            at,
            tasks: vec![fake::status("web", 0), fake::status("db", 0)],
        };
        let mut tasks = vec![
            fake::status("web", 0),
            fake::status("new", 0),
            fake::status("db", 0),
        ];
        tasks[1].run_ns = 9_000_000_000;
        tasks[2].run_ns = 1_000_000_000;
        tasks[2].exits = 300;
        let later = Sample {
            at: at + Duration::from_secs(2),
            tasks,
        };
        let mut usages = later.since(&earlier);
        sort(&mut usages, Order::Cpu);
        let expected = "\
NAME   CPU%  EXITS/S  MEMORY  STATE
db.0   50.0      150   32MiB  waiting
new.0   0.0        0   32MiB  waiting
web.0   0.0        0   32MiB  waiting
";
        assert_eq!(report(&usages), expected);

        let mut terminal = Terminal::new(TestBackend::new(60, 6)).unwrap();
        terminal
            .draw(|frame| draw(frame, &usages, Order::Cpu))
            .unwrap();
        let screen = terminal.backend().to_string();
        assert!(
            screen.contains("db.0") && screen.contains("50.0"),
            "{screen}"
        );
    }
}
