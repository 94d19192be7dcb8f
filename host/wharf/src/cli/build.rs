//! `wharf build`.

use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::ValueHint;
use wharf_machine::image::Image;

use super::output;
use crate::build::{BuildOptions, Progress, Source};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wharf build .                            the only binary of the package here
  wharf build guest-kernel/apps#http       one binary of a package
  wharf run \"$(wharf build .)\"             what `wharf run .` does

A package needs a dependency on wharf-rt and nothing else; `wharf new guest`
makes one. Settings of [profile.wharf-guest] in its workspace's Cargo.toml are
kept, but for `inherits` and `panic`.")]
pub(super) struct Args {
    /// A guest's source: DIR with a Cargo.toml, or DIR#BIN
    #[arg(value_hint = ValueHint::AnyPath)]
    source: PathBuf,

    /// Make an image for fixed addresses, which are easier to guess and to debug
    #[arg(long)]
    no_pie: bool,
}

/// Runs the command.
pub(super) fn run(args: &Args, progress: Progress) -> anyhow::Result<u8> {
    // Who asks for a build and nothing else wants to see it.
    let progress = match progress {
        Progress::Late if std::io::stderr().is_terminal() => Progress::Live,
        other => other,
    };
    let source = Source::find(&args.source)?;
    let options = BuildOptions {
        position_independent: !args.no_pie,
        progress,
    };
    let path = source.image_path(options)?;
    if let Source::Artefact(path) = &source {
        Image::open(path)?;
    }
    output::print(&[path.as_os_str().as_bytes(), b"\n"].concat())?;
    Ok(0)
}
