//! Installing a toolchain for plugins, in front of the operator's eyes.
//!
//! What these programs say goes to standard error, where results are not.

use std::io::{self, PipeReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::toolchain::{PACKAGES, TARGET};
use crate::build::Progress;
use crate::build::progress::readable;

/// How long rustup may take: 20 MB over a slow line, but not for ever over a dead
/// one, of which it says nothing by itself.
const RUSTUP_LIMIT: Duration = Duration::from_secs(90);

/// How long apt-get may take. It gives up on dead lines by itself, and must not be
/// ended while it unpacks.
const APT_LIMIT: Duration = Duration::from_secs(1800);

/// Never asks, never takes packages away, waits for another apt-get and not for ever
/// for a server.
const APT_OPTIONS: [&str; 6] = [
    "-y",
    "-oDPkg::Lock::Timeout=120",
    "-oAcquire::Retries=1",
    "-oAcquire::http::Timeout=20",
    "-oAcquire::https::Timeout=20",
    "-oAPT::Color=0",
];

/// Has rustup add the target to the toolchain that is in use in a directory.
pub(super) fn add_target(directory: &Path, progress: Progress) -> Result<(), String> {
    say(
        progress,
        &format!("adding {TARGET} to this Rust: rustup target add {TARGET}"),
    );
    let mut command = Command::new("rustup");
    command
        .args(["target", "add", TARGET])
        .current_dir(directory)
        .env_remove("RUST_BACKTRACE");
    run(&mut command, RUSTUP_LIMIT, progress)
}

/// Installs Debian's packages.
pub(super) fn packages(progress: Progress) -> Result<(), String> {
    let list = PACKAGES.join(" ");
    say(
        progress,
        &format!("installing what Debian has to compile plugins: apt-get install {list}"),
    );
    let install = || {
        let mut command = apt("install");
        command.args(["--no-install-recommends", "--no-remove"]);
        run(command.args(PACKAGES), APT_LIMIT, progress)
    };
    // Its lists may be missing or old.
    install().or_else(|first| {
        say(
            progress,
            "that did not work; once more after apt-get update",
        );
        run(&mut apt("update"), APT_LIMIT, progress)
            .map_err(|_| first)
            .and_then(|()| install())
    })
}

fn apt(command: &str) -> Command {
    let mut apt = Command::new("/usr/bin/apt-get");
    apt.arg(command)
        .args(APT_OPTIONS)
        .env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

fn say(progress: Progress, what: &str) {
    if progress != Progress::Never {
        // If standard error is gone, so is the reader.
        let _ = writeln!(io::stderr(), "wharf: {what}");
    }
}

/// Runs a program to its end, or to the limit. An error is what it said of it.
fn run(command: &mut Command, limit: Duration, progress: Progress) -> Result<(), String> {
    let said = |e: io::Error| e.to_string();
    let (reader, writer) = io::pipe().map_err(said)?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(said)?)
        .stderr(writer);
    let spawned = command.spawn();
    // Both ends of the pipe that are ours: what is read must end with the program.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = spawned.map_err(said)?;
    let show = progress != Progress::Never;
    let Some(output) = relay(reader, limit, show) else {
        end(&mut child);
        return Err(format!("it took longer than {} s", limit.as_secs()));
    };
    let status = child.wait().map_err(said)?;
    if status.success() {
        return Ok(());
    }
    Err(reason(&String::from_utf8_lossy(&output), status))
}

/// The first line that is an error as rustup or apt-get writes one, else the last of
/// all. Not the whole of it, which was shown.
fn reason(output: &str, status: ExitStatus) -> String {
    let mut lines = output.lines().map(str::trim).filter(|it| !it.is_empty());
    let error = |line: &&str| line.starts_with("error: ") || line.starts_with("E: ");
    let found = lines.clone().find(error).or_else(|| lines.next_back());
    found.map_or_else(
        || status.to_string(),
        |line| line.chars().take(120).collect(),
    )
}

/// Reads to the end and shows it; `None` when the time is over before.
fn relay(mut from: PipeReader, limit: Duration, show: bool) -> Option<Vec<u8>> {
    let deadline = Instant::now().checked_add(limit)?;
    let mut output = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        if !readable(&from, Some(left)) {
            continue;
        }
        match from.read(&mut buffer) {
            Ok(0) => return Some(output),
            Ok(len) => {
                let said = buffer.get(..len).unwrap_or_default();
                output.extend_from_slice(said);
                if show {
                    let _ = io::stderr().write_all(said);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Some(output),
        }
    }
}

fn end(child: &mut Child) {
    // It may be over just now.
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::{Progress, run};

    fn shell(script: &str, limit: Duration) -> Result<(), String> {
        let mut command = Command::new("sh");
        run(command.args(["-c", script]), limit, Progress::Never)
    }

    #[test]
    fn what_went_wrong_is_told_in_a_line() {
        let minute = Duration::from_secs(60);
        assert_eq!(shell("echo fine", minute), Ok(()));
        for (script, reason) in [
            ("echo; exit 7", "exit status: 7"),
            ("echo one; echo two >&2; echo; exit 1", "two"),
            (
                "echo error: first; echo '  1: next' >&2; exit 1",
                "error: first",
            ),
            (
                "echo Reading; echo E: no package; echo; exit 1",
                "E: no package",
            ),
        ] {
            assert_eq!(shell(script, minute), Err(reason.to_owned()), "{script}");
        }
    }

    #[test]
    fn what_hangs_is_ended() {
        // Reads what nobody writes, so that it ends by being killed only.
        let hangs = shell("exec cat /dev/zero >/dev/null", Duration::from_millis(50));
        assert_eq!(hangs, Err("it took longer than 0 s".to_owned()));
    }
}
