//! "An artefact or the source of one": from what an operator names to a file.
//!
//! Wherever an image is wanted, a path to a file is used as it is, without a
//! look at anything else, and a Cargo package is built first. cargo alone knows
//! what is stale, so for a package it always runs. Start at [`Source`].

mod cargo;
mod error;
mod package;
mod progress;
mod source;

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use wharf_machine::image::{Image, ImageError, OpenError};

pub use error::BuildError;
pub use progress::Progress;
pub use source::{PackageSource, Source};

use package::Binary;

/// How to build what is not built yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildOptions {
    /// Whether the image can be loaded at any address, which makes its addresses
    /// hard to guess.
    pub position_independent: bool,
    /// How much of cargo's talk to pass on.
    pub progress: Progress,
}

impl Source {
    /// Returns the path of an image that [`Image::open`] accepts, building it
    /// when the source is a package. An artefact is not looked at.
    ///
    /// # Errors
    ///
    /// When a package holds no guest, or does not build.
    pub fn image_path(&self, options: BuildOptions) -> Result<PathBuf, BuildError> {
        match self {
            Self::Artefact(path) => Ok(path.clone()),
            Self::Package(source) => build(source, options),
        }
    }
}

fn build(source: &PackageSource, options: BuildOptions) -> Result<PathBuf, BuildError> {
    let binary = Binary::find(source)?;
    log::info!("building {} of {}", binary.name, binary.manifest.display());
    // cargo names executables by binary only. Until this build's is copied, no
    // other may put one of the same name, from another package, in its place.
    let _turn = lock(&binary.target_dir.join("wharf")).map_err(|source| BuildError::Install {
        path: binary.target_dir.join("wharf"),
        source,
    })?;
    let executable = cargo::build(&binary, options)?;
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
    install(&executable, &artefact).map_err(|source| BuildError::Install {
        path: artefact.clone(),
        source,
    })?;
    Ok(artefact)
}

/// Waits for this process's turn to build there, which lasts until the file is
/// dropped.
fn lock(directory: &Path) -> io::Result<File> {
    fs::create_dir_all(directory)?;
    let file = File::create(directory.join(".lock"))?;
    file.lock()?;
    Ok(file)
}

/// Copies a file so that whoever opens `to` at any time finds a whole one.
fn install(from: &Path, to: &Path) -> io::Result<()> {
    let directory = to.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut copy = tempfile::Builder::new()
        .prefix(".")
        .suffix(".elf")
        .permissions(Permissions::from_mode(0o777))
        .tempfile_in(directory)?;
    io::copy(&mut File::open(from)?, &mut copy)?;
    copy.persist(to)?;
    Ok(())
}
