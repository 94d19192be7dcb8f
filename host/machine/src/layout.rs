//! Where everything stands in a guest's memory.
//!
//! ```text
//! guest-virtual                          guest-physical
//!
//!           null, unmapped               0  system page
//!  base ┌──────────────────┐                fault stack
//!       │ image segments   │ as the ELF     boot page, arguments
//!       ├──────────────────┤                image
//!       │ boot page, args  │ r              stack
//!       ├──────────────────┤                page tables
//!       │ system page      │ host only      ┄┄┄ next multiple of 2 MiB
//!       │ fault stack      │ host only      heap, to the end of memory
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

use crate::image::{Access, Image, Placement};
use crate::memory::{Gpa, HUGE_PAGE, PAGE};
use crate::paging::PageTables;
use crate::space::{Mapping, Owner};

/// Guest memory when nobody says otherwise.
pub const MEMORY_DEFAULT: u64 = 32 * 1024 * 1024;

/// Most memory that a guest may have: what fits between the highest image and
/// the end of the lower half of the address space.
pub const MEMORY_MAX: u64 = 1 << 40;

/// Relocatable images go between these addresses: above 4 GiB, so that no
/// 32-bit value is ever a pointer.
const BASE_MIN: u64 = 1 << 32;
const BASE_MAX: u64 = 1 << 46;

/// KVM's shadow pager maps pages in aligned groups of eight; an image that
/// starts with a group needs the fewest.
const BASE_ALIGN: u64 = 8 * PAGE;

