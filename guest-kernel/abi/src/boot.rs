//! What a guest finds when it starts.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{AbiVersion, Clock};

/// A range of guest-virtual addresses.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default,
)]
#[repr(C)]
pub struct Span {
    /// First address.
    pub addr: u64,
    /// Length in bytes; 0 when there is nothing.
    pub len: u64,
}

/// The page that the host writes before a guest's first instruction and maps
/// read-only into it.
///
/// Everything a guest needs to know stands here, so that start-up costs no exit.
/// Fields are only ever added at the end; [`size`](Self::size) tells a guest
/// which ones its host knows.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BootPage {
    /// [`BootPage::MAGIC`].
    pub magic: u64,
    /// The host's version of the contract.
    pub abi: AbiVersion,
    /// Bytes of this structure that the host filled in.
    pub size: u32,
    /// Counts the lives of this task: 1 for the first, one more for each restart,
    /// upgrade or clone. A guest that sees it change must reseed.
    pub generation: u64,
    /// How to read time.
    pub clock: Clock,
    /// 256 bits from the host's entropy source, fresh for each generation.
    pub seed: [u8; 32],
    /// From the first to past the last byte of the image's segments.
    pub image: Span,
    /// The stack. The page below it is not mapped.
    pub stack: Span,
    /// Zeroed memory, readable and writable, that is the guest's to hand out.
    /// On 2 MiB pages where the guest's memory holds one.
    pub heap: Span,
    /// The arguments: NUL-terminated UTF-8 strings, one behind the other.
    pub args: Span,
    /// Number of strings in `args`.
    pub arg_count: u32,
    /// Number of entries in `devices`, one for each device that the manifest
    /// declares and in its order. A host of version 1.0 has none.
    pub device_count: u32,
    /// The device table: [`DeviceEntry`](crate::DeviceEntry) structures, one behind
    /// the other, as read-only as this page.
    pub devices: Span,
    /// The state that the generation before handed over, as read-only as this page;
    /// empty when there is none.
    pub inherited: Span,
}

impl BootPage {
    /// `WHARFBP1` as a little-endian number.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"WHARFBP1");
}

/// Most bytes of arguments, terminators included.
pub const ARGS_MAX: usize = 64 * 1024;

// A guest built against this version reads these offsets for ever.
const _: () = {
    use core::mem::{align_of, offset_of, size_of};
    assert!(size_of::<Span>() == 16);
    assert!(size_of::<BootPage>() == 184);
    assert!(align_of::<BootPage>() == 8);
    assert!(offset_of!(BootPage, magic) == 0);
    assert!(offset_of!(BootPage, abi) == 8);
    assert!(offset_of!(BootPage, size) == 12);
    assert!(offset_of!(BootPage, generation) == 16);
    assert!(offset_of!(BootPage, clock) == 24);
    assert!(offset_of!(BootPage, seed) == 48);
    assert!(offset_of!(BootPage, image) == 80);
    assert!(offset_of!(BootPage, stack) == 96);
    assert!(offset_of!(BootPage, heap) == 112);
    assert!(offset_of!(BootPage, args) == 128);
    assert!(offset_of!(BootPage, arg_count) == 144);
    assert!(offset_of!(BootPage, device_count) == 148);
    assert!(offset_of!(BootPage, devices) == 152);
    assert!(offset_of!(BootPage, inherited) == 168);
};
