//! `wharf policy`: plugins, and what is in the slots.

mod check;

use clap::Subcommand;

use crate::build::Progress;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Tell whether a host would take a plugin, and what it is
    ///
    /// Needs no host, nor KVM. The exit status is 0 when it would be taken, 125 otherwise,
    /// with a line that says why not.
    Check(check::Args),
}

/// Runs the command.
pub(super) fn run(args: &Args, progress: Progress) -> anyhow::Result<u8> {
    match &args.what {
        What::Check(args) => check::run(args, progress),
    }
}
