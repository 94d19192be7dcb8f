//! The image loader against files that break one rule each, files that keep
//! them all, and files that nobody thought of.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that goes wrong stops"
)]

use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use wharf_abi::manifest::Name;
use wharf_abi::note::Note;
use wharf_abi::{AbiVersion, DeviceKind, DeviceRequest, Manifest};
use wharf_machine::image::{
    Access, Contract, Device, IMAGE_BYTES_MAX, Image, OpenError, Placement, Relocation,
    SYMBOL_CHARS_MAX,
};
use wharf_tests::elf::{
    Elf, ElfBuilder, Header, PT_DYNAMIC, PT_GNU_RELRO, PT_GNU_STACK, PT_INTERP, PT_NOTE, PT_TLS,
    Program, R, W, X,
};
use wharf_tests::hvt::HvtBuilder;
use zerocopy::IntoBytes;

const HLT: &[u8] = &[0xf4];
const DATA: u64 = 0x60_0000;
const LIMIT: u64 = 1 << 46;
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// A rule, a file that breaks it, and what the message must say.
type Broken = (&'static str, fn() -> Vec<u8>, &'static str);

/// What keeps every rule, and such a file.
type Kept = (&'static str, fn() -> Vec<u8>);

/// Segment 0 is code, segment 1 is a page of data.
fn two_segments() -> ElfBuilder {
    ElfBuilder::guest(HLT).data(DATA, &[1; 4096])
}

/// The same, to be moved; segment 3 holds the tables, once there are any.
fn moving() -> ElfBuilder {
    two_segments().relocatable()
}

/// A one-byte guest with another header.
fn header(edit: impl FnOnce(&mut Header)) -> Vec<u8> {
    ElfBuilder::guest(HLT).edited(|elf| edit(&mut elf.header))
}

/// [`two_segments`] with another segment.
fn segment(index: usize, edit: impl FnOnce(&mut Program)) -> Vec<u8> {
    two_segments().edited(|elf| edit(&mut elf.programs[index]))
}

fn with_note(note: &[u8]) -> Vec<u8> {
    ElfBuilder::guest(HLT).without_notes().note(note).build()
}

fn with_manifest(edit: impl FnOnce(&mut Manifest)) -> Vec<u8> {
    let mut manifest = Manifest::new("test", "1.0").with_device(DeviceKind::Block, "data");
    edit(&mut manifest);
    ElfBuilder::guest(HLT).manifest(manifest).build()
}

fn note() -> Vec<u8> {
    Note::new(Manifest::new("test", "1.0")).as_bytes().to_vec()
}

/// A note of one word whose sizes and type are free.
fn raw_note(name_len: u32, desc_len: u32, kind: u32, rest: &[u8]) -> Vec<u8> {
    let [name_len, desc_len, kind] = [name_len, desc_len, kind].map(u32::to_le_bytes);
    [&name_len, &desc_len, &kind, rest].concat()
}

fn program(kind: u32) -> Program {
    Program {
        kind,
        flags: R,
        ..Program::default()
    }
}

#[rustfmt::skip]
const HEADER: &[Broken] = &[
    ("an empty file", Vec::new, "0 bytes, fewer than an ELF header"),
    ("a file of a magic number only", || b"\x7fELF".to_vec(), "4 bytes, fewer"),
    ("a header without its last byte",
     || ElfBuilder::guest(HLT).build()[..63].to_vec(), "63 bytes, fewer"),
    ("a shell script", || b"#!/bin/sh\n".repeat(10), "not ELF"),
    ("a 32-bit file", || header(|h| h.ident[4] = 1), "class 1 is not 64-bit"),
    ("a big-endian file", || header(|h| h.ident[5] = 2), "encoding 2 is not little"),
    ("a file of no endianness", || header(|h| h.ident[5] = 0), "encoding 0"),
    ("another version in the identification",
     || header(|h| h.ident[6] = 0), "ELF version 0 is not 1"),
    ("another version in the header", || header(|h| h.version = 70_000), "ELF version 70000"),
    ("a file for FreeBSD", || header(|h| h.ident[7] = 9), "OS ABI 9 version 0"),
    ("a later version of the OS ABI", || header(|h| h.ident[8] = 1), "OS ABI 0 version 1"),
    ("a file for ARM", || header(|h| h.machine = 183), "machine 183 is not x86-64"),
    ("a header that says it is none", || header(|h| h.ehsize = 0),
     "ELF header of 0 bytes instead of 64"),
    ("a header that says it is longer", || header(|h| h.ehsize = 65), "header of 65 bytes"),
    ("an object file", || header(|h| h.kind = 1), "type 1 is neither"),
    ("a core dump", || header(|h| h.kind = 4), "type 4 is neither"),
    ("no program header", || header(|h| h.phnum = 0), "no segment to load"),
    ("program headers of another size",
     || header(|h| h.phentsize = 32), "headers of 32 bytes instead of 56"),
    ("too many program headers",
     || (0..63).fold(ElfBuilder::guest(HLT), |b, _| b.program(program(0))).build(),
     "65 program headers; an image has at most 64"),
    ("as many program headers as a count holds",
     || header(|h| h.phnum = u16::MAX), "table of 65535 program headers at 0x40 is not inside"),
    ("program headers past the end of the file",
     || header(|h| h.phnum = 60), "table of 60 program headers at 0x40 is not inside"),
    ("program headers at the end of the address space",
     || header(|h| h.phoff = u64::MAX), "at 0xffffffffffffffff is not inside"),
    ("a dynamically linked program",
     || two_segments().program(program(PT_INTERP)).build(), "program header 3 (PT_INTERP)"),
    ("thread-local storage",
     || two_segments().program(program(PT_TLS)).build(),
     "program header 3 (PT_TLS): thread-local storage is not supported"),
    ("an executable stack",
     || two_segments().program(Program { flags: R | W | X, ..program(PT_GNU_STACK) }).build(),
     "program header 3 (PT_GNU_STACK)"),
];

#[rustfmt::skip]
const SEGMENTS: &[Broken] = &[
    ("nothing to load", || ElfBuilder::new().build(), "no segment to load"),
    ("only an empty segment",
     || ElfBuilder::new().segment(DATA, R | X, &[], 0).build(), "no segment to load"),
    ("more bytes in the file than in memory",
     || segment(1, |s| s.memsz = 4095),
     "segment 1 (0x600000, 0xfff bytes, rw): 0x1000 bytes in the file, more"),
    ("bytes in the file of a segment without memory",
     || segment(1, |s| s.memsz = 0), "segment 1 (0x600000, 0x0 bytes, rw)"),
    ("a segment that the file is too short for",
     || segment(1, |s| (s.filesz, s.memsz) = (0x4000, 0x4000)),
     "segment 1 (0x600000, 0x4000 bytes, rw): 0x4000 bytes at"),
    ("a segment behind the file",
     || segment(1, |s| s.offset = 0x10_0000),
     "segment 1 (0x600000, 0x1000 bytes, rw): 0x1000 bytes at 0x100000 are not inside"),
    ("a file range that wraps around",
     || segment(1, |s| s.offset = u64::MAX - 15),
     "segment 1 (0x600000, 0x1000 bytes, rw): 0x1000 bytes at 0xfffffffffffffff0 are not"),
    ("a memory range that wraps around",
     || segment(1, |s| s.vaddr = u64::MAX - 15),
     "segment 1 (0xfffffffffffffff0, 0x1000 bytes, rw): runs past the end"),
    ("a memory size that wraps around",
     || segment(1, |s| s.memsz = u64::MAX),
     "segment 1 (0x600000, 0xffffffffffffffff bytes, rw): runs past"),
    ("a fixed segment on the null page",
     || two_segments().data(0, HLT).build(), "segment 2 (0x0, 0x1 bytes, rw): starts below 0x10000"),
    ("a fixed segment just below 64 KiB",
     || two_segments().data(0xfff0, HLT).build(), "segment 2 (0xfff0, 0x1 bytes, rw): starts below"),
    ("a fixed segment across the upper limit",
     || two_segments().data(LIMIT - 16, &[0; 17]).build(),
     "segment 2 (0x3ffffffffff0, 0x11 bytes, rw): ends above 0x400000000000"),
    ("a fixed segment in the upper half",
     || two_segments().data(0xffff_8000_0000_0000, HLT).build(),
     "segment 2 (0xffff800000000000, 0x1 bytes, rw): ends above"),
    ("a relocatable image that is linked high",
     || moving().data(GIB, HLT).build(),
     "segment 2 (0x40000000, 0x1 bytes, rw): ends above 0x40000000, the limit of a relocatable"),
    ("an alignment of three",
     || segment(1, |s| s.align = 3),
     "segment 1 (0x600000, 0x1000 bytes, rw): alignment 0x3 is not a power of two"),
    ("a relocatable image with a huge alignment",
     || moving().edited(|e| e.programs[1].align = 4 * MIB),
     "segment 1 (0x600000, 0x1000 bytes, rw): alignment 0x400000 is above 0x200000"),
    ("an address that does not fit its file offset",
     || segment(1, |s| s.vaddr += 8),
     "segment 1 (0x600008, 0x1000 bytes, rw): address and file offset"),
    ("a segment without any access",
     || segment(1, |s| s.flags = 0), "segment 1 (0x600000, 0x1000 bytes, none): not readable"),
    ("a segment that is only writable",
     || segment(1, |s| s.flags = W), "segment 1 (0x600000, 0x1000 bytes, w): not readable"),
    ("a segment that is only executable",
     || segment(0, |s| s.flags = X), "segment 0 (0x400000, 0x1 bytes, x): not readable"),
    ("a segment that is writable and executable",
     || segment(0, |s| s.flags = R | W | X),
     "segment 0 (0x400000, 0x1 bytes, rwx): writable and executable"),
    ("a segment that is anything but readable",
     || segment(1, |s| s.flags = W | X),
     "segment 1 (0x600000, 0x1000 bytes, wx): writable and executable"),
    ("two segments that overlap by a byte",
     || two_segments().data(DATA + 4095, &[0; 32]).build(),
     "segment 2 (0x600fff, 0x20 bytes, rw): overlaps segment 1"),
    ("two segments at one address", || two_segments().data(DATA, HLT).build(), "overlaps segment"),
    ("a segment inside another that comes later",
     || two_segments().segment(DATA - 0x1000, R, &[], 0x10_0000).build(),
     "segment 1 (0x600000, 0x1000 bytes, rw): overlaps segment 2"),
    ("two accesses on one page",
     || two_segments().segment(DATA + 0x1000, R, &[], 16).segment(DATA + 0x1800, R | W, &[], 16).build(),
     "segment 3 (0x601800, 0x10 bytes, rw): shares a page with segment 2"),
    ("one access twice on one page",
     || two_segments().data(0x40_0800, HLT).edited(|e| e.programs[2].flags = R | X),
     "segment 2 (0x400800, 0x1 bytes, rx): shares a page with segment 0"),
    ("one segment of too much memory",
     || segment(1, |s| s.memsz = GIB),
     "segment 1 (0x600000, 0x40000000 bytes, rw): brings the image to 0x40001000 bytes"),
    ("too much memory together",
     || (1..=5).fold(two_segments(), |b, n| b.segment(n * GIB, R, &[], GIB / 4)).build(),
     "segment 5 (0x100000000, 0x10000000 bytes, r): brings the image to 0x40002000"),
    ("no entry point", || ElfBuilder::guest(HLT).entry(0).build(), "entry point 0x0 is not inside"),
    ("an entry point in data",
     || two_segments().entry(DATA).build(), "entry point 0x600000 is not inside"),
    ("an entry point past the code",
     || two_segments().entry(0x40_0001).build(), "entry point 0x400001 is not inside"),
    ("an entry point in the zeros behind the code",
     || ElfBuilder::new().segment(0x40_0000, R | X, HLT, 64).entry(0x40_0008).build(),
     "entry point 0x400008"),
];

#[rustfmt::skip]
const NOTES: &[Broken] = &[
    ("no note", || ElfBuilder::guest(HLT).without_notes().build(), "no wharf note"),
    ("another's note only", || with_note(&raw_note(4, 4, 1, b"GNU\0abcd")), "no wharf note"),
    ("a note of our name without its terminator",
     || with_note(&raw_note(5, 0, 1, b"wharf\0\0\0")), "no wharf note"),
    ("two notes in one segment",
     || with_note(&note().repeat(2)), "program header 1 (PT_NOTE): a second wharf note"),
    ("two notes in two segments",
     || ElfBuilder::guest(HLT).note(&note()).build(),
     "program header 2 (PT_NOTE): a second wharf note"),
    ("two headers of one note",
     || ElfBuilder::guest(HLT).program(program(PT_NOTE)).edited(|e| e.programs[2] = e.programs[1]),
     "program header 2 (PT_NOTE): a second"),
    ("notes behind the file",
     || ElfBuilder::guest(HLT).edited(|e| e.programs[1].offset = 1 << 40),
     "program header 1 (PT_NOTE): not inside the file"),
    ("a range of notes that wraps around",
     || ElfBuilder::guest(HLT).edited(|e| e.programs[1].filesz = u64::MAX),
     "program header 1 (PT_NOTE): not inside the file"),
    ("very many notes",
     || with_note(&raw_note(4, 0, 1, b"GNU\0").repeat(5000)),
     "program header 1 (PT_NOTE): 80000 bytes of notes"),
    ("half a note's header",
     || with_note(&note()[..8]), "program header 1 (PT_NOTE): the note at byte 0 is cut off"),
    ("half a manifest", || with_note(&note()[..400]), "the note at byte 0 is cut off"),
    ("a second note that is cut off",
     || with_note(&[&raw_note(4, 0, 1, b"GNU\0"), &note()[..100]].concat()),
     "the note at byte 16 is cut off"),
    ("a name longer than its segment",
     || with_note(&raw_note(u32::MAX, 0, 1, b"wharf\0\0\0")), "the note at byte 0 is cut off"),
    ("a descriptor longer than its segment",
     || with_note(&raw_note(6, u32::MAX, 1, b"wharf\0\0\0")), "the note at byte 0 is cut off"),
    ("a note of ours of another type",
     || with_note(&raw_note(6, 0, 2, b"wharf\0\0\0")), "wharf note of unknown type 2"),
    ("a manifest of nothing",
     || with_note(&raw_note(6, 0, 1, b"wharf\0\0\0")), "a manifest of 0 bytes instead of 692"),
    ("a short manifest",
     || with_note(&raw_note(6, 4, 1, b"wharf\0\0\0\x01\0\0\0")),
     "a manifest of 4 bytes instead of 692"),
    ("a long manifest",
     || { let mut n = note(); n[4..8].copy_from_slice(&696_u32.to_le_bytes()); n.extend([0; 4]); with_note(&n) },
     "a manifest of 696 bytes instead of 692"),
    ("another major version",
     || with_manifest(|m| m.abi.major = 2),
     "needs version 2.3 of the guest contract; this host has 1.3"),
    ("a later minor version",
     || with_manifest(|m| m.abi.minor = 7),
     "needs version 1.7 of the guest contract; this host has 1.3"),
    ("another version with another manifest",
     || with_note(&raw_note(6, 4, 1, b"wharf\0\0\0\x09\0\x03\0")), "needs version 9.3"),
    ("no name", || with_manifest(|m| m.name = Name::EMPTY), "manifest: the image's name is empty"),
    ("a name that moves the cursor",
     || { let mut n = note(); n[36..39].copy_from_slice(b"\x1b[A"); with_note(&n) },
     "manifest: the image's name"),
    ("a name that goes on behind its end",
     || { let mut n = note(); n[50] = b'x'; with_note(&n) }, "manifest: the image's name"),
    ("no version",
     || with_manifest(|m| m.version = Name::EMPTY), "manifest: the image's version is empty"),
    ("no stack",
     || with_manifest(|m| m.stack_kib = 0),
     "manifest: a stack of 0 KiB is not between 4 and 65536 KiB"),
    ("a stack above the limit",
     || with_manifest(|m| m.stack_kib = 65_537), "manifest: a stack of 65537 KiB"),
    ("too many devices",
     || with_manifest(|m| m.device_count = 17), "manifest: 17 devices; an image has at most 16"),
    ("very many devices",
     || with_manifest(|m| m.device_count = u32::MAX), "manifest: 4294967295 devices"),
    ("a device of no kind",
     || with_manifest(|m| m.devices[0].kind = 0), "manifest: device 0: kind 0 is unknown"),
    ("a device of a later kind",
     || with_manifest(|m| m.devices[0].kind = 77), "manifest: device 0: kind 77 is unknown"),
    ("a reserved field that is set",
     || with_manifest(|m| m.devices[0].reserved = 5), "manifest: device 0: the reserved field is 5"),
    ("a device without a name",
     || with_manifest(|m| m.devices[0].name = Name::EMPTY), "manifest: device 0: the name is empty"),
    ("a device that is counted but not there",
     || with_manifest(|m| m.device_count = 2), "manifest: device 1: kind 0 is unknown"),
    ("two devices of one name",
     || with_manifest(|m| *m = m.with_device(DeviceKind::Net, "data")),
     "manifest: device 1: a second device named data"),
    ("a device that is there but not counted",
     || with_manifest(|m| m.device_count = 0),
     "manifest: device 0: not empty, but beyond the 0 declared"),
    ("an unused device with a reserved field",
     || with_manifest(|m| m.devices[15] = DeviceRequest { reserved: 1, ..DeviceRequest::EMPTY }),
     "manifest: device 15: not empty, but beyond the 1 declared"),
];

#[rustfmt::skip]
const RELOCATIONS: &[Broken] = &[
    ("a fixed image with relocations",
     || two_segments().relocation(DATA, 0).build(), "program header 4 (PT_DYNAMIC): a fixed image"),
    ("two dynamic sections",
     || moving().relocation(DATA, 0).program(program(PT_DYNAMIC)).build(),
     "program header 5 (PT_DYNAMIC): a second"),
    ("a dynamic section behind the file",
     || moving().relocation(DATA, 0).edited(|e| e.programs[4].offset = 1 << 40),
     "program header 4 (PT_DYNAMIC): not inside the file"),
    ("half an entry of the dynamic section",
     || moving().relocation(DATA, 0).edited(|e| e.programs[4].filesz -= 8),
     "56 bytes do not make entries of 16"),
    ("a shared library",
     || moving().dynamic(1, 0).build(), "DT_NEEDED: the image needs a shared library"),
    ("relocations without addends", || moving().dynamic(17, DATA).build(), "DT_REL: x86-64"),
    ("calls that are to be resolved",
     || moving().dynamic(23, DATA).build(), "DT_JMPREL: no dynamic linker"),
    ("a size of calls that are to be resolved",
     || moving().dynamic(2, 24).build(), "DT_PLTRELSZ: no dynamic linker"),
    ("relocations in code, by entry",
     || moving().dynamic(22, 0).build(), "DT_TEXTREL: code is never relocated"),
    ("relocations in code, by flag",
     || moving().dynamic(30, 4).build(), "DF_TEXTREL: code is never relocated"),
    ("a table that stands twice",
     || moving().dynamic(7, 0).relocation(DATA, 0).build(), "DT_RELA stands twice"),
    ("a table without an address",
     || moving().dynamic(8, 24).build(), "RELA table of 0x18 bytes has no address"),
    ("entries of another size",
     || moving().dynamic(9, 16).build(), "RELA entries of 16 bytes instead of 24"),
    ("compressed entries of another size",
     || moving().dynamic(37, 4).build(), "RELR entries of 4 bytes instead of 8"),
    ("a table of half an entry",
     || moving().dynamic(7, DATA).dynamic(8, 25).build(),
     "RELA table of 0x19 bytes does not hold whole entries"),
    ("a table nowhere",
     || moving().dynamic(7, 0x1000).dynamic(8, 24).build(),
     "RELA table at 0x1000, 0x18 bytes, is not inside"),
    ("a table across the end of a segment",
     || moving().dynamic(7, DATA + 4080).dynamic(8, 24).build(),
     "RELA table at 0x600ff0, 0x18 bytes"),
    ("a table in zeros",
     || moving().dynamic(36, DATA + 4096).dynamic(35, 8).edited(|e| e.programs[1].memsz = 8192),
     "RELR table at 0x601000"),
    ("a table that wraps around",
     || moving().dynamic(7, u64::MAX - 7).dynamic(8, 24).build(), "RELA table at 0xfffffffffffffff8"),
    ("a table of all there is",
     || moving().dynamic(36, DATA).dynamic(35, u64::MAX - 7).build(),
     "RELR table at 0x600000, 0xfffffffffffffff8 bytes"),
    ("a relocation that needs a symbol",
     || moving().relocation(DATA, 0).rela(DATA, 6, 0).build(),
     "relocation 1: type 6 is not R_X86_64_RELATIVE"),
    ("a relocation that calls the guest",
     || moving().rela(DATA, 37, 0).build(), "relocation 0: type 37"),
    ("a relocation in code",
     || moving().relocation(0x40_0000, 0).build(),
     "relocation 0: the 8 bytes at 0x400000 are not inside a writable"),
    ("a relocation before a segment",
     || moving().relocation(DATA - 4, 0).build(), "relocation 0: the 8 bytes at 0x5ffffc"),
    ("a relocation across the end of a segment",
     || moving().relocation(DATA, 0).relocation(DATA + 4089, 0).build(),
     "relocation 1: the 8 bytes at 0x600ff9"),
    ("a relocation nowhere",
     || moving().relocation(0x5000_0000, 0).build(), "relocation 0: the 8 bytes at 0x50000000"),
    ("a relocation at the end of the address space",
     || moving().relocation(u64::MAX - 3, 0).build(),
     "relocation 0: the 8 bytes at 0xfffffffffffffffc"),
    ("a compressed relocation in code",
     || moving().relr(&[0x40_0000]).build(), "relocation 0: the 8 bytes at 0x400000"),
    ("a bitmap that leaves its segment",
     || moving().relr(&[DATA + 4080, 0b101, 0b111]).build(), "relocation 1: the 8 bytes at 0x601000"),
    ("a bitmap without an address",
     || moving().relr(&[0b11]).build(), "relocation 0: the 8 bytes at 0x0"),
    ("compressed relocations that repeat",
     || moving().relr(&[DATA, DATA]).build(), "relocation 1: RELR entries go back to 0x600000"),
    ("compressed relocations that go back",
     || moving().relr(&[DATA + 64, 0b11, DATA + 8]).build(),
     "relocation 2: RELR entries go back to 0x600008"),
    ("a bitmap at the end of the address space",
     || moving().relr(&[u64::MAX - 7, 0b11]).build(),
     "relocation 0: the 8 bytes at 0xfffffffffffffff8"),
];

#[test]
fn every_broken_rule_is_named() {
    let mut failures = Vec::new();
    for (sentence, bytes, expected) in [HEADER, SEGMENTS, NOTES, RELOCATIONS].concat() {
        match Image::parse(bytes()) {
            Ok(_) => failures.push(format!("{sentence}: was taken")),
            Err(error) => {
                let message = error.to_string();
                if !message.contains(expected) || message.contains('\n') {
                    failures.push(format!("{sentence}: {message:?} instead of {expected:?}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// Files at the edge of a rule, on the right side.
#[rustfmt::skip]
const KEPT: &[Kept] = &[
    ("a guest of one byte", || ElfBuilder::guest(HLT).build()),
    ("a file with GNU extensions", || header(|h| h.ident[7] = 3)),
    ("64 program headers",
     || (0..62).fold(ElfBuilder::guest(HLT), |b, _| b.program(program(0))).build()),
    ("a stack that is not executable",
     || two_segments().program(Program { flags: R | W, ..program(PT_GNU_STACK) }).build()),
    ("segments at both limits",
     || two_segments().data(0x1_0000, HLT).data(LIMIT - 16, &[0; 16]).build()),
    ("a relocatable segment at 0", || moving().segment(0, R, HLT, 1).build()),
    ("a relocatable segment up to the limit",
     || moving().segment(GIB - 4096, R | W, &[], 4096).build()),
    ("segments in any order", || ElfBuilder::new().data(DATA, HLT).code(HLT).build()),
    ("segments on neighbouring pages", || two_segments().segment(DATA + 4096, R, HLT, 1).build()),
    ("an empty segment anywhere", || two_segments().segment(DATA, R | W | X, &[], 0).build()),
    ("no alignment",
     || two_segments().edited(|e| { e.programs[1].align = 0; e.programs[0].align = 1; })),
    ("a fixed image with a huge alignment",
     || two_segments().edited(|e| { e.programs[1].align = GIB; e.programs[1].vaddr = GIB + e.programs[1].offset; })),
    ("1 GiB of memory", || two_segments().edited(|e| e.programs[1].memsz = GIB - 4096)),
    ("other notes before and behind",
     || with_note(&[&raw_note(4, 3, 1, b"GNU\0abc\0"), &note()[..], &raw_note(0, 0, 9, b"")].concat())),
    ("a last note without its padding",
     || with_note(&[&note()[..], &raw_note(4, 1, 1, b"GNU\0a")].concat())),
    ("property notes",
     || ElfBuilder::guest(HLT).note(&raw_note(4, 12, 5, b"GNU\0abcdefghijkl\0\0\0\0")).edited(|e| e.programs[2].align = 8)),
    ("no dynamic section", || moving().build()),
    ("a dynamic section that only describes",
     || moving().dynamic(30, 8).dynamic(0x6fff_fffb, 1).dynamic(4, 0).build()),
    ("what stands behind the end of the dynamic section",
     || moving().dynamic(0, 0).dynamic(1, 0).build()),
    ("a relocation of the last bytes", || moving().relocation(DATA + 4088, 0).build()),
    ("a relocation of odd bytes", || moving().relocation(DATA + 1, 0).build()),
    ("a RELRO that makes no sense", || two_segments().relro(u64::MAX, 2).build()),
];

#[test]
fn what_a_linker_may_write_is_taken() {
    let failures: Vec<_> = KEPT
        .iter()
        .filter_map(|(sentence, bytes)| {
            let error = Image::parse(bytes()).err()?;
            Some(format!("{sentence}: {error}"))
        })
        .collect();
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn a_fixed_image_is_what_was_put_in() {
    let manifest = Manifest::new("kv", "2.1")
        .with_memory_min_kib(u32::MAX)
        .with_stack_kib(64)
        .with_device(DeviceKind::Stream, "clients")
        .with_device(DeviceKind::Block, "data");
    let image = Image::parse(
        ElfBuilder::new()
            .segment(DATA + 0x10, R | W, b"data", 0x2000)
            .code(b"\x90\xf4")
            .segment(0x50_0000, R, b"constants", 9)
            .entry(0x40_0001)
            .manifest(manifest)
            .build(),
    )
    .unwrap();

    assert_eq!(image.placement(), Placement::Fixed);
    assert_eq!(image.entry(), 0x40_0001);
    assert_eq!(image.span(), 0x40_0000..0x60_3000);
    assert_eq!(image.alignment(), 4096);
    assert_eq!(image.relro(), None);
    assert_eq!(image.relocations().count(), 0);
    assert!(image.symbols().is_empty());

    let segments: Vec<_> = image
        .segments()
        .iter()
        .map(|s| (s.index, s.addr, s.mem_len, s.access, image.segment_bytes(s)))
        .collect();
    assert_eq!(
        segments,
        [
            (1, 0x40_0000, 2, Access::ReadExecute, &b"\x90\xf4"[..]),
            (2, 0x50_0000, 9, Access::Read, b"constants"),
            (0, 0x60_0010, 0x2000, Access::ReadWrite, b"data"),
        ]
    );

    let view = image.manifest();
    assert_eq!((view.name.as_str(), view.version.as_str()), ("kv", "2.1"));
    assert_eq!(view.contract, Contract::Wharf(AbiVersion::CURRENT));
    assert_eq!(view.memory_min_bytes, u64::from(u32::MAX) * 1024);
    assert_eq!(view.stack_bytes, 64 * 1024);
    let device = |kind, name: &str| Device {
        kind,
        name: name.to_owned(),
    };
    assert_eq!(
        view.devices,
        [
            device(DeviceKind::Stream, "clients"),
            device(DeviceKind::Block, "data")
        ]
    );
}

#[test]
fn a_relocatable_image_is_what_was_put_in() {
    let mut data = [0; 4096];
    data[64..72].copy_from_slice(&0x1111_u64.to_le_bytes());
    data[80..88].copy_from_slice(&0x2222_u64.to_le_bytes());
    let image = Image::parse(
        ElfBuilder::guest(HLT)
            .relocatable()
            .segment(DATA, R | W, &data, 0x2000)
            .relocation(DATA + 8, 0x40_0000)
            .relocation(DATA + 0x1ff8, u64::MAX)
            .relr(&[DATA + 64, 0b101, 1 << 63 | 1, DATA + 0x1000])
            .edited(|e| e.programs[1].align = 16),
    )
    .unwrap();
    assert_eq!(image.placement(), Placement::Relocatable);
    let expected = [
        (DATA + 8, 0x40_0000),
        (DATA + 0x1ff8, u64::MAX),
        (DATA + 64, 0x1111),
        // Bit 1 of the first bitmap is the word behind the address; the last
        // bit of the second is 63 + 62 words further on.
        (DATA + 64 + 16, 0x2222),
        (DATA + 72 + 8 * (63 + 62), 0),
        (DATA + 0x1000, 0),
    ]
    .map(|(offset, addend)| Relocation { offset, addend });
    assert_eq!(image.relocations().collect::<Vec<_>>(), expected);
}

#[test]
fn relro_is_whole_pages_of_one_writable_segment() {
    let relro = |addr, len| {
        let image = ElfBuilder::guest(HLT)
            .segment(DATA + 0x100, R | W, b"data", 0x2f80)
            .relro(addr, len)
            .build();
        Image::parse(image).unwrap().relro()
    };
    // As linkers write it: from the segment's start to the end of a page.
    assert_eq!(relro(DATA + 0x100, 0x1f00), Some(DATA..DATA + 0x2000));
    assert_eq!(relro(DATA + 0x100, 0x1fff), Some(DATA..DATA + 0x2000));
    // The segment's last page holds nothing else.
    assert_eq!(relro(DATA + 0x100, 0x2f80), Some(DATA..DATA + 0x4000));
    assert_eq!(relro(DATA + 0x100, 0x3f00), Some(DATA..DATA + 0x4000));
    // Inward in the middle.
    assert_eq!(
        relro(DATA + 0x101, 0x2000),
        Some(DATA + 0x1000..DATA + 0x2000)
    );
    // Nothing, too little, too much, elsewhere, in code.
    for (addr, len) in [
        (DATA + 0x100, 0),
        (DATA + 0x100, 0xe00),
        (DATA + 0x1001, 0x1000),
        (DATA + 0x100, 0x3f01),
        (DATA + 0x100, u64::MAX),
        (DATA + 0x1_0000, 0x1000),
        (0x40_0000, 0x1000),
    ] {
        assert_eq!(relro(addr, len), None, "{addr:#x}, {len:#x}");
    }
    let read_only = ElfBuilder::guest(HLT)
        .segment(DATA, R, b"data", 0x1000)
        .program(Program {
            vaddr: DATA,
            memsz: 0x1000,
            ..program(PT_GNU_RELRO)
        });
    assert_eq!(Image::parse(read_only.build()).unwrap().relro(), None);
}

#[test]
fn the_largest_alignment_counts() {
    let image = moving().edited(|e| {
        e.programs[1].align = 2 * MIB;
        e.programs[1].vaddr = 4 * MIB + 2 * MIB + e.programs[1].offset;
    });
    assert_eq!(Image::parse(image).unwrap().alignment(), 2 * MIB);
}

fn named() -> ElfBuilder {
    ElfBuilder::guest(&[0x90; 64])
        .data(DATA, &[0; 64])
        .symbol("_ZN5hello4main17h0123456789abcdefE", 0x40_0010, 16)
        .symbol("outer", 0x40_0000, 64)
        .symbol("assembly", 0x40_0030, 0)
        .symbol("\x1b[31m\u{202e}red", DATA, 8)
        .symbol("_RNvC5hello4tick", DATA + 32, 8)
        .symbol("outside", 0x70_0000, 8)
        .symbol(&"x".repeat(300), DATA + 8, 8)
}

#[test]
fn addresses_have_names() {
    let image = Image::parse(named().build()).unwrap();
    let symbols = image.symbols();
    assert_eq!(symbols.len(), 6);
    let lookup = |addr| symbols.lookup(addr);
    let found = |name: &str, offset| Some((name.to_owned(), offset));
    assert_eq!(lookup(0x40_0000), found("outer", 0));
    assert_eq!(lookup(0x40_000f), found("outer", 15));
    assert_eq!(lookup(0x40_0010), found("hello::main", 0));
    assert_eq!(lookup(0x40_001f), found("hello::main", 15));
    assert_eq!(lookup(DATA + 33), found("hello::tick", 1));
    assert_eq!(lookup(0x40_0020), found("outer", 32));
    assert_eq!(lookup(0x40_003f), found("assembly", 15));
    for nowhere in [0, 0x40_0040, DATA + 16, 0x70_0000, u64::MAX] {
        assert_eq!(lookup(nowhere), None, "{nowhere:#x}");
    }
}

#[test]
fn names_are_short_and_harmless() {
    let image = Image::parse(named().build()).unwrap();
    let symbols = image.symbols();
    assert_eq!(symbols.lookup(DATA), Some(("?[31m?red".to_owned(), 0)));
    let (long, _) = symbols.lookup(DATA + 8).unwrap();
    assert_eq!(long, "x".repeat(SYMBOL_CHARS_MAX));
}

#[test]
fn without_good_section_headers_there_are_no_names() {
    let spoilt: [fn() -> Vec<u8>; 9] = [
        || named().edited(|e| e.header.shnum = 0),
        || named().edited(|e| e.header.shnum = u16::MAX),
        || named().edited(|e| e.header.shentsize = 40),
        || named().edited(|e| e.header.shoff = u64::MAX - 3),
        || named().edited(|e| e.sections[1].entsize = 0),
        || named().edited(|e| e.sections[1].link = 77),
        || named().edited(|e| e.sections[1].size = u64::MAX),
        || named().edited(|e| e.sections[2].kind = 0),
        || named().edited(|e| e.sections[2].offset = u64::MAX),
    ];
    for (at, bytes) in spoilt.into_iter().enumerate() {
        let image = Image::parse(bytes()).unwrap();
        assert!(image.symbols().is_empty(), "{at}");
        assert_eq!(image.symbols().lookup(0x40_0000), None, "{at}");
    }
}

#[test]
fn only_regular_files_of_bounded_size_are_opened() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let open = |path: &Path| Image::open(path);
    let message = |error: &OpenError| {
        let source = std::error::Error::source(error).map(ToString::to_string);
        format!("{error}: {}", source.unwrap_or_default())
    };

    let good = dir.join("good.elf");
    std::fs::write(&good, ElfBuilder::guest(HLT).build()).unwrap();
    assert_eq!(open(&good).unwrap().entry(), 0x40_0000);

    let missing = open(&dir.join("missing.elf")).unwrap_err();
    assert!(matches!(missing, OpenError::Io { .. }), "{missing:?}");
    assert!(
        message(&missing).contains("missing.elf: No such file"),
        "{missing:?}"
    );

    for special in [dir, Path::new("/dev/zero"), Path::new("/dev/null")] {
        let error = open(special).unwrap_err();
        assert!(matches!(error, OpenError::NotRegular { .. }), "{error:?}");
    }

    let pipe = dir.join(format!("pipe-{}", std::process::id()));
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let error = open(&pipe).unwrap_err();
    std::fs::remove_file(&pipe).unwrap();
    assert!(matches!(error, OpenError::NotRegular { .. }), "{error:?}");

    // Sparse: it takes no room, and it is not read.
    let huge = dir.join("huge.elf");
    std::fs::File::create(&huge)
        .unwrap()
        .set_len(IMAGE_BYTES_MAX + 1)
        .unwrap();
    let error = open(&huge).unwrap_err();
    assert!(
        message(&error).contains("268435457 bytes; an image has at most 268435456"),
        "{error:?}"
    );
}

/// A file that has everything.
fn rich() -> ElfBuilder {
    named()
        .relocatable()
        .manifest(Manifest::new("rich", "1.0").with_device(DeviceKind::Block, "data"))
        .note(&raw_note(4, 4, 1, b"GNU\0abcd"))
        .relocation(DATA + 8, 0x40_0000)
        .relr(&[DATA + 16, 0b1011])
        .dynamic(30, 8)
        .relro(DATA, 0x1000)
}

fn end_of_what_is_loaded(elf: &Elf) -> usize {
    let ends = elf
        .programs
        .iter()
        .map(|program| program.offset + program.filesz);
    usize::try_from(ends.max().unwrap()).unwrap()
}

fn len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap()
}

/// Asks an image for everything, as the rest of the host would.
fn walk(image: &Image) {
    for segment in image.segments() {
        assert_eq!(len(image.segment_bytes(segment)), segment.file_len);
        assert!(segment.file_len <= segment.mem_len);
        assert!(!(segment.access.is_writable() && segment.access.is_executable()));
        let span = image.span();
        assert!(span.start <= segment.addr && segment.addr + segment.mem_len <= span.end);
    }
    for relocation in image.relocations() {
        let inside = image.segments().iter().any(|segment| {
            segment.access.is_writable()
                && segment.addr <= relocation.offset
                && relocation.offset + 8 <= segment.addr + segment.mem_len
        });
        assert!(inside, "{relocation:?}");
    }
    let symbols = image.symbols();
    for segment in image.segments() {
        for addr in [segment.addr, segment.addr + segment.mem_len / 2] {
            if let Some((name, _)) = symbols.lookup(addr) {
                assert!(name.chars().count() <= SYMBOL_CHARS_MAX);
                assert!(!name.chars().any(char::is_control));
            }
        }
    }
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_an_image_or_an_error() {
    let whole = rich().build();
    walk(&Image::parse(whole.clone()).unwrap());
    let shortest = (0..whole.len())
        .filter_map(|len| {
            Image::parse(whole[..len].to_vec())
                .ok()
                .map(|image| (len, image))
        })
        .inspect(|(_, image)| walk(image))
        .map(|(len, _)| len)
        .min();
    // Only symbols and section headers can be missing: they are last.
    assert_eq!(shortest, Some(end_of_what_is_loaded(&rich().elf())));
}

#[test]
fn checking_takes_no_memory_to_speak_of() {
    let mut worst = 0;
    let files = [HEADER, SEGMENTS, NOTES, RELOCATIONS].concat();
    let broken = files.iter().map(|(_, bytes, _)| bytes());
    let kept = KEPT.iter().map(|(_, bytes)| bytes());
    for bytes in broken.chain(kept).chain([rich().build()]) {
        let file_len = len(&bytes);
        let used = allocation_counter::measure(|| drop(Image::parse(bytes)));
        assert!(
            used.bytes_total <= 64 * 1024,
            "{used:?} for {file_len} bytes"
        );
        worst = worst.max(used.bytes_total);
    }
    assert!(worst > 0, "nothing was measured");

    // A megabyte of relocations and one of symbols.
    let many = (0..50_000).fold(rich(), |elf, _| elf.relocation(DATA + 8, 1));
    let many = (0..40_000).fold(many, |elf, n| elf.symbol("f", 0x40_0000 + n % 64, 1));
    let bytes = many.build();
    let file_len = len(&bytes);
    let used = allocation_counter::measure(|| {
        let image = Image::parse(bytes).unwrap();
        walk(&image);
    });
    assert!(
        used.bytes_total <= 4 * file_len,
        "{used:?} for {file_len} bytes"
    );
}

/// As many segments as a count holds, each checked against its neighbours.
#[test]
fn the_work_grows_with_the_file_and_not_faster() {
    let many = |pages: u64| {
        (0..pages).fold(HvtBuilder::guest(HLT), |elf, n| {
            elf.segment(DATA + n * 8192, if n % 2 == 0 { R } else { R | W }, &[1], 1)
        })
    };
    // Two notes and the code are the others.
    let bytes = many(65_532).build();
    let file_len = len(&bytes);
    let used = allocation_counter::measure(|| {
        let image = Image::parse(bytes).unwrap();
        assert_eq!(image.segments().len(), 65_533);
        walk(&image);
    });
    assert!(
        used.bytes_total <= 8 * file_len,
        "{used:?} for {file_len} bytes"
    );
    let native = (0..65_000).fold(ElfBuilder::guest(HLT), |elf, _| elf.program(program(0)));
    let refused = Image::parse(native.build()).unwrap_err().to_string();
    assert_eq!(refused, "65002 program headers; an image has at most 64");
}

#[test]
fn every_fuzz_seed_is_an_image() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/image");
    for (name, bytes) in [
        ("fixed.elf", named().build()),
        ("relocatable.elf", rich().build()),
        ("solo5.elf", hvt().build()),
    ] {
        let path = dir.join(name);
        if std::env::var_os("WRITE_FUZZ_SEEDS").is_some() {
            std::fs::write(&path, &bytes).unwrap();
        }
        let seed = std::fs::read(&path).unwrap();
        walk(&Image::parse(seed.clone()).unwrap());
        assert!(
            seed == bytes,
            "{name} is stale: run this test with WRITE_FUZZ_SEEDS=1"
        );
    }
}

/// What a hostile author would try in a field.
fn interesting() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0..64_u32).prop_map(|bit| 1 << bit),
        (0..64_u32).prop_map(|bit| (1_u64 << bit).wrapping_sub(1)),
        (0..256_u64).prop_map(u64::wrapping_neg),
        0..8192_u64,
        Just(DATA),
        Just(0x40_0000),
    ]
}

/// Where to write, how many bytes, and what.
fn mutation() -> impl Strategy<Value = (usize, usize, u64)> {
    let at = prop_oneof![
        // Header and program headers, then anywhere.
        3 => 0..600_usize,
        1 => 0..4_000_usize,
    ];
    (
        at,
        prop_oneof![Just(1), Just(2), Just(4), Just(8)],
        interesting(),
    )
}

/// An image of Solo5's, with a device of each kind.
fn hvt() -> HvtBuilder {
    HvtBuilder::guest(HLT)
        .segment(DATA, R | W, b"data", 0x2000)
        .device(wharf_tests::hvt::BLOCK, "storage")
        .device(wharf_tests::hvt::NET, "service")
        .symbol("start", 0x40_0000, 1)
}

static HVT: LazyLock<Vec<u8>> = LazyLock::new(|| hvt().build());
static RICH: LazyLock<Vec<u8>> = LazyLock::new(|| rich().build());
static NAMED: LazyLock<Vec<u8>> = LazyLock::new(|| named().build());

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 5_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_mutated_file_is_an_image_or_an_error(
        which in 0..3_u8,
        mutations in prop::collection::vec(mutation(), 1..6),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let mut bytes = match which {
            0 => RICH.clone(),
            1 => NAMED.clone(),
            _ => HVT.clone(),
        };
        for (at, len, value) in mutations {
            let at = at / len * len % bytes.len();
            let end = (at + len).min(bytes.len());
            bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let file_len = len(&bytes);
        let used = allocation_counter::measure(|| match Image::parse(bytes) {
            Ok(image) => walk(&image),
            Err(error) => assert!(!error.to_string().contains('\n')),
        });
        prop_assert!(used.bytes_total <= 4 * file_len + 64 * 1024, "{:?}", used);
    }

    #[test]
    fn noise_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(Image::parse(bytes).is_err());
    }
}
