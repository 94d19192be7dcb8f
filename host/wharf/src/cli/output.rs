//! What goes to standard output and standard error, and in which form.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

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
pub(super) fn json<T: serde::Serialize + ?Sized>(value: &T) -> serde_json::Result<String> {
    let mut json = serde_json::to_string_pretty(value)?;
    json.push('\n');
    Ok(json)
}

/// Writes a result as JSON when that is wanted, else as `text` has it.
pub(super) fn result<T: serde::Serialize + ?Sized>(
    is_json: bool,
    value: &T,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let result = if is_json { json(value)? } else { text() };
    print(result.as_bytes())
}

/// How long a message waits for somebody to read standard error. A reader that
/// is stuck must not keep wharf from its work, nor from ending.
const PATIENCE_MS: u16 = 500;

/// Whether the last message waited in vain; the next does not wait then.
static IS_STUCK: AtomicBool = AtomicBool::new(false);

/// Says on standard error what went wrong. When nobody reads it, there is nobody
/// to tell.
pub(super) fn complain(message: &str) {
    tell(format!("wharf: {message}\n").as_bytes());
}

/// Standard error, for logs. Takes everything, and loses what nobody reads.
pub(super) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        tell(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn tell(bytes: &[u8]) {
    let stderr = io::stderr();
    // As much at a time as a pipe that polls writable takes without blocking.
    for piece in bytes.chunks(4096) {
        let patience = if IS_STUCK.load(Ordering::Relaxed) {
            0
        } else {
            PATIENCE_MS
        };
        let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        let is_stuck = matches!(poll(&mut fds, patience), Ok(0) | Err(_));
        IS_STUCK.store(is_stuck, Ordering::Relaxed);
        if is_stuck || stderr.lock().write_all(piece).is_err() {
            return;
        }
    }
}

/// Whether standard error shows colours, and the operator wants them.
pub(super) fn stderr_colour() -> bool {
    shows_colours(&io::stderr())
}

/// Whether standard output shows colours, and the operator wants them.
pub(super) fn colour() -> bool {
    shows_colours(&io::stdout())
}

fn shows_colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
