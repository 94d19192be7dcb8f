//! Frames: an Ethernet port, as `wharf_abi::net` has it.
//!
//! ```text
//!   transmit queue ──▶ header, frame ──▶ wire
//!   receive queue  ◀── header, frame ◀── wire
//! ```
//!
//! A frame is copied once each way, in and out of the guest's memory; nothing is kept
//! here. What the guest does not take stays with the wire, which keeps no more than it
//! likes.

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use virtio_queue::Queue;
use wharf_abi::device::QUEUES_MAX;
use wharf_abi::net::{
    CONFIG_LEN, CONFIG_MAC_AT, CONFIG_MTU_AT, DEVICE_TYPE, FEATURE_MAC, FEATURE_MTU, FRAME_MAX,
    FRAME_MIN, HEADER_LEN, MTU, NUM_BUFFERS_AT, QUEUE_RECEIVE, QUEUE_TRANSMIT, RECEIVE_MIN,
};

use super::chain::Chain;
use super::ring::{self, Budget, Receiving, give_back};
use super::user::UserMemory;
use super::{Broken, Terms};
use crate::handover::Luggage;
use crate::memory::u64_of;

const QUEUE_SIZE: u16 = 256;

/// What a frame costs of a look at least, in bytes: a short one is as much work as one
/// of so many.
const WORK_MIN: u64 = 512;

/// The address of an Ethernet port.
pub type Mac = [u8; 6];

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The guest sends it.
    FromGuest,
    /// It is for the guest.
    ToGuest,
}

/// What the port of a guest is plugged into. Nothing in it blocks.
pub trait Wire: fmt::Debug + Send {
    /// Becomes readable when a frame has arrived, and stays so until
    /// [`Wire::has_looked`].
    fn fd(&self) -> BorrowedFd<'_>;

    /// The port's own address. Never changes.
    fn mac(&self) -> Mac;

    /// Most bytes behind the Ethernet header that get through, as far as is known. Never
    /// changes, and is [`MTU`] at most to a guest.
    fn mtu(&self) -> u16;

    /// The guest has its driver: frames may come.
    fn open(&mut self);

    /// What has arrived so far was seen, if not taken.
    fn has_looked(&mut self);

    /// Takes the frame that has waited longest.
    fn receive(&mut self) -> Option<Arc<[u8]>>;

    /// Sends a frame of [`FRAME_MIN`] to [`FRAME_MAX`] bytes, of which the wire may
    /// believe nothing. It may be lost.
    fn send(&mut self, frame: &[u8]);

    /// A frame that was none, too short or too long, went nowhere.
    fn was_dropped(&mut self, way: Way);

    /// Describes itself, for the same code in another process, which makes one of that
    /// which is open when this is. Nothing of it is changed.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    fn carry(&mut self, luggage: &mut Luggage) -> io::Result<Value>;
}

/// The Ethernet port of a guest.
#[derive(Debug)]
pub struct Frames {
    wire: Box<dyn Wire>,
    is_open: bool,
    /// Another guest has this one's place, and its wire.
    is_held: bool,
    buffers: Receiving,
}

/// A port, for another process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CarriedFrames {
    is_open: bool,
}

/// What the driver is told of a port.
pub(super) fn terms(frames: &Frames) -> Terms {
    let mut config = vec![0; CONFIG_LEN];
    let (mac, mtu) = (frames.wire.mac(), MTU.to_le_bytes());
    let fields = [
        (CONFIG_MAC_AT, mac.as_slice()),
        (CONFIG_MTU_AT, mtu.as_slice()),
    ];
    for (at, field) in fields {
        for (to, from) in config.iter_mut().skip(at).zip(field) {
            *to = *from;
        }
    }
    Terms {
        device_type: DEVICE_TYPE,
        features: FEATURE_MAC | FEATURE_MTU,
        queue_count: 2,
        queue_size_max: QUEUE_SIZE,
        config,
    }
}

impl Frames {
    /// A port that is plugged into a wire.
    #[must_use]
    pub fn new(wire: Box<dyn Wire>) -> Self {
        Self {
            wire,
            is_open: false,
            is_held: false,
            buffers: Receiving::new(u64_of(RECEIVE_MIN)),
        }
    }

    /// Describes itself and its wire.
    ///
    /// # Errors
    ///
    /// As [`Wire::carry`].
    pub(super) fn carry(&mut self, luggage: &mut Luggage) -> io::Result<(CarriedFrames, Value)> {
        let is_open = self.is_open;
        Ok((CarriedFrames { is_open }, self.wire.carry(luggage)?))
    }

    /// Goes on where another was, with the same wire.
    pub(super) const fn carry_on(&mut self, carried: &CarriedFrames) {
        self.is_open = carried.is_open;
    }

