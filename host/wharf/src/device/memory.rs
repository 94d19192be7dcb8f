//! A disk in memory, which goes with the guest.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::Value;
use wharf_machine::Buffers;
use wharf_machine::device::Disk;
use wharf_machine::handover::Luggage;

use super::DiskError;
use super::carried::{CarriedDisk, described};
use super::file::punch;
use super::heir::{self, OnFile};

/// Anonymous memory behind a descriptor, so that the kernel moves its bytes as it
/// does a file's. Nothing is resident before it is written.
#[derive(Debug)]
pub(super) struct MemoryDisk {
    file: File,
    name: String,
    len: u64,
}

impl MemoryDisk {
    /// A disk of `len` bytes, all zero.
    pub(super) fn new(name: String, len: u64) -> Result<Self, DiskError> {
        let failed = |source| DiskError::NoMemory { size: len, source };
        let file = memfd_create("wharf disk", MFdFlags::MFD_CLOEXEC)
            .map_err(|error| failed(error.into()))?;
        let file = File::from(file);
        file.set_len(len).map_err(failed)?;
        Ok(Self { file, name, len })
    }

    /// Goes on with what another process had.
    pub(super) const fn go_on(file: File, name: String, len: u64) -> Self {
        Self { file, name, len }
    }
}

impl Disk for MemoryDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn share(&self) -> Option<io::Result<Box<dyn Disk>>> {
        let other = self.file.try_clone().map(|file| Self {
            file,
            name: self.name.clone(),
            len: self.len,
        });
        Some(other.and_then(heir::beside))
    }

    fn carry(&self, luggage: &mut Luggage) -> io::Result<Value> {
        described(&CarriedDisk::Memory {
            file: luggage.put_file(self.file.try_clone()?.into()),
            name: self.name.clone(),
            len: self.len,
        })
    }

    fn can_discard(&self) -> bool {
        true
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
        Ok(())
    }

    fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        punch(&self.file, at, len)
    }
}

impl OnFile for MemoryDisk {
    fn file(&self) -> &File {
        &self.file
    }
}
