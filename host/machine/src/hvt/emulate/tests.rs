//! One instruction each: what it leaves behind, or why it is not done.

use super::{Context, Direction, Done, Refusal, emulate};
use crate::hvt::cpu::Cpu;
use crate::hvt::exception::Exception;
use crate::hvt::testing::{
    CODE, CODE_64, DATA, DATA_32, DATA_END, GDT, Guest, NOWHERE, OPERAND, READ_ONLY, STACK, TSS,
    table,
};

/// Does one instruction in a guest that was made ready for it.
fn step(code: &[u8], prepare: impl FnOnce(&mut Guest)) -> (Result<Context, Refusal>, Cpu, Context) {
    let (done, cpu, before) = step_once(code, prepare);
    (done.map(|done| done.after), cpu, before)
}

/// The same, with whether it is trapped.
fn step_once(
    code: &[u8],
    prepare: impl FnOnce(&mut Guest),
) -> (Result<Done, Refusal>, Cpu, Context) {
    let mut guest = Guest::new();
    guest.put(CODE, code);
    prepare(&mut guest);
    let (cpu, context, user) = guest.parts();
    let done = emulate(cpu, context, user);
    (done, guest.cpu, guest.context)
}

/// An instruction, what it needs, and what else it has changed than RIP.
type Case = (
    &'static str,
    &'static [u8],
    fn(&mut Guest),
    fn(&Cpu, &Context),
);

#[rustfmt::skip]
const DONE: &[Case] = &[
    ("lgdt [rdx]", b"\x0f\x01\x12",
     |g| { g.context.regs.rdx = OPERAND; operand(g, 0x27, 0x1234_5678); },
     |cpu, _| assert_eq!(cpu.gdt, Some(table(0x1234_5678, 0x27)))),
    ("lgdt of a table that is nowhere", b"\x0f\x01\x12",
     |g| { g.context.regs.rdx = OPERAND; operand(g, 0xFFFF, u64::MAX); },
     |cpu, _| assert_eq!(cpu.gdt, Some(table(u64::MAX, 0xFFFF)))),
    ("lidt [rax]", b"\x0f\x01\x18",
     |g| { g.context.regs.rax = OPERAND; operand(g, 0x2FF, DATA); },
     |cpu, _| assert_eq!(cpu.idt, Some(table(DATA, 0x2FF)))),
    ("lidt fs:[rax + 4*rcx - 8]", b"\x64\x0f\x01\x5c\x88\xf8",
     |g| {
         g.context.fs_base = OPERAND - 0x30;
         (g.context.regs.rax, g.context.regs.rcx) = (0x28, 4);
         operand(g, 1, 2);
     },
     |cpu, _| assert_eq!(cpu.idt, Some(table(2, 1)))),
    ("lidt [eax]", b"\x67\x0f\x01\x18",
     |g| { g.context.regs.rax = 7 << 32 | OPERAND; operand(g, 1, 2); },
     |cpu, _| assert_eq!(cpu.idt, Some(table(2, 1)))),
    ("lidt [rip + 0x3000]", b"\x0f\x01\x1d\xf9\x3f\x00\x00",
     |g| operand(g, 1, 2),
     |cpu, _| assert_eq!(cpu.idt, Some(table(2, 1)))),
    ("ltr ax", b"\x0f\x00\xd8",
     |g| { g.context.regs.rax = 0x18; g.cpu.tss = None; },
     |cpu, _| assert_eq!(cpu.tss, Some(table(TSS, 0x67)))),
    ("ltr [rsi], base above 4 GiB", b"\x0f\x00\x1e",
     |g| {
         g.context.regs.rsi = OPERAND;
         g.put_words(OPERAND, &[0x18]);
         g.put_words(GDT + 0x20, &[0x12]);
     },
     |cpu, _| assert_eq!(cpu.tss, Some(table(0x12 << 32 | TSS, 0x67)))),
    ("mov ss, ax", b"\x66\x8e\xd0",
     |g| { g.context.regs.rax = 0xFFFF_0010; g.cpu.ss = 0; },
     |cpu, _| assert_eq!(cpu.ss, 0x10)),
    ("mov ss, eax of a null selector", b"\x8e\xd0", |_| (),
     |cpu, _| assert_eq!(cpu.ss, 0)),
    ("mov ds, eax", b"\x8e\xd8", |g| g.context.regs.rax = 0x10, |_, _| ()),
    ("mov es, r9w", b"\x66\x41\x8e\xc1", |g| g.context.regs.r9 = 0x10, |_, _| ()),
    ("mov ds, [rbx]", b"\x8e\x1b",
     |g| { g.context.regs.rbx = OPERAND; g.put_words(OPERAND, &[0x10]); }, |_, _| ()),
    ("mov fs, eax takes the descriptor's base", b"\x8e\xe0",
     |g| {
         g.context.regs.rax = 0x10;
         g.put_words(GDT + 0x10, &[DATA_32 | 0x12 << 56 | 0x34_5678 << 16]);
     },
     |_, c| assert_eq!((c.fs_base, c.gs_base), (0x1234_5678, 0))),
    ("mov gs, eax", b"\x8e\xe8",
     |g| { g.context.regs.rax = 0x10; g.context.gs_base = 9; },
     |_, c| assert_eq!(c.gs_base, 0)),
    ("wrmsr of FS_BASE", b"\x0f\x30",
     |g| {
         let regs = &mut g.context.regs;
         (regs.rcx, regs.rax, regs.rdx) = (5 << 32 | 0xC000_0100, 1 << 32 | 0x8000_0001, 0x7FFF);
     },
     |_, c| assert_eq!(c.fs_base, 0x7FFF_8000_0001)),
    ("mov rdi, cr2", b"\x0f\x20\xd7", |g| g.cpu.cr2 = 0xABC,
     |_, c| assert_eq!(c.regs.rdi, 0xABC)),
    ("mov r15, cr2", b"\x41\x0f\x20\xd7", |g| g.cpu.cr2 = 0xABC,
     |_, c| assert_eq!(c.regs.r15, 0xABC)),
    ("cli", b"\xfa", |g| g.context.regs.rflags |= 1 << 9,
     |_, c| assert_eq!(c.regs.rflags, 2)),
    ("sti", b"\xfb", |_| (), |_, c| assert_eq!(c.regs.rflags, 1 << 9 | 2)),
];

