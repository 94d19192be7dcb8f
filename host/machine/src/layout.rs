//! Where everything stands in a guest's memory.
//!
//! ```text
//! guest-virtual                          guest-physical
//!
//!           null, unmapped               0  system page
//!  base ┌──────────────────┐                fault stack
//!       │ image segments   │ as the ELF     boot page, arguments
//!       ├──────────────────┤                device pages, inherited state
//!       │ boot page, args  │ r              image
//!       ├──────────────────┤                stack
//!       │ device pages     │ rw             page tables
//!       ├──────────────────┤                ┄┄┄ next multiple of 2 MiB
//!       │ inherited state  │ r              heap, to the end of memory
//!       ├──────────────────┤
//!       │ system page      │ host only
//!       │ fault stack      │ host only
//!       ├──────────────────┤
//!       │ guard, unmapped  │
//!       ├──────────────────┤
//!       │ stack            │ rw
//!       ├──────────────────┤
//!       │ guard, unmapped  │
//!       ├──────────────────┤ same offset in a 2 MiB page as its memory
//!       │ heap             │ rw
//!       └──────────────────┘
//! ```
//!
//! A relocatable image gets a random base; the rest follows it, so its addresses
//! are as unpredictable. Everything but the heap is packed tightly on both
//! sides: each page that a guest touches costs a fault in the host, and each
//! page table a page of memory.

use std::ops::Range;

use wharf_abi::Span;

use crate::hvt;
use crate::image::{Access, Contract, Image, Placement};
use crate::memory::{Gpa, HUGE_PAGE, PAGE, u64_of};
use crate::paging::PageTables;
use crate::space::{Mapping, Owner};

/// Guest memory when nobody says otherwise.
pub const MEMORY_DEFAULT: u64 = 32 * 1024 * 1024;

/// Most memory that a guest may have, so that page tables, which are built in
/// the host, stay below a few MiB.
pub const MEMORY_MAX: u64 = 1 << 36;

/// Relocatable images go between these addresses: above 4 GiB, so that no
/// 32-bit value is ever a pointer.
const BASE_MIN: u64 = 1 << 32;
const BASE_MAX: u64 = 1 << 46;

/// A page as a step.
const PAGE_BYTES: usize = 4096;

/// The heap begins on a large page when it is at least so many times as long as
/// the gap that this leaves.
const GAP_RATIO: u64 = 8;

/// KVM's shadow pager maps pages in aligned groups of eight; an image that
/// starts with a group needs the fewest.
const BASE_ALIGN: u64 = 8 * PAGE;

/// The image does not fit its memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Too little memory for what must be there.
    #[error("memory of {} KiB is too small: the image needs {} KiB", memory / 1024, needed / 1024)]
    TooSmall {
        /// Bytes given.
        memory: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// More memory than a guest may have.
    #[error("memory of {} GiB is too large: the most is {} GiB", memory >> 30, most >> 30)]
    TooLarge {
        /// Bytes given.
        memory: u64,
        /// Bytes that such an image can have.
        most: u64,
    },
    /// Memory that is no whole number of pages.
    #[error("memory of {memory} bytes is no multiple of 4 KiB")]
    Uneven {
        /// Bytes given.
        memory: u64,
    },
    /// More arguments than an hvt guest's boot information can carry.
    #[error("arguments of {len} bytes are too long for an hvt guest: the most is {most}")]
    ArgsTooLong {
        /// Bytes, one between two of them included.
        len: u64,
        /// Bytes that fit.
        most: u64,
    },
    /// The parts do not fit into the address space.
    #[error("the image leaves no room for its stack and heap below 128 TiB")]
    NoRoom,
}

/// A guest's memory, planned.
#[derive(Debug)]
pub struct Layout {
    /// What to add to an address of the image's to get the guest's.
    pub bias: u64,
    /// Every mapping, the host's too; they do not overlap.
    pub mappings: Vec<Mapping>,
    /// The boot page and, behind it, the arguments.
    pub boot: Mapping,
    /// A page for each device that the image declares; none without one.
    pub devices: Option<Mapping>,
    /// Room for the state of the generation before; none when nobody hands any over.
    pub inherited: Option<Mapping>,
    /// The page with the descriptor tables.
    pub system: Mapping,
    /// Where exceptions push.
    pub fault_stack: Mapping,
    /// The stack.
    pub stack: Mapping,
    /// The image's addresses, bias added.
    pub image: Span,
    /// The heap.
    pub heap: Span,
    /// Guest-physical memory in all, in bytes.
    pub memory: u64,
    /// Where the host may use large pages, guest-physical.
    pub huge: Range<u64>,
    /// Addresses below the stack that are never mapped.
    pub guard: Range<u64>,
    /// Guest-physical addresses of the page tables, which nothing maps.
    pub tables_range: Range<u64>,
    pub(crate) tables: PageTables,
}

