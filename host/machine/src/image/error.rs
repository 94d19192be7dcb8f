//! The rules that an image must keep, one variant each.

use std::fmt;

use goblin::elf::program_header::{PF_R, PF_W, PF_X, ProgramHeader};
use wharf_abi::manifest::{DEVICES_MAX, STACK_KIB_RANGE};
use wharf_abi::{AbiVersion, Manifest};

use super::header::PROGRAM_HEADERS_MAX;
use super::layout::{ADDRESS_END, ADDRESS_LOWEST, ALIGNMENT_MAX, RELOCATABLE_END};
use super::note::NOTE_SEGMENT_BYTES_MAX;
use super::solo5::Solo5Error;
use super::{IMAGE_BYTES_MAX, IMAGE_MEMORY_MAX};

/// A segment as messages name it: `segment 3 (0x201000, 0x4f2 bytes, rw)`.
///
/// What the program header says, checked or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentLabel {
    /// Index of the program header.
    pub index: usize,
    /// `p_vaddr`.
    pub addr: u64,
    /// `p_memsz`, in bytes.
    pub mem_len: u64,
    /// `p_flags`.
    pub flags: u32,
}

impl SegmentLabel {
    pub(super) fn new(index: usize, header: &ProgramHeader) -> Self {
        Self {
            index,
            addr: header.p_vaddr,
            mem_len: header.p_memsz,
            flags: header.p_flags,
        }
    }
}

impl fmt::Display for SegmentLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |flag, letter| if self.flags & flag == 0 { "" } else { letter };
        let access = [letter(PF_R, "r"), letter(PF_W, "w"), letter(PF_X, "x")].concat();
        write!(
            f,
            "segment {} ({:#x}, {:#x} bytes, {})",
            self.index,
            self.addr,
            self.mem_len,
            if access.is_empty() { "none" } else { &access }
        )
    }
}

/// Why a file is no image that this host runs.
///
/// Each message is one line that names the rule, and the segment or program
/// header by its index. Text from the file never gets into a message before it
/// is known to be harmless.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
#[non_exhaustive]
pub enum ImageError {
    // The file and its header.
    #[error("the file has {bytes} bytes; an image has at most {IMAGE_BYTES_MAX}")]
    FileTooLarge { bytes: u64 },
    #[error("the file has {bytes} bytes, fewer than an ELF header")]
    FileTooShort { bytes: usize },
    #[error("the file is not ELF: it does not start with 7f 45 4c 46")]
    NotElf,
    #[error("ELF class {class} is not 64-bit (2)")]
    NotSixtyFourBit { class: u8 },
    #[error("ELF data encoding {encoding} is not little-endian (1)")]
    NotLittleEndian { encoding: u8 },
    #[error("ELF version {version} is not 1")]
    WrongElfVersion { version: u32 },
    #[error("OS ABI {os_abi} version {version} is neither System V (0) nor GNU (3) in version 0")]
    WrongOsAbi { os_abi: u8, version: u8 },
    #[error("machine {machine} is not x86-64 (62)")]
    WrongMachine { machine: u16 },
    #[error("an ELF header of {size} bytes instead of 64")]
    WrongHeaderSize { size: u16 },
    #[error("ELF type {kind} is neither an executable (2) nor position-independent (3)")]
    WrongType { kind: u16 },
    #[error("program headers of {size} bytes instead of 56")]
    WrongProgramHeaderSize { size: u16 },
    #[error("{count} program headers; an image has at most {PROGRAM_HEADERS_MAX}")]
    TooManyProgramHeaders { count: u16 },
    #[error("the table of {count} program headers at {offset:#x} is not inside the file")]
    ProgramHeadersOutsideFile { offset: u64, count: u16 },

