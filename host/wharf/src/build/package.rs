//! What a package holds and which of it is meant, by `cargo metadata`.

use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{CrateType, Metadata, Package, TargetKind};

use super::{BuildError, PackageSource, cargo};

/// The crate without which a program is no guest, as cargo knows it.
const RUNTIME: &str = "wharf-rt";

/// The crate that makes a plugin's exports.
const BINDINGS: &str = "wit-bindgen";

/// A package that a source names.
#[derive(Clone, Debug)]
pub(super) struct Member {
    source: PackageSource,
    manifest: PathBuf,
    package: Package,
    target_dir: PathBuf,
}

/// What a package is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A program on the guest runtime.
    Guest,
    /// A library that becomes a component.
    Plugin,
}

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

/// The library of one package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Library {
    /// The package's `Cargo.toml`, absolute.
    pub(super) manifest: PathBuf,
    /// The package, as cargo takes it.
    pub(super) package_id: String,
    /// The package's name.
    pub(super) package: String,
    /// The package's, or its workspace's, target directory.
    pub(super) target_dir: PathBuf,
}

impl Binary {
    /// Where the artefact goes.
    pub(super) fn artefact(&self, position_independent: bool) -> PathBuf {
        let kind = if position_independent { "" } else { ".fixed" };
        self.target_dir
            .join("wharf")
            .join(&self.package)
            .join(format!("{}{kind}.elf", self.name))
    }
}

impl Library {
    /// Where the artefact goes.
    pub(super) fn artefact(&self) -> PathBuf {
        self.target_dir
            .join("wharf")
            .join(format!("{}.wasm", self.package))
    }
}

impl Member {
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
        Self::choose(cargo::metadata(&manifest)?, &manifest, source)
    }

    fn choose(
        metadata: Metadata,
        manifest: &Path,
        source: &PackageSource,
    ) -> Result<Self, BuildError> {
        let is_meant = |package: &Package| {
            package.manifest_path == manifest
                || fs::canonicalize(&package.manifest_path).is_ok_and(|path| path == manifest)
        };
        let Some(package) = metadata.packages.iter().find(|it| is_meant(it)) else {
            return Err(BuildError::WorkspaceOnly {
                directory: source.directory.clone(),
                packages: list_buildable(&metadata.packages),
            });
        };
        Ok(Self {
            source: source.clone(),
            manifest: manifest.to_owned(),
            package: package.clone(),
            target_dir: metadata.target_directory.into(),
        })
    }

    /// What it is by its looks. One that is both is a guest when a binary was named,
    /// and a plugin otherwise.
    pub(super) fn kind(&self) -> Result<Kind, BuildError> {
        if self.source.bin.is_some() {
            Ok(Kind::Guest)
        } else if is_plugin(&self.package) {
            Ok(Kind::Plugin)
        } else if self
            .package
            .targets
            .iter()
            .any(cargo_metadata::Target::is_bin)
        {
            Ok(Kind::Guest)
        } else {
            Err(BuildError::NeitherKind {
                package: self.package.name.to_string(),
            })
        }
    }

    /// The binary that the source means.
    pub(super) fn binary(&self) -> Result<Binary, BuildError> {
        Ok(Binary {
            manifest: self.manifest.clone(),
            package_id: self.package.id.repr.clone(),
            package: self.package.name.to_string(),
            name: choose_name(&self.package, &self.source)?.to_owned(),
            target_dir: self.target_dir.clone(),
            has_runtime: depends_on(&self.package, RUNTIME),
        })
    }

    /// The library, when it is a plugin's.
    pub(super) fn library(&self) -> Result<Library, BuildError> {
        let package = self.package.name.to_string();
        if self.source.bin.is_some() {
            return Err(BuildError::BinaryNamed {
                directory: self.source.directory.clone(),
            });
        }
        if !is_plugin(&self.package) {
            return Err(BuildError::NoCdylib { package });
        }
        Ok(Library {
            manifest: self.manifest.clone(),
            package_id: self.package.id.repr.clone(),
            package,
            target_dir: self.target_dir.clone(),
        })
    }
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

fn depends_on(package: &Package, name: &str) -> bool {
    package.dependencies.iter().any(|it| it.name == name)
}

/// Whether it has a library that is made to be loaded, or that makes exports.
fn is_plugin(package: &Package) -> bool {
    let is_library = |kind: &TargetKind| {
        use TargetKind::{CDyLib, DyLib, Lib, RLib};
        matches!(kind, CDyLib | DyLib | Lib | RLib)
    };
    let mut libraries = package
        .targets
        .iter()
        .filter(|target| target.kind.iter().any(is_library));
    libraries.any(|library| {
        library.crate_types.contains(&CrateType::CDyLib) || depends_on(package, BINDINGS)
    })
}

