//! `wharf policy rollback`.

use wharf_model::policy::SlotName;

use super::slot_parser;
use crate::cli::host::Host;
use crate::cli::{output, table};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The slot: scheduler, router or upgrader
    #[arg(value_parser = slot_parser())]
    slot: SlotName,

    #[command(flatten)]
    host: Host,

    /// Print an object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let done = args.host.client()?.rollback(args.slot)?;
    output::result(args.json, &done, || {
        format!(
            "{}: back to {} from {}, callers waited {}\n",
            args.slot,
            done.new,
            done.old,
            table::time(done.pause_ns)
        )
    })?;
    Ok(0)
}
