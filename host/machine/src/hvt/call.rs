//! The hypercalls of hvt guests.
//!
//! Each is a 32-bit output of an address to a port of its own. At the address are the
//! call's arguments, and room for its results (Solo5's `hvt_abi.h`), all of them words
//! of 64 bits but for a status of 32 at the end. They are copied once, before anything
//! is looked at. The guest must be able to read all of it and, where there are results,
//! to write it, up to the last byte of its memory: what it may not touch itself it gets
//! nothing from.

use serde::{Deserialize, Serialize};
use vm_memory::Permissions;

use crate::device::UserMemory;
use crate::fault::{Cause, Direction as PortDirection};
use crate::space::UserSlice;

/// Port of call number 0, which is reserved.
const PORT_BASE: u16 = 0x500;

/// The ports that the TSS opens. A 32-bit output needs the bits of four, so three more
/// are open than there are calls; what comes through them is refused at the exit.
pub(crate) const PORTS_OPEN: std::ops::RangeInclusive<u16> = 0x501..=0x50B;

/// What the guest must be able to read behind a cookie, in bytes.
const COOKIE_LEN: u64 = 512;

/// What a call returns (Solo5's `solo5_result_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Status {
    /// Done.
    Ok = 0,
    /// Nothing is there now.
    Again = 1,
    /// An argument has no meaning.
    Invalid = 2,
    /// It could not be done.
    Unspecified = 3,
}

/// A call with its arguments, none of them checked but for where its results go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Tell the time.
    WallTime(WallTime),
    /// Write to the console.
    Puts(UserSlice),
    /// Wait for a frame, but not longer than so many nanoseconds.
    Poll(Poll, u64),
    /// Move bytes between a block device and memory.
    Block(Block, Direction),
    /// Move a frame between a net device and memory.
    Net(Net, Direction),
    /// End.
    Halt {
        /// With this status.
        status: u8,
    },
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the guest.
    Read,
    /// From the guest.
    Write,
}

/// Where the time goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WallTime {
    at: u64,
}

/// Where it goes what is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Poll {
    at: u64,
}

/// Bytes of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    at: u64,
    pub(crate) handle: u64,
    pub(crate) offset: u64,
    pub(crate) buffer: UserSlice,
}

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Net {
    at: u64,
    pub(crate) handle: u64,
    pub(crate) buffer: UserSlice,
}

impl Call {
    /// Reads the call that an output of so many `bytes`, the address in `value`, to
    /// `port` is.
    ///
    /// # Errors
    ///
    /// The guest's fault: there is no such call, or its arguments are nowhere.
    pub(crate) fn read(
        port: u16,
        bytes: usize,
        value: u32,
        user: UserMemory<'_>,
    ) -> Result<Self, Cause> {
        let no_call = Cause::port(port, PortDirection::Out, bytes);
        let number = port.checked_sub(PORT_BASE).filter(|_| bytes == 4);
        let at = u64::from(value);
        match number.ok_or(no_call)? {
            1 => {
                results::<1>(user, at)?;
                Ok(Self::WallTime(WallTime { at }))
            }
            2 => {
                let [addr, len] = arguments(user, at)?;
                Ok(Self::Puts(UserSlice { addr, len }))
            }
            3 => {
                let [timeout_ns, _, _] = results(user, at)?;
                Ok(Self::Poll(Poll { at }, timeout_ns))
            }
            4 => Ok(Self::Block(Block::read(user, at)?, Direction::Write)),
            5 => Ok(Self::Block(Block::read(user, at)?, Direction::Read)),
            6 => Ok(Self::Net(Net::read(user, at)?, Direction::Write)),
            7 => Ok(Self::Net(Net::read(user, at)?, Direction::Read)),
            8 => {
                let [cookie, status] = arguments(user, at)?;
                let said = UserSlice {
                    addr: cookie,
                    len: COOKIE_LEN,
                };
                if cookie != 0 {
                    check(user, said, Permissions::Read)?;
                }
                let [status, ..] = status.to_le_bytes();
                Ok(Self::Halt { status })
            }
            _ => Err(no_call),
        }
    }
}

impl WallTime {
    /// Answers with the time since 1970.
    pub(crate) fn answer(self, user: UserMemory<'_>, ns: u64) -> Result<(), Cause> {
        put(user, self.at, &ns.to_le_bytes())
    }
}

