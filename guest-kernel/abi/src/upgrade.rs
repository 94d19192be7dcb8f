//! Upgrade: how one generation of a task leaves what it has to the next.
//!
//! The next generation is made beside the present one, which serves meanwhile. Then:
//!
//! 1. A guest that waits with [`Interest::UPGRADE`](crate::Interest::UPGRADE) is told
//!    by that bit that the next one could begin. The bit stays until step 3.
//! 2. It brings its connections to rest: each has answered what it was asked, and has
//!    nothing on its way. What came for it since is *unread*.
//! 3. It calls [`Hypercall::HandOver`](crate::Hypercall::HandOver) with one block of
//!    memory: a [`HandOver`], a [`Rest`] for each connection that it gives away, the
//!    unread bytes of each of these in the same order, and last its state.
//! 4. The host starts the next one, which finds the state in its boot page
//!    ([`BootPage::inherited`](crate::BootPage)). Once that one serves
//!    ([`Hypercall::Ready`](crate::Hypercall::Ready)) it is asked for each connection
//!    as for a new one, reads what was unread first, and the old one is no more.
//!
//! When the call returns, the next one did not come to be, or runs beside this one:
//! the guest goes on as if nothing had been, with all its connections. What
//! connections it does not name end with it.
//!
//! A guest that never waits with that bit hands nothing over: its connections stay
//! with it until they end, and so does it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What the block begins with.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct HandOver {
    /// How many [`Rest`] follow, at most [`CONNECTIONS_MAX`].
    pub connections: u32,
    /// 0.
    pub reserved: u32,
    /// Bytes of state, at most [`STATE_MAX`].
    pub state_len: u64,
}

/// A connection at rest, named by its ports as in the packets of
/// [`stream`](crate::stream).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Rest {
    /// The host's port.
    pub host_port: u32,
    /// The guest's port.
    pub guest_port: u32,
    /// Bytes that came and were not read.
    pub unread_len: u32,
    /// 0.
    pub reserved: u32,
}

/// Most bytes of state.
pub const STATE_MAX: u64 = 1 << 20;

/// Most connections that are given away at once.
pub const CONNECTIONS_MAX: u32 = 1024;

/// Most unread bytes of all connections together.
pub const UNREAD_MAX: u64 = 4 << 20;

/// Most bytes of a block.
pub const BLOCK_MAX: u64 = size_of::<HandOver>() as u64
    + CONNECTIONS_MAX as u64 * size_of::<Rest>() as u64
    + UNREAD_MAX
    + STATE_MAX;

// A guest built against this version uses these offsets for ever.
const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<HandOver>() == 16);
    assert!(offset_of!(HandOver, state_len) == 8);
    assert!(size_of::<Rest>() == 16);
    assert!(offset_of!(Rest, guest_port) == 4);
    assert!(offset_of!(Rest, unread_len) == 8);
};
