//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use wharf_machine::BootConfig;
use wharf_machine::image::Image;
use wharf_machine::layout::MEMORY_DEFAULT;
use wharf_model::Outcome;

use crate::run::{self, RunConfig};
use crate::units;

/// Exit status of wharf's own refusals and errors.
const REFUSED: u8 = 125;

#[derive(Debug, Parser)]
#[command(name = "wharf", version, about = "Runs single-purpose ELF unikernels on KVM")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one unikernel in the foreground, its console on the terminal
    Run(RunArgs),
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    image: PathBuf,
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    memory: Option<u64>,
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration)]
    timeout: Option<Duration>,
    #[arg(last = true)]
    args: Vec<String>,
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    env_logger::init();
    let cli = Cli::parse();
    let Command::Run(args) = cli.command;
    match run_image(&args) {
        Ok(status) => ExitCode::from(status),
        Err(e) => {
            eprintln!("wharf: {e:#}");
            ExitCode::from(REFUSED)
        }
    }
}

fn run_image(args: &RunArgs) -> anyhow::Result<u8> {
    let image = Image::open(&args.image)?;
    let config = RunConfig {
        boot: BootConfig {
            memory: args.memory.unwrap_or(MEMORY_DEFAULT),
            args: args.args.clone(),
            generation: 1,
        },
        limit: args.timeout,
    };
    let finished = run::run(&image, &config)?;
    if let Some(report) = finished.report {
        eprintln!("wharf: {report}");
    }
    if let Outcome::Stopped(stop) = finished.outcome {
        eprintln!("wharf: {stop}");
    }
    Ok(finished.outcome.exit_status())
}
