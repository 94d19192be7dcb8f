//! `wharf build`.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueHint;
use wharf_machine::image::Image;
use wharf_policy::{Engine, Plugin};

use super::output;
use crate::build::{BuildOptions, Progress, Source};
use crate::text::shown;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wharf build .                            the only binary of the package here
  wharf build guest-kernel/apps#http       one binary of a package
  wharf build plugins/fair-share           a plugin
  wharf run \"$(wharf build .)\"             what `wharf run .` does

A package with a cdylib is a plugin, any other a guest, which needs a dependency
on wharf-rt and nothing else; `wharf new` makes both. Settings of
[profile.wharf-guest] and [profile.wharf-plugin] in its workspace's Cargo.toml are
kept, but for `inherits` and `panic`, and for plugins `lto` and `codegen-units`.

Plugins are compiled by the Rust in use when it has wasm32-unknown-unknown, else by
Debian's rustc-web when that is there. When neither is, `rustup target add` is
tried, then, as root on Debian, `apt-get install`.")]
pub(super) struct Args {
    /// A guest's or plugin's source: DIR with a Cargo.toml, or DIR#BIN for a guest
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
    let path = source.artefact_path(options)?;
    if let Source::Artefact(path) = &source {
        examine(path)?;
    }
    // A program gets the path's own bytes; a terminal would obey some of them.
    let shown = if std::io::stdout().is_terminal() {
        shown(&path).into_bytes()
    } else {
        path.as_os_str().as_bytes().to_owned()
    };
    output::print(&[&shown[..], b"\n"].concat())?;
    Ok(0)
}

/// Looks at what is built already as at what was built here.
fn examine(path: &Path) -> anyhow::Result<()> {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    if read.is_ok() && magic == *b"\0asm" {
        Plugin::open(&Engine::new(None)?, path)
            .with_context(|| format!("{} is no plugin", path.display()))?;
    } else {
        Image::open(path)?;
    }
    Ok(())
}
