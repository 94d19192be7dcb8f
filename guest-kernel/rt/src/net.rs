//! Frames: an Ethernet port, for guests that bring a network stack of their own.
//!
//! ```ignore
//! #[wharf::main(net = ["lan"])]
//! async fn main() -> Result<(), wharf::device::OpenError> {
//!     let interface = wharf::net::open("lan")?;
//!     let config = Config::ipv4_static(…);
//!     let (stack, mut runner) = embassy_net::new(interface, config, resources, seed);
//!     wharf::task::spawn(async move { runner.run().await });
//!     …
//! }
//! ```
//!
//! An [`Interface`] is a driver of `embassy-net`, whose sockets do the rest. Most
//! services want [`stream`](crate::stream) instead, which is faster and needs no
//! addresses.
//!
//! What is sent goes out when the guest next waits, all of it in one exit. The operator
//! says what is at the other end of the wire; it may lose frames like any other.

#![expect(unsafe_code, reason = "the device reads and writes buffers by address")]

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::task::{Context, Waker};

use critical_section::Mutex;
use embassy_net_driver::{Capabilities, Driver as EmbassyDriver, HardwareAddress, LinkState};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;
use wharf_abi::DeviceKind;
use wharf_abi::device::{FEATURE_EVENT_IDX, FEATURE_VERSION_1};
use wharf_abi::net::{
    CONFIG_MAC_AT, FEATURE_MAC, FEATURE_MTU, FRAME_MAX, HEADER_LEN, QUEUE_RECEIVE, QUEUE_TRANSMIT,
    RECEIVE_MIN,
};

use crate::device::{self, Driver, OpenError, Taken};
use crate::transport::{OwnMemory, UsedEvent};

/// Entries of each queue, and buffers in it at most.
const QUEUE_SIZE: usize = 64;

/// Receive buffers at first. There are more once the host has used all of them between
/// two looks: memory that is touched first is an expensive fault.
const RECEIVE_FIRST: usize = 8;

const FEATURES: u64 = FEATURE_VERSION_1 | FEATURE_EVENT_IDX | FEATURE_MAC | FEATURE_MTU;

/// A header and the longest frame.
type Buffer = Box<[u8; RECEIVE_MIN]>;

/// An Ethernet port.
pub struct Interface(&'static Device);

/// Opens the device that the manifest declares by this name (`net = ["…"]`).
///
/// It stays open: its rings are the host's to look at for as long as the guest lives,
/// so they are never freed.
///
/// # Errors
///
/// When there is none, or it is open already.
pub fn open(name: &str) -> Result<Interface, OpenError> {
    let Taken {
        place,
        mut transport,
        ..
    } = device::take(DeviceKind::Net, name, FEATURES)?;
    let refused = |_| OpenError::Refused;
    let mac = transport
        .read_config_space(CONFIG_MAC_AT)
        .map_err(|_| OpenError::Refused)?;
    let mut receive = Receive {
        queue: VirtQueue::new(&mut transport, QUEUE_RECEIVE, false, true).map_err(refused)?,
        in_flight: [const { None }; QUEUE_SIZE],
        buffers: 0,
        arrived: VecDeque::new(),
        waker: None,
    };
    let transmit = Transmit {
        queue: VirtQueue::new(&mut transport, QUEUE_TRANSMIT, false, true).map_err(refused)?,
        in_flight: [const { None }; QUEUE_SIZE],
        free: Vec::new(),
        added: 0,
        popped: 0,
        used_event: transport.used_event(QUEUE_TRANSMIT),
        waker: None,
    };
    receive.grow(RECEIVE_FIRST);
    transport.finish_init();
    let device: &'static Device = Box::leak(Box::new(Device {
        mac,
        state: Mutex::new(RefCell::new(State { receive, transmit })),
    }));
    device::register(place, device);
    // Only a host that has looked knows that frames may come.
    device::submitted();
    Ok(Interface(device))
}

impl Interface {
    /// Returns the port's address, which the host gave it. Frames from any other go
    /// nowhere.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.0.mac
    }
}

impl fmt::Debug for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mac = self.mac();
        f.debug_struct("Interface").field("mac", &mac).finish()
    }
}

impl EmbassyDriver for Interface {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken;

