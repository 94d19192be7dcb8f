//! Which binary of a package is meant, by `cargo metadata`.

use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{Metadata, Package};

use super::{BuildError, PackageSource, cargo};

/// The crate without which a program is no guest, as cargo knows it.
const RUNTIME: &str = "wharf-rt";

/// One binary of one package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binary {
    /// The package's `Cargo.toml`, absolute.
    pub(super) manifest: PathBuf,
    /// The package, as cargo takes it.
    pub(super) package_id: String,
    /// The package's name.
    pub(super) package: String,
    /// The binary.
    pub(super) name: String,
    /// The package's, or its workspace's, target directory.
    pub(super) target_dir: PathBuf,
    /// Whether the package itself depends on [`RUNTIME`].
    pub(super) has_runtime: bool,
}

impl Binary {
    /// Asks cargo.
    pub(super) fn find(source: &PackageSource) -> Result<Self, BuildError> {
        let directory = &source.directory;
        // Absolute, because cargo runs in that directory.
        let absolute = fs::canonicalize(directory).map_err(|source| BuildError::Directory {
            directory: directory.clone(),
            source,
        })?;
        let manifest = absolute.join("Cargo.toml");
        if !manifest.is_file() {
            return Err(BuildError::NotAPackage {
                directory: directory.clone(),
            });
        }
        choose(&cargo::metadata(&manifest)?, &manifest, source)
    }

    /// Where the artefact goes.
    pub(super) fn artefact(&self, position_independent: bool) -> PathBuf {
        let kind = if position_independent { "" } else { ".fixed" };
        self.target_dir
            .join("wharf")
            .join(&self.package)
            .join(format!("{}{kind}.elf", self.name))
    }
}

fn choose(
    metadata: &Metadata,
    manifest: &Path,
    source: &PackageSource,
) -> Result<Binary, BuildError> {
    let is_meant = |package: &&Package| {
        package.manifest_path == manifest
            || fs::canonicalize(&package.manifest_path).is_ok_and(|path| path == manifest)
    };
    let Some(package) = metadata.packages.iter().find(is_meant) else {
        return Err(BuildError::WorkspaceOnly {
            directory: source.directory.clone(),
            packages: list_guests(&metadata.packages),
        });
    };
    Ok(Binary {
        manifest: manifest.to_owned(),
        package_id: package.id.repr.clone(),
        package: package.name.to_string(),
        name: choose_name(package, source)?.to_owned(),
        target_dir: metadata.target_directory.clone().into(),
        has_runtime: has_runtime(package),
    })
}

fn choose_name<'a>(package: &'a Package, source: &PackageSource) -> Result<&'a str, BuildError> {
    let names: Vec<&str> = package
        .targets
        .iter()
        .filter(|target| target.is_bin())
        .map(|target| target.name.as_str())
        .collect();
    let binaries = || list(names.iter().copied());
    let package = || package.name.to_string();
    match (&source.bin, names.as_slice()) {
        (_, []) => Err(BuildError::NoBinary { package: package() }),
        (None, [name]) => Ok(name),
        (None, _) => Err(BuildError::SeveralBinaries {
            package: package(),
            directory: source.directory.display().to_string(),
            binaries: binaries(),
        }),
        (Some(bin), names) => match names.iter().find(|name| *name == bin) {
            Some(name) => Ok(name),
            None => Err(BuildError::UnknownBinary {
                package: package(),
                bin: bin.clone(),
                binaries: binaries(),
            }),
        },
    }
}

fn has_runtime(package: &Package) -> bool {
    package
        .dependencies
        .iter()
        .any(|dependency| dependency.name == RUNTIME)
}

/// The packages that can be guests, or all when there is none.
fn list_guests(packages: &[Package]) -> String {
    let name = |package: &Package| package.name.to_string();
    let mut names: Vec<_> = packages
        .iter()
        .filter(|package| has_runtime(package))
        .map(name)
        .collect();
    if names.is_empty() {
        names = packages.iter().map(name).collect();
    }
    list(names.iter().map(String::as_str))
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use cargo_metadata::MetadataCommand;
    use serde_json::{Value, json};

    use super::{Binary, BuildError, choose};
    use crate::build::PackageSource;

    /// A workspace with one package, `/w/apps`, with these targets.
    fn choose_of(
        directory: &str,
        targets: &[(&str, &str)],
        bin: Option<&str>,
    ) -> Result<Binary, BuildError> {
        let targets: Vec<Value> = targets
            .iter()
            .map(|(kind, name)| {
                json!({ "kind": [kind], "crate_types": [kind], "name": name, "src_path": "/w/x.rs",
                        "edition": "2024", "doc": true, "doctest": false, "test": false })
            })
            .collect();
        let runtime = json!({ "name": "wharf-rt", "source": null, "req": "*", "kind": null,
            "rename": "wharf", "optional": false, "uses_default_features": true, "features": [],
            "target": null, "registry": null });
        let metadata = json!({
            "packages": [{ "name": "apps", "version": "0.1.0", "id": "path+file:///w/apps#0.1.0",
                "dependencies": [runtime], "targets": targets, "features": {},
                "manifest_path": "/w/apps/Cargo.toml" }],
            "workspace_members": [], "workspace_root": "/w", "target_directory": "/w/target",
            "version": 1, "resolve": null
        });
        let metadata = MetadataCommand::parse(metadata.to_string()).unwrap();
        let source = PackageSource {
            directory: PathBuf::from(directory),
            bin: bin.map(str::to_owned),
        };
        choose(&metadata, &Path::new(directory).join("Cargo.toml"), &source)
    }

    #[test]
    fn an_only_binary_needs_no_name() {
        let binary = choose_of("/w/apps", &[("lib", "apps"), ("bin", "http")], None).unwrap();
        assert_eq!(binary.name, "http");
        assert_eq!(binary.package_id, "path+file:///w/apps#0.1.0");
        assert_eq!(
            binary.artefact(true),
            Path::new("/w/target/wharf/apps/http.elf")
        );
        assert_eq!(
            binary.artefact(false),
            Path::new("/w/target/wharf/apps/http.fixed.elf")
        );
        assert!(binary.has_runtime);
    }

    #[test]
    fn a_named_binary_is_chosen() {
        let binaries = [("bin", "http"), ("bin", "kv"), ("example", "other")];
        assert_eq!(
            choose_of("/w/apps", &binaries, Some("kv")).unwrap().name,
            "kv"
        );
    }

    #[test]
    fn what_cannot_be_chosen_says_what_can() {
        let two = [("bin", "http"), ("bin", "kv"), ("example", "other")];
        for (directory, targets, bin, message) in [
            (
                "/w/apps",
                &two[..],
                None,
                "package apps has several binaries: write /w/apps#BIN, where BIN is one of http, kv",
            ),
            (
                "/w/apps",
                &two,
                Some("other"),
                "package apps has no binary other: it has http, kv",
            ),
            (
                "/w/apps",
                &[("lib", "apps")],
                None,
                "package apps has no binary: a guest is one, such as src/main.rs",
            ),
            (
                "/w",
                &two,
                None,
                "/w is a workspace without a package of its own: \
                 name the directory of one of apps",
            ),
        ] {
            let refusal = choose_of(directory, targets, bin).unwrap_err();
            assert_eq!(refusal.to_string(), message);
        }
    }
}
