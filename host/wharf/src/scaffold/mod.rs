//! `wharf new`: packages that build and run as they are written.
//!
//! Neither the guest runtime nor the contract with plugins is on a registry, so
//! every package gets a copy of its sources, which this binary carries (see
//! `build.rs`).

mod name;

use std::path::{Path, PathBuf};
use std::{fs, io};

use wharf_model::policy::SlotName;

pub use name::{NameError, PackageName};

/// Relative path and text of every file of the guest runtime.
const RUNTIME: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/runtime.rs"));

/// Relative path and template of every other file. A template's `@NAME@` is the
/// package's name.
const GUEST: [(&str, &str); 4] = [
    ("Cargo.toml", include_str!("guest/Cargo.toml.in")),
    ("src/main.rs", include_str!("guest/main.rs.in")),
    ("README.md", include_str!("guest/README.md.in")),
    (".gitignore", include_str!("guest/gitignore.in")),
];

/// The same for a plugin, except for its source. `@SLOT@` is the slot and
/// `@CONFIG@` a setting of its policy as TOML has it.
const PLUGIN: [(&str, &str); 4] = [
    ("Cargo.toml", include_str!("plugin/Cargo.toml.in")),
    ("README.md", include_str!("plugin/README.md.in")),
    (".gitignore", include_str!("plugin/gitignore.in")),
    ("wit/policy.wit", include_str!("../../../../wit/policy.wit")),
];

/// A package was not made.
#[derive(Debug, thiserror::Error)]
pub enum ScaffoldError {
    /// The path ends in something that is no package name.
    #[error("{} cannot be a package", path.display())]
    Name {
        /// The path.
        path: PathBuf,
        /// The rule.
        source: NameError,
    },
    /// Something is there already.
    #[error("{} exists already: choose another name or remove it", path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// The file system said no.
    #[error("cannot make {}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Makes a guest's package in a new directory, and returns its name, which is
/// the last component of the path.
///
/// # Errors
///
/// When the name is none, something is there, or it cannot be written. The
/// directory then does not exist, or is what it was.
pub fn new_guest(directory: &Path) -> Result<PackageName, ScaffoldError> {
    new_package(directory, |package, name| {
        for (path, template) in GUEST {
            write(&package.join(path), &template.replace("@NAME@", name))?;
        }
        for (path, text) in RUNTIME {
            write(&package.join("wharf").join(path), text)?;
        }
        Ok(())
    })
}

/// Makes the package of a plugin for a slot, as [`new_guest`] does a guest's.
///
/// # Errors
///
/// As there.
pub fn new_plugin(directory: &Path, slot: SlotName) -> Result<PackageName, ScaffoldError> {
    let (source, setting) = match slot {
        SlotName::Scheduler => (include_str!("plugin/scheduler.rs.in"), "short-ms = 2"),
        SlotName::Router => (include_str!("plugin/router.rs.in"), "ports = \"53, 443\""),
        SlotName::Upgrader => (include_str!("plugin/upgrader.rs.in"), "percent = 25"),
    };
    new_package(directory, |package, name| {
        for (path, template) in PLUGIN {
            let text = template
                .replace("@NAME@", name)
                .replace("@SLOT@", slot.as_str())
                .replace("@CONFIG@", setting);
            write(&package.join(path), &text)?;
        }
        write(&package.join("src/lib.rs"), source)
    })
}

fn new_package(
    directory: &Path,
    write: impl FnOnce(&Path, &str) -> io::Result<()>,
) -> Result<PackageName, ScaffoldError> {
    let name = PackageName::of(directory).map_err(|source| ScaffoldError::Name {
        path: directory.to_owned(),
        source,
    })?;
    let io = |source| ScaffoldError::Io {
        path: directory.to_owned(),
        source,
    };
    let exists = || ScaffoldError::Exists {
        path: directory.to_owned(),
    };
    if fs::symlink_metadata(directory).is_ok() {
        return Err(exists());
    }
    let parent = match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(io)?;
    // Made whole beside its place, then moved there: dropped, it is gone.
    let draft = tempfile::Builder::new()
        .prefix(".wharf-new-")
        .tempdir_in(parent)
        .map_err(io)?;
    let package = draft.path().join(name.as_str());
    write(&package, name.as_str()).map_err(io)?;
    fs::rename(&package, directory).map_err(|error| match error.kind() {
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory => exists(),
        _ => io(error),
    })?;
    Ok(name)
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use wharf_model::policy::SlotName;

    use super::{ScaffoldError, new_guest, new_plugin};

    #[test]
    fn a_guest_is_a_package_with_its_runtime() {
        let root = tempfile::tempdir().unwrap();
        let package = root.path().join("new").join("demo");
        assert_eq!(new_guest(&package).unwrap().as_str(), "demo");

        let read = |path: &str| fs::read_to_string(package.join(path)).unwrap();
        let manifest = read("Cargo.toml");
        assert!(manifest.contains("name = \"demo\"\n"), "{manifest}");
        for file in ["Cargo.toml", "src/main.rs", "README.md", ".gitignore"] {
            assert!(!read(file).contains('@'), "{file} is a template still");
        }
        for name in ["abi", "macros", "rt"] {
            assert!(read(&format!("wharf/{name}/Cargo.toml")).contains("[package]"));
            assert!(!read(&format!("wharf/{name}/src/lib.rs")).is_empty());
        }
        let parent: Vec<_> = fs::read_dir(root.path().join("new")).unwrap().collect();
        assert_eq!(
            parent.len(),
            1,
            "nothing but the package is left: {parent:?}"
        );
    }

    #[test]
    fn a_plugin_is_a_package_with_the_contract() {
        let root = tempfile::tempdir().unwrap();
        for slot in SlotName::ALL {
            let package = root.path().join(slot.as_str());
            new_plugin(&package, slot).unwrap();
            let read = |path: &str| fs::read_to_string(package.join(path)).unwrap();
            for file in ["Cargo.toml", "src/lib.rs", "README.md", ".gitignore"] {
                let text = read(file);
                for word in ["@NAME@", "@SLOT@", "@CONFIG@"] {
                    assert!(!text.contains(word), "{file} is a template still");
                }
            }
            let world = format!("world: \"{slot}-plugin\"", slot = slot.as_str());
            assert!(read("src/lib.rs").contains(&world), "{slot:?}");
            assert!(read("wit/policy.wit").contains("package wharf:policy@"));
        }
    }

    #[test]
    fn the_runtime_needs_nothing_of_the_workspace_it_came_from() {
        for (path, text) in super::RUNTIME {
            assert!(
                !text.contains("workspace = true"),
                "{path} inherits from a workspace"
            );
        }
    }

    #[test]
    fn what_exists_stays_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let package = root.path().join("demo");
        fs::create_dir(&package).unwrap();
        assert!(matches!(
            new_guest(&package),
            Err(ScaffoldError::Exists { .. })
        ));
        assert_eq!(fs::read_dir(&package).unwrap().count(), 0);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