fn operand(guest: &mut Guest, limit: u16, base: u64) {
    guest.put(OPERAND, &limit.to_le_bytes());
    guest.put(OPERAND + 2, &base.to_le_bytes());
}

#[test]
fn an_instruction_does_what_it_would_in_ring_0() {
    for (what, code, prepare, check) in DONE {
        let (done, cpu, before) = step(code, prepare);
        let after = done.unwrap_or_else(|refusal| panic!("{what}: {refusal:?}"));
        let len = u64::try_from(code.len()).unwrap();
        assert_eq!(after.regs.rip, before.regs.rip + len, "{what}");
        assert_eq!(after.regs.rsp, before.regs.rsp, "{what}");
        check(&cpu, &after);
    }
}

#[test]
fn a_far_return_goes_to_other_code_of_ring_0() {
    let (done, cpu, _) = step(b"\x48\xcb", |g| {
        g.put_words(GDT + 0x28, &[CODE_64]);
        g.put_words(STACK, &[0x1234, 0xFFFF_0028]);
    });
    let after = done.unwrap();
    assert_eq!((after.regs.rip, cpu.cs), (0x1234, 0x28));
    assert_eq!(after.regs.rsp, STACK + 16);
}

/// The longer form takes as many bytes more from the stack as it says, none of which it
/// looks at: they may be where there is nothing.
#[test]
fn a_far_return_takes_what_its_caller_pushed() {
    for (low, high, taken) in [(0, 0, 0), (8, 0, 8), (0xFF, 0xFF, 0xFFFF)] {
        let (done, cpu, _) = step(&[0x48, 0xCA, low, high], |g| {
            g.put_words(GDT + 0x28, &[CODE_64]);
            g.put_words(STACK, &[0x1234, 0x28]);
        });
        let after = done.unwrap();
        assert_eq!((after.regs.rip, cpu.cs), (0x1234, 0x28));
        assert_eq!(after.regs.rsp, STACK + 16 + taken);
    }
    let (done, ..) = step(b"\x48\xca\x08\x00", |g| {
        g.context.regs.rsp = DATA_END + 4096 - 16;
        g.put_words(DATA_END + 4096 - 16, &[0x1234, 8]);
    });
    assert_eq!(done.unwrap().regs.rsp, DATA_END + 4096 + 8);
    let (done, ..) = step(b"\x48\xca\x08\x00", |g| far_return(g, 0x10));
    assert_eq!(done, Err(protection(0x10)));
}