    fn receive(&mut self, context: &mut Context<'_>) -> Option<(RxToken, TxToken)> {
        let device = self.0;
        device.with(|state| {
            // Whoever receives may have to answer.
            if !state.transmit.has_room(context) {
                return None;
            }
            let arrived = Some(state.receive.next(context)?);
            Some((RxToken { device, arrived }, TxToken(device)))
        })
    }

    fn transmit(&mut self, context: &mut Context<'_>) -> Option<TxToken> {
        let device = self.0;
        let has_room = device.with(|state| state.transmit.has_room(context));
        has_room.then_some(TxToken(device))
    }

    fn link_state(&mut self, _: &mut Context<'_>) -> LinkState {
        // There is no wire that could be pulled.
        LinkState::Up
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.max_transmission_unit = FRAME_MAX;
        capabilities
    }

    fn hardware_address(&self) -> HardwareAddress {
        HardwareAddress::Ethernet(self.0.mac)
    }
}

/// A frame that has arrived. Its buffer goes back to the device with the token.
#[derive(Debug)]
pub struct RxToken {
    device: &'static Device,
    arrived: Option<Arrived>,
}

impl embassy_net_driver::RxToken for RxToken {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, look: F) -> R {
        // It has its buffer until it is dropped.
        let frame = self.arrived.as_mut().and_then(|arrived| {
            let end = HEADER_LEN + arrived.len;
            arrived.buffer.get_mut(HEADER_LEN..end)
        });
        look(frame.unwrap_or_default())
    }
}

impl Drop for RxToken {
    fn drop(&mut self) {
        if let Some(arrived) = self.arrived.take() {
            let offer = |state: &mut State| state.receive.offer(arrived.buffer);
            self.device.with(offer);
        }
    }
}

/// Room for a frame to be sent.
#[derive(Debug)]
pub struct TxToken(&'static Device);

impl embassy_net_driver::TxToken for TxToken {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut buffer = self.0.with(|state| state.transmit.buffer());
        let len = len.min(FRAME_MAX);
        let frame = buffer.get_mut(HEADER_LEN..HEADER_LEN + len);
        let written = write(frame.unwrap_or_default());
        self.0.with(|state| state.transmit.add(buffer, len));
        written
    }
}

struct Device {
    mac: [u8; 6],
    state: Mutex<RefCell<State>>,
}

struct State {
    receive: Receive,
    transmit: Transmit,
}

impl Device {
    fn with<T>(&self, use_it: impl FnOnce(&mut State) -> T) -> T {
        critical_section::with(|cs| use_it(&mut self.state.borrow_ref_mut(cs)))
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("mac", &self.mac).finish()
    }
}