/// The image does not fit its memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Too little memory for what must be there.
    #[error(
        "memory of {memory} bytes is too small: the image needs {needed}; \
         give it more with --memory"
    )]
    TooSmall {
        /// Bytes given.
        memory: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// More memory than a guest may have.
    #[error("memory of {memory} bytes is too large: the most is {}", MEMORY_MAX)]
    TooLarge {
        /// Bytes given.
        memory: u64,
    },
    /// Memory that is no whole number of pages.
    #[error("memory of {memory} bytes is no multiple of 4 KiB")]
    Uneven {
        /// Bytes given.
        memory: u64,
    },
    /// More arguments than the boot page can carry.
    #[error(
        "arguments of {len} bytes are too long: the most is {}",
        wharf_abi::boot::ARGS_MAX
    )]
    ArgsTooLong {
        /// Bytes with terminators.
        len: u64,
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
    /// Where large host pages may begin.
    pub huge_from: u64,
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
        if memory > MEMORY_MAX {
            return Err(LayoutError::TooLarge { memory });
        }
        if !memory.is_multiple_of(PAGE) {
            return Err(LayoutError::Uneven { memory });
        }
        if args_len > wharf_abi::boot::ARGS_MAX.try_into().unwrap_or(u64::MAX) {
            return Err(LayoutError::ArgsTooLong { len: args_len });
        }
        Planner::new(image, random)
            .plan(memory, args_len)
            .ok_or(LayoutError::NoRoom)?
    }
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
    fn new(image: &'a Image, random: u64) -> Self {
        let span = image.span();
        let bias = match image.placement() {
            Placement::Fixed => 0,
            Placement::Relocatable => {
                let align = BASE_ALIGN.max(image.alignment());
                let choices = BASE_MAX.saturating_sub(BASE_MIN).checked_div(align);
                let choice = choices.and_then(|choices| random.checked_rem(choices));
                BASE_MIN.saturating_add(choice.unwrap_or(0).saturating_mul(align))
            }
        };
        Self {
            image,
            bias,
            addr: span.end.saturating_add(bias),
            gpa: 0,
            mappings: Vec::new(),
        }
    }

    /// `None` when an address leaves the lower half.
    fn plan(mut self, memory: u64, args_len: u64) -> Option<Result<Layout, LayoutError>> {
        let boot_len = PAGE.checked_add(args_len.checked_next_multiple_of(PAGE)?)?;
        let stack_len = self
            .image
            .manifest()
            .stack_bytes
            .checked_next_multiple_of(PAGE)?;

        // The system page first, at guest-physical 0, where nothing of the guest's is.
        let system_addr = self.addr.checked_add(boot_len)?;
        let system = self.place(system_addr, PAGE, Access::ReadExecute, Owner::Host)?;
        let fault_stack = self.place(system.end(), PAGE, Access::ReadWrite, Owner::Host)?;
        let boot = self.place(self.addr, boot_len, Access::Read, Owner::Guest)?;
        self.place_image()?;
        let guard_end = fault_stack.end().checked_add(PAGE)?;
        let stack = self.place(guard_end, stack_len, Access::ReadWrite, Owner::Guest)?;

        // How many tables the heap needs depends on where they end, so count
        // them for the largest heap that could be, and for one at least: then
        // what a refusal says is needed is enough.
        let after_guard = stack.end().checked_add(PAGE)?;
        let tables_at = Gpa(self.gpa);
        let some = self.gpa.checked_add(HUGE_PAGE)?;
        let largest = self.heap(after_guard, self.gpa, memory.max(some))?;
        let tables_len = self.tables(tables_at, largest).len();
        let low_end = self.gpa.checked_add(tables_len)?;

        let on_huge_pages = low_end.checked_next_multiple_of(HUGE_PAGE)?;
        let needed = low_end.max(self.image.manifest().memory_min_bytes);
        if memory < needed {
            return Some(Err(LayoutError::TooSmall { memory, needed }));
        }
        let heap_at = if on_huge_pages < memory {
            on_huge_pages
        } else {
            low_end
        };
        let heap = self.heap(after_guard, heap_at, memory)?;
        let tables = self.tables(tables_at, heap);
        self.mappings.extend(heap.filter(|h| h.len > 0));

        let span = self.image.span();
        Some(Ok(Layout {
            bias: self.bias,
            boot,
            system,
            fault_stack,
            stack,
            image: Span {
                addr: span.start.checked_add(self.bias)?,
                len: span.end.checked_sub(span.start)?,
            },
            heap: heap.map_or(Span::default(), |h| Span {
                addr: h.addr,
                len: h.len,
            }),
            huge_from: on_huge_pages,
            mappings: self.mappings,
            tables,
        }))
    }

    /// Maps the image, page by page as its segments lie. A relocated image's
    /// RELRO part is read-only from the start: the host has relocated it by then.
    fn place_image(&mut self) -> Option<()> {
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
                    let addr = from.checked_add(self.bias)?;
                    self.place(addr, to.checked_sub(from)?, access, Owner::Guest)?;
                }
            }
        }
        Some(())
    }

    /// Maps the next guest-physical pages at `addr`.
    fn place(&mut self, addr: u64, len: u64, access: Access, owner: Owner) -> Option<Mapping> {
        let mapping = Mapping {
            addr,
            len,
            gpa: Gpa(self.gpa),
            access,
            owner,
        };
        in_lower_half(&mapping)?;
        self.gpa = self.gpa.checked_add(len)?;
        self.mappings.push(mapping);
        Some(mapping)
    }

    /// The heap over all memory from `gpa` on, at the first address from `after`
    /// on that has the same offset in a 2 MiB page. The inner `None`: no heap.
    #[expect(clippy::option_option, reason = "no room is not no heap")]
    fn heap(&self, after: u64, gpa: u64, memory: u64) -> Option<Option<Mapping>> {
        let Some(len) = memory.checked_sub(gpa).filter(|&len| len > 0) else {
            return Some(None);
        };
        let skew = gpa.wrapping_sub(after) % HUGE_PAGE;
        let heap = Mapping {
            addr: after.checked_add(skew)?,
            len,
            gpa: Gpa(gpa),
            access: Access::ReadWrite,
            owner: Owner::Guest,
        };
        in_lower_half(&heap)?;
        Some(Some(heap))
    }

    fn tables(&self, at: Gpa, heap: Option<Mapping>) -> PageTables {
        let mut mappings = self.mappings.clone();
        mappings.extend(heap);
        PageTables::build(at, &mappings)
    }
}

/// Canonical addresses of the lower half only (SDM vol. 1 §3.3.7.1).
fn in_lower_half(mapping: &Mapping) -> Option<()> {
    let end = mapping.addr.checked_add(mapping.len)?;
    (end <= 1 << 47).then_some(())
}
