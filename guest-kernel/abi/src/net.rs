//! Frames: an Ethernet port, for guests that bring a network stack of their own.
//!
//! The device is virtio-net (virtio 1.2 §5.1) without offloads and without a control
//! queue: [`FEATURE_MAC`] and [`FEATURE_MTU`] are all that is offered of its features.
//! What is at the other end of the wire is the operator's to say; as a rule a switch
//! with other guests of the same host.
//!
//! # Queues
//!
//! 0 receives, 1 transmits. A packet is one chain: [`HEADER_LEN`] bytes of header, then
//! one frame, from its destination address on and without a check sequence. A receive
//! buffer has room for a header and the longest frame, [`RECEIVE_MIN`] bytes.
//!
//! # The header
//!
//! `struct virtio_net_hdr` (virtio 1.2 §5.1.6), all 0: nothing that it could say was
//! accepted. In a received packet its last field, [`NUM_BUFFERS_AT`], is 1. What the
//! guest writes there means nothing, but it has to be there: a packet without one is a
//! fault.
//!
//! # Frames that do not arrive
//!
//! A wire promises nothing. The host drops a frame that is shorter than [`FRAME_MIN`]
//! or longer than [`FRAME_MAX`] bytes, one whose source is not the address that the
//! configuration space says, and one that its receiver has no room for; nobody is told.
//!
//! # Configuration space
//!
//! `struct virtio_net_config` (virtio 1.2 §5.1.4): the address at [`CONFIG_MAC_AT`], the
//! [`MTU`] at [`CONFIG_MTU_AT`], as 16 bits.

/// Virtio's number of the device type.
pub const DEVICE_TYPE: u32 = 1;

/// Queue on which the guest receives.
pub const QUEUE_RECEIVE: u16 = 0;

/// Queue on which it transmits.
pub const QUEUE_TRANSMIT: u16 = 1;

/// Feature bit: the configuration space says the device's address (virtio 1.2 §5.1.3,
/// `VIRTIO_NET_F_MAC`).
pub const FEATURE_MAC: u64 = 1 << 5;

/// Feature bit: it says the longest packet (`VIRTIO_NET_F_MTU`).
pub const FEATURE_MTU: u64 = 1 << 3;

/// Bytes of the header before each frame.
pub const HEADER_LEN: usize = 12;

/// Where in it is the number of buffers that a packet takes, as 16 bits.
pub const NUM_BUFFERS_AT: usize = 10;

/// Bytes of the Ethernet header: two addresses and a type. A frame has no fewer.
pub const FRAME_MIN: usize = 14;

/// Most bytes behind the Ethernet header.
pub const MTU: u16 = 1500;

/// Most bytes of a frame.
pub const FRAME_MAX: usize = FRAME_MIN + MTU as usize;

/// Least bytes of a receive buffer, header included.
pub const RECEIVE_MIN: usize = HEADER_LEN + FRAME_MAX;

/// Where the address is in the configuration space.
pub const CONFIG_MAC_AT: usize = 0;

/// Where the MTU is.
pub const CONFIG_MTU_AT: usize = 10;

/// Bytes of the configuration space.
pub const CONFIG_LEN: usize = 12;

// A guest built against this version uses these numbers for ever.
const _: () = assert!(FRAME_MAX == 1514 && RECEIVE_MIN == 1526);
