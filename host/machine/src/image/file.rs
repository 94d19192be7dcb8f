//! Ranges of a file, from numbers that the file itself supplied.

use std::ops::Range;

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::program_header::ProgramHeader;

/// How goblin is to read every table: 64-bit, little-endian.
pub(super) const CTX: Ctx = Ctx {
    container: Container::Big,
    le: Endian::Little,
};

/// `len` bytes from `offset`, when all of them are in a file of `file_len` bytes.
pub(super) fn range(file_len: usize, offset: u64, len: u64) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    (end <= file_len).then_some(start..end)
}

/// The bytes that a program header names, when all of them are in the file.
pub(super) fn bytes_of<'a>(bytes: &'a [u8], header: &ProgramHeader) -> Option<&'a [u8]> {
    bytes.get(range(bytes.len(), header.p_offset, header.p_filesz)?)
}
