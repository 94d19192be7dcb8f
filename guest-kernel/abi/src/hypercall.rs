//! What a guest can ask of the host while it runs.
//!
//! A hypercall is a one-byte output to the call's own port, such as
//! `out imm8, al` (opcode `E6 ib`); neither the byte nor the instruction means
//! anything. Arguments go in RDI and RSI; the host answers in RAX (a [`Status`]) and RDX
//! (the value, 0 when there is none) and leaves every other register as it was.
//!
//! The host opens exactly the ports of the calls it implements in the TSS I/O
//! permission bitmap (Intel SDM vol. 1 §19.5.2), byte-wide and for output
//! only: any other port, width or direction ends the guest with a fault.

use crate::manifest::DEVICES_MAX;

/// The hypercalls, with the number that makes their port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Hypercall {
    /// Ends the guest. RDI: exit status, of which the low 8 bits count.
    /// Does not return.
    Exit = 0,
    /// Parks the guest until a deadline or an event.
    ///
    /// RDI: deadline in monotonic nanoseconds of the boot page's
    /// [`Clock`](crate::Clock), [`FOREVER`] for none. RSI: [`Interest`] bits
    /// that end the wait early. Returns in RDX the bits that are ready;
    /// [`Interest::TIMER`] when the deadline has passed. A deadline in the past
    /// returns at once. [`Status::Invalid`] when RSI has an unknown bit.
    ///
    /// Before it parks the guest, and before it answers, the host serves every
    /// queue of every device that is set up: a guest that waits need not kick. It
    /// serves a bounded amount at a time, so there may be more to come when it
    /// answers.
    Wait = 1,
    /// Writes bytes to the task's console.
    ///
    /// RDI: address, RSI: length in bytes. The host takes at most
    /// [`CONSOLE_WRITE_MAX`] bytes a call and returns in RDX how many it took,
    /// which is at least one unless the length is 0.
    /// The whole range must be readable by the guest, else the call is a fault;
    /// a length of 0 is answered without a look at the address.
    ConsoleWrite = 2,
    /// Has the host serve one queue now, for a guest that has no reason to wait.
    ///
    /// RDI: the device's place in the device table, times 2¹⁶, plus the queue's
    /// number ([`kick_target`]). Returns 0 in RDX; [`Status::Invalid`] when there is
    /// no such device, no such queue, or it is not set up.
    Kick = 3,
    /// Hands state and connections over to the next generation, as
    /// [`upgrade`](crate::upgrade) says.
    ///
    /// RDI: address, RSI: length in bytes of the block, which the guest must be able to
    /// read, else the call is a fault. Before it parks the guest, the host takes what is
    /// in the queues on which streams transmit, and puts nothing into any other. Returns
    /// 0 in RDX when the guest is to go on; [`Status::Invalid`] when nobody asked for it,
    /// or the block is none or larger than it may be. Else it does not return.
    HandOver = 4,
    /// Reports that the guest serves. Returns 0 in RDX; a second time it means nothing.
    ///
    /// A guest need not make this call: its first wait without
    /// [`Interest::STARTING`] says the same.
    Ready = 5,
}

/// Port of hypercall number 0; number *n* is at `PORT_BASE + n`.
///
/// Below 0x100, so that the port fits the one-byte immediate form of `out` and
/// a guest need not give up DX.
pub const PORT_BASE: u16 = 0xE0;

/// Deadline of a [`Hypercall::Wait`] that no time ends.
pub const FOREVER: u64 = u64::MAX;

/// Most bytes that one [`Hypercall::ConsoleWrite`] takes: a page, the size up to
/// which a write to a pipe that polls writable does not block.
pub const CONSOLE_WRITE_MAX: usize = 4096;

impl Hypercall {
    /// Every call. The ports of other numbers stay closed.
    pub const ALL: [Self; 6] = [
        Self::Exit,
        Self::Wait,
        Self::ConsoleWrite,
        Self::Kick,
        Self::HandOver,
        Self::Ready,
    ];

    /// The I/O port of this call.
    #[must_use]
    pub const fn port(self) -> u16 {
        PORT_BASE + self as u16
    }

    /// The call behind a port, if there is one.
    #[must_use]
    pub fn from_port(port: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|call| call.port() == port)
    }
}

/// The argument of a [`Hypercall::Kick`] for queue `queue` of the device at place
/// `device` of the device table.
#[must_use]
pub const fn kick_target(device: u16, queue: u16) -> u64 {
    (device as u64) << 16 | queue as u64
}

