//! The rings of the device, and the buffers in them.

#![expect(unsafe_code, reason = "the device reads and writes buffers by address")]

use alloc::alloc::alloc;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::cell::RefCell;
use core::ptr::NonNull;
use core::slice;

use critical_section::Mutex;
use virtio_drivers::PAGE_SIZE;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;
use wharf_abi::DeviceKind;
use wharf_abi::device::{FEATURE_EVENT_IDX, FEATURE_VERSION_1};
use wharf_abi::stream::{Header, QUEUE_RECEIVE, QUEUE_TRANSMIT};
use wharf_abi::upgrade::Rest;
use zerocopy::FromBytes;

use super::output::Output;
use super::packet::Packet;
use super::table::Table;
use crate::boot;
use crate::device::{self, Driver, OpenError, Taken};
use crate::transport::{OwnMemory, UsedEvent};

/// Receive buffers at most.
const RECEIVE_SIZE: usize = 64;

/// Receive buffers at first. There are more once the host has used all of them
/// between two looks: a page that is touched first is an expensive fault, and a ring
/// is used all round.
const RECEIVE_FIRST: usize = 8;

/// Bytes of a receive buffer.
const RECEIVE_LEN: usize = 16 << 10;

/// Packets on their way out at most.
const TRANSMIT_SIZE: usize = 128;

/// Most bytes that are kept for one reader: less when the heap is small.
const WINDOW_MAX: u64 = 256 << 10;
const WINDOW_MIN: u64 = 16 << 10;

/// How many readers that are behind by a whole window the heap has room for, and as
/// much again for everything else.
const WINDOWS: u64 = 64;

/// The device, once something needed it; or why that could not be.
static DEVICE: Mutex<RefCell<Option<Opened>>> = Mutex::new(RefCell::new(None));

type Opened = Result<&'static Device, OpenError>;

/// Returns the first stream device of the manifest, which is opened at the first use.
/// To the host that is the sign that the guest listens.
pub(super) fn device() -> Opened {
    let known = critical_section::with(|cs| *DEVICE.borrow_ref(cs));
    known.unwrap_or_else(|| {
        let opened = open();
        critical_section::with(|cs| *DEVICE.borrow_ref_mut(cs) = Some(opened));
        opened
    })
}

fn open() -> Opened {
    let Taken {
        place,
        mut transport,
        ..
    } = device::take_first(DeviceKind::Stream, FEATURE_VERSION_1 | FEATURE_EVENT_IDX)?;
    let refused = |_| OpenError::Refused;
    let mut receive = Receive {
        queue: VirtQueue::new(&mut transport, QUEUE_RECEIVE, false, true).map_err(refused)?,
        buffers: Vec::new(),
        of_token: [0; RECEIVE_SIZE],
    };
    let transmit = Transmit {
        queue: VirtQueue::new(&mut transport, QUEUE_TRANSMIT, false, true).map_err(refused)?,
        in_flight: [const { None }; TRANSMIT_SIZE],
        added: 0,
        popped: 0,
        used_event: transport.used_event(QUEUE_TRANSMIT),
    };
    receive.grow(RECEIVE_FIRST);
    transport.finish_init();
    let window = (boot().heap.len / (2 * WINDOWS)).clamp(WINDOW_MIN, WINDOW_MAX);
    let device: &'static Device = Box::leak(Box::new(Device(Mutex::new(RefCell::new(State {
        // At most `WINDOW_MAX`.
        table: Table::new(window as u32),
        receive,
        transmit,
    })))));
    device::register(place, device);
    device::submitted();
    Ok(device)
}

/// Has no connection read from any more, but those that are in the middle of much.
pub(crate) fn freeze() {
    if let Some(device) = opened() {
        device.with(Table::freeze);
    }
}

/// Ends [`freeze`].
pub(crate) fn thaw() {
    if let Some(device) = opened() {
        device.with(Table::thaw);
    }
}

/// Every connection, with what its next reader is to read, if all are at rest and
/// nothing is on its way.
pub(crate) fn resting() -> Option<Vec<(Rest, Vec<u8>)>> {
    match opened() {
        Some(device) => device.with(Table::resting),
        None => Some(Vec::new()),
    }
}

/// The device, if it was opened.
fn opened() -> Option<&'static Device> {
    critical_section::with(|cs| *DEVICE.borrow_ref(cs))?.ok()
}

/// The rings, and the connections behind them.
pub(super) struct Device(Mutex<RefCell<State>>);

struct State {
    table: Table,
    receive: Receive,
    transmit: Transmit,
}

impl Device {
    /// Does something with the connections.
    pub(super) fn with<T>(&self, use_it: impl FnOnce(&mut Table) -> T) -> T {
        critical_section::with(|cs| use_it(&mut self.0.borrow_ref_mut(cs).table))
    }
}

impl Driver for Device {
    fn ready(&self) {
        critical_section::with(|cs| {
            let state = &mut *self.0.borrow_ref_mut(cs);
            state.receive.take_packets(&mut state.table);
        });
    }

    fn settle(&self) {
        critical_section::with(|cs| {
            let State {
                table, transmit, ..
            } = &mut *self.0.borrow_ref_mut(cs);
            table.settle();
            transmit.settle(table.output());
        });
    }
}