/// The packages that can be built, or all when there is none.
fn list_buildable(packages: &[Package]) -> String {
    let name = |package: &Package| package.name.to_string();
    let mut names: Vec<_> = packages
        .iter()
        .filter(|package| depends_on(package, RUNTIME) || is_plugin(package))
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

    use super::{Binary, BuildError, Kind, Library, Member};
    use crate::build::PackageSource;

    /// A workspace with one package, `/w/apps`, with these targets and dependencies.
    struct Workspace<'a> {
        targets: &'a [(&'a str, &'a str)],
        dependencies: &'a [&'a str],
    }

    impl Workspace<'_> {
        fn ask<T>(
            &self,
            directory: &str,
            bin: Option<&str>,
            ask: impl Fn(&Member) -> Result<T, BuildError>,
        ) -> Result<T, BuildError> {
            let target = |(kind, name): &(&str, &str)| {
                json!({ "kind": [kind], "crate_types": [kind], "name": name, "src_path": "/w/x.rs",
                        "edition": "2024", "doc": true, "doctest": false, "test": false })
            };
            let dependency = |name: &&str| {
                json!({ "name": name, "source": null, "req": "*", "kind": null, "rename": "other",
                        "optional": false, "uses_default_features": true, "features": [],
                        "target": null, "registry": null })
            };
            let targets: Vec<Value> = self.targets.iter().map(target).collect();
            let dependencies: Vec<Value> = self.dependencies.iter().map(dependency).collect();
            let metadata = json!({
                "packages": [{ "name": "apps", "version": "0.1.0",
                    "id": "path+file:///w/apps#0.1.0", "dependencies": dependencies,
                    "targets": targets, "features": {}, "manifest_path": "/w/apps/Cargo.toml" }],
                "workspace_members": [], "workspace_root": "/w",
                "target_directory": "/w/target", "version": 1, "resolve": null
            });
            let metadata = MetadataCommand::parse(metadata.to_string()).unwrap();
            let source = PackageSource {
                directory: PathBuf::from(directory),
                bin: bin.map(str::to_owned),
            };
            let manifest = Path::new(directory).join("Cargo.toml");
            ask(&Member::choose(metadata, &manifest, &source)?)
        }
    }

    fn binary_of(
        directory: &str,
        targets: &[(&str, &str)],
        bin: Option<&str>,
    ) -> Result<Binary, BuildError> {
        let workspace = Workspace {
            targets,
            dependencies: &["wharf-rt"],
        };
        workspace.ask(directory, bin, Member::binary)
    }

    #[test]
    fn an_only_binary_needs_no_name() {
        let binary = binary_of("/w/apps", &[("lib", "apps"), ("bin", "http")], None).unwrap();
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
            binary_of("/w/apps", &binaries, Some("kv")).unwrap().name,
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
            let refusal = binary_of(directory, targets, bin).unwrap_err();
            assert_eq!(refusal.to_string(), message);
        }
    }

    #[test]
    fn a_package_is_a_plugin_by_its_library_or_what_that_uses() {
        let (guest, plugin) = (Some(Kind::Guest), Some(Kind::Plugin));
        for (targets, dependencies, bin, kind) in [
            (&[("bin", "a")][..], &["wharf-rt"][..], None, guest),
            (&[("bin", "a")], &[], None, guest),
            (&[("cdylib", "a")], &["wit-bindgen"], None, plugin),
            (&[("cdylib", "a")], &[], None, plugin),
            (&[("lib", "a")], &["wit-bindgen"], None, plugin),
            (&[("cdylib", "a"), ("bin", "b")], &[], None, plugin),
            (&[("cdylib", "a"), ("bin", "b")], &[], Some("b"), guest),
            (&[("lib", "a"), ("bin", "b")], &["wharf-rt"], None, guest),
            (&[("lib", "a")], &["serde"], None, None),
            (&[("proc-macro", "a")], &["wit-bindgen"], None, None),
            (&[], &[], None, None),
        ] {
            let workspace = Workspace {
                targets,
                dependencies,
            };
            let found = workspace.ask("/w/apps", bin, Member::kind);
            assert_eq!(found.ok(), kind, "{targets:?} {dependencies:?} {bin:?}");
        }
    }

    #[test]
    fn a_plugin_is_the_library_and_lies_beside_the_guests() {
        let workspace = Workspace {
            targets: &[("cdylib", "fair_share"), ("bin", "apps")],
            dependencies: &["wit-bindgen"],
        };
        let library = workspace.ask("/w/apps", None, Member::library).unwrap();
        let expected = Library {
            manifest: PathBuf::from("/w/apps/Cargo.toml"),
            package_id: "path+file:///w/apps#0.1.0".to_owned(),
            package: "apps".to_owned(),
            target_dir: PathBuf::from("/w/target"),
        };
        assert_eq!(library, expected);
        assert_eq!(library.artefact(), Path::new("/w/target/wharf/apps.wasm"));
    }

    #[test]
    fn what_is_no_plugin_says_what_is() {
        let workspace = Workspace {
            targets: &[("lib", "apps"), ("bin", "http")],
            dependencies: &["wharf-rt"],
        };
        let refusal = |bin| workspace.ask("/w/apps", bin, Member::library).unwrap_err();
        assert_eq!(
            refusal(None).to_string(),
            "package apps is no plugin, which is a library with crate-type = [\"cdylib\"]: \
             see `wharf new plugin`"
        );
        assert_eq!(
            refusal(Some("http")).to_string(),
            "a plugin is a package's library, not one of its binaries: write /w/apps alone"
        );
        let workspace = Workspace {
            targets: &[("lib", "apps")],
            dependencies: &[],
        };
        let refusal = workspace.ask("/w/apps", None, Member::kind).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "package apps is neither a guest, which is a binary such as src/main.rs, nor a \
             plugin, which is a library with crate-type = [\"cdylib\"]: see `wharf new`"
        );
    }
}
