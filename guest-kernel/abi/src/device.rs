//! Devices: virtio, over a page that guest and host share instead of registers.
//!
//! Queues, buffers, features and requests are those of virtio 1.2, split
//! virtqueues. What differs is how a device is found and set up: an exit costs
//! more than a request, so set-up has none.
//!
//! # From manifest to first request
//!
//! 1. The manifest declares devices ([`crate::DeviceRequest`]); the host attaches
//!    something to each, or does not start the image.
//! 2. The boot page names the device table, a [`DeviceEntry`] for each in the
//!    manifest's order. A device's place in it is its number in everything else.
//! 3. Each entry names the device's [`DevicePage`]: a page, readable and writable
//!    by the guest, in which the host has written a [`DeviceOffer`].
//! 4. The driver writes a [`DeviceSetup`]: the features it accepts, each queue, and
//!    last the status, with [`STATUS_DRIVER_OK`] when all the rest is there. This
//!    is the sequence of virtio 1.2 §3.1.1, in memory.
//! 5. At the next [`Hypercall::Wait`](crate::Hypercall::Wait) or
//!    [`Hypercall::Kick`](crate::Hypercall::Kick) the host reads the set-up, once,
//!    checks it, and keeps a copy. From then on the page means nothing to it.
//!
//! Until then the device does nothing, and the driver may change its mind. After
//! that there is no reset: a device is set up once in a guest's life, and its rings
//! stay where they are until the guest ends.
//!
//! # Addresses
//!
//! What virtio calls a physical address is an address as the guest itself uses it,
//! in a ring and in a descriptor. The host reads where the guest may read, and
//! writes where the guest may write. Rings must be writable and each of a ring's
//! three parts must lie within one of the spans that the boot page names (or within
//! one segment of the image); buffers may lie anywhere.
//!
//! # What the guest must do
//!
//! - Accept [`FEATURE_VERSION_1`] and [`FEATURE_EVENT_IDX`], and nothing that is not
//!   offered.
//! - Choose for each queue that it enables a size that is a power of two and at most
//!   [`DeviceOffer::queue_size_max`], with the alignments of virtio 1.2 §2.7.
//! - Put only chains of its own descriptors into the ring: no loop, no index beyond
//!   the queue, no buffer that it may not itself use in that way.
//!
//! A guest that breaks a rule of these ends with a fault. A request that is well
//! formed and cannot be done, as for a sector behind the disk's end, is answered
//! with an error as virtio says.
//!
//! # When the host looks
//!
//! At each wait, at every queue; at each kick, at one. What is put into a ring
//! between two exits is served in one go. Nothing runs beside the guest, so what
//! the host writes it writes during an exit.

//! # Kinds
//!
//! - Block is virtio-blk (virtio 1.2 §5.2).
//! - Stream is virtio-vsock, as [`crate::stream`] says.
//! - Entropy is virtio-rng (§5.4). The host fills what it is given, at most 64 KiB of a
//!   buffer.
//! - Console is the receiving half of virtio-console's first port (§5.3): queue 0, to
//!   which the guest gives buffers for what the operator types. A buffer that comes
//!   back empty says that nothing more will come. Output is
//!   [`Hypercall::ConsoleWrite`](crate::Hypercall::ConsoleWrite).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::manifest::Name;

/// One device of the device table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceEntry {
    /// A [`DeviceKind`](crate::DeviceKind) number, as the manifest has it.
    pub kind: u16,
    /// 0.
    pub reserved: [u8; 6],
    /// The device's name, as the manifest has it.
    pub name: Name<32>,
    /// Address of the [`DevicePage`].
    pub page: u64,
}

/// What host and driver have to say to each other before the first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DevicePage {
    /// Written by the host before the guest starts, and never read by it: what a
    /// guest writes there deceives only itself.
    pub offer: DeviceOffer,
    /// Written by the driver, read by the host once.
    pub setup: DeviceSetup,
}

/// What a device is and can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceOffer {
    /// Virtio's number of the device type (virtio 1.2 §5), such as 2 for block.
    pub device_type: u32,
    /// Number of queues that it has, at most [`QUEUES_MAX`].
    pub queue_count: u32,
    /// Features that it offers, virtio's bits.
    pub features: u64,
    /// Most entries of each queue, a power of two.
    pub queue_size_max: u32,
    /// Bytes of `config` that are the device's.
    pub config_len: u32,
    /// The device's configuration space, as virtio lays it out for its type. It
    /// does not change while the guest runs.
    pub config: [u8; CONFIG_LEN],
}

/// What the driver makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceSetup {
    /// Virtio's device status bits (virtio 1.2 §2.1). Of these the host looks for
    /// [`STATUS_DRIVER_OK`] alone.
    pub status: u32,
    /// 0.
    pub reserved: u32,
    /// Features that the driver accepts.
    pub features: u64,
    /// The queues, by number.
    pub queues: [QueueSetup; QUEUES_MAX],
}

/// One queue: three areas in the guest's memory (virtio 1.2 §2.7).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct QueueSetup {
    /// Entries.
    pub size: u32,
    /// 1 when the queue is to be used; any other value leaves it alone.
    pub enabled: u32,
    /// Address of the descriptor table, a multiple of 16.
    pub descriptors: u64,
    /// Address of the driver area, the available ring, a multiple of 2.
    pub driver_area: u64,
    /// Address of the device area, the used ring, a multiple of 4.
    pub device_area: u64,
}

/// Most queues of a device.
pub const QUEUES_MAX: usize = 8;

/// Bytes of a configuration space.
pub const CONFIG_LEN: usize = 232;

/// Status bit: the driver has written everything (virtio 1.2 §2.1).
pub const STATUS_DRIVER_OK: u32 = 4;

/// Feature bit: the guest is told of used buffers, and tells of available ones, by
/// index (virtio 1.2 §6, `VIRTIO_F_EVENT_IDX`).
pub const FEATURE_EVENT_IDX: u64 = 1 << 29;

/// Feature bit: virtio 1.0 or later (virtio 1.2 §6, `VIRTIO_F_VERSION_1`).
pub const FEATURE_VERSION_1: u64 = 1 << 32;

// A guest built against this version uses these offsets for ever.
const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<DeviceEntry>() == 48);
    assert!(offset_of!(DeviceEntry, name) == 8);
    assert!(offset_of!(DeviceEntry, page) == 40);
    assert!(size_of::<DeviceOffer>() == 256);
    assert!(offset_of!(DeviceOffer, features) == 8);
    assert!(offset_of!(DeviceOffer, queue_size_max) == 16);
    assert!(offset_of!(DeviceOffer, config) == 24);
    assert!(size_of::<QueueSetup>() == 32);
    assert!(size_of::<DeviceSetup>() == 272);
    assert!(offset_of!(DeviceSetup, features) == 8);
    assert!(offset_of!(DeviceSetup, queues) == 16);
    assert!(offset_of!(DevicePage, setup) == 256);
    assert!(size_of::<DevicePage>() == 528);
};
