//! What an image has in memory, and where.
//!
//! Everything here speaks of segments that keep the rules of
//! [`layout`](super::layout).

use std::fmt;
use std::ops::Range;

use goblin::elf::program_header::{PT_GNU_RELRO, ProgramHeader};

use super::SegmentLabel;

const PAGE_BYTES: u64 = 4096;
const PAGE_MASK: u64 = PAGE_BYTES - 1;

/// What a guest can do with a segment. Every segment is readable, and none both
/// writable and executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write.
    ReadWrite,
    /// Read and execute.
    ReadExecute,
}

impl Access {
    /// Says whether a guest can write.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        matches!(self, Self::ReadWrite)
    }

    /// Says whether a guest can execute.
    #[must_use]
    pub const fn is_executable(self) -> bool {
        matches!(self, Self::ReadExecute)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "r",
            Self::ReadWrite => "rw",
            Self::ReadExecute => "rx",
        })
    }
}

/// A range of an image's memory with one access (`PT_LOAD`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Index of the program header, as messages name the segment.
    pub index: usize,
    /// First address. Need not be a page's first; no other segment is on the page.
    pub addr: u64,
    /// Bytes that come from the file, at most `mem_len`.
    pub file_len: u64,
    /// Bytes in memory, at least 1.
    pub mem_len: u64,
    /// What the guest can do with it.
    pub access: Access,
    pub(super) label: SegmentLabel,
    pub(super) align: u64,
    pub(super) file: Range<usize>,
}

impl Segment {
    /// The addresses from the first to past the last byte.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        // Checked to be below ADDRESS_END: cannot saturate.
        self.addr..self.addr.saturating_add(self.mem_len)
    }

    /// The same, widened to whole pages.
    #[must_use]
    pub fn pages(&self) -> Range<u64> {
        let range = self.range();
        page_floor(range.start)..page_ceil(range.end)
    }

    /// Where the addresses end whose bytes come from the file.
    pub(super) fn file_end(&self) -> u64 {
        self.addr.saturating_add(self.file_len)
    }

    pub(super) fn bytes_in<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(self.file.clone()).unwrap_or_default()
    }
}

/// From the lowest page's start to the highest page's end.
pub(super) fn span(sorted: &[Segment]) -> Range<u64> {
    let start = sorted.first().map_or(0, |segment| segment.pages().start);
    let end = sorted.last().map_or(0, |segment| segment.pages().end);
    start..end
}

/// The largest alignment that a segment asks for, a page at least.
pub(super) fn alignment(segments: &[Segment]) -> u64 {
    let largest = segments.iter().map(|segment| segment.align).max();
    largest.unwrap_or_default().max(PAGE_BYTES)
}

/// The pages that become read-only after relocation.
pub(super) fn relro(programs: &[ProgramHeader], segments: &[Segment]) -> Option<Range<u64>> {
    let relro = programs.iter().find(|p| p.p_type == PT_GNU_RELRO)?;
    let start = relro.p_vaddr;
    let end = start.checked_add(relro.p_memsz)?;
    let segment = segments
        .iter()
        .find(|segment| segment.access.is_writable() && segment.range().contains(&start))?;
    let pages = segment.pages();
    // Linkers round the end up to a page; beyond the segment there is nothing
    // on that page.
    if end > pages.end {
        return None;
    }
    let first = if start == segment.addr {
        pages.start
    } else {
        page_ceil(start)
    };
    let last = if end >= segment.range().end {
        pages.end
    } else {
        page_floor(end)
    };
    (first < last).then_some(first..last)
}

/// The bytes of the file behind a range of addresses, when one segment's file
/// part holds all of it.
pub(super) fn file_range(segments: &[Segment], addr: u64, len: u64) -> Option<Range<usize>> {
    let end = addr.checked_add(len)?;
    let segment = segments
        .iter()
        .find(|segment| segment.addr <= addr && end <= segment.file_end())?;
    let start = segment
        .file
        .start
        .checked_add(usize::try_from(addr.checked_sub(segment.addr)?).ok()?)?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    (end <= segment.file.end).then_some(start..end)
}

/// The segment that an address is in.
pub(super) fn containing(sorted: &[Segment], addr: u64) -> Option<&Segment> {
    let after = sorted.partition_point(|segment| segment.addr <= addr);
    sorted
        .get(after.checked_sub(1)?)
        .filter(|segment| segment.range().contains(&addr))
}

const fn page_floor(addr: u64) -> u64 {
    addr & !PAGE_MASK
}

/// Addresses are at most `ADDRESS_END` wherever this is asked of a segment;
/// `PT_GNU_RELRO` starts inside one.
const fn page_ceil(addr: u64) -> u64 {
    page_floor(addr.saturating_add(PAGE_MASK))
}