#[test]
fn a_return_from_an_exception_sets_no_flag_of_the_hosts() {
    let (done, cpu, _) = step(b"\x48\xcf", |g| {
        g.cpu.ss = 0;
        g.put_words(STACK, &[0x1234, 0x08, u64::MAX, 0x5678, 0x10]);
    });
    let after = done.unwrap();
    assert_eq!((after.regs.rip, after.regs.rsp), (0x1234, 0x5678));
    assert_eq!((cpu.cs, cpu.ss), (0x08, 0x10));
    // All but IOPL, VM, VIF, VIP and what is reserved.
    assert_eq!(after.regs.rflags, 0x25_4FD7);
}

/// Whether an instruction is trapped is what TF was before it, not what it makes of it;
/// but none is that loads SS.
#[test]
fn an_instruction_that_began_with_tf_is_a_step() {
    const TF: u64 = 1 << 8;
    for (code, _, prepare, _) in DONE.iter().map(|(what, code, p, c)| (*code, what, p, c)) {
        for set in [false, true] {
            let (done, ..) = step_once(code, |g| {
                prepare(g);
                g.context.regs.rflags |= if set { TF } else { 0 };
            });
            let loads_ss = code.ends_with(b"\x8e\xd0");
            assert_eq!(done.unwrap().is_step, set && !loads_ss, "{code:x?}");
        }
    }
    for (before, after) in [(0, TF), (TF, 0)] {
        let (done, ..) = step_once(b"\x48\xcf", |g| {
            g.context.regs.rflags |= before;
            g.put_words(STACK, &[0x1234, 8, 2 | after, STACK, 0x10]);
        });
        let done = done.unwrap();
        assert_eq!(done.is_step, before != 0);
        assert_eq!(done.after.regs.rflags, 2 | after);
    }
}

/// An instruction, what it needs, and what comes of it instead.
type Refused = (&'static str, &'static [u8], fn(&mut Guest), Refusal);

fn protection(selector: u16) -> Refusal {
    Refusal::Raises(Exception::protection(selector))
}

fn page_fault(addr: u64) -> Refusal {
    Refusal::Raises(Exception::page_fault(addr, false))
}

/// Selector 0x28 has this descriptor.
fn describe(guest: &mut Guest, descriptor: u64) {
    guest.put_words(GDT + 0x28, &[descriptor]);
    guest.context.regs.rax = 0x28;
}

/// A far return to 0x1234 with this selector.
fn far_return(guest: &mut Guest, selector: u64) {
    guest.put_words(STACK, &[0x1234, selector]);
}

