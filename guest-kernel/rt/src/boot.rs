//! The boot page, and the memory that it names.

#![expect(
    unsafe_code,
    reason = "reads the boot page and the memory that it names"
)]

use core::ptr;
use core::slice;
use core::sync::atomic::{AtomicPtr, Ordering};

use wharf_abi::{AbiVersion, BootPage, Clock, DeviceEntry, DeviceKind, Span};

/// Set once, by [`BootPointer::keep`], before anything else runs.
static BOOT: AtomicPtr<BootPage> = AtomicPtr::new(ptr::null_mut());

/// What stands in for a boot page before there is one: no time, no heap, no
/// arguments. So [`boot`] needs no way to fail.
const ABSENT: BootPage = BootPage {
    magic: 0,
    abi: AbiVersion { major: 0, minor: 0 },
    size: 0,
    generation: 0,
    clock: Clock {
        tsc_base: 0,
        ns_per_tick_q32: 0,
        wall_base_ns: 0,
    },
    seed: [0; 32],
    image: NOTHING,
    stack: NOTHING,
    heap: NOTHING,
    args: NOTHING,
    arg_count: 0,
    device_count: 0,
    devices: NOTHING,
    inherited: NOTHING,
};

const NOTHING: Span = Span { addr: 0, len: 0 };

/// Returns a copy of what the host tells this guest.
///
/// A copy, because a clone finds another page in the place of the one that it
/// was taken with.
#[must_use]
pub fn boot() -> BootPage {
    match page() {
        // SAFETY: the pointer is a `BootPointer`'s, and stays good.
        Some(page) => unsafe { page.read_volatile() },
        None => ABSENT,
    }
}

/// Returns how to read time, as [`boot`] would.
pub(crate) fn clock() -> Clock {
    boot().clock
}

fn page() -> Option<*const BootPage> {
    let page = BOOT.load(Ordering::Relaxed);
    (!page.is_null()).then_some(page.cast_const())
}

/// The address of the boot page, as the entry point gets it. Nobody else can
/// make one.
#[repr(transparent)]
#[derive(Debug)]
pub struct BootPointer(*const BootPage);

impl BootPointer {
    /// Copies the page that it points to.
    pub(crate) fn read(&self) -> BootPage {
        // SAFETY: only the host makes such a pointer, to a page that it maps
        // read-only into the guest for the guest's whole life.
        unsafe { self.0.read_volatile() }
    }

    /// Keeps the address for [`boot`].
    pub(crate) fn keep(self) {
        BOOT.store(self.0.cast_mut(), Ordering::Relaxed);
    }
}

/// Returns the seed as it is now: a clone has another than the guest that it was.
pub(crate) fn seed() -> [u8; 32] {
    boot().seed
}

/// Returns the bytes of the guest's arguments.
pub(crate) fn arg_bytes() -> &'static [u8] {
    bytes(boot().args)
}

/// Returns the state that the generation before handed over.
pub(crate) fn inherited_bytes() -> &'static [u8] {
    bytes(boot().inherited)
}

/// The bytes of a span of the boot page.
fn bytes(Span { addr, len }: Span) -> &'static [u8] {
    if len == 0 {
        return &[];
    }
    let start = ptr::with_exposed_provenance(addr as usize);
    // SAFETY: the host maps the span that it names, read-only and for the
    // guest's whole life.
    unsafe { slice::from_raw_parts(start, len as usize) }
}

/// Whether the device table has a device of this kind.
pub(crate) fn has_device(kind: DeviceKind) -> bool {
    (0..).map_while(device).any(|it| it.kind == kind.raw())
}

/// Returns the entry at a place of the device table; `None` behind its end.
pub(crate) fn device(place: usize) -> Option<DeviceEntry> {
    let page = boot();
    if place >= page.device_count as usize {
        return None;
    }
    let table: *const DeviceEntry = ptr::with_exposed_provenance(page.devices.addr as usize);
    // SAFETY: the host maps the table that it names, with as many entries as it
    // says, read-only and for the guest's whole life.
    Some(unsafe { table.wrapping_add(place).read_volatile() })
}

#[cfg(test)]
mod tests {
    #[test]
    fn without_a_host_there_is_nothing() {
        assert_eq!(super::boot().heap.len, 0);
        assert!(super::arg_bytes().is_empty());
        assert_eq!(super::device(0), None);
    }
}
