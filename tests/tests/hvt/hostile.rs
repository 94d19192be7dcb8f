//! Guests that break the rules, one attack each. Each is stopped, or does to itself what
//! it would do to a machine of its own, and the next guest runs.

use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, al, ax, byte_ptr, cr0, cr3, cr4, dr7, dx, eax, ecx, edx, fword_ptr, ptr,
    qword_ptr, rax, rcx, rdi, rdx, rsp, ss, word_ptr,
};
use wharf_machine::fault::{Cause, Exception};
use wharf_machine::image::Image;
use wharf_machine::memory::PAGE;
use wharf_machine::{BootConfig, Call, Exit, Hypervisor, Machine};
use wharf_tests::elf::{CODE_ADDR, R, W};
use wharf_tests::guest::{End, assemble, kvm, run};
use wharf_tests::hvt::{HANDLER_STACK, HvtBuilder, TABLES, halt, puts, start_up, tables};

use crate::start::with_handler;

const DATA: u64 = 0x60_0000;
const RODATA: u64 = 0x61_0000;

const PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;

/// Writes instructions.
type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Runs what a guest does that has no handlers yet.
fn bare(kvm: &Hypervisor, write: Write) -> End {
    let code = assemble(|a| {
        // Room above for what the CPU looks at besides what it needs.
        a.sub(rsp, 64)?;
        write(a)?;
        halt(a, 99)
    });
    let elf = HvtBuilder::guest(&code)
        .data(TABLES, &tables(CODE_ADDR))
        .data(DATA, &[0xC3; 64])
        .segment(RODATA, R, &[0xC3; 64], 64)
        .build();
    run(kvm, elf, &BootConfig::default()).end
}

fn innocent(kvm: &Hypervisor) {
    let elf = with_handler(|a| a.nop(), |a| halt(a, 255)).build();
    assert_eq!(run(kvm, elf, &BootConfig::default()).end, End::Exited(0));
}

