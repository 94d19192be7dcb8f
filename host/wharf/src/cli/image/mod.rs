//! `wharf image`: what a file would be as a guest.

mod inspect;

use clap::Subcommand;

use crate::build::Progress;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Tell whether a host would run an image, and what it is
    ///
    /// Knows wharf's own guests and those built for Solo5's hvt. Needs no host, nor KVM.
    /// The exit status is 0 when it would be run, 125 otherwise, with a line that says
    /// why not.
    Inspect(inspect::Args),
}

/// Runs the command.
pub(super) fn run(args: &Args, progress: Progress) -> anyhow::Result<u8> {
    match &args.what {
        What::Inspect(args) => inspect::run(args, progress),
    }
}
