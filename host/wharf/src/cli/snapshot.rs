//! `wharf snapshot`.

use std::path::PathBuf;

use anyhow::Context;
use clap::ValueHint;

use super::host::Host;
use super::{output, table};
use crate::cell::protocol::{Selector, SnapshotStatus};
use crate::control::SnapshotRequest;
use crate::text::printable;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The replica: NAME.INDEX, or NAME when the task has only one
    task: Selector,

    /// The file, which is made or replaced
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,

    /// The result as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    host: Host,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    // It need not be there.
    let file = std::path::absolute(&args.file).context("cannot find the current directory")?;
    let client = args.host.client()?;
    let status = client.snapshot(&args.task, &SnapshotRequest { file })?;
    output::result(args.json, &status, || report(&status))?;
    Ok(0)
}

fn report(status: &SnapshotStatus) -> String {
    let memory = table::size(status.memory_bytes);
    let pause = table::time(status.pause_ns);
    let file = printable(&status.file);
    format!(
        "{}: {memory} of memory in {file}, stood still for {pause}\n",
        status.task
    )
}

#[cfg(test)]
mod tests {
    use super::report;
    use crate::cell::protocol::SnapshotStatus;

    #[test]
    fn a_report_says_what_it_cost() {
        let status = SnapshotStatus {
            task: "web.0".to_owned(),
            generation: 1,
            file: "a\x1b.snap".to_owned(),
            memory_bytes: 2 << 20,
            pause_ns: 1_400_000,
            took_ns: 9_000_000,
        };
        assert_eq!(
            report(&status),
            "web.0: 2MiB of memory in a\\u{1b}.snap, stood still for 1ms\n"
        );
    }
}
