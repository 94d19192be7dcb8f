//! How much of cargo's talk an operator gets to see, and when.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, mem};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long a build may take before it has to say what it does.
const PATIENCE: Duration = Duration::from_secs(1);

/// When cargo's messages reach standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// At once, and on a terminal with cargo's own progress bar.
    Live,
    /// When something was compiled, something went wrong, or it takes longer
    /// than a second: who runs what is built already does not want to know.
    Late,
    /// Only when something went wrong.
    Never,
}

impl Progress {
    /// Starts cargo with its output connected as this needs.
    pub(super) fn spawn(self, command: &mut Command) -> io::Result<Child> {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        if self == Self::Live {
            return command.spawn();
        }
        // cargo sees a pipe, but a terminal may be behind it.
        let colour = io::stderr().is_terminal()
            && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        if colour && env::var_os("CARGO_TERM_COLOR").is_none() {
            command.env("CARGO_TERM_COLOR", "always");
        }
        command.stderr(Stdio::piped()).spawn()
    }
}

/// cargo's standard error, being listened to.
pub(super) struct Talk {
    listener: Option<JoinHandle<Vec<u8>>>,
    progress: Progress,
}

impl Talk {
    /// Listens until cargo closes its end. Without a pipe cargo shows everything by
    /// itself. The preface comes before the first that is shown.
    pub(super) fn listen(stderr: Option<ChildStderr>, progress: Progress, preface: &str) -> Self {
        let patience = (progress == Progress::Late).then_some(PATIENCE);
        let held = preface.as_bytes().to_vec();
        if stderr.is_none() {
            let _ = io::stderr().write_all(&held);
        }
        let listener = stderr
            .map(|stderr| thread::spawn(move || relay(stderr, &mut io::stderr(), patience, held)));
        Self { listener, progress }
    }

    /// Shows what was held back, if it is worth it. To be called when cargo has
    /// ended.
    pub(super) fn end(self, fresh: bool, success: bool) {
        let held = self
            .listener
            .and_then(|listener| listener.join().ok())
            .unwrap_or_default();
        let compiled = self.progress == Progress::Late && !fresh;
        if compiled || !success {
            // If standard error is gone, so is the reader.
            let _ = io::stderr().write_all(&held);
        }
    }
}

/// Reads to the end. Holds everything back for as long as there is patience, then
/// passes on what comes. Returns what was not passed on.
fn relay(
    mut from: impl Read + AsFd,
    to: &mut impl Write,
    patience: Option<Duration>,
    mut held: Vec<u8>,
) -> Vec<u8> {
    let end = patience.and_then(|patience| Instant::now().checked_add(patience));
    let mut buffer = [0; 4096];
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            let _ = to.write_all(&mem::take(&mut held));
        } else if !readable(&from, left) {
            continue;
        }
        match from.read(&mut buffer) {
            Ok(0) => return held,
            Ok(len) => held.extend(buffer.iter().take(len)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return held,
        }
    }
}

/// Waits until there is something to read, or the time is over.
pub(super) fn readable(file: &impl AsFd, time: Option<Duration>) -> bool {
    let timeout = time.map_or(PollTimeout::NONE, |time| {
        PollTimeout::try_from(time.saturating_add(Duration::from_millis(1)))
            .unwrap_or(PollTimeout::MAX)
    });
    let mut files = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    // What fails here fails again, and better explained, in the read.
    poll(&mut files, timeout) != Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io::{Write, pipe};
    use std::time::Duration;

    use super::relay;

    fn relayed(patience: Option<Duration>) -> (Vec<u8>, Vec<u8>) {
        let (reader, mut writer) = pipe().unwrap();
        writer.write_all(b"Compiling").unwrap();
        drop(writer);
        let mut shown = Vec::new();
        let held = relay(reader, &mut shown, patience, b"with: ".to_vec());
        (shown, held)
    }

    #[test]
    fn a_short_talk_is_held_back() {
        assert_eq!(
            relayed(Some(Duration::from_secs(600))),
            (vec![], b"with: Compiling".to_vec())
        );
        assert_eq!(relayed(None), (vec![], b"with: Compiling".to_vec()));
    }

    #[test]
    fn what_comes_when_patience_is_over_is_passed_on() {
        assert_eq!(
            relayed(Some(Duration::ZERO)),
            (b"with: Compiling".to_vec(), vec![])
        );
    }
}
