//! The devices of an hvt guest: the back ends of any guest's, asked one request at a
//! time.
//!
//! A device's handle is its place in the manifest, where place 0 is nobody's. What a
//! guest asks of one is done before the guest goes on, so that a request has an end; it
//! is as large as the largest of any guest's.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_memory::Permissions;
use wharf_abi::net::{FRAME_MAX, FRAME_MIN};

use super::call::{Block, Direction, Net, Status};
use crate::device::{Backend, CarriedBackend, Disk, REQUEST_MAX, SECTOR, UserMemory, Way, Wire};
use crate::fault::Cause;
use crate::handover::{BytesRef, CarryError, Luggage};
use crate::memory::u64_of;

/// Everything that an hvt guest has a handle of.
#[derive(Debug)]
pub(crate) struct Devices {
    devices: Vec<Device>,
    wires: Wires,
}

/// Whether a guest is on the wires of its net devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Wires {
    /// It has not begun.
    Fresh,
    /// Another has its place: what it sends goes nowhere, and it hears nothing.
    Held,
    /// It is.
    Open,
}

#[derive(Debug)]
enum Device {
    Block(Box<dyn Disk>),
    Net(Port),
    /// What no manifest declares.
    None,
}

/// A net device, and the frame that was taken from it to see whether there is one.
struct Port {
    wire: Box<dyn Wire>,
    next: Option<Arc<[u8]>>,
}

impl Devices {
    /// Takes over the back ends, in the order of the manifest.
    pub(crate) fn new(backends: Vec<Backend>) -> Self {
        let device = |backend| match backend {
            Backend::Block(disk) => Device::Block(disk),
            Backend::Net(frames) => Device::Net(Port {
                wire: frames.into_wire(),
                next: None,
            }),
            Backend::Stream(_) | Backend::Entropy | Backend::Console(_) => Device::None,
        };
        Self {
            devices: backends.into_iter().map(device).collect(),
            wires: Wires::Fresh,
        }
    }

    /// The guest begins, or goes on: it listens, if it may. It has no driver that could
    /// say when it does.
    pub(crate) fn begin(&mut self) {
        if self.wires == Wires::Fresh {
            self.own_wires();
        }
    }

    /// Keeps a guest that has not begun off its wires.
    pub(crate) const fn hold_wires(&mut self) {
        self.wires = Wires::Held;
    }

    /// Gives it its wires, on which nothing has come so far.
    pub(crate) fn own_wires(&mut self) {
        if self.wires == Wires::Open {
            return;
        }
        self.wires = Wires::Open;
        for device in &mut self.devices {
            if let Device::Net(port) = device {
                port.wire.open();
            }
        }
    }

    /// Whether the guest is on its wires.
    pub(crate) const fn wires(&self) -> Wires {
        self.wires
    }

    /// Describes them: what is behind each, and the frame that was taken for it.
    ///
    /// # Errors
    ///
    /// When a file cannot be passed on.
    pub(crate) fn carry(
        &mut self,
        luggage: &mut Luggage,
    ) -> io::Result<(Vec<CarriedBackend>, Vec<Option<BytesRef>>)> {
        let (mut backends, mut frames) = (Vec::new(), Vec::new());
        for device in &mut self.devices {
            let (backend, frame) = match device {
                Device::Block(disk) => (CarriedBackend::Block(disk.carry(luggage)?), None),
                Device::Net(port) => {
                    let frame = port.next.as_ref().map(|frame| luggage.put_bytes(frame));
                    (CarriedBackend::Net(port.wire.carry(luggage)?), frame)
                }
                Device::None => (CarriedBackend::Entropy, None),
            };
            backends.push(backend);
            frames.push(frame);
        }
        Ok((backends, frames))
    }

