//! `wharf down`.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::host::{Host, Waiting, replica};
use crate::cell::protocol::{TaskState, TaskStatus};
use crate::control::{Client, ClientError};

/// How often to look whether it is done.
const PERIOD: Duration = Duration::from_millis(20);

/// How long a process may take to end after its socket is gone. Its number may
/// be another's later, so this is not waited for at any price.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Do not wait until the host has ended
    #[arg(long)]
    no_wait: bool,

    #[command(flatten)]
    host: Host,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let client = args.host.client()?;
    let pid = client.down()?.pid;
    if !args.no_wait {
        no_longer_served(&client, pid)?;
        let since = Instant::now();
        while lives(pid) && since.elapsed() < PATIENCE {
            thread::sleep(PERIOD);
        }
    }
    Ok(0)
}

/// Waits until this process does not serve any more. Another may take its place at once.
fn no_longer_served(client: &Client, pid: u32) -> anyhow::Result<()> {
    let mut waiting = Waiting::start();
    loop {
        let serving = client.host().map(|host| host.pid == pid);
        let left = serving.and_then(|is_it| is_it.then(|| client.tasks(None)).transpose());
        match left {
            Ok(None) => return Ok(()),
            Ok(Some(tasks)) => waiting.say(&what_is_left(&tasks)),
            Err(ClientError::NotRunning { .. }) => return Ok(()),
            // It is ending, and that is what was wanted.
            Err(ClientError::Lost(_)) => {}
            Err(error) => return Err(error.into()),
        }
        thread::sleep(PERIOD);
    }
}

fn what_is_left(tasks: &[TaskStatus]) -> String {
    let has_ended = |state| matches!(state, TaskState::Stopped | TaskState::Faulted);
    let living = tasks.iter().filter(|task| !has_ended(task.state));
    let names: Vec<_> = living.map(replica).collect();
    if names.is_empty() {
        "ending".to_owned()
    } else {
        format!("stopping {}", names.join(", "))
    }
}

/// Says whether a process runs: one that has ended, and whose parent has not
/// asked yet how, does not.
fn lives(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // proc_pid_stat(5): the state follows the name, which may hold anything.
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|state| !state.starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use super::lives;

    #[test]
    fn a_process_that_waits_for_its_parent_does_not_live() {
        assert!(lives(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while lives(child.id()) {
            assert!(std::time::Instant::now() < deadline);
        }
        child.wait().unwrap();
        assert!(!lives(child.id()));
    }
}
