//! `wharf new`.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueHint};

use super::output;
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
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let What::Guest { name: directory } = &args.what;
    let name = scaffold::new_guest(directory)?;
    let source = quoted(directory);
    let next = format!(
        "Made the guest {name}. Next:\n\
         \n    wharf run {source} -- world\
         \n    $EDITOR {}\n",
        quoted(&directory.join("src/main.rs")),
    );
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
