//! What goes to standard output and standard error, and in which form.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, poll};

/// Writes a result. A reader that has seen enough, such as `head`, is no error.
pub(super) fn print(result: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(result).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// A value as the JSON that `--json` prints.
pub(super) fn json(value: &impl serde::Serialize) -> serde_json::Result<String> {
    let mut json = serde_json::to_string_pretty(value)?;
    json.push('\n');
    Ok(json)
}

/// How long a message waits for somebody to read standard error. A reader that
/// is stuck must not keep wharf from ending.
const PATIENCE_MS: u16 = 500;

/// Says on standard error what went wrong. When nobody reads it, there is nobody
/// to tell, which is the answer.
pub(super) fn complain(message: &str) -> bool {
    let line = format!("wharf: {message}\n");
    let stderr = io::stderr();
    // As much at a time as a pipe that polls writable takes without blocking.
    for piece in line.as_bytes().chunks(4096) {
        let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut fds, PATIENCE_MS) {
            Ok(0) | Err(_) => return false,
            Ok(_) => {}
        }
        if stderr.lock().write_all(piece).is_err() {
            return false;
        }
    }
    true
}

/// Whether standard output shows colours, and the operator wants them.
pub(super) fn colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
