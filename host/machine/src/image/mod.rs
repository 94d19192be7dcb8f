//! A checked ELF image: what a guest is before it has a machine.
//!
//! An image comes from whoever wrote the guest and is hostile. [`Image::parse`]
//! looks at everything the rest of the host relies on and refuses the file with
//! one [`ImageError`] otherwise, so whoever holds an [`Image`] can map, relocate
//! and enter it without a further check:
//!
//! - no two segments share a page, none is writable and executable, all lie
//!   within the file, the address limits and [`IMAGE_MEMORY_MAX`];
//! - the entry point is code that comes from the file;
//! - every relocation writes 8 bytes inside one writable segment;
//! - there is one manifest, of a contract that this host speaks: wharf's own, or Solo5's
//!   for hvt.
//!
//! The file is read once into memory of its own and never mapped: a file that
//! changes afterwards changes nothing here. Beyond the file's own bytes, checking
//! allocates a few KiB and what a few times the program headers take, whatever the
//! file says.
//!
//! This module must never know: KVM, guest memory, or which backend a declared
//! device gets. Start at [`Image`]; each rule is a variant of [`ImageError`].
//! Layouts are those of the System V gABI, chapters 4 and 5, and of the x86-64
//! psABI.

mod dynamic;
mod error;
mod file;
mod header;
mod layout;
mod manifest;
mod note;
mod relocations;
mod segments;
mod solo5;
mod symbols;

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use self::header::Header;
use self::layout::Rules;
use self::relocations::Tables;

pub use self::error::{ImageError, SegmentLabel};
pub use self::header::{PROGRAM_HEADERS_MAX, Placement};
pub use self::layout::{
    ADDRESS_END, ADDRESS_LOWEST, ALIGNMENT_MAX, IMAGE_MEMORY_MAX, RELOCATABLE_END,
};
pub use self::manifest::{Contract, Device, ManifestView};
pub use self::note::NOTE_SEGMENT_BYTES_MAX;
pub use self::relocations::Relocation;
pub use self::segments::{Access, Segment};
pub use self::solo5::{HVT_ADDRESS_END, HVT_ADDRESS_LOWEST, HVT_DEVICES_MAX, Solo5Error};
pub use self::symbols::{SYMBOL_CHARS_MAX, SYMBOLS_MAX, Symbols};

/// Most bytes of an image file: what a host gives for a file that may be
/// nonsense before it knows better. Larger data belongs on a device.
pub const IMAGE_BYTES_MAX: u64 = 256 << 20;

/// Most characters of a name that is made of a file's.
const NAME_CHARS_MAX: usize = 32;

/// A checked ELF image of a guest.
pub struct Image {
    bytes: Vec<u8>,
    placement: Placement,
    entry: u64,
    segments: Vec<Segment>,
    span: Range<u64>,
    relro: Option<Range<u64>>,
    manifest: ManifestView,
    relocations: Tables,
}

/// Why there is no image behind a path. The cause is the error's source.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened or read.
    #[error("cannot read image {}", path.display())]
    Io {
        /// The path as it was given.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A directory, pipe, socket or device: reading it may never end.
    #[error("image {} is not a regular file", path.display())]
    NotRegular {
        /// The path as it was given.
        path: PathBuf,
    },
    /// The file breaks a rule.
    #[error("image {} is refused", path.display())]
    Image {
        /// The path as it was given.
        path: PathBuf,
        /// The rule.
        source: ImageError,
    },
}

