//! Guests: freestanding programs for the host's own target, so a stock toolchain
//! builds them. What makes one of a program is passed here and not left to its
//! manifest, so that a package needs nothing but its dependency.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use wharf_machine::image::{Image, ImageError, OpenError};

use super::package::{Binary, Member};
use super::{BuildError, BuildOptions, cargo, install, lock};

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

/// Builds the binary that a source means, and returns the path of its image.
pub(super) fn build(member: &Member, options: BuildOptions) -> Result<PathBuf, BuildError> {
    let binary = member.binary()?;
    log::info!("building {} of {}", binary.name, binary.manifest.display());
    let _turn = lock(&binary.target_dir)?;
    let executable = compile(&binary, options)?;
    // Before the copy: a refused image must not replace one that runs.
    Image::open(&executable).map_err(|error| match error {
        OpenError::Image {
            // Without the attribute there is neither entry point nor note.
            source: ImageError::NoManifest | ImageError::EntryNotCode { .. },
            ..
        } => BuildError::NotAGuest {
            bin: binary.name.clone(),
        },
        source => BuildError::Image(source),
    })?;
    let artefact = binary.artefact(options.position_independent);
    let mut built = File::open(&executable).map_err(|source| BuildError::Install {
        path: executable,
        source,
    })?;
    install(&mut built, &artefact)?;
    Ok(artefact)
}

fn compile(binary: &Binary, options: BuildOptions) -> Result<PathBuf, BuildError> {
    let mut command = build_command(binary, options);
    let built = cargo::run(&mut command, options.progress, "", |artefact| {
        let is_it = artefact.target.is_bin() && artefact.target.name == binary.name;
        artefact.executable.filter(|_| is_it)
    })?;
    let bin = binary.name.clone();
    let status = built.status;
    match built.artefact {
        Some(executable) if status.success() => Ok(executable),
        None if status.success() => Err(BuildError::NoExecutable { bin }),
        _ if binary.has_runtime => Err(BuildError::Build { bin, status }),
        _ => Err(BuildError::BuildWithoutRuntime { bin, status }),
    }
}

fn build_command(binary: &Binary, options: BuildOptions) -> Command {
    let mut command = cargo::command(&cargo::program(), &binary.manifest);
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