#[test]
fn what_ring_0_may_not_do_raises_what_it_would() {
    const PRESENT: u64 = 1 << 47;
    #[rustfmt::skip]
    let refused: &[Refused] = &[
        ("a table's operand that is nowhere", b"\x0f\x01\x12",
         |g| g.context.regs.rdx = NOWHERE, page_fault(NOWHERE)),
        ("one that is half there", b"\x0f\x01\x12",
         |g| g.context.regs.rdx = READ_ONLY + 4096 - 9, page_fault(READ_ONLY + 4096 - 9)),
        ("one at an address that is none", b"\x0f\x01\x12",
         |g| g.context.regs.rdx = 1 << 63, protection(0)),
        ("a table at an address that is none", b"\x0f\x01\x12",
         |g| { g.context.regs.rdx = OPERAND; operand(g, 7, 1 << 47); }, protection(0)),
        ("a task that is null", b"\x0f\x00\xd8", |g| g.context.regs.rax = 3, protection(0)),
        ("a task that is data", b"\x0f\x00\xd8", |g| g.context.regs.rax = 0x10,
         protection(0x10)),
        ("a task whose second half is behind the table", b"\x0f\x00\xd8",
         |g| { g.context.regs.rax = 0x18; g.cpu.gdt = Some(table(GDT, 0x1F)); },
         protection(0x18)),
        ("a task in a local table", b"\x0f\x00\xd8", |g| g.context.regs.rax = 0x1C,
         protection(0x1C)),
        ("a task at an address that is none", b"\x0f\x00\xd8",
         |g| { g.context.regs.rax = 0x18; g.put_words(GDT + 0x20, &[0x8000]); },
         protection(0x18)),
        ("a segment behind the table", b"\x8e\xd8", |g| g.context.regs.rax = 0x30,
         protection(0x30)),
        ("a segment half behind the table", b"\x8e\xd8",
         |g| { g.context.regs.rax = 0x10; g.cpu.gdt = Some(table(GDT, 0x16)); },
         protection(0x10)),
        ("a segment without a table", b"\x8e\xd8",
         |g| { g.context.regs.rax = 0x10; g.cpu.gdt = None; }, protection(0x10)),
        ("a table that is nowhere", b"\x8e\xd8",
         |g| { g.context.regs.rax = 0x10; g.cpu.gdt = Some(table(NOWHERE, 0x17)); },
         page_fault(NOWHERE + 0x10)),
        ("a table that wraps around", b"\x8e\xd8",
         |g| { g.context.regs.rax = 0x10; g.cpu.gdt = Some(table(u64::MAX - 7, 0x17)); },
         protection(0x10)),
        ("a segment that is a task", b"\x8e\xd8", |g| g.context.regs.rax = 0x18,
         protection(0x18)),
        ("a segment of code that cannot be read", b"\x8e\xe0",
         |g| g.context.regs.rax = 0x08, protection(0x08)),
        ("a segment that is not present", b"\x8e\xd8", |g| describe(g, DATA_32 & !PRESENT),
         Refusal::Raises(Exception::not_present(0x28))),
        ("a stack for ring 3", b"\x8e\xd0", |g| g.context.regs.rax = 0x13, protection(0x13)),
        ("a stack that is code", b"\x8e\xd0", |g| g.context.regs.rax = 0x08, protection(0x08)),
        ("a stack of ring 3", b"\x8e\xd0", |g| describe(g, DATA_32 | 3 << 45),
         protection(0x28)),
        ("a stack that is not present", b"\x8e\xd0", |g| describe(g, DATA_32 & !PRESENT),
         Refusal::Raises(Exception { vector: 12, error: Some(0x28), cr2: None })),
        ("a base that is no address", b"\x0f\x30",
         |g| (g.context.regs.rcx, g.context.regs.rdx) = (0xC000_0100, 0x8000), protection(0)),
        ("a return to nowhere", b"\x48\xcb", |g| g.context.regs.rsp = DATA_END + 8192,
         page_fault(DATA_END + 8192)),
        ("a return to data", b"\x48\xcb", |g| far_return(g, 0x10), protection(0x10)),
        ("a return to nothing", b"\x48\xcb", |g| far_return(g, 0), protection(0)),
        ("a return to another ring", b"\x48\xcb", |g| far_return(g, 0x0B), protection(0x0B)),
        ("a return to 32-bit code", b"\x48\xcb",
         |g| { describe(g, 0x00CF_9900_0000_FFFF); far_return(g, 0x28); }, protection(0x28)),
        ("a return to code of ring 3", b"\x48\xcb",
         |g| { describe(g, CODE_64 | 3 << 45); far_return(g, 0x28); }, protection(0x28)),
        ("a return to code that is not present", b"\x48\xcb",
         |g| { describe(g, CODE_64 & !PRESENT); far_return(g, 0x28); },
         Refusal::Raises(Exception::not_present(0x28))),
        ("a return to an address that is none", b"\x48\xcb",
         |g| g.put_words(STACK, &[1 << 63, 8]), protection(0)),
        ("a return of a nested task", b"\x48\xcf", |g| g.context.regs.rflags |= 1 << 14,
         protection(0)),
        ("a return to a stack of ring 3", b"\x48\xcf",
         |g| g.put_words(STACK, &[0x1234, 8, 2, STACK, 0x13]), protection(0x13)),
        ("a return from a stack that ends", b"\x48\xcf",
         |g| g.context.regs.rsp = READ_ONLY + 4096 - 39, page_fault(READ_ONLY + 4096 - 7)),
    ];
    for (what, code, prepare, expected) in refused {
        let (done, cpu, _) = step(code, prepare);
        assert_eq!(done, Err(*expected), "{what}");
        // And nothing has changed.
        assert_eq!(
            (cpu.cs, cpu.ss, cpu.tss),
            (0x08, 0x10, Some(table(TSS, 0x67))),
            "{what}"
        );
    }
}

