//! Devices: which there are, who drives them, and what the executor waits for.
//!
//! A driver puts requests into a queue and returns; the executor's next wait has
//! the host serve all queues at once, and says which devices have answers. So a
//! burst of requests costs one exit, however many tasks made it.

use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use critical_section::Mutex;
use virtio_drivers::transport::Transport;
use wharf_abi::{DeviceEntry, DeviceKind, Interest};

use crate::transport::PageTransport;
use crate::{boot, hypercall};

/// Most exits for what is in the queues at the end.
const FLUSH_ROUNDS: usize = 64;

/// Why a device cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The manifest declares no such device of this kind: name it in
    /// `#[wharf::main(block = ["…"])]`.
    NotDeclared,
    /// It was opened before. A device has one driver, which can be shared.
    AlreadyOpen,
    /// The host offers it in a way that the driver cannot use.
    Refused,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotDeclared => "the image declares no such device",
            Self::AlreadyOpen => "the device is open already",
            Self::Refused => "the driver and the device do not go together",
        })
    }
}

impl core::error::Error for OpenError {}

/// Takes answers out of a device's queues, and wakes who waits for them.
pub(crate) trait Driver: Sync {
    /// The device has something.
    fn ready(&self);

    /// The host is about to look: puts into the queues what was held back for company.
    fn settle(&self) {}
}

/// Places of devices that were opened.
static OPEN: AtomicU64 = AtomicU64::new(0);

/// The interest bits of devices that have a driver.
static INTEREST: AtomicU64 = AtomicU64::new(0);

/// Whether something was put into a queue since the last wait.
static SUBMITTED: AtomicBool = AtomicBool::new(false);

static DRIVERS: Mutex<RefCell<Vec<Registered>>> = Mutex::new(RefCell::new(Vec::new()));

/// A driver and the interest bit of its device.
type Registered = (Interest, &'static dyn Driver);

/// A device that a driver has taken, and begun to set up.
pub(crate) struct Taken {
    /// Its place in the device table.
    pub(crate) place: usize,
    /// What the driver sets up its queues with, and then says that it is done.
    pub(crate) transport: PageTransport,
    /// The features that both sides have, which are accepted.
    pub(crate) features: u64,
}

/// Finds a device by kind and name, and takes it for a driver that can do with
/// `features`: there is no second time.
pub(crate) fn take(kind: DeviceKind, name: &str, features: u64) -> Result<Taken, OpenError> {
    let is_it = |entry: &DeviceEntry| entry.name.as_str() == Some(name);
    take_that(kind, features, is_it)
}

/// As [`take`], whatever the name is.
pub(crate) fn take_first(kind: DeviceKind, features: u64) -> Result<Taken, OpenError> {
    take_that(kind, features, |_| true)
}

fn take_that(
    kind: DeviceKind,
    features: u64,
    is_it: impl Fn(&DeviceEntry) -> bool,
) -> Result<Taken, OpenError> {
    let found = (0..)
        .map_while(|place| Some((place, boot::device(place)?)))
        .find(|(_, entry)| entry.kind == kind.raw() && is_it(entry));
    let (place, entry) = found.ok_or(OpenError::NotDeclared)?;
    let bit = 1 << place;
    if OPEN.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
        return Err(OpenError::AlreadyOpen);
    }
    let number = u16::try_from(place).map_err(|_| OpenError::Refused)?;
    let mut transport = PageTransport::new(number, entry.page);
    let features = features & transport.read_device_features();
    transport.write_driver_features(features);
    Ok(Taken {
        place,
        transport,
        features,
    })
}

/// Has the executor wait for a device and wake its driver.
pub(crate) fn register(place: usize, driver: &'static dyn Driver) {
    let bit = Interest::device(place);
    critical_section::with(|cs| DRIVERS.borrow_ref_mut(cs).push((bit, driver)));
    INTEREST.fetch_or(bit.bits(), Ordering::Relaxed);
}

/// Notes that a queue has something for the host.
pub(crate) fn submitted() {
    SUBMITTED.store(true, Ordering::Relaxed);
}

/// Whether a queue has something for the host, which is about to be told.
pub(crate) fn take_submitted() -> bool {
    SUBMITTED.swap(false, Ordering::Relaxed)
}

/// What the executor waits for besides time.
pub(crate) fn interest() -> Interest {
    Interest::from_bits_truncate(INTEREST.load(Ordering::Relaxed))
}

/// Has the drivers of ready devices look.
pub(crate) fn wake(ready: Interest) {
    if ready.intersection(Interest::DEVICES) == Interest::NONE {
        return;
    }
    for (bit, driver) in drivers() {
        if ready.contains(bit) {
            driver.ready();
        }
    }
}

/// Has every driver put into its queues what is for the host.
pub(crate) fn settle() {
    for (_, driver) in drivers() {
        driver.settle();
    }
}

/// Has the host take what drivers hold, as the guest is about to end.
pub(crate) fn flush() {
    // Each round takes whole rings. What is left after so many, nobody takes.
    for _ in 0..FLUSH_ROUNDS {
        settle();
        if !take_submitted() {
            return;
        }
        hypercall::wait_until_ns(0, Interest::NONE);
    }
}

fn drivers() -> impl Iterator<Item = Registered> {
    (0..).map_while(|at| critical_section::with(|cs| DRIVERS.borrow_ref(cs).get(at).copied()))
}
