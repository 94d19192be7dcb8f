//! A disk in a file.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use serde_json::Value;
use wharf_machine::Buffers;
use wharf_machine::device::Disk;
use wharf_machine::handover::Luggage;

use super::carried::{CarriedDisk, CarriedFile, described};
use super::heir::{self, OnFile};
use super::{DiskError, is_disk_size, lock};

/// A file, locked for as long as this lives.
#[derive(Debug)]
pub(super) struct FileDisk {
    /// Shared with a guest that is to take this one's place: the lock lasts.
    file: Arc<File>,
    name: String,
    len: u64,
    writable: bool,
    /// A flush failed once. What the kernel could not write it may have dropped, and
    /// a second flush would find nothing left to complain of.
    lost: bool,
}

impl FileDisk {
    /// Opens and locks a file, or makes it when a size says how large.
    pub(super) fn open(
        name: String,
        path: &Path,
        size: Option<u64>,
        writable: bool,
    ) -> Result<Self, DiskError> {
        let opened = match options(writable).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(path, size, writable),
            opened => opened.map_err(|source| cannot_open(path, writable, source)),
        };
        let file = lock::take(opened?, path, writable)?;
        let len = disk_len(&file, path, size)?;
        Ok(Self {
            file: Arc::new(file),
            name,
            len,
            writable,
            lost: false,
        })
    }

    /// Goes on with a file that another process has locked, which is locked here as well.
    pub(super) fn go_on(file: File, name: String, len: u64, writable: bool, lost: bool) -> Self {
        Self {
            file: Arc::new(file),
            name,
            len,
            writable,
            lost,
        }
    }

    /// Looks whether it could be opened so. Makes nothing and locks nothing.
    pub(super) fn check(path: &Path, size: Option<u64>, writable: bool) -> Result<(), DiskError> {
        match options(writable).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let size = size_to_make(path, size, writable)?;
                can_be_made(path).map_err(|source| DiskError::Make {
                    file: path.to_owned(),
                    size,
                    source,
                })
            }
            Err(source) => Err(cannot_open(path, writable, source)),
            Ok(file) => {
                lock::look(&file, path, writable)?;
                disk_len(&file, path, size).map(drop)
            }
        }
    }
}

impl Disk for FileDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn is_read_only(&self) -> bool {
        !self.writable
    }

    fn can_discard(&self) -> bool {
        self.writable
    }

    fn id(&self) -> &str {
        &self.name
    }

    fn read(&mut self, at: u64, into: &Buffers<'_>) -> io::Result<()> {
        into.read_from(self.file.as_fd(), at)
    }

    fn write(&mut self, at: u64, from: &Buffers<'_>) -> io::Result<()> {
        from.write_to(self.file.as_fd(), at)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.writable {
            return Ok(());
        }
        if self.lost {
            return Err(io::Error::other("an earlier flush failed"));
        }
        let done = self.file.sync_data();
        self.lost = done.is_err();
        done
    }

    fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        punch(&self.file, at, len)
    }

    fn carry(&self, luggage: &mut Luggage) -> io::Result<Value> {
        described(&CarriedDisk::File(CarriedFile {
            file: luggage.put_file(self.file.try_clone()?.into()),
            name: self.name.clone(),
            len: self.len,
            writable: self.writable,
            lost: self.lost,
        }))
    }

    fn share(&self) -> Option<io::Result<Box<dyn Disk>>> {
        let other = Self {
            file: Arc::clone(&self.file),
            name: self.name.clone(),
            ..*self
        };
        self.writable.then(|| heir::beside(other))
    }
}

impl OnFile for FileDisk {
    fn file(&self) -> &File {
        &self.file
    }
}

/// Gives back the room of a range, which then reads as zeroes. Where a file system
/// cannot do that, nothing happens, which is all that a discard asks for.
pub(super) fn punch(file: &File, at: u64, len: u64) -> io::Result<()> {
    let (Ok(at), Ok(bytes)) = (i64::try_from(at), i64::try_from(len)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    if bytes == 0 {
        return Ok(());
    }
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(file, flags, at, bytes) {
        Err(nix::Error::EOPNOTSUPP | nix::Error::ENOSYS) => Ok(()),
        done => Ok(done?),
    }
}

fn options(writable: bool) -> OpenOptions {
    let mut options = OpenOptions::new();
    // A pipe would keep the opener waiting for its other end.
    options
        .read(true)
        .write(writable)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options
}

fn cannot_open(path: &Path, writable: bool, source: io::Error) -> DiskError {
    DiskError::Open {
        file: path.to_owned(),
        how: if writable { "read and write" } else { "read" },
        source,
    }
}

/// How large a file is to be made that does not exist, when it may be.
fn size_to_make(path: &Path, size: Option<u64>, writable: bool) -> Result<u64, DiskError> {
    let file = path.to_owned();
    if !writable {
        return Err(DiskError::NothingToRead { file });
    }
    size.ok_or(DiskError::Missing { file })
}

/// Whether there is a directory for it.
fn can_be_made(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
    let metadata = std::fs::metadata(parent.unwrap_or(Path::new(".")))?;
    if metadata.is_dir() {
        Ok(())
    } else {
        Err(nix::Error::ENOTDIR.into())
    }
}

fn make(path: &Path, size: Option<u64>, writable: bool) -> Result<File, DiskError> {
    let size = size_to_make(path, size, writable)?;
    let made = options(true).create_new(true).mode(0o600).open(path);
    let sized = made.and_then(|made| {
        // Of the right size from the first moment that it is good for anything: a
        // file that could not be made so large must not be found by the next try.
        made.set_len(size).inspect_err(|_| {
            let _ = std::fs::remove_file(path);
        })?;
        Ok(made)
    });
    sized.map_err(|source| DiskError::Make {
        file: path.to_owned(),
        size,
        source,
    })
}

/// Bytes of a file, when they make a disk, and the one that is configured.
fn disk_len(file: &File, path: &Path, size: Option<u64>) -> Result<u64, DiskError> {
    let found = len_of(file, path)?;
    let file = path.to_owned();
    match size {
        Some(expected) if expected != found => Err(DiskError::Size {
            file,
            found,
            expected,
        }),
        _ if found == 0 => Err(DiskError::Empty { file }),
        _ if !is_disk_size(found) => Err(DiskError::Uneven { file, found }),
        _ => Ok(found),
    }
}

fn len_of(mut file: &File, path: &Path) -> Result<u64, DiskError> {
    let seen = |source| DiskError::Open {
        file: path.to_owned(),
        how: "see its size",
        source,
    };
    let metadata = file.metadata().map_err(seen)?;
    let kind = metadata.file_type();
    if kind.is_file() {
        Ok(metadata.len())
    } else if kind.is_block_device() {
        file.seek(SeekFrom::End(0)).map_err(seen)
    } else {
        Err(DiskError::NoFile {
            file: path.to_owned(),
        })
    }
}
