//! cargo: its command lines, and what it answers.
//!
//! A guest is a freestanding program for the host's own target, so a stock
//! toolchain builds it. What makes it one is passed here and not left to the
//! guest's manifest, so that a package needs nothing but its dependency.

use std::env;
use std::ffi::OsString;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cargo_metadata::{Message, Metadata, MetadataCommand};

use super::package::Binary;
use super::progress::Talk;
use super::{BuildError, BuildOptions};

/// The target of guests. Given even where it is the host's own: flags then leave
/// build scripts and procedural macros alone, which are programs of the host.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The profile that guests are built with. A guest's workspace may have one of
/// this name: what it says stands, but for [`INDISPENSABLE`].
const PROFILE: &str = "wharf-guest";

/// Settings that no manifest can change: there is nothing to unwind with.
const INDISPENSABLE: [&str; 2] = [
    "profile.wharf-guest.inherits=\"release\"",
    "profile.wharf-guest.panic=\"abort\"",
];

/// Flags of every guest: no C library, frames that a fault report can follow
/// instead of unwind tables, and segments that share no page, so that none is
/// longer in memory than it has to be: a guest's first touch of a page is dear.
const FLAGS: [&str; 7] = [
    "-Cforce-frame-pointers=yes",
    "-Cforce-unwind-tables=no",
    "-Ctarget-feature=+crt-static",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-Wl,-z,noexecstack",
    "-Clink-arg=-Wl,-z,separate-loadable-segments",
];

/// Variables that would make it another build: wrappers of a `cargo clippy` or
/// the like that we were started by.
const UNWANTED: [&str; 2] = [
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
];

/// Asks about the workspace that a manifest belongs to.
pub(super) fn metadata(manifest: &Path) -> Result<Metadata, BuildError> {
    let mut command = command(manifest);
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
        .map_err(no_cargo)?;
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

/// Builds a binary and returns the path of the executable.
pub(super) fn build(binary: &Binary, options: BuildOptions) -> Result<PathBuf, BuildError> {
    let mut command = build_command(binary, options);
    let failed = |source| BuildError::Cargo {
        program: program_name(),
        source,
    };
    let mut child = options.progress.spawn(&mut command).map_err(no_cargo)?;
    let talk = Talk::listen(child.stderr.take(), options.progress);
    let mut executable = None;
    let mut fresh = true;
    if let Some(stdout) = child.stdout.take() {
        for message in Message::parse_stream(BufReader::new(stdout)) {
            let Message::CompilerArtifact(artefact) = message.map_err(failed)? else {
                continue;
            };
            fresh &= artefact.fresh;
            if artefact.target.is_bin() && artefact.target.name == binary.name {
                executable = artefact.executable.or(executable);
            }
        }
    }
    let status = child.wait().map_err(failed)?;
    talk.end(fresh, status.success());
    if !status.success() {
        let bin = binary.name.clone();
        return Err(if binary.has_runtime {
            BuildError::Build { bin, status }
        } else {
            BuildError::BuildWithoutRuntime { bin, status }
        });
    }
    let executable = executable.map(PathBuf::from);
    executable.ok_or_else(|| BuildError::NoExecutable {
        bin: binary.name.clone(),
    })
}

fn build_command(binary: &Binary, options: BuildOptions) -> Command {
    let mut command = command(&binary.manifest);
    command
        .args([
            "build",
            "--message-format=json-render-diagnostics",
            "--target",
            TARGET,
        ])
        .args([
            "--profile",
            PROFILE,
            "--package",
            &binary.package_id,
            "--bin",
            &binary.name,
        ])
        .arg("--manifest-path")
        .arg(&binary.manifest)
        .arg("--target-dir")
        .arg(build_dir(binary, options))
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            rustflags(options.position_independent),
        );
    for setting in INDISPENSABLE {
        command.args(["--config", setting]);
    }
    command
}

/// A directory for each set of flags: two builds at once must not take each
/// other's executable.
fn build_dir(binary: &Binary, options: BuildOptions) -> PathBuf {
    let name = if options.position_independent {
        "build"
    } else {
        "build-fixed"
    };
    binary.target_dir.join("wharf").join(name)
}

/// In the form that beats every other way of giving flags, and needs no quoting.
fn rustflags(position_independent: bool) -> String {
    let model = if position_independent {
        "-Crelocation-model=pie"
    } else {
        "-Crelocation-model=static"
    };
    [FLAGS.as_slice(), &[model]].concat().join("\x1f")
}

/// cargo, in the package's directory: toolchain files and cargo's configuration
/// are looked for from there.
fn command(manifest: &Path) -> Command {
    let mut command = Command::new(program());
    command.current_dir(directory(manifest));
    for variable in UNWANTED {
        command.env_remove(variable);
    }
    command
}

fn directory(manifest: &Path) -> &Path {
    manifest.parent().unwrap_or(Path::new("/"))
}

fn program() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn program_name() -> String {
    program().to_string_lossy().into_owned()
}

fn no_cargo(source: io::Error) -> BuildError {
    let program = program_name();
    match source.kind() {
        io::ErrorKind::NotFound => BuildError::NoCargo { program },
        _ => BuildError::Cargo { program, source },
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::PathBuf;

    use super::{Binary, BuildOptions, build_command};
    use crate::build::Progress;

    fn build_of(position_independent: bool) -> (String, String) {
        let binary = Binary {
            manifest: PathBuf::from("/w/apps/Cargo.toml"),
            package_id: "path+file:///w/apps#0.1.0".to_owned(),
            package: "apps".to_owned(),
            name: "http".to_owned(),
            target_dir: PathBuf::from("/w/target"),
            has_runtime: true,
        };
        let options = BuildOptions {
            position_independent,
            progress: Progress::Late,
        };
        let command = build_command(&binary, options);
        let args: Vec<&str> = command
            .get_args()
            .map(|arg| arg.to_str().unwrap())
            .collect();
        let (_, flags) = command
            .get_envs()
            .find(|(name, _)| *name == OsStr::new("CARGO_ENCODED_RUSTFLAGS"))
            .unwrap();
        (args.join(" "), flags.unwrap().to_str().unwrap().to_owned())
    }

    #[test]
    fn a_build_names_everything_it_depends_on() {
        let (args, _) = build_of(true);
        for part in [
            "--target x86_64-unknown-linux-gnu",
            "--package path+file:///w/apps#0.1.0 --bin http",
            "--manifest-path /w/apps/Cargo.toml",
            "--target-dir /w/target/wharf/build",
            "--config profile.wharf-guest.panic=\"abort\"",
        ] {
            assert!(args.contains(part), "{part} is not in {args}");
        }
    }

    #[test]
    fn an_image_moves_or_stays_as_asked() {
        assert!(build_of(true).1.ends_with("\x1f-Crelocation-model=pie"));
        assert!(build_of(false).1.ends_with("\x1f-Crelocation-model=static"));
    }
}
