//! Images for hvt that break one rule each, images that keep them all, and where these
//! stand in memory. No KVM.

use proptest::prelude::*;
use wharf_abi::DeviceKind;
use wharf_abi::note::Note;
use wharf_machine::image::{Access, Contract, HVT_ADDRESS_END, Image, OpenError, Placement};
use wharf_machine::layout::{Layout, LayoutError};
use wharf_machine::memory::{HUGE_PAGE, PAGE};
use wharf_tests::elf::{CODE_ADDR, ElfBuilder, PT_INTERP, PT_LOAD, PT_TLS, Program, R, W, X};
use wharf_tests::hvt::{
    BLOCK, HvtBuilder, NET, RESERVED_FIRST, abi_note, entry, manifest_note, note,
};
use zerocopy::IntoBytes;

const HLT: &[u8] = &[0xF4];
const DATA: u64 = 0x60_0000;
const MIB: u64 = 1 << 20;

/// Segment 0 is code, segment 1 is a page of data and one of zeroes.
fn good() -> HvtBuilder {
    HvtBuilder::guest(HLT).segment(DATA, R | W, &[1; 4096], 8192)
}

/// The same with another segment.
fn segment(index: usize, edit: impl FnOnce(&mut Program)) -> Vec<u8> {
    good().edited(|elf| edit(&mut elf.programs[index]))
}

fn notes(notes: &[&[u8]]) -> Vec<u8> {
    good().with_notes(notes, |_| ())
}

/// A good image's notes behind another.
fn beside(other: &[u8]) -> Vec<u8> {
    notes(&[other, &abi_note(1, 2), &manifest_note(1, 1, &first())])
}

/// The same, with a note's program header changed: of the other it is number 2.
fn beside_with(other: &[u8], index: usize, edit: impl FnOnce(&mut Program)) -> Vec<u8> {
    good().with_notes(
        &[other, &abi_note(1, 2), &manifest_note(1, 1, &first())],
        |elf| edit(&mut elf.programs[index]),
    )
}

/// A manifest of these bytes behind the pad.
fn manifest(desc: &[u8]) -> Vec<u8> {
    notes(&[&abi_note(1, 2), &note(b"MFT1", desc)])
}

/// A manifest with these entries, of which there are as many as it says.
fn entries(entries: &[Vec<u8>]) -> Vec<u8> {
    let count = u32::try_from(entries.len()).unwrap();
    notes(&[&abi_note(1, 2), &manifest_note(1, count, &entries.concat())])
}

fn first() -> Vec<u8> {
    entry(b"", RESERVED_FIRST)
}

fn device(name: &[u8]) -> Vec<u8> {
    entries(&[first(), entry(name, BLOCK)])
}

fn attached(at: usize) -> Vec<u8> {
    let mut all = [first(), entry(b"disk", BLOCK)];
    all[at][96] = 1;
    entries(&all)
}

/// A rule, a file that breaks it, and what the message must say.
type Broken = (&'static str, fn() -> Vec<u8>, &'static str);

