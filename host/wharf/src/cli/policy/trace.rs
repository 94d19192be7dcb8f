//! `wharf policy trace`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::ValueHint;
use wharf_model::policy::SlotName;
use wharf_policy::TraceLine;

use super::slot_parser;
use crate::cli::host::{Host, Waiting};
use crate::cli::output;
use crate::text::shown;
use crate::units::{parse_duration, parse_size};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The slot: scheduler, router or upgrader
    #[arg(value_parser = slot_parser())]
    slot: SlotName,

    /// Where the trace goes; what is there is replaced
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,

    /// End after so many questions
    #[arg(long, value_name = "N")]
    count: Option<u64>,

    /// End after this time
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    time: Option<Duration>,

    /// End before the file is larger than this
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_size)]
    size: u64,

    #[command(flatten)]
    host: Host,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let client = args.host.client()?;
    let lines = client.trace(args.slot, args.count, args.time)?;
    let name = shown(&args.file);
    let file = File::create(&args.file).with_context(|| format!("cannot write {name}"))?;
    let mut file = BufWriter::new(file);
    let (mut written, mut seen, mut left_out) = (0_u64, 0_u64, 0_u64);
    let mut waiting = Waiting::start();
    for line in lines {
        let line = line?;
        match &line {
            TraceLine::Trace(_) => {}
            TraceLine::Seen(_) => seen = seen.saturating_add(1),
            TraceLine::LeftOut(count) => left_out = left_out.saturating_add(*count),
        }
        let bytes = line.encode()?;
        written = written.saturating_add(bytes.len().try_into().unwrap_or(u64::MAX));
        if written > args.size {
            seen = seen.saturating_sub(1);
            break;
        }
        // Whole lines, so that what ctrl-C leaves can be replayed.
        let put = file.write_all(&bytes).and_then(|()| file.flush());
        put.with_context(|| format!("cannot write {name}"))?;
        waiting.say(&format!("{seen} questions, ctrl-C ends"));
    }
    drop(waiting);
    let missed = match left_out {
        0 => String::new(),
        _ => format!(", {left_out} left out because they came too fast"),
    };
    output::print(format!("{name}: {seen} questions to the {}{missed}\n", args.slot).as_bytes())?;
    Ok(0)
}
