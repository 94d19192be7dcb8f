//! `wharf policy`: plugins, and what is in the slots.

mod check;

use clap::Subcommand;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use wharf_model::policy::SlotName;

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

/// Takes the name of a slot.
pub(super) fn slot_parser() -> impl TypedValueParser<Value = SlotName> {
    let names = SlotName::ALL.map(SlotName::as_str);
    PossibleValuesParser::new(names).try_map(|name| {
        let mut slots = SlotName::ALL.into_iter();
        slots.find(|slot| slot.as_str() == name).ok_or("no slot")
    })
}
