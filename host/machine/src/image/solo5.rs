//! Images of Solo5's: what makes one, and the rules that only these have to keep.
//!
//! An image for Solo5's target hvt says so in two notes, each alone in its program
//! header: `ABI1`, for which target and in which version it was built, and `MFT1`, the
//! devices that it wants. It is linked for fixed addresses from 1 MiB on, which are
//! guest-physical as well.
//!
//! Layouts are those of Solo5's `elf_abi.h` and `mft_abi.h`, and the rules are those of
//! its own tender, with two more: what its tender passes over, a segment of zeroes
//! only, is checked like any other, and what its build tool refuses, such as two
//! devices of one name, is refused here too.

use std::ops::Range;

use goblin::elf::program_header::{PT_NOTE, ProgramHeader};
use wharf_abi::DeviceKind;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::manifest::{Contract, Device, ManifestView};
use super::segments::{self, Segment};
use super::{ImageError, SegmentLabel, file};

/// Lowest address of an hvt image, in bytes: below it are the boot information and
/// what no guest may touch.
pub const HVT_ADDRESS_LOWEST: u64 = 1 << 20;

/// Where the addresses of an hvt image and its memory end, in bytes: hypercalls take
/// 32-bit addresses.
pub const HVT_ADDRESS_END: u64 = 1 << 32;

/// Most devices that an hvt image can declare.
pub const HVT_DEVICES_MAX: usize = 63;

const NOTE_NAME: &[u8] = b"Solo5\0";
const NOTE_NAME_LEN: U32 = U32::new(6);
const ABI1: u32 = u32::from_le_bytes(*b"ABI1");
const MFT1: u32 = u32::from_le_bytes(*b"MFT1");

/// The manifest is aligned to 8 in the file, and its note's header has 20 bytes.
const MANIFEST_PAD: usize = 4;

const TARGET_HVT: u32 = 1;
const ABI_VERSION: u32 = 2;
const MANIFEST_VERSION: u32 = 1;

const TYPE_BLOCK: u32 = 1;
const TYPE_NET: u32 = 2;
const TYPE_RESERVED_FIRST: u32 = 0x4000_0000;

/// What a page's addresses are multiples of.
const PAGE: u64 = 4096;

/// Bytes of memory that a guest needs behind its image at least: the first thing that it
/// does is to push, from the end of memory down.
const STACK_MIN: u64 = PAGE;

/// A rule that an image of Solo5's breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
#[non_exhaustive]
pub enum Solo5Error {
    #[error("no ABI1 note: nothing says for which of Solo5's targets it was built")]
    NoAbi,
    #[error("no MFT1 note: the image has no manifest")]
    NoManifest,
    #[error("program header {index} (PT_NOTE): a second {kind} note")]
    SecondNote { index: usize, kind: &'static str },
    #[error("program header {index} (PT_NOTE): an ABI1 note of {bytes} bytes instead of 16")]
    WrongAbiSize { index: usize, bytes: usize },
    #[error("the image was built for Solo5's target {}: build it for hvt", target_name(*target))]
    WrongTarget { target: u32 },
    #[error("the image needs version {version} of Solo5's hvt ABI; this host has {ABI_VERSION}")]
    WrongAbiVersion { version: u32 },
    #[error("the image is not linked for fixed addresses (ET_EXEC)")]
    NotFixed,
    #[error("manifest: {bytes} bytes are none of a manifest with {entries} entries")]
    WrongManifestSize { bytes: usize, entries: u32 },
    #[error("manifest: version {version} is not {MANIFEST_VERSION}")]
    WrongManifestVersion { version: u32 },
    #[error("manifest: {entries} entries are not between 1 and {}", HVT_DEVICES_MAX + 1)]
    WrongEntryCount { entries: u32 },
    #[error("manifest: entry 0 is not the reserved one")]
    FirstEntry,
    #[error("manifest: entry {entry}: type {kind:#x} is neither a block nor a net device")]
    UnknownDeviceType { entry: usize, kind: u32 },
    #[error("manifest: entry {entry}: the name is not 1 to 67 letters and digits")]
    BadDeviceName { entry: usize },
    #[error("manifest: entry {entry}: a second device named {name}")]
    DuplicateDevice { entry: usize, name: String },
    #[error("manifest: entry {entry}: marked as attached in the file")]
    Attached { entry: usize },
    #[error("{segment}: alignment {align:#x} is not a power of two")]
    Alignment { segment: SegmentLabel, align: u64 },
    #[error("{segment}: with alignment {align:#x} it does not fill whole pages")]
    NotWholePages { segment: SegmentLabel, align: u64 },
    #[error("{segment}: starts below {HVT_ADDRESS_LOWEST:#x}")]
    AddressTooLow { segment: SegmentLabel },
    #[error("{segment}: ends above {HVT_ADDRESS_END:#x}")]
    AddressTooHigh { segment: SegmentLabel },
    #[error("{segment}: stands in the file behind segment {other}, which has higher addresses")]
    NotAscending { segment: SegmentLabel, other: usize },
    #[error("{segment}: overlaps segment {other}, alignment included")]
    Overlap { segment: SegmentLabel, other: usize },
}

/// `struct mft`, up to its entries.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ManifestHeader {
    version: U32,
    entries: U32,
}

