//! A guest's devices: what it is told of them, and its rings served.
//!
//! ```text
//!   driver ──▶ page (set-up) ─┐ once, at the first wait or kick
//!                             ▼
//!   driver ──▶ available ──▶ chain ──▶ front end ──▶ back end
//!          ◀── used ◀─────────────────┘  block         Disk
//!                                        stream        Network
//!                                        net           Wire
//! ```
//!
//! The rings are virtio's split queues and the ring protocol is rust-vmm's
//! virtio-queue; what a request means is in a file for each kind. A back end keeps
//! the bytes and is somebody else's: this module knows it as a trait.
//!
//! Everything in a ring is hostile. Rings and buffers are reached through
//! `UserMemory`, where only what the guest itself may touch exists; each
//! descriptor is read once; how much is done at a stretch is bounded.

mod block;
mod carried;
mod chain;
mod console;
mod entropy;
mod net;
mod ring;
mod saved;
mod setup;
mod stream;
#[cfg(test)]
mod testing;
mod user;

use std::fmt;
use std::os::fd::BorrowedFd;

use wharf_abi::device::{
    CONFIG_LEN, DeviceOffer, FEATURE_EVENT_IDX, FEATURE_VERSION_1, QUEUES_MAX,
};
use wharf_abi::{DeviceKind, Interest};
use zerocopy::IntoBytes;

pub use block::{Disk, REQUEST_MAX, SECTOR};
pub use carried::CarriedBackend;
pub(crate) use carried::CarriedDevices;
pub use console::{Console, Input};
pub use net::{Frames, Mac, Way, Wire};
pub use stream::{Close, Happening, Moved, Network, StreamId, Streams};

use crate::Error;
use crate::memory::{Gpa, GuestMemory};
use crate::space::AddressSpace;
use crate::upgrade::Resting;
use ring::{Budget, has_news};
pub(crate) use saved::{CONNECTIONS_MAX, DeviceState};
use setup::Accepted;
pub(crate) use user::UserMemory;

/// What stands behind a device.
#[derive(Debug)]
pub enum Backend {
    /// A disk.
    Block(Box<dyn Disk>),
    /// The network.
    Stream(Box<Streams>),
    /// The host's random bytes.
    Entropy,
    /// What the operator types.
    Console(Box<Console>),
    /// An Ethernet port.
    Net(Box<Frames>),
}

impl Backend {
    /// The kind of device that it can stand behind.
    #[must_use]
    pub const fn kind(&self) -> DeviceKind {
        match self {
            Self::Block(_) => DeviceKind::Block,
            Self::Stream(_) => DeviceKind::Stream,
            Self::Entropy => DeviceKind::Entropy,
            Self::Console(_) => DeviceKind::Console,
            Self::Net(_) => DeviceKind::Net,
        }
    }
}

/// What became of a look at the rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Devices that have something for the guest.
    pub ready: Interest,
    /// Whether requests are left for the next time.
    pub more: bool,
}

/// What a guest did wrong with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceFault {
    /// The device's place in the device table.
    pub device: usize,
    /// The queue.
    pub queue: u16,
    /// What.
    pub broken: Broken,
}

/// A rule of the ring protocol that a guest broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Features that were not offered, or not those that must be accepted.
    #[error("the driver accepted features {accepted:#x}")]
    Features {
        /// What it wrote.
        accepted: u64,
    },
    /// A queue that the device does not have was enabled.
    #[error("the device has no such queue")]
    NoSuchQueue,
    /// A size that is no power of two or more than was offered.
    #[error("a queue cannot have {size} entries")]
    QueueSize {
        /// What the driver wrote.
        size: u32,
    },
    /// A part of a ring that is not aligned, or not all in memory that the guest may
    /// write.
    #[error("no part of a ring can be at {addr:#x}")]
    Ring {
        /// Where it was said to be.
        addr: u64,
    },
    /// The available index is ahead of all that can be in the ring.
    #[error("the available index is out of range")]
    AvailIndex,
    /// A chain that loops, or goes on where there is no descriptor.
    #[error("a chain of descriptors does not end")]
    Chain,
    /// A buffer to read behind one to write.
    #[error("a chain has a buffer to read behind one to write")]
    Order,
    /// A buffer that the guest itself may not use in that way.
    #[error("a buffer is not the guest's to use ({addr:#x}, {len} bytes)")]
    Buffer {
        /// Where it begins.
        addr: u64,
        /// Its bytes.
        len: u32,
    },
    /// A request too short to be one.
    #[error("a request has no header")]
    NoHeader,
    /// A request that leaves no room for an answer.
    #[error("a request has no room for its status")]
    NoStatus,
    /// A packet that is not of this device, or not as long as it says.
    #[error("a packet is none of a stream's")]
    Packet,
    /// A receive buffer that no packet is sure to fit into.
    #[error("a receive buffer is too small")]
    SmallBuffer,
    /// More than the host has room for was sent.
    #[error("a stream sent more than it had credit for")]
    Overdrawn,
}