#[rustfmt::skip]
const BROKEN: &[Broken] = &[
    ("a manifest without an ABI",
     || notes(&[&manifest_note(1, 1, &first())]), "no ABI1 note"),
    ("an ABI without a manifest", || notes(&[&abi_note(1, 2)]), "no MFT1 note"),
    ("two ABIs", || notes(&[&abi_note(1, 2), &abi_note(1, 2), &manifest_note(1, 1, &first())]),
     "program header 3 (PT_NOTE): a second ABI1 note"),
    ("two manifests",
     || notes(&[&abi_note(1, 2), &manifest_note(1, 1, &first()), &manifest_note(1, 1, &first())]),
     "program header 4 (PT_NOTE): a second MFT1 note"),
    ("an ABI that is short", || good().abi(&note(b"ABI1", &[1; 12])).build(),
     "an ABI1 note of 12 bytes instead of 16"),
    ("an ABI that is long", || good().abi(&note(b"ABI1", &[1; 20])).build(), "of 20 bytes"),
    ("a later ABI", || good().abi(&abi_note(1, 3)).build(),
     "version 3 of Solo5's hvt ABI; this host has 2"),
    ("an earlier ABI", || good().abi(&abi_note(1, 1)).build(), "version 1 of Solo5's hvt ABI"),
    ("an image for spt", || good().abi(&abi_note(2, 1)).build(), "target spt: build it for hvt"),
    ("an image for virtio", || good().abi(&abi_note(3, 1)).build(), "target virtio"),
    ("an image for xen", || good().abi(&abi_note(6, 1)).build(), "target xen"),
    ("an image for nobody knows what", || good().abi(&abi_note(99, 1)).build(),
     "of a number that nothing is known of"),
    ("a header of another size", || good().edited(|elf| elf.header.ehsize = 52),
     "ELF header of 52 bytes instead of 64"),
    ("an image that is to be moved", || good().edited(|elf| elf.header.kind = 3),
     "not linked for fixed addresses"),

    ("a note that is too short for any", || beside(&[0xFF; 11]),
     "program header 2 (PT_NOTE): the note at byte 0 is cut off"),
    ("a place for notes without any", || beside(&[]),
     "program header 2 (PT_NOTE): the note at byte 0 is cut off"),
    ("a note outside the file", || beside_with(&[0; 16], 2, |p| p.offset = 1 << 40),
     "program header 2 (PT_NOTE): not inside the file"),
    ("a note that ends behind the file", || beside_with(&[0; 16], 2, |p| p.filesz = 1 << 40),
     "program header 2 (PT_NOTE): not inside the file"),
    ("an ABI that ends before it is whole", || beside_with(&[0; 16], 3, |p| p.filesz -= 1),
     "program header 3 (PT_NOTE): the note at byte 0 is cut off"),
    ("a manifest that ends before it is whole", || beside_with(&[0; 16], 4, |p| p.filesz -= 1),
     "program header 4 (PT_NOTE): the note at byte 0 is cut off"),
    ("a manifest that says it is longer than anything", || {
        let mut long = manifest_note(1, 1, &first());
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        notes(&[&abi_note(1, 2), &long])
    }, "program header 3 (PT_NOTE): the note at byte 0 is cut off"),
    ("an ABI that says nothing", || good().abi(&note(b"ABI1", &[])).build(),
     "an ABI1 note of 0 bytes"),

    ("an empty manifest", || manifest(&[]), "manifest: 0 bytes"),
    ("a manifest that is all pad", || manifest(&[0; 4]), "manifest: 4 bytes"),
    ("a manifest without a count", || manifest(&[0; 11]), "manifest: 11 bytes"),
    ("a manifest of no entries", || entries(&[]), "0 entries are not between 1 and 64"),
    ("a manifest of too many", || entries(&vec![first(); 65]), "65 entries"),
    ("a manifest of too many to count",
     || notes(&[&abi_note(1, 2), &manifest_note(1, u32::MAX, &first())]), "4294967295 entries"),
    ("a manifest that says it has more",
     || notes(&[&abi_note(1, 2), &manifest_note(1, 2, &first())]),
     "116 bytes are none of a manifest with 2 entries"),
    ("a manifest that says it has fewer",
     || notes(&[&abi_note(1, 2), &manifest_note(1, 1, &[first(), first()].concat())]),
     "220 bytes are none of a manifest with 1 entries"),
    ("a manifest that ends in an entry",
     || notes(&[&abi_note(1, 2), &manifest_note(1, 1, &first()[..103])]), "115 bytes"),
    ("another version of manifests",
     || notes(&[&abi_note(1, 2), &manifest_note(2, 1, &first())]), "version 2 is not 1"),
    ("a manifest that begins with a device", || entries(&[entry(b"disk", BLOCK)]),
     "entry 0 is not the reserved one"),
    ("a first entry with a name", || entries(&[entry(b"x", RESERVED_FIRST)]), "entry 0"),
    ("a second reserved entry", || entries(&[first(), first()]),
     "entry 1: type 0x40000000 is neither"),
    ("a device of no kind", || entries(&[first(), entry(b"x", 0)]), "entry 1: type 0x0"),
    ("a device of an unknown kind", || entries(&[first(), entry(b"x", 3)]), "type 0x3"),
    ("a device without a name", || device(b""), "entry 1: the name is not"),
    ("a name with a space", || device(b"a b"), "entry 1: the name"),
    ("a name with an escape sequence", || device(b"\x1b[2J"), "entry 1: the name"),
    ("a name that is not ASCII", || device("é".as_bytes()), "entry 1: the name"),
    ("a name without an end", || device(&[b'x'; 68]), "entry 1: the name"),
    ("a name with something behind it", || device(b"a\0b"), "entry 1: the name"),
    ("two devices of one name",
     || entries(&[first(), entry(b"x", BLOCK), entry(b"x", NET)]),
     "entry 2: a second device named x"),
    ("a device that is attached already", || attached(1), "entry 1: marked as attached"),
    ("a first entry that is attached", || attached(0), "entry 0: marked as attached"),

    ("a segment below 1 MiB", || segment(1, |p| p.vaddr = MIB - 4096),
     "starts below 0x100000"),
    ("a segment that its alignment takes there",
     || segment(1, |p| (p.vaddr, p.align) = (MIB + 4096, 2 * MIB)), "starts below 0x100000"),
    ("a segment above 4 GiB", || segment(1, |p| p.vaddr = (1 << 32) - 4096),
     "ends above 0x100000000"),
    ("a segment that its alignment takes there",
     || segment(1, |p| (p.vaddr, p.align) = ((1 << 32) - 8192, 1 << 33)),
     "starts below 0x100000"),
    ("a segment of zeroes above 4 GiB",
     || segment(1, |p| (p.filesz, p.memsz) = (0, 1 << 32)), "ends above 0x100000000"),
    ("a segment past the end of all addresses", || segment(1, |p| p.vaddr = u64::MAX - 4095),
     "runs past the end of the address space"),
    ("a segment with no alignment", || segment(1, |p| p.align = 0), "alignment 0x0"),
    ("a segment with an odd alignment", || segment(1, |p| p.align = 4097), "alignment 0x1001"),
    ("a segment that begins in a page", || segment(1, |p| (p.vaddr, p.align) = (DATA + 16, 16)),
     "with alignment 0x10 it does not fill whole pages"),
    ("a segment that ends in a page", || segment(1, |p| (p.memsz, p.align) = (4112, 16)),
     "with alignment 0x10 it does not fill whole pages"),
    ("a segment that can be written and executed", || segment(1, |p| p.flags = R | W | X),
     "writable and executable"),
    ("zeroes that can be written and executed",
     || segment(1, |p| (p.filesz, p.flags) = (0, W | X)), "writable and executable"),
    ("a segment longer in the file", || segment(1, |p| p.memsz = 4095), "more than in memory"),
    ("a segment outside the file", || segment(1, |p| p.offset = 1 << 40), "not inside the file"),
    ("segments in another order", || segment(0, |p| p.vaddr = DATA + 2 * MIB),
     "segment 1, which has higher"),
    ("segments that overlap", || segment(1, |p| p.vaddr = CODE_ADDR), "segment 1"),
    ("segments that their alignment makes overlap",
     || segment(1, |p| (p.vaddr, p.align) = (CODE_ADDR + 4096, 4 * MIB)),
     "overlaps segment 0, alignment included"),
    ("zeroes over code",
     || good().segment(CODE_ADDR, R | W, &[], 4096).edited(|elf| elf.programs.swap(1, 2)),
     "segment"),
    ("an entry in data", || good().edited(|elf| elf.header.entry = DATA),
     "entry point 0x600000 is not inside"),
    ("an entry below 1 MiB", || good().edited(|elf| elf.header.entry = 0), "entry point 0x0"),
    ("an entry behind the code", || good().edited(|elf| elf.header.entry = CODE_ADDR + 1),
     "entry point 0x400001"),
    ("no segment at all",
     || good().edited(|elf| elf.programs.iter_mut().for_each(|p| {
         if p.kind == PT_LOAD { p.kind = 0; }
     })),
     "no segment to load"),
];

