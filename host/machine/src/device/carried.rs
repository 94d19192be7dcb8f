//! Devices that go on in another process: everything that the guest's own memory does not
//! say, queues as far as they have got, and what each back end says of itself.
//!
//! Nothing is served on the way: what is in a ring stays there.

use std::io;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use virtio_queue::{Queue, QueueState, QueueT};
use wharf_abi::device::QUEUES_MAX;

use super::net::CarriedFrames;
use super::setup::{self, Accepted};
use super::stream::CarriedStreams;
use super::{Backend, Device, Devices, Terms, UserMemory};
use crate::handover::{CarryError, Luggage};
use crate::memory::{Gpa, GuestMemory};
use crate::space::AddressSpace;

/// All devices of a guest.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct CarriedDevices {
    devices: Vec<CarriedDevice>,
    backends: Vec<CarriedBackend>,
    first: usize,
}

/// What a back end says of itself, for the same code in another process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CarriedBackend {
    /// A disk.
    Block(Value),
    /// The network.
    Stream(Value),
    /// The host's random bytes.
    Entropy,
    /// What the operator types, which stays with the process.
    Console,
    /// What an Ethernet port is plugged into.
    Net(Value),
}

#[derive(Debug, Serialize, Deserialize)]
struct CarriedDevice {
    accepted: Option<CarriedSetup>,
    streams: Option<CarriedStreams>,
    frames: Option<CarriedFrames>,
    /// Whether the guest knows that there is no more input.
    has_told_end: bool,
}

/// What its driver set up, and how far that has got.
#[derive(Debug, Serialize, Deserialize)]
struct CarriedSetup {
    features: u64,
    queues: [Option<CarriedQueue>; QUEUES_MAX],
}

#[derive(Debug, Serialize, Deserialize)]
struct CarriedQueue {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    next_available: u16,
    next_used: u16,
}

impl CarriedDevices {
    pub(crate) fn backends(&self) -> &[CarriedBackend] {
        &self.backends
    }
}

impl Devices {
    /// Describes all, once nothing comes to them any more.
    ///
    /// # Errors
    ///
    /// When a file or socket cannot be passed on.
    pub(crate) fn carry(&mut self, luggage: &mut Luggage) -> io::Result<CarriedDevices> {
        let mut carried = CarriedDevices {
            first: self.first,
            ..CarriedDevices::default()
        };
        for device in &mut self.devices {
            let (device, backend) = device.carry(luggage)?;
            carried.devices.push(device);
            carried.backends.push(backend);
        }
        Ok(carried)
    }

    /// Has them go on here: they have come, or nobody took them.
    pub(crate) fn resume(&mut self) {
        for device in &mut self.devices {
            if let Backend::Stream(streams) = &mut device.backend {
                streams.resume();
            }
        }
    }

    /// Forgets them without a word to anybody.
    pub(crate) fn let_go(&mut self) {
        for device in &mut self.devices {
            if let Backend::Stream(streams) = &mut device.backend {
                streams.let_go();
            }
        }
        self.release();
    }

    /// Goes on where others were; their pages are in the memory.
    ///
    /// # Errors
    ///
    /// When what is said of one does not go with it, or a ring is where none can be.
    pub(crate) fn carry_on(
        carried: &CarriedDevices,
        backends: Vec<Backend>,
        memory: &GuestMemory,
        space: &AddressSpace,
        pages: impl Iterator<Item = Gpa>,
        luggage: &Luggage,
    ) -> Result<Self, CarryError> {
        let user = UserMemory::new(memory.mmap(), space);
        if carried.devices.len() != backends.len() {
            return Err(CarryError::Malformed("its devices are not its image's"));
        }
        let mut devices = Vec::with_capacity(backends.len());
        for ((backend, page), carried) in backends.into_iter().zip(pages).zip(&carried.devices) {
            let terms = Terms::of(&backend);
            devices.push(carried.carry_on(backend, terms, page, user, luggage)?);
        }
        Ok(Self {
            first: carried.first.min(devices.len()),
            devices,
        })
    }
}

