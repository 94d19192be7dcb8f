//! What the guest has to say, in order.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::task::Waker;

use wharf_abi::stream::Header;

use super::packet::{NoPacket, Packet, Pool};

/// Packets that are ready, connections that soon have one, and who waits for room.
#[derive(Debug, Default)]
pub(super) struct Output {
    queue: VecDeque<Packet>,
    pool: Pool,
    /// Connections that have a packet begun, or credit to tell.
    dirty: Vec<usize>,
    /// Writers that found no room.
    starved: Vec<Waker>,
}

impl Output {
    /// Begins a packet of data.
    pub(super) fn data(&mut self, len: usize) -> Result<Packet, NoPacket> {
        self.pool.data(len)
    }

    /// Ends a packet: it goes out after those before it.
    pub(super) fn push(&mut self, mut packet: Packet, header: &Header) {
        packet.seal(header);
        self.queue.push_back(packet);
    }

    /// Says something that needs no more than a header and what `payload` has.
    /// Without memory for that it is left unsaid.
    pub(super) fn say(&mut self, header: &Header, payload: &[u8]) {
        if let Ok(mut packet) = self.pool.control() {
            packet.push(payload);
            self.push(packet, header);
        }
    }

    /// The next packet that is ready.
    pub(super) fn pop(&mut self) -> Option<Packet> {
        self.queue.pop_front()
    }

    /// Puts back what [`pop`](Self::pop) gave.
    pub(super) fn unpop(&mut self, packet: Packet) {
        self.queue.push_front(packet);
    }

    /// Whether nothing is ready.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes back the memory of a packet that is out, or came to nothing.
    pub(super) fn give_back(&mut self, packet: Packet) {
        self.pool.give_back(packet);
    }

    /// Notes that a connection wants to be settled.
    pub(super) fn mark(&mut self, slot: usize) {
        self.dirty.push(slot);
    }

    /// A connection that was marked.
    pub(super) fn next_marked(&mut self) -> Option<usize> {
        self.dirty.pop()
    }

    /// Leaves word to be woken when there is room.
    pub(super) fn starve(&mut self, waker: &Waker) {
        if !self.starved.iter().any(|other| other.will_wake(waker)) {
            self.starved.push(waker.clone());
        }
    }

    /// Whether somebody waits for room.
    pub(super) fn is_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    /// Wakes who waits for room.
    pub(super) fn feed(&mut self) {
        for waker in self.starved.drain(..) {
            waker.wake();
        }
    }
}
