//! The process that a cell goes over to, as its parent has it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::LevelFilter;

use super::HandoverError;
use super::link::{Link, Shutter};
use crate::text::shown;

/// How often it is looked whether it still runs.
const LOOK: Duration = Duration::from_millis(20);

/// How long it may go on when this process is to end.
const GRACE: Duration = Duration::from_secs(2);

/// A process that runs until it is ended, or is the host: dropped before that, it is ended.
#[derive(Debug)]
pub(in crate::cell) struct Process(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    child: Child,
    /// How it has ended, if it has.
    status: Option<ExitStatus>,
    /// Whether it is another's business.
    is_released: bool,
}

impl Process {
    /// Starts a program with one end of a link, and looks after it: when it has ended, or
    /// when `is_wanted` says for a while that this process is to end, nobody waits at the
    /// other end any more. The socket is on its command line for people to see.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub(in crate::cell) fn start(
        program: &Path,
        socket: &Path,
        is_wanted: impl Fn() -> bool + Send + 'static,
    ) -> Result<(Self, Link), HandoverError> {
        let (link, theirs) = Link::pair().map_err(|e| HandoverError::unfit(&e))?;
        let shutter = link.shutter().map_err(|e| HandoverError::unfit(&e))?;
        let child = spawn(program, socket, theirs);
        let child = child
            .map_err(|e| HandoverError::Unfit(format!("cannot start {}: {e}", shown(program))))?;
        let inner = Arc::new(Mutex::new(Inner {
            child,
            status: None,
            is_released: false,
        }));
        let process = Self(Arc::clone(&inner));
        std::thread::Builder::new()
            .name("successor's end".to_owned())
            .spawn(move || watch(&inner, &shutter, is_wanted))
            .map_err(|e| HandoverError::Unfit(format!("cannot start a thread: {e}")))?;
        Ok((process, link))
    }

    /// Its number.
    pub(in crate::cell) fn id(&self) -> u32 {
        self.lock().child.id()
    }

    /// It is the host from now on, and goes on whatever becomes of this process.
    pub(in crate::cell) fn release(&self) {
        self.lock().is_released = true;
    }

    /// Ends it, and returns when it is gone.
    pub(in crate::cell) fn end(&self) {
        self.lock().end();
    }

    /// Says more of an error when it is the process's end.
    pub(in crate::cell) fn explain(&self, error: HandoverError) -> HandoverError {
        let start = Instant::now();
        while error.is_closed() && start.elapsed() < GRACE {
            let mut inner = self.lock();
            inner.look();
            if let Some(status) = inner.status {
                return HandoverError::Ended(status);
            }
            drop(inner);
            std::thread::sleep(LOOK);
        }
        error
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut inner = self.lock();
        if !inner.is_released {
            inner.end();
        }
        // Who watches has nothing to do any more.
        inner.is_released = true;
    }
}

impl Inner {
    fn look(&mut self) {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
    }

    fn end(&mut self) {
        if self.status.is_none() {
            // It may be gone already.
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }
}

/// Looks after a process until it is released or has ended.
fn watch(inner: &Mutex<Inner>, link: &Shutter, is_wanted: impl Fn() -> bool) {
    let mut wanted: Option<Instant> = None;
    loop {
        let mut its = lock(inner);
        its.look();
        if is_wanted() {
            let since = *wanted.get_or_insert_with(Instant::now);
            if since.elapsed() > GRACE && !its.is_released {
                its.end();
            }
        }
        if its.is_released {
            return;
        }
        if its.status.is_some() {
            // A child of its own may have the other end still.
            link.shut();
            return;
        }
        drop(its);
        std::thread::sleep(LOOK);
    }
}

/// A thread that panicked while it held one of these left it whole.
fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(program: &Path, socket: &Path, link: OwnedFd) -> io::Result<Child> {
    Command::new(program)
        .args(["up", "--take-over", "--socket"])
        .arg(socket)
        .args(verbosity())
        .stdin(Stdio::from(link))
        .spawn()
}

/// What has the other process say as much as this one.
fn verbosity() -> Option<&'static str> {
    match log::max_level() {
        LevelFilter::Off => Some("-qq"),
        LevelFilter::Error => Some("-q"),
        LevelFilter::Warn => None,
        LevelFilter::Info => Some("-v"),
        LevelFilter::Debug => Some("-vv"),
        LevelFilter::Trace => Some("-vvv"),
    }
}
