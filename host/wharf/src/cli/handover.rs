//! `wharf handover`.

use std::env;
use std::path::PathBuf;

use anyhow::Context;
use clap::ValueHint;

use super::host::{Host, whole_path};
use super::{output, table};
use crate::cell::protocol::HandoverStatus;
use crate::control::{ClientError, HandoverRequest};
use crate::text::printable;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The program that goes on: a `wharf-host` [default: the one beside this `wharf`]
    #[arg(value_hint = ValueHint::FilePath)]
    program: Option<PathBuf>,

    /// The result as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    host: Host,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let program = match &args.program {
        Some(program) => whole_path(program)?,
        // This is what does the host's commands.
        None => env::current_exe().context("cannot find this program")?,
    };
    let client = args.host.client()?;
    let status = client.hand_over(&HandoverRequest { program });
    let status = status.map_err(|error| match error {
        ClientError::Lost(_) => anyhow::Error::new(error)
            .context("whether another process goes on is not known, `wharf ps` asks it"),
        error => error.into(),
    })?;
    output::result(args.json, &status, || report(&status))?;
    Ok(0)
}

fn report(status: &HandoverStatus) -> String {
    let HandoverStatus {
        pid,
        guests,
        connections,
        ..
    } = status;
    let version = printable(&status.version);
    let median = table::time(status.pause_median_ns);
    let longest = table::time(status.pause_max_ns);
    let took = table::time(status.took_ns);
    format!(
        "process {pid}, wharf {version}, is the host: {guests} guests and {connections} \
         connections in {took}; a guest stood still for {median}, at most {longest}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::report;
    use crate::cell::protocol::HandoverStatus;

    #[test]
    fn a_report_says_what_it_cost() {
        let status = HandoverStatus {
            pid: 7,
            version: "0.2.0\x1b".to_owned(),
            guests: 3,
            connections: 64,
            pause_median_ns: 2_000_000,
            pause_max_ns: 5_000_000,
            took_ns: 300_000_000,
        };
        assert_eq!(
            report(&status),
            "process 7, wharf 0.2.0\\u{1b}, is the host: 3 guests and 64 connections in 300ms; \
             a guest stood still for 2ms, at most 5ms\n"
        );
    }
}
