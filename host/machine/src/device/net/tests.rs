//! A driver that is good or bad, and a wire that is a script.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use wharf_abi::net::{FRAME_MAX, FRAME_MIN, HEADER_LEN, RECEIVE_MIN};

use super::{Frames, Mac, Way, Wire, terms};
use crate::device::Broken;
use crate::device::ring::REQUESTS_AT_ONCE;
use crate::device::testing::{BASE, Guest, Plan, WRITE};
use crate::handover::Luggage;

const PLAN: Plan = Plan {
    memory: 2 << 20,
    entries: 256,
    buffers: 0x8_0000,
    buffer: 0x800,
    sent: 0x10_0000,
    packet: 0x800,
};
const OWN: Mac = [2, 0, 0, 0, 0, 1];

#[derive(Debug, Default)]
struct Script {
    arrives: VecDeque<Arc<[u8]>>,
    took: Vec<Vec<u8>>,
    looks: usize,
    opened: usize,
    dropped: Vec<Way>,
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

    fn mtu(&self) -> u16 {
        1500
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

    fn was_dropped(&mut self, way: Way) {
        self.edit(|it| it.dropped.push(way));
    }

    fn carry(&mut self, _: &mut Luggage) -> io::Result<Value> {
        Ok(Value::Null)
    }
}

struct Driver {
    guest: Guest,
    frames: Frames,
    wire: Fake,
}

impl Driver {
    fn new() -> Self {
        let wire = Fake {
            script: Arc::default(),
            fd: Arc::new(std::fs::File::open("/dev/null").unwrap()),
        };
        Self {
            guest: Guest::new(PLAN),
            frames: Frames::new(Box::new(wire.clone())),
            wire,
        }
    }

    /// Gives the device so many receive buffers of this length.
    fn offer(&mut self, count: u16, len: usize) {
        self.guest.offer(count, len);
    }

    /// Sends so many bytes behind a header of nonsense, or less than one.
    fn send(&mut self, packet: &[u8]) {
        self.guest.send(packet);
    }

    fn send_frame(&mut self, frame: &[u8]) {
        self.send(&[&[0xFF; HEADER_LEN], frame].concat());
    }

    fn serve(&mut self) -> Result<bool, (u16, Broken)> {
        let frames = &mut self.frames;
        self.guest
            .serve(|queues, user, budget| frames.serve(queues, user, budget))
    }

    /// What the guest has received since the last time.
    fn received(&mut self) -> Vec<Vec<u8>> {
        self.guest.received()
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

/// What an heir sends before it is in place waits for that, and so does what it is given.
#[test]
fn who_is_held_is_on_no_wire_and_loses_nothing() {
    let mut driver = Driver::new();
    driver.frames.hold();
    driver.offer(1, RECEIVE_MIN);
    driver.send_frame(&[9; 60]);
    driver.wire.arrives(&[7; 60]);
    assert_eq!(driver.serve(), Ok(false));
    assert_eq!(driver.received(), Vec::<Vec<u8>>::new());
    driver
        .wire
        .edit(|it| assert_eq!((it.opened, it.looks, it.took.len()), (0, 0, 0)));
    driver.frames.own();
    assert_eq!(driver.serve(), Ok(false));
    assert_eq!(driver.received(), [packet(&[7; 60])]);
    driver.wire.edit(|it| {
        assert_eq!((it.opened, it.took.as_slice()), (1, &[vec![9; 60]][..]));
        assert!(it.dropped.is_empty());
    });
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
    let dropped = [[Way::FromGuest; 5].as_slice(), &[Way::ToGuest; 2]].concat();
    driver.wire.edit(|it| {
        assert_eq!(it.dropped, dropped);
        assert!(it.took.is_empty());
    });
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
    driver
        .guest
        .make_available(1, 0, BASE + PLAN.memory - 20, 60, 0);
    let broken = Broken::Buffer {
        addr: BASE + PLAN.memory - 20,
        len: 60,
    };
    assert_eq!(driver.serve(), Err((1, broken)));
    let mut driver = Driver::new();
    driver.guest.make_available(0, 0, 8, RECEIVE_MIN, WRITE);
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
    driver.offer(PLAN.entries - 1, RECEIVE_MIN);
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
    // Nor what is dropped at a stretch, which takes no buffer.
    for _ in 0..most + 10 {
        driver.wire.arrives(&[1; FRAME_MAX + 1]);
    }
    driver.offer(1, RECEIVE_MIN);
    assert_eq!(driver.serve(), Ok(true));
    let dropped = |driver: &Driver| driver.wire.edit(|it| it.dropped.len());
    assert_eq!(dropped(&driver), most);
    assert_eq!(driver.serve(), Ok(false));
    assert_eq!(dropped(&driver), most + 10);
}
