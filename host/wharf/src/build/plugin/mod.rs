//! Plugins: libraries that are compiled to WebAssembly and made components.
//!
//! The target is the one without an operating system, so that a component imports
//! what `wit/` names and nothing else: there is no WASI for it to ask for.

mod component;
mod install;
pub mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::package::{Library, Member};
use super::{BuildError, Progress, cargo, install as install_artefact, lock};
use toolchain::{TARGET, Toolchain};

/// The profile that plugins are built with. A plugin's workspace may have one of
/// this name: what it says stands, but for [`INDISPENSABLE`].
const PROFILE: &str = "wharf-plugin";

/// Settings that no manifest can change. Nothing unwinds in WebAssembly, and hosts
/// compile a plugin anew when it is first used: what it does not use of its
/// libraries must not be in it.
const INDISPENSABLE: [&str; 4] = [
    "profile.wharf-plugin.inherits=\"release\"",
    "profile.wharf-plugin.panic=\"abort\"",
    "profile.wharf-plugin.lto=\"fat\"",
    "profile.wharf-plugin.codegen-units=1",
];

/// Builds a package's library as a component, and returns its path.
pub(super) fn build(member: &Member, progress: Progress) -> Result<PathBuf, BuildError> {
    let library = member.library()?;
    log::info!("building {}", library.manifest.display());
    let _turn = lock(&library.target_dir)?;
    let toolchain = Toolchain::find(cargo::directory(&library.manifest), progress)?;
    let module = compile(&library, toolchain, progress)?;
    let module = fs::read(&module).map_err(|source| BuildError::Read {
        path: module,
        source,
    })?;
    let component = component::encode(&module, &library.package)?;
    let artefact = library.artefact();
    // One that is there was found good before it was put there.
    if fs::read(&artefact).is_ok_and(|there| there == component) {
        return Ok(artefact);
    }
    component::examine(&component, &library.package)?;
    install_artefact(&mut component.as_slice(), &artefact)?;
    Ok(artefact)
}

fn compile(
    library: &Library,
    toolchain: Toolchain,
    progress: Progress,
) -> Result<PathBuf, BuildError> {
    let mut command = build_command(library, toolchain);
    let preface = format!("    Building {} with {toolchain}\n", library.package);
    let built = cargo::run(&mut command, progress, &preface, |artefact| {
        let is_it = artefact.package_id.repr == library.package_id;
        let is_module = |path: &&_| Path::new(path).extension().is_some_and(|it| it == "wasm");
        let mut files = artefact.filenames.iter().filter(|_| is_it);
        files.find(is_module).cloned()
    })?;
    let package = library.package.clone();
    let status = built.status;
    match built.artefact {
        Some(module) if status.success() => Ok(module),
        None if status.success() => Err(BuildError::NoModule { package }),
        _ => Err(BuildError::BuildPlugin { package, status }),
    }
}

fn build_command(library: &Library, toolchain: Toolchain) -> Command {
    let mut command = cargo::command(&toolchain.cargo(), &library.manifest);
    command
        // Whatever else the manifest makes of the library, such as what its own tests
        // link.
        .args(["rustc", "--lib", "--crate-type", "cdylib"])
        .args(["--message-format=json-render-diagnostics"])
        .args(["--target", TARGET, "--profile", PROFILE])
        .args(["--package", &library.package_id])
        .arg("--manifest-path")
        .arg(&library.manifest)
        .arg("--target-dir")
        .arg(build_dir(library, toolchain))
        // Flags that are meant for this machine's processor.
        .env("CARGO_ENCODED_RUSTFLAGS", "");
    for setting in INDISPENSABLE {
        command.args(["--config", setting]);
    }
    toolchain.equip(&mut command);
    command
}

/// A directory for each toolchain: neither has to throw away what the other made.
fn build_dir(library: &Library, toolchain: Toolchain) -> PathBuf {
    let name = match toolchain {
        Toolchain::Target => "build-plugin",
        Toolchain::Packages => "build-plugin-packages",
    };
    library.target_dir.join("wharf").join(name)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::PathBuf;

    use super::toolchain::Toolchain;
    use super::{Library, build_command};

    fn build_of(toolchain: Toolchain) -> (String, Vec<String>) {
        let library = Library {
            manifest: PathBuf::from("/w/fair/Cargo.toml"),
            package_id: "path+file:///w/fair#0.1.0".to_owned(),
            package: "fair".to_owned(),
            target_dir: PathBuf::from("/w/target"),
        };
        let command = build_command(&library, toolchain);
        let mut line = vec![command.get_program()];
        line.extend(command.get_args());
        let text = |it: &OsStr| it.to_str().unwrap().to_owned();
        let line: Vec<String> = line.into_iter().map(text).collect();
        let variables = command.get_envs().map(|(name, value)| {
            let value = value.map_or("is unset".to_owned(), text);
            format!("{}={value}", text(name))
        });
        (line.join(" "), variables.collect())
    }

    #[test]
    fn a_build_names_everything_it_depends_on() {
        let (line, variables) = build_of(Toolchain::Target);
        for part in [
            "rustc --lib --crate-type cdylib",
            "--target wasm32-unknown-unknown --profile wharf-plugin",
            "--package path+file:///w/fair#0.1.0",
            "--manifest-path /w/fair/Cargo.toml",
            "--target-dir /w/target/wharf/build-plugin ",
            "--config profile.wharf-plugin.panic=\"abort\"",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(!line.contains("build-std"), "{line}");
        assert!(variables.contains(&"CARGO_ENCODED_RUSTFLAGS=".to_owned()));
    }

    #[test]
    fn debians_packages_build_the_standard_library_too() {
        let (line, variables) = build_of(Toolchain::Packages);
        assert!(line.starts_with("/usr/bin/cargo rustc "), "{line}");
        assert!(line.ends_with(" -Zbuild-std=std,panic_abort"), "{line}");
        assert!(line.contains("/wharf/build-plugin-packages "), "{line}");
        for variable in [
            "RUSTC=/usr/bin/rustc",
            "RUSTC_BOOTSTRAP=1",
            "RUSTUP_TOOLCHAIN=is unset",
            "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=/usr/bin/wasm-ld-19",
        ] {
            assert!(variables.contains(&variable.to_owned()), "{variables:?}");
        }
        let path = variables.iter().find(|it| it.starts_with("PATH=")).unwrap();
        assert!(path.starts_with("PATH=/usr/bin:/bin"), "{path}");
    }
}
