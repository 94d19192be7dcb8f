//! `wharf stop`.

use std::thread;
use std::time::Duration;

use super::host::{Host, Waiting, replica};
use super::{output, table};
use crate::cell::protocol::{Selector, TaskState, TaskStatus};
use crate::control::{Client, ClientError};

/// How often to look whether it is done.
const PERIOD: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The task: NAME, NAME.INDEX for one replica, or NAME.INDEX@GENERATION for one life
    task: Selector,

    /// Do not wait until it has stopped
    #[arg(long)]
    no_wait: bool,

    #[command(flatten)]
    host: Host,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let client = args.host.client()?;
    let mut tasks = client.stop(&args.task)?;
    if !args.no_wait {
        match settled(&client, &args.task) {
            Ok(settled) => tasks = settled,
            // The host has ended, and its tasks before it.
            Err(ClientError::NotRunning { .. } | ClientError::Lost(_)) => return Ok(0),
            Err(error) => return Err(error.into()),
        }
    }
    let line = |task| format!("{} {}\n", replica(task), outcome(task));
    let mut report: String = tasks.iter().map(line).collect();
    if tasks.is_empty() {
        report = format!("{} stopped\n", args.task);
    }
    output::print(report.as_bytes())?;
    Ok(0)
}

/// Waits until none of the tasks lives.
fn settled(client: &Client, selector: &Selector) -> Result<Vec<TaskStatus>, ClientError> {
    let mut waiting = Waiting::start();
    loop {
        let tasks = match client.tasks(Some(selector)) {
            // Of one that was beside another, nothing is left to be shown.
            Err(ClientError::Refused(_)) if selector.generation.is_some() => Vec::new(),
            other => other?,
        };
        let living: Vec<_> = tasks
            .iter()
            .filter(|task| lives(task))
            .map(replica)
            .collect();
        if living.is_empty() {
            return Ok(tasks);
        }
        waiting.say(&format!("stopping {}", living.join(", ")));
        thread::sleep(PERIOD);
    }
}

const fn lives(task: &TaskStatus) -> bool {
    !matches!(task.state, TaskState::Stopped | TaskState::Faulted)
}

/// What has become of a task that was told to stop.
const fn outcome(task: &TaskStatus) -> &'static str {
    if lives(task) {
        "stopping"
    } else {
        table::word(task.state)
    }
}
