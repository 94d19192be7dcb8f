//! What the commands that talk to a running host have in common.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueHint;

use crate::cell::protocol::TaskStatus;
use crate::control::{Client, ClientError, default_path};

/// How long to wait without a word.
const PATIENCE: Duration = Duration::from_secs(1);

// Which host is meant. No documentation comment: clap would describe every command with
// it that takes this.
#[derive(Debug, clap::Args)]
pub(super) struct Host {
    /// The host's socket [default: $XDG_RUNTIME_DIR/wharf.sock, else /run/wharf.sock]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    socket: Option<PathBuf>,
}

impl Host {
    /// A client of it, be it there or not.
    pub(super) fn client(&self) -> Result<Client, ClientError> {
        match &self.socket {
            Some(path) => Client::new(path),
            None => Client::new(&default_path()),
        }
    }
}

/// The whole path of a file, for a host that runs in another directory.
pub(super) fn whole_path(path: &Path) -> anyhow::Result<PathBuf> {
    let whole = path.canonicalize();
    whole.with_context(|| format!("cannot find {}", path.display()))
}

/// A replica as people and programs name it, such as `web.0`.
pub(super) fn replica(task: &TaskStatus) -> String {
    format!("{}.{}", task.name, task.index)
}

/// Writes a part of a result that goes on. Breaks when the reader has seen enough.
pub(super) fn emit(part: &[u8]) -> anyhow::Result<ControlFlow<()>> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(part).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(e) => Err(e).context("cannot write to standard output"),
    }
}

/// A line on the terminal that says what is waited for, from the first second on.
/// Goes away when this is dropped.
pub(super) struct Waiting {
    since: Instant,
    is_shown: bool,
}

impl Waiting {
    pub(super) fn start() -> Self {
        Self {
            since: Instant::now(),
            is_shown: false,
        }
    }

    /// Says what is waited for now, if it is worth it.
    pub(super) fn say(&mut self, what: &str) {
        let elapsed = self.since.elapsed();
        if elapsed >= PATIENCE && io::stderr().is_terminal() {
            self.is_shown = true;
            // Without a terminal there is nobody to tell.
            let _ = write!(io::stderr(), "\r\x1b[K{what} ({} s)", elapsed.as_secs());
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.is_shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
