//! Packets on their way out, and the memory that they are in.

use alloc::vec::Vec;

use wharf_abi::stream::{HEADER_LEN, Header, PAYLOAD_MAX};
use zerocopy::IntoBytes;

/// Bytes of buffers, header included: for a header alone, for what is said in one
/// breath, for what is sent in bulk. The latter two are whole pages, because each page
/// that is touched first is an expensive fault.
const SIZES: [usize; 3] = [64, 4 << 10, 64 << 10];

const _: () = assert!(SIZES[0] >= HEADER_LEN && SIZES[2] <= PAYLOAD_MAX as usize);

/// Most bytes of data packets at one time. What a writer cannot put there, it waits
/// with.
const TAKEN_MAX: usize = 1 << 20;

/// Most bytes of each size that are kept for the next packet.
const KEPT_MAX: usize = 1 << 20;

/// A packet: room for a header, and payload behind it.
///
/// Its bytes stay where they are until it is dropped, and it never grows.
#[derive(Debug)]
pub(super) struct Packet {
    bytes: Vec<u8>,
    is_data: bool,
}

impl Packet {
    /// Appends what there is room for, and says how many bytes that was.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        let room = self.bytes.capacity().saturating_sub(self.bytes.len());
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.bytes.extend_from_slice(taken);
        taken.len()
    }

    pub(super) fn payload_len(&self) -> usize {
        self.bytes.len().saturating_sub(HEADER_LEN)
    }

    /// Writes the header.
    pub(super) fn seal(&mut self, header: &Header) {
        if let Some(place) = self.bytes.first_chunk_mut::<HEADER_LEN>() {
            place.copy_from_slice(header.as_bytes());
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Why there is no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPacket {
    /// Others must go out first.
    Wait,
    /// The heap is full.
    OutOfMemory,
}

/// Buffers that are used again and again.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// Those of each size that nobody uses.
    free: [Vec<Vec<u8>>; SIZES.len()],
    /// Bytes of the data packets that are out.
    taken: usize,
}

impl Pool {
    /// A packet for data, of which so many bytes are at hand.
    pub(super) fn data(&mut self, len: usize) -> Result<Packet, NoPacket> {
        // A long line and a short one have the same: what comes next joins them.
        let size = usize::from(len.saturating_add(HEADER_LEN) > SIZES[1]) + 1;
        let taken = self.taken.saturating_add(size_of_class(size));
        if taken > TAKEN_MAX {
            return Err(NoPacket::Wait);
        }
        let packet = self.packet(size, true)?;
        self.taken = taken;
        Ok(packet)
    }

    /// A packet for a header, and little else.
    pub(super) fn control(&mut self) -> Result<Packet, NoPacket> {
        self.packet(0, false)
    }

    /// Takes back a packet that is done with.
    pub(super) fn give_back(&mut self, packet: Packet) {
        let Packet { bytes, is_data } = packet;
        if is_data {
            self.taken = self.taken.saturating_sub(bytes.capacity());
        }
        let class = SIZES.iter().position(|&size| size == bytes.capacity());
        if let Some(free) = class.and_then(|class| self.free.get_mut(class))
            && free.len().saturating_mul(bytes.capacity()) < KEPT_MAX
        {
            free.push(bytes);
        }
    }

    fn packet(&mut self, class: usize, is_data: bool) -> Result<Packet, NoPacket> {
        let free = self.free.get_mut(class).and_then(Vec::pop);
        let mut bytes = free.unwrap_or_default();
        bytes.clear();
        bytes
            .try_reserve_exact(size_of_class(class))
            .map_err(|_| NoPacket::OutOfMemory)?;
        bytes.resize(HEADER_LEN, 0);
        Ok(Packet { bytes, is_data })
    }
}

fn size_of_class(class: usize) -> usize {
    SIZES.get(class).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use wharf_abi::stream::{HEADER_LEN, Header, Op};
    use zerocopy::FromBytes;

    use super::{KEPT_MAX, NoPacket, Pool, TAKEN_MAX};

    #[test]
    fn a_packet_takes_what_it_has_room_for() {
        let mut packet = Pool::default().data(10).unwrap();
        assert_eq!(packet.push(&[1; 10]), 10);
        assert_eq!(packet.push(&[2; 5000]), 4096 - HEADER_LEN - 10);
        assert_eq!(packet.push(&[3]), 0);
        let header = Header {
            op: Op::Data.raw(),
            ..Header::default()
        };
        packet.seal(&header);
        let (sealed, payload) = Header::read_from_prefix(packet.bytes()).unwrap();
        assert_eq!(sealed, header);
        assert_eq!((payload.len(), payload[9], payload[10]), (4052, 1, 2));
    }

    #[test]
    fn memory_for_data_is_bounded_and_used_again() {
        let mut pool = Pool::default();
        let mut packets = Vec::new();
        let none = loop {
            match pool.data(1 << 20) {
                Ok(packet) => packets.push(packet),
                Err(none) => break none,
            }
        };
        assert_eq!(none, NoPacket::Wait);
        assert_eq!(packets.len(), TAKEN_MAX / (64 << 10));
        // A reset is never held up by data.
        let control = pool.control().unwrap();
        pool.give_back(control);

        let addresses: Vec<_> = packets.iter().map(|it| it.bytes().as_ptr()).collect();
        for packet in packets {
            pool.give_back(packet);
        }
        let again = pool.data(1 << 20).unwrap();
        assert!(addresses.contains(&again.bytes().as_ptr()));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut pool = Pool::default();
        let packets: Vec<_> = (0..2 * KEPT_MAX / 64)
            .map(|_| pool.control().unwrap())
            .collect();
        for packet in packets {
            pool.give_back(packet);
        }
        assert_eq!(pool.free[0].len(), KEPT_MAX / 64);
    }
}
