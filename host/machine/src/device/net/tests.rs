//! A driver that is good or bad, and a wire that is a script.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use wharf_abi::device::QUEUES_MAX;
use wharf_abi::net::{FRAME_MAX, FRAME_MIN, HEADER_LEN, RECEIVE_MIN};

use super::{Frames, Mac, Wire, terms};
use crate::device::user::UserMemory;
use crate::device::{Broken, Budget, REQUESTS_AT_ONCE};
use crate::image::Access;
use crate::memory::{Gpa, GuestMemory};
use crate::space::{AddressSpace, Mapping, Owner};

/// Where the guest's memory begins, all of which it may write.
const BASE: u64 = 0x10_0000;
const MEMORY: u64 = 2 << 20;
const ENTRIES: u16 = 256;
const BUFFER: u64 = 0x800;
const BUFFERS: u64 = BASE + 0x8_0000;
const SENT: u64 = BASE + 0x10_0000;
const OWN: Mac = [2, 0, 0, 0, 0, 1];

#[derive(Debug, Default)]
struct Script {
    arrives: VecDeque<Arc<[u8]>>,
    took: Vec<Vec<u8>>,
    looks: usize,
    opened: usize,
}

#[derive(Clone, Debug)]
struct Fake {
    script: Arc<Mutex<Script>>,
    fd: Arc<std::fs::File>,
}

impl Fake {
    fn edit<T>(&self, edit: impl FnOnce(&mut Script) -> T) -> T {
        edit(&mut self.script.lock().unwrap())
    }

    fn arrives(&self, frame: &[u8]) {
        self.edit(|it| it.arrives.push_back(frame.into()));
    }
}

impl Wire for Fake {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn mac(&self) -> Mac {
        OWN
    }

    fn open(&mut self) {
        self.edit(|it| it.opened += 1);
    }

    fn has_looked(&mut self) {
        self.edit(|it| it.looks += 1);
    }

    fn receive(&mut self) -> Option<Arc<[u8]>> {
        self.edit(|it| it.arrives.pop_front())
    }

    fn send(&mut self, frame: &[u8]) {
        self.edit(|it| it.took.push(frame.to_vec()));
    }
}

struct Driver {
    memory: GuestMemory,
    space: AddressSpace,
    queues: [Option<Queue>; QUEUES_MAX],
    frames: Frames,
    wire: Fake,
    offered: u16,
    seen: u16,
    sent: u16,
}

/// Where a queue's three parts are.
fn rings(number: u64) -> [u64; 3] {
    let base = BASE + number * 0x4000;
    [base, base + 0x1000, base + 0x2000]
}