    /// Whether it has taken a buffer out that it has not used.
    pub(super) const fn has_spare(&self) -> bool {
        self.buffers.is_waiting()
    }

    /// The port's own address.
    pub(crate) fn mac(&self) -> Mac {
        self.wire.mac()
    }

    /// Most bytes behind the Ethernet header of what the guest should send, for one that
    /// is told. wharf's own contract has one number for all.
    pub(crate) fn mtu(&self) -> u16 {
        self.wire.mtu().min(MTU)
    }

    /// The wire, for a guest that has no rings.
    pub(crate) fn into_wire(self) -> Box<dyn Wire> {
        self.wire
    }

    /// What becomes readable when a frame has arrived.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.wire.fd()
    }

    /// Keeps a guest off its wire that has not been on it: what it sends waits in its
    /// ring until it is let.
    pub(super) const fn hold(&mut self) {
        self.is_held = true;
    }

    /// Lets it go there, at the next look.
    pub(super) const fn own(&mut self) {
        self.is_held = false;
    }

    /// Does what is to be done in both queues, as far as the budget goes; says whether
    /// there is more.
    ///
    /// # Errors
    ///
    /// The guest's fault, with the queue.
    pub(super) fn serve(
        &mut self,
        queues: &mut [Option<Queue>; QUEUES_MAX],
        user: UserMemory<'_>,
        budget: &mut Budget,
    ) -> Result<bool, (u16, Broken)> {
        if self.is_held {
            return Ok(false);
        }
        let [receive, transmit, ..] = queues;
        if !self.is_open {
            self.is_open = true;
            self.wire.open();
        }
        // Before it is looked: what comes later than that is told of again. And also
        // when the guest has no room, which it will say by itself once it has.
        self.wire.has_looked();
        let mut more = false;
        if let Some(queue) = transmit {
            let send = |chain: &_| Ok((0, self.send(user, chain)?.max(WORK_MIN)));
            more |= ring::drain(queue, user, budget, send)
                .map_err(|broken| (QUEUE_TRANSMIT, broken))?;
        }
        if let Some(queue) = receive {
            more |= self
                .receive(queue, user, budget)
                .map_err(|broken| (QUEUE_RECEIVE, broken))?;
        }
        Ok(more)
    }

    /// Sends one frame, of which a copy is made first: the guest may change it at any
    /// time. Returns the bytes that were moved.
    fn send(&mut self, user: UserMemory<'_>, chain: &Chain) -> Result<u64, Broken> {
        let header = u64_of(HEADER_LEN);
        let Some(len) = chain.readable_len().checked_sub(header) else {
            return Err(Broken::NoHeader);
        };
        let mut frame = [0; FRAME_MAX];
        let room = usize::try_from(len)
            .ok()
            .filter(|len| *len >= FRAME_MIN)
            .and_then(|len| frame.get_mut(..len));
        let Some(room) = room else {
            self.wire.was_dropped(Way::FromGuest);
            return Ok(0);
        };
        chain.readable(user, header, len)?.copy_out(room);
        self.wire.send(room);
        Ok(len)
    }

    /// Gives the guest what has arrived, as long as it has buffers; says whether there
    /// is more that would fit.
    fn receive(
        &mut self,
        queue: &mut Queue,
        user: UserMemory<'_>,
        budget: &mut Budget,
    ) -> Result<bool, Broken> {
        loop {
            if budget.is_spent() {
                return Ok(true);
            }
            let Some(chain) = self.buffers.buffer(queue, user)? else {
                return Ok(false);
            };
            let Some(frame) = self.wire.receive() else {
                self.buffers.keep(chain);
                return Ok(false);
            };
            let Some(written) = write(&chain, user, &frame)? else {
                self.buffers.keep(chain);
                self.wire.was_dropped(Way::ToGuest);
                budget.spend(WORK_MIN);
                continue;
            };
            give_back(queue, user, &chain, written)?;
            budget.spend(u64_of(frame.len()).max(WORK_MIN));
        }
    }
}

/// Writes a packet into a buffer and returns its bytes; none when the frame is not one.
fn write(chain: &Chain, user: UserMemory<'_>, frame: &[u8]) -> Result<Option<u32>, Broken> {
    if frame.len() < FRAME_MIN || frame.len() > FRAME_MAX {
        return Ok(None);
    }
    let mut packet = Vec::with_capacity(RECEIVE_MIN);
    packet.resize(NUM_BUFFERS_AT, 0);
    packet.extend(1_u16.to_le_bytes());
    packet.extend(frame);
    let len = u64_of(packet.len());
    chain.writable(user, 0, len)?.copy_in(&packet);
    Ok(u32::try_from(len).ok())
}
