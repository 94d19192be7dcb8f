//! The global allocator, over the heap span of the boot page.

#![expect(unsafe_code, reason = "hands the host's memory to the allocator")]

use core::alloc::Layout;
use core::ptr::{self, NonNull};

use talc::base::Talc;
use talc::base::binning::Binning;
use talc::source::Source;

use crate::boot::boot;

/// Grows on demand: a guest that allocates nothing touches no page of the heap.
///
/// The lock is never contended, as a guest has one vCPU and no interrupts.
#[global_allocator]
static HEAP: talc::TalcLock<spin::Mutex<()>, BootHeap> =
    talc::TalcLock::new(BootHeap { claimed: None });

/// Bytes to start with. The allocator writes to both ends of what it has, and
/// each page that it touches first is an expensive fault: so it gets little at
/// first, and twice as much each time that is not enough.
const FIRST_BYTES: usize = 64 * 1024;

/// Room beyond an allocation's own size for the allocator's records.
const OVERHEAD_BYTES: usize = 8 * 1024;

/// The heap span as a source of memory.
#[derive(Debug)]
struct BootHeap {
    /// The end of what the allocator has so far; `None` before the first allocation.
    claimed: Option<NonNull<u8>>,
}

// SAFETY: the pointer is only an address for the allocator to go on from.
unsafe impl Send for BootHeap {}

// SAFETY: the one method uses the allocator only through its argument.
unsafe impl Source for BootHeap {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        let span = boot().heap;
        let (start, len) = (span.addr as usize, span.len as usize);
        let needed = layout
            .size()
            .saturating_add(layout.align())
            .saturating_add(OVERHEAD_BYTES);
        let end = match talc.source.claimed {
            None => {
                let base = ptr::with_exposed_provenance_mut(start);
                // SAFETY: the span is zeroed memory that the host gave the guest
                // to hand out, and nothing but this allocator ever does.
                unsafe { talc.claim(base, needed.max(FIRST_BYTES).min(len)) }.ok_or(())?
            }
            Some(end) => {
                let used = end.addr().get().saturating_sub(start);
                let target = used.saturating_add(needed.max(used)).min(len);
                let new_end = ptr::with_exposed_provenance_mut(start.saturating_add(target));
                // SAFETY: `end` came from the last claim or extension; what lies
                // between it and `new_end` is still within the span.
                unsafe { talc.extend(end, new_end) }
            }
        };
        // The allocator asks again for as long as this says it has more.
        if talc.source.claimed.replace(end) == Some(end) {
            Err(())
        } else {
            Ok(())
        }
    }
}