/// How the host answers a hypercall, in RAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Status {
    /// Done; RDX holds the value.
    Ok = 0,
    /// An argument has no meaning in this version. Nothing was done.
    Invalid = 1,
}

impl Status {
    /// The status as it goes into RAX.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self as u64
    }

    /// The status behind a value of RAX; `None` from a newer host.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Option<Self> {
        match raw {
            0 => Some(Self::Ok),
            1 => Some(Self::Invalid),
            _ => None,
        }
    }
}

/// What a hypercall returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Answer {
    /// In RAX.
    pub status: Status,
    /// In RDX.
    pub value: u64,
}

impl Answer {
    /// Refusal of an argument.
    pub const INVALID: Self = Self {
        status: Status::Invalid,
        value: 0,
    };

    /// Success with a value.
    #[must_use]
    pub const fn ok(value: u64) -> Self {
        Self {
            status: Status::Ok,
            value,
        }
    }
}

/// A set of events: what a [`Hypercall::Wait`] waits for, and what is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Interest(u64);

impl Interest {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// The deadline has passed. Always of interest; setting it changes nothing.
    pub const TIMER: Self = Self(1 << 0);
    /// The host asks the guest to end. A guest that waits with this bit is told
    /// so and given time; one without it is ended where it stands.
    pub const STOP: Self = Self(1 << 1);
    /// The next generation of the task could begin: see [`upgrade`](crate::upgrade).
    pub const UPGRADE: Self = Self(1 << 2);
    /// No event but a word to the host: the guest does not serve yet.
    pub const STARTING: Self = Self(1 << 3);

    /// A device has something for the guest: bit 8 + *n* for the device at place
    /// *n* of the device table, whether or not there is one.
    ///
    /// A device is ready for as long as one of its queues has a used index that has
    /// passed the guest's `used_event` (virtio 1.2 §2.7.7.1), so a guest that looks
    /// at its used rings before it waits misses nothing.
    pub const DEVICES: Self = Self(0xFFFF << Self::DEVICE_SHIFT);

    /// Every bit that this version knows.
    pub const ALL: Self =
        Self(Self::TIMER.0 | Self::STOP.0 | Self::UPGRADE.0 | Self::STARTING.0 | Self::DEVICES.0);

    /// The bit of the first device.
    const DEVICE_SHIFT: u32 = 8;

    /// The bit of the device at a place of the device table; nothing for a place
    /// that no table has.
    #[must_use]
    pub const fn device(place: usize) -> Self {
        if place < DEVICES_MAX {
            Self(1 << (Self::DEVICE_SHIFT as usize + place))
        } else {
            Self::NONE
        }
    }

    /// The set behind a register, or `None` when it has a bit that this version
    /// does not know.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        if bits & !Self::ALL.0 == 0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// The set behind a register without the bits that this version does not know.
    #[must_use]
    pub const fn from_bits_truncate(bits: u64) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// The set as it goes into a register.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Says whether every event of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The events that are in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The events of both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Hypercall, Interest, PORT_BASE};

    #[test]
    fn only_calls_have_a_port_that_answers() {
        let answering: std::vec::Vec<_> = (0..=u16::MAX)
            .filter_map(|port| Hypercall::from_port(port).map(|call| (port, call)))
            .collect();
        assert_eq!(
            answering,
            [
                (PORT_BASE, Hypercall::Exit),
                (PORT_BASE + 1, Hypercall::Wait),
                (PORT_BASE + 2, Hypercall::ConsoleWrite),
                (PORT_BASE + 3, Hypercall::Kick),
                (PORT_BASE + 4, Hypercall::HandOver),
                (PORT_BASE + 5, Hypercall::Ready),
            ]
        );
    }

    #[test]
    fn an_unknown_interest_bit_is_no_set() {
        assert_eq!(Interest::from_bits(0xFF_FF0F), Some(Interest::ALL));
        for bit in (4..8).chain(24..64) {
            assert_eq!(Interest::from_bits(1 << bit), None);
        }
        assert_eq!(Interest::from_bits_truncate(u64::MAX), Interest::ALL);
    }

    #[test]
    fn each_place_of_the_device_table_has_a_bit() {
        let all = (0..64).fold(Interest::NONE, |all, place| {
            all.union(Interest::device(place))
        });
        assert_eq!(all, Interest::DEVICES);
        assert_eq!(Interest::device(0).bits(), 1 << 8);
        assert_eq!(Interest::device(15).bits(), 1 << 23);
        assert_eq!(Interest::device(16), Interest::NONE);
    }

    extern crate std;
}
