//! "An artefact or the source of one": from what an operator names to a file.
//!
//! Wherever an image or a plugin is wanted, a path to a file is used as it is,
//! without a look at anything else, and a Cargo package is built first. cargo alone knows
//! what is stale, so for a package it always runs. Start at [`Source`].

mod cargo;
mod error;
mod guest;
mod package;
mod plugin;
mod progress;
mod source;

use std::fs;
use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub use error::BuildError;
pub use plugin::toolchain;
pub use progress::Progress;
pub use source::{PackageSource, Source};

use package::{Kind, Member};

/// How to build what is not built yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildOptions {
    /// Whether the image can be loaded at any address, which makes its addresses
    /// hard to guess.
    pub position_independent: bool,
    /// How much of cargo's talk to pass on.
    pub progress: Progress,
}

impl BuildOptions {
    /// As images are built when nobody says otherwise.
    #[must_use]
    pub const fn new(progress: Progress) -> Self {
        Self {
            position_independent: true,
            progress,
        }
    }
}

impl Source {
    /// Returns the path of an image that [`Image::open`] accepts, building it
    /// when the source is a package. An artefact is not looked at.
    ///
    /// [`Image::open`]: wharf_machine::image::Image::open
    ///
    /// # Errors
    ///
    /// When a package holds no guest, or does not build.
    pub fn image_path(&self, options: BuildOptions) -> Result<PathBuf, BuildError> {
        match self {
            Self::Artefact(path) => Ok(path.clone()),
            Self::Package(source) => guest::build(&Member::find(source)?, options),
        }
    }

    /// Returns the path of a component that [`Plugin::open`] accepts, building it
    /// when the source is a package. An artefact is not looked at.
    ///
    /// Of the options, only what concerns progress matters to plugins.
    ///
    /// [`Plugin::open`]: wharf_policy::Plugin::open
    ///
    /// # Errors
    ///
    /// When a package holds no plugin, does not build, or nothing on this machine
    /// compiles to WebAssembly.
    pub fn plugin_path(&self, options: BuildOptions) -> Result<PathBuf, BuildError> {
        match self {
            Self::Artefact(path) => Ok(path.clone()),
            Self::Package(source) => plugin::build(&Member::find(source)?, options.progress),
        }
    }

    /// Returns the path of what the source is by its looks: a plugin's component or
    /// a guest's image.
    ///
    /// # Errors
    ///
    /// When a package is neither, or does not build.
    pub fn artefact_path(&self, options: BuildOptions) -> Result<PathBuf, BuildError> {
        let source = match self {
            Self::Artefact(path) => return Ok(path.clone()),
            Self::Package(source) => source,
        };
        let member = Member::find(source)?;
        match member.kind()? {
            Kind::Guest => guest::build(&member, options),
            Kind::Plugin => plugin::build(&member, options.progress),
        }
    }
}

/// Waits for this process's turn to build in a target directory, which lasts until
/// the file is dropped: cargo names executables by binary only, and until one is
/// copied, no other may take its place.
fn lock(target_dir: &Path) -> Result<File, BuildError> {
    let directory = target_dir.join("wharf");
    let locked = fs::create_dir_all(&directory).and_then(|()| {
        let file = File::create(directory.join(".lock"))?;
        file.lock()?;
        Ok(file)
    });
    locked.map_err(|source| BuildError::Install {
        path: directory,
        source,
    })
}

/// Copies an artefact so that whoever opens `to` at any time finds a whole one.
fn install(from: &mut impl Read, to: &Path) -> Result<(), BuildError> {
    let copied = to
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| {
            let mut copy = tempfile::Builder::new()
                .prefix(".")
                .permissions(Permissions::from_mode(0o777))
                .tempfile_in(to.parent().unwrap_or(Path::new(".")))?;
            io::copy(from, &mut copy)?;
            copy.persist(to)?;
            Ok(())
        });
    copied.map_err(|source| BuildError::Install {
        path: to.to_owned(),
        source,
    })
}