impl Device {
    fn carry(&mut self, luggage: &mut Luggage) -> io::Result<(CarriedDevice, CarriedBackend)> {
        let mut carried = CarriedDevice {
            accepted: None,
            streams: None,
            frames: None,
            has_told_end: false,
        };
        let backend = match &mut self.backend {
            Backend::Block(disk) => CarriedBackend::Block(disk.carry(luggage)?),
            Backend::Stream(streams) => {
                let (state, network) = streams.carry(luggage)?;
                carried.streams = Some(state);
                CarriedBackend::Stream(network)
            }
            Backend::Entropy => CarriedBackend::Entropy,
            Backend::Console(console) => {
                carried.has_told_end = console.has_told_end();
                CarriedBackend::Console
            }
            Backend::Net(frames) => {
                let (state, wire) = frames.carry(luggage)?;
                carried.frames = Some(state);
                CarriedBackend::Net(wire)
            }
        };
        let spare = match &self.backend {
            Backend::Stream(streams) => streams.has_spare(),
            Backend::Console(console) => console.has_spare(),
            Backend::Net(frames) => frames.has_spare(),
            Backend::Block(_) | Backend::Entropy => false,
        };
        carried.accepted = self.accepted.as_ref().map(|it| CarriedSetup::of(it, spare));
        Ok((carried, backend))
    }
}

impl CarriedDevice {
    fn carry_on(
        &self,
        mut backend: Backend,
        terms: Terms,
        page: Gpa,
        user: UserMemory<'_>,
        luggage: &Luggage,
    ) -> Result<Device, CarryError> {
        match (&mut backend, &self.streams, &self.frames) {
            (Backend::Stream(streams), Some(state), None) => streams.carry_on(state, luggage)?,
            (Backend::Net(frames), None, Some(state)) => frames.carry_on(state),
            (Backend::Console(console), None, None) if self.has_told_end => console.set_told_end(),
            (Backend::Block(_) | Backend::Entropy | Backend::Console(_), None, None) => {}
            _ => return Err(CarryError::Malformed("a device is of another kind")),
        }
        let accepted = self.accepted.as_ref();
        let accepted = accepted.map(|it| it.accept(&terms, user)).transpose()?;
        Ok(Device {
            backend,
            terms,
            page,
            accepted,
        })
    }
}

impl CarriedSetup {
    /// A buffer that was taken out of the first queue and not used, `spare`, is in it
    /// again: it was the last.
    fn of(accepted: &Accepted, spare: bool) -> Self {
        let queue = |(number, queue): (usize, &Option<Queue>)| {
            let queue = queue.as_ref()?;
            let back = u16::from(spare && number == 0);
            Some(CarriedQueue {
                size: queue.size(),
                descriptors: queue.desc_table(),
                available: queue.avail_ring(),
                used: queue.used_ring(),
                next_available: queue.next_avail().wrapping_sub(back),
                next_used: queue.next_used(),
            })
        };
        let mut queues = [const { None }; QUEUES_MAX];
        for (to, from) in queues.iter_mut().zip(accepted.queues.iter().enumerate()) {
            *to = queue(from);
        }
        Self {
            features: accepted.features,
            queues,
        }
    }

    fn accept(&self, terms: &Terms, user: UserMemory<'_>) -> Result<Accepted, CarryError> {
        let mut queues = [const { None }; QUEUES_MAX];
        for ((number, to), from) in (0_u16..).zip(&mut queues).zip(&self.queues) {
            let Some(from) = from else {
                continue;
            };
            if number >= terms.queue_count || from.size > terms.queue_size_max {
                return Err(CarryError::Malformed("a queue that its device has not"));
            }
            *to = Some(from.queue(terms.queue_size_max, user)?);
        }
        if self.features & !terms.features != 0 {
            return Err(CarryError::Malformed("features that were not offered"));
        }
        Ok(Accepted {
            features: self.features,
            queues,
        })
    }
}

impl CarriedQueue {
    fn queue(&self, size_max: u16, user: UserMemory<'_>) -> Result<Queue, CarryError> {
        let rings = (self.descriptors, self.available, self.used);
        if !setup::are_rings(rings, self.size, user) {
            return Err(CarryError::Malformed(
                "a ring where the guest has no memory",
            ));
        }
        let state = QueueState {
            max_size: size_max,
            next_avail: self.next_available,
            next_used: self.next_used,
            event_idx_enabled: true,
            size: self.size,
            ready: true,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        };
        Queue::try_from(state).map_err(|_| CarryError::Malformed("a queue that is none"))
    }
}
