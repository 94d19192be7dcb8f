//! `wharf restart`.

use super::host::{Host, replica};
use super::output;
use crate::cell::protocol::Selector;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The task: NAME, NAME.INDEX for one replica, or NAME.INDEX@GENERATION for one life
    task: Selector,

    #[command(flatten)]
    host: Host,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let tasks = args.host.client()?.restart(&args.task)?;
    let line = |task| format!("{} restarting\n", replica(task));
    let report: String = tasks.iter().map(line).collect();
    output::print(report.as_bytes())?;
    Ok(0)
}
