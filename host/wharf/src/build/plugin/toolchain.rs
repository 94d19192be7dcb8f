//! What on this machine compiles to WebAssembly, and what to do when nothing does.
//!
//! [`Facts::gather`] looks; [`plan`] alone decides, so that every choice can be
//! tested on machines that are not this one; `Toolchain::find` acts. What was
//! installed once is found by looking the next time, so nothing else is remembered.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fmt, fs};

use nix::unistd::geteuid;

use super::install;
use crate::build::{Progress, cargo};

/// The target of plugins: WebAssembly and nothing around it.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// Debian's newer Rust, the source of its standard library, which has to be compiled
/// for the target, and a linker.
pub const PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "lld-19"];

/// The file by which each of [`PACKAGES`] is known to be there.
const PACKAGE_FILES: [&str; 4] = [
    "usr/bin/rustc",
    "usr/bin/cargo",
    "usr/lib/rustlib/src/rust/library/std/Cargo.toml",
    "usr/bin/wasm-ld-19",
];

/// What compiles plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The operator's own, which has the target.
    Target,
    /// Debian's packages.
    Packages,
}

/// What there is to choose from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whether the compiler in use has the target.
    pub has_target: bool,
    /// Whether Debian's packages are installed.
    pub has_packages: bool,
    /// Whether the compiler in use is one of rustup's.
    pub has_rustup: bool,
    /// Whether this is a Debian, and we may install packages.
    pub apt: Apt,
}

/// Whether Debian's packages can be had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Apt {
    /// This is no Debian.
    #[default]
    Absent,
    /// Only root may.
    NotRoot,
    /// They can.
    Ready,
}

/// Something to do for a toolchain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take it.
    Use(Toolchain),
    /// Have rustup add the target.
    AddTarget,
    /// Install Debian's packages.
    InstallPackages,
}

/// Nothing compiles to WebAssembly.
#[derive(Debug, thiserror::Error)]
#[error(
    "nothing here compiles to WebAssembly{}: {advice}",
    tried.iter().map(|it| format!(" ({it})")).collect::<String>()
)]
pub struct ToolchainError {
    /// What was tried, and why it did not work.
    pub tried: Vec<String>,
    /// What the operator can do.
    pub advice: &'static str,
}

impl Toolchain {
    /// Finds what compiles a package, and installs it when there is nothing: first
    /// what is quick, then what is dear.
    ///
    /// # Errors
    ///
    /// When nothing is there and nothing can be installed.
    pub(super) fn find(directory: &Path, progress: Progress) -> Result<Self, ToolchainError> {
        let facts = Facts::gather(directory);
        let mut tried = Vec::new();
        for step in plan(facts) {
            let (done, toolchain) = match step {
                Step::Use(toolchain) => return Ok(toolchain),
                Step::AddTarget => (install::add_target(directory, progress), Self::Target),
                Step::InstallPackages => (install::packages(progress), Self::Packages),
            };
            let facts = Facts::gather(directory);
            match done {
                Ok(()) if plan(facts).first() == Some(&Step::Use(toolchain)) => {
                    return Ok(toolchain);
                }
                Ok(()) => tried.push(format!("{step} did not help")),
                Err(why) => tried.push(format!("{step} failed: {why}")),
            }
        }
        Err(ToolchainError {
            tried,
            advice: advice(facts),
        })
    }

    /// The cargo to run.
    pub(super) fn cargo(self) -> OsString {
        match self {
            Self::Target => cargo::program(),
            Self::Packages => "/usr/bin/cargo".into(),
        }
    }

    /// Adds to a build what this toolchain needs.
    pub(super) fn equip(self, command: &mut Command) {
        if self == Self::Target {
            return;
        }
        let mut path = OsString::from("/usr/bin:/bin");
        if let Some(rest) = env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        command
            .env("PATH", path)
            .env("RUSTC", "/usr/bin/rustc")
            .env_remove("RUSTUP_TOOLCHAIN")
            // What follows is for nightly compilers only, or with this.
            .env("RUSTC_BOOTSTRAP", "1")
            // Debian's rust-lld may be a link to a linker that is not there.
            .env(
                "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER",
                "/usr/bin/wasm-ld-19",
            )
            .arg("-Zbuild-std=std,panic_abort");
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target => write!(f, "Rust's target {TARGET}"),
            Self::Packages => f.write_str("Debian's rustc-web and lld-19"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Use(toolchain) => toolchain.fmt(f),
            Self::AddTarget => write!(f, "`rustup target add {TARGET}`"),
            Self::InstallPackages => write!(f, "`apt-get install {}`", PACKAGES.join(" ")),
        }
    }
}

/// Says what to do for a toolchain, in this order, until one works. What is there
/// already goes before what has to be fetched.
#[must_use]
pub fn plan(facts: Facts) -> Vec<Step> {
    if facts.has_target {
        return vec![Step::Use(Toolchain::Target)];
    }
    if facts.has_packages {
        return vec![Step::Use(Toolchain::Packages)];
    }
    let add = facts.has_rustup.then_some(Step::AddTarget);
    let install = (facts.apt == Apt::Ready).then_some(Step::InstallPackages);
    add.into_iter().chain(install).collect()
}

/// Says what the operator can do when no step works.
#[must_use]
pub const fn advice(facts: Facts) -> &'static str {
    match (facts.has_rustup, facts.apt) {
        (true, Apt::Absent) => "see to it that `rustup target add wasm32-unknown-unknown` works",
        (false, Apt::Absent) => {
            "install Rust from https://rustup.rs, then `rustup target add wasm32-unknown-unknown`"
        }
        (_, Apt::NotRoot) => {
            "`rustup target add wasm32-unknown-unknown`, or as root \
             `apt-get install rustc-web cargo-web rust-web-src lld-19`"
        }
        (_, Apt::Ready) => {
            "`rustup target add wasm32-unknown-unknown`, or \
             `apt-get install rustc-web cargo-web rust-web-src lld-19`, must work"
        }
    }
}