/// What a driver is offered.
#[derive(Clone, Debug)]
struct Terms {
    device_type: u32,
    features: u64,
    queue_count: u16,
    queue_size_max: u16,
    config: Vec<u8>,
}

/// All devices of a guest, in the order of its manifest.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    devices: Vec<Device>,
    /// Where the next look begins: after the device that used up the last one.
    first: usize,
}

#[derive(Debug)]
struct Device {
    backend: Backend,
    terms: Terms,
    page: Gpa,
    accepted: Option<Accepted>,
}

impl Devices {
    /// Writes the offer of each into its page, one behind the other from `pages` on.
    ///
    /// # Errors
    ///
    /// When a page is not in the memory, which the layout rules out.
    pub(crate) fn offer(
        backends: Vec<Backend>,
        memory: &GuestMemory,
        pages: impl Iterator<Item = Gpa>,
    ) -> Result<Self, Error> {
        let mut devices = Vec::with_capacity(backends.len());
        for (backend, page) in backends.into_iter().zip(pages) {
            let terms = Terms::of(&backend);
            memory.write(page, terms.offer().as_bytes())?;
            devices.push(Device {
                backend,
                terms,
                page,
                accepted: None,
            });
        }
        Ok(Self { devices, first: 0 })
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// Looks at every queue.
    ///
    /// # Errors
    ///
    /// The guest's fault.
    pub(crate) fn serve(
        &mut self,
        memory: &GuestMemory,
        space: &AddressSpace,
    ) -> Result<Served, DeviceFault> {
        let user = UserMemory::new(memory.mmap(), space);
        let mut budget = Budget::WHOLE;
        let mut served = Served {
            ready: Interest::NONE,
            more: false,
        };
        let count = self.devices.len();
        let first = self.first;
        for place in (first..count).chain(0..first) {
            let Some(device) = self.devices.get_mut(place) else {
                continue;
            };
            let blame = |(queue, broken)| DeviceFault {
                device: place,
                queue,
                broken,
            };
            let spent = budget.is_spent();
            let (ready, more) = device
                .serve(memory, user, None, &mut budget)
                .map_err(blame)?;
            if ready {
                served.ready = served.ready.union(Interest::device(place));
            }
            served.more |= more;
            if budget.is_spent() && !spent {
                self.first = place.saturating_add(1).checked_rem(count).unwrap_or(0);
            }
        }
        Ok(served)
    }

    /// Looks at one queue; false when there is none such or it is not set up.
    ///
    /// # Errors
    ///
    /// The guest's fault.
    pub(crate) fn kick(
        &mut self,
        memory: &GuestMemory,
        space: &AddressSpace,
        target: u64,
    ) -> Result<bool, DeviceFault> {
        let (place, queue) = (
            usize::try_from(target >> 16),
            u16::try_from(target & 0xFFFF),
        );
        let (Ok(place), Ok(queue)) = (place, queue) else {
            return Ok(false);
        };
        let Some(device) = self.devices.get_mut(place) else {
            return Ok(false);
        };
        let user = UserMemory::new(memory.mmap(), space);
        let mut budget = Budget::WHOLE;
        let blame = |(queue, broken)| DeviceFault {
            device: place,
            queue,
            broken,
        };
        device
            .serve(memory, user, Some(queue), &mut budget)
            .map_err(blame)?;
        Ok(device.has(queue))
    }

    /// What becomes readable when a device has something to do that no guest asked
    /// for.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.devices.iter().filter_map(|it| match &it.backend {
            Backend::Block(_) | Backend::Entropy => None,
            Backend::Stream(streams) => Some(streams.fd()),
            Backend::Console(console) => console.fd(),
            Backend::Net(frames) => Some(frames.fd()),
        })
    }

    /// Takes what the guest has sent over its connections, and gives it nothing.
    ///
    /// # Errors
    ///
    /// The guest's fault.
    pub(crate) fn transmit(
        &mut self,
        memory: &GuestMemory,
        space: &AddressSpace,
    ) -> Result<(), DeviceFault> {
        let user = UserMemory::new(memory.mmap(), space);
        for (place, device) in self.devices.iter_mut().enumerate() {
            if let (Backend::Stream(streams), Some(accepted)) =
                (&mut device.backend, &mut device.accepted)
            {
                let done = streams.transmit(&mut accepted.queues, user);
                done.map_err(|(queue, broken)| DeviceFault {
                    device: place,
                    queue,
                    broken,
                })?;
            }
        }
        Ok(())
    }

    /// Takes connections at rest away.
    pub(crate) fn give_streams(&mut self, resting: Vec<Resting>) -> Vec<Moved> {
        let streams = self
            .devices
            .iter_mut()
            .find_map(|it| match &mut it.backend {
                Backend::Stream(streams) => Some(streams),
                _ => None,
            });
        streams.map_or_else(Vec::new, |streams| streams.give(resting))
    }

    /// Has the guest asked for connections that another one had. What there is no
    /// device for is cut off.
    pub(crate) fn take_streams(&mut self, moved: Vec<Moved>) {
        for device in &mut self.devices {
            if let Backend::Stream(streams) = &mut device.backend {
                streams.take(moved);
                return;
            }
        }
    }

    /// Its disks.
    pub(crate) fn disks(&self) -> impl Iterator<Item = &dyn Disk> {
        self.devices.iter().filter_map(|it| match &it.backend {
            Backend::Block(disk) => Some(disk.as_ref()),
            _ => None,
        })
    }

    /// The same, to be changed.
    pub(crate) fn disks_mut(&mut self) -> impl Iterator<Item = &mut Box<dyn Disk>> {
        self.devices
            .iter_mut()
            .filter_map(|it| match &mut it.backend {
                Backend::Block(disk) => Some(disk),
                _ => None,
            })
    }

    /// Keeps the guest off its wires.
    pub(crate) fn hold_wires(&mut self) {
        for device in &mut self.devices {
            if let Backend::Net(frames) = &mut device.backend {
                frames.hold();
            }
        }
    }

    /// Lets it go there.
    pub(crate) fn own_wires(&mut self) {
        for device in &mut self.devices {
            if let Backend::Net(frames) = &mut device.backend {
                frames.own();
            }
        }
    }

    /// Lets go of what stands behind them, so that others can have it.
    pub(crate) fn release(&mut self) {
        self.devices.clear();
        self.first = 0;
    }
}

