//! The real `wharf` binary and the real example guests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// The repository's root.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"))
}

/// The binary, built with the one beside it, once per test process in the profile of
/// the tests.
///
/// # Panics
///
/// When it does not build.
#[must_use]
pub fn wharf_path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        // Of the whole workspace: for one package alone cargo would choose other features
        // of what everything depends on, and compile the compiler of policies twice.
        cargo
            .current_dir(root())
            .args(["build", "--quiet", "--bins"]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let status = cargo.stdin(Stdio::null()).status().expect("cargo runs");
        assert!(status.success(), "wharf builds");
        // This test is at <target>/<profile>/deps/<test>.
        let test = std::env::current_exe().expect("a test is a program");
        let profile = test
            .ancestors()
            .nth(2)
            .expect("a test is in a target directory");
        profile.join("wharf")
    })
}

/// The binary with these arguments, in the repository's root.
#[must_use]
pub fn wharf<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(wharf_path());
    command
        .current_dir(root())
        .args(args)
        .stdin(Stdio::null())
        .env_remove("RUST_LOG")
        .env_remove("NO_COLOR");
    command
}

/// An example unikernel, built by `wharf build`.
///
/// # Panics
///
/// When it does not build.
#[must_use]
pub fn app(name: &str) -> PathBuf {
    let output = output(&mut wharf(["build", &format!("guest-kernel/apps#{name}")]));
    assert_eq!(output.status, 0, "{}", output.stderr);
    PathBuf::from(output.stdout.trim_end())
}

/// The same program in another file: another version, as far as anybody can tell.
///
/// # Panics
///
/// When it cannot be copied.
#[must_use]
pub fn another_version(directory: &Path, image: &Path, number: u8) -> PathBuf {
    let mut bytes = fs::read(image).expect("the image can be read");
    bytes.push(number);
    let path = directory.join(format!("v{number}.elf"));
    fs::write(&path, bytes).expect("there is room for a copy");
    path
}

/// A plugin of `plugins`, built.
///
/// # Panics
///
/// When it does not build.
#[must_use]
pub fn policy(name: &str) -> PathBuf {
    let output = output(&mut wharf(["build", &format!("plugins/{name}")]));
    assert_eq!(output.status, 0, "{}", output.stderr);
    PathBuf::from(output.stdout.trim_end())
}

/// What a command printed and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Printed {
    /// Exit status; 128 + the signal's number when a signal ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Printed {
    /// The one line with which wharf refused.
    ///
    /// # Panics
    ///
    /// When it did not, or said more.
    #[must_use]
    pub fn refusal(&self) -> &str {
        assert_eq!(self.status, 125, "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{self:?}");
        self.stderr.trim_end()
    }
}

/// Runs a command to its end.
///
/// # Panics
///
/// When it does not start.
#[must_use]
pub fn output(command: &mut Command) -> Printed {
    printed(command.output().expect("the command starts"))
}

/// Makes text of what a command printed.
#[must_use]
pub fn printed(output: Output) -> Printed {
    use std::os::unix::process::ExitStatusExt;
    let status = output.status;
    Printed {
        status: status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