impl Layout {
    /// Plans the memory of `image` with `memory` bytes in all and `args_len`
    /// bytes of arguments. `random` decides a relocatable image's base.
    ///
    /// # Errors
    ///
    /// When the sizes do not go together.
    pub fn plan(
        image: &Image,
        memory: u64,
        args_len: u64,
        random: u64,
    ) -> Result<Self, LayoutError> {
        Self::plan_heir(image, memory, args_len, 0, random)
    }

    /// The same with room for `inherited_len` bytes of inherited state.
    ///
    /// # Errors
    ///
    /// As [`Layout::plan`].
    pub fn plan_heir(
        image: &Image,
        memory: u64,
        args_len: u64,
        inherited_len: u64,
        random: u64,
    ) -> Result<Self, LayoutError> {
        if !memory.is_multiple_of(PAGE) {
            return Err(LayoutError::Uneven { memory });
        }
        if image.manifest().contract == Contract::Hvt {
            return hvt::plan(image, memory, args_len);
        }
        if memory > MEMORY_MAX {
            let most = MEMORY_MAX;
            return Err(LayoutError::TooLarge { memory, most });
        }
        let mut planner = Planner::new(image, random)?;
        let parts = planner.place_parts(args_len, inherited_len)?;
        planner.finish(memory, &parts)
    }

    /// Where each device's page is, to the guest and in its memory, in the order of
    /// the manifest.
    pub fn device_pages(&self) -> impl Iterator<Item = (u64, Gpa)> {
        self.devices.into_iter().flat_map(|devices| {
            let pages = (0..devices.len).step_by(PAGE_BYTES);
            pages.map(move |at| (devices.addr.saturating_add(at), devices.gpa.offset(at)))
        })
    }
}

/// What stands behind the image.
struct Parts {
    boot: Mapping,
    devices: Option<Mapping>,
    inherited: Option<Mapping>,
    system: Mapping,
    fault_stack: Mapping,
    stack: Mapping,
}

/// Two bump pointers that move together.
struct Planner<'a> {
    image: &'a Image,
    bias: u64,
    addr: u64,
    gpa: u64,
    mappings: Vec<Mapping>,
}

impl<'a> Planner<'a> {
    fn new(image: &'a Image, random: u64) -> Result<Self, LayoutError> {
        let bias = match image.placement() {
            Placement::Fixed => 0,
            Placement::Relocatable => {
                random_base(image.alignment(), random).ok_or(LayoutError::NoRoom)?
            }
        };
        Ok(Self {
            image,
            bias,
            addr: sum(image.span().end, bias)?,
            gpa: 0,
            mappings: Vec::new(),
        })
    }

    /// Maps everything but the heap.
    fn place_parts(&mut self, args_len: u64, inherited_len: u64) -> Result<Parts, LayoutError> {
        let boot_len = sum(PAGE, whole_pages(args_len)?)?;
        let stack_len = whole_pages(self.image.manifest().stack_bytes)?;

        // The system page first, at guest-physical 0, where nothing of the guest's is.
        let devices_addr = sum(self.addr, boot_len)?;
        let devices_len = PAGE.saturating_mul(u64_of(self.image.manifest().devices.len()));
        let inherited_addr = sum(devices_addr, devices_len)?;
        let inherited_len = whole_pages(inherited_len)?;
        let system_addr = sum(inherited_addr, inherited_len)?;
        let system = self.place(system_addr, PAGE, Access::ReadExecute, Owner::Host)?;
        let fault_stack = self.place(system.end(), PAGE, Access::ReadWrite, Owner::Host)?;
        let boot = self.place(self.addr, boot_len, Access::Read, Owner::Guest)?;
        let devices = match devices_len {
            0 => None,
            len => Some(self.place(devices_addr, len, Access::ReadWrite, Owner::Guest)?),
        };
        let inherited = match inherited_len {
            0 => None,
            len => Some(self.place(inherited_addr, len, Access::Read, Owner::Guest)?),
        };
        self.place_image()?;
        let guard_end = sum(fault_stack.end(), PAGE)?;
        let stack = self.place(guard_end, stack_len, Access::ReadWrite, Owner::Guest)?;
        Ok(Parts {
            boot,
            devices,
            inherited,
            system,
            fault_stack,
            stack,
        })
    }

    /// Maps the image, page by page as its segments lie. A relocated image's
    /// RELRO part is read-only from the start: the host has relocated it by then.
    fn place_image(&mut self) -> Result<(), LayoutError> {
        let relro = self.image.relro().unwrap_or(0..0);
        for segment in self.image.segments() {
            let Range { start, end } = segment.pages();
            let cut = |at: u64| at.clamp(start, end);
            let (first, last) = (cut(relro.start), cut(relro.end));
            for (from, to, access) in [
                (start, first, segment.access),
                (first, last, Access::Read),
                (last, end, segment.access),
            ] {
                if from < to {
                    let addr = sum(from, self.bias)?;
                    self.place(addr, to.saturating_sub(from), access, Owner::Guest)?;
                }
            }
        }
        Ok(())
    }