impl Image {
    /// The file, as it was read.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads a file once and checks it.
    ///
    /// Never waits on a pipe: only regular files of at most [`IMAGE_BYTES_MAX`]
    /// are read.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        let refused = |source| OpenError::Image {
            path: path.to_owned(),
            source,
        };
        // Without O_NONBLOCK, opening a pipe waits for its writer.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(OpenError::NotRegular {
                path: path.to_owned(),
            });
        }
        check_file_size(metadata.len()).map_err(refused)?;
        let mut bytes = Vec::new();
        let expected =
            usize::try_from(metadata.len()).map_err(|_| io(io::ErrorKind::FileTooLarge.into()))?;
        bytes
            .try_reserve_exact(expected)
            .map_err(|error| io(error.into()))?;
        // The file may have grown since: one byte more than the limit tells.
        file.take(IMAGE_BYTES_MAX.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(io)?;
        let mut image = Self::parse(bytes).map_err(refused)?;
        if image.manifest.contract == Contract::Hvt {
            image.manifest.name = name_of(path);
        }
        Ok(image)
    }

    /// Checks an image that is in memory.
    ///
    /// # Errors
    ///
    /// [`ImageError`], for the first broken rule.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, ImageError> {
        check_file_size(u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
        let header = header::check(&bytes)?;
        match solo5::find(&header.programs, &bytes)? {
            Some(notes) => {
                let manifest = notes.check()?;
                Self::solo5(bytes, &header, manifest)
            }
            None => Self::native(bytes, &header),
        }
    }

    fn native(bytes: Vec<u8>, header: &Header) -> Result<Self, ImageError> {
        header::check_native(header)?;
        let programs = header.programs.as_slice();
        let segments = layout::check(programs, bytes.len(), Rules::Native(header.placement))?;
        layout::check_entry(&segments, header.entry)?;
        let manifest = note::check(programs, &bytes)?;
        let tables = dynamic::check(programs, &bytes, &segments, header.placement)?;
        relocations::check(&bytes, &segments, &tables)?;
        Ok(Self {
            placement: header.placement,
            entry: header.entry,
            span: segments::span(&segments),
            relro: segments::relro(programs, &segments),
            segments,
            manifest,
            relocations: tables,
            bytes,
        })
    }

    /// Thread-local storage is the guest's own business here, and the interpreter that
    /// it names is there to keep other systems from running the file.
    fn solo5(
        bytes: Vec<u8>,
        header: &Header,
        mut manifest: ManifestView,
    ) -> Result<Self, ImageError> {
        if header.placement != Placement::Fixed {
            return Err(Solo5Error::NotFixed.into());
        }
        let segments = layout::check(&header.programs, bytes.len(), Rules::Hvt)?;
        layout::check_entry(&segments, header.entry)?;
        let span = solo5::span(&segments);
        manifest.memory_min_bytes = solo5::memory_min(&span);
        Ok(Self {
            placement: Placement::Fixed,
            entry: header.entry,
            span,
            relro: None,
            segments,
            manifest,
            relocations: Tables::default(),
            bytes,
        })
    }

    /// What the image says of itself.
    #[must_use]
    pub fn manifest(&self) -> &ManifestView {
        &self.manifest
    }

    /// The segments to map, lowest address first; at least one, none empty.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The file's part of a segment: its first `file_len` bytes. The rest of its
    /// memory is zero.
    ///
    /// A segment of another image gives some bytes of this one, or none.
    #[must_use]
    pub fn segment_bytes(&self, segment: &Segment) -> &[u8] {
        segment.bytes_in(&self.bytes)
    }

    /// The page-aligned part of a writable segment that is to become read-only
    /// once relocations are applied (`PT_GNU_RELRO`).
    ///
    /// Rounded inward, except at the ends of the segment itself, whose first and
    /// last page hold nothing else. `None` when the image asks for none, or for
    /// one that is not inside one writable segment: the protection is the
    /// guest's own, so there is nothing to refuse.
    #[must_use]
    pub fn relro(&self) -> Option<Range<u64>> {
        self.relro.clone()
    }

    /// Whether the image's addresses are final.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// The relocations of a [`Placement::Relocatable`] image, in the order to
    /// apply them; none of a fixed one.
    pub fn relocations(&self) -> impl Iterator<Item = Relocation> {
        self.relocations.iter(&self.bytes, &self.segments)
    }

    /// Address of the first instruction, inside the file's part of an executable
    /// segment.
    #[must_use]
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// From the start of the lowest page to the end of the highest page of all
    /// segments; of one of Solo5's, where the last ends when it is widened to its
    /// alignment. There may be holes.
    #[must_use]
    pub fn span(&self) -> Range<u64> {
        self.span.clone()
    }

    /// What the base of a relocatable image must be a multiple of, in bytes: a
    /// page at least, at most [`ALIGNMENT_MAX`] when the image is relocatable.
    #[must_use]
    pub fn alignment(&self) -> u64 {
        segments::alignment(&self.segments)
    }

    /// Reads the names of functions and objects, for a report on a fault.
    ///
    /// Empty when the image is stripped or its section headers make no sense.
    /// Costs a walk over the symbol table: ask once per report.
    #[must_use]
    pub fn symbols(&self) -> Symbols<'_> {
        Symbols::read(&self.bytes, &self.segments)
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("manifest", &self.manifest)
            .field("placement", &self.placement)
            .field("entry", &self.entry)
            .field("segments", &self.segments)
            .finish_non_exhaustive()
    }
}

/// What a guest is called that has no name: as its file, in the characters of a name.
fn name_of(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let named: String = stem.chars().take(NAME_CHARS_MAX).map(name_char).collect();
    if named.is_empty() {
        "hvt".to_owned()
    } else {
        named
    }
}

const fn name_char(char: char) -> char {
    match char {
        '0'..='9' | 'A'..='Z' | 'a'..='z' | '.' | '_' | '+' | '-' => char,
        _ => '-',
    }
}

fn check_file_size(bytes: u64) -> Result<(), ImageError> {
    if bytes > IMAGE_BYTES_MAX {
        return Err(ImageError::FileTooLarge { bytes });
    }
    Ok(())
}
