//! Where an image keeps its [`Manifest`]: an ELF note.
//!
//! A `PT_NOTE` segment of the image holds one note with name [`NAME`], type
//! [`MANIFEST`] and a [`Manifest`] as its descriptor, laid out as the System V
//! ABI says with 4-byte alignment. Exactly one such note makes an image a wharf
//! guest; other notes are passed over.

use zerocopy::{Immutable, IntoBytes, KnownLayout};

use crate::Manifest;

/// The note's name, terminator included.
pub const NAME: &[u8; 6] = b"wharf\0";

/// The note's type.
pub const MANIFEST: u32 = 1;

/// The section that the note goes into. Linkers turn sections of this type into
/// a `PT_NOTE` segment by themselves.
pub const SECTION: &str = ".note.wharf";

/// A whole note, ready to be a `static` in [`SECTION`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Note {
    namesz: u32,
    descsz: u32,
    kind: u32,
    name: [u8; 8],
    desc: Manifest,
}

impl Note {
    /// Wraps a manifest.
    #[must_use]
    pub const fn new(manifest: Manifest) -> Self {
        Self {
            namesz: NAME.len() as u32,
            descsz: size_of::<Manifest>() as u32,
            kind: MANIFEST,
            name: *b"wharf\0\0\0",
            desc: manifest,
        }
    }
}

const _: () = {
    assert!(size_of::<Note>() == 20 + size_of::<Manifest>());
    assert!(core::mem::offset_of!(Note, desc) == 20);
};