    /// Fits page tables and heap into what is left of the memory.
    fn finish(mut self, memory: u64, parts: &Parts) -> Result<Layout, LayoutError> {
        let after_guard = sum(parts.stack.end(), PAGE)?;
        let (heap, tables) = self.fit_heap(memory, after_guard)?;
        let tables_at = self.gpa;
        let low_end = sum(tables_at, tables.len())?;
        let needed = low_end.max(self.image.manifest().memory_min_bytes);
        if memory < needed {
            let needed = whole_pages(needed)?;
            return Err(LayoutError::TooSmall { memory, needed });
        }
        self.mappings.extend(heap);
        let span = self.image.span();
        Ok(Layout {
            bias: self.bias,
            boot: parts.boot,
            devices: parts.devices,
            inherited: parts.inherited,
            system: parts.system,
            fault_stack: parts.fault_stack,
            stack: parts.stack,
            image: Span {
                addr: sum(span.start, self.bias)?,
                len: span.end.saturating_sub(span.start),
            },
            heap: heap.map_or(Span::default(), |heap| Span {
                addr: heap.addr,
                len: heap.len,
            }),
            memory,
            huge: low_end.next_multiple_of(HUGE_PAGE)..memory,
            guard: parts.stack.addr.saturating_sub(PAGE)..parts.stack.addr,
            tables_range: tables_at..low_end,
            mappings: self.mappings,
            tables,
        })
    }

    /// The heap behind the page tables, and the tables that map everything.
    ///
    /// Where the heap begins depends on how many tables there are, and the other
    /// way round: a heap that begins in the middle of a large page needs more. So
    /// room is made until the tables of the very heap that is used fit before it.
    fn fit_heap(
        &self,
        memory: u64,
        after: u64,
    ) -> Result<(Option<Mapping>, PageTables), LayoutError> {
        let mut low_end = sum(self.gpa, PAGE)?;
        loop {
            let huge = low_end
                .checked_next_multiple_of(HUGE_PAGE)
                .ok_or(LayoutError::NoRoom)?;
            // A small memory must not lose much of itself to the gap before the
            // first large page: the heap then begins on small ones.
            let gap = huge.saturating_sub(low_end);
            let large = memory.saturating_sub(huge) >= gap.saturating_mul(GAP_RATIO);
            let start = if huge < memory && large {
                huge
            } else {
                low_end
            };
            let heap = heap(after, start, memory)?;
            let mut mappings = self.mappings.clone();
            mappings.extend(heap);
            let tables = PageTables::build(Gpa(self.gpa), &mappings).ok_or(LayoutError::NoRoom)?;
            let end = sum(self.gpa, tables.len())?;
            if end <= low_end {
                return Ok((heap, tables));
            }
            low_end = end;
        }
    }

    /// Maps the next guest-physical pages at `addr`.
    fn place(
        &mut self,
        addr: u64,
        len: u64,
        access: Access,
        owner: Owner,
    ) -> Result<Mapping, LayoutError> {
        let mapping = in_lower_half(Mapping {
            addr,
            len,
            gpa: Gpa(self.gpa),
            access,
            owner,
        })?;
        self.gpa = sum(self.gpa, len)?;
        self.mappings.push(mapping);
        Ok(mapping)
    }
}

/// The heap over all memory from `gpa` on, if any is left, at the first address
/// from `after` on that has the same offset in a 2 MiB page.
fn heap(after: u64, gpa: u64, memory: u64) -> Result<Option<Mapping>, LayoutError> {
    let len = memory.saturating_sub(gpa);
    if len == 0 {
        return Ok(None);
    }
    let skew = gpa.wrapping_sub(after) % HUGE_PAGE;
    in_lower_half(Mapping {
        addr: sum(after, skew)?,
        len,
        gpa: Gpa(gpa),
        access: Access::ReadWrite,
        owner: Owner::Guest,
    })
    .map(Some)
}

fn random_base(alignment: u64, random: u64) -> Option<u64> {
    let align = BASE_ALIGN.max(alignment);
    let choices = BASE_MAX.checked_sub(BASE_MIN)?.checked_div(align)?;
    let choice = random.checked_rem(choices)?;
    BASE_MIN.checked_add(choice.checked_mul(align)?)
}

/// Canonical addresses of the lower half only (SDM vol. 1 §3.3.7.1).
fn in_lower_half(mapping: Mapping) -> Result<Mapping, LayoutError> {
    if sum(mapping.addr, mapping.len)? <= 1 << 47 {
        Ok(mapping)
    } else {
        Err(LayoutError::NoRoom)
    }
}

fn sum(a: u64, b: u64) -> Result<u64, LayoutError> {
    a.checked_add(b).ok_or(LayoutError::NoRoom)
}

fn whole_pages(len: u64) -> Result<u64, LayoutError> {
    len.checked_next_multiple_of(PAGE)
        .ok_or(LayoutError::NoRoom)
}
