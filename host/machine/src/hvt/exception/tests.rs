//! Exceptions on the way to their handlers.

use super::{Exception, raise};
use crate::hvt::testing::{
    CODE_64, DATA_32, DATA_END, GDT, Guest, IDT, IST, NOWHERE, READ_ONLY, STACK, TSS, table,
};
use kvm_bindings::kvm_regs;

const HANDLER: u64 = 0x7FFF_1234_5678;
const INVALID_OPCODE: Exception = Exception {
    vector: 6,
    error: None,
    cr2: None,
};

/// A gate to [`HANDLER`], of this type byte and stack.
fn gate(kind: u8, stack: u8, selector: u16, handler: u64) -> [u64; 2] {
    let low = handler & 0xFFFF
        | u64::from(selector) << 16
        | u64::from(stack) << 32
        | u64::from(kind) << 40
        | (handler >> 16 & 0xFFFF) << 48;
    [low, handler >> 32]
}

fn set_gate(guest: &Guest, vector: u64, gate: [u64; 2]) {
    guest.put_words(IDT + vector * 16, &gate);
}

fn raised(guest: &mut Guest, exception: Exception) -> Option<kvm_regs> {
    let (cpu, context, user) = guest.parts();
    let regs = context.regs;
    raise(cpu, &regs, user, exception)
}

#[test]
fn a_handler_finds_what_the_cpu_would_push() {
    let mut guest = Guest::new();
    guest.context.regs.rsp = STACK - 3;
    guest.context.regs.rflags = 1 << 16 | 1 << 14 | 1 << 9 | 1 << 8 | 1;
    let rip = guest.context.regs.rip;
    set_gate(&guest, 14, gate(0x8E, 0, 8, HANDLER));
    let fault = Exception::page_fault(0x123, true);
    let regs = raised(&mut guest, fault).unwrap();
    assert_eq!(regs.rip, HANDLER);
    // Aligned, then six words.
    assert_eq!(regs.rsp, STACK - 16 - 48);
    assert_eq!(
        guest.words(regs.rsp),
        [2, rip, 8, 0x1_4301, STACK - 3, 0x10]
    );
    // No TF, NT, RF and IF.
    assert_eq!(regs.rflags, 1);
    assert_eq!((guest.cpu.cs, guest.cpu.cr2), (8, 0x123));
}

#[test]
fn a_handler_may_have_a_stack_of_its_own_and_interrupts() {
    let mut guest = Guest::new();
    guest.context.regs.rflags = 1 << 9 | 2;
    guest.put_words(GDT + 0x28, &[CODE_64]);
    for (stack, place) in [(1, 0x24), (7, 0x54)] {
        guest.put_words(TSS + place, &[IST + u64::from(stack)]);
        // A trap gate, and other code of ring 0.
        set_gate(&guest, 6, gate(0x8F, stack, 0x28, HANDLER));
        guest.cpu.cs = 8;
        let regs = raised(&mut guest, INVALID_OPCODE).unwrap();
        assert_eq!(regs.rsp, IST - 40, "no error code");
        assert_eq!(regs.rflags, 1 << 9 | 2);
        assert_eq!(guest.cpu.cs, 0x28);
        assert_eq!(guest.words::<2>(regs.rsp)[1], 8);
    }
}

