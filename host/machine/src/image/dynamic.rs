//! The dynamic section: where the relocations of a relocatable image are.
//!
//! No dynamic linker runs for a guest, so everything that would need one is
//! refused. What only describes the image (symbols, hashes, flags) and what its
//! own start-up code runs (initialisers) is passed over.

use std::ops::Range;

use goblin::elf::dynamic::{
    DF_TEXTREL, DT_FLAGS, DT_JMPREL, DT_NEEDED, DT_NULL, DT_PLTRELSZ, DT_REL, DT_RELA, DT_RELAENT,
    DT_RELASZ, DT_RELSZ, DT_TEXTREL,
};
use goblin::elf::program_header::{PT_DYNAMIC, ProgramHeader};
use zerocopy::little_endian::U64;

use super::relocations::Tables;
use super::segments::{self, Segment};
use super::{ImageError, Placement, file};

// gABI chapter 5, "Dynamic Section"; goblin does not name these.
const DT_RELRSZ: u64 = 35;
const DT_RELR: u64 = 36;
const DT_RELRENT: u64 = 37;

const ENTRY_BYTES: usize = 16;
const RELA_BYTES: u64 = 24;
const RELR_BYTES: u64 = 8;

/// Finds the relocation tables of an image.
///
/// A fixed image has none: nobody applies them, so one that brings a dynamic
/// section expects a host that this is not, and would run unrelocated.
pub(super) fn check(
    programs: &[ProgramHeader],
    bytes: &[u8],
    segments: &[Segment],
    placement: Placement,
) -> Result<Tables, ImageError> {
    let mut headers = programs
        .iter()
        .enumerate()
        .filter(|(_, program)| program.p_type == PT_DYNAMIC);
    let Some((index, program)) = headers.next() else {
        return Ok(Tables::default());
    };
    if placement == Placement::Fixed {
        return Err(ImageError::FixedImageIsDynamic { index });
    }
    if let Some((index, _)) = headers.next() {
        return Err(ImageError::SecondDynamic { index });
    }
    let section = file::bytes_of(bytes, program).ok_or(ImageError::DynamicOutsideFile { index })?;
    let dynamic = Dynamic::read(section)?;
    Ok(Tables {
        rela: dynamic.rela.locate(segments)?,
        relr: dynamic.relr.locate(segments)?,
    })
}

struct Dynamic {
    rela: Table,
    relr: Table,
}

impl Dynamic {
    fn read(section: &[u8]) -> Result<Self, ImageError> {
        let (entries, []) = section.as_chunks::<ENTRY_BYTES>() else {
            return Err(ImageError::DynamicTruncated {
                bytes: section.len(),
            });
        };
        let mut dynamic = Self {
            rela: Table::new("RELA", RELA_BYTES),
            relr: Table::new("RELR", RELR_BYTES),
        };
        for entry in entries {
            let [tag, value]: [U64; 2] = zerocopy::transmute!(*entry);
            if tag.get() == DT_NULL {
                break;
            }
            dynamic.take(tag.get(), value.get())?;
        }
        Ok(dynamic)
    }

    fn take(&mut self, tag: u64, value: u64) -> Result<(), ImageError> {
        let refuse = |tag, reason| Err(ImageError::UnsupportedDynamicTag { tag, reason });
        match tag {
            DT_RELA => set(&mut self.rela.addr, value, "DT_RELA"),
            DT_RELASZ => set(&mut self.rela.len, value, "DT_RELASZ"),
            DT_RELAENT => set(&mut self.rela.entry_len, value, "DT_RELAENT"),
            DT_RELR => set(&mut self.relr.addr, value, "DT_RELR"),
            DT_RELRSZ => set(&mut self.relr.len, value, "DT_RELRSZ"),
            DT_RELRENT => set(&mut self.relr.entry_len, value, "DT_RELRENT"),
            DT_NEEDED => refuse("DT_NEEDED", "the image needs a shared library"),
            DT_REL | DT_RELSZ => refuse("DT_REL", "x86-64 has no such relocations"),
            DT_JMPREL => refuse("DT_JMPREL", "no dynamic linker resolves calls"),
            DT_PLTRELSZ if value != 0 => refuse("DT_PLTRELSZ", "no dynamic linker resolves calls"),
            DT_TEXTREL => refuse("DT_TEXTREL", "code is never relocated"),
            DT_FLAGS if value & DF_TEXTREL != 0 => refuse("DF_TEXTREL", "code is never relocated"),
            _ => Ok(()),
        }
    }
}

fn set(slot: &mut Option<u64>, value: u64, tag: &'static str) -> Result<(), ImageError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(ImageError::DuplicateDynamicTag { tag }),
    }
}

/// A table of relocations as three dynamic entries describe it.
struct Table {
    name: &'static str,
    expected_entry_len: u64,
    addr: Option<u64>,
    len: Option<u64>,
    entry_len: Option<u64>,
}

impl Table {
    fn new(name: &'static str, expected_entry_len: u64) -> Self {
        Self {
            name,
            expected_entry_len,
            addr: None,
            len: None,
            entry_len: None,
        }
    }

    /// The bytes of the file that hold the table; none for an empty table.
    fn locate(&self, segments: &[Segment]) -> Result<Range<usize>, ImageError> {
        let table = self.name;
        let expected = self.expected_entry_len;
        if let Some(size) = self.entry_len.filter(|size| *size != expected) {
            return Err(ImageError::WrongTableEntrySize {
                table,
                size,
                expected,
            });
        }
        let bytes = self.len.unwrap_or_default();
        if bytes == 0 {
            return Ok(0..0);
        }
        if !bytes.is_multiple_of(expected) {
            return Err(ImageError::TableTruncated { table, bytes });
        }
        let addr = self
            .addr
            .ok_or(ImageError::TableWithoutAddress { table, bytes })?;
        segments::file_range(segments, addr, bytes).ok_or(ImageError::TableOutsideFile {
            table,
            addr,
            bytes,
        })
    }
}