impl Device {
    /// Looks at the queues, or at one; says whether there is something for the guest
    /// and whether something is left to do.
    fn serve(
        &mut self,
        memory: &GuestMemory,
        user: UserMemory<'_>,
        only: Option<u16>,
        budget: &mut Budget,
    ) -> Result<(bool, bool), (u16, Broken)> {
        if self.accepted.is_none() {
            self.accepted = setup::read(memory, user, self.page, &self.terms)?;
        }
        let Some(Accepted { features, queues }) = &mut self.accepted else {
            return Ok((false, false));
        };
        let mut more = false;
        match &mut self.backend {
            Backend::Block(disk) => {
                for (number, queue) in (0_u16..).zip(queues.iter_mut()) {
                    if let Some(queue) = queue
                        && only.is_none_or(|only| only == number)
                    {
                        let disk = disk.as_mut();
                        let serve = |chain: &_| block::serve(disk, *features, user, chain);
                        more |= ring::drain(queue, user, budget, serve)
                            .map_err(|broken| (number, broken))?;
                    }
                }
            }
            // What goes into one queue comes out of the other.
            Backend::Stream(streams) => more |= streams.serve(queues, user, budget)?,
            Backend::Entropy => {
                if let [Some(queue), ..] = queues {
                    more |= entropy::serve(queue, user, budget).map_err(|broken| (0, broken))?;
                }
            }
            Backend::Console(console) => {
                if let [Some(queue), ..] = queues {
                    let served = console.serve(queue, user, budget);
                    more |= served.map_err(|broken| (0, broken))?;
                }
            }
            Backend::Net(frames) => more |= frames.serve(queues, user, budget)?,
        }
        let mut ready = false;
        for (number, queue) in (0_u16..).zip(queues) {
            if let Some(queue) = queue {
                ready |= has_news(queue, user).map_err(|broken| (number, broken))?;
            }
        }
        Ok((ready, more))
    }

    fn has(&self, queue: u16) -> bool {
        let accepted = self.accepted.as_ref();
        let queue = accepted.and_then(|it| it.queues.get(usize::from(queue)));
        queue.is_some_and(Option::is_some)
    }
}

impl Terms {
    /// What the driver of a device is offered that has this behind it.
    fn of(backend: &Backend) -> Self {
        let mut terms = match backend {
            Backend::Block(disk) => block::terms(disk.as_ref()),
            Backend::Stream(_) => stream::terms(),
            Backend::Entropy => entropy::terms(),
            Backend::Console(_) => console::terms(),
            Backend::Net(frames) => net::terms(frames),
        };
        terms.features |= FEATURE_VERSION_1 | FEATURE_EVENT_IDX;
        terms
    }

    fn offer(&self) -> DeviceOffer {
        let mut config = [0; CONFIG_LEN];
        for (to, from) in config.iter_mut().zip(&self.config) {
            *to = *from;
        }
        DeviceOffer {
            device_type: self.device_type,
            queue_count: u32::from(self.queue_count),
            features: self.features,
            queue_size_max: u32::from(self.queue_size_max),
            config_len: u32::try_from(self.config.len().min(CONFIG_LEN)).unwrap_or(0),
            config,
        }
    }
}

impl std::error::Error for DeviceFault {}

impl fmt::Display for DeviceFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            device,
            queue,
            broken,
        } = self;
        write!(f, "misuse of device {device}, queue {queue}: {broken}")
    }
}

const _: () = assert!(QUEUES_MAX <= 8);