    /// Goes on where others were. A wire is as it was.
    ///
    /// # Errors
    ///
    /// When a frame is not there.
    pub(crate) fn carry_on(
        backends: Vec<Backend>,
        (wires, frames): (Wires, &[Option<BytesRef>]),
        luggage: &Luggage,
    ) -> Result<Self, CarryError> {
        let none = std::iter::repeat(&None);
        let mut devices = Vec::new();
        for (backend, frame) in backends.into_iter().zip(frames.iter().chain(none)) {
            devices.push(match backend {
                Backend::Block(disk) => Device::Block(disk),
                Backend::Net(frames) => Device::Net(Port {
                    wire: frames.into_wire(),
                    next: frame
                        .map(|it| luggage.bytes(it))
                        .transpose()?
                        .map(Arc::from),
                }),
                Backend::Stream(_) | Backend::Entropy | Backend::Console(_) => Device::None,
            });
        }
        Ok(Self { devices, wires })
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// Its disks.
    pub(crate) fn disks(&self) -> impl Iterator<Item = &dyn Disk> {
        self.devices.iter().filter_map(|device| match device {
            Device::Block(disk) => Some(disk.as_ref()),
            Device::Net(_) | Device::None => None,
        })
    }

    /// The same, to be changed.
    pub(crate) fn disks_mut(&mut self) -> impl Iterator<Item = &mut Box<dyn Disk>> {
        self.devices.iter_mut().filter_map(|device| match device {
            Device::Block(disk) => Some(disk),
            Device::Net(_) | Device::None => None,
        })
    }

    /// Lets go of what stands behind them.
    pub(crate) fn release(&mut self) {
        self.devices.clear();
    }

    /// What becomes readable when a frame has arrived.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.devices.iter().filter_map(|device| match device {
            Device::Net(port) => Some(port.wire.fd()),
            Device::Block(_) | Device::None => None,
        })
    }

    /// The handles that have a frame for the guest, a bit each.
    pub(crate) fn ready(&mut self) -> u64 {
        let mut ready = 0;
        if self.wires != Wires::Open {
            return ready;
        }
        // Handle 0 is nobody's.
        for (device, handle) in self.devices.iter_mut().zip(1_u32..) {
            if let Device::Net(port) = device
                && port.has_frame()
            {
                ready |= 1_u64.checked_shl(handle).unwrap_or(0);
            }
        }
        ready
    }

    /// Reads or writes bytes of a block device, and says how that went.
    ///
    /// # Errors
    ///
    /// The guest's fault: it may not use its buffer so. As for the others.
    pub(crate) fn transfer(
        &mut self,
        user: UserMemory<'_>,
        block: &Block,
        direction: Direction,
    ) -> Result<Status, Cause> {
        let Some(Device::Block(disk)) = self.of(block.handle) else {
            return Ok(Status::Invalid);
        };
        let (at, len) = (block.offset, block.buffer.len);
        let fits = at.checked_add(len).is_some_and(|end| end <= disk.len());
        let whole = at.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
        if !fits || !whole || len > REQUEST_MAX || at >= disk.len() {
            return Ok(Status::Invalid);
        }
        let access = match direction {
            Direction::Read => Permissions::Write,
            Direction::Write => Permissions::Read,
        };
        let Some(buffers) = user.buffers(block.buffer.addr, len, access) else {
            return Err(Cause::BadPointer(block.buffer));
        };
        let done = match direction {
            Direction::Read => disk.read(at, &buffers),
            Direction::Write if disk.is_read_only() => {
                Err(io::ErrorKind::ReadOnlyFilesystem.into())
            }
            Direction::Write => disk.write(at, &buffers),
        };
        Ok(match done {
            Ok(()) => Status::Ok,
            Err(error) => {
                log::debug!("{}: {error}", disk.id());
                Status::Unspecified
            }
        })
    }

    /// Sends a frame. As long as it is one it is sent, though the wire may lose it.
    pub(crate) fn send(&mut self, user: UserMemory<'_>, net: &Net) -> Result<Status, Cause> {
        let is_open = self.wires == Wires::Open;
        let Some(Device::Net(port)) = self.of(net.handle) else {
            return Ok(Status::Invalid);
        };
        let mut frame = [0; FRAME_MAX];
        let room = usize::try_from(net.buffer.len)
            .ok()
            .filter(|len| *len >= FRAME_MIN)
            .and_then(|len| frame.get_mut(..len));
        let Some(room) = room else {
            port.wire.was_dropped(Way::FromGuest);
            return Ok(Status::Invalid);
        };
        let Some(from) = user.buffers(net.buffer.addr, net.buffer.len, Permissions::Read) else {
            return Err(Cause::BadPointer(net.buffer));
        };
        if is_open {
            from.copy_out(room);
            port.wire.send(room);
        } else {
            port.wire.was_dropped(Way::FromGuest);
        }
        Ok(Status::Ok)
    }

    /// Gives the guest the frame that has waited longest. One that does not fit into
    /// what the guest has for it is gone, as are the others of a guest that asks so.
    pub(crate) fn receive(
        &mut self,
        user: UserMemory<'_>,
        net: &Net,
    ) -> Result<(Status, Option<u64>), Cause> {
        let is_open = self.wires == Wires::Open;
        let Some(Device::Net(port)) = self.of(net.handle) else {
            return Ok((Status::Invalid, None));
        };
        let bad = Err(Cause::BadPointer(net.buffer));
        if !user.may(net.buffer.addr, net.buffer.len, Permissions::Write) {
            return bad;
        }
        let Some(frame) = is_open.then(|| port.take()).flatten() else {
            return Ok((Status::Again, None));
        };
        let len = u64_of(frame.len());
        if len > net.buffer.len {
            port.wire.was_dropped(Way::ToGuest);
            return Ok((Status::Invalid, None));
        }
        // Not of what is behind the frame, which may be all of the guest's memory.
        let Some(to) = user.buffers(net.buffer.addr, len, Permissions::Write) else {
            return bad;
        };
        to.copy_in(&frame);
        Ok((Status::Ok, Some(len)))
    }

    fn of(&mut self, handle: u64) -> Option<&mut Device> {
        let place = usize::try_from(handle).ok()?.checked_sub(1)?;
        self.devices.get_mut(place)
    }
}

impl Port {
    /// Whether there is a frame to be taken.
    fn has_frame(&mut self) -> bool {
        if self.next.is_none() {
            // Before it is looked: what comes later is told of again.
            self.wire.has_looked();
            self.next = self.wire.receive();
        }
        self.next.is_some()
    }

    fn take(&mut self) -> Option<Arc<[u8]>> {
        self.has_frame();
        self.next.take()
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("wire", &self.wire)
            .finish_non_exhaustive()
    }
}