#[test]
fn what_is_not_needed_is_not_there() {
    let privileged: &[&[u8]] = &[
        b"\x0f\x32",             // rdmsr
        b"\x0f\x30",             // wrmsr of register 0
        b"\x0f\x33",             // rdpmc
        b"\x0f\x20\xc0",         // mov rax, cr0
        b"\x0f\x20\xd8",         // mov rax, cr3
        b"\x0f\x22\xd0",         // mov cr2, rax
        b"\x0f\x22\xd8",         // mov cr3, rax
        b"\x0f\x22\xe0",         // mov cr4, rax
        b"\x44\x0f\x22\xc0",     // mov cr8, rax
        b"\x0f\x21\xf8",         // mov rax, dr7
        b"\x0f\x23\xf8",         // mov dr7, rax
        b"\x0f\x01\x38",         // invlpg [rax]
        b"\x66\x0f\x38\x82\x00", // invpcid
        b"\x0f\x01\xf8",         // swapgs
        b"\x0f\x01\xd1",         // xsetbv
        b"\x0f\x01\xc8",         // monitor
        b"\x0f\x01\xc9",         // mwait
        b"\x0f\x01\xf0",         // lmsw ax
        b"\x0f\x01\x00",         // sgdt [rax]
        b"\x0f\x01\x08",         // sidt [rax]
        b"\x0f\x01\xe0",         // smsw eax
        b"\x0f\x00\xc0",         // sldt eax
        b"\x0f\x00\xc8",         // str eax
        b"\x0f\x00\xd0",         // lldt ax
        b"\x0f\x06",             // clts
        b"\x0f\x08",             // invd
        b"\x0f\x09",             // wbinvd
        b"\x48\x0f\x07",         // sysretq
        b"\x0f\x07",             // sysretd
        b"\x48\x0f\x35",         // sysexitq
        b"\xcf",                 // iretd
        b"\xcb",                 // far return of 32 bits
        b"\xca\x08\x00",         // the same, and 8 bytes more
        b"\x66\xca\x08\x00",     // of 16 bits
        b"\xcd\x80",             // int 0x80
        b"\x48\xff\x18",         // far call [rax]
        b"\xff\x28",             // far jump [rax]
        b"\x0f\xa1",             // pop fs
        b"\x0f\xa9",             // pop gs
        b"\x0f\xb4\x00",         // lfs eax, [rax]
        b"\x0f\xb2\x00",         // lss eax, [rax]
    ];
    for code in privileged {
        let (done, ..) = step(code, |_| ());
        assert!(
            matches!(done, Err(Refusal::Privileged(_))),
            "{code:x?}: {done:?}"
        );
    }
    assert_eq!(step(b"\xf4", |_| ()).0, Err(Refusal::Halts));
}

#[test]
fn ports_are_told_apart() {
    let port = |code: &[u8]| {
        let done = step(code, |g| g.context.regs.rdx = 0x1_0000_0500).0;
        match done {
            Err(Refusal::Port {
                port,
                direction,
                bytes,
            }) => (port, direction, bytes),
            other => panic!("{code:x?}: {other:?}"),
        }
    };
    let (incoming, outgoing) = (Direction::In, Direction::Out);
    assert_eq!(port(b"\xe6\x80"), (0x80, outgoing, 1));
    assert_eq!(port(b"\x66\xe7\x80"), (0x80, outgoing, 2));
    assert_eq!(port(b"\xe5\x80"), (0x80, incoming, 4));
    assert_eq!(port(b"\xef"), (0x500, outgoing, 4));
    assert_eq!(port(b"\xee"), (0x500, outgoing, 1));
    assert_eq!(port(b"\x66\xed"), (0x500, incoming, 2));
    assert_eq!(port(b"\xf3\x6e"), (0x500, outgoing, 1));
    assert_eq!(port(b"\x66\x6d"), (0x500, incoming, 2));
    assert_eq!(port(b"\x6f"), (0x500, outgoing, 4));
}

#[test]
fn what_is_not_privileged_is_the_guests_own_affair() {
    for (code, rip) in [
        (&b"\x48\x8b\x00"[..], CODE), // mov rax, [rax]
        (b"\x0f\x28\x00", CODE),      // movaps xmm0, [rax]
        (b"\xc3", CODE),              // ret
        (b"\x0f\x0b", CODE),          // ud2
        (b"\x90", CODE),              // nop
        (b"\x0f\xff", CODE),          // no instruction
        (b"\xfa", DATA),              // what is there cannot be executed
        (b"\xfa", NOWHERE),
        (b"\xfa", u64::MAX),
        (b"", CODE), // add [rax], al
    ] {
        let (done, ..) = step(code, |g| {
            g.context.regs.rip = rip;
            g.put(DATA, code);
        });
        assert_eq!(done, Err(Refusal::Ordinary), "{code:x?} at {rip:#x}");
    }
}

/// Only what can be executed is decoded: an instruction that goes on where nothing can
/// is none, and one that ends there is one.
#[test]
fn an_instruction_may_end_with_its_page() {
    let at = CODE + 4096 - 2;
    for (code, done) in [
        (&b"\x90\xfa"[..], false),
        (b"\x48\xcb", true),
        (b"\x48\x8e", false),
    ] {
        let (result, ..) = step(b"", |g| {
            g.put(at, code);
            g.context.regs.rip = at;
            g.put_words(STACK, &[CODE, 8]);
        });
        assert_eq!(result.is_ok(), done, "{code:x?}");
    }
}
