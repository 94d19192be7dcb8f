//! What must be patched when a relocatable image moves.

use std::ops::Range;

use goblin::elf::reloc::{R_X86_64_RELATIVE, RelocSection};
use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use super::ImageError;
use super::file::CTX;
use super::segments::{self, Segment};

/// Bytes that one relocation writes.
const TARGET_BYTES: u64 = 8;

/// Most relocations that an image may have: far more than any program of a few
/// MiB needs, and few enough to be applied in a fraction of a second. A RELR table
/// can name 63 words with 8 bytes, so the file's size is no bound.
pub(super) const RELOCATIONS_MAX: usize = 1_000_000;

/// Words that one RELR bitmap speaks of.
const BITMAP_WORDS: u64 = 63;

/// One `R_X86_64_RELATIVE` relocation: the 8 bytes at `offset` become the image's
/// base plus `addend`, modulo 2⁶⁴, in little-endian order (psABI §4.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// Address before the image is moved. The 8 bytes from here are inside one
    /// writable segment; they need not be aligned.
    pub offset: u64,
    /// What to add to the base. Whatever the image says: it is a value for the
    /// guest, no address that the host follows.
    pub addend: u64,
}

/// Where an image's relocations are in its file. Ranges are whole entries.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    pub(super) rela: Range<usize>,
    pub(super) relr: Range<usize>,
}

impl Tables {
    /// The relocations, without a look at whether they are any good: that is
    /// [`check`]'s, once.
    pub(super) fn iter<'a>(
        &self,
        bytes: &'a [u8],
        segments: &'a [Segment],
    ) -> impl Iterator<Item = Relocation> + use<'a> {
        let rela = rela(bytes, &self.rela).map(|entry| entry.relocation);
        let relr = Relr::new(bytes, &self.relr).map(move |offset| Relocation {
            offset,
            addend: word_at(bytes, segments, offset),
        });
        rela.chain(relr)
    }
}

/// Checks every relocation.
///
/// RELR entries have to ascend, as every linker writes them: a table that jumps
/// about could name the same memory without end.
pub(super) fn check(bytes: &[u8], segments: &[Segment], tables: &Tables) -> Result<(), ImageError> {
    let mut number: usize = 0;
    for entry in rela(bytes, &tables.rela) {
        let kind = entry.kind;
        if kind != R_X86_64_RELATIVE {
            return Err(ImageError::UnsupportedRelocation { number, kind });
        }
        check_target(segments, number, entry.relocation.offset)?;
        number = number.saturating_add(1);
    }
    let mut lowest = 0;
    for offset in Relr::new(bytes, &tables.relr) {
        if offset < lowest {
            return Err(ImageError::RelrNotAscending { number, offset });
        }
        check_target(segments, number, offset)?;
        lowest = offset.saturating_add(TARGET_BYTES);
        number = number.saturating_add(1);
    }
    Ok(())
}

fn check_target(segments: &[Segment], number: usize, offset: u64) -> Result<(), ImageError> {
    if number >= RELOCATIONS_MAX {
        return Err(ImageError::TooManyRelocations);
    }
    let inside = segments::containing(segments, offset).is_some_and(|segment| {
        segment.access.is_writable()
            && offset
                .checked_add(TARGET_BYTES)
                .is_some_and(|end| end <= segment.range().end)
    });
    if inside {
        Ok(())
    } else {
        Err(ImageError::RelocationOutsideSegment { number, offset })
    }
}

struct Rela {
    kind: u32,
    relocation: Relocation,
}

fn rela<'a>(bytes: &'a [u8], range: &Range<usize>) -> impl Iterator<Item = Rela> + use<'a> {
    let table = bytes.get(range.clone()).unwrap_or_default();
    // Parsing fails only when the table is not inside the bytes given.
    let section = RelocSection::parse(table, 0, table.len(), true, CTX).unwrap_or_default();
    section.into_iter().map(|entry| Rela {
        kind: entry.r_type,
        relocation: Relocation {
            offset: entry.r_offset,
            addend: entry.r_addend.unwrap_or_default().cast_unsigned(),
        },
    })
}

/// The word that the file has at an address: where RELR keeps its addends. Zero
/// where a segment's bytes do not come from the file.
fn word_at(bytes: &[u8], segments: &[Segment], addr: u64) -> u64 {
    let part = segments::containing(segments, addr).and_then(|segment| {
        let at = usize::try_from(addr.checked_sub(segment.addr)?).ok()?;
        segment.bytes_in(bytes).get(at..)
    });
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(part.unwrap_or_default()) {
        *to = *from;
    }
    u64::from_le_bytes(word)
}

/// The addresses that a RELR table names (gABI chapter 5, "Relative Relocation
/// Table"): an even entry is an address, an odd one a bitmap of the 63 words
/// that follow what came before.
struct Relr<'a> {
    entries: std::slice::Iter<'a, U64>,
    /// Address of the word after those that the entries so far spoke of.
    next: u64,
    /// Address of the word that bit 0 of `pending` stands for.
    base: u64,
    /// Words of the bitmap that are still to be named.
    pending: u64,
}

impl<'a> Relr<'a> {
    fn new(bytes: &'a [u8], range: &Range<usize>) -> Self {
        let table = bytes.get(range.clone()).unwrap_or_default();
        let entries = <[U64]>::ref_from_bytes(table).unwrap_or_default();
        Self {
            entries: entries.iter(),
            next: 0,
            base: 0,
            pending: 0,
        }
    }
}

impl Iterator for Relr<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        while self.pending == 0 {
            let entry = self.entries.next()?.get();
            if entry & 1 == 0 {
                self.next = entry.wrapping_add(TARGET_BYTES);
                return Some(entry);
            }
            self.base = self.next;
            self.pending = entry >> 1;
            // Wraps only in a table whose addresses no segment holds.
            self.next = self.next.wrapping_add(BITMAP_WORDS * TARGET_BYTES);
        }
        let word = u64::from(self.pending.trailing_zeros());
        self.pending &= self.pending.wrapping_sub(1);
        Some(self.base.wrapping_add(word.wrapping_mul(TARGET_BYTES)))
    }
}