    // Program headers that ask for what a guest does not get.
    #[error(
        "program header {index} (PT_INTERP): the image is dynamically linked; link it statically"
    )]
    NeedsInterpreter { index: usize },
    #[error("program header {index} (PT_TLS): thread-local storage is not supported")]
    NeedsThreadLocals { index: usize },
    #[error("program header {index} (PT_GNU_STACK): the stack is to be executable")]
    ExecutableStack { index: usize },

    // Segments.
    #[error("no segment to load (PT_LOAD)")]
    NoSegments,
    #[error("{segment}: {file_len:#x} bytes in the file, more than in memory")]
    FileLongerThanMemory {
        segment: SegmentLabel,
        file_len: u64,
    },
    #[error("{segment}: {file_len:#x} bytes at {offset:#x} are not inside the file")]
    SegmentOutsideFile {
        segment: SegmentLabel,
        offset: u64,
        file_len: u64,
    },
    #[error("{segment}: runs past the end of the address space")]
    AddressOverflow { segment: SegmentLabel },
    #[error("{segment}: starts below {ADDRESS_LOWEST:#x}")]
    AddressTooLow { segment: SegmentLabel },
    #[error("{segment}: ends above {ADDRESS_END:#x}")]
    AddressTooHigh { segment: SegmentLabel },
    #[error("{segment}: ends above {RELOCATABLE_END:#x}, the limit of a relocatable image")]
    RelocatableTooHigh { segment: SegmentLabel },
    #[error("{segment}: alignment {align:#x} is not a power of two")]
    AlignmentNotPowerOfTwo { segment: SegmentLabel, align: u64 },
    #[error(
        "{segment}: alignment {align:#x} is above {ALIGNMENT_MAX:#x}, \
         the limit of a relocatable image"
    )]
    AlignmentTooLarge { segment: SegmentLabel, align: u64 },
    #[error("{segment}: address and file offset {offset:#x} differ modulo alignment {align:#x}")]
    Misaligned {
        segment: SegmentLabel,
        offset: u64,
        align: u64,
    },
    #[error("{segment}: not readable")]
    NotReadable { segment: SegmentLabel },
    #[error("{segment}: writable and executable")]
    WritableAndExecutable { segment: SegmentLabel },
    #[error("{segment}: overlaps segment {other}")]
    Overlap { segment: SegmentLabel, other: usize },
    #[error("{segment}: shares a page with segment {other}")]
    SharedPage { segment: SegmentLabel, other: usize },
    #[error(
        "{segment}: brings the image to {bytes:#x} bytes of memory, above {IMAGE_MEMORY_MAX:#x}"
    )]
    TooMuchMemory { segment: SegmentLabel, bytes: u64 },
    #[error("entry point {entry:#x} is not inside the file's part of an executable segment")]
    EntryNotCode { entry: u64 },

    // What Solo5's images have to keep.
    #[error("Solo5 image: {0}")]
    Solo5(#[from] Solo5Error),

    // The note and its manifest.
    #[error(
        "no wharf note and none of Solo5's: the image has no manifest and is no guest of wharf's"
    )]
    NoManifest,
    #[error("program header {index} (PT_NOTE): a second wharf note")]
    SecondManifest { index: usize },
    #[error("program header {index} (PT_NOTE): not inside the file")]
    NoteOutsideFile { index: usize },
    #[error(
        "program header {index} (PT_NOTE): {bytes} bytes of notes, above {NOTE_SEGMENT_BYTES_MAX}"
    )]
    NotesTooLong { index: usize, bytes: usize },
    #[error("program header {index} (PT_NOTE): the note at byte {at} is cut off")]
    NoteTruncated { index: usize, at: usize },
    #[error("program header {index} (PT_NOTE): wharf note of unknown type {kind}")]
    UnknownNote { index: usize, kind: u32 },
    #[error(
        "program header {index} (PT_NOTE): a manifest of {bytes} bytes instead of {}",
        size_of::<Manifest>()
    )]
    WrongManifestSize { index: usize, bytes: usize },
    #[error("the image needs version {image} of the guest contract; this host has {host}")]
    WrongAbiVersion { image: AbiVersion, host: AbiVersion },
    #[error("manifest: the image's name is empty or holds a character that a name cannot")]
    BadName,
    #[error("manifest: the image's version is empty or holds a character that a version cannot")]
    BadVersion,
    #[error(
        "manifest: a stack of {kib} KiB is not between {} and {} KiB",
        STACK_KIB_RANGE.start(),
        STACK_KIB_RANGE.end()
    )]
    StackOutOfRange { kib: u32 },
    #[error("manifest: {count} devices; an image has at most {DEVICES_MAX}")]
    TooManyDevices { count: u32 },
    #[error("manifest: device {device}: kind {kind} is unknown")]
    UnknownDeviceKind { device: usize, kind: u16 },
    #[error("manifest: device {device}: the reserved field is {value}, not 0")]
    DeviceReservedSet { device: usize, value: u16 },
    #[error("manifest: device {device}: the name is empty or holds a character that a name cannot")]
    BadDeviceName { device: usize },
    #[error("manifest: device {device}: a second device named {name}")]
    DuplicateDevice { device: usize, name: String },
    #[error("manifest: device {device}: not empty, but beyond the {count} declared devices")]
    UnusedDeviceNotEmpty { device: usize, count: u32 },

    // The dynamic section and its relocations.
    #[error("program header {index} (PT_DYNAMIC): a fixed image (ET_EXEC) is not relocated")]
    FixedImageIsDynamic { index: usize },
    #[error("program header {index} (PT_DYNAMIC): a second dynamic section")]
    SecondDynamic { index: usize },
    #[error("program header {index} (PT_DYNAMIC): not inside the file")]
    DynamicOutsideFile { index: usize },
    #[error("dynamic section: {bytes} bytes do not make entries of 16")]
    DynamicTruncated { bytes: usize },
    #[error("dynamic section: {tag} stands twice")]
    DuplicateDynamicTag { tag: &'static str },
    #[error("dynamic section: {tag}: {reason}")]
    UnsupportedDynamicTag {
        tag: &'static str,
        reason: &'static str,
    },
    #[error("dynamic section: {table} table of {bytes:#x} bytes has no address")]
    TableWithoutAddress { table: &'static str, bytes: u64 },
    #[error("dynamic section: {table} entries of {size} bytes instead of {expected}")]
    WrongTableEntrySize {
        table: &'static str,
        size: u64,
        expected: u64,
    },
    #[error("dynamic section: {table} table of {bytes:#x} bytes does not hold whole entries")]
    TableTruncated { table: &'static str, bytes: u64 },
    #[error(
        "dynamic section: {table} table at {addr:#x}, {bytes:#x} bytes, \
         is not inside the file's part of a segment"
    )]
    TableOutsideFile {
        table: &'static str,
        addr: u64,
        bytes: u64,
    },
    #[error(
        "too many relocations: the most is {}",
        super::relocations::RELOCATIONS_MAX
    )]
    TooManyRelocations,
    #[error("relocation {number}: type {kind} is not R_X86_64_RELATIVE (8)")]
    UnsupportedRelocation { number: usize, kind: u32 },
    #[error("relocation {number}: the 8 bytes at {offset:#x} are not inside a writable segment")]
    RelocationOutsideSegment { number: usize, offset: u64 },
    #[error("relocation {number}: RELR entries go back to {offset:#x}")]
    RelrNotAscending { number: usize, offset: u64 },
}
