//! cargo: asking it, running it, and what it answers.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use cargo_metadata::camino::Utf8PathBuf;
use cargo_metadata::{Artifact, Message, Metadata, MetadataCommand};

use super::BuildError;
use super::progress::{Progress, Talk};

/// Variables that would make it another build: wrappers of a `cargo clippy` or
/// the like that we were started by.
const UNWANTED: [&str; 2] = [
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
];

/// Asks about the workspace that a manifest belongs to.
pub(super) fn metadata(manifest: &Path) -> Result<Metadata, BuildError> {
    let mut command = command(&program(), manifest);
    command.args([
        "metadata",
        "--no-deps",
        "--format-version",
        "1",
        "--manifest-path",
    ]);
    let output = command
        .arg(manifest)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| not_run(&program(), e))?;
    if !output.status.success() {
        // If standard error is gone, so is the reader of this message.
        let _ = io::stderr().write_all(&output.stderr);
        return Err(BuildError::Metadata {
            directory: directory(manifest).to_owned(),
            status: output.status,
        });
    }
    let answer = String::from_utf8_lossy(&output.stdout);
    Ok(MetadataCommand::parse(answer)?)
}

/// How a build ended.
pub(super) struct Built {
    /// How cargo ended.
    pub(super) status: ExitStatus,
    /// What was looked for, when cargo named it.
    pub(super) artefact: Option<PathBuf>,
}

/// Runs a build and picks the artefact that is wanted from what cargo names. What
/// cargo says on the way is shown behind `preface`.
pub(super) fn run(
    command: &mut Command,
    progress: Progress,
    preface: &str,
    pick: impl Fn(Artifact) -> Option<Utf8PathBuf>,
) -> Result<Built, BuildError> {
    let program = command.get_program().to_owned();
    let failed = |source| not_run(&program, source);
    let mut child = progress.spawn(command).map_err(failed)?;
    let talk = Talk::listen(child.stderr.take(), progress, preface);
    let mut artefact = None;
    let mut fresh = true;
    if let Some(stdout) = child.stdout.take() {
        for message in Message::parse_stream(BufReader::new(stdout)) {
            if let Message::CompilerArtifact(made) = message.map_err(failed)? {
                fresh &= made.fresh;
                artefact = pick(made).or(artefact);
            }
        }
    }
    let status = child.wait().map_err(failed)?;
    talk.end(fresh, status.success());
    Ok(Built {
        status,
        artefact: artefact.map(PathBuf::from),
    })
}

/// A cargo, in the package's directory: toolchain files and cargo's configuration
/// are looked for from there.
pub(super) fn command(cargo: &OsStr, manifest: &Path) -> Command {
    let mut command = Command::new(cargo);
    command.current_dir(directory(manifest));
    for variable in UNWANTED {
        command.env_remove(variable);
    }
    command
}

/// The directory that a manifest is in.
pub(super) fn directory(manifest: &Path) -> &Path {
    manifest.parent().unwrap_or(Path::new("/"))
}

/// The cargo that the operator means.
pub(super) fn program() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn not_run(program: &OsStr, source: io::Error) -> BuildError {
    let program = program.to_string_lossy().into_owned();
    match source.kind() {
        io::ErrorKind::NotFound => BuildError::NoCargo { program },
        _ => BuildError::Cargo { program, source },
    }
}
