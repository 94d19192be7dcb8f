//! What a driver wrote into its device's page: read once, checked, owned.

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use wharf_abi::device::{
    DeviceSetup, FEATURE_EVENT_IDX, FEATURE_VERSION_1, QUEUES_MAX, QueueSetup, STATUS_DRIVER_OK,
};
use zerocopy::FromBytes;

use super::Broken;
use super::user::UserMemory;
use crate::memory::{Gpa, GuestMemory};

/// Features that a driver has to accept: without indices in the rings the host
/// could not tell whether the guest has seen what is in them.
const REQUIRED: u64 = FEATURE_VERSION_1 | FEATURE_EVENT_IDX;

/// Where the driver's part is in the page.
const SETUP_AT: u64 = 256;
const _: () = assert!(std::mem::offset_of!(wharf_abi::DevicePage, setup) == 256);

/// A set-up that was found good.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) features: u64,
    pub(super) queues: [Option<Queue>; QUEUES_MAX],
}

/// Reads the set-up behind a device's page, unless the driver is not done yet.
///
/// # Errors
///
/// With the number of the queue that is to blame, when it makes no sense.
pub(super) fn read(
    memory: &GuestMemory,
    user: UserMemory<'_>,
    page: Gpa,
    offered: &super::Terms,
) -> Result<Option<Accepted>, (u16, Broken)> {
    // The status first, alone: a guest without a driver costs four bytes a wait.
    let mut status = [0; 4];
    let at = page.offset(SETUP_AT);
    if memory.read(at, &mut status).is_err() || u32::from_le_bytes(status) & STATUS_DRIVER_OK == 0 {
        return Ok(None);
    }
    let mut bytes = [0; size_of::<DeviceSetup>()];
    let setup = memory
        .read(at, &mut bytes)
        .ok()
        .and_then(|()| DeviceSetup::read_from_bytes(&bytes).ok());
    let Some(setup) = setup else {
        return Ok(None);
    };
    if setup.features & REQUIRED != REQUIRED || setup.features & !offered.features != 0 {
        let accepted = setup.features;
        return Err((0, Broken::Features { accepted }));
    }
    let mut queues = [const { None }; QUEUES_MAX];
    for ((number, slot), queue) in (0_u16..).zip(&mut queues).zip(&setup.queues) {
        if queue.enabled == 1 {
            if number >= offered.queue_count {
                return Err((number, Broken::NoSuchQueue));
            }
            *slot = Some(check(queue, user, offered.queue_size_max).map_err(|e| (number, e))?);
        }
    }
    Ok(Some(Accepted {
        features: setup.features,
        queues,
    }))
}

/// How a part of a queue lies in memory (virtio 1.2 §2.7).
#[derive(Clone, Copy)]
struct Shape {
    align: u64,
    /// Bytes of an entry.
    entry: u64,
    /// Bytes beside the entries, the event field among them.
    more: u64,
}

const DESCRIPTORS: Shape = Shape {
    align: 16,
    entry: 16,
    more: 0,
};
const AVAILABLE: Shape = Shape {
    align: 2,
    entry: 2,
    more: 6,
};
const USED: Shape = Shape {
    align: 4,
    entry: 8,
    more: 6,
};

impl Shape {
    /// Whether the guest has memory for it there.
    fn fits(self, addr: u64, entries: u16, user: UserMemory<'_>) -> bool {
        let entries = u64::from(entries).saturating_mul(self.entry);
        let len = entries.saturating_add(self.more);
        addr.is_multiple_of(self.align) && user.is_ring(addr, len)
    }
}

/// Whether descriptors, available ring and used ring of so many entries can be there.
pub(super) fn are_rings(at: (u64, u64, u64), entries: u16, user: UserMemory<'_>) -> bool {
    DESCRIPTORS.fits(at.0, entries, user)
        && AVAILABLE.fits(at.1, entries, user)
        && USED.fits(at.2, entries, user)
}

fn check(setup: &QueueSetup, user: UserMemory<'_>, size_max: u16) -> Result<Queue, Broken> {
    let wrong_size = Broken::QueueSize { size: setup.size };
    let size = u16::try_from(setup.size).map_err(|_| wrong_size)?;
    let mut queue = Queue::new(size_max).map_err(|_| wrong_size)?;
    // A power of two, at most what was offered.
    queue.try_set_size(size).map_err(|_| wrong_size)?;
    let ring = |addr: u64, shape: Shape| {
        if shape.fits(addr, size, user) {
            Ok(GuestAddress(addr))
        } else {
            Err(Broken::Ring { addr })
        }
    };
    let descriptors = ring(setup.descriptors, DESCRIPTORS)?;
    let driver_area = ring(setup.driver_area, AVAILABLE)?;
    let device_area = ring(setup.device_area, USED)?;
    let set = queue
        .try_set_desc_table_address(descriptors)
        .and_then(|()| queue.try_set_avail_ring_address(driver_area))
        .and_then(|()| queue.try_set_used_ring_address(device_area));
    set.map_err(|_| Broken::Ring {
        addr: setup.descriptors,
    })?;
    queue.set_event_idx(true);
    queue.set_ready(true);
    Ok(queue)
}