#[test]
fn what_breaks_a_rule_is_refused_by_name() {
    for (what, file, expected) in BROKEN {
        match Image::parse(file()) {
            Ok(_) => panic!("{what}: was accepted"),
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains(expected), "{what}: {error}");
                assert!(!error.contains(char::is_control), "{what}");
            }
        }
    }
}

fn program(kind: u32) -> Program {
    let (flags, align) = (R, 4096);
    Program {
        kind,
        flags,
        align,
        ..Program::default()
    }
}

/// What keeps every rule, and such a file.
type Kept = (&'static str, fn() -> Vec<u8>);

#[rustfmt::skip]
const KEPT: &[Kept] = &[
    ("another OS ABI", || good().edited(|elf| (elf.header.ident[7], elf.header.ident[8]) = (12, 9))),
    ("an interpreter that is nowhere", || good().program(program(PT_INTERP)).build()),
    ("thread-local storage", || good().program(program(PT_TLS)).build()),
    ("code that can only be executed", || segment(0, |p| p.flags = X)),
    ("data that can only be written", || segment(1, |p| p.flags = W)),
    ("a segment with no access at all", || segment(1, |p| p.flags = 0)),
    ("an empty segment at 0", || good().program(program(PT_LOAD)).build()),
    ("zeroes only", || segment(1, |p| p.filesz = 0)),
    ("notes of others", || good().with_notes(
        &[&b"\x08\0\0\0\x04\0\0\0\x01\0\0\0OpenBSD\0\0\0\0\0"[..], &abi_note(1, 2),
          &manifest_note(1, 1, &first())], |_| ())),
    ("a note of another's that says it is longer than the file", || beside(&[0xFF; 40])),
    ("a note of another's that is too short to be Solo5's",
     || beside(b"\x04\0\0\0\0\0\0\0\x01\0\0\0GNU\0")),
    ("a note that is cut off in its name", || beside(b"\x06\0\0\0\x10\0\0\0ABI1Solo5\0\0")),
    ("a note of Solo5's that is of no kind here", || beside(&note(b"XXX1", &[]))),
    ("a note of another's in Solo5's words", || {
        let mut other = abi_note(9, 9);
        other[..4].copy_from_slice(&7_u32.to_le_bytes());
        beside(&other)
    }),
    ("a page that is aligned to more", || segment(1, |p| p.align = 2 * MIB)),
    ("the last page below 4 GiB",
     || segment(1, |p| (p.vaddr, p.memsz) = ((1 << 32) - 4096, 4096))),
    ("the longest name", || device(&[b'x'; 67])),
    ("as many devices as there can be", || entries(&[first()].into_iter().chain(
        (1..64).map(|n: u32| entry(format!("d{n}").as_bytes(), BLOCK))).collect::<Vec<_>>())),
];

#[test]
fn what_keeps_every_rule_is_accepted() {
    for (what, file) in KEPT {
        let image = Image::parse(file()).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(image.manifest().contract, Contract::Hvt, "{what}");
        for segment in image.segments() {
            assert!(!(segment.access.is_writable() && segment.access.is_executable()));
        }
    }
}

/// A note of Solo5's decides, wherever it stands.
#[test]
fn an_image_is_of_one_kind() {
    let native = Image::parse(ElfBuilder::guest(HLT).build()).unwrap();
    assert!(matches!(native.manifest().contract, Contract::Wharf(_)));
    let wharf = Note::new(wharf_abi::Manifest::new("test", "1.0"));
    let both = notes(&[
        wharf.as_bytes(),
        &abi_note(1, 2),
        &manifest_note(1, 1, &first()),
    ]);
    assert_eq!(
        Image::parse(both).unwrap().manifest().contract,
        Contract::Hvt
    );
    // One of another name is nobody's.
    let mut other = abi_note(1, 2);
    other[12] = b's';
    let file = ElfBuilder::guest(HLT).without_notes().note(&other).build();
    let error = Image::parse(file).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no wharf note and none of Solo5's"),
        "{error}"
    );
}