impl Facts {
    /// Looks at this machine, as a build of a package in this directory sees it.
    #[must_use]
    pub fn gather(directory: &Path) -> Self {
        let sysroot = sysroot(directory);
        let has_target = sysroot.as_deref().is_some_and(has_target);
        let has_packages = has_packages(Path::new("/"));
        let mut facts = Self {
            has_target,
            has_packages,
            ..Self::default()
        };
        // The rest takes longer, and matters only when there is nothing.
        if !has_target && !has_packages {
            facts.has_rustup = sysroot.is_some_and(|it| is_rustups(&it, directory));
            facts.apt = apt();
        }
        facts
    }
}

/// Where the compiler in use has its libraries.
fn sysroot(directory: &Path) -> Option<PathBuf> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    answer(command.args(["--print", "sysroot"]), directory)
}

fn has_target(sysroot: &Path) -> bool {
    let libraries = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    fs::read_dir(libraries).is_ok_and(|mut files| files.next().is_some())
}

fn has_packages(root: &Path) -> bool {
    PACKAGE_FILES.iter().all(|file| root.join(file).is_file())
}

/// Whether rustup is who could add something to the compiler in use.
fn is_rustups(sysroot: &Path, directory: &Path) -> bool {
    let mut command = Command::new("rustup");
    answer(command.args(["which", "rustc"]), directory).is_some_and(|it| it.starts_with(sysroot))
}

fn apt() -> Apt {
    let is_debian = fs::read_to_string("/etc/os-release").is_ok_and(|text| is_debian(&text));
    let there = Path::new("/usr/bin/apt-get").is_file();
    match (is_debian && there, geteuid().is_root()) {
        (false, _) => Apt::Absent,
        (true, false) => Apt::NotRoot,
        (true, true) => Apt::Ready,
    }
}

/// Whether `/etc/os-release` is Debian's. Those like it have not its packages.
fn is_debian(os_release: &str) -> bool {
    let mut lines = os_release.lines();
    lines.any(|line| matches!(line.trim(), "ID=debian" | "ID=\"debian\""))
}

/// The path that a program prints, when it does. To look must install nothing.
fn answer(command: &mut Command, directory: &Path) -> Option<PathBuf> {
    let output = command
        .current_dir(directory)
        .env("RUSTUP_AUTO_INSTALL", "0")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let path = output.stdout.trim_ascii();
    let found = output.status.success() && !path.is_empty();
    found.then(|| PathBuf::from(std::ffi::OsStr::from_bytes(path)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        Apt, Facts, PACKAGE_FILES, Step, TARGET, Toolchain, ToolchainError, advice, has_packages,
        has_target, is_debian, plan,
    };

    fn facts(has_target: bool, has_packages: bool, has_rustup: bool, apt: Apt) -> Facts {
        Facts {
            has_target,
            has_packages,
            has_rustup,
            apt,
        }
    }

    #[test]
    fn what_is_there_goes_first_then_what_is_quick_to_get() {
        let take = |toolchain| vec![Step::Use(toolchain)];
        for (facts, steps) in [
            (facts(true, true, true, Apt::Ready), take(Toolchain::Target)),
            (
                facts(false, true, true, Apt::Ready),
                take(Toolchain::Packages),
            ),
            (
                facts(false, false, true, Apt::Ready),
                vec![Step::AddTarget, Step::InstallPackages],
            ),
            (
                facts(false, false, true, Apt::NotRoot),
                vec![Step::AddTarget],
            ),
            (
                facts(false, false, false, Apt::Ready),
                vec![Step::InstallPackages],
            ),
            (facts(false, false, false, Apt::Absent), vec![]),
        ] {
            assert_eq!(plan(facts), steps, "{facts:?}");
        }
    }

    #[test]
    fn whoever_has_nothing_is_told_what_to_do() {
        for apt in [Apt::Absent, Apt::NotRoot, Apt::Ready] {
            for has_rustup in [false, true] {
                let advice = advice(facts(false, false, has_rustup, apt));
                assert!(advice.contains("rustup target add"), "{advice}");
                assert_eq!(advice.contains("apt-get"), apt != Apt::Absent, "{advice}");
            }
        }
        let error = ToolchainError {
            tried: vec!["`a` failed: no network".to_owned()],
            advice: "do this",
        };
        assert_eq!(
            error.to_string(),
            "nothing here compiles to WebAssembly (`a` failed: no network): do this"
        );
    }

    #[test]
    fn an_empty_directory_is_no_target() {
        let root = tempfile::tempdir().unwrap();
        let libraries = root.path().join("lib/rustlib").join(TARGET).join("lib");
        assert!(!has_target(root.path()));
        fs::create_dir_all(&libraries).unwrap();
        assert!(!has_target(root.path()));
        fs::write(libraries.join("libcore.rlib"), "").unwrap();
        assert!(has_target(root.path()));
    }

    #[test]
    fn packages_are_there_when_all_of_them_are() {
        let root = tempfile::tempdir().unwrap();
        for file in PACKAGE_FILES {
            assert!(!has_packages(root.path()), "without {file}");
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        assert!(has_packages(root.path()));
    }

    #[test]
    fn debian_is_known_by_its_own_name() {
        for (text, is) in [
            ("NAME=\"Debian GNU/Linux\"\nID=debian\n", true),
            ("ID=ubuntu\nID_LIKE=debian\n", false),
            ("VERSION_ID=debian", false),
            ("", false),
        ] {
            assert_eq!(is_debian(text), is, "{text}");
        }
    }
}