/// `struct mft_entry`.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    name: [u8; 68],
    kind: U32,
    /// For the tender to fill in.
    properties: [u8; 16],
    backend: [u8; 8],
    attached: u8,
    padding: [u8; 7],
}

const _: () = assert!(size_of::<ManifestHeader>() == 8 && size_of::<Entry>() == 104);

/// A note of Solo5's up to what it has to say (its `struct solo5_nhdr`).
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct NoteHeader {
    name_len: U32,
    desc_len: U32,
    kind: U32,
    name: [u8; 8],
}

/// Bytes of any note's header without its name (`Elf64_Nhdr`).
const NOTE_HEADER_MIN: usize = 12;

/// The two notes of an image.
pub(super) struct Solo5Notes<'a> {
    abi: Option<(usize, &'a [u8])>,
    manifest: Option<(usize, &'a [u8])>,
}

/// Looks for Solo5's notes: none of them, and it is no image of Solo5's. Of each
/// program header only the first note counts.
///
/// Once there is one of them, a program header that says it has notes and has none is
/// refused, as Solo5's tender does: one outside the file, or too short for any note,
/// could have been meant for what was not found. A note that is there and is another's
/// is passed over, whatever it says of its length, and so is one that is too short to
/// be Solo5's.
pub(super) fn find<'a>(
    programs: &[ProgramHeader],
    bytes: &'a [u8],
) -> Result<Option<Solo5Notes<'a>>, ImageError> {
    let mut found = Solo5Notes {
        abi: None,
        manifest: None,
    };
    let mut broken = None;
    for (index, program) in programs.iter().enumerate() {
        if program.p_type != PT_NOTE {
            continue;
        }
        let Some(notes) = file::bytes_of(bytes, program) else {
            broken = broken.or(Some(ImageError::NoteOutsideFile { index }));
            continue;
        };
        if notes.len() < NOTE_HEADER_MIN {
            broken = broken.or(Some(ImageError::NoteTruncated { index, at: 0 }));
            continue;
        }
        let Ok((header, rest)) = NoteHeader::ref_from_prefix(notes) else {
            continue;
        };
        if header.name_len != NOTE_NAME_LEN || !header.name.starts_with(NOTE_NAME) {
            continue;
        }
        let (place, kind) = match header.kind.get() {
            ABI1 => (&mut found.abi, "ABI1"),
            MFT1 => (&mut found.manifest, "MFT1"),
            _ => continue,
        };
        let len = usize::try_from(header.desc_len.get()).unwrap_or(usize::MAX);
        let desc = rest
            .get(..len)
            .ok_or(ImageError::NoteTruncated { index, at: 0 })?;
        // Solo5's tender takes the first: which one was meant nobody can say.
        if place.replace((index, desc)).is_some() {
            return Err(Solo5Error::SecondNote { index, kind }.into());
        }
    }
    if found.abi.is_none() && found.manifest.is_none() {
        return Ok(None);
    }
    match broken {
        Some(error) => Err(error),
        None => Ok(Some(found)),
    }
}

impl Solo5Notes<'_> {
    /// Checks both.
    pub(super) fn check(&self) -> Result<ManifestView, Solo5Error> {
        let (index, abi) = self.abi.ok_or(Solo5Error::NoAbi)?;
        let Ok([target, version, _, _]) = <[U32; 4]>::read_from_bytes(abi) else {
            let bytes = abi.len();
            return Err(Solo5Error::WrongAbiSize { index, bytes });
        };
        match (target.get(), version.get()) {
            (TARGET_HVT, ABI_VERSION) => {}
            (TARGET_HVT, version) => return Err(Solo5Error::WrongAbiVersion { version }),
            (target, _) => return Err(Solo5Error::WrongTarget { target }),
        }
        let (_, manifest) = self.manifest.ok_or(Solo5Error::NoManifest)?;
        Ok(ManifestView {
            name: "hvt".to_owned(),
            version: "-".to_owned(),
            contract: Contract::Hvt,
            memory_min_bytes: 0,
            stack_bytes: 0,
            devices: devices(manifest)?,
            state_schema: 0,
        })
    }
}