impl Driver {
    fn new() -> Self {
        let memory = GuestMemory::new(MEMORY, 0).unwrap();
        let space = AddressSpace::new(&[Mapping {
            addr: BASE,
            len: MEMORY,
            gpa: Gpa(0),
            access: Access::ReadWrite,
            owner: Owner::Guest,
        }]);
        let mut queues = [const { None }; QUEUES_MAX];
        for (number, slot) in (0..).zip(queues.iter_mut().take(2)) {
            let [table, avail, used] = rings(number).map(GuestAddress);
            let mut queue = Queue::new(256).unwrap();
            queue.try_set_size(ENTRIES).unwrap();
            queue.try_set_desc_table_address(table).unwrap();
            queue.try_set_avail_ring_address(avail).unwrap();
            queue.try_set_used_ring_address(used).unwrap();
            queue.set_event_idx(true);
            queue.set_ready(true);
            *slot = Some(queue);
        }
        let wire = Fake {
            script: Arc::default(),
            fd: Arc::new(std::fs::File::open("/dev/null").unwrap()),
        };
        Self {
            memory,
            space,
            queues,
            frames: Frames::new(Box::new(wire.clone())),
            wire,
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
    fn make_available(&self, queue: u64, index: u16, addr: u64, len: usize, flags: u16) {
        let [table, avail, _] = rings(queue);
        let slot = index % ENTRIES;
        let at = table + u64::from(slot) * 16;
        self.put(addr, at);
        self.put(u32::try_from(len).unwrap(), at + 8);
        self.put(flags, at + 12);
        self.put(0_u16, at + 14);
        self.put(slot, avail + 4 + u64::from(slot) * 2);
        self.put(index.wrapping_add(1), avail + 2);
    }

    /// Gives the device so many receive buffers of this length.
    fn offer(&mut self, count: u16, len: usize) {
        for _ in 0..count {
            let addr = BUFFERS + u64::from(self.offered % ENTRIES) * BUFFER;
            self.make_available(0, self.offered, addr, len, 2);
            self.offered += 1;
        }
    }

    /// Sends so many bytes behind a header of nonsense, or less than one.
    fn send(&mut self, packet: &[u8]) {
        let addr = SENT + u64::from(self.sent % ENTRIES) * BUFFER;
        self.user().write_slice(packet, GuestAddress(addr)).unwrap();
        self.make_available(1, self.sent, addr, packet.len(), 0);
        self.sent += 1;
    }

    fn send_frame(&mut self, frame: &[u8]) {
        self.send(&[&[0xFF; HEADER_LEN], frame].concat());
    }

    fn serve(&mut self) -> Result<bool, (u16, Broken)> {
        let user = UserMemory::new(self.memory.mmap(), &self.space);
        let mut budget = Budget::WHOLE;
        self.frames.serve(&mut self.queues, user, &mut budget)
    }

    /// What the guest has received since the last time.
    fn received(&mut self) -> Vec<Vec<u8>> {
        let [_, _, used] = rings(0);
        let end: u16 = self.user().read_obj(GuestAddress(used + 2)).unwrap();
        let mut received = Vec::new();
        while self.seen != end {
            let at = used + 4 + u64::from(self.seen % ENTRIES) * 8;
            let slot: u32 = self.user().read_obj(GuestAddress(at)).unwrap();
            let len: u32 = self.user().read_obj(GuestAddress(at + 4)).unwrap();
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            let addr = GuestAddress(BUFFERS + u64::from(slot) * BUFFER);
            self.user().read_slice(&mut bytes, addr).unwrap();
            received.push(bytes);
            self.seen = self.seen.wrapping_add(1);
        }
        received
    }
}

fn packet(frame: &[u8]) -> Vec<u8> {
    [&[0; 10][..], &[1, 0], frame].concat()
}

#[test]
fn the_driver_is_told_address_and_longest_packet_and_nothing_more() {
    let terms = terms(&Driver::new().frames);
    assert_eq!((terms.device_type, terms.queue_count), (1, 2));
    assert_eq!(terms.features, 1 << 5 | 1 << 3);
    assert_eq!(terms.config, [2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0xDC, 5]);
}

#[test]
fn frames_go_both_ways() {
    let mut driver = Driver::new();
    let (short, long) = (vec![7; FRAME_MIN], vec![9; FRAME_MAX]);
    driver.offer(2, RECEIVE_MIN);
    driver.wire.arrives(&short);
    driver.wire.arrives(&long);
    driver.send_frame(&long);
    driver.send_frame(&short);
    assert_eq!(driver.serve(), Ok(false));
    assert_eq!(driver.received(), [packet(&short), packet(&long)]);
    driver.wire.edit(|it| assert_eq!(it.took, [long, short]));
    driver.serve().unwrap();
    driver
        .wire
        .edit(|it| assert_eq!((it.opened, it.looks), (1, 2)));
}

#[test]
fn what_is_no_frame_goes_nowhere_and_is_counted() {
    let mut driver = Driver::new();
    for len in [0, 1, FRAME_MIN - 1, FRAME_MAX + 1, 2000] {
        driver.send_frame(&vec![1; len]);
    }
    driver.offer(1, RECEIVE_MIN);
    driver.wire.arrives(&[1; FRAME_MIN - 1]);
    driver.wire.arrives(&[1; FRAME_MAX + 1]);
    driver.wire.arrives(&[2; 60]);
    assert_eq!(driver.serve(), Ok(false));
    assert_eq!(driver.received(), [packet(&[2; 60])]);
    assert_eq!(driver.frames.dropped(), 7);
    driver.wire.edit(|it| assert!(it.took.is_empty()));
}

#[test]
fn a_packet_without_a_header_is_a_fault() {
    for len in [1, HEADER_LEN - 1] {
        let mut driver = Driver::new();
        driver.send(&vec![0; len]);
        assert_eq!(driver.serve(), Err((1, Broken::NoHeader)));
    }
}

#[test]
fn a_receive_buffer_that_no_frame_is_sure_to_fit_into_is_a_fault() {
    let mut driver = Driver::new();
    driver.offer(1, RECEIVE_MIN - 1);
    assert_eq!(driver.serve(), Err((0, Broken::SmallBuffer)));
}

#[test]
fn a_buffer_in_memory_that_is_not_the_guests_is_a_fault() {
    let mut driver = Driver::new();
    driver.make_available(1, 0, BASE + MEMORY - 20, 60, 0);
    let broken = Broken::Buffer {
        addr: BASE + MEMORY - 20,
        len: 60,
    };
    assert_eq!(driver.serve(), Err((1, broken)));
    let mut driver = Driver::new();
    driver.make_available(0, 0, 8, RECEIVE_MIN, 2);
    driver.wire.arrives(&[1; 60]);
    let len = u32::try_from(RECEIVE_MIN).unwrap();
    assert_eq!(driver.serve(), Err((0, Broken::Buffer { addr: 8, len })));
}

/// What the guest has no buffer for stays with the wire, and the buffer that nothing
/// was there for is not lost.
#[test]
fn frames_wait_for_buffers_and_buffers_for_frames() {
    let mut driver = Driver::new();
    driver.wire.arrives(&[1; 60]);
    driver.wire.arrives(&[2; 60]);
    assert_eq!(driver.serve(), Ok(false));
    driver.wire.edit(|it| assert_eq!(it.arrives.len(), 2));
    driver.offer(3, RECEIVE_MIN);
    assert_eq!(driver.serve(), Ok(false));
    assert_eq!(driver.received(), [packet(&[1; 60]), packet(&[2; 60])]);
    driver.wire.arrives(&[3; 60]);
    assert_eq!(driver.serve(), Ok(false));
    assert_eq!(driver.received(), [packet(&[3; 60])]);
}

#[test]
fn one_look_does_a_bounded_amount() {
    let mut driver = Driver::new();
    let most = usize::try_from(REQUESTS_AT_ONCE).unwrap();
    driver.offer(ENTRIES - 1, RECEIVE_MIN);
    for _ in 0..200 {
        driver.wire.arrives(&[1; 60]);
        driver.send_frame(&[2; 60]);
    }
    assert_eq!(driver.serve(), Ok(true));
    let sent = driver.wire.edit(|it| it.took.len());
    assert_eq!(sent + driver.received().len(), most);
    assert_eq!(driver.serve(), Ok(false));
    let sent = driver.wire.edit(|it| it.took.len());
    assert_eq!((sent, driver.received().len()), (200, 144));
}
