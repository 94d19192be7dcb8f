//! Streams: TCP connections that the host terminates, as virtio sockets.
//!
//! The device is virtio-vsock (virtio 1.2 §5.10) with stream sockets only. Its
//! other end is not a machine but the network: what the host accepts on a port that
//! the operator published arrives at the guest as a connection request, and what the
//! guest connects to, the host connects to for it, when its router lets it.
//!
//! # Queues
//!
//! 0 receives, 1 transmits, 2 tells events. The host never sends an event, so queue
//! 2 may be left alone. A packet is one chain: a [`Header`], then
//! [`Header::len`] bytes. A receive buffer has room for at least
//! [`RECEIVE_MIN`] bytes; a transmitted packet carries at most [`PAYLOAD_MAX`].
//!
//! # Connections from outside
//!
//! The host sends [`Op::Request`] from ([`HOST_CID`], a port of its choice) to
//! (the guest's CID, the guest's port). Since contract 1.3 there is an [`Endpoint`]
//! behind the header, which takes no credit: where the client is, all 0 when that is
//! another guest of the same host, or is not known any more. Who does not want to know
//! passes over it. The guest answers [`Op::Response`], or [`Op::Reset`] when nobody
//! listens there. The host's port tells its connections apart and may be used again once
//! both sides are done with it.
//!
//! # Connections to the outside
//!
//! The guest sends [`Op::Request`] to ([`HOST_CID`], [`CONNECT_PORT`]) from a port
//! that it has no other connection on, and behind the header an [`Endpoint`]. The
//! host answers [`Op::Response`] when the connection is there, and [`Op::Reset`]
//! when there is none, with a [`Refusal`] in [`Header::flags`].
//!
//! # Ends
//!
//! [`Op::Shutdown`] with [`SHUTDOWN_SEND`] says that no more comes (TCP's FIN), with
//! [`SHUTDOWN_RECEIVE`] that no more is read. Who has said both and been told both,
//! or has to give up, sends [`Op::Reset`]; nothing follows it in either direction.
//! A reset that answers a reset is never sent.
//!
//! # Credit
//!
//! As virtio 1.2 §5.10.6.3: each side says in every packet how many bytes it can
//! keep ([`Header::buf_alloc`]) and how many it has passed on
//! ([`Header::fwd_cnt`], modulo 2³²), and neither sends more than the other can
//! keep. The host tells of its own accord when it can take more. A guest that sends
//! more than it may ends with a fault.

use core::net::{IpAddr, Ipv6Addr, SocketAddr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Virtio's number of the device type.
pub const DEVICE_TYPE: u32 = 19;

/// Queue on which the guest receives.
pub const QUEUE_RECEIVE: u16 = 0;

/// Queue on which it transmits.
pub const QUEUE_TRANSMIT: u16 = 1;

/// Queue of events, on which the host is silent.
pub const QUEUE_EVENT: u16 = 2;

/// Context identifier of whoever is at the other end.
pub const HOST_CID: u64 = 2;

/// Context identifier of the guest, which its configuration space says, too. Each
/// guest has a network of its own, so all have the same.
pub const GUEST_CID: u64 = 3;

/// The host's port for connections to the outside.
pub const CONNECT_PORT: u32 = 1;

/// Bytes of a header.
pub const HEADER_LEN: usize = size_of::<Header>();

/// Least bytes of a receive buffer, header included.
pub const RECEIVE_MIN: u32 = 512;

/// Most bytes that a packet carries.
pub const PAYLOAD_MAX: u32 = 64 << 10;

/// [`Header::socket_type`] of a stream.
pub const TYPE_STREAM: u16 = 1;

/// [`Op::Shutdown`]: no more is read.
pub const SHUTDOWN_RECEIVE: u32 = 1;

/// [`Op::Shutdown`]: no more is sent.
pub const SHUTDOWN_SEND: u32 = 2;

/// What each packet begins with: `struct virtio_vsock_hdr`, little-endian.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, packed(4))]
pub struct Header {
    /// Who sends.
    pub src_cid: u64,
    /// Who receives.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// Bytes behind the header.
    pub len: u32,
    /// [`TYPE_STREAM`].
    pub socket_type: u16,
    /// An [`Op`].
    pub op: u16,
    /// [`SHUTDOWN_RECEIVE`] and [`SHUTDOWN_SEND`]; a [`Refusal`] with a reset; else 0.
    pub flags: u32,
    /// Bytes that the sender can keep for the receiver of this packet.
    pub buf_alloc: u32,
    /// Bytes of this connection that the sender of this packet has passed on.
    pub fwd_cnt: u32,
}

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Makes it.
    Response = 2,
    /// Ends or refuses it.
    Reset = 3,
    /// Will not send, or not receive, any more.
    Shutdown = 4,
    /// Carries bytes.
    Data = 5,
    /// Tells its credit.
    CreditUpdate = 6,
    /// Wants to be told the other's.
    CreditRequest = 7,
}

