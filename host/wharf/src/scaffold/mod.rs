//! `wharf new`: packages that build and run as they are written.
//!
//! The guest runtime is on no registry, so every package gets a copy of its
//! sources, which this binary carries (see `build.rs`).

mod name;

use std::path::{Path, PathBuf};
use std::{fs, io};

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
    write_guest(&package, &name).map_err(io)?;
    fs::rename(&package, directory).map_err(|error| match error.kind() {
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory => exists(),
        _ => io(error),
    })?;
    Ok(name)
}

fn write_guest(package: &Path, name: &PackageName) -> io::Result<()> {
    for (path, template) in GUEST {
        write(
            &package.join(path),
            &template.replace("@NAME@", name.as_str()),
        )?;
    }
    for (path, text) in RUNTIME {
        write(&package.join("wharf").join(path), text)?;
    }
    Ok(())
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

    use super::{ScaffoldError, new_guest};

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
