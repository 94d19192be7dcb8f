//! Why there is no artefact.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use wharf_machine::image::OpenError;
use wharf_policy::{EngineError, Refusal};

use super::toolchain::ToolchainError;

/// A source could not be made into an image or a plugin.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// `DIR#` with nothing behind it, or something that is no name.
    #[error("{} names no binary: write DIR#BIN", named.display())]
    NoBinaryNamed {
        /// What the operator wrote.
        named: PathBuf,
    },
    /// The directory cannot be entered.
    #[error("cannot enter {}", directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A directory that is no package.
    #[error("{} has no Cargo.toml: name a file that is built already, or the directory of a package", directory.display())]
    NotAPackage {
        /// The directory.
        directory: PathBuf,
    },
    /// A workspace's root with no package of its own.
    #[error("{} is a workspace without a package of its own: name the directory of one of {packages}", directory.display())]
    WorkspaceOnly {
        /// The directory.
        directory: PathBuf,
        /// The workspace's packages.
        packages: String,
    },
    /// A library.
    #[error("package {package} has no binary: a guest is one, such as src/main.rs")]
    NoBinary {
        /// The package.
        package: String,
    },
    /// Which one?
    #[error(
        "package {package} has several binaries: write {directory}#BIN, where BIN is one of {binaries}"
    )]
    SeveralBinaries {
        /// The package.
        package: String,
        /// The package's directory, as the operator wrote it.
        directory: String,
        /// The names to choose from.
        binaries: String,
    },
    /// Not that one.
    #[error("package {package} has no binary {bin}: it has {binaries}")]
    UnknownBinary {
        /// The package.
        package: String,
        /// What the operator wrote.
        bin: String,
        /// The names to choose from.
        binaries: String,
    },
    /// No cargo.
    #[error(
        "building needs cargo, and {program} is not to be found: install Rust 1.95 or later from https://rustup.rs, or set CARGO"
    )]
    NoCargo {
        /// What was tried.
        program: String,
    },
    /// cargo did not start, or its output could not be read.
    #[error("cannot run {program}")]
    Cargo {
        /// What was tried.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// `cargo metadata` failed.
    #[error("cargo cannot read the package at {} ({status}); its messages are above", directory.display())]
    Metadata {
        /// The package's directory.
        directory: PathBuf,
        /// How cargo ended.
        status: ExitStatus,
    },
    /// cargo said something that is not in its manual.
    #[error("cargo's answer makes no sense")]
    Answer(#[from] cargo_metadata::Error),
    /// `cargo build` failed.
    #[error("cargo could not build {bin} ({status}); its messages are above")]
    Build {
        /// The binary.
        bin: String,
        /// How cargo ended.
        status: ExitStatus,
    },
    /// The same, and the package does not look like a guest's.
    #[error(
        "cargo could not build {bin} ({status}); its messages are above. It has no dependency on wharf-rt, without which a program is no guest: see `wharf new guest`"
    )]
    BuildWithoutRuntime {
        /// The binary.
        bin: String,
        /// How cargo ended.
        status: ExitStatus,
    },
    /// cargo succeeded, and named no executable.
    #[error("cargo built {bin}, but did not say where it is")]
    NoExecutable {
        /// The binary.
        bin: String,
    },
    /// It built, and `main` is not the runtime's.
    #[error("{bin} was built, but is no guest: put #[wharf::main] on its main function")]
    NotAGuest {
        /// The binary.
        bin: String,
    },
    /// It built, and breaks another rule.
    #[error(transparent)]
    Image(OpenError),
    /// The artefact has no place.
    #[error("cannot write {}", path.display())]
    Install {
        /// Where it was to go.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A package of another sort.
    #[error(
        "package {package} is neither a guest, which is a binary such as src/main.rs, nor a plugin, which is a library with crate-type = [\"cdylib\"]: see `wharf new`"
    )]
    NeitherKind {
        /// The package.
        package: String,
    },
    /// No library that could be loaded.
    #[error(
        "package {package} is no plugin, which is a library with crate-type = [\"cdylib\"]: see `wharf new plugin`"
    )]
    NoCdylib {
        /// The package.
        package: String,
    },
    /// `DIR#BIN` where a plugin is wanted.
    #[error("a plugin is a package's library, not one of its binaries: write {} alone", directory.display())]
    BinaryNamed {
        /// The package's directory.
        directory: PathBuf,
    },
    /// Nothing compiles to WebAssembly.
    #[error(transparent)]
    Toolchain(#[from] ToolchainError),
    /// `cargo rustc` failed.
    #[error("cargo could not build {package} for WebAssembly ({status}); its messages are above")]
    BuildPlugin {
        /// The package.
        package: String,
        /// How cargo ended.
        status: ExitStatus,
    },
    /// cargo succeeded, and named no module.
    #[error("cargo built {package}, but did not say where the module is")]
    NoModule {
        /// The package.
        package: String,
    },
    /// The module is not there.
    #[error("cannot read {}", path.display())]
    Read {
        /// The module.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It built, and is no module that a component can be made of.
    #[error("{package} was built, but cannot be made a component: {cause}")]
    Componentise {
        /// The package.
        package: String,
        /// What wit-component says.
        cause: String,
    },
    /// It is a component, and no plugin.
    #[error("{package} was built, but is no plugin: {source}")]
    Plugin {
        /// The package.
        package: String,
        /// Which rule it breaks.
        source: Refusal,
    },
    /// There is nothing to examine plugins with.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