#[test]
fn memory_is_what_the_image_says_it_is() {
    let Some(kvm) = kvm() else { return };
    // And whether the page is there, whether it was written, executed.
    #[rustfmt::skip]
    let attacks: &[(&str, Write, u64)] = &[
        ("write text", |a| a.mov(byte_ptr(CODE_ADDR), 0x90), 0b00011),
        ("write read-only data", |a| a.mov(byte_ptr(RODATA), 0), 0b00011),
        ("write the boot information", |a| a.mov(byte_ptr(rdi), 0), 0b00011),
        ("write behind it", |a| a.mov(byte_ptr(0xF_F000), 0), 0b00011),
        ("execute data", |a| a.call(DATA), 0b10001),
        ("execute read-only data", |a| a.call(RODATA), 0b10001),
        ("execute the boot information", |a| a.jmp(rdi), 0b10001),
        ("execute the stack", |a| {
            a.mov(rax, 0xC3C3_C3C3_C3C3_C3C3_u64)?;
            a.push(rax)?;
            a.jmp(rsp)
        }, 0b10001),
        ("execute the heap", |a| {
            a.mov(rax, 0x100_0000_u64)?;
            a.mov(byte_ptr(rax), 0xC3)?;
            a.call(rax)
        }, 0b10001),
        ("read null", |a| a.mov(rax, qword_ptr(0)), 0b00000),
        ("write null", |a| a.mov(byte_ptr(0), 1), 0b00010),
        ("jump to null", |a| { a.xor(eax, eax)?; a.jmp(rax) }, 0b10000),
        ("read the host's descriptors", |a| a.mov(al, byte_ptr(0x1000)), 0b00000),
        ("write the host's descriptors", |a| a.mov(byte_ptr(0x1000), 1), 0b00010),
        ("write the host's stack", |a| a.mov(byte_ptr(0x2FF8), 1), 0b00010),
        ("execute the host's stubs", |a| { a.mov(eax, 0x1400)?; a.jmp(rax) }, 0b10000),
        ("read what is below the boot information", |a| a.mov(al, byte_ptr(0xFFFF)), 0b00000),
        ("read behind the memory", |a| {
            a.mov(rax, 32_u64 << 20)?;
            a.mov(al, byte_ptr(rax))
        }, 0b00000),
        ("write the page tables", |a| {
            a.mov(rax, 32_u64 << 20)?;
            a.mov(byte_ptr(rax), 1)
        }, 0b00010),
    ];
    for (what, write, error) in attacks {
        match bare(&kvm, *write) {
            End::Fault(Cause::Exception(Exception {
                vector: PAGE_FAULT,
                error: Some(found),
                ..
            })) => assert_eq!(found, *error, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
        innocent(&kvm);
    }
}

#[test]
fn what_is_privileged_and_of_no_use_ends_the_guest() {
    let Some(kvm) = kvm() else { return };
    #[rustfmt::skip]
    let attacks: &[(&str, Write)] = &[
        ("page tables of its own", |a| a.mov(cr3, rax)),
        ("no paging", |a| a.mov(cr0, rax)),
        ("read CR0", |a| a.mov(rax, cr0)),
        ("other features", |a| a.mov(cr4, rax)),
        ("breakpoints", |a| a.mov(dr7, rax)),
        ("system calls", |a| {
            a.mov(ecx, 0xC000_0080_u32)?;
            a.wrmsr()
        }),
        ("read a register", |a| a.rdmsr()),
        ("forget a page", |a| a.invlpg(ptr(rax))),
        ("forget caches", |a| a.wbinvd()),
        ("change GS", |a| a.swapgs()),
        ("a local table", |a| a.lldt(ax)),
        ("a far jump", |a| a.db(&[0x48, 0xFF, 0x2F])),
        ("a far return of 32 bits", |a| a.db(&[0xCB])),
        ("a return of 32 bits", |a| a.iretd()),
    ];
    for (what, write) in attacks {
        let end = bare(&kvm, *write);
        assert!(
            matches!(end, End::Fault(Cause::Privileged { .. })),
            "{what}: {end:?}"
        );
        innocent(&kvm);
    }
    assert_eq!(bare(&kvm, |a| a.hlt()), End::Fault(Cause::Halted));
}

/// What a guest that has no handlers does wrong is told as it is.
#[test]
fn an_exception_without_a_handler_ends_the_guest() {
    let Some(kvm) = kvm() else { return };
    #[rustfmt::skip]
    let attacks: &[(&str, Write, u8)] = &[
        ("divide", |a| { a.xor(ecx, ecx)?; a.div(ecx) }, 0),
        ("breakpoint", |a| a.int3(), 3),
        ("bad opcode", |a| a.ud2(), 6),
        ("an address that is none", |a| {
            a.mov(rax, 1_u64 << 63)?;
            a.mov(al, byte_ptr(rax))
        }, PROTECTION),
        ("a segment without a table", |a| { a.mov(eax, 0x10)?; a.mov(ss, eax) }, PROTECTION),
        ("a far return without a table", |a| {
            a.push(8)?;
            a.push(0)?;
            a.retf()
        }, PROTECTION),
        ("a return to another ring", |a| {
            a.mov(rdx, TABLES + 0x800)?;
            a.lgdt(fword_ptr(rdx))?;
            for word in [0x1B, 0, 0x202, 0x0B, 0] {
                a.push(word)?;
            }
            a.iretq()
        }, PROTECTION),
        ("a table that is nowhere", |a| {
            a.mov(rdx, 0x900_0000_0000_u64)?;
            a.lidt(fword_ptr(rdx))
        }, PAGE_FAULT),
        ("a task that is nowhere", |a| {
            a.mov(rdx, DATA)?;
            a.mov(word_ptr(rdx), 0xFFFF)?;
            a.mov(rax, 0x4000_0000_0000_u64)?;
            a.mov(qword_ptr(rdx + 2), rax)?;
            a.lgdt(fword_ptr(rdx))?;
            a.mov(eax, 0x18)?;
            a.ltr(ax)
        }, PAGE_FAULT),
        ("a base that is none", |a| {
            a.mov(ecx, 0xC000_0100_u32)?;
            a.mov(edx, 0x8000_0000_u32)?;
            a.wrmsr()
        }, PROTECTION),
    ];
    for (what, write, vector) in attacks {
        match bare(&kvm, *write) {
            End::Fault(Cause::Exception(exception)) => {
                assert_eq!(exception.vector, *vector, "{what}");
            }
            other => panic!("{what}: {other:?}"),
        }
        innocent(&kvm);
    }
}

/// Whatever a guest returns with, it stays in its ring, with the flags that are its own.
#[test]
fn no_return_leads_out() {
    let Some(kvm) = kvm() else { return };
    let code = assemble(|a| {
        start_up(a)?;
        a.push(0x10)?;
        a.push(rsp)?;
        // Every flag but TF, which would take it to the handler, and NT.
        a.mov(rax, !(1_u64 << 8 | 1 << 14))?;
        a.push(rax)?;
        a.push(8)?;
        let mut there = a.create_label();
        a.lea(rax, qword_ptr(there))?;
        a.push(rax)?;
        a.iretq()?;
        a.set_label(&mut there)?;
        a.pushfq()?;
        a.cld()?;
        a.mov(rax, rsp)?;
        a.mov(rcx, DATA)?;
        a.mov(rdx, qword_ptr(rax))?;
        a.mov(qword_ptr(rcx), rdx)?;
        // Ports are as closed as before.
        puts(a, DATA, 8)?;
        a.mov(dx, 0x80)?;
        a.out(dx, al)
    });
    let elf = HvtBuilder::guest(&code)
        .data(TABLES, &tables(CODE_ADDR))
        .data(DATA, &[0; 64])
        .build();
    let run = run(&kvm, elf, &BootConfig::default());
    assert!(
        matches!(run.end, End::Fault(Cause::Port { port: 0x80, .. })),
        "{:?}",
        run.end
    );
    let flags = u64::from_le_bytes(run.console.try_into().unwrap());
    assert_eq!(flags & 0x3000, 0, "no I/O privilege: {flags:#x}");
    innocent(&kvm);
}

/// Guests that go round in circles at each of whose steps the host has to do something.
/// Each step is an exit, so that whoever wants the guest to end gets to say so.
#[test]
fn every_step_of_a_circle_is_an_exit() {
    let Some(kvm) = kvm() else { return };
    #[rustfmt::skip]
    let circles: &[(&str, Write)] = &[
        ("an instruction that is emulated", |a| {
            let mut here = a.create_label();
            a.set_label(&mut here)?;
            a.cli()?;
            a.jmp(here)
        }),
        ("a far return to itself", |a| {
            let mut here = a.create_label();
            a.mov(rcx, rsp)?;
            a.set_label(&mut here)?;
            a.mov(rsp, rcx)?;
            a.push(8)?;
            a.lea(rax, qword_ptr(here))?;
            a.push(rax)?;
            a.retf()
        }),
        ("a call without end", |a| {
            let mut here = a.create_label();
            a.set_label(&mut here)?;
            puts(a, DATA, 0)?;
            a.jmp(here)
        }),
        ("an exception whose handler is nowhere", |a| a.ud2()),
        ("single steps", |a| {
            a.pushfq()?;
            a.or(qword_ptr(rsp), 0x100)?;
            a.popfq()?;
            let mut here = a.create_label();
            a.set_label(&mut here)?;
            a.jmp(here)
        }),
    ];
    for (what, write) in circles {
        let code = assemble(|a| {
            start_up(a)?;
            write(a)
        });
        // Handlers are where nothing is, but on a stack that begins anew each time.
        let elf = HvtBuilder::guest(&code)
            .data(TABLES, &tables(0x4000_0000))
            .data(HANDLER_STACK - 4096, &[0; 4096])
            .data(DATA, &[0; 64])
            .build();
        let image = Image::parse(elf).unwrap();
        let config = BootConfig::default();
        let mut machine = Machine::boot(&kvm, &image, &config, Vec::new()).unwrap();
        let mut answer = None;
        for _ in 0..2000 {
            answer = match machine.enter(answer).unwrap() {
                Exit::Again | Exit::Interrupted => None,
                Exit::Call(_) => Some(wharf_abi::Answer::ok(0)),
                Exit::Fault(fault) => panic!("{what}: {:?}", fault.cause),
            };
        }
    }
    innocent(&kvm);
}

/// Memory in as many pieces as an image can ask for: what reaches over all of them is
/// still done in less than a slice.
#[test]
fn memory_in_pieces_costs_the_host_no_time_to_speak_of() {
    let Some(kvm) = kvm() else { return };
    const PIECES: u64 = 65_530;
    let memory = DATA + (PIECES + 16) * PAGE;
    let code = assemble(|a| {
        puts(a, DATA, PIECES * PAGE)?;
        halt(a, 0)
    });
    let elf = (0..PIECES).fold(HvtBuilder::guest(&code), |elf, n| {
        let flags = if n % 2 == 0 { R } else { R | W };
        elf.segment(DATA + n * PAGE, flags, &[], PAGE)
    });
    let image = Image::parse(elf.build()).unwrap();
    let config = BootConfig {
        memory,
        ..BootConfig::default()
    };
    let mut machine = Machine::boot(&kvm, &image, &config, Vec::new()).unwrap();
    let Exit::Call(Call::ConsoleWrite(slice)) = machine.enter(None).unwrap() else {
        panic!("it writes");
    };
    let times = (0..10).map(|_| {
        let start = Instant::now();
        let bytes = machine.read_user(slice).unwrap();
        assert_eq!(bytes.len(), 4096);
        start.elapsed()
    });
    let best = times.min().unwrap();
    assert!(best < Duration::from_millis(2), "{best:?}");
}

/// A stack that grows into what is not the guest's, one exception after the other.
#[test]
fn exceptions_that_use_up_the_stack_end_the_guest() {
    let Some(kvm) = kvm() else { return };
    let mut page = tables(0x4000_0000);
    // All on the stack that is in use, which ends at the bottom of memory.
    for vector in 0..21 {
        page[0x200 + vector * 16 + 4] = 0;
    }
    let code = assemble(|a| {
        start_up(a)?;
        a.mov(rsp, TABLES + 0x1400)?;
        a.ud2()
    });
    let elf = HvtBuilder::guest(&code)
        .data(TABLES, &page)
        .data(TABLES + 0x1000, &[0; 0x400])
        .build();
    let end = run(&kvm, elf, &BootConfig::default()).end;
    // Its own tables are below: once they are overwritten there is no handler.
    assert!(matches!(end, End::Fault(Cause::Exception(_))), "{end:?}");
    innocent(&kvm);
}