#[test]
fn an_image_is_what_was_put_in() {
    let file = good()
        .segment(DATA + MIB, R | W, &[], 10_000)
        .device(BLOCK, "storage")
        .device(NET, "service0")
        .symbol("spin", CODE_ADDR, 1)
        .build();
    let image = Image::parse(file).unwrap();
    assert_eq!(image.placement(), Placement::Fixed);
    assert_eq!(image.entry(), CODE_ADDR);
    assert_eq!(image.span(), CODE_ADDR..DATA + MIB + 3 * 4096);
    assert_eq!((image.relro(), image.relocations().count()), (None, 0));
    assert_eq!(
        image.symbols().lookup(CODE_ADDR),
        Some(("spin".to_owned(), 0))
    );
    let segments: Vec<_> = image
        .segments()
        .iter()
        .map(|s| (s.addr, s.file_len, s.mem_len, s.access))
        .collect();
    assert_eq!(
        segments,
        [
            (CODE_ADDR, 1, 1, Access::ReadExecute),
            (DATA, 4096, 8192, Access::ReadWrite),
            (DATA + MIB, 0, 10_000, Access::ReadWrite),
        ]
    );
    let manifest = image.manifest();
    let devices: Vec<_> = manifest
        .devices
        .iter()
        .map(|d| (d.kind, d.name.as_str()))
        .collect();
    assert_eq!(
        devices,
        [
            (DeviceKind::Block, "storage"),
            (DeviceKind::Net, "service0")
        ]
    );
    assert_eq!(manifest.contract.to_string(), "Solo5 hvt 2");
    assert_eq!(manifest.memory_min_bytes, image.span().end + PAGE);
}

