//! The page that a driver and the host share in the place of device registers, as a
//! transport of the `virtio-drivers` crate.

#![expect(unsafe_code, reason = "a device's page and rings are raw memory")]

use alloc::alloc::{alloc_zeroed, dealloc};
use core::alloc::Layout;
use core::ptr::{self, NonNull};

use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Error, Hal, PAGE_SIZE, PhysAddr, Result};
use wharf_abi::DevicePage;
use wharf_abi::device::{DeviceOffer, DeviceSetup, QueueSetup};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::hypercall;

/// A device's page. Nothing that is done to it costs an exit, but [`Transport::notify`].
#[derive(Debug)]
pub(crate) struct PageTransport {
    place: u16,
    offer: DeviceOffer,
    setup: *mut DeviceSetup,
}

// SAFETY: the pointer is to a page of the host's making that is mapped for the
// guest's whole life, and the transport of a device is made once.
unsafe impl Send for PageTransport {}

impl PageTransport {
    /// The transport of the device at a place of the device table, whose page is at
    /// `page`. Whoever took the device makes it, once.
    pub(crate) fn new(place: u16, page: u64) -> Self {
        let page: *mut DevicePage = ptr::with_exposed_provenance_mut(page as usize);
        // SAFETY: the host maps the page that its device table names, and wrote an
        // offer there, which is plain data.
        let offer = unsafe { page.cast::<DeviceOffer>().read_volatile() };
        let setup = page
            .cast::<u8>()
            .wrapping_add(core::mem::offset_of!(DevicePage, setup))
            .cast();
        Self {
            place,
            offer,
            setup,
        }
    }

    /// Where the driver of a queue that is set up says of which used buffer it wants to
    /// be told.
    pub(crate) fn used_event(&self, queue: u16) -> UsedEvent {
        let setup = self.setup();
        let queue = setup.queues.get(usize::from(queue)).copied();
        let queue = queue.filter(|queue| queue.enabled == 1);
        // Behind two fields and the ring (virtio 1.2 §2.7.6).
        UsedEvent(queue.map_or(ptr::null_mut(), |queue| {
            let at = queue.driver_area + 4 + 2 * u64::from(queue.size);
            ptr::with_exposed_provenance_mut(at as usize)
        }))
    }

    fn setup(&self) -> DeviceSetup {
        // SAFETY: the set-up lies in the device's page, which stays mapped, and is
        // plain data.
        unsafe { self.setup.read_volatile() }
    }

    fn change(&mut self, change: impl FnOnce(&mut DeviceSetup)) {
        let mut setup = self.setup();
        change(&mut setup);
        // SAFETY: as in `setup`; the page is writable, and the host reads it only
        // during an exit.
        unsafe { self.setup.write_volatile(setup) }
    }

    fn change_queue(&mut self, queue: u16, to: QueueSetup) {
        self.change(|setup| {
            if let Some(queue) = setup.queues.get_mut(usize::from(queue)) {
                *queue = to;
            }
        });
    }
}

impl Transport for PageTransport {
    fn device_type(&self) -> DeviceType {
        DeviceType::try_from(self.offer.device_type).unwrap_or(DeviceType::Pstore)
    }

    fn read_device_features(&mut self) -> u64 {
        self.offer.features
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.change(|setup| setup.features = driver_features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        if u32::from(queue) < self.offer.queue_count {
            self.offer.queue_size_max
        } else {
            0
        }
    }

    fn notify(&mut self, queue: u16) {
        hypercall::kick(self.place, queue);
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.setup().status)
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.change(|setup| setup.status = status.bits());
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let to = QueueSetup {
            size,
            enabled: 1,
            descriptors,
            driver_area,
            device_area,
        };
        self.change_queue(queue, to);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.change_queue(queue, QueueSetup::default());
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        let setup = self.setup();
        let queue = setup.queues.get(usize::from(queue));
        queue.is_some_and(|queue| queue.enabled == 1)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let len = self.offer.config_len as usize;
        let config = self.offer.config.get(..len).unwrap_or_default();
        let field = offset
            .checked_add(size_of::<T>())
            .and_then(|end| config.get(offset..end));
        let field = field.ok_or(Error::ConfigSpaceTooSmall)?;
        T::read_from_bytes(field).map_err(|_| Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _: usize, _: T) -> Result<()> {
        Err(Error::Unsupported)
    }
}

/// The field `used_event` of a queue that is never freed.
///
/// The queue itself always asks to be told of the next buffer that it has not taken
/// back, which is no news to a driver that takes them back when it needs them.
#[derive(Debug)]
pub(crate) struct UsedEvent(*mut u16);

// SAFETY: the pointer is into the rings of one queue, which stay where they are.
unsafe impl Send for UsedEvent {}

impl UsedEvent {
    /// Asks to be told of the used buffer with this number.
    pub(crate) fn set(&mut self, number: u16) {
        if !self.0.is_null() {
            // SAFETY: the queue's driver area has this field behind the ring, aligned,
            // and the host reads it only during an exit.
            unsafe { self.0.write_volatile(number) }
        }
    }
}

/// Memory that rings and buffers are in: any of the guest's, at the addresses that
/// the guest itself uses.
#[derive(Debug)]
pub(crate) struct OwnMemory;

// SAFETY: `dma_alloc` gives whole zeroed pages of the heap that nobody else has
// until `dma_dealloc`, and a device's addresses are the guest's own.
unsafe impl Hal for OwnMemory {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let Ok(layout) = page_layout(pages) else {
            return (0, NonNull::dangling());
        };
        // SAFETY: the layout is of at least a page.
        let memory = unsafe { alloc_zeroed(layout) };
        match NonNull::new(memory) {
            Some(memory) => (memory.as_ptr().expose_provenance() as PhysAddr, memory),
            // The crate takes address 0 for a failure.
            None => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(_: PhysAddr, memory: NonNull<u8>, pages: usize) -> i32 {
        if let Ok(layout) = page_layout(pages) {
            // SAFETY: the caller gives back what `dma_alloc` gave it for so many
            // pages, with the same layout.
            unsafe { dealloc(memory.as_ptr(), layout) };
        }
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        // No device has registers.
        NonNull::dangling()
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.as_ptr().cast::<u8>().expose_provenance() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

fn page_layout(pages: usize) -> core::result::Result<Layout, core::alloc::LayoutError> {
    let bytes = pages.max(1).saturating_mul(PAGE_SIZE);
    Layout::from_size_align(bytes, PAGE_SIZE)
}
