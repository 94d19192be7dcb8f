//! `wharf new`.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueHint};
use wharf_model::policy::SlotName;

use super::{output, policy};
use crate::scaffold;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make the package of a unikernel, which builds and runs as it is
    ///
    /// It has the sources of the guest runtime in it, and belongs to no other
    /// workspace.
    #[command(after_help = "\
Examples:
  wharf new guest demo && wharf run demo -- world
  wharf new guest services/web")]
    Guest {
        /// The new directory; its last part is the package's name
        #[arg(value_hint = ValueHint::DirPath)]
        name: PathBuf,
    },
    /// Make the package of a policy plugin, which builds and is accepted as it is
    ///
    /// It has a small policy for the slot with tests of its decisions, and the contract
    /// that plugins keep, and belongs to no other workspace.
    #[command(after_help = "\
Examples:
  wharf new plugin fair --slot scheduler && wharf policy check fair
  wharf new plugin policies/egress --slot router")]
    Plugin {
        /// The new directory; its last part is the package's name
        #[arg(value_hint = ValueHint::DirPath)]
        name: PathBuf,

        /// What it is to decide: who runs, where connections go, or how upgrades proceed
        #[arg(long, value_parser = policy::slot_parser())]
        slot: SlotName,
    },
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let next = match &args.what {
        What::Guest { name: directory } => {
            let name = scaffold::new_guest(directory)?;
            format!(
                "Made the guest {name}. Next:\n\
                 \n    wharf run {} -- world\
                 \n    $EDITOR {}\n",
                quoted(directory),
                quoted(&directory.join("src/main.rs")),
            )
        }
        What::Plugin {
            name: directory,
            slot,
        } => {
            let name = scaffold::new_plugin(directory, *slot)?;
            format!(
                "Made the {} plugin {name}. Next:\n\
                 \n    wharf policy check {}\
                 \n    cargo test --manifest-path {}\
                 \n    $EDITOR {}\n",
                slot.as_str(),
                quoted(directory),
                quoted(&directory.join("Cargo.toml")),
                quoted(&directory.join("src/lib.rs")),
            )
        }
    };
    output::print(next.as_bytes())?;
    Ok(0)
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+@%".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::quoted;

    #[test]
    fn paths_are_quoted_when_a_shell_needs_it() {
        assert_eq!(quoted(Path::new("/x/demo-1")), "/x/demo-1");
        assert_eq!(quoted(Path::new("my dir/it's")), "'my dir/it'\\''s'");
    }
}