impl Op {
    /// The operation behind its number.
    #[must_use]
    pub const fn from_raw(raw: u16) -> Option<Self> {
        match raw {
            1 => Some(Self::Request),
            2 => Some(Self::Response),
            3 => Some(Self::Reset),
            4 => Some(Self::Shutdown),
            5 => Some(Self::Data),
            6 => Some(Self::CreditUpdate),
            7 => Some(Self::CreditRequest),
            _ => None,
        }
    }

    /// The number of this operation.
    #[must_use]
    pub const fn raw(self) -> u16 {
        self as u16
    }
}

/// The other end of a connection: where a guest wants to be connected to, or where its
/// client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Endpoint {
    /// An IPv6 address, or an IPv4 one as `::ffff:a.b.c.d`, as bytes in its own order.
    pub address: [u8; 16],
    /// The TCP port, little-endian; not 0 but of a client that has no address.
    pub port: u16,
    /// 0.
    pub reserved: u16,
}

impl Endpoint {
    /// The same as an address; `[::]:0` when it is all 0.
    #[must_use]
    pub fn socket_addr(&self) -> SocketAddr {
        let address = IpAddr::V6(Ipv6Addr::from(self.address));
        SocketAddr::new(address.to_canonical(), u16::from_le(self.port))
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        let bytes = match address {
            SocketAddr::V4(it) => it.ip().to_ipv6_mapped(),
            SocketAddr::V6(it) => *it.ip(),
        };
        Self {
            address: bytes.octets(),
            port: address.port().to_le(),
            reserved: 0,
        }
    }
}

/// Why a guest was not connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Refusal {
    /// The host's router does not let it.
    Denied = 1,
    /// Nobody listens there.
    Refused = 2,
    /// There is no way there.
    Unreachable = 3,
    /// Nobody answered.
    TimedOut = 4,
    /// The guest has as many connections as it may.
    TooMany = 5,
    /// The request made no sense.
    Invalid = 6,
}

impl Refusal {
    /// The refusal behind its number.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Denied),
            2 => Some(Self::Refused),
            3 => Some(Self::Unreachable),
            4 => Some(Self::TimedOut),
            5 => Some(Self::TooMany),
            6 => Some(Self::Invalid),
            _ => None,
        }
    }

    /// The number of this refusal.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self as u32
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(HEADER_LEN == 44);
    assert!(offset_of!(Header, src_port) == 16);
    assert!(offset_of!(Header, len) == 24);
    assert!(offset_of!(Header, op) == 30);
    assert!(offset_of!(Header, flags) == 32);
    assert!(offset_of!(Header, fwd_cnt) == 40);
    assert!(size_of::<Endpoint>() == 20);
};

#[cfg(test)]
mod tests {
    use core::net::SocketAddr;

    use super::{Endpoint, Op, Refusal};

    #[test]
    fn addresses_round_trip() {
        for text in ["192.0.2.1:80", "[2001:db8::1]:65535", "[::]:0"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(Endpoint::from(address).socket_addr(), address);
        }
        let mapped = Endpoint::from(SocketAddr::from(([192, 0, 2, 1], 0x1234)));
        let address = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 192, 0, 2, 1];
        assert_eq!(
            (mapped.address, u16::from_le(mapped.port)),
            (address, 0x1234)
        );
    }

    #[test]
    fn numbers_round_trip() {
        let ops = (0..=u16::MAX).filter_map(|raw| Op::from_raw(raw).map(|op| (raw, op.raw())));
        assert!(ops.clone().all(|(raw, back)| raw == back));
        assert_eq!(ops.count(), 7);
        let refusals = (0..64).filter_map(|raw| Refusal::from_raw(raw).map(|it| (raw, it.raw())));
        assert!(refusals.clone().all(|(raw, back)| raw == back));
        assert_eq!(refusals.count(), 6);
    }
}
