//! `wharf upgrade` and `wharf rollback`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::ValueHint;

use super::host::{Host, Waiting, whole_path};
use super::{REFUSED, output, table};
use crate::build::{BuildOptions, Progress, Source};
use crate::cell::protocol::{Selector, UpgradeState, UpgradeStatus};
use crate::control::{Client, UpgradeRequest};
use crate::text::printable;

/// How often to look whether it is done.
const PERIOD: Duration = Duration::from_millis(5);

#[derive(Debug, clap::Args)]
pub(super) struct Upgrade {
    /// The task: NAME, NAME.INDEX for one replica, or NAME.INDEX@GENERATION for one life
    task: Selector,

    /// The new version: an image, or PACKAGE#BIN to build it from
    #[arg(long, value_hint = ValueHint::AnyPath)]
    image: PathBuf,

    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, clap::Args)]
pub(super) struct Rollback {
    /// The task: NAME, NAME.INDEX for one replica, or NAME.INDEX@GENERATION for one life
    task: Selector,

    #[command(flatten)]
    wait: Wait,
}

// No documentation comment: clap would describe the commands with it.
#[derive(Debug, clap::Args)]
struct Wait {
    /// Do not wait until it is decided
    #[arg(long)]
    no_wait: bool,

    /// The result as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    host: Host,
}

/// Runs `wharf upgrade`.
pub(super) fn run(args: &Upgrade, progress: Progress) -> anyhow::Result<u8> {
    let options = BuildOptions::new(progress);
    let image = Source::find(&args.image)?.image_path(options)?;
    let image = whole_path(&image)?;
    let client = args.wait.host.client()?;
    let begun = client.upgrade(&args.task, &UpgradeRequest { image })?;
    finish(&client, begun, &args.wait)
}

/// Runs `wharf rollback`.
pub(super) fn roll_back(args: &Rollback) -> anyhow::Result<u8> {
    let client = args.wait.host.client()?;
    let begun = client.undo_upgrade(&args.task)?;
    finish(&client, begun, &args.wait)
}

/// Waits until an upgrade is decided, and says what came of it.
fn finish(client: &Client, begun: UpgradeStatus, wait: &Wait) -> anyhow::Result<u8> {
    let mut status = begun;
    let mut waiting = Waiting::start();
    while !wait.no_wait && status.state == UpgradeState::Running {
        let step = status.step.as_deref().unwrap_or("beginning");
        let (done, all) = (status.done, status.replicas);
        waiting.say(&format!("{}: {step}, {done} of {all} done", status.task));
        thread::sleep(PERIOD);
        status = client.upgrade_status(status.id).context(
            "what became of the upgrade is not known: when the host ends, so does an upgrade",
        )?;
    }
    drop(waiting);
    output::result(wait.json, &status, || report(&status))?;
    match status.state {
        UpgradeState::Running | UpgradeState::Kept => Ok(0),
        UpgradeState::Refused | UpgradeState::RolledBack => {
            if !wait.json {
                let reason = status.reason.as_deref().unwrap_or("for no reason");
                output::complain(&format!("{}: {}", status.task, printable(reason)));
            }
            Ok(REFUSED)
        }
    }
}

fn report(status: &UpgradeStatus) -> String {
    let UpgradeStatus {
        task,
        to,
        done,
        replicas,
        ..
    } = status;
    let to = printable(to);
    let mut text = match status.state {
        UpgradeState::Running => format!("{task}: being upgraded to {to}\n"),
        UpgradeState::Kept => format!("{task}: {done} of {replicas} upgraded to {to}\n"),
        UpgradeState::RolledBack => format!("{task}: rolled back from {to}\n"),
        UpgradeState::Refused => format!("{task}: not upgraded to {to}\n"),
    };
    if status.state == UpgradeState::Kept && status.pause_ns > 0 {
        let (connections, state) = (status.connections, table::size(status.state_bytes));
        let pause = table::time(status.pause_ns);
        // Writing to a string never fails.
        let _ = writeln!(
            text,
            "{connections} connections and {state} of state went over, stood still for {pause} at most"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::report;
    use crate::cell::protocol::{UpgradeState, UpgradeStatus};

    #[test]
    fn a_report_says_what_became_of_it() {
        let mut status = UpgradeStatus {
            id: 1,
            task: "web".parse().unwrap(),
            from: "a.elf".to_owned(),
            to: "b\x1b.elf".to_owned(),
            state: UpgradeState::Kept,
            step: None,
            replicas: 2,
            done: 2,
            connections: 64,
            state_bytes: 2048,
            pause_ns: 2_400_000,
            reason: None,
        };
        assert_eq!(
            report(&status),
            "web: 2 of 2 upgraded to b\\u{1b}.elf\n\
             64 connections and 2KiB of state went over, stood still for 2ms at most\n"
        );
        status.state = UpgradeState::Refused;
        assert_eq!(report(&status), "web: not upgraded to b\\u{1b}.elf\n");
    }
}
