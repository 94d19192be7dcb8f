//! Finds the manifest's note among an image's notes.

use goblin::elf::program_header::{PT_NOTE, ProgramHeader};
use wharf_abi::note::{MANIFEST, NAME};
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::manifest::{self, ManifestView};
use super::{ImageError, file};

/// Most bytes of one `PT_NOTE` segment. A linker's own notes take a few hundred;
/// the bound keeps the walk short when many headers name the same bytes.
pub const NOTE_SEGMENT_BYTES_MAX: usize = 64 << 10;

const HEADER_BYTES: usize = 12;

/// Finds and checks the one manifest.
pub(super) fn check(programs: &[ProgramHeader], bytes: &[u8]) -> Result<ManifestView, ImageError> {
    let mut found = None;
    for (index, program) in programs.iter().enumerate() {
        if program.p_type != PT_NOTE {
            continue;
        }
        // Property notes (psABI, "Program Property") are the only ones in use that pad
        // to 8; linkers give them a segment of their own.
        let align = if program.p_align == 8 { 8 } else { 4 };
        let notes = Notes::of(index, program, bytes, align)?;
        for note in notes {
            let Note { name, kind, desc } = note?;
            if name != NAME {
                continue;
            }
            if kind != MANIFEST {
                return Err(ImageError::UnknownNote { index, kind });
            }
            if found.replace((index, desc)).is_some() {
                return Err(ImageError::SecondManifest { index });
            }
        }
    }
    let (index, desc) = found.ok_or(ImageError::NoManifest)?;
    manifest::check(index, desc)
}

/// A note, whatever it says.
struct Note<'a> {
    name: &'a [u8],
    kind: u32,
    desc: &'a [u8],
}

/// The notes of one segment (gABI chapter 5, "Note Section").
struct Notes<'a> {
    index: usize,
    bytes: &'a [u8],
    align: usize,
    at: usize,
}

impl<'a> Notes<'a> {
    /// The notes in program header `index`, whose parts are padded to `align`.
    fn of(
        index: usize,
        program: &ProgramHeader,
        bytes: &'a [u8],
        align: usize,
    ) -> Result<Self, ImageError> {
        let bytes = file::bytes_of(bytes, program).ok_or(ImageError::NoteOutsideFile { index })?;
        if bytes.len() > NOTE_SEGMENT_BYTES_MAX {
            return Err(ImageError::NotesTooLong {
                index,
                bytes: bytes.len(),
            });
        }
        Ok(Self {
            index,
            bytes,
            align,
            at: 0,
        })
    }

    /// The note at `self.at`, and where the next one starts. `None` when the
    /// segment ends within it; padding after the last note may be missing.
    fn read(&self) -> Option<(Note<'a>, usize)> {
        let header_end = self.at.checked_add(HEADER_BYTES)?;
        let header = self.bytes.get(self.at..header_end)?;
        let [name_len, desc_len, kind] = <[U32; 3]>::read_from_bytes(header).ok()?;
        let name_end = header_end.checked_add(usize::try_from(name_len.get()).ok()?)?;
        let desc_start = name_end.checked_next_multiple_of(self.align)?;
        let desc_end = desc_start.checked_add(usize::try_from(desc_len.get()).ok()?)?;
        let note = Note {
            name: self.bytes.get(header_end..name_end)?,
            kind: kind.get(),
            desc: match desc_len.get() {
                0 => &[],
                _ => self.bytes.get(desc_start..desc_end)?,
            },
        };
        Some((note, desc_end.checked_next_multiple_of(self.align)?))
    }
}

impl<'a> Iterator for Notes<'a> {
    type Item = Result<Note<'a>, ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let at = self.at;
        let Some((note, next)) = self.read() else {
            self.at = self.bytes.len();
            return Some(Err(ImageError::NoteTruncated {
                index: self.index,
                at,
            }));
        };
        self.at = next;
        Some(Ok(note))
    }
}