/// Such an image has no name of its own.
#[test]
fn an_image_is_called_as_its_file() {
    let directory = tempfile::tempdir().unwrap();
    for (file, name) in [
        ("hello.hvt", "hello"),
        ("a b\x1b[2J.hvt", "a-b--2J"),
        ("net_2if.0.hvt", "net_2if.0"),
        ("x", "x"),
    ] {
        let path = directory.path().join(file);
        std::fs::write(&path, good().build()).unwrap();
        assert_eq!(Image::open(&path).unwrap().manifest().name, name);
    }
    let bad = directory.path().join("bad.hvt");
    std::fs::write(&bad, good().abi(&abi_note(2, 1)).build()).unwrap();
    assert!(matches!(Image::open(&bad), Err(OpenError::Image { .. })));
}

fn plan(file: Vec<u8>, memory: u64) -> Result<Layout, LayoutError> {
    Layout::plan(&Image::parse(file).unwrap(), memory, 0, 0)
}

/// What holds wherever segments are and whatever the memory: each byte of the guest's is
/// mapped once, at its own address, and nothing else is.
fn check(layout: &Layout, memory: u64) {
    let mut mappings = layout.mappings.clone();
    mappings.sort_by_key(|m| m.addr);
    for m in &mappings {
        assert_eq!(m.addr, m.gpa.0, "{m:x?}");
        assert!(
            m.addr % PAGE == 0 && m.len % PAGE == 0 && m.len > 0,
            "{m:x?}"
        );
        assert!(m.end() <= memory, "{m:x?}");
    }
    for pair in mappings.windows(2) {
        assert!(pair[0].end() <= pair[1].addr, "overlap: {pair:x?}");
    }
    let guests: Vec<_> = mappings.iter().filter(|m| m.addr >= 0x1_0000).collect();
    assert_eq!(guests[0].addr, 0x1_0000);
    assert_eq!(guests.last().unwrap().end(), memory);
    for pair in guests.windows(2) {
        assert_eq!(pair[0].end(), pair[1].addr, "no holes: {pair:x?}");
    }
    for m in &guests {
        let below = m.addr < MIB;
        assert_eq!(m.access == Access::Read && m.end() <= MIB, below, "{m:x?}");
    }
    assert_eq!(layout.tables_range, memory..layout.memory);
    assert!(layout.huge.start.is_multiple_of(HUGE_PAGE));
    assert!(layout.huge.start <= layout.huge.end && layout.huge.start >= layout.image.addr);
    assert_eq!(layout.stack.end(), memory);
}

#[test]
fn memory_of_every_size_is_planned_or_refused() {
    let file = good().build();
    let end = DATA + 8192;
    for pages in [1, 2, 3, 100, 512, 513, 100_000] {
        let memory = end + pages * PAGE;
        check(&plan(file.clone(), memory).unwrap(), memory);
    }
    check(&plan(file.clone(), 1 << 32).unwrap(), 1 << 32);
    for (memory, error) in [
        (0, "too small: the image needs 6156 KiB"),
        (PAGE, "memory of 4 KiB is too small"),
        (
            end,
            "memory of 6152 KiB is too small: the image needs 6156 KiB",
        ),
        (end + 1, "no multiple of 4 KiB"),
        ((1 << 32) + PAGE, "too large: the most is 4 GiB"),
        (!4095, "too large: the most is 4 GiB"),
    ] {
        let refused = plan(file.clone(), memory).unwrap_err().to_string();
        assert!(refused.contains(error), "{memory:#x}: {refused}");
    }
}