/// What is wrong with the way to a handler.
type Broken = (&'static str, fn(&mut Guest));

#[rustfmt::skip]
const BROKEN: &[Broken] = &[
    ("no table", |g| g.cpu.idt = None),
    ("a table that is nowhere", |g| g.cpu.idt = Some(table(NOWHERE, 0xFFF))),
    ("a table that wraps around", |g| g.cpu.idt = Some(table(u64::MAX - 0x60, 0xFFF))),
    ("a table that ends in the gate", |g| g.cpu.idt = Some(table(IDT, 0x6E))),
    ("a gate that is not present", |g| set_gate(g, 6, gate(0x0E, 0, 8, HANDLER))),
    ("a gate that is a call gate", |g| set_gate(g, 6, gate(0x8C, 0, 8, HANDLER))),
    ("a gate that is none", |g| set_gate(g, 6, gate(0x9E, 0, 8, HANDLER))),
    ("a handler at no address", |g| set_gate(g, 6, gate(0x8E, 0, 8, 1 << 47))),
    ("a handler in data", |g| set_gate(g, 6, gate(0x8E, 0, 0x10, HANDLER))),
    ("a handler in nothing", |g| set_gate(g, 6, gate(0x8E, 0, 0, HANDLER))),
    ("a handler of ring 3", |g| {
        g.put_words(GDT + 0x28, &[CODE_64 | 3 << 45]);
        set_gate(g, 6, gate(0x8E, 0, 0x28, HANDLER));
    }),
    ("code behind the table", |g| set_gate(g, 6, gate(0x8E, 0, 0xFFF8, HANDLER))),
    ("no descriptors", |g| g.cpu.gdt = None),
    ("descriptors that are nowhere", |g| g.cpu.gdt = Some(table(NOWHERE, 0xFFFF))),
    ("a stack that is nowhere", |g| g.context.regs.rsp = NOWHERE),
    ("a stack that cannot be written", |g| g.context.regs.rsp = READ_ONLY + 4096),
    ("a stack that ends", |g| g.context.regs.rsp = DATA_END - 4 * 4096 + 32),
    ("a stack at the end of all addresses", |g| g.context.regs.rsp = 8),
    ("no task for the stack of its own", |g| {
        g.cpu.tss = None;
        set_gate(g, 6, gate(0x8E, 1, 8, HANDLER));
    }),
    ("a task that is too short", |g| {
        g.cpu.tss = Some(table(TSS, 0x66));
        set_gate(g, 6, gate(0x8E, 1, 8, HANDLER));
    }),
    ("a task that is nowhere", |g| {
        g.cpu.tss = Some(table(NOWHERE, 0x67));
        set_gate(g, 6, gate(0x8E, 1, 8, HANDLER));
    }),
    ("a stack of its own at no address", |g| {
        g.put_words(TSS + 0x24, &[1 << 63]);
        set_gate(g, 6, gate(0x8E, 1, 8, HANDLER));
    }),
];

#[test]
fn without_a_way_to_a_handler_nothing_changes() {
    for (what, spoil) in BROKEN {
        let mut guest = Guest::new();
        set_gate(&guest, 6, gate(0x8E, 0, 8, HANDLER));
        assert!(raised(&mut guest, INVALID_OPCODE).is_some());
        let mut guest = Guest::new();
        set_gate(&guest, 6, gate(0x8E, 0, 8, HANDLER));
        spoil(&mut guest);
        assert_eq!(raised(&mut guest, INVALID_OPCODE), None, "{what}");
        assert_eq!((guest.cpu.cs, guest.cpu.cr2), (8, 0), "{what}");
    }
}

#[test]
fn what_cannot_be_handled_is_a_double_fault() {
    let mut guest = Guest::new();
    set_gate(&guest, 8, gate(0x8E, 1, 8, HANDLER));
    let regs = raised(&mut guest, Exception::page_fault(0x123, false)).unwrap();
    assert_eq!((regs.rip, regs.rsp), (HANDLER, IST - 48));
    let [error, ..]: [u64; 6] = guest.words(regs.rsp);
    assert_eq!((error, guest.cpu.cr2), (0, 0));
}

/// Descriptors that are data where code is wanted, and the other way round, are told
/// apart whatever else they say.
#[test]
fn no_descriptor_makes_code_of_data() {
    let mut guest = Guest::new();
    guest.put_words(GDT + 0x28, &[DATA_32 | 1 << 53]);
    set_gate(&guest, 6, gate(0x8E, 0, 0x28, HANDLER));
    assert_eq!(raised(&mut guest, INVALID_OPCODE), None);
}
