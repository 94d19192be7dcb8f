//! The boot page, and the memory that it names.

#![expect(
    unsafe_code,
    reason = "turns the addresses in the boot page into references"
)]

use core::ptr;
use core::slice;
use core::sync::atomic::{AtomicPtr, Ordering};

use wharf_abi::{AbiVersion, BootPage, Clock, Span};

/// Set once, by [`set`], before anything else runs.
static BOOT: AtomicPtr<BootPage> = AtomicPtr::new(ptr::null_mut());

/// What stands in for a boot page before there is one: no time, no heap, no
/// arguments. So [`boot`] needs no way to fail.
static ABSENT: BootPage = BootPage {
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

/// Returns what the host told this guest at its start.
#[must_use]
pub fn boot() -> &'static BootPage {
    // SAFETY: the pointer is null or came from the `&'static` that `set` took.
    unsafe { BOOT.load(Ordering::Relaxed).as_ref() }.unwrap_or(&ABSENT)
}

/// Keeps the boot page for [`boot`].
pub(crate) fn set(page: &'static BootPage) {
    BOOT.store(ptr::from_ref(page).cast_mut(), Ordering::Relaxed);
}

/// Returns the bytes of the guest's arguments.
pub(crate) fn arg_bytes() -> &'static [u8] {
    let Span { addr, len } = boot().args;
    if len == 0 {
        return &[];
    }
    let start = ptr::with_exposed_provenance(addr as usize);
    // SAFETY: the host maps the span that it names, read-only and for the
    // guest's whole life.
    unsafe { slice::from_raw_parts(start, len as usize) }
}

/// Returns the generation and its seed as they are now.
///
/// A clone finds another boot page in the place of the one it was taken with,
/// so neither may come from a value that the compiler has kept.
pub(crate) fn seed() -> (u64, [u8; 32]) {
    let page = boot();
    // SAFETY: a field of a live reference is aligned and readable.
    let generation = unsafe { ptr::from_ref(&page.generation).read_volatile() };
    // SAFETY: as above.
    let seed = unsafe { ptr::from_ref(&page.seed).read_volatile() };
    (generation, seed)
}

#[cfg(test)]
mod tests {
    #[test]
    fn without_a_host_there_is_nothing() {
        assert_eq!(super::boot().heap.len, 0);
        assert!(super::arg_bytes().is_empty());
    }
}
