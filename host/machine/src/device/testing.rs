//! A guest's memory with two rings in it, receive and transmit, for tests of devices.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use wharf_abi::device::QUEUES_MAX;

use super::Broken;
use super::ring::Budget;
use super::user::UserMemory;
use crate::image::Access;
use crate::memory::{Gpa, GuestMemory};
use crate::space::{AddressSpace, Mapping, Owner};

/// Where the guest's memory begins, all of which it may write.
pub(super) const BASE: u64 = 0x10_0000;

/// Descriptor flag: for the device to write (virtio 1.2 §2.7.5).
pub(super) const WRITE: u16 = 2;

/// Where what is in the memory. Buffers lie one behind the other.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) memory: u64,
    pub(super) entries: u16,
    /// Receive buffers, and from one to the next.
    pub(super) buffers: u64,
    pub(super) buffer: u64,
    /// What is sent, and from one to the next.
    pub(super) sent: u64,
    pub(super) packet: u64,
}

pub(super) struct Guest {
    plan: Plan,
    memory: GuestMemory,
    space: AddressSpace,
    queues: [Option<Queue>; QUEUES_MAX],
    /// Buffers offered, and of these seen again; packets sent.
    pub(super) offered: u16,
    pub(super) seen: u16,
    sent: u16,
}

/// Where a queue's three parts are.
fn rings(number: u64) -> [u64; 3] {
    let base = BASE + number * 0x4000;
    [base, base + 0x1000, base + 0x2000]
}

impl Guest {
    pub(super) fn new(plan: Plan) -> Self {
        let memory = GuestMemory::new(plan.memory, 0..0, false).unwrap();
        let space = AddressSpace::new(&[Mapping {
            addr: BASE,
            len: plan.memory,
            gpa: Gpa(0),
            access: Access::ReadWrite,
            owner: Owner::Guest,
        }]);
        let mut queues = [const { None }; QUEUES_MAX];
        for (number, slot) in (0..).zip(queues.iter_mut().take(2)) {
            let [table, avail, used] = rings(number).map(GuestAddress);
            let mut queue = Queue::new(256).unwrap();
            queue.try_set_size(plan.entries).unwrap();
            queue.try_set_desc_table_address(table).unwrap();
            queue.try_set_avail_ring_address(avail).unwrap();
            queue.try_set_used_ring_address(used).unwrap();
            queue.set_event_idx(true);
            queue.set_ready(true);
            *slot = Some(queue);
        }
        Self {
            plan,
            memory,
            space,
            queues,
            offered: 0,
            seen: 0,
            sent: 0,
        }
    }

    fn user(&self) -> UserMemory<'_> {
        UserMemory::new(self.memory.mmap(), &self.space)
    }

    fn put<T: vm_memory::ByteValued>(&self, value: T, at: u64) {
        self.user().write_obj(value, GuestAddress(at)).unwrap();
    }

    /// Puts one buffer into a ring.
    pub(super) fn make_available(&self, queue: u64, index: u16, addr: u64, len: usize, flags: u16) {
        let [table, avail, _] = rings(queue);
        let slot = index % self.plan.entries;
        let at = table + u64::from(slot) * 16;
        self.put(addr, at);
        self.put(u32::try_from(len).unwrap(), at + 8);
        self.put(flags, at + 12);
        self.put(0_u16, at + 14);
        self.put(slot, avail + 4 + u64::from(slot) * 2);
        self.put(index.wrapping_add(1), avail + 2);
    }

    /// Gives the device so many receive buffers of this length.
    pub(super) fn offer(&mut self, count: u16, len: usize) {
        for _ in 0..count {
            let addr = self.buffer(self.offered % self.plan.entries);
            self.make_available(0, self.offered, addr, len, WRITE);
            self.offered += 1;
        }
    }

    fn buffer(&self, slot: u16) -> u64 {
        BASE + self.plan.buffers + u64::from(slot) * self.plan.buffer
    }

    /// Sends a packet.
    pub(super) fn send(&mut self, packet: &[u8]) {
        let slot = u64::from(self.sent % self.plan.entries);
        let addr = BASE + self.plan.sent + slot * self.plan.packet;
        self.user().write_slice(packet, GuestAddress(addr)).unwrap();
        self.make_available(1, self.sent, addr, packet.len(), 0);
        self.sent += 1;
    }

    /// Has a device look at the rings, with all of a look's budget.
    pub(super) fn serve(
        &mut self,
        device: impl FnOnce(
            &mut [Option<Queue>; QUEUES_MAX],
            UserMemory<'_>,
            &mut Budget,
        ) -> Result<bool, (u16, Broken)>,
    ) -> Result<bool, (u16, Broken)> {
        let user = UserMemory::new(self.memory.mmap(), &self.space);
        let mut budget = Budget::WHOLE;
        device(&mut self.queues, user, &mut budget)
    }

    /// What the guest has received since the last time.
    pub(super) fn received(&mut self) -> Vec<Vec<u8>> {
        let [_, _, used] = rings(0);
        let end: u16 = self.user().read_obj(GuestAddress(used + 2)).unwrap();
        let mut received = Vec::new();
        while self.seen != end {
            let at = used + 4 + u64::from(self.seen % self.plan.entries) * 8;
            let slot: u32 = self.user().read_obj(GuestAddress(at)).unwrap();
            let len: u32 = self.user().read_obj(GuestAddress(at + 4)).unwrap();
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            let addr = GuestAddress(self.buffer(slot.try_into().unwrap()));
            self.user().read_slice(&mut bytes, addr).unwrap();
            received.push(bytes);
            self.seen = self.seen.wrapping_add(1);
        }
        received
    }
}