/// The contract counts a segment in memory as far as its alignment takes it.
#[test]
fn an_image_ends_where_its_alignment_takes_it() {
    let image = Image::parse(segment(1, |p| p.align = 2 * MIB)).unwrap();
    assert_eq!(image.span(), CODE_ADDR..DATA + 2 * MIB);
    let layout = Layout::plan(&image, image.span().end + PAGE, 0, 0).unwrap();
    assert_eq!(layout.heap.addr, DATA + 2 * MIB, "and so it is told");
}

/// What an image says that it needs is what it needs, to the page.
#[test]
fn the_least_memory_is_enough_and_no_less_is() {
    for (what, file) in KEPT {
        let image = Image::parse(file()).unwrap();
        let least = image.manifest().memory_min_bytes;
        if least > HVT_ADDRESS_END {
            continue;
        }
        let layout = Layout::plan(&image, least, 0, 0).unwrap_or_else(|e| panic!("{what}: {e}"));
        check(&layout, least);
        let refused = Layout::plan(&image, least - PAGE, 0, 0).unwrap_err();
        let needed = least;
        let memory = least - PAGE;
        assert_eq!(refused, LayoutError::TooSmall { memory, needed }, "{what}");
    }
}

#[test]
fn data_zeroes_and_heap_are_one_where_they_meet() {
    let file = HvtBuilder::guest(HLT)
        .segment(CODE_ADDR + PAGE, R, &[1], 1)
        .segment(CODE_ADDR + 2 * PAGE, R | W, &[1], 1)
        .segment(CODE_ADDR + 3 * PAGE, R | W, &[], 3 << 20)
        .build();
    let layout = plan(file, 64 << 20).unwrap();
    let last = layout.mappings.iter().filter(|m| m.addr > CODE_ADDR + PAGE);
    assert_eq!(last.count(), 1, "{:x?}", layout.mappings);
    check(&layout, 64 << 20);
}

proptest! {
    /// Anything that is accepted can be planned, and keeps the rules.
    #[test]
    fn whatever_segments_there_are_the_rules_hold(
        places in proptest::collection::vec((1_u64..64, 1_u64..8, 0_u32..8), 0..8),
        memory in 0_u64..1 << 20,
    ) {
        let mut builder = HvtBuilder::guest(HLT);
        let mut at = CODE_ADDR + PAGE;
        for (gap, pages, flags) in places {
            at += gap * PAGE;
            builder = builder.segment(at, flags, &[1], pages * PAGE);
            at += pages * PAGE;
        }
        if let Ok(image) = Image::parse(builder.build()) {
            let memory = memory * PAGE;
            match Layout::plan(&image, memory, 0, 0) {
                Ok(layout) => check(&layout, memory),
                Err(error) => prop_assert!(memory < image.manifest().memory_min_bytes, "{error}"),
            }
        }
    }

    /// Notes of any bytes are an image or an error.
    #[test]
    fn no_notes_make_the_loader_panic(
        abi in proptest::collection::vec(any::<u8>(), 0..64),
        mft in proptest::collection::vec(any::<u8>(), 0..512),
        raw in any::<bool>(),
    ) {
        let (abi, mft) = if raw { (abi, mft) } else { (abi_note(1, 2), note(b"MFT1", &mft)) };
        if let Err(error) = Image::parse(notes(&[&abi, &mft])) {
            assert!(!error.to_string().contains(char::is_control));
        }
    }
}

/// A note is looked for in notes only.
#[test]
fn a_note_elsewhere_is_none() {
    let builder = ElfBuilder::guest(HLT).without_notes().note(&abi_note(1, 2));
    let file = builder.edited(|elf| elf.programs[1].kind = 5);
    let error = Image::parse(file).unwrap_err();
    assert!(error.to_string().contains("no wharf note"), "{error}");
}
