//! `wharf ps`.

use comfy_table::Cell;

use super::host::{Host, replica};
use super::{output, table};
use crate::cell::protocol::{Selector, TaskStatus};
use crate::text::printable;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this: NAME, NAME.INDEX for one replica, or NAME.INDEX@GENERATION for one life
    task: Option<Selector>,

    #[command(flatten)]
    host: Host,

    /// Print an array of objects, one a replica
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let tasks = args.host.client()?.tasks(args.task.as_ref())?;
    output::result(args.json, &tasks, || report(&tasks))?;
    Ok(0)
}

fn report(tasks: &[TaskStatus]) -> String {
    let mut table = table::new(&[
        "NAME",
        ">GEN",
        "STATE",
        "IMAGE",
        ">MEMORY",
        ">RUN",
        ">CONNS",
        ">SHARE",
        ">RESTARTS",
        ">EXIT",
        ">WORKER",
    ]);
    let number = |number: Option<String>| Cell::new(number.unwrap_or_else(|| "-".to_owned()));
    for task in tasks {
        table.add_row([
            Cell::new(replica(task)),
            Cell::new(task.generation),
            table::state_cell(task.state),
            Cell::new(printable(&task.image)),
            Cell::new(table::size(task.memory_bytes)),
            Cell::new(table::time(task.run_ns)),
            Cell::new(task.connections),
            Cell::new(format!("{} %", task.share)),
            Cell::new(task.restarts),
            number(task.exit_status.map(|status| status.to_string())),
            number(task.worker.map(|worker| worker.to_string())),
        ]);
    }
    table::text(&table)
}

#[cfg(test)]
mod tests {
    use super::report;
    use crate::cell::protocol::TaskState;
    use crate::control::fake;

    #[test]
    fn an_image_does_not_command_the_terminal() {
        let mut task = fake::status("web", 0);
        task.image = "a\x1b[2J\n\u{202e}b".to_owned();
        let text = report(&[task]);
        assert!(text.contains("a\\u{1b}[2J\\n\\u{202e}b"), "{text}");
    }

    #[test]
    fn the_table_is_aligned() {
        let mut second = fake::status("database", 0);
        second.state = TaskState::Faulted;
        second.exit_status = Some(139);
        second.worker = None;
        let text = report(&[fake::status("web", 1), second]);
        let expected = "\
NAME        GEN  STATE    IMAGE      MEMORY  RUN  CONNS  SHARE  RESTARTS  EXIT  WORKER
web.1         1  waiting  hello.elf   32MiB  0µs      0  100 %         0     -       0
database.0    1  faulted  hello.elf   32MiB  0µs      0  100 %         0   139       -
";
        assert_eq!(text, expected);
    }
}
