//! `wharf policy replay`.

use std::fmt::Write;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use anyhow::Context;
use clap::ValueHint;
use wharf_policy::{Engine, Plugin, ReplayOptions, Replayed, replay};

use super::Settings;
use crate::build::{BuildOptions, Progress, Source};
use crate::cli::output;
use crate::text::printable;

/// Exit status when an answer differs, as that of `diff`.
const DIFFERS: u8 = 1;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The plugin: a component, or the directory of its package, built first
    #[arg(value_hint = ValueHint::AnyPath)]
    plugin: PathBuf,

    /// What `wharf policy trace` wrote
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,

    #[command(flatten)]
    settings: Settings,

    /// Show so many differences
    #[arg(long, value_name = "N", default_value_t = 10)]
    differences: usize,

    /// Print an object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(args: &Args, progress: Progress) -> anyhow::Result<u8> {
    let options = BuildOptions::new(progress);
    let path = Source::find(&args.plugin)?.plugin_path(options)?;
    let named = || path.display().to_string();
    let engine = Engine::new(wharf_policy::default_cache().as_deref())?;
    let plugin = Plugin::open(&engine, &path).with_context(named)?;
    let named = || args.file.display().to_string();
    let file = File::open(&args.file).with_context(named)?;
    let options = ReplayOptions {
        settings: args.settings.given(),
        report: args.differences,
    };
    let done = replay(&plugin, &mut BufReader::new(file), &options).with_context(named)?;
    let report = if args.json {
        output::json(&done)?
    } else {
        report(&done)?
    };
    output::print(report.as_bytes())?;
    let alike = done.same == done.asked;
    Ok(if alike { 0 } else { DIFFERS })
}

fn report(done: &Replayed) -> serde_json::Result<String> {
    let mut text = format!(
        "{} questions to the {}: {} answers as those of {}, {} others, {} failures; state: {}\n",
        done.asked,
        done.slot,
        done.same,
        printable(&done.was),
        done.differ,
        done.failed,
        printable(&done.state)
    );
    // Writing to a string never fails.
    if done.left_out > 0 {
        let _ = writeln!(text, "{} questions are not in the trace", done.left_out);
    }
    for it in &done.differences {
        let (was, would) = (
            printable(&serde_json::to_string(&it.was)?),
            printable(&serde_json::to_string(&it.would)?),
        );
        let _ = writeln!(text, "  question {}: was {was}, now {would}", it.number);
    }
    for it in &done.failures {
        let _ = writeln!(text, "  question {}: {}", it.number, printable(&it.reason));
    }
    Ok(text)
}