impl Poll {
    /// Answers with the handles that are ready, a bit each.
    pub(crate) fn answer(self, user: UserMemory<'_>, ready: u64) -> Result<(), Cause> {
        put(user, self.at.saturating_add(8), &ready.to_le_bytes())?;
        let count = ready.count_ones();
        put(user, self.at.saturating_add(16), &count.to_le_bytes())
    }
}

impl Block {
    fn read(user: UserMemory<'_>, at: u64) -> Result<Self, Cause> {
        let [handle, offset, addr, len, _] = results(user, at)?;
        Ok(Self {
            at,
            handle,
            offset,
            buffer: UserSlice { addr, len },
        })
    }

    /// Answers with how it went.
    pub(crate) fn answer(self, user: UserMemory<'_>, status: Status) -> Result<(), Cause> {
        put(user, self.at.saturating_add(32), &status.to_le_bytes())
    }
}

impl Net {
    fn read(user: UserMemory<'_>, at: u64) -> Result<Self, Cause> {
        let [handle, addr, len, _] = results(user, at)?;
        Ok(Self {
            at,
            handle,
            buffer: UserSlice { addr, len },
        })
    }

    /// Answers with how it went, and with the bytes of a frame that was received.
    pub(crate) fn answer(
        self,
        user: UserMemory<'_>,
        status: Status,
        received: Option<u64>,
    ) -> Result<(), Cause> {
        if let Some(len) = received {
            put(user, self.at.saturating_add(16), &len.to_le_bytes())?;
        }
        put(user, self.at.saturating_add(24), &status.to_le_bytes())
    }
}

impl Status {
    const fn to_le_bytes(self) -> [u8; 4] {
        let [byte, _, _, _] = match self {
            Self::Ok => 0_i32,
            Self::Again => 1,
            Self::Invalid => 2,
            Self::Unspecified => 3,
        }
        .to_le_bytes();
        [byte, 0, 0, 0]
    }
}

/// The words at an address that the guest has to be able to read.
fn arguments<const N: usize>(user: UserMemory<'_>, at: u64) -> Result<[u64; N], Cause> {
    words(user, at, Permissions::Read)
}

/// The same where results are to be written.
fn results<const N: usize>(user: UserMemory<'_>, at: u64) -> Result<[u64; N], Cause> {
    words(user, at, Permissions::ReadWrite)
}

fn words<const N: usize>(
    user: UserMemory<'_>,
    at: u64,
    access: Permissions,
) -> Result<[u64; N], Cause> {
    let mut words = [0; N];
    let len = u64::try_from(size_of_val(&words)).unwrap_or(u64::MAX);
    check(user, UserSlice { addr: at, len }, access)?;
    for (word, n) in words.iter_mut().zip(0_u64..) {
        let addr = at.saturating_add(n.saturating_mul(8));
        let bytes = user.read(addr);
        *word = bytes.map_or(0, u64::from_le_bytes);
    }
    Ok(words)
}

fn check(user: UserMemory<'_>, slice: UserSlice, access: Permissions) -> Result<(), Cause> {
    let usable = user.buffers(slice.addr, slice.len, access);
    usable.map(drop).ok_or(Cause::BadPointer(slice))
}

fn put(user: UserMemory<'_>, addr: u64, bytes: &[u8]) -> Result<(), Cause> {
    let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    user.write(addr, bytes)
        .ok_or(Cause::BadPointer(UserSlice { addr, len }))
}

#[cfg(test)]
mod tests {
    use super::{Block, Call, Direction, Net, Poll, Status, WallTime};
    use crate::fault::{Cause, Direction as PortDirection};
    use crate::hvt::testing::{CODE, DATA, DATA_END, Guest, NOWHERE, OPERAND, READ_ONLY};
    use crate::space::UserSlice;

    fn read(guest: &Guest, number: u16, at: u64) -> Result<Call, Cause> {
        let at = u32::try_from(at).unwrap();
        Call::read(0x500 + number, 4, at, guest.user())
    }

    #[test]
    fn arguments_are_where_the_contract_has_them() {
        let guest = Guest::new();
        guest.put_words(OPERAND, &[11, 22, 33, 44, 55]);
        let at = OPERAND;
        let slice = |addr, len| UserSlice { addr, len };
        let block = Block {
            at,
            handle: 11,
            offset: 22,
            buffer: slice(33, 44),
        };
        let net = Net {
            at,
            handle: 11,
            buffer: slice(22, 33),
        };
        for (number, call) in [
            (1, Call::WallTime(WallTime { at })),
            (2, Call::Puts(slice(11, 22))),
            (3, Call::Poll(Poll { at }, 11)),
            (4, Call::Block(block, Direction::Write)),
            (5, Call::Block(block, Direction::Read)),
            (6, Call::Net(net, Direction::Write)),
            (7, Call::Net(net, Direction::Read)),
        ] {
            assert_eq!(read(&guest, number, at), Ok(call));
        }
    }

