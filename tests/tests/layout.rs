//! Where things stand in a guest's memory: rules that hold for every image,
//! size and random number. No KVM.

use proptest::prelude::{any, prop_oneof, proptest};
use wharf_abi::Manifest;
use wharf_machine::image::Image;
use wharf_machine::layout::{Layout, LayoutError, MEMORY_DEFAULT};
use wharf_machine::memory::{HUGE_PAGE, PAGE};
use wharf_tests::elf::{ElfBuilder, R, W, X};

fn image(relocatable: bool, pages: u64, stack_kib: u32) -> Image {
    image_at(
        if relocatable { 0 } else { 0x40_0000 },
        relocatable,
        pages,
        stack_kib,
    )
}

fn image_at(base: u64, relocatable: bool, pages: u64, stack_kib: u32) -> Image {
    let builder = ElfBuilder::new()
        .segment(base, R | X, &[0x90; 16], 100)
        .segment(base + 16 * PAGE, R | W, &[1; 16], pages * PAGE)
        .manifest(Manifest::new("t", "1").with_stack_kib(stack_kib));
    let builder = if relocatable {
        builder.relocatable()
    } else {
        builder
    };
    Image::parse(builder.build()).unwrap()
}

/// The rules.
fn check(layout: &Layout, memory: u64) {
    let mut by_addr = layout.mappings.clone();
    by_addr.sort_by_key(|m| m.addr);
    for pair in by_addr.windows(2) {
        assert!(pair[0].end() <= pair[1].addr, "virtual overlap: {pair:x?}");
    }
    let mut by_gpa = layout.mappings.clone();
    by_gpa.sort_by_key(|m| m.gpa);
    for pair in by_gpa.windows(2) {
        assert!(
            pair[0].gpa.0 + pair[0].len <= pair[1].gpa.0,
            "physical overlap: {pair:x?}"
        );
    }
    let tables = &layout.tables_range;
    assert!(!tables.is_empty() && tables.end <= memory, "{tables:x?}");
    for m in &by_gpa {
        let apart = m.gpa.0 >= tables.end || m.gpa.0 + m.len <= tables.start;
        assert!(apart, "page tables at {tables:x?} inside {m:x?}");
    }
    let mapped = |addr: u64| by_addr.iter().any(|m| (m.addr..m.end()).contains(&addr));
    assert!(!mapped(0) && !mapped(PAGE - 1), "the null page is mapped");
    assert!(!mapped(layout.stack.addr - 1), "no guard below the stack");
    assert!(!mapped(layout.stack.end()), "no guard above the stack");
    for m in &by_addr {
        assert!(m.addr % PAGE == 0 && m.len % PAGE == 0 && m.gpa.0 % PAGE == 0);
        assert!(m.gpa.0 + m.len <= memory, "{m:x?} is outside the memory");
        assert!(m.end() <= 1 << 47, "{m:x?} is not in the lower half");
    }
    if layout.heap.len >= 9 * HUGE_PAGE {
        assert_eq!(layout.heap.addr % HUGE_PAGE, 0);
        assert_eq!(layout.huge.start % HUGE_PAGE, 0);
    }
}

#[test]
fn an_ordinary_guest_has_its_heap_on_large_pages() {
    let layout = Layout::plan(&image(true, 2, 256), MEMORY_DEFAULT, 0, 7).unwrap();
    check(&layout, MEMORY_DEFAULT);
    assert_eq!(layout.heap.len, MEMORY_DEFAULT - HUGE_PAGE);
    assert_eq!(layout.stack.len, 256 << 10);
    assert!(layout.bias >= 1 << 32);
}

#[test]
fn a_fixed_image_stays_where_it_is() {
    let layout = Layout::plan(&image(false, 2, 256), MEMORY_DEFAULT, 0, 7).unwrap();
    check(&layout, MEMORY_DEFAULT);
    assert_eq!((layout.bias, layout.image.addr), (0, 0x40_0000));
}

#[test]
fn a_fixed_image_at_the_end_of_its_range_leaves_room_for_the_rest() {
    let high = (1 << 46) - 2 * PAGE;
    let elf = ElfBuilder::new().segment(high, R | X, &[0x90], 1).build();
    let image = Image::parse(elf).unwrap();
    check(&Layout::plan(&image, 1 << 36, 0, 0).unwrap(), 1 << 36);
}

#[test]
fn the_read_only_part_after_relocation_is_mapped_so() {
    let elf = ElfBuilder::new()
        .segment(0, R | X, &[0x90], 1)
        .segment(0x10_000, R | W, &[0; 16], 4 * PAGE)
        .relro(0x11_000, 2 * PAGE)
        .relocatable()
        .build();
    let layout = Layout::plan(&Image::parse(elf).unwrap(), MEMORY_DEFAULT, 0, 1).unwrap();
    let access = |addr: u64| {
        let at = addr + layout.bias;
        let mapping = layout
            .mappings
            .iter()
            .find(|m| (m.addr..m.end()).contains(&at));
        mapping.unwrap().access.is_writable()
    };
    assert_eq!(
        [0x10_000, 0x11_000, 0x12_fff, 0x13_000].map(access),
        [true, false, false, true]
    );
}

#[test]
fn what_does_not_fit_is_refused_with_the_size_that_would() {
    let image = image(true, 64, 64);
    let Err(LayoutError::TooSmall { needed, .. }) = Layout::plan(&image, PAGE, 0, 0) else {
        panic!("a page is enough?");
    };
    assert!(Layout::plan(&image, needed, 0, 0).is_ok());
    assert!(Layout::plan(&image, needed - PAGE, 0, 0).is_err());
    let odd = Layout::plan(&image, needed + 1, 0, 0);
    assert_eq!(odd.unwrap_err(), LayoutError::Uneven { memory: needed + 1 });
}

/// Found by a reader: tables were counted for one heap and built for another, and
/// their last page was the heap's first.
#[test]
fn the_guest_has_no_page_table_in_its_heap() {
    for pages in 480..520 {
        for base in (0x40_0000..0x60_0000).step_by(0x2_0000) {
            for memory in [2, 4, 6] {
                let image = image_at(base, false, pages, 4);
                if let Ok(layout) = Layout::plan(&image, memory << 20, 0, 0) {
                    check(&layout, memory << 20);
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn no_size_near_a_large_page_breaks_the_rules(
        base_page in 0x400_u64..0x600,
        pages in 400_u64..520,
        memory_mib in 1_u64..9,
        memory_pages in 0_u64..4,
        stack_kib in 4_u32..64,
    ) {
        let memory = (memory_mib << 20) + memory_pages * PAGE;
        let image = image_at(base_page * PAGE, false, pages, stack_kib);
        if let Ok(layout) = Layout::plan(&image, memory, 0, 0) {
            check(&layout, memory);
        }
    }

    #[test]
    fn the_rules_hold_for_every_guest(
        relocatable: bool,
        pages in 1_u64..600,
        stack_kib in prop_oneof![4_u32..64, 4_u32..65_536],
        memory_pages in prop_oneof![0_u64..2_000, 0_u64..1_000_000],
        args_len in 0_u64..65_536,
        random in any::<u64>(),
    ) {
        let memory = memory_pages * PAGE;
        let image = image(relocatable, pages, stack_kib);
        match Layout::plan(&image, memory, args_len, random) {
            Ok(layout) => check(&layout, memory),
            Err(e) => assert!(matches!(e, LayoutError::TooSmall { .. }), "{e}"),
        }
    }
}
