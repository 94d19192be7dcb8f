//! `wharf policy`: plugins, and what is in the slots.

mod check;
mod ls;
mod replay;
mod rollback;
mod swap;
mod trace;

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
    /// List the slots, who decides there, and how fast
    Ls(ls::Args),
    /// Tell whether a host would take a plugin, and what it is
    ///
    /// Needs no host, nor KVM. The exit status is 0 when it would be taken, 125 otherwise,
    /// with a line that says why not.
    Check(check::Args),
    /// Put a plugin into a slot while guests run
    ///
    /// It is built, checked and tried on questions that were asked before. Then it
    /// takes over the state of the plugin in force, if that has the same name. Should
    /// it fail within its first seconds, the one before it is back at once.
    Swap(swap::Args),
    /// Put back what was in a slot before the last swap
    Rollback(rollback::Args),
    /// Record what a slot is asked and what is answered, from now on
    Trace(trace::Args),
    /// Ask a plugin what a trace says was asked, and show where it differs
    ///
    /// Needs no host, nor KVM. The exit status is 0 when all answers are alike, 1 when
    /// one is not.
    Replay(replay::Args),
}

/// What a plugin is configured with.
#[derive(Clone, Debug, clap::Args)]
struct Settings {
    /// Configure it with this, instead of what the plugin of the same name before it
    /// was configured with; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_setting)]
    settings: Vec<(String, String)>,
}

impl Settings {
    /// Those that were given; none when there was nothing.
    fn given(&self) -> Option<Vec<(String, String)>> {
        (!self.settings.is_empty()).then(|| self.settings.clone())
    }
}

/// Runs the command.
pub(super) fn run(args: &Args, progress: Progress) -> anyhow::Result<u8> {
    match &args.what {
        What::Ls(args) => ls::run(args),
        What::Check(args) => check::run(args, progress),
        What::Swap(args) => swap::run(args, progress),
        What::Rollback(args) => rollback::run(args),
        What::Trace(args) => trace::run(args),
        What::Replay(args) => replay::run(args, progress),
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

fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}