    #[test]
    fn a_status_is_what_a_process_has() {
        let guest = Guest::new();
        for (status, expected) in [(0_u64, 0), (255, 255), (256, 0), (0xFFFF_FFFF, 255)] {
            guest.put_words(OPERAND, &[0, status]);
            let status = expected;
            assert_eq!(read(&guest, 8, OPERAND), Ok(Call::Halt { status }));
        }
        // What a guest says of its end has to be readable, and is not looked at.
        guest.put_words(OPERAND, &[DATA_END + 4096 - 512, 1]);
        assert_eq!(read(&guest, 8, OPERAND), Ok(Call::Halt { status: 1 }));
        let addr = DATA_END + 4096 - 511;
        guest.put_words(OPERAND, &[addr, 1]);
        let said = UserSlice { addr, len: 512 };
        assert_eq!(read(&guest, 8, OPERAND), Err(Cause::BadPointer(said)));
    }

    #[test]
    fn what_is_no_call_is_a_fault() {
        let guest = Guest::new();
        for (port, bytes) in [
            (0x500, 4),
            (0x509, 4),
            (0x50B, 1),
            (0x600, 4),
            (0, 4),
            (0x4FF, 4),
            (u16::MAX, 4),
            (0x501, 1),
            (0x501, 2),
            (0x508, 8),
            (0x508, 0),
        ] {
            let at = u32::try_from(OPERAND).unwrap();
            let cause = Cause::port(port, PortDirection::Out, bytes);
            assert_eq!(Call::read(port, bytes, at, guest.user()), Err(cause));
        }
    }

    /// Bytes of each call's arguments, and whether there are results among them.
    const SIZES: [(u16, u64, bool); 8] = [
        (1, 8, true),
        (2, 16, false),
        (3, 24, true),
        (4, 40, true),
        (5, 40, true),
        (6, 32, true),
        (7, 32, true),
        (8, 16, false),
    ];

    #[test]
    fn arguments_are_all_in_memory_that_is_the_guests_to_use_so() {
        let guest = Guest::new();
        for (number, len, has_results) in SIZES {
            let refused = |addr| {
                let cause = Cause::BadPointer(UserSlice { addr, len });
                assert_eq!(
                    read(&guest, number, addr),
                    Err(cause),
                    "{number} at {addr:#x}"
                );
            };
            let taken = |at| {
                let call = read(&guest, number, at);
                assert!(call.is_ok(), "{number} at {at:#x}: {call:?}");
            };
            // Up to the last byte that can be used so, and not one further.
            let end = if has_results {
                DATA_END
            } else {
                READ_ONLY + 4096
            };
            taken(end - len);
            taken(DATA);
            refused(end - len + 1);
            refused(end - 1);
            for nowhere in [0, 1, 0x1000, CODE - 1, NOWHERE, u64::from(u32::MAX)] {
                refused(nowhere);
            }
            if has_results {
                refused(READ_ONLY);
                refused(CODE);
                refused(DATA - 1);
            } else {
                taken(READ_ONLY);
                taken(CODE);
            }
        }
    }

    #[test]
    fn results_go_where_the_contract_has_them_and_nowhere_else() {
        let guest = Guest::new();
        let user = guest.user();
        let filled = || guest.put_words(OPERAND, &[u64::MAX; 6]);
        let max = u64::MAX;
        let low = |value: u64| max << 32 | value;
        let at = OPERAND;
        let buffer = UserSlice { addr: 0, len: 0 };

        filled();
        WallTime { at }.answer(user, 7).unwrap();
        assert_eq!(guest.words(at), [7, max]);
        filled();
        Poll { at }.answer(user, 0b1010).unwrap();
        assert_eq!(guest.words(at), [max, 0b1010, low(2), max]);
        filled();
        let block = Block {
            at,
            handle: 0,
            offset: 0,
            buffer,
        };
        block.answer(user, Status::Unspecified).unwrap();
        assert_eq!(guest.words(at), [max, max, max, max, low(3), max]);
        let net = Net {
            at,
            handle: 0,
            buffer,
        };
        for (received, len) in [(Some(60), 60), (None, max)] {
            filled();
            net.answer(user, Status::Again, received).unwrap();
            assert_eq!(guest.words(at), [max, max, len, low(1), max]);
        }
    }
}