impl Driver for Device {
    fn ready(&self) {
        let wakers = self.with(|state| {
            let State { receive, transmit } = state;
            receive.take_packets();
            transmit.reclaim();
            let has_arrived = !receive.arrived.is_empty();
            let receiver = receive.waker.take_if(|_| has_arrived);
            [receiver, transmit.who_waits()]
        });
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    fn settle(&self) {
        let waker = self.with(|state| {
            let transmit = &mut state.transmit;
            transmit.reclaim();
            let waker = transmit.who_waits();
            // A frame that went out is news only when somebody waits for its room. Else
            // every wait would end at once, by what was sent at its beginning.
            let number = if transmit.waker.is_some() {
                transmit.popped
            } else {
                transmit.added
            };
            transmit.used_event.set(number);
            waker
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The receive ring and its buffers.
struct Receive {
    queue: VirtQueue<OwnMemory, QUEUE_SIZE>,
    /// What the device has, by token.
    in_flight: [Option<Buffer>; QUEUE_SIZE],
    /// Buffers that there are, wherever they are.
    buffers: usize,
    arrived: VecDeque<Arrived>,
    waker: Option<Waker>,
}

/// A frame of `len` bytes behind the header.
#[derive(Debug)]
struct Arrived {
    buffer: Buffer,
    len: usize,
}

impl Receive {
    /// Takes the frame that has waited longest, or leaves word for when one comes.
    fn next(&mut self, context: &Context<'_>) -> Option<Arrived> {
        let arrived = self.arrived.pop_front();
        if arrived.is_none() {
            leave_word(&mut self.waker, context);
        }
        arrived
    }

    /// Takes out of the ring what the device has filled.
    fn take_packets(&mut self) {
        let mut count = 0;
        while let Some(token) = self.queue.peek_used() {
            let slot = self.in_flight.get_mut(usize::from(token));
            let Some(mut buffer) = slot.and_then(Option::take) else {
                break;
            };
            // SAFETY: this is the buffer that was added for this token.
            let popped = unsafe {
                self.queue
                    .pop_used(token, &[], &mut [buffer.as_mut_slice()])
            };
            let Ok(len) = popped else {
                break;
            };
            count += 1;
            let len = (len as usize).min(RECEIVE_MIN).saturating_sub(HEADER_LEN);
            self.arrived.push_back(Arrived { buffer, len });
        }
        if count > 0 && count == self.buffers {
            self.grow(count);
        }
    }

    /// Makes so many more buffers, of which there are [`QUEUE_SIZE`] at most.
    fn grow(&mut self, count: usize) {
        for _ in 0..count.min(QUEUE_SIZE.saturating_sub(self.buffers)) {
            self.buffers += 1;
            self.offer(Box::new([0; RECEIVE_MIN]));
        }
    }

    /// Puts a buffer into the ring.
    fn offer(&mut self, mut buffer: Buffer) {
        // SAFETY: the buffer is kept below until its token is popped, and nobody looks
        // at it before; moving the box moves none of its bytes.
        let added = unsafe { self.queue.add(&[], &mut [buffer.as_mut_slice()]) };
        // There are no more buffers than the ring has entries.
        if let Ok(token) = added
            && let Some(slot) = self.in_flight.get_mut(usize::from(token))
        {
            *slot = Some(buffer);
        }
    }
}

/// The transmit ring and the frames in it.
struct Transmit {
    queue: VirtQueue<OwnMemory, QUEUE_SIZE>,
    /// What the device has, by token.
    in_flight: [Option<Sent>; QUEUE_SIZE],
    free: Vec<Buffer>,
    /// Frames put in since the beginning.
    added: u16,
    /// Frames taken back.
    popped: u16,
    used_event: UsedEvent,
    waker: Option<Waker>,
}

/// A buffer and the bytes of it that are sent.
struct Sent {
    buffer: Buffer,
    len: usize,
}

impl Transmit {
    /// Says whether a frame could be sent now, or leaves word for when one can.
    fn has_room(&mut self, context: &Context<'_>) -> bool {
        if self.queue_is_full() {
            self.reclaim();
        }
        let has_room = !self.queue_is_full();
        if !has_room {
            leave_word(&mut self.waker, context);
        }
        has_room
    }

    /// Who waits for room that there is now.
    fn who_waits(&mut self) -> Option<Waker> {
        let has_room = !self.queue_is_full();
        self.waker.take_if(|_| has_room)
    }

    fn queue_is_full(&self) -> bool {
        self.queue.available_desc() == 0
    }

    /// A buffer whose header is all zeroes, as it has to be.
    fn buffer(&mut self) -> Buffer {
        let free = self.free.pop();
        free.unwrap_or_else(|| Box::new([0; RECEIVE_MIN]))
    }

    /// Puts a frame into the ring, for which there was room.
    fn add(&mut self, buffer: Buffer, len: usize) {
        let packet = buffer.get(..HEADER_LEN + len).unwrap_or_default();
        // SAFETY: the buffer is kept below until its token is popped, and nobody writes
        // to it before; moving the box moves none of its bytes.
        let added = unsafe { self.queue.add(&[packet], &mut []) };
        // Without room it is lost, as frames are.
        if let Ok(token) = added
            && let Some(slot) = self.in_flight.get_mut(usize::from(token))
        {
            *slot = Some(Sent { buffer, len });
            self.added = self.added.wrapping_add(1);
            device::submitted();
        }
    }

    fn reclaim(&mut self) {
        while let Some(token) = self.queue.peek_used() {
            let slot = self.in_flight.get_mut(usize::from(token));
            let Some(Sent { buffer, len }) = slot.and_then(Option::take) else {
                break;
            };
            let packet = buffer.get(..HEADER_LEN + len).unwrap_or_default();
            // SAFETY: these are the bytes that were added for this token.
            let popped = unsafe { self.queue.pop_used(token, &[packet], &mut []) };
            if popped.is_err() {
                break;
            }
            self.popped = self.popped.wrapping_add(1);
            self.free.push(buffer);
        }
    }
}

fn leave_word(waker: &mut Option<Waker>, context: &Context<'_>) {
    if !(waker.as_ref()).is_some_and(|it| it.will_wake(context.waker())) {
        *waker = Some(context.waker().clone());
    }
}
