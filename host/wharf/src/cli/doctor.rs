//! `wharf doctor`.

use super::{REFUSED, output};
use crate::doctor::{Facts, Table, examine, guests_run};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print an array of {check, level, finding, advice}; level is ok, warning
    /// or missing
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let findings = examine(&Facts::gather());
    output::result(args.json, &findings, || {
        Table::new(&findings, output::colour()).to_string()
    })?;
    Ok(if guests_run(&findings) { 0 } else { REFUSED })
}
