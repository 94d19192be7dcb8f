//! Where everything stands in the memory of an hvt guest.
//!
//! ```text
//! guest-virtual, and guest-physical
//!
//!        0        unmapped
//!   0x1000        system page     host only
//!   0x2000        fault stack     host only
//!   0x3000        unmapped
//!  0x10000        boot information, manifest, arguments, zeroes behind them: r
//! 0x100000        image, each segment as it asks: r, rw or rx
//!                 all else: rw. Heap, from below, and stack, from above
//! memory size     unmapped; page tables are there, guest-physical
//! ```
//!
//! The guest believes that it is not mapped at all what is the host's below 64 KiB.

use wharf_abi::Span;

use super::boot;
use crate::image::{Access, HVT_ADDRESS_END, HVT_ADDRESS_LOWEST, Image, Segment};
use crate::layout::{Layout, LayoutError};
use crate::memory::{Gpa, HUGE_PAGE, PAGE};
use crate::paging::PageTables;
use crate::space::{Mapping, Owner};

/// Where the boot information is.
pub(super) const BOOT_AT: u64 = 0x1_0000;

/// Bytes of the arguments with their NUL.
pub(super) const CMDLINE_MAX: u64 = 8192;

const SYSTEM_AT: u64 = 0x1000;
const FAULT_STACK_AT: u64 = 0x2000;

/// Plans the memory of `image` with `memory` bytes and `args_len` bytes of arguments.
///
/// # Errors
///
/// When the sizes do not go together.
pub(crate) fn plan(image: &Image, memory: u64, args_len: u64) -> Result<Layout, LayoutError> {
    if memory > HVT_ADDRESS_END {
        let most = HVT_ADDRESS_END;
        return Err(LayoutError::TooLarge { memory, most });
    }
    if args_len > CMDLINE_MAX {
        return Err(LayoutError::ArgsTooLong {
            len: args_len.saturating_sub(1),
            most: CMDLINE_MAX.saturating_sub(1),
        });
    }
    let span = image.span();
    let needed = image.manifest().memory_min_bytes;
    if memory < needed {
        return Err(LayoutError::TooSmall { memory, needed });
    }
    let system = mapping(SYSTEM_AT, PAGE, Access::ReadExecute, Owner::Host);
    let fault_stack = mapping(FAULT_STACK_AT, PAGE, Access::ReadWrite, Owner::Host);
    let boot_len = boot::len(image.manifest().devices.len(), args_len);
    let boot_len = boot_len.next_multiple_of(PAGE);
    let boot = mapping(BOOT_AT, boot_len, Access::Read, Owner::Guest);
    let reserved_len = HVT_ADDRESS_LOWEST.saturating_sub(boot.end());
    let reserved = mapping(boot.end(), reserved_len, Access::Read, Owner::Guest);
    let mut mappings = guest_mappings(image.segments(), memory);
    let stack = mappings.last().copied().ok_or(LayoutError::NoRoom)?;
    mappings.extend([system, fault_stack, boot, reserved]);
    let tables = PageTables::build(Gpa(memory), &mappings).ok_or(LayoutError::NoRoom)?;
    let all = memory
        .checked_add(tables.len())
        .ok_or(LayoutError::NoRoom)?;
    // Of the memory below its end a guest touches a few pages and no more.
    let large_end = memory.saturating_sub(HUGE_PAGE) & !HUGE_PAGE.saturating_sub(1);
    let large_start = span.end.next_multiple_of(HUGE_PAGE);
    Ok(Layout {
        bias: 0,
        mappings,
        boot,
        devices: None,
        inherited: None,
        system,
        fault_stack,
        stack,
        image: Span {
            addr: span.start,
            len: span.end.saturating_sub(span.start),
        },
        heap: Span {
            addr: span.end,
            len: memory.saturating_sub(span.end),
        },
        memory: all,
        huge: large_start..large_end.max(large_start),
        guard: 0..0,
        tables_range: memory..all,
        tables,
    })
}

/// The image's segments, and read-write what is between and behind them, in ascending
/// order. What is read-write and adjacent is one, so that large pages fit into it.
fn guest_mappings(segments: &[Segment], memory: u64) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    let mut add = |from: u64, to: u64, access: Access| {
        if from >= to {
            return;
        }
        let new = mapping(from, to.saturating_sub(from), access, Owner::Guest);
        match mappings.last_mut() {
            Some(last) if last.access == access && last.end() == from => {
                last.len = last.len.saturating_add(new.len);
            }
            _ => mappings.push(new),
        }
    };
    let mut at = HVT_ADDRESS_LOWEST;
    for segment in segments {
        let pages = segment.pages();
        add(at, pages.start, Access::ReadWrite);
        add(pages.start, pages.end, segment.access);
        at = pages.end;
    }
    add(at, memory, Access::ReadWrite);
    mappings
}

/// Virtual and physical addresses are the same.
const fn mapping(addr: u64, len: u64, access: Access, owner: Owner) -> Mapping {
    Mapping {
        addr,
        len,
        gpa: Gpa(addr),
        access,
        owner,
    }
}