/// The receive ring and its buffers, which are all in it whenever the host looks.
struct Receive {
    queue: VirtQueue<OwnMemory, RECEIVE_SIZE>,
    buffers: Vec<Buffer>,
    /// Which buffer a token of the queue's belongs to.
    of_token: [usize; RECEIVE_SIZE],
}

/// [`RECEIVE_LEN`] bytes that are never freed.
struct Buffer(NonNull<u8>);

// SAFETY: nobody else has the memory.
unsafe impl Send for Buffer {}

impl Receive {
    /// Hands every packet that came to the table, and its buffer back to the host.
    fn take_packets(&mut self, table: &mut Table) {
        let mut count = 0;
        while let Some(token) = self.queue.peek_used() {
            let Some(&at) = self.of_token.get(usize::from(token)) else {
                return;
            };
            let Some(buffer) = self.buffers.get_mut(at) else {
                return;
            };
            let bytes = buffer.bytes();
            // SAFETY: this is the buffer that was added for this token.
            let popped = unsafe { self.queue.pop_used(token, &[], &mut [&mut *bytes]) };
            let Ok(len) = popped else {
                return;
            };
            count += 1;
            let written = bytes.get(..len as usize).unwrap_or_default();
            if let Ok((header, rest)) = Header::read_from_prefix(written)
                && let Some(payload) = rest.get(..header.len as usize)
            {
                table.hear(&header, payload);
            }
            self.offer(at);
        }
        if count >= self.buffers.len() {
            self.grow(count);
        }
    }

    /// Makes so many more buffers, of which there are [`RECEIVE_SIZE`] at most.
    fn grow(&mut self, count: usize) {
        let count = count.min(RECEIVE_SIZE.saturating_sub(self.buffers.len()));
        let Ok(layout) = Layout::from_size_align(count * RECEIVE_LEN, PAGE_SIZE) else {
            return;
        };
        if count == 0 {
            return;
        }
        // SAFETY: the layout is of at least one buffer.
        let memory = unsafe { alloc(layout) };
        // What there is already does it, too.
        let Some(memory) = NonNull::new(memory) else {
            return;
        };
        for number in 0..count {
            // SAFETY: so many buffers are in the allocation.
            let start = unsafe { memory.add(number * RECEIVE_LEN) };
            self.buffers.push(Buffer(start));
            self.offer(self.buffers.len() - 1);
        }
    }

    /// Puts a buffer into the ring.
    fn offer(&mut self, at: usize) {
        let Some(buffer) = self.buffers.get_mut(at) else {
            return;
        };
        let bytes = buffer.bytes();
        // SAFETY: the buffer is never freed, and nobody looks at it before its token
        // is popped.
        let added = unsafe { self.queue.add(&[], &mut [bytes]) };
        // There are no more buffers than the ring has entries.
        if let Ok(token) = added
            && let Some(of) = self.of_token.get_mut(usize::from(token))
        {
            *of = at;
        }
    }
}

impl Buffer {
    /// Gives the buffer as the queue takes it, untouched as it may be.
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the memory is the buffer's alone and came from the host, which wrote
        // every byte of it before the guest began.
        unsafe { slice::from_raw_parts_mut(self.0.as_ptr(), RECEIVE_LEN) }
    }
}

/// The transmit ring and the packets in it.
struct Transmit {
    queue: VirtQueue<OwnMemory, TRANSMIT_SIZE>,
    /// What the device has, by token.
    in_flight: [Option<Packet>; TRANSMIT_SIZE],
    /// Packets put in since the beginning.
    added: u16,
    /// Packets taken back.
    popped: u16,
    used_event: UsedEvent,
}

impl Transmit {
    /// Takes back what is out, and puts in what is ready.
    fn settle(&mut self, output: &mut Output) {
        self.reclaim(output);
        while let Some(packet) = output.pop() {
            if let Err(packet) = self.add(packet) {
                output.unpop(packet);
                break;
            }
        }
        // A packet that went out is news only when somebody waits for its room. Else
        // every wait would end at once, by what was sent at its beginning.
        let is_awaited = output.is_starved() || !output.is_empty();
        self.used_event
            .set(if is_awaited { self.popped } else { self.added });
    }

    fn reclaim(&mut self, output: &mut Output) {
        let before = self.popped;
        while let Some(token) = self.queue.peek_used() {
            let packet = self.in_flight.get_mut(usize::from(token));
            let Some(packet) = packet.and_then(Option::take) else {
                break;
            };
            // SAFETY: these are the bytes that were added for this token.
            let popped = unsafe { self.queue.pop_used(token, &[packet.bytes()], &mut []) };
            if popped.is_err() {
                break;
            }
            self.popped = self.popped.wrapping_add(1);
            output.give_back(packet);
        }
        if self.popped != before {
            output.feed();
        }
    }

    fn add(&mut self, packet: Packet) -> Result<(), Packet> {
        // SAFETY: the packet's bytes stay where they are while it is in flight, where
        // nobody writes to them, and it stays there until its token is popped.
        let added = unsafe { self.queue.add(&[packet.bytes()], &mut []) };
        let Ok(token) = added else {
            return Err(packet);
        };
        if let Some(place) = self.in_flight.get_mut(usize::from(token)) {
            *place = Some(packet);
        }
        self.added = self.added.wrapping_add(1);
        device::submitted();
        Ok(())
    }
}
