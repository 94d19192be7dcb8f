//! The host in the place of another, as tests ask for it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::command::{Printed, app, wharf_path};
use crate::host::{Host, Object, objects};

/// A task that is published at a port, and what else is said of it.
#[must_use]
pub fn service(name: &str, image: &Path, port: u16, more: &str) -> String {
    format!("[[task]]\nname = {name:?}\nimage = {image:?}\npublish = [\"{port}:80\"]\n{more}\n")
}

/// So many guests of a task that compute and never end by themselves.
#[must_use]
pub fn spinners(replicas: u32, more: &str) -> String {
    let image = app("spin");
    format!(
        "[[task]]\nname = \"spin\"\nimage = {image:?}\nreplicas = {replicas}\n\
         args = [\"900000000000\"]\n{more}\n"
    )
}

/// What `wharf policy ls --json` says of the router.
///
/// # Panics
///
/// When the host does not say.
#[must_use]
pub fn router(host: &Host) -> Object {
    let slots = objects(&host.ask(&["policy", "ls", "--json"])).into_iter();
    let mut found = slots.filter(|it| it.text("slot") == "router");
    found.next().expect("there is one")
}

/// The program that is a host.
#[must_use]
pub fn program() -> PathBuf {
    wharf_path().with_file_name("wharf-host")
}

/// Hands the host over to another process of the same program, and returns the report.
///
/// # Panics
///
/// When it does not take over.
#[expect(
    clippy::must_use_candidate,
    reason = "often it is enough that it is done"
)]
pub fn hand_over(host: &Host) -> Object {
    let before = host.pid();
    let printed = host.try_ask(&["handover", "--json"]);
    assert_eq!(printed.status, 0, "{}{}", printed.stderr, host.said());
    let report = objects(&format!("[{}]", printed.stdout)).remove(0);
    assert_ne!(host.pid(), before, "the lock names the new process");
    assert_eq!(
        host.pid().map(|it| it.as_raw() as u64),
        Some(report.number("pid"))
    );
    report
}

/// A program that does this before it is a host, or instead.
///
/// # Panics
///
/// When the directory cannot be written to.
#[must_use]
pub fn wrapper(directory: &Path, name: &str, script: &str) -> PathBuf {
    let path = directory.join(name);
    let program = program();
    let text = format!("#!/bin/sh\nhost={}\n{script}\n", program.display());
    fs::write(&path, text).expect("the directory is ours");
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&path, mode).expect("the file is ours");
    path
}

/// What becomes of a hand-over to this program.
///
/// # Panics
///
/// When its path is no text.
#[must_use]
pub fn try_program(host: &Host, program: &Path) -> Printed {
    host.try_ask(&["handover", program.to_str().expect("it is text")])
}

/// Whether something is still to go on beside something else.
#[derive(Debug, Default)]
pub struct Meanwhile(AtomicBool);

/// Ends what goes on when it is dropped, also by a test that fails.
#[derive(Debug)]
pub struct Until<'a>(&'a Meanwhile);

impl Meanwhile {
    /// Whether it goes on.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        !self.0.load(Ordering::Relaxed)
    }

    /// Has it go on until that is dropped.
    #[must_use]
    pub const fn until(&self) -> Until<'_> {
        Until(self)
    }
}

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}
