//! What stands behind guests' devices: files, memory, and who gets which.
//!
//! [`Block`] is what an operator says of one; [`attach`](attach::attach) finds for
//! each device that an image declares what was configured for it, by the router's
//! word, and opens it. What a guest asks of an open one comes through
//! [`wharf_machine::device::Disk`]; rings and guest memory are that crate's.

pub mod attach;
pub(crate) mod carried;

mod file;
mod heir;
mod lock;
mod memory;
mod overlay;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use wharf_abi::manifest::Name;
use wharf_machine::device::{Disk, SECTOR};
use zerocopy::FromBytes;

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
    /// The generation before has it, and it cannot be had beside that.
    #[error("cannot be had beside the generation that has it: free memory or descriptors")]
    Share {
        /// What the kernel said.
        source: io::Error,
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
    /// Looks whether it could be opened now. Makes nothing and locks nothing.
    ///
    /// # Errors
    ///
    /// [`DiskError`], as [`open`](Self::open) would have it. What only an attempt can
    /// tell, such as room for a file that is to be made, is not found out.
    pub fn check(&self) -> Result<(), DiskError> {
        match &self.medium {
            Medium::File { file, size, mode } => {
                FileDisk::check(file, *size, *mode == BlockMode::ReadWrite)
            }
            Medium::Memory { .. } => Ok(()),
        }
    }

    /// Whether any number of tasks can have it at a time without a trace of each other.
    #[must_use]
    pub const fn is_private(&self) -> bool {
        matches!(
            &self.medium,
            Medium::File {
                mode: BlockMode::ReadOnly | BlockMode::CopyOnWrite,
                ..
            }
        )
    }

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

/// Most characters of a device's name: as many as Solo5's images have room for, of which
/// wharf's own have 32.
pub const DEVICE_NAME_MAX: usize = 67;

/// Says whether an image can declare a device that is called so: letters, digits, `.`,
/// `_`, `+` and `-`, 1 to [`DEVICE_NAME_MAX`] of them, as the contracts with guests have
/// it.
#[must_use]
pub fn is_device_name(name: &str) -> bool {
    let mut bytes = [0; DEVICE_NAME_MAX];
    let Some(place) = bytes.get_mut(..name.len()) else {
        return false;
    };
    place.copy_from_slice(name.as_bytes());
    let read = Name::<DEVICE_NAME_MAX>::read_from_bytes(&bytes);
    read.is_ok_and(|it| it.as_str() == Some(name))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::{Block, BlockMode, DiskError, Medium, is_device_name};

    fn block(file: PathBuf, size: Option<u64>, mode: BlockMode) -> Block {
        Block {
            device: "data".to_owned(),
            medium: Medium::File { file, size, mode },
        }
    }

    /// The same is refused by a look as by opening, in the same words.
    #[test]
    fn a_check_says_what_opening_would() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("good.img"), [0; 4096]).unwrap();
        fs::write(at("odd.img"), [0; 1000]).unwrap();
        fs::write(at("empty.img"), []).unwrap();
        let (rw, ro, cow) = (
            BlockMode::ReadWrite,
            BlockMode::ReadOnly,
            BlockMode::CopyOnWrite,
        );
        for (name, size, mode) in [
            ("good.img", None, rw),
            ("good.img", Some(4096), ro),
            ("good.img", Some(512), rw),
            ("odd.img", None, rw),
            ("empty.img", None, cow),
            ("none.img", None, rw),
            ("none.img", Some(512), ro),
            ("none.img", Some(512), cow),
            ("no/where.img", Some(512), rw),
            ("good.img/x.img", Some(512), rw),
            ("", None, ro),
        ] {
            let block = block(at(name), size, mode);
            let said = |done: Result<(), DiskError>| done.map_err(|it| crate::text::one_line(&it));
            let opened = said(block.open().map(drop));
            assert_eq!(said(block.check()), opened, "{name} {size:?} {mode:?}");
        }
    }

    #[test]
    fn a_check_makes_nothing_and_locks_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let new = block(
            directory.path().join("new.img"),
            Some(512),
            BlockMode::ReadWrite,
        );
        new.check().unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let disk = new.open().unwrap();
        let refused = new.check().unwrap_err();
        assert!(matches!(refused, DiskError::InUse { .. }), "{refused}");
        drop(disk);
        new.check().unwrap();
    }

    #[test]
    fn devices_are_called_as_images_call_them() {
        let longest = "x".repeat(67);
        for (name, good) in [
            ("data", true),
            ("a.b_c+d-1", true),
            (&longest, true),
            ("", false),
            ("a b", false),
            ("a/b", false),
            ("é", false),
            ("a\0", false),
            (&"x".repeat(68), false),
        ] {
            assert_eq!(is_device_name(name), good, "{name:?}");
        }
    }
}