/// Reads the devices out of the descriptor of an `MFT1` note.
fn devices(desc: &[u8]) -> Result<Vec<Device>, Solo5Error> {
    let wrong_size = |entries| Solo5Error::WrongManifestSize {
        bytes: desc.len(),
        entries,
    };
    let manifest = desc.get(MANIFEST_PAD..).ok_or(wrong_size(0))?;
    let (header, rest) = ManifestHeader::read_from_prefix(manifest).map_err(|_| wrong_size(0))?;
    let (version, entries) = (header.version.get(), header.entries.get());
    if version != MANIFEST_VERSION {
        return Err(Solo5Error::WrongManifestVersion { version });
    }
    let count = usize::try_from(entries).unwrap_or(usize::MAX);
    if count == 0 || count > HVT_DEVICES_MAX.saturating_add(1) {
        return Err(Solo5Error::WrongEntryCount { entries });
    }
    let list = <[Entry]>::ref_from_bytes(rest).map_err(|_| wrong_size(entries))?;
    if list.len() != count {
        return Err(wrong_size(entries));
    }
    let mut devices: Vec<Device> = Vec::with_capacity(count);
    for (entry, of) in list.iter().enumerate() {
        if of.attached != 0 {
            return Err(Solo5Error::Attached { entry });
        }
        if entry == 0 {
            if of.kind.get() != TYPE_RESERVED_FIRST || of.name != [0; 68] {
                return Err(Solo5Error::FirstEntry);
            }
            continue;
        }
        let kind = match of.kind.get() {
            TYPE_BLOCK => DeviceKind::Block,
            TYPE_NET => DeviceKind::Net,
            kind => return Err(Solo5Error::UnknownDeviceType { entry, kind }),
        };
        let name = name(&of.name).ok_or(Solo5Error::BadDeviceName { entry })?;
        if devices.iter().any(|other| other.name == name) {
            return Err(Solo5Error::DuplicateDevice { entry, name });
        }
        devices.push(Device { kind, name });
    }
    Ok(devices)
}

/// Letters and digits, then nothing but NULs, of which there is one at least.
fn name(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let (name, padding) = bytes.split_at_checked(end)?;
    let good = !name.is_empty()
        && name.iter().all(u8::is_ascii_alphanumeric)
        && padding.iter().all(|byte| *byte == 0);
    if !good {
        return None;
    }
    String::from_utf8(name.to_vec()).ok()
}

/// Checks where a segment is: in whole pages once it is widened to its alignment, at
/// addresses that a guest has.
pub(super) fn check_place(
    segment: SegmentLabel,
    program: &ProgramHeader,
) -> Result<(), ImageError> {
    let align = program.p_align;
    if !align.is_power_of_two() {
        return Err(Solo5Error::Alignment { segment, align }.into());
    }
    let end = segment
        .addr
        .checked_add(segment.mem_len)
        .ok_or(ImageError::AddressOverflow { segment })?;
    let first = floor(segment.addr, align);
    let last = end
        .checked_next_multiple_of(align)
        .ok_or(ImageError::AddressOverflow { segment })?;
    if first < HVT_ADDRESS_LOWEST {
        return Err(Solo5Error::AddressTooLow { segment }.into());
    }
    if last > HVT_ADDRESS_END {
        return Err(Solo5Error::AddressTooHigh { segment }.into());
    }
    if !first.is_multiple_of(PAGE) || !last.is_multiple_of(PAGE) {
        return Err(Solo5Error::NotWholePages { segment, align }.into());
    }
    Ok(())
}

/// Checks segments, sorted by address, to each other.
pub(super) fn check_neighbours(sorted: &[Segment]) -> Result<(), ImageError> {
    for (before, after) in sorted.iter().zip(sorted.iter().skip(1)) {
        let segment = after.label;
        let other = before.index;
        if after.index < before.index {
            return Err(Solo5Error::NotAscending { segment, other }.into());
        }
        // Both were found to end below HVT_ADDRESS_END: nothing saturates.
        let end = before.range().end;
        let end = end.checked_next_multiple_of(before.align).unwrap_or(end);
        if end > floor(after.addr, after.align) {
            return Err(Solo5Error::Overlap { segment, other }.into());
        }
    }
    Ok(())
}

/// From the lowest page's start to where segments end that are widened to their
/// alignment, as the contract counts (its `kernel_end`).
pub(super) fn span(sorted: &[Segment]) -> Range<u64> {
    let pages = segments::span(sorted);
    let ends = sorted.iter().map(|segment| {
        let end = segment.range().end;
        // Found to be below HVT_ADDRESS_END.
        end.checked_next_multiple_of(segment.align).unwrap_or(end)
    });
    pages.start..ends.fold(pages.end, u64::max)
}

/// Least memory that an image of this span can run with.
pub(super) const fn memory_min(span: &Range<u64>) -> u64 {
    span.end.saturating_add(STACK_MIN)
}

/// `align` is a power of two.
const fn floor(addr: u64, align: u64) -> u64 {
    addr & !align.saturating_sub(1)
}

fn target_name(target: u32) -> &'static str {
    match target {
        2 => "spt",
        3 => "virtio",
        4 => "muen",
        5 => "genode",
        6 => "xen",
        _ => "of a number that nothing is known of",
    }
}
