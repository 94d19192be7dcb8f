//! What stands behind guests' devices: files, memory, and who gets which.
//!
//! [`Block`] is what an operator says of one; [`attach`](attach::attach) finds for
//! each device that an image declares what was configured for it, by the router's
//! word, and opens it. What a guest asks of an open one comes through
//! [`wharf_machine::device::Disk`]; rings and guest memory are that crate's.

pub mod attach;

mod file;
mod lock;
mod memory;
mod overlay;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use wharf_machine::device::{Disk, SECTOR};

use file::FileDisk;
use memory::MemoryDisk;
use overlay::Overlay;

/// A block device of a task, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The name that the image declares.
    pub device: String,
    /// Where its bytes are.
    pub medium: Medium,
}

/// Where a block device's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Medium {
    /// In a file.
    File {
        /// The file.
        #[serde(with = "crate::path")]
        file: PathBuf,
        /// Its bytes, a multiple of 512. With it a file that is missing is made, and
        /// one of another size refused; without, it has to exist.
        size: Option<u64>,
        /// What the task may do with it.
        mode: BlockMode,
    },
    /// In memory, zeroes at first, for as long as the guest lives.
    Memory {
        /// Bytes, a multiple of 512.
        size: u64,
    },
}

/// What a task may do with a file that is a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockMode {
    /// Read and write.
    #[default]
    ReadWrite,
    /// Read.
    ReadOnly,
    /// Read and write, but nothing of it reaches the file.
    CopyOnWrite,
}

/// Why a disk cannot be had. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is no such file, and nobody said how large to make it.
    #[error("{} does not exist: make it, or say how large with size = \"64MiB\"", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// There is no such file, and an empty one would be of no use.
    #[error("{} does not exist, and a disk that is only read has to: make it", file.display())]
    NothingToRead {
        /// The file.
        file: PathBuf,
    },
    /// The file cannot be opened as it has to be.
    #[error("cannot open {} to {how}: see to its permissions, or name another", file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// What for.
        how: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file could not be made.
    #[error("cannot make {} of {size} bytes: make room, or name another", file.display())]
    Make {
        /// The file.
        file: PathBuf,
        /// Its size.
        size: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// A directory, pipe or the like.
    #[error("{} is no file or block device: name one", file.display())]
    NoFile {
        /// The file.
        file: PathBuf,
    },
    /// The file has another size than is configured.
    #[error(
        "{} has {found} bytes, and not the {expected} that size says: correct size, or name \
         another file", file.display()
    )]
    Size {
        /// The file.
        file: PathBuf,
        /// Its bytes.
        found: u64,
        /// Those it should have.
        expected: u64,
    },
    /// The file's size is none of a disk.
    #[error(
        "{} has {found} bytes, which is no whole number of sectors of 512: make it one with \
         `truncate`", file.display()
    )]
    Uneven {
        /// The file.
        file: PathBuf,
        /// Its bytes.
        found: u64,
    },
    /// The file has nothing in it.
    #[error(
        "{} is empty: make it larger with `truncate`, or take it away and say size = \"64MiB\"",
        file.display()
    )]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// Somebody else has the file in a way that does not go with this one.
    #[error("{} is in use by {by}: end that first, or name another file", file.display())]
    InUse {
        /// The file.
        file: PathBuf,
        /// Who.
        by: String,
    },
    /// No memory could be had for it.
    #[error("no memory for a disk of {size} bytes: make it smaller")]
    NoMemory {
        /// Bytes.
        size: u64,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Block {
    /// Opens it: makes its file when that is to be made, and locks it.
    ///
    /// # Errors
    ///
    /// [`DiskError`].
    pub fn open(&self) -> Result<Box<dyn Disk>, DiskError> {
        let name = self.device.clone();
        Ok(match &self.medium {
            Medium::File { file, size, mode } => match mode {
                BlockMode::ReadWrite => Box::new(FileDisk::open(name, file, *size, true)?),
                BlockMode::ReadOnly => Box::new(FileDisk::open(name, file, *size, false)?),
                BlockMode::CopyOnWrite => {
                    Box::new(Overlay::new(FileDisk::open(name, file, *size, false)?)?)
                }
            },
            Medium::Memory { size } => Box::new(MemoryDisk::new(name, *size)?),
        })
    }
}

impl Block {
    /// Whether what a task writes there is for others to see.
    #[must_use]
    pub const fn is_written(&self) -> bool {
        matches!(
            &self.medium,
            Medium::File {
                mode: BlockMode::ReadWrite,
                ..
            }
        )
    }
}

/// Whether a disk can have so many bytes.
#[must_use]
pub const fn is_disk_size(bytes: u64) -> bool {
    bytes > 0 && bytes.is_multiple_of(SECTOR)
}
